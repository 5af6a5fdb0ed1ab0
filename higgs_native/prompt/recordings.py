"""Recordings as a prompt takes them."""

import base64
import io
import os
from dataclasses import replace
from numbers import Real

import numpy as np

from higgs_native.audio.io import checked_rate, cut, mono_samples, read_audio
from higgs_native.audio.quality import check_recording
from higgs_native.errors import AudioError, PromptError
from higgs_native.prompt.chat import (
    AudioContent,
)
from higgs_native.prompt.voices import Voice


def check_voice(voice: Voice) -> list[str]:
    """Return advice on a voice's recording, as `check_recording` gives it; none for a voice that is described.

    Raises:
        AudioError: the recording can't be read or used.
    """
    if voice.profile is not None:
        return []
    return check_recording(*read_voice(voice).reference_audio, voice.reference_text)


def read_voice(voice: Voice) -> Voice:
    """The voice with the samples of its recording, [samples], float32, and their rate."""
    match voice.reference_audio:
        case (samples, sampling_rate):
            return replace(voice, reference_audio=(mono_samples(samples), checked_rate(sampling_rate)))
        case str() | os.PathLike():
            return replace(voice, reference_audio=read_audio(os.path.expanduser(voice.reference_audio)))
    raise AudioError(
        "reference audio must be a file's path, or (samples, sampling rate), "
        f"got a {type(voice.reference_audio).__name__}"
    )


def read_recording(recording: AudioContent) -> tuple[np.ndarray, int]:
    """Return a recording's samples and their sampling rate in Hz.

    Channels are averaged.

    Raises:
        AudioError: there is no such file, it can't be read or used, `raw_audio` is not base64, or offset and duration
            leave nothing.
        PromptError: it names no audio at all.
    """
    for name, seconds in (("offset", recording.offset), ("duration", recording.duration)):
        if seconds is not None and not (isinstance(seconds, Real) and 0 <= seconds < float("inf")):
            raise AudioError(f"{name} must be a number of seconds, at least 0, got {seconds!r}")
    offset, duration = recording.offset or 0, recording.duration
    url = recording.audio_url
    if not isinstance(url, str | os.PathLike | None):
        raise AudioError(f"audio_url must be an audio file's path, got a {type(url).__name__}")
    if url not in (None, "", "placeholder"):
        return read_audio(os.path.expanduser(url), offset, duration)
    match recording.raw_audio:
        case None:
            raise PromptError("an audio content names no recording; expected audio_url or raw_audio")
        case (samples, sampling_rate):
            samples, sampling_rate = mono_samples(samples), checked_rate(sampling_rate)
            begin, count = cut(len(samples), sampling_rate, offset, duration)
            return samples[begin : begin + count], sampling_rate
        case str() | bytes() as encoded:
            try:
                encoded = encoded.encode() if isinstance(encoded, str) else encoded
                data = base64.b64decode(b"".join(encoded.split()), validate=True)  # it may have line breaks
            except ValueError:
                raise AudioError("raw_audio is not valid base64") from None
            return read_audio(io.BytesIO(data), offset, duration)
        case other:
            raise AudioError(
                "raw_audio must be an audio file's bytes in base64, or (samples, sampling rate), "
                f"got a {type(other).__name__}"
            )
