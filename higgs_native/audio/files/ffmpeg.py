"""Audio formats that libsndfile lacks (m4a, webm, wma, ...): by PyAV if it is installed, else by the program ffmpeg.

Both are told the containers that they may find. Playlists are not among them: these name other files or addresses,
which would be opened.
"""

import math
import os
import shutil
import subprocess
import sys
import time
from types import ModuleType
from typing import BinaryIO

import numpy as np
import soundfile

from higgs_native.audio.files.libsndfile import SequentialReader, memory_file
from higgs_native.audio.samples import MAX_SECONDS, part_seconds
from higgs_native.errors import AudioError


TIMEOUT = 15.0
"""Seconds that decoding may take."""

_CONTAINERS = "aac,ac3,aiff,amr,ape,asf,avi,caf,eac3,flac,flv,matroska,mov,mp3,mpeg,mpegts,ogg,tta,wav,wv"
_PROTOCOLS = "file"
_MAX_OFFSET = 1e6  # seconds, more than a file holds
_MAX_OUTPUT_BYTES = _MAX_ALLOCATION = 1 << 30


def decode_with_ffmpeg(
    descriptor: int, offset: float, duration: float | None, name: str, reason: str
) -> tuple[np.ndarray, int]:
    """Decode a file, or a part of it, and average its channels.

    Args:
        descriptor: of a regular file, or of one in memory.
        offset: begin of the part in seconds, at least 0.
        duration: maximum length of the part in seconds, at least 0; None for the rest.
        name: what errors call the file.
        reason: why libsndfile does not decode it.

    Returns:
        The samples [samples], float32, full scale 1, about a second more than `MAX_SECONDS` if there are more; and the
        sampling rate in Hz.

    Raises:
        AudioError: no decoder is installed, or it finds no audio.
    """
    offset, seconds = part_seconds(offset, duration)
    seconds = min(seconds, MAX_SECONDS + 1)
    path = f"file:/dev/fd/{descriptor}"  # neither a name with a meaning to FFmpeg nor a file that was replaced
    os.lseek(descriptor, 0, os.SEEK_SET)  # the path's position on macOS, too
    av, program = _pyav(), shutil.which("ffmpeg")
    if sys.platform == "win32":  # where descriptors have no paths, and a program gets none
        program = None
    if av is not None and sys.platform == "win32":
        with open(descriptor, "rb", closefd=False) as file:
            decoded = _decode_with_pyav(av, file, offset, seconds)
    elif av is not None:
        decoded = _decode_with_pyav(av, path, offset, seconds)
    elif program is not None:
        decoded = _decode_with_program(program, descriptor, path, offset, seconds)
    else:
        raise AudioError(
            f"{name} can't be read as audio: {reason}; formats other than wav, flac, ogg and mp3 need PyAV "
            "(pip install av) or ffmpeg, and neither is installed"
        )
    if decoded is None:
        raise AudioError(f"{name} can't be read as audio: {reason}; FFmpeg finds no audio in it either")
    if not len(decoded[0]) and offset:
        raise AudioError(f"offset must be less than the length of {name}, got {offset:g} s")
    return decoded


def _pyav() -> ModuleType | None:
    try:
        import av
    except ImportError:
        return None
    return av


def _decode_with_pyav(
    av: ModuleType, file: str | BinaryIO, offset: float, seconds: float
) -> tuple[np.ndarray, int] | None:
    """Return mono samples and their rate; None if there is no audio, or decoding takes too long."""
    deadline = time.monotonic() + TIMEOUT
    blocks, rate, position, end = [], 0, 0, math.inf
    try:
        options = {"protocol_whitelist": _PROTOCOLS, "format_whitelist": _CONTAINERS}
        with av.open(file, options=options) as container:
            resampler = av.AudioResampler(format="flt")  # keeps the rate and the channels
            for frame in container.decode(audio=0):
                for piece in resampler.resample(frame):
                    rate = piece.sample_rate
                    begin = round(min(offset, _MAX_OFFSET) * rate)
                    end = begin + round(seconds * rate)
                    with np.errstate(all="ignore"):  # infinite samples are for the caller to refuse
                        samples = piece.to_ndarray().reshape(piece.samples, -1).mean(axis=1)
                    blocks.append(samples[max(begin - position, 0) : max(end - position, 0)])
                    position += piece.samples
                if position >= end:
                    break
                if time.monotonic() > deadline:
                    return None
    except (av.FFmpegError, IndexError, ValueError):  # IndexError: no audio. ValueError: the rate changes.
        return None
    return (np.concatenate(blocks), rate) if blocks else None


def _decode_with_program(
    program: str, descriptor: int, path: str, offset: float, seconds: float
) -> tuple[np.ndarray, int] | None:
    """As `_decode_with_pyav`, by `ffmpeg`."""
    limits = ["-nostdin", "-threads", "1", "-max_alloc", str(_MAX_ALLOCATION)]
    inputs = ["-protocol_whitelist", _PROTOCOLS, "-format_whitelist", _CONTAINERS, "-i", path]
    part = ["-map", "0:a:0", "-ss", f"{min(offset, _MAX_OFFSET):.6f}", "-t", f"{seconds:.6f}"]
    output = ["-c:a", "pcm_f32le", "-fs", str(_MAX_OUTPUT_BYTES), "-f", "wav", "pipe:1"]
    with memory_file() as target:
        try:
            subprocess.run(
                [program, *limits, *inputs, *part, *output],
                stdin=subprocess.DEVNULL,
                stdout=target,
                stderr=subprocess.DEVNULL,
                pass_fds=(descriptor,),
                timeout=TIMEOUT,
                check=True,
            )
            if os.fstat(target).st_size >= _MAX_OUTPUT_BYTES:  # cut
                return None
            os.lseek(target, 0, os.SEEK_SET)
            with SequentialReader(target, closefd=False) as file:
                return np.concatenate([np.zeros(0, dtype=np.float32), *file.mono_blocks()]), file.samplerate
        except (subprocess.SubprocessError, OSError, soundfile.SoundFileError):
            return None
