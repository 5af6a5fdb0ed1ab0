"""What was spoken, and audio files."""

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch

from higgs_native.errors import AudioError, ParameterError
from higgs_native.utils.checks import expanded_path
from higgs_native.utils.files import check_file_can_be_made, replacing


# The ending of an audio file, and libsndfile's names of its format and encoding.
_FORMATS = {
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".ogg": ("OGG", "VORBIS"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
}


@dataclass(frozen=True)
class Speech:
    """What a call generated. Where the model wrote only text, or too little audio for one frame, `audio` is empty.

    Attributes:
        audio: [samples], float32, mono, full scale at 1.
        sampling_rate: in Hz.
        codes: [codebooks, frames], int64: what `audio` was decoded from, several audio segments joined.
        text: what the model wrote beside it, without special tokens.
        finish_reason: `stop`, or `length` where `max_new_tokens` or the cache ended it.
        usage: how many tokens the prompt (`prompt_tokens`) and the reply (`completion_tokens`) have.
    """

    audio: np.ndarray
    sampling_rate: int
    codes: torch.Tensor
    text: str
    finish_reason: str
    usage: Mapping[str, int]

    @property
    def duration(self) -> float:
        """The length of the audio in seconds."""
        return len(self.audio) / self.sampling_rate

    def save(self, path: str | Path) -> None:
        """Write the audio to a .wav or .flac (16 bit), .ogg (Vorbis) or .mp3 file. What exceeds full scale is clipped.

        Raises:
            AudioError: there is no audio.
            ParameterError: the ending is another, the folder does not exist or the file can't be written.
        """
        if not len(self.audio):
            raise AudioError(f"the model made no audio to save (it wrote the text {self.text!r})")
        with writing_audio(path, self.sampling_rate) as file:
            file.write(self.audio)


@contextmanager
def writing_audio(path: str | Path, sampling_rate: int) -> Iterator[soundfile.SoundFile]:
    """Open an audio file for writing, mono, in the format that its ending names. It appears at the end, whole.

    Raises:
        ParameterError: as for `check_output_path`, or the disk is full.
    """
    path = check_output_path(path)
    format_name, encoding = _FORMATS[path.suffix.lower()]
    with replacing(path) as temporary, _OutputFile(temporary, "w") as output:
        with soundfile.SoundFile(output, "w", sampling_rate, 1, encoding, format=format_name) as file:
            yield file
        if output.error is not None:
            raise ParameterError(f"{path} can't be written: {output.error.strerror}")


class _OutputFile(io.FileIO):
    """A file for libsndfile to write, which keeps what went wrong.

    libsndfile calls a full disk a "System error", and says nothing where it shows as late as in closing.
    """

    error: OSError | None = None

    def write(self, data: bytes) -> int:
        rest = memoryview(data)
        try:
            while rest and self.error is None:
                rest = rest[super().write(rest) :]
        except OSError as error:
            self.error = error
        return len(data)


def check_output_path(path: str | Path) -> Path:
    """Return `path` if an audio file can be written there; a file that stands there is left alone.

    Raises:
        ParameterError: it is no path, the ending is not .wav, .flac, .ogg or .mp3, or the folder can't be written to.
    """
    path = Path(expanded_path("path", path))
    if path.suffix.lower() not in _FORMATS:
        raise ParameterError(f"{path} does not end in one of {', '.join(_FORMATS)}")
    check_file_can_be_made(path)
    return path
