"""The sampler's tensors: per slot the sampling parameters, the state of the delay pattern, and the last frames.

They stay on the device: one operator draws a frame and advances every sequence, and the host reads none of them.
"""

import secrets
from collections.abc import Sequence

import torch

from higgs_native import ops
from higgs_native.convention import Convention
from higgs_native.errors import PromptError
from higgs_native.generation.sampling_params import SamplingParams
from higgs_native.model.config import HiggsAudioConfig
from higgs_native.ops.sampling import NUM_STATE_FIELDS, StateField


class SamplerState:
    """Sampling parameters and state of `num_slots` sequences that are generated side by side.

    A slot belongs to one sequence: `reset_slot`, then frames and tokens in turn. In Boson's convention each audio
    segment begins with `begin_segment`, and the slot is active until the segment ends. In transformers' convention
    the slot is active from `reset_slot` on.
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
        prompt_frames: torch.Tensor | None = None,
        prompt_ids: Sequence[int] = (),
        resume: bool = False,
    ) -> None:
        """Give a slot to a new sequence.

        Args:
            slot: 0 to `num_slots` - 1.
            convention: whose delay pattern and repetition-aware sampling.
            sampling: how to draw. Its `ras_win_len` must be at most `history_length`.
            prompt_frames: [N, codebooks], integers: the delayed frames of the prompt that repetitions are counted in.
            prompt_ids: the prompt's ids, one per position; transformers' delay pattern starts from the last of them.
            resume: `prompt_frames` ends inside an audio segment, from its frame of BOS on, and the slot continues it
                as if it had emitted these frames itself: with the same seed it emits what would have followed.

        Raises:
            PromptError: the segment to resume has no frame of BOS, or has ended.
        """
        frames = () if prompt_frames is None else prompt_frames[-self.history.shape[1] :]
        count = 0 if prompt_frames is None else len(prompt_frames)
        begun = self._begun_segment(prompt_frames) if resume else []
        fields = [0] * NUM_STATE_FIELDS
        fields[StateField.FRAME] = len(begun)
        fields[StateField.HISTORY_COUNT] = count
        fields[StateField.CONVENTION] = convention.state_value
        if convention == Convention.BOSON:
            fields[StateField.ACTIVE] = int(resume)
            opened, remaining = self._boson_resumed(begun) if resume else (0, -1)
            fields[StateField.BOSON_OPENED] = opened
            fields[StateField.BOSON_REMAINING] = remaining
        else:
            fields[StateField.ACTIVE] = 1
            bos_base, bos_step, eos_base, ending = (
                self._transformers_resumed(begun) if resume else self._transformers_start(prompt_ids)
            )
            fields[StateField.TRANSFORMERS_BOS_BASE] = bos_base
            fields[StateField.TRANSFORMERS_BOS_STEP] = bos_step
            fields[StateField.TRANSFORMERS_EOS_BASE] = eos_base
            fields[StateField.TRANSFORMERS_ENDING] = ending

        self.state[slot] = torch.tensor(fields, dtype=torch.int32)
        if len(frames):
            ring = torch.arange(count - len(frames), count) % self.history.shape[1]
            self.history[slot, ring.to(self.history.device)] = frames.to(self.history)
        self.temperature[slot] = float(sampling.temperature)
        self.top_k[slot] = sampling.top_k or 0
        self.top_p[slot] = 1.0 if sampling.top_p is None else float(sampling.top_p)
        self.ras_win_len[slot] = max(sampling.ras_win_len or 0, 0)
        self.ras_win_max_num_repeat[slot] = sampling.ras_win_max_num_repeat
        seed = secrets.randbits(63) if sampling.seed is None else int(sampling.seed)
        # int64 holds the 64 bits of an unsigned seed as a negative number.
        self.seed[slot] = seed if seed < 2**63 else seed - 2**64

    def begin_segment(self, slot: int) -> torch.Tensor:
        """Open an audio segment in Boson's convention: return its first frame [codebooks], int32, all BOS."""
        bos = torch.full_like(self.history[slot, 0], self.config.audio_stream_bos_id)
        fields = self.state[slot]
        self.history[slot, fields[StateField.HISTORY_COUNT].item() % self.history.shape[1]] = bos
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
        """Emit a frame for each row: logits [R, codebooks, codebook size], slots [R], int32 -> [R, codebooks], int32.

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
        """Draw a token for each row: logits [R, vocabulary], slots and steps [R], int32 -> [R], int32."""
        tokens = torch.empty_like(slots)
        ops.sample_text(tokens, logits, slots, steps, self.temperature, self.top_k, self.top_p, self.seed)
        return tokens

    def _begun_segment(self, prompt_frames: torch.Tensor | None) -> list[list[int]]:
        """The frames of the prompt's last audio segment, which has not ended."""
        frames = [] if prompt_frames is None else prompt_frames.tolist()
        num_codebooks = self.config.num_codebooks
        bos, eos = [self.config.audio_stream_bos_id] * num_codebooks, [self.config.audio_stream_eos_id] * num_codebooks
        if bos not in frames:
            raise PromptError("partial_audio must begin with a frame of BOS in all codebooks")
        if frames[-1] == eos:
            raise PromptError("partial_audio must not have ended, got EOS in all codebooks of its last frame")
        return frames[len(frames) - 1 - frames[::-1].index(bos) :]

    def _boson_resumed(self, begun: list[list[int]]) -> tuple[int, int]:
        """The delays opened, and the codebooks that EOS has not reached (-1: it has reached none)."""
        num_codebooks, eos = self.config.num_codebooks, self.config.audio_stream_eos_id
        opened = min(len(begun), num_codebooks) - 1
        # EOS reaches codebooks 0 to k in the first frame that has it, the same ones in the next frame, then one more
        # per frame. Other codebooks may have drawn EOS too, so the smallest count over all frames is right.
        closed = [next(k for k, code in enumerate([*frame, None]) if code != eos) for frame in begun if eos in frame]
        if not closed:
            return opened, -1
        first_closed = min(count - max(0, after - 1) for after, count in enumerate(closed))
        remaining = num_codebooks - first_closed - (len(closed) - 1)
        if remaining <= 0:
            raise PromptError("partial_audio must not have ended, got EOS in its last codebook")
        return opened, remaining

    def _transformers_resumed(self, begun: list[list[int]]) -> tuple[int, int, int, int]:
        """Base and step of the BOS counters, base of the EOS counters, and whether these already count down."""
        ending = sum(self.config.audio_stream_eos_id in frame for frame in begun)
        return -len(begun), 1, 1 - max(0, ending - 1), int(ending > 0)

    def _transformers_start(self, prompt_ids: Sequence[int]) -> tuple[int, int, int, int]:
        """Base and step of the BOS counters, base of the EOS counters, and whether these already count down.

        Codebook k's counters start at k + 1, minus the distance from `<|audio_out_bos|>` (or the first delay token) to
        the end. The distance is measured in a window of as many ids as codebooks, even if the prompt is shorter.
        """
        num_codebooks = self.config.num_codebooks
        window = list(prompt_ids[-num_codebooks:])
        delay = self.config.audio_delay_token_id
        bos_base, bos_step, eos_base = 0, 0, 1
        if self.config.audio_out_bos_token_id in window:
            bos_base = 1 - (num_codebooks - window.index(self.config.audio_out_bos_token_id))
            bos_step = 1
        if delay in window:
            eos_base = 1 - (num_codebooks - window.index(delay))
        return bos_base, bos_step, eos_base, int(bool(window) and window[-1] == delay)
