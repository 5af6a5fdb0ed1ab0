"""Reference audio in memory: each recording is read, mixed down and analyzed once, then handed on."""

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, BinaryIO, TypeAlias

import numpy as np

from higgs_native.audio.files.reading import decode_base64, is_data_url, read_audio
from higgs_native.audio.quality import RecordingQuality, advise, measure
from higgs_native.audio.samples import mono_samples, part_range, part_seconds
from higgs_native.errors import PromptError
from higgs_native.prompt.messages import AudioContent
from higgs_native.utils.checks import check_string


@dataclass(frozen=True, eq=False)
class Recording:
    """Reference audio in memory, which neither its file nor its caller can change any more.

    Args:
        samples: as for `mono_samples`; copied.
        sampling_rate: in Hz.
        name: its name in warnings and errors, such as its path.

    Attributes:
        samples: [samples], float32, mono, full scale 1, read-only, 0.1 to 120 seconds.

    Raises:
        AudioError: the samples are empty, too short, too long, or not finite, or a type, shape or dtype is wrong.
        ParameterError: the name is no string.
    """

    samples: np.ndarray
    sampling_rate: int
    name: str = "the reference audio"

    def __post_init__(self) -> None:
        check_string("name", self.name)
        samples, sampling_rate = mono_samples(self.samples, self.sampling_rate, name=self.name)
        samples = np.array(samples)
        samples.flags.writeable = False
        object.__setattr__(self, "samples", samples)
        object.__setattr__(self, "sampling_rate", sampling_rate)

    @classmethod
    def read(cls, audio: "RecordingLike", offset: float = 0, duration: float | None = None) -> "Recording":
        """Return a recording in any form, or a part of it; arguments in seconds and errors as for `read_audio`."""
        if isinstance(audio, Recording):
            return audio.part(offset, duration)
        samples, sampling_rate = read_audio(audio, None, offset, duration)
        name = cls.name
        if isinstance(audio, str | os.PathLike) and os.path.exists(os.path.expanduser(audio)):
            name = os.fsdecode(audio)
        return cls(samples, sampling_rate, name)

    @cached_property
    def quality(self) -> RecordingQuality | None:
        """Its measured quality (see `audio.quality.measure`)."""
        return measure(self.samples, self.sampling_rate)

    @cached_property
    def sha256(self) -> str:
        """The hexadecimal digest of its samples."""
        return hashlib.sha256(self.samples.data).hexdigest()

    def part(self, offset: float = 0.0, duration: float | None = None) -> "Recording":
        """Return the part that begins at `offset` and lasts at most `duration` seconds; None for the rest.

        Raises:
            AudioError: the part is empty or too short.
        """
        if part_seconds(offset, duration) == (0, math.inf):
            return self
        begin, count = part_range(len(self.samples), self.sampling_rate, offset, duration, self.name)
        return Recording(self.samples[begin : begin + count], self.sampling_rate, self.name)

    def advice(self, reference_text: str | None = None) -> list[str]:
        """Return advice on it as the reference of a voice (see `audio.quality.check_recording`)."""
        return advise(self.quality, reference_text)


RecordingLike: TypeAlias = str | os.PathLike | bytes | BinaryIO | Sequence | Mapping[str, Any] | Recording
"""The forms of a recording: all that `read_audio` takes without a separate sampling rate, or a `Recording`."""


def read_recording(content: AudioContent) -> Recording:
    """Read the audio of a message.

    Raises:
        AudioError: the file does not exist, the audio can't be read or used, `raw_audio` is a text but no base64, or
            offset and duration leave nothing.
        PromptError: the content names no audio.
    """
    audio: RecordingLike | None = content.audio_url
    if audio is None or (isinstance(audio, str) and audio in ("", "placeholder")):
        audio = content.raw_audio
        if audio is None:
            raise PromptError("audio_url or raw_audio must name a recording, got neither")
        if isinstance(audio, str) and not is_data_url(audio):
            audio = decode_base64(audio, "raw_audio")  # never a path
    return Recording.read(audio, 0 if content.offset is None else content.offset, content.duration)
