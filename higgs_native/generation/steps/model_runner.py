"""Runs steps that draw one frame of several sequences: embed, layers, audio head, sample, advance.

All inputs of a step stay on the device: the last codes, positions, page table, the state of the delay pattern, and the
counters of the random numbers. On a GPU, a step is one captured CUDA graph per number of rows (1, 2, 4, 8,
...), launched ahead of the host, which reads finished frames from pinned memory. A step leaves sequences that have
ended unchanged.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch

from higgs_native.generation.sampling_params import MAX_RAS_WINDOW
from higgs_native.generation.steps.sampler import SamplerState
from higgs_native.model.batch import Batch, Buffers
from higgs_native.model.kv_cache import PAGE_SIZE, KVCache, pages_for
from higgs_native.model.low_rank import PackedAdapter, RowAdapters
from higgs_native.model.transformer import LanguageModel
from higgs_native.utils.cuda_graph import CAPTURE_LOCK, GraphedWork, capture_graphs


STEPS_AHEAD = 4
"""Maximum steps in flight on a GPU."""
_WARM_UP_ROWS = 96
"""Text rows, and audio rows, of the prompt that loads kernels: more than any kernel computes at once."""


@dataclass(frozen=True)
class DecodeRow:
    """A sequence whose next frame is drawn.

    Attributes:
        slot: its slot in the cache and in the sampler.
        position: the cache position of `codes`.
        codes: of its last frame, delayed, one per codebook.
        adapter: of its rows; None on a GPU, where captured graphs hold no adapters.
    """

    slot: int
    position: int
    codes: Sequence[int]
    adapter: PackedAdapter | None = None


class DrawnFrame(NamedTuple):
    """A frame that a step has drawn.

    Attributes:
        codes: delayed, one per codebook; meaningless if the sequence ended in an earlier step. On a GPU, a code
            below 0 reports logits that the sampler can't draw from.
        is_active: whether the sequence is inside its audio segment after the frame.
    """

    codes: tuple[int, ...]
    is_active: bool


class CapturedStep(GraphedWork):
    """A step that draws one frame for each of `num_rows` rows, with its tensors; on a GPU one CUDA graph.

    Attributes:
        num_rows: the number of rows.
        drawn: [num_rows * (codebooks + 1)], int32: the codes of all rows, then 1 per row whose sequence continues.
    """

    def __init__(self, model: LanguageModel, cache: KVCache, sampler: SamplerState, num_rows: int) -> None:
        self._model, self._cache, self._sampler = model, cache, sampler
        config, zeros = model.config, partial(torch.zeros, dtype=torch.int32, device=model.device)
        nothing = zeros(0)
        self.num_rows = num_rows
        self.drawn = zeros(num_rows * (config.num_codebooks + 1))
        codes = self.drawn[:-num_rows].view(num_rows, config.num_codebooks)
        self._active = self.drawn[-num_rows:]
        self._batch = Batch(
            token_ids=nothing,
            codes=codes,
            slots=zeros(num_rows),
            positions=zeros(num_rows),
            text_positions=nothing,
        )
        self._buffers = Buffers.allocate(config, num_rows, model.device)
        shape = num_rows, config.num_codebooks, config.codebook_size
        self._logits = torch.empty(shape, dtype=torch.float32, device=model.device)

    def begin(self, rows: Sequence[DecodeRow], padding: Sequence[tuple[int, int]]) -> None:
        """Set the rows to continue. Padding rows fill the step, with slots and positions from `padding`."""
        slots_and_positions = torch.tensor(
            [*((row.slot, row.position) for row in rows), *padding[: self.num_rows - len(rows)]],
            dtype=torch.int32,
            device="cpu",
        )
        self._batch.slots.copy_(slots_and_positions[:, 0])
        self._batch.positions.copy_(slots_and_positions[:, 1])
        codes = torch.tensor([row.codes for row in rows], dtype=torch.int32, device="cpu")
        self._batch.codes[: len(rows)].copy_(codes)
        self._batch.adapters = RowAdapters.of([row.adapter for row in rows], self._model.device)

    def compute(self) -> None:
        """Sample a frame for each row into `drawn`."""
        batch = self._batch
        states = self._model.forward(batch, self._cache, self._buffers)
        logits = self._model.audio_logits(states, self._logits, batch.adapters)
        self._sampler.sample_audio_frame(logits, batch.slots, out=(batch.codes, self._active, batch.positions))


class ModelRunner:
    """The cache and the sampler of all slots, and the steps that draw frames.

    Attributes:
        cache: the KV cache.
        sampler: the sampler.
        in_flight: the number of steps that were launched and not read yet.

    Args:
        model: the language model.
        num_slots: the number of sequences, on a GPU a power of two.
        num_pages: the number of pages of the cache that sequences hold.
    """

    def __init__(self, model: LanguageModel, num_slots: int, num_pages: int) -> None:
        self._model = model
        self._is_cuda = model.device.type == "cuda"
        # A captured step of 2^n rows has padding rows if fewer sequences are drawn: inactive slots, each with a
        # position to itself in pages of no sequence.
        num_padding = num_slots // 2 if self._is_cuda else 0
        self._padding = [(num_slots + index, index % PAGE_SIZE) for index in range(num_padding)]
        self.cache = KVCache(
            model.config,
            num_pages + pages_for(num_padding),
            num_slots + num_padding,
            model.max_cache_length,
            model.dtype,
            model.device,
        )
        for index, (slot, _) in enumerate(self._padding):
            self.cache.page_table[slot, 0] = num_pages + index // PAGE_SIZE
        self.sampler = SamplerState(num_slots + num_padding, model.config, MAX_RAS_WINDOW, model.device)
        self._steps: dict[int, CapturedStep] = {}
        self._step: CapturedStep  # of the rows that `begin` was given
        self._num_rows = 0
        self._in_flight: deque[tuple[torch.Tensor, torch.cuda.Event | None]] = deque()
        self._ring: list[tuple[torch.Tensor, torch.cuda.Event]] = []
        if self._is_cuda:
            with CAPTURE_LOCK:
                for power in reversed(range(num_slots.bit_length())):
                    self._steps[1 << power] = CapturedStep(model, self.cache, self.sampler, 1 << power)
                capture_graphs(self._steps.values(), torch.cuda.Stream(model.device))
                width = len(self._steps[num_slots].drawn)
                self._ring = [
                    (torch.empty(width, dtype=torch.int32, device="cpu", pin_memory=True), torch.cuda.Event())
                    for _ in range(STEPS_AHEAD)
                ]

    @property
    def in_flight(self) -> int:
        return len(self._in_flight)

    @property
    def max_ahead(self) -> int:
        """The maximum of `in_flight`."""
        return STEPS_AHEAD if self._is_cuda else 1

    def write_pages(self, entries: Sequence[tuple[int, int, int]]) -> None:
        """Write entries (slot, index, page) of the page table; the last one of a slot and index counts."""
        if entries:
            last = {(slot, index): page for slot, index, page in entries}
            slots, indices = torch.tensor(list(last), dtype=torch.int64, device=self._model.device).T
            pages = torch.tensor(list(last.values()), dtype=torch.int32, device=self._model.device)
            self.cache.page_table[slots, indices] = pages

    def begin(self, rows: Sequence[DecodeRow]) -> None:
        """Set the sequences whose frames the next steps draw; no step is in flight.

        Args:
            rows: sequences in different slots, active in the sampler.
        """
        self._num_rows = len(rows)
        size = 1 << (len(rows) - 1).bit_length() if self._is_cuda else len(rows)
        if size not in self._steps:
            self._steps[size] = CapturedStep(self._model, self.cache, self.sampler, size)
        self._step = self._steps[size]
        self._step.begin(rows, self._padding)

    def launch(self) -> None:
        """Launch a step; on the CPU, compute it."""
        self._step.run()
        if self._is_cuda:
            # Steps are read in the order of their launches, so the least recently used entry is free.
            copy, event = entry = self._ring.pop(0)
            copy[: len(self._step.drawn)].copy_(self._step.drawn, non_blocking=True)
            event.record()
            self._ring.append(entry)
            self._in_flight.append(entry)
        else:
            self._in_flight.append((self._step.drawn, None))

    def read(self) -> list[DrawnFrame]:
        """Wait for the oldest step in flight; return the frame of each row."""
        drawn, event = self._in_flight.popleft()
        if event is not None:
            event.synchronize()
        values, width = drawn.tolist(), self._model.config.num_codebooks
        active = self._step.num_rows * width
        return [
            DrawnFrame(tuple(values[row * width : (row + 1) * width]), bool(values[active + row]))
            for row in range(self._num_rows)
        ]

    def warm_up(self) -> None:
        """Run a prompt in the first pages, which no sequence may hold yet.

        CUDA loads a kernel when it first runs, and prompts of many rows have kernels that no frame uses.
        """
        model = self._model
        count = min(_WARM_UP_ROWS, model.max_cache_length // 2)
        self.write_pages([(0, index, index) for index in range(pages_for(2 * count))])
        frames = torch.zeros(model.config.num_codebooks, count, dtype=torch.int32, device="cpu")
        states = model.forward(Batch.text_then_audio([([0] * count, frames)], model.device), self.cache)
        model.audio_logits(states[-1:])
        if model.text_head is not None:
            model.text_logits(states[-1:])
