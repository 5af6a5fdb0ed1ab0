"""Subtitles: times of words, cues of sentences, and files."""

import itertools
import time

import numpy as np
import pytest

from higgs_native.errors import ParameterError
from higgs_native.subtitles import Cue, check_subtitles_path, chunk_cues, phrase_cues, word_cues, write_subtitles


RATE = 24000


def speech_of(*parts: float) -> np.ndarray:
    """Sound of so many seconds; a pause where the number is negative."""
    noise = np.random.default_rng(0).standard_normal(RATE).astype(np.float32) * 0.1
    return np.concatenate([np.resize(noise, round(seconds * RATE)) if seconds > 0 else np.zeros(round(-seconds * RATE))
                           for seconds in parts])  # fmt: skip


def begins(text: str, samples: np.ndarray) -> list[float]:
    return [cue.start for cue in word_cues(text, samples, RATE)]


def test_without_pauses_times_are_those_of_letters():
    assert begins("aa bbbb cc", speech_of(0.8)) == pytest.approx([0, 0.2, 0.6], abs=0.02)


def test_a_pause_lies_at_punctuation():
    """The letters alone would put it after the second word."""
    assert begins("aaaa, bbbb cccc dddd", speech_of(0.55, -0.3, 1.05)) == pytest.approx([0, 0.85, 1.2, 1.55], abs=0.02)
    assert begins("aaaa bbbb, cccc dddd", speech_of(0.55, -0.3, 1.05)) == pytest.approx(
        [0, 0.275, 0.85, 1.375], abs=0.02
    )


def test_a_gap_within_a_word_is_no_boundary():
    assert begins("aaaaaaaaaa bb", speech_of(0.5, -0.1, 0.5, 0.2)) == pytest.approx([0, 1.08], abs=0.05)


def test_silence_at_the_ends_is_no_word():
    cues = word_cues("aa bb", speech_of(-0.5, 0.4, -0.5), RATE, start=10)
    assert [cue.start for cue in cues] == pytest.approx([10.5, 10.7], abs=0.02)
    assert cues[-1].end == pytest.approx(10.9, abs=0.02)


@pytest.mark.parametrize("samples", [np.zeros(RATE), np.zeros(0), np.zeros(5), speech_of(*[0.1, -0.1] * 40)])
@pytest.mark.parametrize("text", ["a", "a b c d", "...", "一二三 四"])
def test_any_speech_has_times_in_order(text, samples):
    cues = word_cues(text, samples, RATE)
    assert [cue.text for cue in cues] == text.split()
    moments = [moment for cue in cues for moment in (cue.start, cue.end)]
    assert moments == sorted(moments)
    assert 0 <= moments[0] <= moments[-1] <= len(samples) / RATE + 1e-9


def test_two_minutes_take_seconds():
    generator = np.random.default_rng(0)
    parts = [float(value) for _ in range(240) for value in (generator.uniform(0.1, 0.5), -0.12)]
    began = time.process_time()
    cues = word_cues("word " * 300, speech_of(*parts), RATE)
    assert len(cues) == 300
    assert time.process_time() - began < 30


def test_cues_are_sentences_of_two_lines():
    text = "It is cold. " + "word " * 30 + "end! Yes"
    words = [Cue(index, index + 1, word) for index, word in enumerate(text.split())]
    cues = phrase_cues(words)
    assert " ".join(cue.text for cue in cues) == text
    assert cues[0] == Cue(0, 3, "It is cold.")
    assert cues[-1].text == "Yes"
    assert all(len(cue.text) <= 84 for cue in cues)
    assert all(before.end == after.start for before, after in itertools.pairwise(cues))


def test_the_ends_of_a_chunk_are_exact():
    cues = chunk_cues("[SPEAKER0] One two. Three.", speech_of(-0.05, 0.9, -0.05), RATE, 7.25)
    assert [cue.text for cue in cues] == ["One two.", "Three."]
    assert (cues[0].start, cues[-1].end) == (7.25, 8.25)
    assert chunk_cues("", speech_of(1), RATE, 0) == []


def test_files(tmp_path):
    cues = [Cue(0, 1.2345, "A < B & C"), Cue(3661.5, 3662, "Done.")]
    write_subtitles(tmp_path / "a.srt", cues)
    assert (tmp_path / "a.srt").read_text() == (
        "1\n00:00:00,000 --> 00:00:01,234\nA < B & C\n\n2\n01:01:01,500 --> 01:01:02,000\nDone.\n"
    )
    write_subtitles(tmp_path / "a.vtt", cues, speed=2)
    assert (tmp_path / "a.vtt").read_text() == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:00.617\nA &lt; B &amp; C\n\n00:30:30.750 --> 00:30:31.000\nDone.\n"
    )


def test_wrong_files(tmp_path):
    with pytest.raises(ParameterError, match=r"subtitles must end in \.srt, \.vtt, got .*a\.txt"):
        check_subtitles_path(tmp_path / "a.txt")
    with pytest.raises(ParameterError, match="can't be written"):
        check_subtitles_path(tmp_path / "none" / "a.srt")
