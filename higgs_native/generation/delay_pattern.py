"""The delay pattern: builds the frames of references, and reads the codes of generated segments.

In a delayed segment, codebook k is k frames late: delayed frame n holds entry n - k of codebook k. So the codes of one
frame lie on a diagonal, in as many delayed frames as there are codebooks. In the conventions of Higgs Audio V2, entry
0 is BOS, and a segment begins with a frame of BOS in all codebooks. In that of Higgs TTS 3, entry 0 is the first code.
"""

import torch

from higgs_native import ops
from higgs_native.checkpoint.config import HiggsAudioConfig
from higgs_native.convention import Convention
from higgs_native.errors import ParameterError, PromptError
from higgs_native.generation.conventions import behavior_of
from higgs_native.utils.tensors import integer_tensor


def build_delay_pattern(
    codes: torch.Tensor, config: HiggsAudioConfig, convention: Convention = Convention.BOSON
) -> torch.Tensor:
    """Return a reference's frames as the model reads them.

    Args:
        codes: [codebooks, T], integers, without BOS and EOS.
        config: the codebooks and special ids.
        convention: the one that the prompt follows.

    Returns:
        [`num_delayed`, codebooks], int32, on the CPU: BOS before each codebook's codes, EOS after them.

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
    if not behavior_of(convention).has_bos_frame:
        frames = frames[:, 1:-1]
    return frames.T.contiguous()


def num_delayed(num_frames: int, config: HiggsAudioConfig, convention: Convention) -> int:
    """Return the number of delayed frames of a reference of `num_frames` frames."""
    bounds = 2 if behavior_of(convention).has_bos_frame else 0
    return num_frames + config.num_codebooks - 1 + bounds


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
        segment: [codebooks, N], integers, delayed, from its first frame on.
        config: the codebooks and special ids.
        convention: the convention that generated the segment.

    Returns:
        [codebooks, T], int64, BOS and EOS included where the model drew them: for Boson's convention the codes of all
        frames but the first, which is BOS, and the last, which is EOS or was cut off; for transformers' those between
        the frame of BOS and the frame of EOS in all codebooks; for that of Higgs TTS 3 those of all frames.
    """
    behavior = behavior_of(convention)
    ends = behavior.is_end(segment, config).nonzero().flatten().tolist()
    codes = revert_delay_pattern(segment[:, int(behavior.has_bos_frame) : ends[0] if ends else None])
    return codes[:, :-1] if behavior.drops_last_codes else codes


class SegmentReader:
    """Reads the codes of a segment while it is generated. What `read` returns, joined, equals `segment_codes`.

    Attributes:
        delay: the number of delayed frames before the first one that completes codes.

    Args:
        config: the codebooks and special ids.
        convention: the convention that generates the segment.
    """

    def __init__(self, config: HiggsAudioConfig, convention: Convention) -> None:
        self._config = config
        self._behavior = behavior = behavior_of(convention)
        # If the codes of the last frame are dropped, codes are final only once the next ones are complete.
        self.delay = config.num_codebooks - 1 + int(behavior.has_bos_frame) + int(behavior.drops_last_codes)
        # Frames with codes that are not final.
        self._frames = torch.empty(config.num_codebooks, 0, dtype=torch.int64, device="cpu")
        self._begun = not self._behavior.has_bos_frame
        self._ended = False

    def read(self, frames: torch.Tensor) -> torch.Tensor:
        """Take the next delayed frames [codebooks, N]; return the codes [codebooks, T], int64, that are final now."""
        ends = self._behavior.is_end(frames, self._config).nonzero().flatten().tolist()
        frames = frames[:, : 0 if self._ended else ends[0] if ends else None]
        self._ended |= bool(ends)
        if not self._begun and frames.shape[1]:
            frames = frames[:, 1:]
            self._begun = True
        frames = torch.cat([self._frames, frames], dim=1)
        codes = revert_delay_pattern(frames)
        if self._behavior.drops_last_codes:
            codes = codes[:, :-1]
        self._frames = frames[:, codes.shape[1] :]
        return codes
