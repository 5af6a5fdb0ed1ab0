"""English text becomes words and punctuation."""

import pytest

from higgs_native.english.normalize import normalize
from higgs_native.english.numbers import cardinal, decimal, digits, ordinal, plural, roman, year


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "zero"),
        (13, "thirteen"),
        (42, "forty-two"),
        (100, "one hundred"),
        (907, "nine hundred seven"),
        (1000, "one thousand"),
        (12345, "twelve thousand three hundred forty-five"),
        (2000001, "two million one"),
        (-7, "minus seven"),
        (10**21, "one zero zero" + " zero" * 19),
    ],
)
def test_cardinal(number, words):
    assert cardinal(number) == words


@pytest.mark.parametrize(
    ("number", "words"),
    [(1, "first"), (12, "twelfth"), (20, "twentieth"), (31, "thirty-first"), (100, "one hundredth"), (8, "eighth")],
)
def test_ordinal(number, words):
    assert ordinal(number) == words


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (1984, "nineteen eighty-four"),
        (1905, "nineteen oh five"),
        (1900, "nineteen hundred"),
        (2000, "two thousand"),
        (2007, "two thousand seven"),
        (2024, "twenty twenty-four"),
        (476, "four hundred seventy-six"),
    ],
)
def test_year(number, words):
    assert year(number) == words


def test_the_other_numbers():
    assert decimal("3.14") == "three point one four"
    assert decimal(".5") == "zero point five"
    assert digits("4-07") == "four zero seven"
    assert plural("nineteen eighty") == "nineteen eighties"
    assert plural("inch") == "inches"
    assert roman("XIV") == 14
    assert roman("IIII") is None
    assert roman("MIX") == 1009
    assert roman("him") is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("He said nothing.", "He said nothing."),
        ("At 5:30 p.m. we left.", "At five thirty P M we left."),
        ("Call at 9 a.m. Then go.", "Call at nine A M. Then go."),
        ("10:00, 12:05, 17:45", "ten o'clock, twelve oh five, seventeen forty-five"),
        ("re: the meeting", "re: the meeting"),
        ("on 3/5/2021", "on March fifth, twenty twenty-one"),
        ("on 2024-05-13", "on May thirteenth, twenty twenty-four"),
        ("on Jan. 3rd, 1999", "on January third, nineteen ninety-nine"),
        ("on 4 July 1776", "on the fourth of July, seventeen seventy-six"),
        ("in May 2020", "in May twenty twenty"),
        ("in 1905", "in nineteen oh five"),
        ("the 1980s", "the nineteen eighties"),
        ("1,500 books", "one thousand five hundred books"),
        ("1500 books", "one thousand five hundred books"),
        ("1939-1945", "nineteen thirty-nine to nineteen forty-five"),
        ("pages 100-200", "pages one hundred to two hundred"),
        ("$3.50", "three dollars and fifty cents"),
        ("$1", "one dollar"),
        ("$0.01", "one cent"),
        ("£1.2 million", "one point two million pounds"),
        ("€5bn", "five billion euros"),
        ("a 2½-inch gap", "a two and a half inch gap"),
        ("1/2 cup, 3/4 cup", "one half cup, three quarters cup"),
        ("5 km and 1 kg.", "five kilometers and one kilogram."),
        ("-5°C", "minus five degrees Celsius"),
        ("12.5%", "twelve point five percent"),
        ("3 ft. tall", "three feet tall"),
        ("0.05 of 007", "zero point zero five of zero zero seven"),
        ("555-1234", "five five five, one two three four"),
        ("the 21st, the 2nd", "the twenty-first, the second"),
        ("Henry VIII, Chapter IV", "Henry the eighth, Chapter four"),
        ("Mary I", "Mary I"),
        ("Dr. Who vs. Mr. J. R. Brown", "Doctor Who versus Mister J R Brown"),
        ("St. Paul and No. 5", "Saint Paul and number five"),
        ("e.g. the U.S. Army", "for example, the U S Army"),
        ("salt, pepper, etc.", "salt, pepper, et cetera."),
        ("AT&T", "AT and T"),
        ("joe.brown@foo.org", "joe dot brown at foo dot org"),
        ("See https://www.example.com/a-b.", "See W W W dot example dot com slash A dash B."),
        ("v2.0.1", "v two point zero point one"),
        ("“Yes”--no…", '"Yes" — no…'),
        ("two\nlines\t here", "two lines here"),
        ("9000000 of 1234567890", "nine million of one two three four five six seven eight nine zero"),
        ("the 5-year-old B52", "the five year-old B fifty-two"),
    ],
)
def test_normalize(text, words):
    assert normalize(text) == words


@pytest.mark.parametrize(
    "text", ["{} km", "${}", "${}.50", "2x{}", "{} 1/2", "{}", "{}.5", "1,{}st", "{}k", "Henry {}", "a@{}.com"]
)
def test_numbers_of_any_length_are_read_digit_by_digit(text):
    """Python refuses to make integers of over 4,300 digits."""
    number = ",".join(["222"] * 1700) if "," in text else "2" * 5100
    assert " ".join(["two"] * 5000) in normalize(text.format(number))


@pytest.mark.parametrize("unit", ["a", "a.", "1.", "0x", "a-", "U.S. "])
def test_time_is_linear_in_the_text(unit):
    """With quadratic time most of these take minutes."""
    assert len(normalize(unit * 60_000)) >= 60_000
