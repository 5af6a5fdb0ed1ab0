"""Audio is played by what the machine has."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from higgs_native.audio.files.playback import PLAYERS, play
from higgs_native.errors import AudioError


RATE = 24000
SAMPLES = (0.5 * np.sin(np.arange(2400) / 10)).astype(np.float32)


class PortAudioError(Exception):
    pass


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Makes programs the only ones on the path; sounddevice is missing."""
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def make(name: str, script: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)

    return make


def test_sounddevice_comes_first(monkeypatch):
    played = []
    device = SimpleNamespace(
        play=lambda *arguments, **options: played.append((*arguments, options)), PortAudioError=PortAudioError
    )
    monkeypatch.setitem(sys.modules, "sounddevice", device)
    play(SAMPLES, RATE)
    ((samples, rate, options),) = played
    assert samples is SAMPLES
    assert (rate, options) == (RATE, {"blocking": True})


def test_an_error_of_sounddevice_is_told(monkeypatch):
    def fail(*arguments, **options):
        raise PortAudioError("Error querying device -1")

    monkeypatch.setitem(sys.modules, "sounddevice", SimpleNamespace(play=fail, PortAudioError=PortAudioError))
    with pytest.raises(AudioError, match="the audio can't be played by sounddevice: Error querying device -1"):
        play(SAMPLES, RATE)


@pytest.mark.parametrize("name", PLAYERS)
def test_a_program_gets_the_audio_as_a_file(name, programs, tmp_path):
    programs(name, f'for last; do :; done; /bin/cat "$last" > {tmp_path}/played.wav; echo "$@" > {tmp_path}/arguments')
    play(SAMPLES, RATE)
    read, rate = soundfile.read(tmp_path / "played.wav", dtype="float32")
    assert rate == RATE
    np.testing.assert_allclose(read, SAMPLES, atol=2**-15)
    assert (tmp_path / "arguments").read_text().split()[:-1] == PLAYERS[name][1:]


def test_a_program_that_fails_is_told(programs):
    programs("aplay", "echo 'no soundcards found...' >&2; exit 1")
    with pytest.raises(AudioError, match=r"the audio can't be played by aplay: no soundcards found\.\.\."):
        play(SAMPLES, RATE)
    programs("aplay", "exit 3")
    with pytest.raises(AudioError, match="the audio can't be played by aplay: it ended with 3"):
        play(SAMPLES, RATE)


def test_without_a_player_the_error_names_them(programs):
    with pytest.raises(AudioError, match=r"playback needs sounddevice \(pip .*\) or one of .* aplay, "):
        play(SAMPLES, RATE)
