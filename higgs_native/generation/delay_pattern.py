"""The delay pattern: builds the frames of references, and reads the codes of generated segments.

In a delayed segment, codebook k is k frames late: frame n holds entry n - k of codebook k, and entry 0 is BOS. So the
codes of one audio frame are a diagonal over as many frames as there are codebooks. A generated segment begins with a
frame of BOS in all codebooks.
"""

from collections import deque
from collections.abc import Sequence

import torch

from higgs_native import ops
from higgs_native.convention import Convention
from higgs_native.errors import ParameterError, PromptError
from higgs_native.model.config import HiggsAudioConfig
from higgs_native.utils.tensors import integer_tensor


def build_delay_pattern(codes: torch.Tensor, config: HiggsAudioConfig) -> torch.Tensor:
    """Return a reference's frames as the model reads them.

    Args:
        codes: [codebooks, T], integers, without BOS and EOS.
        config: the codebooks and special ids.

    Returns:
        [T + codebooks + 1, codebooks], int32, on the CPU: BOS before each codebook's codes, EOS after them.

    Raises:
        PromptError: the type, the shape or a code does not fit the model.
    """
    codes = integer_tensor("reference codes", codes, PromptError)
    if codes.dim() != 2 or codes.shape[0] != config.num_codebooks:
        raise PromptError(f"reference codes must have shape [{config.num_codebooks}, frames], got {list(codes.shape)}")
    limit = min(config.audio_stream_bos_id, config.audio_stream_eos_id)
    if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < limit:
        raise PromptError(
            f"reference codes must be between 0 and {limit - 1}, got {int(codes.min())} to {int(codes.max())}"
        )
    codes = codes.to(device="cpu", dtype=torch.int32).contiguous()
    frames = codes.new_empty(config.num_codebooks, codes.shape[1] + config.num_codebooks + 1)
    ops.delay_pattern_build(frames, codes, config.audio_stream_bos_id, config.audio_stream_eos_id)
    return frames.T.contiguous()


def revert_delay_pattern(delayed: torch.Tensor) -> torch.Tensor:
    """Take the diagonals of a delayed segment: [codebooks, N] -> [codebooks, N - codebooks + 1], int64.

    A segment of fewer frames than codebooks holds no whole diagonal and gives [codebooks, 0].

    Raises:
        ParameterError: `delayed` is not two-dimensional.
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


def segment_codes(segment: torch.Tensor, config: HiggsAudioConfig, convention: Convention) -> torch.Tensor:
    """Return the codes of a whole generated segment.

    Args:
        segment: [codebooks, N], integers, delayed, from its frame of BOS on.
        config: the codebooks and special ids.
        convention: the convention that generated the segment.

    Returns:
        [codebooks, T], int64, BOS and EOS included where the model drew them: for Boson's convention the codes of all
        frames but the first, which is BOS, and the last, which is EOS or was cut off; for transformers' those between
        the frame of BOS and the frame of EOS in all codebooks.
    """
    if convention == Convention.BOSON:
        return revert_delay_pattern(segment)[:, 1:-1]
    ends = (segment == config.audio_stream_eos_id).all(dim=0).nonzero().flatten().tolist()
    return revert_delay_pattern(segment[:, 1 : ends[0] if ends else None])


class SegmentReader:
    """Reads the codes of a segment while it is generated. What `read` returns, joined, equals `segment_codes`.

    Args:
        config: the codebooks and special ids.
        convention: the convention that generates the segment.
    """

    def __init__(self, config: HiggsAudioConfig, convention: Convention) -> None:
        self._config = config
        self._convention = convention
        # Boson's convention drops the last frame's codes, so codes are final only when the next ones are complete.
        self._needed = config.num_codebooks + (convention == Convention.BOSON)
        self._frames: deque[torch.Tensor] = deque(maxlen=self._needed)
        self._begun = self._ended = False

    def read(self, frame: torch.Tensor) -> torch.Tensor | None:
        """Take a delayed frame [codebooks]; return the codes [codebooks] of the frame that is final now, or None."""
        if self._convention == Convention.TRANSFORMERS and bool((frame == self._config.audio_stream_eos_id).all()):
            self._ended = True
        if self._begun and not self._ended:
            self._frames.append(frame)
        self._begun = True
        if self._ended or len(self._frames) < self._needed:
            return None
        return torch.stack([self._frames[k][k] for k in range(self._config.num_codebooks)])


def resumed_boson_state(begun: Sequence[Sequence[int]], config: HiggsAudioConfig) -> tuple[int, int]:
    """Return the state of Boson's delay pattern after the delayed frames `begun` of an unfinished segment.

    Returns:
        The delays opened, and the codebooks that EOS has not reached (-1: it has reached none).

    Raises:
        PromptError: the segment has ended.
    """
    num_codebooks, eos = config.num_codebooks, config.audio_stream_eos_id
    opened = min(len(begun), num_codebooks) - 1
    # EOS reaches codebooks 0 to k in the first frame that has it, the same ones in the next frame, then one more per
    # frame. Other codebooks may have drawn EOS too, so the smallest count over all frames is right.
    closed = [next(k for k, code in enumerate([*frame, None]) if code != eos) for frame in begun if eos in frame]
    if not closed:
        return opened, -1
    first_closed = min(count - max(0, after - 1) for after, count in enumerate(closed))
    remaining = num_codebooks - first_closed - (len(closed) - 1)
    if remaining <= 0:
        raise PromptError("partial_audio must not have ended, got EOS in its last codebook")
    return opened, remaining


def initial_transformers_state(prompt_ids: Sequence[int], config: HiggsAudioConfig) -> tuple[int, int, int, int]:
    """Return the state of transformers' delay pattern after a prompt.

    Codebook k's counters start at k + 1, minus the distance from `<|audio_out_bos|>` (or the first delay token) to the
    end. The distance is measured in a window of as many ids as codebooks, even if the prompt is shorter.

    Returns:
        Base and step of the BOS counters, base of the EOS counters, and whether these already count down.
    """
    num_codebooks, delay = config.num_codebooks, config.audio_delay_token_id
    window = list(prompt_ids[-num_codebooks:])
    bos_base, bos_step, eos_base = 0, 0, 1
    if config.audio_out_bos_token_id in window:
        bos_base = 1 - (num_codebooks - window.index(config.audio_out_bos_token_id))
        bos_step = 1
    if delay in window:
        eos_base = 1 - (num_codebooks - window.index(delay))
    return bos_base, bos_step, eos_base, int(bool(window) and window[-1] == delay)


def resumed_transformers_state(
    state: tuple[int, int, int, int], begun: Sequence[Sequence[int]], config: HiggsAudioConfig
) -> tuple[int, int, int, int]:
    """Return the state of transformers' delay pattern after a prompt's `state` and the delayed frames `begun`."""
    bos_base, bos_step, eos_base, is_ending = state
    for frame in begun:
        bos_base -= 1
        eos_base -= is_ending
        is_ending = int(is_ending or config.audio_stream_eos_id in frame)
    return bos_base, bos_step, eos_base, is_ending
