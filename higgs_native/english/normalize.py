"""Normalization of English text: everything that is not a word becomes words.

Numbers, dates, times, money, units, abbreviations, e-mail addresses and URLs are written out; punctuation that shapes
speech stays.

    >>> normalize("On 3/5/2021 at 5:30 p.m., it cost $3.50.")
    'On March fifth, twenty twenty-one at five thirty P M, it cost three dollars and fifty cents.'
"""

import re
import unicodedata

from higgs_native.english.numbers import cardinal, decimal, digits, ordinal, plural, roman, year
from higgs_native.english.short_forms import (
    ABBREVIATIONS,
    CHARACTERS,
    CURRENCIES,
    DAYS,
    FINAL,
    MONTH_NAMES,
    MONTHS,
    SCALES,
    SPELLED_ADDRESS,
    SYMBOLS,
    TITLES,
    UNITS,
    VULGAR,
    WITHOUT_STOP,
)


_MONTH = "(?:" + "|".join(sorted(MONTH_NAMES, key=len, reverse=True)) + r")\b\.?"
_NUMBER = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+"
_DOMAINS = "com|org|net|edu|gov|io|co|uk|de|fr|info|dev|ai|app|us|ca|eu|me|tv"
_TEXT_END = re.compile(r"\s*\Z")
_SENTENCE_END = re.compile(r"\s*\Z|[\"')\]”’]*\s+[\"'(“‘]*[A-Z]")
_UNIT = "|".join(re.escape(unit) for unit in sorted(UNITS, key=len, reverse=True))


def _spell(letters: str) -> str:
    return " ".join(letters.upper())


def _value(text: str) -> str:
    text = text.replace(",", "")
    return decimal(text) if "." in text else cardinal(text)


def _code(text: str) -> str:
    """Digits of an address, a version or a name: as people say them, in pairs where there are few."""
    if len(text) <= 2 and not text.startswith("0"):
        return cardinal(text)
    return digits(text)


def _address(match: re.Match) -> str:
    """An e-mail address or a URL: words as words, what nobody could say spelled."""
    text = re.sub(r"^[a-z]+://", "", match[0])
    text, stop = (text[:-1], text[-1]) if text[-1] in ".,;:!?" else (text, "")
    text = re.sub(r"^www\.", "W W W.", text).rstrip("/")
    parts = []
    for part in re.findall(r"[A-Za-z ]+|\d+|.", text):
        if part[0].isdigit():
            parts.append(_code(part))
        elif part in SPELLED_ADDRESS:
            parts.append(SPELLED_ADDRESS[part])
        elif part.isascii() and part.isalpha():
            spoken = len(part) > 3 or part in ("com", "org", "net", "gov", "the", "my", "go", "get", "app", "dev")
            parts.append(part if spoken or (len(part) > 2 and re.search("[aeiouy]", part)) else _spell(part))
        elif part.strip():
            parts.append(part)
    return f" {' '.join(parts)}{stop} "


def _clock(match: re.Match) -> str:
    hour, minute, second, half = int(match[1]), match[2], match[3], match[4]
    if hour > 24 or int(minute or "0") > 59:
        return match[0]
    words = [cardinal(hour)]
    if minute and int(minute):
        words.append(f"oh {cardinal(int(minute))}" if int(minute) < 10 else cardinal(int(minute)))
    elif not half and minute:
        words.append("o'clock" if 0 < hour <= 12 else "hundred")
    if second:
        words.append(f"and {cardinal(int(second))} seconds")
    if half:
        words.append(_spell(re.sub(r"[^a-zA-Z]", "", half)))
    stop = "." if half and half.endswith(".") and _ends_sentence(match) else ""
    return " ".join(words) + stop


def _ends_sentence(match: re.Match) -> bool:
    """Whether the text ends after the match, or goes on with a capital letter."""
    return _SENTENCE_END.match(match.string, match.end()) is not None


def _money(match: re.Match) -> str:
    one, many, cent, cents = CURRENCIES[match["symbol"]]
    amount, scale = match["amount"].replace(",", ""), match["scale"]
    if scale:
        return f"{_value(amount)} {SCALES[scale]} {many}"
    whole, _, fraction = amount.partition(".")
    if not fraction or not cent or len(fraction) != 2:
        return f"{_value(amount)} {one if amount == '1' else many}"
    parts = []
    whole = whole.lstrip("0")
    if whole or not int(fraction):
        parts.append(f"{cardinal(whole)} {one if whole == '1' else many}")
    if int(fraction):
        parts.append(f"{cardinal(int(fraction))} {cent if int(fraction) == 1 else cents}")
    return " and ".join(parts)


def _quantity(match: re.Match) -> str:
    """A number with a unit behind it."""
    unit = UNITS[match["unit"]]
    one, many = unit if isinstance(unit, tuple) else (unit, plural(unit))
    sign = "minus " if match["sign"] else ""
    singular = match["number"] == "1"
    stop = "." if match["stop"] and _ends_sentence(match) else ""
    return f"{sign}{_value(match['number'])} {one if singular else many}{stop}"


def _fraction(match: re.Match) -> str:
    whole, top, bottom = match["whole"], int(match["top"]), int(match["bottom"])
    joint = " " if match[0].endswith("-") else ""
    if not 0 < top < bottom or bottom > 100:
        return f"{match['whole'] or ''} {cardinal(top)} over {cardinal(bottom)}".strip() + joint
    name = {2: "half", 4: "quarter"}.get(bottom, ordinal(bottom))
    if top > 1:
        name = "halves" if bottom == 2 else plural(name)
    if whole:
        return f"{cardinal(whole)} and {'a' if top == 1 else cardinal(top)} {name}{joint}"
    return f"{cardinal(top)} {name}{joint}"


def _month_first(match: re.Match) -> str:
    """May 3rd, 2021."""
    words = f"{MONTH_NAMES[match['month'].rstrip('.')]} {ordinal(int(match['day']))}"
    return f"{words}, {year(int(match['year']))}" if match["year"] else words


def _day_first(match: re.Match) -> str:
    """3 May 2021."""
    words = f"the {ordinal(int(match['day']))} of {MONTH_NAMES[match['month'].rstrip('.')]}"
    return f"{words}, {year(int(match['year']))}" if match["year"] else words


def _slashed_date(match: re.Match) -> str:
    month, day, number = int(match[1]), int(match[2]), match[3]
    if month > 12:
        month, day = day, month
    if not (1 <= month <= 12 and 1 <= day <= 31):
        return match[0]
    spoken = year(int(number)) if len(number) == 4 else cardinal(int(number))
    return f"{MONTHS[month - 1]} {ordinal(day)}, {spoken}"


def _iso_date(match: re.Match) -> str:
    month, day = int(match[2]), int(match[3])
    if not (1 <= month <= 12 and 1 <= day <= 31):
        return match[0]
    return f"{MONTHS[month - 1]} {ordinal(day)}, {year(int(match[1]))}"


def _years(match: re.Match) -> str:
    """1980s, '90s."""
    number = int(match[1])
    return plural(year(number)) if number >= 1000 else plural(cardinal(number))


def _phone(match: re.Match) -> str:
    return ", ".join(digits(part) for part in re.findall(r"\d+", match[0]))


def _initials(match: re.Match) -> str:
    """U.S.A. -> U S A"""
    letters = match[0].replace(".", "")
    return " ".join(letters) + ("." if _TEXT_END.match(match.string, match.end()) else "")


def _abbreviation(match: re.Match) -> str:
    word, stop = match[1], match[2]
    if word in TITLES and (stop or word in WITHOUT_STOP):
        return TITLES[word]
    if word in ABBREVIATIONS and (stop or word in WITHOUT_STOP):
        return ABBREVIATIONS[word] + ("." if stop and word in FINAL and _ends_sentence(match) else "")
    if word in DAYS and stop:
        return DAYS[word]
    return match[0]


def _roman_ordinal(match: re.Match) -> str:
    """Henry VIII, and Chapter IV."""
    number = roman(match[2])
    if number is None or (match[2] == "I" and match[1] not in _COUNTED):
        return match[0]
    spoken = cardinal(number) if match[1] in _COUNTED else f"the {ordinal(number)}"
    return f"{match[1]} {spoken}"


_COUNTED = (
    "Chapter",
    "Volume",
    "Part",
    "Book",
    "Act",
    "Scene",
    "Section",
    "Type",
    "War",
    "Article",
    "Appendix",
    "Phase",
)
_RULERS = (
    "Henry|Louis|George|Edward|Elizabeth|Charles|William|James|Richard|Philip|Napoleon|Pius|Paul|John|Alexander|"
    "Catherine|Frederick|Ramses|Benedict|Gregory|Leo|Ivan|Peter|Nicholas|Victoria|Mary"
)

_RULES: tuple[tuple[re.Pattern, object], ...] = tuple(
    (re.compile(pattern), put)
    for pattern, put in (
        # Bounds keep the time linear in the text: a search begins at every character or word.
        (r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+", _address),
        (r"\bhttps?://\S+|\bwww\.\S+", _address),
        (rf"\b[a-z0-9-]{{1,63}}(?:\.[a-z0-9-]{{1,63}}){{0,9}}\.(?:{_DOMAINS})\b(?:/\S*)?", _address),
        (r"\b(\d{1,2}):(\d\d)(?::(\d\d))?(?:\s*([AaPp]\.?\s?[Mm]\b\.?))?", _clock),
        (r"\b(\d{1,2})()()\s*([AaPp]\.[Mm]\.|[AaPp][Mm]\b)", _clock),
        (
            rf"\b(?P<month>{_MONTH})\s+(?P<day>\d{{1,2}})(?:st|nd|rd|th)?\b(?:,?\s+(?P<year>[12]\d{{3}})\b)?",
            _month_first,
        ),
        (
            rf"\b(?:the )?(?P<day>\d{{1,2}})(?:st|nd|rd|th)?(?: of)? "
            rf"(?P<month>{_MONTH})(?:,? (?P<year>[12]\d{{3}})\b)?",
            _day_first,
        ),
        (
            rf"\b(?P<month>{_MONTH}),? (?P<year>[12]\d{{3}})\b",
            lambda m: f"{MONTH_NAMES[m['month'].rstrip('.')]} {year(int(m['year']))}",
        ),
        (r"\b([12]\d{3})-(\d\d)-(\d\d)\b", _iso_date),
        (r"\b(\d{1,2})/(\d{1,2})/(\d{4}|\d\d)\b", _slashed_date),
        (
            rf"(?P<symbol>[$£€¥])\s?(?P<amount>{_NUMBER})(?:\s?(?P<scale>thousand|million|billion|trillion|mn|bn|tn|[kKmMbBT])\b)?",
            _money,
        ),
        (r"(?:\+\d{1,2}[ -])?\(?\b\d{3}\)?[ -]\d{3}[ -]\d{4}\b|\b\d{3}-\d{4}\b", _phone),
        (r"\b(\d{4}|\d{2})'?s\b", _years),
        (r"\b(\d{1,3}(?:,\d{3})*)(?:st|nd|rd|th)\b", lambda m: ordinal(m[1].replace(",", ""))),
        (r"(?<![\d-])\b([12]\d{3}) ?- ?([12]\d{3})\b(?!-)", lambda m: f"{year(int(m[1]))} to {year(int(m[2]))}"),
        (r"(?<![\d.-])\b(\d{1,3}) ?- ?(\d{1,3})\b(?!-\d)", r"\1 to \2"),
        (r"\b(?:(?P<whole>\d+) )?(?P<top>\d{1,2})/(?P<bottom>\d{1,3})\b(?:-(?=[a-z]))?", _fraction),
        (
            rf"(?P<sign>(?<![\w)])[-−])?(?<![\w.])(?P<number>{_NUMBER})[ -]?"
            rf"(?P<unit>{_UNIT})(?![\w/])(?P<stop>\.(?!\w))?",
            _quantity,
        ),
        (
            rf"\b({_NUMBER})\s?(k|K|M|bn|mn)\b",
            lambda m: f"{_value(m[1])} {SCALES[m[2]]}",
        ),
        (r"\b(\d+)\s?[x×]\s?(\d+)\b", lambda m: f"{cardinal(m[1])} by {cardinal(m[2])}"),
        (r"\b[Nn]o\. ?(?=\d)|#(?=\d)", "number "),
        (r"(?<=[A-Za-z])-?(?=\d)|(?<=\d)-(?=[A-Za-z])", " "),
        (r"(?<![\d.])(\d+(?:\.\d+){2,})\b", lambda m: " point ".join(_code(part) for part in m[1].split("."))),
        (rf"\b({'|'.join(_COUNTED)}|{_RULERS}) ([IVXLC]+)\b(?!')", _roman_ordinal),
        (r"\bSt\. (?=[A-Z])", "Saint "),
        (r"\b(?:e\.g|i\.e)\.,?", lambda m: ABBREVIATIONS[m[0].rstrip(".,")] + ","),
        (r"\b(?:[A-Za-z]\.){2,}", _initials),
        (r"(?<![A-Z] )\b([A-Z])\. (?=[A-Z][a-z.])", r"\1 "),
        (rf"\b({'|'.join(sorted({*TITLES, *ABBREVIATIONS, *DAYS}, key=len, reverse=True))})\b(\.)?", _abbreviation),
        # A number after what may be a word is a year only if nothing groups or divides it.
        (r"(?<![\d.,])\b(1[1-9]\d\d|20[0-9]\d)\b(?![\d,]*\d|\.\d| [a-z]+s\b)", lambda m: year(int(m[1]))),
        (r"(?<![\w)])[-−](?=\.?\d)", "minus "),
        (r"(?<![\d.,])(?:0\d+|\d{10,})\b(?![.,]\d)", lambda m: digits(m[0])),
        (rf"{_NUMBER}", lambda m: f" {_value(m[0])} "),
    )
)


def normalize(text: str) -> str:
    """Write out what is no word.

    Args:
        text: English; scripts other than Latin are left as they are.

    Returns:
        Words and punctuation on one line.
    """
    for fraction, written in VULGAR.items():
        text = re.sub(rf"(\d)\s?{fraction}", rf"\1 {written}", text).replace(fraction, written)
    text = re.sub(r"(?<=\d)–(?=\d)", "-", text)
    text = re.sub(r"\s[–-]\s|–|--+", " — ", text)
    text = unicodedata.normalize("NFC", text.translate(CHARACTERS))
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r"\.{3,}|\. \. \.", "…", text)
    for pattern, put in _RULES:
        text = pattern.sub(put, text)
    text = re.sub(r"\b(and)/(or)\b", r"\1 \2", text)
    text = re.sub(r"(?<=\w)/(?=\w)", " slash ", text)
    for symbol, words in SYMBOLS.items():
        text = text.replace(symbol, words)
    text = re.sub(r"[/{}\[\]]", " ", text)
    text = re.sub(r"\s+", " ", text).strip()
    return re.sub(r" ([,.;:!?…])", r"\1", text)
