"""Audio frames of several sequences, one after the other: embed, layers, audio head, draw, advance.

Everything that a frame depends on stays on the device: the codes that it begins with, positions, the delay pattern's
state, and the random numbers' counters. On a GPU a frame is one captured CUDA graph for each number of rows (1, 2, 4,
8, ...), launched some frames ahead of the host, which reads finished frames behind it from pinned memory. A frame of a
sequence that has ended changes nothing.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from higgs_native.generation.sampler import SamplerState
from higgs_native.model.batch import Batch
from higgs_native.model.kv_cache import KVCache
from higgs_native.model.transformer import LanguageModel
from higgs_native.ops.device import CAPTURING
from higgs_native.ops.sampling import StateField


_FRAMES_AHEAD = 4
"""Frames that a GPU may be ahead of the host."""
_MIN_LENGTH, _MIN_HISTORY = 1024, 64
"""Of the caches of loops on a GPU: longer ones have lengths of powers of two, so that few differ."""
_MOST_IDLE = 2
"""Loops on a GPU that are kept for requests to come."""

Deliver = Callable[[torch.Tensor, list[int]], bool]


@dataclass(frozen=True)
class DecodeRow:
    """A sequence whose next frame is to be drawn.

    Attributes:
        slot: of the cache and the sampler.
        position: of `codes` in the sequence.
        codes: [codebooks], integers: its last frame, delayed.
    """

    slot: int
    position: int
    codes: torch.Tensor


class CapturedStep:
    """The tensors of a frame of `num_rows` rows, and the work on them."""

    def __init__(self, model: LanguageModel, cache: KVCache, sampler: SamplerState, num_rows: int) -> None:
        self._model, self._cache, self._sampler = model, cache, sampler
        config, int32 = model.config, {"dtype": torch.int32, "device": model.device}
        nothing = torch.zeros(0, **int32)
        self._shape = num_rows, config.num_codebooks
        # The codes of all rows, then for each whether its sequence goes on.
        self.drawn = torch.zeros(num_rows * (config.num_codebooks + 1), **int32)
        codes, self._active = self.split(self.drawn)
        self._rows = Batch(
            token_ids=nothing,
            codes=codes,
            slots=torch.arange(num_rows, **int32),
            positions=torch.zeros(num_rows, **int32),
            text_positions=nothing,
        )
        self._buffers = model.new_buffers(num_rows)
        self._logits = torch.empty(num_rows, config.num_codebooks, config.codebook_size, device=model.device)
        self._graph: torch.cuda.CUDAGraph | None = None

    def begin(self, rows: Sequence[DecodeRow]) -> None:
        """Take in the rows to go on from; those left over go to slots of sequences that are over."""
        taken = {row.slot for row in rows}
        spare = [slot for slot in range(self._cache.slots) if slot not in taken]
        # Of a sequence that is over nothing is read before it has been written again. At 0 a row reads one position.
        places = [(row.slot, row.position) for row in rows] + [(slot, 0) for slot in spare]
        places = torch.tensor(places[: len(self._rows.slots)], dtype=torch.int32)
        self._rows.slots.copy_(places[:, 0])
        self._rows.positions.copy_(places[:, 1])
        self._rows.codes[: len(rows)].copy_(torch.stack([row.codes for row in rows]))
        self._sampler.state[spare, StateField.ACTIVE] = 0

    def split(self, drawn: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The codes [rows, codebooks] in `drawn` or a copy of it, and for each row whether its sequence goes on."""
        num_codes = self._shape[0] * self._shape[1]
        return drawn[:num_codes].view(self._shape), drawn[num_codes:]

    def run(self) -> None:
        """Draw a frame: `drawn`."""
        if self._graph is None:
            self._compute()
        else:
            self._graph.replay()

    def capture(self, pool: tuple[int, int]) -> None:
        """Make the frame one CUDA graph, in a memory pool that graphs share since none run at the same time."""
        stream = torch.cuda.Stream(self._model.device)
        stream.wait_stream(torch.cuda.current_stream(self._model.device))
        with torch.cuda.stream(stream):
            self._compute()  # the first run of a kernel may do what a capture can't
        torch.cuda.current_stream(self._model.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on with what is theirs.
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            self._compute()
        self._graph = graph

    def _compute(self) -> None:
        rows = self._rows
        states = self._model.forward(rows, self._cache, self._buffers)
        logits = self._model.audio_logits(states, self._logits)
        self._sampler.sample_audio_frame(logits, rows.slots, out=(rows.codes, self._active, rows.positions))


class ModelRunner:
    """A KV cache and a sampler for some sequences, and the loop that draws their frames.

    Attributes:
        cache: of `slots` sequences.
        sampler: likewise.

    Args:
        model: the language model.
        slots: how many sequences.
        length: positions that a sequence may have.
        history_length: frames that repetition-aware sampling looks back at.
    """

    def __init__(self, model: LanguageModel, slots: int, length: int, history_length: int) -> None:
        self._model = model
        self.cache = model.new_cache(slots, length)
        self.sampler = SamplerState(slots, model.config, history_length, model.device)
        self._frames: dict[int, CapturedStep] = {}
        self._is_cuda = model.device.type == "cuda"
        if self._is_cuda:
            pool = torch.cuda.graph_pool_handle()
            # The largest first: the smaller ones fit into its memory.
            for power in reversed(range(slots.bit_length())):
                self._frames[1 << power] = CapturedStep(model, self.cache, self.sampler, 1 << power)
                self._frames[1 << power].capture(pool)

    def draw(self, rows: Sequence[DecodeRow], limit: int, deliver: Deliver) -> None:
        """Draw up to `limit` frames of each row.

        Args:
            rows: sequences in different slots, active in the sampler. The sequences of all other slots are over.
            limit: no row may pass the cache's end.
            deliver: called with each frame: codes [rows, codebooks], int32, on the CPU, and for each row 1 where its
                sequence goes on, else 0. Once it returns False no more frames are begun, but those that are under way
                still come. Codes of a row that has ended before mean nothing.
        """
        frame = self._frame(len(rows))
        frame.begin(rows)
        if self._is_cuda:
            self._draw_ahead(frame, len(rows), limit, deliver)
            return
        codes, active = (of_rows[: len(rows)] for of_rows in frame.split(frame.drawn))
        for _ in range(limit):
            frame.run()
            if not deliver(codes.clone(), active.tolist()):
                return

    def _draw_ahead(self, frame: CapturedStep, num_rows: int, limit: int, deliver: Deliver) -> None:
        """Draw frames some ahead of those that are delivered."""
        ring = torch.empty(_FRAMES_AHEAD, len(frame.drawn), dtype=torch.int32, pin_memory=True)
        events = [torch.cuda.Event() for _ in range(_FRAMES_AHEAD)]
        begun = read = 0
        goes_on = True
        while True:
            while goes_on and begun < limit and begun - read < _FRAMES_AHEAD:
                frame.run()
                ring[begun % _FRAMES_AHEAD].copy_(frame.drawn, non_blocking=True)
                events[begun % _FRAMES_AHEAD].record()
                begun += 1
            if read == begun:
                return
            events[read % _FRAMES_AHEAD].synchronize()
            codes, active = frame.split(ring[read % _FRAMES_AHEAD].clone())
            read += 1
            goes_on = deliver(codes[:num_rows], active.tolist()[:num_rows]) and goes_on

    def _frame(self, num_rows: int) -> CapturedStep:
        if self._is_cuda:
            return self._frames[1 << (num_rows - 1).bit_length()]
        if num_rows not in self._frames:
            self._frames[num_rows] = CapturedStep(self._model, self.cache, self.sampler, num_rows)
        return self._frames[num_rows]


class RunnerPool:
    """The frame loops of a model. Those on a GPU are kept for the next requests, with their graphs.

    Safe to use from several threads: each request has a loop for itself. A loop stays with the stream that it was made
    on, where a request finds all work of the one before done. On the CPU nothing is kept, so that the model is freed
    with its last reference.
    """

    def __init__(self) -> None:
        self._idle: list[tuple[tuple[int, ...], ModelRunner]] = []
        self._lock = threading.Lock()

    @contextmanager
    def loop(self, model: LanguageModel, slots: int, length: int, history_length: int) -> Iterator[ModelRunner]:
        """Give a loop of the model for `slots` sequences of up to `length` positions, all over."""
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
            loop = self._take(key) or self._make(model, shape)
            try:
                yield loop
            finally:
                loop.sampler.state.zero_()
                with self._lock:
                    self._idle = [*self._idle, (key, loop)][-_MOST_IDLE:]

    @torch.inference_mode()
    def prepare(self, model: LanguageModel, slots: int, length: int) -> None:
        """Capture the graphs that requests of this size will need, now rather than in the first of them."""
        with self.loop(model, slots, length, 1):
            pass

    def _make(self, model: LanguageModel, shape: tuple[int, int, int]) -> ModelRunner:
        with CAPTURING:
            try:
                return ModelRunner(model, *shape)
            except torch.OutOfMemoryError:
                with self._lock:
                    self._idle.clear()
            return ModelRunner(model, *shape)

    def _take(self, key: tuple[int, ...]) -> ModelRunner | None:
        with self._lock:
            for index, (other, loop) in enumerate(self._idle):
                if other == key:
                    del self._idle[index]
                    return loop
            # Whatever is made next may need the memory.
            del self._idle[: len(self._idle) - _MOST_IDLE + 1]
        return None


def _power_of_two(count: int) -> int:
    """The least power of two that is no less."""
    return 1 << (count - 1).bit_length()
