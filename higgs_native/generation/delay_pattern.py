"""The delay pattern: built, reverted, and read a frame at a time."""

from collections import deque
from typing import Literal

import torch

from higgs_native import ops
from higgs_native.errors import ParameterError, PromptError
from higgs_native.model.config import HiggsAudioConfig
from higgs_native.model.transformer import LanguageModel
from higgs_native.utils.checks import integer_tensor


Rule = Literal["boson", "transformers"]


def delayed_reference(model: LanguageModel, codes: torch.Tensor) -> torch.Tensor:
    """The frames of a reference as the model reads them: [codebooks, T] -> [T + codebooks + 1, codebooks], int32, CPU.

    Raises:
        PromptError: the type, the shape or a code does not fit the model.
    """
    config = model.config
    codes = integer_tensor("reference codes", codes, PromptError)
    if codes.dim() != 2 or codes.shape[0] != config.num_codebooks:
        raise PromptError(f"reference codes must have shape [{config.num_codebooks}, frames], got {list(codes.shape)}")
    limit = min(config.audio_stream_bos_id, config.audio_stream_eos_id)
    if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < limit:
        raise PromptError(
            f"reference codes must lie between 0 and {limit - 1}, got {int(codes.min())} to {int(codes.max())}"
        )
    codes = codes.to(device="cpu", dtype=torch.int32).contiguous()
    frames = codes.new_empty(config.num_codebooks, codes.shape[1] + config.num_codebooks + 1)
    ops.delay_pattern_build(frames, codes, config.audio_stream_bos_id, config.audio_stream_eos_id)
    return frames.T.contiguous()


def revert_delay_pattern(delayed: torch.Tensor) -> torch.Tensor:
    """Take the diagonals of a delayed segment: [codebooks, N] -> [codebooks, N - codebooks + 1], int64.

    A segment of fewer frames than codebooks holds no whole column and gives [codebooks, 0].

    Raises:
        ParameterError: the shape is another.
    """
    if delayed.dim() != 2:
        raise ParameterError(f"delayed codes must have shape [codebooks, N], got {list(delayed.shape)}")
    num_codebooks, length = delayed.shape
    if length < num_codebooks:
        return delayed.new_empty(num_codebooks, 0, dtype=torch.int64)
    delayed = delayed.to(torch.int32).contiguous()
    out = delayed.new_empty(num_codebooks, length - num_codebooks + 1)
    ops.delay_pattern_revert(out, delayed)
    return out.long()


class SegmentReader:
    """Turns the delayed frames of one audio segment, as they come, into columns of codes.

    It gives what reverting the delay pattern of the whole segment gives: without the first frame, which is all BOS;
    under Boson's rule without the last column, which stands for EOS; under transformers' without what follows the
    frame that is all EOS.

    Args:
        config: the codebooks and special ids.
        rule: whose.
    """

    def __init__(self, config: HiggsAudioConfig, rule: Rule) -> None:
        self._config = config
        self._rule = rule
        # A column of codes is a diagonal of as many frames as codebooks. Boson's must not be the last one.
        self._frames: deque[torch.Tensor] = deque(maxlen=config.num_codebooks + (rule == "boson"))
        self._begun = self._ended = False

    def read(self, frame: torch.Tensor) -> torch.Tensor | None:
        """Take a frame [codebooks]; return the column of codes [codebooks] that is final now, if there is one."""
        if self._rule == "transformers" and bool((frame == self._config.audio_stream_eos_id).all()):
            self._ended = True
        if self._begun and not self._ended:
            self._frames.append(frame)
        self._begun = True
        if self._ended or len(self._frames) < self._frames.maxlen:
            return None
        return torch.stack([self._frames[row][row] for row in range(self._config.num_codebooks)])
