"""English words of numbers."""

_ONES = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
_TENS = ["_", "_", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_GROUPS = ("", "thousand", "million", "billion", "trillion", "quadrillion", "quintillion")
_MAX_DIGITS = 3 * len(_GROUPS)
_IRREGULAR_ORDINALS = {
    "one": "first",
    "two": "second",
    "three": "third",
    "five": "fifth",
    "eight": "eighth",
    "nine": "ninth",
    "twelve": "twelfth",
}
_ROMAN = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100, "D": 500, "M": 1000}
_ROMAN_PAIRS = (
    (1000, "M"),
    (900, "CM"),
    (500, "D"),
    (400, "CD"),
    (100, "C"),
    (90, "XC"),
    (50, "L"),
    (40, "XL"),
    (10, "X"),
    (9, "IX"),
    (5, "V"),
    (4, "IV"),
    (1, "I"),
)


def _below_hundred(number: int) -> str:
    if number < 20:
        return _ONES[number]
    tens, ones = divmod(number, 10)
    return _TENS[tens] + (f"-{_ONES[ones]}" if ones else "")


def _below_thousand(number: int) -> str:
    hundreds, rest = divmod(number, 100)
    parts = [f"{_ONES[hundreds]} hundred"] if hundreds else []
    if rest or not parts:
        parts.append(_below_hundred(rest))
    return " ".join(parts)


def cardinal(number: int | str) -> str:
    """42 or "42" -> "forty-two". Numbers of 22 digits or more are read digit by digit."""
    if isinstance(number, str):
        significant = number.lstrip("0") or "0"
        if len(significant) > _MAX_DIGITS:  # Python makes no integer of over 4,300 digits
            return digits(significant)
        number = int(significant)
    if number < 0:
        return f"minus {cardinal(-number)}"
    if number < 1000:
        return _below_thousand(number)
    if number >= 10**_MAX_DIGITS:
        return digits(str(number))
    parts = []
    for group in reversed(range(len(_GROUPS))):
        count = number // 1000**group % 1000
        if count:
            parts.append(f"{_below_thousand(count)} {_GROUPS[group]}".strip())
    return " ".join(parts)


def ordinal(number: int | str) -> str:
    """42 or "42" -> "forty-second"."""
    words = cardinal(number)
    cut = max(words.rfind(" "), words.rfind("-")) + 1
    last = words[cut:]
    if last in _IRREGULAR_ORDINALS:
        last = _IRREGULAR_ORDINALS[last]
    elif last.endswith("y"):
        last = f"{last[:-1]}ieth"
    else:
        last += "th"
    return words[:cut] + last


def year(number: int) -> str:
    """1984 -> "nineteen eighty-four"; 1905 -> "nineteen oh five"; 2007 -> "two thousand seven"."""
    century, rest = divmod(number, 100)
    if not 1000 <= number <= 9999 or (century % 10 == 0 and rest < 10):
        return cardinal(number)
    if rest == 0:
        return f"{cardinal(century)} hundred"
    return f"{cardinal(century)} {'oh ' if rest < 10 else ''}{cardinal(rest)}"


def digits(text: str) -> str:
    """ "407" -> "four zero seven"."""
    return " ".join(_ONES[int(digit)] for digit in text if digit.isdigit())


def decimal(text: str) -> str:
    """ "3.14" -> "three point one four"."""
    whole, _, fraction = text.partition(".")
    words = cardinal(whole)
    return f"{words} point {digits(fraction)}" if fraction else words


def plural(words: str) -> str:
    """ "nineteen eighty" -> "nineteen eighties"."""
    if words.endswith("y"):
        return f"{words[:-1]}ies"
    return words + ("es" if words.endswith(("x", "s", "ch", "sh")) else "s")


def roman(text: str) -> int | None:
    """XIV -> 14; None for what is no well-formed Roman number."""
    if not text or any(letter not in _ROMAN for letter in text):
        return None
    values = [_ROMAN[letter] for letter in text]
    total = sum(-a if a < b else a for a, b in zip(values, [*values[1:], 0], strict=True))
    rest, written = total, ""
    for value, letters in _ROMAN_PAIRS:
        count, rest = divmod(rest, value)
        written += letters * count
    return total if written == text else None
