"""Boson's audio tokenizer, and the delay pattern of its codes."""

from typing import Any

import numpy as np
import torch

from higgs_native.audio.io import read_audio
from higgs_native.audio.loudness import normalized_to
from higgs_native.audio_tokenizer.tokenizer import HiggsAudioTokenizer
from higgs_native.errors import AudioError
from higgs_native.generation import delay_pattern
from higgs_native.utils.checks import check_flag, check_number, integer_tensor


class BosonAudioTokenizer:
    """The audio tokenizer with Boson's shapes; see `load_higgs_audio_tokenizer`."""

    def __init__(self, native: HiggsAudioTokenizer) -> None:
        self.native = native

    @property
    def tps(self) -> int:
        """Frames per second."""
        return round(self.native.frame_rate)

    @property
    def sampling_rate(self) -> int:
        """The sampling rate of decoded audio, in Hz."""
        return self.native.sampling_rate

    @property
    def num_codebooks(self) -> int:
        """Codes per frame."""
        return self.native.num_codebooks

    @property
    def codebook_size(self) -> int:
        """Codes run from 0 to this, exclusive."""
        return self.native.codebook_size

    def encode(
        self,
        audio_path_or_wv: Any,
        sr: float | None = None,
        loudness_normalize: bool = False,
        loudness_threshold: float = -23.0,
    ) -> torch.Tensor:
        """Encode a file or samples.

        Args:
            audio_path_or_wv: as for `HiggsAudioTokenizer.encode`.
            sr: the rate of samples in Hz; other audio has its own.
            loudness_normalize: bring the audio to a loudness first (ITU-R BS.1770-4).
            loudness_threshold: that loudness, in LUFS.

        Returns:
            [codebooks, frames], int64.

        Raises:
            AudioError: the audio can't be read or used, or `sr` is missing.
        """
        check_flag("loudness_normalize", loudness_normalize)
        check_number("loudness_threshold", loudness_threshold)
        if not loudness_normalize:
            return self.native.encode(audio_path_or_wv, sr)
        samples, sr = read_audio(audio_path_or_wv, sr)
        return self.native.encode(normalized_to(samples, sr, loudness_threshold), sr)

    def decode(self, vq_code: torch.Tensor | np.ndarray) -> np.ndarray:
        """Decode codes [1, codebooks, frames] or [codebooks, frames] to audio [1, 1, samples], float32.

        Raises:
            AudioError: the codes have another shape, or lie out of range.
        """
        vq_code = integer_tensor("vq_code", vq_code, AudioError)
        has_batch = vq_code.ndim == 3 and len(vq_code) == 1
        return self.native.decode(vq_code[0] if has_batch else vq_code).numpy()[None, None]


def load_higgs_audio_tokenizer(tokenizer_name_or_path: str, device: str = "auto") -> BosonAudioTokenizer:
    """Load the audio tokenizer from a folder or the Hub; `device` is `auto`, `cpu`, `cuda`, `cuda:1`, ....

    Raises:
        CheckpointError, ConfigError: the files are missing, damaged, or don't fit each other.
        ParameterError: there is no such device.
    """
    return BosonAudioTokenizer(HiggsAudioTokenizer.from_pretrained(tokenizer_name_or_path, device))


def revert_delay_pattern(data: torch.Tensor | np.ndarray, start_idx: int = 0) -> torch.Tensor:
    """Take the diagonals of delayed codes: [codebooks, N] -> [codebooks, N - codebooks + 1 - start_idx], int64.

    Too few frames for a whole column give [codebooks, 0].

    Raises:
        ParameterError: the codes are no integers, or of another shape.
    """
    return delay_pattern.revert_delay_pattern(integer_tensor("delayed codes", data))[:, start_idx:]
