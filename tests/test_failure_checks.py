import numpy as np
import pytest
import torch

from higgs_native.failure_checks import detect_failures, frame_levels, is_repeating, longest_silence, max_seconds
from higgs_native.pipeline import HiggsAudio
from higgs_native.speech import Speech


RATE = 24000
TEXT = "It is a good day for a long walk in the mountains, and nobody is tired."  # about 4.5 seconds


def speech_of(seconds, audio=None, codes=None, finish_reason="stop"):
    """Noise with random codes, in which no check finds a failure."""
    generator = np.random.default_rng(0)
    frames = round(25 * seconds)
    if audio is None:
        audio = generator.normal(0, 0.1, 960 * frames).astype(np.float32)
    if codes is None:
        codes = torch.randint(0, 1024, (8, frames), generator=torch.Generator().manual_seed(0))
    return Speech(audio, RATE, codes, "", finish_reason, {})


def failures_of(speech, text):
    return list(detect_failures(text, frame_levels(speech.audio, 960), speech.codes, 25, speech.finish_reason))


def silent(speech, begin, end):
    speech.audio[round(begin * RATE) : round(end * RATE)] *= 1e-3
    return speech


def test_good_speech():
    for seconds in (2.5, 4.5, 9):
        assert failures_of(speech_of(seconds), TEXT) == []
    assert failures_of(speech_of(0.3), "Yes.") == []
    assert failures_of(speech_of(2.0), "Yes.") == []


def test_embedded_voice_is_good():
    engine = HiggsAudio.from_pretrained()
    for seed in range(4):
        text = "The sun rises in the east, and the water is cold and clear."
        speech = engine.speak(text, seed=seed)
        assert failures_of(speech, text) == []
        assert speech.failures == ()


def test_no_end():
    assert failures_of(speech_of(4.5, finish_reason="length"), TEXT) == ["no end"]
    assert failures_of(speech_of(max_seconds(TEXT) + 0.1), TEXT) == ["no end"]
    assert 12 < max_seconds(TEXT) < 15


def test_too_short():
    assert failures_of(speech_of(1.2), TEXT) == ["too short"]
    nothing = speech_of(0)
    assert failures_of(nothing, TEXT) == ["too short"]
    assert failures_of(nothing, "A") == ["too short"]


@pytest.mark.parametrize(("begin", "end"), [(0, 2.5), (1, 3.5), (2, 4.6), (0, 4.6)])
def test_silence_anywhere(begin, end):
    assert failures_of(silent(speech_of(4.5), begin, end), TEXT) == ["silence"]


def silence_of(audio):
    """In seconds."""
    return longest_silence(frame_levels(audio, 960)) / 25


def test_pauses_are_no_silence():
    speech = silent(silent(speech_of(6), 0, 1.4), 2, 3.9)
    assert 1.85 < silence_of(speech.audio) < 1.95
    assert failures_of(speech, TEXT) == []


def test_longest_silence():
    assert silence_of(np.zeros(RATE, dtype=np.float32)) == 1
    assert silence_of(np.zeros(0, dtype=np.float32)) == 0
    # Quiet noise without speech is silence, quiet noise below quiet speech is not.
    noise = np.random.default_rng(0).normal(0, 1, RATE).astype(np.float32)
    assert silence_of(noise * 5e-4) == 1
    assert silence_of(noise * 5e-3) == 0
    assert silence_of(np.concatenate([noise, noise * 5e-3])) == 1


def looping(period, frames=150, begin=25, broken=0.0):
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(0, 1024, (8, frames), generator=generator)
    loop = torch.randint(0, 1024, (8, period), generator=generator)
    repeated = loop.repeat(1, frames // period + 1)[:, : frames - begin]
    keep = torch.rand(frames - begin, generator=generator) >= broken
    codes[:, begin:] = torch.where(keep, repeated, codes[:, begin:])
    return codes


@pytest.mark.parametrize("period", [1, 2, 7, 25, 49])
def test_repetition(period):
    assert is_repeating(looping(period))
    assert is_repeating(looping(period, broken=0.05))
    assert failures_of(speech_of(6, codes=looping(period)), TEXT) == ["repetition"]


def test_codes_that_do_not_repeat():
    assert not is_repeating(looping(1, frames=60))  # 1.4 seconds
    assert not is_repeating(looping(60))
    assert not is_repeating(looping(10, broken=0.5))
    assert not is_repeating(torch.zeros(8, 50, dtype=torch.int64))
    assert not is_repeating(torch.zeros(8, 0, dtype=torch.int64))


def test_punctuation_and_emoji_may_take_no_time():
    """As in a table of contents or a row of emoji."""
    for text in (
        "Chapter one ......................................... 2",
        "Hello \N{GRINNING FACE}" + "\N{GRINNING FACE}" * 40,
    ):
        assert failures_of(speech_of(1.5), text) == []
        assert failures_of(speech_of(0.1), text) == ["too short"]


def test_speaker_tags_take_no_time():
    tags, words = "[SPEAKER0] Yes. [SPEAKER1] No.", "SPEAKER0 Yes. SPEAKER1 No."
    assert failures_of(speech_of(5), tags) == ["no end"]
    assert failures_of(speech_of(5), words) == []
    assert failures_of(speech_of(0.6), tags) == []
    assert failures_of(speech_of(0.6), words) == ["too short"]
