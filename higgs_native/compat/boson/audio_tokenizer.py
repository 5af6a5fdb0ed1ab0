"""Boson's audio tokenizer, and the delay pattern of its codes."""

from typing import Any

import numpy as np
import torch
from typing_extensions import Never

from higgs_native.audio.files.reading import read_audio
from higgs_native.audio.loudness import normalized_to
from higgs_native.audio_tokenizer.tokenizer import HiggsAudioTokenizer
from higgs_native.compat.placement import check_stays
from higgs_native.errors import AudioError, ParameterError
from higgs_native.generation import delay_pattern
from higgs_native.utils.checks import check_flag, check_id, check_integer, check_number
from higgs_native.utils.tensors import integer_tensor


class BosonAudioTokenizer:
    """The audio tokenizer with Boson's shapes; see `load_higgs_audio_tokenizer`."""

    def __init__(self, native: HiggsAudioTokenizer) -> None:
        self.native = native

    def __getattr__(self, name: str) -> Never:
        raise AttributeError(f"the audio tokenizer has no {name}: its networks are packed for the engine")

    def to(self, *arguments: Any, **options: Any) -> "BosonAudioTokenizer":
        """Return the audio tokenizer, which stays where it was loaded.

        Raises:
            ParameterError: another device or dtype is asked for.
        """
        check_stays(torch.float32, self.native.device, lambda tensor: tensor.to(*arguments, **options))
        return self

    def eval(self) -> "BosonAudioTokenizer":
        """Return the audio tokenizer, which is not for training."""
        return self

    @property
    def device(self) -> torch.device:
        """The device that it runs on."""
        return self.native.device

    @property
    def tps(self) -> int:
        """Frames per second."""
        return round(self.native.frame_rate)

    @property
    def frame_rate(self) -> int:
        """Frames per second."""
        return self.tps

    @property
    def hop_length(self) -> int:
        """Samples per frame."""
        return self.native.hop_length

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
        vq_code = integer_tensor("codes", vq_code, AudioError)
        has_batch = vq_code.ndim == 3 and len(vq_code) == 1
        return self.native.decode(vq_code[0] if has_batch else vq_code).numpy()[None, None]


def load_higgs_audio_tokenizer(
    tokenizer_name_or_path: str, device: str | torch.device = "auto"
) -> BosonAudioTokenizer:
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
        ParameterError: the codes are no integers, or of another shape; or `start_idx` is negative.
    """
    check_integer("start_idx", start_idx)
    if start_idx < 0:
        raise ParameterError(f"start_idx must be at least 0, got {start_idx}")
    codes = delay_pattern.revert_delay_pattern(integer_tensor("delayed codes", data))
    return codes[:, min(start_idx, codes.shape[1]) :]


def build_delay_pattern_mask(
    input_ids: torch.Tensor, bos_token_id: int, pad_token_id: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Delay codes [batch, codebooks, N], codebook k by k columns: [batch, codebooks, N + codebooks - 1], int64.

    Returns:
        The delayed codes, with `bos_token_id` before and `pad_token_id` after each codebook's; and the same with -1
        after them.

    Raises:
        ParameterError: the codes are no integers, or of another shape; or an id is none.
    """
    codes = integer_tensor("codes", input_ids)
    if codes.dim() != 3 or codes.shape[1] == 0:
        raise ParameterError(f"codes must have shape [batch, codebooks, N], got {list(codes.shape)}")
    check_id("bos_token_id", bos_token_id)
    check_id("pad_token_id", pad_token_id)
    batch, codebooks, length = codes.shape
    delayed = codes.new_full((batch, codebooks, length + codebooks - 1), pad_token_id)
    unknown = torch.full_like(delayed, -1)
    for codebook in range(codebooks):
        for target in (delayed, unknown):
            target[:, codebook, :codebook] = bos_token_id
            target[:, codebook, codebook : codebook + length] = codes[:, codebook]
    return delayed, unknown
