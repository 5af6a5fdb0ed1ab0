"""Pauses and changes of the speed cut a text."""

import sys

import pytest

from higgs_native.errors import ParameterError, PromptError
from higgs_native.manuscript.preparation import prepare_text
from higgs_native.manuscript.timing import (
    Passage,
    pause_seconds,
    pause_tag,
    speed_tag,
    split_passages,
    tagged_speed,
    without_timing,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" Hello, there. ", [(" Hello, there. ", 0)]),
        ("Hello [pause:1s] there.", [("Hello", 0), ("there.", 1)]),
        ("[Pause: 250 ms]Hello", [("Hello", 0.25)]),
        ("Hello [pause] there. [PAUSE][pause:1s] You.", [("Hello", 0), ("there.", 0.7), ("You.", 1.7)]),
        ("a [pause:1s] ... [pause:1.5s] b [pause:2s]", [("a", 0), ("b", 2.5)]),
        (
            "[SPEAKER0] a [pause:1s] b [SPEAKER1] c [pause:2s] d [pause:3s] [SPEAKER0] e",
            [("[SPEAKER0] a", 0), ("[SPEAKER0] b [SPEAKER1] c", 1), ("[SPEAKER1] d", 2), ("[SPEAKER0] e", 3)],
        ),
    ],
)
def test_passages(text, expected):
    passages = split_passages(text)
    assert [Passage(passage.text.strip(), passage.pause) for passage in passages] == [
        Passage(part.strip(), pause) for part, pause in expected
    ]


@pytest.mark.parametrize("tag", ["[pause:]", "[pause:1]", "[pause:-1s]", "[pause:s]", "[pause:1e3s]", "[pause 1s]"])
def test_wrong_pauses(tag):
    with pytest.raises(PromptError, match=r"a pause must be written as \[pause\], \[pause:1s\] or \[pause:250ms\]"):
        split_passages(f"a {tag} b")


def test_a_pause_has_an_end():
    assert pause_seconds("[pause:60s]") == 60
    with pytest.raises(PromptError, match="a pause must be at most 60 s, got"):
        pause_seconds("[pause:60001ms]")


@pytest.mark.parametrize("seconds", [0, 0.25, 1, 10, 59.999])
def test_a_tag_is_read_as_it_is_written(seconds):
    assert pause_seconds(pause_tag(seconds)) == seconds


def test_pauses_alone_say_nothing():
    with pytest.raises(PromptError, match="text must hold something to say"):
        split_passages("[pause:1s] [SPEAKER0] ...")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[speed:1.5] Hello, there.", [("Hello, there.", 0, 1.5)]),
        ("a [speed:2] b [speed] c", [("a", 0, 1), ("b", 0, 2), ("c", 0, 1)]),
        ("a [Speed: 0.25] b [SPEED:1]c", [("a", 0, 1), ("b", 0, 0.25), ("c", 0, 1)]),
        ("a [pause:1s] [speed:4] [pause:1s] b [pause:3s] c", [("a", 0, 1), ("b", 2, 4), ("c", 3, 4)]),
        ("a [speed:2] ... [speed:3] b [speed:4]", [("a", 0, 1), ("b", 0, 3)]),
        ("[SPEAKER1] a [speed:2] b", [("[SPEAKER1] a", 0, 1), ("[SPEAKER1] b", 0, 2)]),
        # The speed that is in effect anyway cuts nothing.
        ("a [speed] b [speed:2] c [speed:2.0] d", [("a   b", 0, 1), ("c   d", 0, 2)]),
    ],
)
def test_speeds(text, expected):
    assert [(passage.text.strip(), passage.pause, passage.speed) for passage in split_passages(text)] == expected


@pytest.mark.parametrize(
    "tag", ["[speed:]", "[speed:fast]", "[speed:-1]", "[speed:1e0]", "[speed 2]", "[speed:2x]", "[speed limit]"]
)
def test_wrong_speeds(tag):
    with pytest.raises(PromptError) as error:
        split_passages(f"a {tag} b")
    assert str(error.value) == f"a speed must be written as [speed:1.2] or [speed], got {tag!r}"


def test_errors_of_speeds_are_short():
    for tag in ("[speed" + " very" * 1000 + "]", "[speed:\n\x1b[31m]".replace("[31", "31")):
        with pytest.raises(PromptError, match="a speed must be written as") as error:
            split_passages(f"a {tag} b")
        assert len(str(error.value)) < 200
        assert str(error.value).isprintable()


def test_other_words_in_brackets_are_text():
    for words in ("[speedy]", "[speed b", "speed:2", "<|prosody:speed_slow|>", "[high speed]", "[[speed]]"):
        assert split_passages(f"a {words} c") == [Passage(f"a {words} c", 0.0)]


@pytest.mark.parametrize("speed", ["0.249999", "0", "4.000001", "999999"])
def test_a_speed_is_within_its_range(speed):
    assert (tagged_speed("[speed:0.25]"), tagged_speed("[speed:4]")) == (0.25, 4)
    with pytest.raises(PromptError, match=rf"a speed must be between 0.25 and 4, got '\[speed:{speed}\]'"):
        split_passages(f"a [speed:{speed}] b")


def test_speeds_need_pyav(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    assert len(split_passages("a [speed:1] b")) == 1
    with pytest.raises(ParameterError, match=r"speed must be 1 without PyAV, got 1\.5; pip install av changes speeds"):
        split_passages("a [speed:1.5] b")


@pytest.mark.parametrize("speed", [0.25, 0.707107, 1, 1.5, 4])
def test_a_tag_of_a_speed_is_read_as_it_is_written(speed):
    assert tagged_speed(speed_tag(speed)) == speed


def test_a_text_without_pauses_and_speeds():
    assert without_timing("a[pause:1s]b[Speed:9]c[speed] d") == "a b c  d"


def test_preparation_keeps_speeds():
    assert prepare_text("2 [speed:1.5]  3", normalize=True, lexicon={"speed": "x"}) == "two [speed:1.5]  three"
    pytest.importorskip("markdown_it")
    assert prepare_text("**a** [speed:1.5](b) c", strip_markup=True) == "a [speed:1.5](b) c"
