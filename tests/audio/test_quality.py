"""Advice on recordings: synthetic speech needs none, and each flaw gets its own."""

import re

import numpy as np
import pytest

from higgs_native.audio.quality import advise, check_recording, measure
from higgs_native.pipeline import HiggsAudio


RATE = 24000
WORDS = "These are about as many words as one says in six seconds of speech, at a usual pace."


def syllables(seconds: float, rate: int = RATE) -> np.ndarray:
    """Four vowels per second, each with rise and decay, at the level of speech."""
    time = np.arange(round(seconds * rate)) / rate
    voice = sum(np.sin(2 * np.pi * 130 * k * time + k * k) / k for k in range(1, 8))
    return (0.2 * voice * np.sin(np.pi * 4 * time) ** 2).astype(np.float32)


def silence(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * RATE), dtype=np.float32)


def noise(samples: int, level: float) -> np.ndarray:
    """White noise; its level is in dB of full scale."""
    return 10 ** (level / 20) * np.random.default_rng(0).standard_normal(samples).astype(np.float32)


def in_a_room(samples: np.ndarray) -> np.ndarray:
    return samples + noise(len(samples), -60)


SPEECH = in_a_room(syllables(6))


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 24000, 44100, 48000])
def test_good_speech_needs_no_advice(rate):
    speech = syllables(6, rate)
    assert check_recording(speech, rate, WORDS) == []
    assert check_recording(speech + noise(len(speech), -50), rate, WORDS) == []
    assert check_recording(speech + np.float32(0.05), rate, WORDS) == []  # a constant offset is inaudible


@pytest.mark.parametrize("scene", ["heart", "fenrir", "emma", "puck"])
def test_the_embedded_voice_needs_no_advice(scene):
    text = "The sun rises in the east and sets in the west. We are glad that you are here today. Good morning to you."
    speech = HiggsAudio.from_pretrained().speak(text, scene=f"SPEAKER0: {scene}", seed=1)
    assert check_recording(speech.audio, speech.sampling_rate, text) == []


def clipped(samples: np.ndarray) -> np.ndarray:
    return (2 * samples).clip(-0.3, 0.3)


@pytest.mark.parametrize(
    ("samples", "advice"),
    [
        (in_a_room(syllables(2)), "it is short, with 2.00 s of speech; expected at least 3 s"),
        (in_a_room(syllables(31)), "it is long, with 31 s; up to 30 s are enough"),
        (clipped(SPEECH), r"it is clipped, in [\d.]+% of its samples; record it at a lower level"),
        (clipped(4 * SPEECH) / 2, r"it is clipped, .*"),  # attenuated after it was clipped
        (SPEECH + noise(len(SPEECH), -30), r"it is noisy: speech is 1\d dB above the background; expected .* 20 dB"),
        (SPEECH / 50, r"it is soft, at -\d\d dB of full scale; expected at least -35 dB"),
        (in_a_room(np.append(silence(1.5), syllables(5))), "it begins with 1.5 s of silence; cut it off"),
        (in_a_room(np.append(syllables(5), silence(2))), "it ends with 2.0 s of silence; cut it off"),
        (
            in_a_room(np.concatenate([syllables(3), silence(2.5), syllables(3)])),
            r"it has a pause of 2\.[56] s; expected at most 2 s",
        ),
        # Each pause is short enough.
        (
            in_a_room(np.concatenate([syllables(0.75), silence(1.1)] * 5 + [syllables(0.75)])),
            r"5\d% of it are silent; expected at most 50%",
        ),
        # Digital silence around the speech does not hide the noise.
        (
            np.concatenate([silence(0.9), SPEECH + noise(len(SPEECH), -30), silence(0.9)]),
            "it is noisy: .*",
        ),
    ],
)
def test_each_flaw_gets_its_advice(samples, advice):
    seconds = len(samples) / RATE
    (actual,) = check_recording(samples, RATE, "word " * round(3 * seconds))
    assert re.fullmatch(advice, actual)


@pytest.mark.parametrize("samples", [silence(5), np.full(RATE, 0.5, dtype=np.float32), noise(5 * RATE, -80)])
def test_inaudible_recordings(samples):
    assert check_recording(samples, RATE, WORDS) == ["nothing is heard in it"]


def test_a_recording_that_is_learned_may_be_short_and_without_words():
    quality = measure(in_a_room(syllables(2)) / 50, RATE)
    (advice,) = advise(quality, None, is_reference=False)
    assert advice.startswith("it is soft")
    assert len(advise(quality, None)) == 3


def test_a_steady_sound_is_noise():
    for sound in (noise(5 * RATE, -20), np.sin(np.arange(5 * RATE) / 20).astype(np.float32)):
        assert any("noisy" in line for line in check_recording(sound, RATE, WORDS))


def test_words_must_fit_the_speech():
    assert check_recording(SPEECH, RATE) == ["its words are not given; with them a clone is closer"]
    assert check_recording(SPEECH, RATE, "Hi.") == ["its words are too few for 6.0 s of speech"]
    assert check_recording(SPEECH, RATE, WORDS * 4) == ["its words are too many for 6.0 s of speech"]
    # Silence at the ends counts as no speech.
    padded = in_a_room(np.concatenate([silence(0.9), syllables(6), silence(0.9)]))
    assert check_recording(padded, RATE, "a" * 22) == ["its words are too few for 6.0 s of speech"]


@pytest.mark.parametrize(
    "words",
    [
        "今天天气很好，我们一起去公园散步，好不好？晚上再回来吃饭。",
        "こんにちは、きょうはいいてんきですね。いっしょにさんぽしませんか。",
        "안녕하세요, 오늘은 날씨가 정말 좋네요. 같이 산책할까요?",
        "Die Sonne geht im Osten auf, und im Westen geht sie unter.",
        "12 345 678 90",
    ],
)
def test_words_in_other_scripts_count_by_their_duration(words):
    assert check_recording(SPEECH, RATE, words) == []


def test_sound_effects_do_not_count_as_words():
    assert check_recording(SPEECH, RATE, "[laugh] <SE>[Laughter]</SE> Hello.") == [
        "its words are too few for 6.0 s of speech"
    ]


def test_several_flaws_at_once():
    advice = check_recording(np.append(SPEECH[: 2 * RATE] / 50, silence(1.1)), RATE)
    beginnings = ["it is short", "it is soft", "it ends with", "its words are not given"]
    assert len(advice) == len(beginnings)
    assert all(line.startswith(beginning) for line, beginning in zip(advice, beginnings, strict=True))


@pytest.mark.parametrize("samples", [1, 100, 479, 480, 481])
def test_few_samples(samples):
    advice = check_recording(np.linspace(-0.5, 0.5, samples, dtype=np.float32), RATE, WORDS)
    assert advice[0] == (
        "nothing is heard in it" if samples == 1 else "it is short, with 0.02 s of speech; expected at least 3 s"
    )
