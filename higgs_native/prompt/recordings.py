"""Reference audio in memory: each recording is read, mixed down and analyzed once, then handed on."""

import base64
import hashlib
import io
import os
from dataclasses import dataclass
from functools import cached_property
from numbers import Real

import numpy as np
import torch

from higgs_native.audio.io import check_duration, checked_rate, mono_samples, part_range, read_audio
from higgs_native.audio.quality import RecordingQuality, advise, measure
from higgs_native.errors import AudioError, PromptError
from higgs_native.prompt.messages import AudioContent


@dataclass(frozen=True, eq=False)
class Recording:
    """Reference audio in memory, which neither its file nor its caller can change any more.

    Args:
        samples: as for `HiggsAudioTokenizer.encode`; copied.
        sampling_rate: in Hz.
        name: its name in warnings and errors, such as its path.

    Attributes:
        samples: [samples], float32, mono, full scale 1, read-only, 0.1 to 120 seconds.

    Raises:
        AudioError: the samples are empty, too short, too long, or not finite, or a type, shape or dtype is wrong.
    """

    samples: np.ndarray | torch.Tensor
    sampling_rate: int
    name: str = "the reference audio"

    def __post_init__(self) -> None:
        samples, sampling_rate = np.array(mono_samples(self.samples)), checked_rate(self.sampling_rate)
        check_duration(len(samples), sampling_rate, self.name)
        samples.flags.writeable = False
        object.__setattr__(self, "samples", samples)
        object.__setattr__(self, "sampling_rate", sampling_rate)

    @classmethod
    def from_file(cls, path: str | os.PathLike, offset: float = 0.0, duration: float | None = None) -> "Recording":
        """Read an audio file, or a part of it; arguments in seconds and errors as for `read_audio`."""
        return cls(*read_audio(os.path.expanduser(path), offset, duration), os.fspath(path))

    @cached_property
    def quality(self) -> RecordingQuality | None:
        """Its measured quality (see `audio.quality.measure`)."""
        return measure(self.samples, self.sampling_rate)

    @cached_property
    def sha256(self) -> str:
        """The hexadecimal digest of its samples."""
        return hashlib.sha256(self.samples).hexdigest()

    def part(self, offset: float = 0.0, duration: float | None = None) -> "Recording":
        """Return the part that begins at `offset` and lasts at most `duration` seconds; None for the rest.

        Raises:
            AudioError: the part is empty or too short.
        """
        if not offset and duration is None:
            return self
        begin, count = part_range(len(self.samples), self.sampling_rate, offset, duration, self.name)
        return Recording(self.samples[begin : begin + count], self.sampling_rate, self.name)

    def advice(self, reference_text: str | None = None) -> list[str]:
        """Return advice on it as the reference of a voice (see `audio.quality.check_recording`)."""
        return advise(self.quality, reference_text)


def read_recording(content: AudioContent) -> Recording:
    """Read the audio of a message.

    Raises:
        AudioError: the file does not exist, the audio can't be read or used, `raw_audio` is not base64, or offset and
            duration leave nothing.
        PromptError: the content names no audio.
    """
    for name, seconds in (("offset", content.offset), ("duration", content.duration)):
        if seconds is not None and not (isinstance(seconds, Real) and 0 <= seconds < float("inf")):
            raise AudioError(f"{name} must be a number of seconds, at least 0, got {seconds!r}")
    offset, duration = content.offset or 0, content.duration
    url = content.audio_url
    if not isinstance(url, str | os.PathLike | None):
        raise AudioError(f"audio_url must be an audio file's path, got {type(url).__name__}")
    if url not in (None, "", "placeholder"):
        return Recording.from_file(url, offset, duration)
    match content.raw_audio:
        case None:
            raise PromptError("audio_url or raw_audio must name a recording, got neither")
        case Recording() as recording:
            return recording.part(offset, duration)
        case (samples, sampling_rate):
            samples, sampling_rate = mono_samples(samples), checked_rate(sampling_rate)
            begin, count = part_range(len(samples), sampling_rate, offset, duration)
            return Recording(samples[begin : begin + count], sampling_rate)
        case str() | bytes() as encoded:
            try:
                encoded = encoded.encode() if isinstance(encoded, str) else encoded
                data = base64.b64decode(b"".join(encoded.split()), validate=True)  # without line breaks
            except ValueError:
                raise AudioError("raw_audio must be base64, got other characters or a wrong length") from None
            return Recording(*read_audio(io.BytesIO(data), offset, duration))
        case other:
            raise AudioError(
                "raw_audio must be an audio file's bytes in base64, (samples, sampling rate) or a Recording, "
                f"got {type(other).__name__}"
            )
