"""What was spoken."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from higgs_native.audio.writing import writing_audio
from higgs_native.errors import AudioError


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
