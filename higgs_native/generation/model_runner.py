"""Runs steps of several sequences: embed, layers, audio head, sample, advance.

All that a step depends on stays on the device: the last codes, positions, the state of the delay pattern, and the
counters of the random numbers. On a GPU, a step is one captured CUDA graph per number of rows (1, 2, 4, 8, ...). It is
launched up to `_STEPS_AHEAD` steps ahead of the host, which reads finished frames from pinned memory. A step leaves
sequences that have ended unchanged.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from higgs_native.generation.sampler import SamplerState
from higgs_native.model.batch import Batch, Buffers
from higgs_native.model.kv_cache import KVCache
from higgs_native.model.transformer import LanguageModel
from higgs_native.ops.sampling import StateField
from higgs_native.utils.cuda_graph import CAPTURE_LOCK, GraphedWork, capture_graphs


_STEPS_AHEAD = 4
"""Steps that a GPU may be ahead of the host."""
_MIN_LENGTH, _MIN_HISTORY = 1024, 64
"""Minimum sizes on a GPU; larger ones round up to powers of two so that graphs are reused."""
_WARM_UP_ROWS = 96
"""Text rows, and audio rows, of the prompt that loads kernels: more than any kernel computes at once."""
_MAX_IDLE = 2
"""Runners on a GPU that are kept for later requests."""

OnStep = Callable[[torch.Tensor, list[int]], bool]
"""Takes the codes [rows, codebooks] of a step, int32, on the CPU, and 1 per row whose sequence continues, else 0.

Returns whether to go on.
"""


@dataclass(frozen=True)
class DecodeRow:
    """A sequence whose next frame is drawn.

    Attributes:
        slot: its slot in the cache and in the sampler.
        position: the cache position of `codes`.
        codes: [codebooks], integers: its last frame, delayed.
    """

    slot: int
    position: int
    codes: torch.Tensor


class CapturedStep(GraphedWork):
    """A step that draws one frame for each of `num_rows` rows, with its tensors; on a GPU one CUDA graph.

    Attributes:
        drawn: [num_rows * (codebooks + 1)], int32: the codes of all rows, then 1 per row whose sequence continues.
    """

    def __init__(self, model: LanguageModel, cache: KVCache, sampler: SamplerState, num_rows: int) -> None:
        self._model, self._cache, self._sampler = model, cache, sampler
        config, int32 = model.config, {"dtype": torch.int32, "device": model.device}
        nothing = torch.zeros(0, **int32)
        self._shape = num_rows, config.num_codebooks
        self.drawn = torch.zeros(num_rows * (config.num_codebooks + 1), **int32)
        codes, self._active = self.split(self.drawn)
        self._batch = Batch(
            token_ids=nothing,
            codes=codes,
            slots=torch.arange(num_rows, **int32),
            positions=torch.zeros(num_rows, **int32),
            text_positions=nothing,
        )
        self._buffers = Buffers.allocate(config, num_rows, model.device)
        self._logits = torch.empty(num_rows, config.num_codebooks, config.codebook_size, device=model.device)

    def begin(self, rows: Sequence[DecodeRow]) -> None:
        """Set the rows to continue."""
        taken = {row.slot for row in rows}
        spare = [slot for slot in range(self._cache.slots) if slot not in taken]
        # Padding rows use finished slots, whose cache is rewritten before it is read. Position 0 makes them attend to
        # one key.
        padded = [(row.slot, row.position) for row in rows] + [(slot, 0) for slot in spare]
        padded = torch.tensor(padded[: len(self._batch.slots)], dtype=torch.int32)
        self._batch.slots.copy_(padded[:, 0])
        self._batch.positions.copy_(padded[:, 1])
        self._batch.codes[: len(rows)].copy_(torch.stack([row.codes for row in rows]))
        self._sampler.state[spare, StateField.ACTIVE] = 0

    def split(self, drawn: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Split `drawn`, or a copy of it, into codes [rows, codebooks] and a flag per row: the sequence continues."""
        num_codes = self._shape[0] * self._shape[1]
        return drawn[:num_codes].view(self._shape), drawn[num_codes:]

    def compute(self) -> None:
        """Sample a frame for each row into `drawn`."""
        batch = self._batch
        states = self._model.forward(batch, self._cache, self._buffers)
        logits = self._model.audio_logits(states, self._logits)
        self._sampler.sample_audio_frame(logits, batch.slots, out=(batch.codes, self._active, batch.positions))


class ModelRunner:
    """A KV cache and a sampler of several sequences, and the loop that draws their frames.

    Attributes:
        cache: the KV cache of `slots` sequences.
        sampler: the sampler of `slots` sequences.

    Args:
        model: the language model.
        slots: the number of sequences.
        length: positions per sequence.
        history_length: past frames per sequence, for repetition-aware sampling.
    """

    def __init__(self, model: LanguageModel, slots: int, length: int, history_length: int) -> None:
        self._model = model
        self.cache = model.new_cache(slots, length)
        self.sampler = SamplerState(slots, model.config, history_length, model.device)
        self._steps: dict[int, CapturedStep] = {}
        self._is_cuda = model.device.type == "cuda"
        if self._is_cuda:
            for power in reversed(range(slots.bit_length())):
                self._steps[1 << power] = CapturedStep(model, self.cache, self.sampler, 1 << power)
            capture_graphs(self._steps.values(), torch.cuda.Stream(model.device))

    def draw(self, rows: Sequence[DecodeRow], limit: int, on_step: OnStep) -> None:
        """Draw up to `limit` frames of each row.

        Args:
            rows: sequences in different slots, active in the sampler. The sequences of all other slots have ended.
            limit: the maximum number of frames; no row may pass the end of the cache.
            on_step: called after each step (see `OnStep`). Once it returns False no more steps are launched, but those
                in flight still come. Codes of a row that ended in an earlier step mean nothing.
        """
        step = self._step(len(rows))
        step.begin(rows)
        if self._is_cuda:
            self._draw_ahead(step, len(rows), limit, on_step)
            return
        codes, active = (part[: len(rows)] for part in step.split(step.drawn))
        for _ in range(limit):
            step.run()
            if not on_step(codes.clone(), active.tolist()):
                return

    def _draw_ahead(self, step: CapturedStep, num_rows: int, limit: int, on_step: OnStep) -> None:
        """Launch steps ahead of the one whose frames the host reads."""
        ring = torch.empty(_STEPS_AHEAD, len(step.drawn), dtype=torch.int32, pin_memory=True)
        events = [torch.cuda.Event() for _ in range(_STEPS_AHEAD)]
        launched = read = 0
        continues = True
        while True:
            while continues and launched < limit and launched - read < _STEPS_AHEAD:
                step.run()
                ring[launched % _STEPS_AHEAD].copy_(step.drawn, non_blocking=True)
                events[launched % _STEPS_AHEAD].record()
                launched += 1
            if read == launched:
                return
            events[read % _STEPS_AHEAD].synchronize()
            codes, active = step.split(ring[read % _STEPS_AHEAD].clone())
            read += 1
            continues = on_step(codes[:num_rows], active.tolist()[:num_rows]) and continues

    def _step(self, num_rows: int) -> CapturedStep:
        if self._is_cuda:
            return self._steps[1 << (num_rows - 1).bit_length()]
        if num_rows not in self._steps:
            self._steps[num_rows] = CapturedStep(self._model, self.cache, self.sampler, num_rows)
        return self._steps[num_rows]


class RunnerPool:
    """The model runners of a model. On a GPU idle ones are kept, with their graphs, for later requests.

    Safe to use from several threads: each request has a runner to itself. A runner is reused only on the stream it
    was made on, so its earlier work is ordered before later work. On the CPU none is kept, so that the model is freed
    with its last reference.
    """

    def __init__(self) -> None:
        self._idle: list[tuple[tuple[int, ...], ModelRunner]] = []
        self._lock = threading.Lock()

    @contextmanager
    def runner(self, model: LanguageModel, slots: int, length: int, history_length: int) -> Iterator[ModelRunner]:
        """Give a runner for `slots` sequences of up to `length` positions, all slots inactive."""
        if model.device.type != "cuda":
            yield ModelRunner(model, slots, length, history_length)
            return
        shape = (
            _power_of_two(slots),
            min(max(_power_of_two(length), _MIN_LENGTH), model.max_cache_length),
            max(_power_of_two(history_length), _MIN_HISTORY),
        )
        with torch.cuda.device(model.device):
            key = (*shape, torch.cuda.current_stream().cuda_stream)
            runner = self._take(key) or self._make(model, shape)
            try:
                yield runner
            finally:
                runner.sampler.state.zero_()
                with self._lock:
                    self._idle = [*self._idle, (key, runner)][-_MAX_IDLE:]

    @torch.inference_mode()
    def prepare(self, model: LanguageModel, slots: int, length: int) -> None:
        """Capture the graphs that requests of this size need, and run a prompt, before the first of them.

        CUDA loads a kernel when it first runs, and prompts of many rows have kernels that no frame uses.
        """
        with self.runner(model, slots, length, 1) as runner:
            count = min(_WARM_UP_ROWS, length // 2)
            frames = torch.zeros(model.config.num_codebooks, count, dtype=torch.int32)
            states = model.forward(Batch.text_then_audio([([0] * count, frames)], model.device), runner.cache)
            model.audio_logits(states[-1:])
            if model.text_head is not None:
                model.text_logits(states[-1:])

    def _make(self, model: LanguageModel, shape: tuple[int, int, int]) -> ModelRunner:
        with CAPTURE_LOCK:
            try:
                return ModelRunner(model, *shape)
            except torch.OutOfMemoryError:
                with self._lock:
                    self._idle.clear()
            return ModelRunner(model, *shape)

    def _take(self, key: tuple[int, ...]) -> ModelRunner | None:
        with self._lock:
            for index, (other, runner) in enumerate(self._idle):
                if other == key:
                    del self._idle[index]
                    return runner
            # Make room for the new runner.
            del self._idle[: len(self._idle) - _MAX_IDLE + 1]
        return None


def _power_of_two(count: int) -> int:
    """The smallest power of two that is at least `count`."""
    return 1 << (count - 1).bit_length()
