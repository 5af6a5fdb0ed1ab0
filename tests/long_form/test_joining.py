import numpy as np
import pytest

from higgs_native.errors import ParameterError
from higgs_native.long_form.joining import EDGE_SECONDS, FADE_SECONDS, trim_silence
from higgs_native.long_form.settings import Pauses


RATE = 24000


def noise(seconds, level=0.3):
    return (level * np.random.default_rng(0).uniform(-1, 1, round(RATE * seconds))).astype(np.float32)


def test_silence_is_cut_to_the_edges():
    speech = noise(1)
    audio = np.concatenate([noise(0.5, 0.001), speech, noise(0.8, 0.001)])
    kept = trim_silence(audio, RATE)
    edge = round(EDGE_SECONDS * RATE)
    assert abs(len(kept) - (len(speech) + 2 * edge)) <= 4
    assert np.abs(np.correlate(kept, speech, "valid")).argmax() == pytest.approx(edge, abs=4)


def test_speech_that_fills_the_audio_is_not_shortened():
    audio = noise(1)
    original = audio.copy()
    kept = trim_silence(audio, RATE)
    assert len(kept) == len(audio)
    np.testing.assert_array_equal(audio, original)
    fade = round(FADE_SECONDS * RATE)
    np.testing.assert_array_equal(kept[fade:-fade], audio[fade:-fade])


def test_joined_pieces_do_not_click():
    # A loud low tone jumps at a cut; after trimming, its ends are as steep as the fade at most.
    tone = (0.8 * np.cos(2 * np.pi * 100 * np.arange(RATE) / RATE)).astype(np.float32)
    steps = np.abs(np.diff(np.concatenate([tone[:5000], np.zeros(2400), tone[7000:12000], tone[100:9000]])))
    assert steps.max() > 0.5
    pieces = [trim_silence(piece, RATE) for piece in (tone[:5000], tone[7000:12000], tone[100:9000])]
    joined = np.concatenate([[0], pieces[0], np.zeros(2400), *pieces[1:], [0]])
    # The fade's steepest step plus the tone's own.
    bound = 0.8 * (np.pi / 2 / (FADE_SECONDS * RATE) + 2 * np.pi * 100 / RATE)
    assert np.abs(np.diff(joined)).max() < bound
    assert all(piece[0] == piece[-1] == 0 for piece in pieces)


def test_silence_gives_no_samples():
    assert len(trim_silence(np.zeros(RATE, dtype=np.float32), RATE)) == 0
    assert len(trim_silence(np.zeros(0, dtype=np.float32), RATE)) == 0
    assert len(trim_silence(np.array([0.5], dtype=np.float32), RATE)) == 1


def test_pauses():
    pauses = Pauses(paragraph=1, turn=0.5, sentence=0)
    assert [pauses.before(boundary) for boundary in ("paragraph", "turn", "sentence", "word")] == [1, 0.5, 0, 0]


@pytest.mark.parametrize("name", ["paragraph", "turn", "sentence"])
@pytest.mark.parametrize("seconds", [-0.1, 61, float("nan")])
def test_pause_out_of_range_is_refused(name, seconds):
    with pytest.raises(ParameterError, match=f"{name}_pause must be between 0 and 60 seconds, got {seconds}"):
        Pauses(**{name: seconds})
    with pytest.raises(ParameterError, match=f"{name}_pause must be a number, got '1'"):
        Pauses(**{name: "1"})
