"""Speech: the audio of a reply, with its codes and text."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from higgs_native.audio.writing import writing_audio
from higgs_native.errors import AudioError
from higgs_native.failure_checks import Failure


@dataclass(frozen=True)
class Speech:
    """A generated reply. `audio` is empty if the model wrote only text, or too little audio for one frame.

    Attributes:
        audio: [samples], float32, mono, full scale at 1.
        sampling_rate: in Hz.
        codes: [codebooks, frames], int64: the codes of `audio`, all segments joined.
        text: the text that the model wrote, without special tokens.
        finish_reason: `stop`, or `length` if `max_new_tokens` or the cache ended it.
        usage: the number of tokens of the prompt (`prompt_tokens`) and of the reply (`completion_tokens`).
        seed: the given or drawn one, which gives the same speech again.
        failures: found in it (see `higgs_native.failure_checks`), none if it is good; None if the text that was to be
            spoken is unknown, as in `HiggsAudio.generate`.
    """

    audio: np.ndarray
    sampling_rate: int
    codes: torch.Tensor
    text: str
    finish_reason: str
    usage: Mapping[str, int]
    seed: int | None = None
    failures: tuple[Failure, ...] | None = None

    @property
    def duration(self) -> float:
        """The length of the audio in seconds."""
        return len(self.audio) / self.sampling_rate

    def save(self, path: str | Path) -> None:
        """Write the audio to a .wav or .flac (16 bit), .ogg (Vorbis) or .mp3 file. Samples above full scale clip.

        Raises:
            AudioError: there is no audio.
            ParameterError: the file name ends otherwise, the folder does not exist, or the file can't be written.
        """
        if not len(self.audio):
            raise AudioError(f"the model made no audio to save (it wrote the text {self.text!r})")
        with writing_audio(path, self.sampling_rate) as file:
            file.write(self.audio)
