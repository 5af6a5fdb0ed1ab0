"""Composed sentences: numbers, dates, times, money, names, everyday talk, and dictionary words in random order."""

import json
import random
import re
from pathlib import Path

from higgs_native.english.pronunciation import Pronouncer


_LISTS = json.loads(Path(__file__).with_name("composed.json").read_text(encoding="utf-8"))
_FIRST, _LAST, _PLACES, _MONTHS, _DAYS, _THINGS, _NOUNS, _ADJECTIVES, _UNITS = (
    _LISTS[name].split()
    for name in ("first", "last", "places", "months", "days", "things", "nouns", "adjectives", "units")
)

_TEMPLATES = (
    "{full} was born on {date}.",
    "{full} was born in {place} in {year}.",
    "The {noun} opened on {date} and closed in {year}.",
    "Did {first} really pay {money} for that {adjective} {noun}?",
    "It costs {money}, or {money} for two.",
    "The total comes to {money}.",
    "{money}! Are you serious?",
    "{title} {last} will see you at {time}.",
    "The train from {place} to {place} leaves at {time}.",
    "Is the {time} train to {place} late?",
    "We have {number} {things}, and {number} more on the way.",
    "Only {small} of the {number} {things} were left.",
    "In {year}, {number} {things} were sold in {place}.",
    "Between {year} and {year}, prices rose by {percent}.",
    "About {percent} of the people in {place} agreed; {percent} did not.",
    "Call me at {phone} before {time}.",
    "My number is {phone}.",
    "Please write to {email} by {date}.",
    "You can find it at {url}.",
    "The address is {address}.",
    "They live at {address}, near {place}.",
    "It weighs {quantity} and measures {quantity}.",
    "The temperature fell to {temperature} in {place} on {day}.",
    "Will it be warmer than {temperature} on {day}?",
    "She finished {ordinal}, {fraction} of a second ahead of {last}.",
    "Add {fraction} cup of sugar and {small} eggs.",
    "He ate {fraction} of the cake!",
    "The {ordinal} {noun} is on page {number}.",
    "Chapter {small}: the {adjective} {noun}.",
    "{first}, {first} and {first} went to {place}.",
    "Have you met {full}, the {noun} {noun} from {place}?",
    "{full} and {full} met in {place} on {day}, {date}.",
    "What a {adjective} {noun}!",
    "How {adjective} the {noun} is!",
    "Why is the {noun} so {adjective}?",
    "Where did {first} put the {noun}?",
    "Who told {first} about the {noun}, and when?",
    "Which {noun} do you want, the {adjective} one or the {adjective} one?",
    "Is it {adjective}, or is it {adjective}?",
    "Can you hear me, {first}?",
    "Don't touch the {noun}!",
    "Look out, {first}! The {noun}!",
    "Thank you, {first}; that was a {adjective} {noun}.",
    "I think, therefore I need a {noun}.",
    "I'm sorry, but the {noun} isn't {adjective} enough.",
    "If the {noun} is {adjective}, we'll leave on {day}; if not, we'll wait.",
    "{first} said the {noun} was {adjective}, but {last} didn't believe it.",
    "The score was {small} to {small} after {small} minutes.",
    "Version {version} was released on {date}.",
    "Flight {flight} to {place} is boarding at gate {small}.",
    "Room {room}, on the {ordinal} floor.",
    "Dr. {last} of {place} won the prize in {year}, and again in {year}.",
    "The population of {place} was {number} in {year}.",
    "The company lost {money} in the {ordinal} quarter, but gained {percent} in {month}.",
    "Set the timer for {small} minutes and {small} seconds.",
    "Your order of {number} {things} will arrive on {day} between {time} and {time}.",
    "Today is {day}, {date}.",
    "What time is it? It's {time}.",
    "The meeting is at {time} on {day}, isn't it?",
    "{number} divided by {small} is about {decimal}.",
    "Pi is roughly {decimal}, give or take {decimal}.",
    "{small} plus {small} equals {small}.",
    "Does {number} sound right to you?",
    "One, two, {small}, {small}, {small}!",
    "The code is {code}.",
    "Good morning, {first}. How was {place}?",
    "Hello, {first}! It's good to see you.",
    "Goodbye, {first}. See you on {day}.",
    "Yes, the {noun} is {adjective}.",
    "No, {first}. Not the {noun}.",
    "Hello, world.",
    "Read the {ordinal} paragraph again, please.",
    "You've got {small} new messages from {full}.",
    "Turn left after {quantity}, then right onto {last} Street.",
    "It happened in the {decade}, when {full} lived in {place}.",
    "{last} & {last}, est. {year}.",
    "The {noun} (built in {year}) is {quantity} tall.",
    "{name} and {name} are names you may not know.",
    "Ask {name} about {name}.",
    "Is {name} in {place}?",
    "{first} {name} of {name} wrote {small} books.",
)


class Composer:
    """Composes sentences whose words all pronouncers know.

    Args:
        frequent: words, the most frequent first.
        pronouncers: of the accents that the sentences are for.
    """

    def __init__(self, frequent: list[str], pronouncers: list[Pronouncer]) -> None:
        shared = sorted(set.intersection(*(set(pronouncer.entries) for pronouncer in pronouncers)))
        plain = re.compile(r"[a-z]{2,}")
        self.dictionary = [word for word in shared if plain.fullmatch(word)]
        self.names = [word for word in shared if re.fullmatch(r"[A-Z][a-z]{2,}", word) and word.lower() not in shared]
        self.frequent = [word for word in frequent if plain.fullmatch(word) and all(p.get(word) for p in pronouncers)]

    def words(self, rng: random.Random) -> str:
        """Dictionary words in random order: half of them any, half the more likely the more frequent they are."""
        count = rng.choice((1, 2, 2, 3, 3, 4, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14))
        words = []
        for _ in range(count):
            if rng.random() < 0.5:
                words.append(self.frequent[int(len(self.frequent) ** rng.random()) - 1])
            else:
                words.append(rng.choice(self.names if rng.random() < 0.12 else self.dictionary))
        joined = words[0].capitalize() if words[0].islower() else words[0]
        for word in words[1:]:
            joined += rng.choices((" ", ", ", "; ", " — ", "? ", "! "), (80, 14, 1, 1, 2, 2))[0] + word
        return joined + rng.choices((".", "?", "!"), (64, 20, 16))[0]

    def sentence(self, rng: random.Random) -> str:
        """A template with everything in it filled."""
        template = rng.choice(_TEMPLATES)
        filled = re.sub(r"\{(\w+)\}", lambda match: str(getattr(self, f"_{match[1]}")(rng)), template)
        return filled[0].upper() + filled[1:]

    def _first(self, rng: random.Random) -> str:
        return rng.choice(_FIRST)

    def _last(self, rng: random.Random) -> str:
        return rng.choice(_LAST) if rng.random() < 0.6 else self._name(rng)

    def _name(self, rng: random.Random) -> str:
        return rng.choice(self.names)

    def _full(self, rng: random.Random) -> str:
        initial = f" {rng.choice('ABCDEFGHJKLMNPRSTW')}." if rng.random() < 0.15 else ""
        return f"{self._first(rng)}{initial} {self._last(rng)}"

    def _place(self, rng: random.Random) -> str:
        return rng.choice(_PLACES) if rng.random() < 0.7 else self._name(rng)

    @staticmethod
    def _title(rng: random.Random) -> str:
        return rng.choice(("Dr.", "Mr.", "Mrs.", "Ms.", "Prof."))

    @staticmethod
    def _month(rng: random.Random) -> str:
        return rng.choice(_MONTHS[:12])

    @staticmethod
    def _day(rng: random.Random) -> str:
        return rng.choice(_DAYS)

    @staticmethod
    def _things(rng: random.Random) -> str:
        return rng.choice(_THINGS)

    def _noun(self, rng: random.Random) -> str:
        return rng.choice(_NOUNS)

    @staticmethod
    def _adjective(rng: random.Random) -> str:
        return rng.choice(_ADJECTIVES)

    @staticmethod
    def _year(rng: random.Random) -> int:
        return rng.choice((rng.randint(1900, 2040), rng.randint(1100, 2030), rng.randint(2000, 2030)))

    @staticmethod
    def _decade(rng: random.Random) -> str:
        return f"{rng.randint(180, 202)}0s"

    def _date(self, rng: random.Random) -> str:
        month, day, year = rng.choice(_MONTHS), rng.randint(1, 28), self._year(rng)
        ending = "th" if 4 <= day <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
        return rng.choice(
            (
                f"{month} {day}, {year}",
                f"{month} {day}",
                f"{month} {day}{ending}",
                f"{day} {month} {year}",
                f"the {day}{ending} of {rng.choice(_MONTHS[:12])}",
                f"{rng.randint(1, 12)}/{day}/{year}",
                f"{year}-{rng.randint(1, 12):02}-{day:02}",
            )
        )

    @staticmethod
    def _time(rng: random.Random) -> str:
        hour, minute = rng.randint(1, 12), rng.choice((0, 5, 10, 15, 20, 30, 45, rng.randint(1, 59)))
        half = rng.choice(("a.m.", "p.m.", "AM", "PM", "pm"))
        return rng.choice(
            (
                f"{hour}:{minute:02} {half}",
                f"{hour}:{minute:02}",
                f"{hour} {half}",
                f"{rng.randint(13, 23)}:{minute:02}",
            )
        )

    @staticmethod
    def _money(rng: random.Random) -> str:
        sign = rng.choice("$$$$£€")
        amount = rng.choice(
            (
                f"{rng.randint(1, 99)}.{rng.randint(0, 99):02}",
                f"{rng.randint(1, 999)}",
                f"{rng.randint(1000, 99999):,}",
                f"{rng.randint(1, 99)}.{rng.randint(1, 9)} million",
                f"{rng.randint(1, 99)} billion",
                f"0.{rng.randint(1, 99):02}",
            )
        )
        return sign + amount

    @staticmethod
    def _number(rng: random.Random) -> str:
        return f"{rng.randint(2, 10 ** rng.randint(1, 7)):,}"

    @staticmethod
    def _small(rng: random.Random) -> int:
        return rng.randint(1, rng.choice((12, 60, 100)))

    @staticmethod
    def _room(rng: random.Random) -> int:
        return rng.randint(100, 2400)

    @staticmethod
    def _decimal(rng: random.Random) -> str:
        return f"{rng.randint(0, 200)}.{rng.randint(1, 999)}"

    @staticmethod
    def _percent(rng: random.Random) -> str:
        return rng.choice((f"{rng.randint(1, 100)}%", f"{rng.randint(0, 99)}.{rng.randint(1, 9)}%"))

    @staticmethod
    def _phone(rng: random.Random) -> str:
        local = f"{rng.randint(100, 999)}-{rng.randint(0, 9999):04}"
        return rng.choice((local, f"({rng.randint(200, 999)}) {local}", f"{rng.randint(200, 999)}-{local}"))

    def _email(self, rng: random.Random) -> str:
        return f"{rng.choice(_FIRST).lower()}.{rng.choice(_LAST).lower().replace(chr(39), '')}@{self._noun(rng)}.com"

    def _url(self, rng: random.Random) -> str:
        start = rng.choice(("https://www.", "www.", "https://", ""))
        return f"{start}{self._noun(rng)}.{rng.choice(('com', 'net', 'com'))}{rng.choice(('', '/' + self._noun(rng)))}"

    def _address(self, rng: random.Random) -> str:
        street = rng.choice(("Street", "Road", "Avenue", "Lane", "Ave.", "Blvd."))
        return f"{rng.randint(1, 999)} {self._last(rng)} {street}"

    @staticmethod
    def _quantity(rng: random.Random) -> str:
        amount = rng.choice((f"{rng.randint(1, 500)}", f"{rng.randint(0, 50)}.{rng.randint(1, 9)}"))
        return f"{amount} {rng.choice(_UNITS)}"

    @staticmethod
    def _temperature(rng: random.Random) -> str:
        return f"{rng.choice(('', '', '-'))}{rng.randint(1, 99)}°{rng.choice(('C', 'F', ''))}"

    @staticmethod
    def _ordinal(rng: random.Random) -> str:
        number = rng.randint(1, rng.choice((10, 31, 120)))
        ending = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
        return f"{number}{ending}"

    @staticmethod
    def _fraction(rng: random.Random) -> str:
        bottom = rng.choice((2, 3, 4, 5, 6, 8, 10))
        whole = rng.choice(("", "", f"{rng.randint(1, 9)} "))
        return f"{whole}{rng.randint(1, bottom - 1)}/{bottom}"

    @staticmethod
    def _version(rng: random.Random) -> str:
        return f"{rng.randint(0, 12)}.{rng.randint(0, 20)}.{rng.randint(0, 9)}"

    @staticmethod
    def _flight(rng: random.Random) -> str:
        return f"{rng.choice('ABDKLNSU')}{rng.choice('ACEFHLM')} {rng.randint(10, 999)}"

    @staticmethod
    def _code(rng: random.Random) -> str:
        return " ".join(rng.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789") for _ in range(rng.randint(3, 7)))
