"""Audio in any form that people have it in: files, their contents, arrays, and what other libraries pass."""

import base64
import os
import re
from typing import Any

import numpy as np
import torch

from higgs_native.audio.files.decoding import MAX_MEMORY_BYTES, decode_bytes, decode_file
from higgs_native.audio.samples import mono_samples
from higgs_native.errors import AudioError


FORMS = (
    "a file's path, its contents, an open file, a data: URL, base64, (samples, sampling rate) or "
    '{"waveform": samples, "sample_rate": rate}'
)
"""The forms of audio that `read_audio` takes, for messages."""

_MIN_BASE64 = 64  # characters; all recordings are longer
_BASE64_BEGIN = re.compile(rb"[A-Za-z0-9+/\s]{%d}" % _MIN_BASE64)  # no audio file begins like this
_MAX_SHOWN = 500  # characters of a path in a message; a longer text was meant to be a recording
_READ_BYTES = 1 << 20


def read_audio(
    audio: Any,
    sampling_rate: float | None = None,
    offset: float = 0,
    duration: float | None = None,
) -> tuple[np.ndarray, int]:
    """Read audio, or a part of it, and average its channels.

    Args:
        audio: one of

            - an audio file: its path, or opened for reading bytes (read from its beginning, if it can seek);
            - its contents: bytes, or base64 in bytes, in a str or in a `data:` URL;
            - samples as for `mono_samples`, with `sampling_rate`;
            - `(samples, sampling rate)`, in a tuple or a list;
            - `{"waveform": samples, "sample_rate": rate}`, as in ComfyUI;
            - `{"array": samples, "sampling_rate": rate}`, as in the datasets library.
        sampling_rate: of samples without one, in Hz; other audio has its own.
        offset: begin of the part in seconds, at least 0.
        duration: maximum length of the part in seconds, at least 0; None for the rest.

    Returns:
        The samples [samples], float32, full scale 1, and the sampling rate in Hz.

    Raises:
        AudioError: there is no such file, it is no audio, or the part is empty, too short, too long, or not finite.
    """
    match audio:
        case {"waveform": samples, "sample_rate": rate} | {"array": samples, "sampling_rate": rate}:
            return mono_samples(samples, rate, offset, duration)
        case (samples, rate):
            return mono_samples(samples, rate, offset, duration)
        case np.ndarray() | torch.Tensor():
            if sampling_rate is None:
                raise AudioError("audio given as samples needs its sampling_rate, in Hz: (samples, sampling_rate)")
            return mono_samples(audio, sampling_rate, offset, duration)
        case str() | os.PathLike():
            path = os.fsdecode(audio)
            contents = _encoded_contents(path)
            if contents is None:
                return decode_file(path, offset, duration, path)
        case bytes() | bytearray() | memoryview():
            contents = bytes(audio)
            if _BASE64_BEGIN.match(contents):
                contents = decode_base64(contents)
        case _ if hasattr(audio, "read"):
            contents = _read_open_file(audio)
        case _:
            raise AudioError(f"audio must be {FORMS}, got {type(audio).__name__}")
    return decode_bytes(contents, offset, duration, "the audio file")


def decode_base64(encoded: str | bytes, name: str = "audio") -> bytes:
    """Return the bytes that base64 stands for; white space in it is ignored.

    Raises:
        AudioError: it is no base64. The message calls it `name`.
    """
    try:
        encoded = encoded.encode("ascii") if isinstance(encoded, str) else encoded
        return base64.b64decode(b"".join(encoded.split()), validate=True)
    except ValueError:
        raise AudioError(f"{name} must be base64, got other characters or a wrong length") from None


def is_data_url(text: str) -> bool:
    """Whether a text holds its contents, as `data:audio/wav;base64,...`. Such a text is never taken for a path."""
    return text[:5].lower() == "data:"


def _encoded_contents(text: str) -> bytes | None:
    """Return the contents of the audio file that a text encodes; None if the text is a path."""
    if is_data_url(text):
        kind, _, encoded = text.partition(",")
        if not kind.lower().endswith(";base64"):
            raise AudioError("a data: URL must be in base64 (data:audio/wav;base64,...), got another encoding")
        return decode_base64(encoded, "a data: URL")
    if len(text) < _MIN_BASE64 or os.path.exists(text):
        return None
    try:
        return decode_base64(text)
    except AudioError:
        if len(text) <= _MAX_SHOWN:
            return None
        raise AudioError(f"audio must be {FORMS}, got a text of {len(text)} characters") from None


def _read_open_file(file: Any) -> bytes:
    blocks = []
    num_bytes = 0
    try:
        if hasattr(file, "seekable") and file.seekable():
            file.seek(0)  # so that a recording can be used again
        # Sockets and pipes return less than they are asked for.
        while num_bytes <= MAX_MEMORY_BYTES:
            block = file.read(_READ_BYTES)
            if not isinstance(block, bytes):
                raise AudioError(f"an audio file must be opened for reading bytes, got {type(block).__name__} from it")
            if not block:
                break
            blocks.append(block)
            num_bytes += len(block)
    except AudioError:
        raise
    # ValueError: a closed file. TypeError: a method of that name that reads something else.
    except (OSError, ValueError, TypeError) as error:
        raise AudioError(f"the audio file can't be read: {error}") from None
    return b"".join(blocks)
