"""Pauses cut a text."""

import pytest

from higgs_native.errors import PromptError
from higgs_native.manuscript.pauses import Passage, pause_seconds, pause_tag, split_pauses


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
    passages = split_pauses(text)
    assert [Passage(passage.text.strip(), passage.pause) for passage in passages] == [
        Passage(part.strip(), pause) for part, pause in expected
    ]


@pytest.mark.parametrize("tag", ["[pause:]", "[pause:1]", "[pause:-1s]", "[pause:s]", "[pause:1e3s]", "[pause 1s]"])
def test_wrong_pauses(tag):
    with pytest.raises(PromptError, match=r"a pause must be written as \[pause\], \[pause:1s\] or \[pause:250ms\]"):
        split_pauses(f"a {tag} b")


def test_a_pause_has_an_end():
    assert pause_seconds("[pause:60s]") == 60
    with pytest.raises(PromptError, match="a pause must be at most 60 s, got"):
        pause_seconds("[pause:60001ms]")


@pytest.mark.parametrize("seconds", [0, 0.25, 1, 10, 59.999])
def test_a_tag_is_read_as_it_is_written(seconds):
    assert pause_seconds(pause_tag(seconds)) == seconds


def test_pauses_alone_say_nothing():
    with pytest.raises(PromptError, match="text must hold something to say"):
        split_pauses("[pause:1s] [SPEAKER0] ...")
