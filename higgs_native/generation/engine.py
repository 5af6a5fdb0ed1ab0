"""The engine: requests join and leave at each step, and share its passes over the weights.

A step computes rows of any number of sequences in one forward pass, and draws a frame or a token for each sequence
whose rows are then all computed. While all sequences draw frames and no prompt is computed, the model runner repeats
one step. All ways to generate are clients of the same engine (`generation.model`).
"""

import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch

from higgs_native.errors import GenerationError, ParameterError
from higgs_native.generation.conventions.behavior import GenerationMode
from higgs_native.generation.driver import Driver
from higgs_native.generation.expansion import begin_sequence
from higgs_native.generation.handle import RequestHandle
from higgs_native.generation.metrics import EngineMetrics
from higgs_native.generation.requests import GenerationRequest
from higgs_native.generation.sequence import SequenceState
from higgs_native.generation.steps.drawing import Drawn, draw
from higgs_native.generation.steps.model_runner import DecodeRow, ModelRunner
from higgs_native.generation.steps.pages import PagePool
from higgs_native.generation.steps.pending_rows import pending_rows
from higgs_native.generation.steps.scheduler import Scheduler, Step
from higgs_native.model.kv_cache import PAGE_SIZE, pages_for
from higgs_native.model.transformer import LanguageModel
from higgs_native.utils.checks import check_instance, check_integer
from higgs_native.utils.memory import physical_memory
from higgs_native.utils.uncopyable import Shareable


DEFAULT_SLOTS = 64
DEFAULT_PREFIX_BYTES = 256 << 20
"""2,340 positions of the published size in bfloat16: about seven voices with ten seconds of reference audio each."""
_MAX_SLOTS = 1024
_CPU_MIN_PIECE, _CUDA_MIN_PIECE = 16, 64
"""Minimum rows of prompts per step (see `Scheduler`)."""
_PAGES_AHEAD = 4
"""Pages that a sequence takes in advance on a GPU. Until they are full, the page table need not change, and captured
steps can be launched ahead of the host."""
_REAL_TIME_FRAMES = 8
"""Maximum frames between two plans while a stream is played: a plan decides which streams are urgent."""


class Engine(Driver, Shareable):
    """Generates requests side by side. Thread-safe.

        handle = model.engine.add(request)
        for item in handle:  # frames and tokens as they are drawn
            ...

    Args:
        model: the language model; it owns the engine, which refers to it weakly.
        num_slots: the maximum number of requests that run at once, a power of two up to 1024.
        cache_bytes: the memory of the KV cache; None: an eighth of the machine's memory or a quarter of the GPU's
            free memory, at most what all slots can use. On the CPU, memory that no request has used is not taken.
        prefix_bytes: the maximum part of `cache_bytes` that keeps prefixes which no running request holds.
        clock: returns the time in seconds.

    Raises:
        ParameterError: a value is out of range, or the memory holds less than one sequence of `max_cache_length`.
    """

    def __init__(
        self,
        model: LanguageModel,
        num_slots: int = DEFAULT_SLOTS,
        cache_bytes: int | None = None,
        prefix_bytes: int = DEFAULT_PREFIX_BYTES,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        super().__init__()
        check_instance("model", model, LanguageModel)
        check_integer("num_slots", num_slots)
        check_integer("cache_bytes", cache_bytes, optional=True)
        if not 1 <= num_slots <= _MAX_SLOTS or num_slots & (num_slots - 1):
            raise ParameterError(f"num_slots must be a power of two up to {_MAX_SLOTS}, got {num_slots}")
        config = model.config
        layer_values = 2 * config.num_key_value_heads * config.head_dim  # a key and a value
        position_bytes = config.num_hidden_layers * layer_values * model.dtype.itemsize
        self._page_bytes = position_bytes * PAGE_SIZE
        min_bytes = pages_for(model.max_cache_length) * self._page_bytes
        if cache_bytes is not None and cache_bytes < min_bytes:
            raise ParameterError(
                f"cache_bytes must be at least {min_bytes} for {model.max_cache_length} positions "
                f"(max_cache_length), got {cache_bytes}"
            )
        self._model: LanguageModel = weakref.proxy(model)
        self._num_slots = num_slots
        self._cache_bytes = cache_bytes
        self._prefix_bytes = 0
        self._clock = clock
        # Both are made for the first request, by `_allocate`.
        self._runner: ModelRunner
        self._scheduler: Scheduler
        self._is_prepared = False
        self._frames_ahead = _PAGES_AHEAD * PAGE_SIZE if model.device.type == "cuda" else 1
        self.prefix_bytes = prefix_bytes

        self._handles: dict[SequenceState, RequestHandle] = {}
        self._members: list[SequenceState] = []  # of the model runner's steps
        self._launches_left = 0  # steps that the model runner may launch before the next one is planned
        self._totals = EngineMetrics()
        self._step_seconds = 0.0

        self._incoming: deque[RequestHandle] = deque()
        self._aborting: deque[RequestHandle] = deque()
        self._step_lock = threading.Lock()
        # Steps are computed by any thread, whatever its current stream is.
        self._stream = torch.cuda.Stream(model.device) if model.device.type == "cuda" else None

    @property
    def prefix_bytes(self) -> int:
        """The maximum memory of kept prefixes; setting a lower one forgets prefixes at once.

        Raises:
            ParameterError: the limit is negative.
        """
        return self._prefix_bytes

    @prefix_bytes.setter
    def prefix_bytes(self, prefix_bytes: int) -> None:
        check_integer("prefix_bytes", prefix_bytes)
        if prefix_bytes < 0:
            raise ParameterError(f"prefix_bytes must be at least 0, got {prefix_bytes}")
        self._prefix_bytes = prefix_bytes
        if self._is_prepared:
            with self._step_lock:
                self._scheduler.pages.max_unused = prefix_bytes // self._page_bytes

    def forget_prefixes(self) -> None:
        """Free the pages of all prefixes that no running request holds."""
        if self._is_prepared:
            with self._step_lock:
                self._scheduler.pages.forget()

    @property
    def metrics(self) -> EngineMetrics:
        """The state and the totals; may be read while requests run."""
        computing = self._totals.prefill_seconds + self._totals.decode_seconds
        metrics = replace(
            self._totals,
            waiting=len(self._incoming),
            scheduling_seconds=max(self._step_seconds - computing, 0.0),
        )
        if self._is_prepared:
            scheduler = self._scheduler
            metrics.waiting += scheduler.waiting
            metrics.running = len(scheduler.running)
            metrics.preempted, metrics.underruns = scheduler.preempted, scheduler.underruns
            metrics.pages_held, metrics.pages = scheduler.pages.held, scheduler.pages.num_pages
        return metrics

    # Requests

    def add(self, request: GenerationRequest, output_logits: bool = False) -> RequestHandle:
        """Check a request, and let it wait for a slot.

        Args:
            request: the prompt, and how to generate after it. Its callbacks are not called.
            output_logits: keep the logits that each step drew from.

        Raises:
            PromptError: the prompt does not fit the model, its references, or the cache.
            ParameterError: the model has no such adapter.
            CheckpointError: text is asked for, and the checkpoint has no text head.
        """
        sequence = begin_sequence(self._model, request)
        sequence.output_logits = output_logits
        handle = RequestHandle(self, self.abort, sequence, self._clock())
        sequence.emit = handle.put
        self._incoming.append(handle)
        self.notify()
        return handle

    def abort(self, handle: RequestHandle) -> None:
        """End a request at the next step; see `RequestHandle.abort`."""
        if handle.future.done():
            return
        self._aborting.append(handle)
        self.notify()
        self.end_turn()

    def end_turn(self) -> None:
        """End aborted requests now. If a step is being computed, its caller or thread calls this again after it."""
        while self._aborting and self._step_lock.acquire(blocking=False):
            try:
                with self._on_stream():
                    self._allocate()
                    self._accept()
            finally:
                self._step_lock.release()

    # Steps

    def prepare(self) -> None:
        """Allocate the cache, and on a GPU capture all graphs and load all kernels, before the first request."""
        with self._step_lock, self._on_stream():
            is_new = not self._is_prepared
            self._allocate()
            if is_new and self._stream is not None:
                self._runner.warm_up()

    def step(self) -> bool:
        """Compute one step of the requests; return whether any is left."""
        with self._step_lock:
            begin = self._clock()
            try:
                with self._on_stream():
                    self._allocate()
                    self._accept()
                    self._advance()
            except BaseException as error:
                self._fail_all(error)
                if not isinstance(error, Exception):
                    raise
            self._step_seconds += self._clock() - begin
            return bool(self._handles)

    @contextmanager
    def _on_stream(self) -> Iterator[None]:
        """Compute without autograd, and on a GPU on the engine's stream."""
        with torch.inference_mode():
            if self._stream is None:
                yield
                return
            with torch.cuda.stream(self._stream):
                yield

    def _allocate(self) -> None:
        """Allocate the cache and the sampler, once."""
        if self._is_prepared:
            return
        model = self._model
        limit = pages_for(model.max_cache_length)
        num_bytes = _default_cache_bytes(model.device) if self._cache_bytes is None else self._cache_bytes
        num_pages = min(max(num_bytes // self._page_bytes, limit), self._num_slots * limit)
        self._runner = ModelRunner(model, self._num_slots, num_pages)
        self._scheduler = Scheduler(
            self._num_slots,
            PagePool(num_pages, self._prefix_bytes // self._page_bytes),
            limit,
            _CPU_MIN_PIECE if self._stream is None else _CUDA_MIN_PIECE,
            self._clock,
        )
        self._is_prepared = True

    def _accept(self) -> None:
        """Take in new requests, and end aborted ones."""
        if not self._incoming and not self._aborting:
            return
        self._drain()
        while self._incoming:
            handle = self._incoming.popleft()
            self._scheduler.add(handle.sequence)
            self._handles[handle.sequence] = handle
        while self._aborting:
            handle = self._aborting.popleft()
            if not handle.future.done():
                handle.sequence.finish_reason = "aborted"
                self._totals.aborted += 1
                self._end(handle)

    def _advance(self) -> None:
        """Compute one step: launch the model runner again for the same sequences, or plan the next step."""
        if not self._launches_left:
            self._drain()
            step = self._scheduler.plan(self._frames_ahead)
            self._runner.write_pages(step.new_pages)
            for sequence in step.admitted:
                self._reset_slot(sequence)
            if not step.pieces:
                return
            if not all(self._decodes(sequence) for sequence, _ in step.pieces):
                self._compute(step)
                return
            self._begin_frames(step)
        self._draw_frames()

    def _decodes(self, sequence: SequenceState) -> bool:
        """Return whether the model runner can draw a sequence's next frame.

        The graphs that it captures on a GPU hold no adapters, which come and go: a step with one is launched kernel by
        kernel.
        """
        return sequence.decodes and (self._stream is None or sequence.adapter is None)

    def _begin_frames(self, step: Step) -> None:
        """Let the model runner draw the next frames of the step's sequences."""
        self._members = [sequence for sequence, _ in step.pieces]
        frames = min(step.num_frames, *(sequence.steps_left(self._model) for sequence in self._members))
        if any(sequence.request.playback for sequence in self._members):
            frames = min(frames, _REAL_TIME_FRAMES)
        self._launches_left = frames
        last = [(s, s.rows[-1]) for s in self._members]
        self._runner.begin(
            [DecodeRow(s.slot, s.computed, row, s.adapter) for s, row in last if not isinstance(row, int)]
        )

    def _draw_frames(self) -> None:
        """Launch the next steps of the model runner, and take the oldest one's frames."""
        runner = self._runner
        begin = self._clock()
        try:
            while self._launches_left and runner.in_flight < runner.max_ahead:
                runner.launch()
                self._launches_left -= 1
        except RuntimeError:
            if self._stream is not None:
                raise
            # On the CPU, the sampler raises if one row's logits can't be drawn from, and has then drawn none.
            # `_compute` finds that row, and draws for the others.
            self._launches_left = 0
            self._compute(Step(pieces=[(sequence, 1) for sequence in self._members]))
            return
        self._read_frames()
        self._totals.decode_seconds += self._clock() - begin

    def _read_frames(self) -> None:
        """Take the frames of the oldest step in flight."""
        drawn = []
        for sequence, frame in zip(self._members, self._runner.read(), strict=True):
            if sequence.finish_reason is not None or sequence.mode is GenerationMode.TEXT:
                continue  # its audio ended in an earlier step, when this one was in flight
            sequence.computed += 1
            sequence.steps += 1
            codes = None if min(frame.codes) < 0 else frame.codes
            drawn.append(Drawn(sequence, codes, frame.is_active))
        self._totals.steps += 1
        self._totals.rows += len(drawn)
        self._take(drawn)

    def _drain(self) -> None:
        """Take the frames of all steps in flight."""
        while self._runner.in_flight:
            self._read_frames()
        self._launches_left = 0

    def _compute(self, step: Step) -> None:
        """Compute pending rows in one forward pass, and draw for the sequences that have none left."""
        begin = self._clock()
        rows, last = pending_rows(self._model, step.pieces)
        states = self._model.forward(rows, self._runner.cache)
        self._scheduler.computed(step.pieces)
        drawing = [(sequence, row) for (sequence, _), row in zip(step.pieces, last, strict=True) if row >= 0]
        if drawing:
            self._take(list(draw(self._model, self._runner.sampler, drawing, states)))
        num_rows = len(rows.slots)
        prompt_rows = sum(count for _, count in step.pieces if count > 1)
        seconds = self._clock() - begin
        self._totals.steps += 1
        self._totals.rows += num_rows
        self._totals.prompt_rows += prompt_rows
        if prompt_rows:
            self._totals.prefill_seconds += seconds
            self._scheduler.measured(prompt_rows, seconds)
        else:
            self._totals.decode_seconds += seconds

    # The end of a step

    def _take(self, drawn: Sequence[Drawn]) -> None:
        """Append what a step has drawn to its sequences, and end those that it ends."""
        now = self._clock()
        for sequence, item, is_active, error in drawn:
            if item is None:
                self._fail(sequence, error)
                continue
            if isinstance(item, int):
                sequence.add_token(self._model, item)
            else:
                sequence.add_frame(item)
                self._totals.frames += 1
            self._note_item(sequence, now)
            self._end_step(sequence, is_active)

    def _note_item(self, sequence: SequenceState, now: float) -> None:
        """Record the time of a sequence's new item, and wake its waiters."""
        handle = self._handles[sequence]
        if handle.first_item_seconds is None:
            handle.first_item_seconds = now - handle.added
        if sequence.request.playback is not None:
            self._scheduler.drawn(sequence, now)
        if handle.wake is not None:
            handle.wake()

    def _end_step(self, sequence: SequenceState, is_active: bool) -> None:
        """End the sequence's audio segment if the item ended it, and the request at its end or limit."""
        if not is_active:
            sequence.end_audio(self._model)
            self._launches_left = 0
        sequence.end_at_limit(self._model)
        if sequence.finish_reason is not None:
            self._model.verify()
            self._totals.finished += 1
            self._end(self._handles[sequence])

    def _fail(self, sequence: SequenceState, error: Exception | None = None) -> None:
        """End a request whose logits can't be drawn from."""
        name = "a token" if sequence.mode is GenerationMode.TEXT else "a code"
        self._model.verify()
        failure = GenerationError(
            f"{name} can't be drawn: its logits hold a NaN or +inf, exceed float32 when divided by the temperature, "
            "or are all -inf"
        )
        failure.__cause__ = error
        sequence.finish_reason = "aborted"
        self._totals.failed += 1
        self._end(self._handles[sequence], failure)

    def _fail_all(self, error: BaseException) -> None:
        """End all running requests after an error within a step: the state of their sequences is unknown."""
        if not isinstance(error, Exception):
            error = GenerationError(f"the step that computed this request was ended by {type(error).__name__}")
        self._launches_left = 0
        if self._is_prepared:
            while self._runner.in_flight:
                self._runner.read()
        running = [self._handles[sequence] for sequence in self._scheduler.running] if self._is_prepared else []
        for handle in running or [*self._handles.values(), *self._incoming]:
            handle.sequence.finish_reason = "aborted"
            self._totals.failed += 1
            self._end(handle, error)
        self._incoming = deque(handle for handle in self._incoming if not handle.future.done())

    def _end(self, handle: RequestHandle, error: BaseException | None = None) -> None:
        """Free the slot and pages of a request, and set its output or its error."""
        self._launches_left = 0
        sequence = handle.sequence
        self._handles.pop(sequence, None)
        if self._is_prepared:
            self._scheduler.remove(sequence)
        if error is not None:
            handle.future.set_exception(error)
        else:
            if sequence.output_logits and self._stream is not None:
                self._stream.synchronize()  # the caller reads the logits on another stream
            with torch.inference_mode(False):  # so that results are ordinary tensors
                handle.future.set_result(sequence.output(self._model))
        if handle.wake is not None:
            handle.wake()

    def _reset_slot(self, sequence: SequenceState) -> None:
        """Set the sampler's tensors to the state of a sequence that has got a slot."""
        is_resumed = sequence.mode is GenerationMode.AUDIO_IN_PROGRESS
        self._runner.sampler.reset_slot(
            sequence.slot,
            sequence.request.known_convention,
            sequence.request.known_sampling,
            frames=sequence.history,
            prompt_ids=sequence.prompt_ids,
            num_resumed=len(sequence.segments[-1]) if is_resumed else 0,
            num_drawn=sum(map(len, sequence.segments)),
        )


def _default_cache_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // 4
    return physical_memory() // 8
