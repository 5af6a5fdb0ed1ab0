"""Playing audio on this machine: by sounddevice if it is installed, else by a program of the system."""

import shutil
import subprocess
import sys

import numpy as np

from higgs_native.audio.files.libsndfile import memory_file
from higgs_native.audio.files.writing import encode_audio
from higgs_native.errors import AudioError, one_line


PLAYERS = {
    "pw-play": ["pw-play"],
    "paplay": ["paplay"],
    "aplay": ["aplay", "-q"],
    "afplay": ["afplay"],
    "play": ["play", "-q"],
    "ffplay": ["ffplay", "-nodisp", "-autoexit", "-loglevel", "error"],
}
"""Commands that play a file, the preferred one first."""


def play(samples: np.ndarray, sampling_rate: int) -> None:
    """Play audio, and return at its end.

    Args:
        samples: [samples], float32, full scale at 1.
        sampling_rate: in Hz.

    Raises:
        AudioError: there is no player, or it fails, for example because the machine has no sound.
    """
    try:
        import sounddevice
    except (ImportError, OSError):  # OSError: the library PortAudio is missing
        _play_by_program(samples, sampling_rate)
        return
    try:
        sounddevice.play(samples, sampling_rate, blocking=True)
    except sounddevice.PortAudioError as error:
        raise AudioError(f"the audio can't be played by sounddevice: {error}") from None


def _play_by_program(samples: np.ndarray, sampling_rate: int) -> None:
    command = next((command for name, command in PLAYERS.items() if shutil.which(name)), None)
    if command is None or sys.platform == "win32":  # where a program gets no descriptors
        raise AudioError(
            f"playback needs sounddevice (pip install sounddevice) or one of the programs {', '.join(PLAYERS)}, "
            "and none is installed"
        )
    with memory_file(encode_audio(samples, sampling_rate)) as descriptor:
        path = f"/dev/fd/{descriptor}"
        process = subprocess.run(
            [*command, path], stdin=subprocess.DEVNULL, capture_output=True, pass_fds=(descriptor,), check=False
        )
    if process.returncode:
        reason = one_line(process.stderr.decode(errors="replace").strip()) or f"it ended with {process.returncode}"
        raise AudioError(f"the audio can't be played by {command[0]}: {reason}")
