"""Markdown and emoji leave what is spoken."""

import sys

import pytest

from higgs_native.errors import ParameterError
from higgs_native.manuscript.markup import strip_emoji, strip_markup


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# Title\n\nA **bold** and *soft* `word`.", "Title\n\nA bold and soft word."),
        ("See [the page](http://x.y/z) and ![a cat](c.png).", "See the page and a cat."),
        ("One\nwrapped line, and <b>another</b>.<br>\n\n<div>gone</div>", "One wrapped line, and another."),
        ("- one\n- two\n  - three", "one\n\ntwo\n\nthree"),
        ("1. mix\n2. bake", "1. mix\n\n2. bake"),
        ("| a | b |\n|---|---|\n| 1 | |", "a, b\n\n1"),
        ("Before.\n\n```python\nx = 1\n```\n\n---\n\nAfter.", "Before.\n\nAfter."),
        ("> A quotation,\n> in two lines.", "A quotation, in two lines."),
        ("~~Old~~ R&amp;D", "Old R&D"),
        ("2 * 3 * 4 = 24, snake_case_name", "2 * 3 * 4 = 24, snake_case_name"),
        ("[SPEAKER0]: Hello.\n[SPEAKER1] (yes) [laugh] **No.**", "[SPEAKER0]: Hello. [SPEAKER1] (yes) [laugh] No."),
    ],
)
def test_markdown(text, expected):
    pytest.importorskip("markdown_it")
    assert strip_markup(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Great 🎉!", "Great!"),
        ("🎉 Great", "Great"),
        ("Great.\n🎉 Yes", "Great.\nYes"),
        ("one 👍🏽 two", "one two"),
        ("one👍two", "one two"),
        ("a 👩\u200d👩\u200d👧 family", "a family"),
        ("from 🇩🇪🇫🇷 to 🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f", "from to"),
        ("I ❤️ it", "I it"),
        ("press 1️⃣", "press 1"),
        ("© 2024, ™, 5 ≥ 3, ½, 日本", "© 2024, ™, 5 ≥ 3, ½, 日本"),
    ],
)
def test_emoji(text, expected):
    assert strip_emoji(text) == expected


def test_many_emoji_take_linear_time():
    assert strip_emoji("👩\u200d" * 100_000 + "a") == "\u200da"
    assert strip_emoji(" " * 100_000) == " " * 100_000


def test_without_the_parser_the_error_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "markdown_it", None)
    with pytest.raises(ParameterError, match=r"strip_markup must be left out .*; pip install markdown-it-py reads"):
        strip_markup("text")
