"""Speech by eSpeak NG, in the four voices that the embedded voice learns.

Each voice speaks at a constant pitch that is a multiple of the frame rate: a frame of 40 ms holds whole periods, so a
decoder that never learns the phase of the voice can still join frames smoothly.
"""

import ctypes
import ctypes.util
import functools
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soxr


SAMPLING_RATE = 24000
HOP_LENGTH = 960
LEAD, TAIL = 960, 1920
"""Samples of silence before the first sound and after the last one."""

_WORDS_A_MINUTE = 165
_SILENCE = 0.004
"""Of full scale: what is quieter at the ends is cut off."""
_LEVEL = 0.08
"""Root mean square of full scale that each voice is brought to, over many sentences."""
# eSpeak NG speaks 9 Hz below the pitch that a voice file names, where base and range are the same.
_PITCH_OFFSET = 9
_DATA_FOLDERS = (
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/share",
    "/usr/local/share",
)
_INITIALIZE_SYNCHRONOUS, _RATE, _UTF8 = 2, 1, 1


@dataclass(frozen=True)
class EspeakVoice:
    """A voice.

    Attributes:
        profile: what it is called in a scene.
        language: the accent, as eSpeak NG names it.
        pitch: in Hz.
        formants: frequency, height and width of each formant, in percent (and an offset in Hz) of the accent's own.
        extra: further lines of the voice file.
        gain: brings it to the common level.
    """

    profile: str
    language: str
    pitch: int
    formants: tuple[str, ...] = ()
    extra: str = ""
    gain: float = 1.0


VOICES = (
    EspeakVoice(
        "feminine",
        "en-us",
        200,
        (
            "105 80 150",
            "120 75 150 -50",
            "135 70 150 -250",
            "125 80 150",
            "125 80 150",
            "125 80 150",
            "120 70 150",
            "110 70 150",
            "110 70 150",
        ),
        "gender female\nstressAmp 18 18 20 20 20 20 20 20\nbreath 0 2 4 4 4 4 4 4",
        gain=0.75,
    ),
    EspeakVoice("masculine", "en-us", 100, extra="gender male", gain=0.87),
    EspeakVoice("scottish", "en-gb-scotland", 75, ("92 100 100",) * 9, "gender male", gain=0.82),
    EspeakVoice("child", "en-gb-x-rp", 250, ("125 90 120",) * 9, "gender female", gain=0.58),
)
"""The first one is the default voice."""


@functools.lru_cache(maxsize=1)
def _library() -> tuple[ctypes.CDLL, list[np.ndarray], int, tempfile.TemporaryDirectory]:
    """eSpeak NG with our voices added to a copy of its data, the chunks that it fills, and its sampling rate in Hz."""
    name = ctypes.util.find_library("espeak-ng")
    data = next(
        (Path(folder, "espeak-ng-data") for folder in _DATA_FOLDERS if Path(folder, "espeak-ng-data").is_dir()), None
    )
    if name is None or data is None:
        raise RuntimeError("eSpeak NG is not installed; on Debian: apt install espeak-ng")
    folder = tempfile.TemporaryDirectory()
    copy = Path(folder.name, "espeak-ng-data")
    shutil.copytree(data, copy, ignore=lambda _, names: [n for n in names if n.endswith("_dict") and n != "en_dict"])
    for voice in VOICES:
        pitch = voice.pitch + _PITCH_OFFSET
        lines = ["language variant", f"name {voice.profile}", f"pitch {pitch} {pitch}", "flutter 0", "roughness 0"]
        lines += [f"formant {number} {formant}" for number, formant in enumerate(voice.formants)]
        (copy / "voices" / "!v" / voice.profile).write_text("\n".join([*lines, voice.extra, ""]))
    library = ctypes.CDLL(name)
    rate = library.espeak_Initialize(_INITIALIZE_SYNCHRONOUS, 0, folder.name.encode(), 0)
    if rate <= 0:
        raise RuntimeError(f"eSpeak NG did not start: code {rate}")
    chunks: list[np.ndarray] = []

    def collect(samples: "ctypes._Pointer", count: int, _: int) -> int:
        if samples and count > 0:
            chunks.append(np.ctypeslib.as_array(samples, shape=(count,)).copy())
        return 0

    signature = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
    library.callback = signature(collect)  # kept from the garbage collector
    library.espeak_SetSynthCallback(library.callback)
    return library, chunks, rate, folder


def render(text: str, voice: EspeakVoice) -> np.ndarray:
    """Speak `text`.

    Returns:
        [samples], float32, 24 kHz: whole frames of 960 samples, the first sound after one silent frame.

    Raises:
        RuntimeError: eSpeak NG is missing, or it said nothing.
    """
    library, chunks, rate, _ = _library()
    if library.espeak_SetVoiceByName(f"{voice.language}+{voice.profile}".encode()):
        raise RuntimeError(f"eSpeak NG has no voice {voice.language}")
    library.espeak_SetParameter(_RATE, _WORDS_A_MINUTE, 0)
    chunks.clear()
    data = text.encode()
    library.espeak_Synth(data, len(data) + 1, 0, 1, 0, _UTF8, None, None)
    audio = np.concatenate(chunks or [np.zeros(1, np.int16)]).astype(np.float32) / 32768
    audio = soxr.resample(audio, rate, SAMPLING_RATE, quality="MQ") * voice.gain
    loud = np.flatnonzero(np.abs(audio) > _SILENCE)
    if not len(loud):
        raise RuntimeError(f"eSpeak NG said nothing for {text!r}")
    audio = np.concatenate([np.zeros(LEAD, np.float32), audio[loud[0] : loud[-1] + 1], np.zeros(TAIL, np.float32)])
    return np.pad(audio, (0, -len(audio) % HOP_LENGTH)).clip(-1, 1).astype(np.float32)
