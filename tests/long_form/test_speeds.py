"""Long texts whose parts have different speeds: `[speed:1.2]`."""

import json

import numpy as np
import pytest
import torch

from higgs_native.audio.samples import pcm_samples
from higgs_native.audio.silence import SilenceTrimmer
from higgs_native.audio.tempo import steady_at_speed
from higgs_native.errors import ParameterError
from higgs_native.long_form.long_speech import LongSpeech
from higgs_native.long_form.settings import Pauses
from tests.long_form.conftest import RATE


TEXT = "The sun rises in the east. [speed:1.25] The water is cold and clear. [speed:0.8] Nobody is tired."
NORMAL = TEXT.replace("[speed:1.25] ", "").replace("[speed:0.8] ", "")
SPEEDS = (1, 1.25, 0.8)


@pytest.fixture(scope="module")
def normal(engine):
    return list(LongSpeech(engine, NORMAL, seed=1))


@pytest.fixture(scope="module")
def spoken(engine, tmp_path_factory):
    """An uninterrupted run: its folder and its chunks."""
    folder = tmp_path_factory.mktemp("speeds") / "parts"
    return folder, list(LongSpeech(engine, TEXT, folder, seed=1))


def test_each_chunk_has_the_speed_of_its_text(spoken, normal):
    _, chunks = spoken
    for chunk, other, speed in zip(chunks, normal, SPEEDS, strict=True):
        assert (chunk.text.speed, chunk.text.text) == (speed, other.text.text)
        assert torch.equal(chunk.codes, other.codes)
        assert (chunk.attempts, chunk.failures) == (other.attempts, other.failures)
        pause = round(0.25 * RATE) if chunk.index else 0
        assert not chunk.pcm[:pause].any()
        assert (len(chunk.pcm) - pause) * speed == pytest.approx(len(other.pcm) - pause, rel=0.03)
        np.testing.assert_array_equal(chunk.pcm[pause:], steady_at_speed(other.pcm[pause:], RATE, speed))


@pytest.mark.parametrize("parallel", [1, 8])
def test_a_resumed_run_has_the_bytes_of_an_undisturbed_one(engine, spoken, tmp_path, parallel):
    folder, chunks = spoken
    parts = tmp_path / "parts"
    parts.mkdir()
    for name in ("run.json", "00000.json", "00000.wav", "00002.json", "00002.wav"):
        (parts / name).write_bytes((folder / name).read_bytes())
    speech = LongSpeech(engine, TEXT, parts, parallel=parallel)
    assert speech.num_finished == 2
    for chunk, same in zip(speech, chunks, strict=True):
        np.testing.assert_array_equal(chunk.pcm, same.pcm)
        assert torch.equal(chunk.codes, same.codes)


def test_another_speed_speaks_nothing_again(engine, spoken, normal, tmp_path, monkeypatch):
    """The folder holds speech at the model's speed."""
    folder, _ = spoken
    parts = tmp_path / "parts"
    parts.mkdir()
    for file in folder.iterdir():
        (parts / file.name).write_bytes(file.read_bytes())
    record = json.loads((parts / "run.json").read_text())["inputs"]["text"]
    assert record == [
        {"text": text, "tag": "", "boundary": boundary}
        for text, boundary in (
            ("The sun rises in the east.", "paragraph"),
            ("The water is cold and clear.", "sentence"),
            ("Nobody is tired.", "sentence"),
        )
    ]
    monkeypatch.setattr(engine.model.engine, "add", None)
    for text, speeds in ((TEXT.replace("1.25", "2"), (1, 2, 0.8)), (f"[speed:0.5] {NORMAL}", (0.5, 0.5, 0.5))):
        for chunk, other, speed in zip(LongSpeech(engine, text, parts), normal, speeds, strict=True):
            pause = round(0.25 * RATE) if chunk.index else 0
            np.testing.assert_array_equal(chunk.pcm[pause:], steady_at_speed(other.pcm[pause:], RATE, speed))
    with pytest.raises(ParameterError, match="got one that differs in text"):
        LongSpeech(engine, TEXT.replace("cold and", "cold [speed:2] and"), parts)


def test_a_listener_hears_each_speed(engine):
    speech = LongSpeech(engine, TEXT, seed=1, max_retries=0, pauses=Pauses(sentence=0.5))
    stream = speech.stream()
    heard = np.concatenate([chunk.samples for chunk in stream])
    position = 0
    for chunk, speed, (text, begin) in zip(list(speech), SPEEDS, stream.script, strict=True):
        pause = round(0.5 * RATE) if chunk.index else 0
        assert not heard[position : position + pause].any()
        assert (text, begin) == (chunk.text.text, position + pause)
        samples = engine.audio_tokenizer.decode(chunk.codes).numpy()
        samples = pcm_samples(SilenceTrimmer(960, chunk.index > 0, chunk.index < 2).trim(samples))
        expected = steady_at_speed(samples, RATE, speed)
        position = begin + len(expected)
        np.testing.assert_array_equal(pcm_samples(heard[begin:position]), expected)
    assert position == len(heard)


def test_subtitles_are_in_the_chunks_as_they_sound(engine, spoken):
    folder, chunks = spoken
    cues = list(LongSpeech(engine, TEXT, folder).cues())
    ends = np.cumsum([chunk.duration for chunk in chunks])
    assert [cue.text for cue in cues] == [chunk.text.text for chunk in chunks]
    for cue, end, chunk in zip(cues, ends, chunks, strict=True):
        pause = 0.25 if chunk.index else 0
        assert cue.start == pytest.approx(end - chunk.duration + pause)
        assert cue.end == pytest.approx(end)


def test_the_speed_of_a_file_multiplies_those_of_the_text(engine, spoken, tmp_path):
    folder, chunks = spoken
    speech = LongSpeech(engine, TEXT, folder)
    speech.save(tmp_path / "book.wav", speed=2)
    samples = (tmp_path / "book.wav").stat().st_size / 2
    assert samples == pytest.approx(sum(len(chunk.pcm) for chunk in chunks) / 2, rel=0.03)
