"""The sampler: for each slot the sampling parameters, the state of the delay pattern, and the last frames.

They are tensors on the device. One operator samples a frame and advances every sequence; the host reads fields only
outside the model runner's loop (`begin_segment`, `is_active`).
"""

from collections.abc import Sequence

import torch

from higgs_native import ops
from higgs_native.checkpoint.config import HiggsAudioConfig
from higgs_native.convention import Convention
from higgs_native.generation.conventions import behavior_of
from higgs_native.generation.sampling_params import SamplingParams
from higgs_native.ops.sampling import NUM_STATE_FIELDS, StateField


class SamplerState:
    """Sampling parameters and state of `num_slots` sequences that are generated side by side.

    A slot belongs to one sequence: `reset_slot`, then frames and tokens in turn. In Boson's convention each audio
    segment begins with `begin_segment`, and the slot is active until the segment ends. In the other conventions the
    slot is active from `reset_slot` on.
    """

    def __init__(
        self, num_slots: int, config: HiggsAudioConfig, history_length: int, device: torch.device | str = "cpu"
    ) -> None:
        """Allocate the tensors.

        Args:
            num_slots: the number of sequences.
            config: the codebooks and special ids.
            history_length: the number of past frames that a slot keeps, at least its `ras_win_len` and 1.
            device: where the tensors live.
        """

        def per_slot(dtype: torch.dtype, *shape: int) -> torch.Tensor:
            return torch.zeros(num_slots, *shape, dtype=dtype, device=device)

        self.config = config
        self.state = per_slot(torch.int32, NUM_STATE_FIELDS)
        self.history = per_slot(torch.int32, history_length, config.num_codebooks)
        self.temperature = per_slot(torch.float32)
        self.top_k = per_slot(torch.int32)
        self.top_p = per_slot(torch.float32)
        self.ras_win_len = per_slot(torch.int32)
        self.ras_win_max_num_repeat = per_slot(torch.int32)
        self.seed = per_slot(torch.int64)

    def reset_slot(
        self,
        slot: int,
        convention: Convention,
        sampling: SamplingParams,
        frames: Sequence[Sequence[int]] = (),
        prompt_ids: Sequence[int] = (),
        num_resumed: int = 0,
        num_drawn: int | None = None,
    ) -> None:
        """Give a slot to a new sequence.

        Args:
            slot: 0 to `num_slots` - 1.
            convention: sets the delay pattern and the frames that repetition-aware sampling counts.
            sampling: how to draw. Its `ras_win_len` must be at most `history_length`.
            frames: the delayed codes of the frames so far that repetitions are counted in, one per codebook each.
            prompt_ids: the prompt's ids, one per position; transformers' delay pattern starts from the last of them.
            num_resumed: the number of frames at the end of `frames` that are an unfinished audio segment, BOS frame
                first. The slot continues it as if it had sampled these frames itself: the same seed gives the same
                continuation.
            num_drawn: the number of frames of all segments so far; None: `num_resumed`.

        Raises:
            PromptError: the segment to resume has ended.
        """
        count = len(frames)
        begun = frames[count - num_resumed :]
        fields = self._state_fields(convention, count, begun, prompt_ids)
        fields[StateField.FRAME] = num_resumed if num_drawn is None else num_drawn
        self.state[slot] = torch.tensor(fields, dtype=torch.int32, device="cpu")
        kept = frames[-self.history.shape[1] :]
        if kept:
            entries = torch.arange(count - len(kept), count, dtype=torch.int64, device=self.history.device)
            entries %= self.history.shape[1]
            self.history[slot, entries] = torch.tensor(kept, dtype=torch.int32, device=self.history.device)
        self.temperature[slot] = float(sampling.temperature)
        self.top_k[slot] = sampling.top_k or 0
        self.top_p[slot] = 1.0 if sampling.top_p is None else float(sampling.top_p)
        self.ras_win_len[slot] = max(sampling.ras_win_len or 0, 0)
        self.ras_win_max_num_repeat[slot] = sampling.ras_win_max_num_repeat
        seed = sampling.with_seed().known_seed
        # int64 holds the 64 bits of an unsigned seed as a negative number.
        self.seed[slot] = seed if seed < 2**63 else seed - 2**64

    def _state_fields(
        self, convention: Convention, history_count: int, begun: Sequence[Sequence[int]], prompt_ids: Sequence[int]
    ) -> list[int]:
        """The `StateField`s of a sequence after its prompt, which ends in the frames `begun` of a segment, if any."""
        fields = [0] * NUM_STATE_FIELDS
        fields[StateField.HISTORY_COUNT] = history_count
        fields[StateField.CONVENTION] = convention.state_value
        for field, value in behavior_of(convention).state(prompt_ids, begun, self.config).items():
            fields[field] = value
        return fields

    def begin_segment(self, slot: int) -> torch.Tensor:
        """Open an audio segment in Boson's convention: return its first frame [codebooks], int32, all BOS."""
        bos = torch.full_like(self.history[slot, 0], self.config.audio_stream_bos_id)
        fields = self.state[slot]
        self.history[slot, int(fields[StateField.HISTORY_COUNT]) % self.history.shape[1]] = bos
        fields[StateField.ACTIVE] = 1
        fields[StateField.BOSON_OPENED] = 0
        fields[StateField.BOSON_REMAINING] = -1
        fields[StateField.FRAME] += 1
        fields[StateField.HISTORY_COUNT] += 1
        return bos

    def is_active(self, slot: int) -> bool:
        """Whether the slot is inside an audio segment."""
        return bool(self.state[slot, StateField.ACTIVE])

    def sample_audio_frame(
        self,
        logits: torch.Tensor,
        slots: torch.Tensor,
        out: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Sample a frame per row: logits [R, codebooks, codebook size], slots [R], int32 -> [R, codebooks], int32.

        `out`, if given, is codes, active and positions as `ops.sample_audio_frame` takes them.
        """
        if out is None:
            codes = torch.empty(logits.shape[:2], dtype=torch.int32, device=logits.device)
            out = codes, torch.empty_like(slots), torch.zeros_like(slots)
        ops.sample_audio_frame(
            *out,
            self.state,
            self.history,
            logits,
            slots,
            self.temperature,
            self.top_k,
            self.top_p,
            self.ras_win_len,
            self.ras_win_max_num_repeat,
            self.seed,
            self.config.audio_stream_bos_id,
            self.config.audio_stream_eos_id,
        )
        return out[0]

    def sample_text(self, logits: torch.Tensor, slots: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
        """Sample a token for each row: logits [R, vocabulary], slots and steps [R], int32 -> [R], int32."""
        tokens = torch.empty_like(slots)
        ops.sample_text(tokens, logits, slots, steps, self.temperature, self.top_k, self.top_p, self.seed)
        return tokens
