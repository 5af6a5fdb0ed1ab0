"""The engine: requests join and leave at each step, and share its passes over the weights.

A step computes rows of any number of sequences in one forward pass, and draws a frame or a token for each sequence
that has no row left. While all are inside audio and no prompt is computed, the model runner draws frames alone.
All ways to generate are clients of the same engine (`generation.model`).
"""

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from higgs_native.errors import GenerationError, ParameterError
from higgs_native.generation.driver import Driver
from higgs_native.generation.handle import RequestHandle
from higgs_native.generation.sequence import (
    Frame,
    GenerationMode,
    GenerationRequest,
    SequenceState,
    begin_sequence,
)
from higgs_native.generation.steps.model_runner import DecodeRow, ModelRunner
from higgs_native.generation.steps.pages import PagePool
from higgs_native.generation.steps.scheduler import Scheduler, Step
from higgs_native.model.batch import Batch
from higgs_native.model.kv_cache import PAGE_SIZE, pages_for
from higgs_native.model.low_rank import PackedAdapter, RowAdapters
from higgs_native.model.transformer import LanguageModel
from higgs_native.utils.checks import check_instance, check_integer
from higgs_native.utils.uncopyable import Shareable


DEFAULT_SLOTS = 64
DEFAULT_PREFIX_BYTES = 256 << 20
"""2,340 positions of the published size in bfloat16: about seven voices with ten seconds of reference audio each."""
_MAX_SLOTS = 1024
_CPU_MIN_PIECE, _CUDA_MIN_PIECE = 16, 64
_PAGES_AHEAD = 4
"""Pages that a step on a GPU takes in advance: while they last, the host changes nothing that a step reads."""
_REAL_TIME_FRAMES = 8
"""Frames after which it is decided again which streams are urgent."""


@dataclass(frozen=True)
class EngineMetrics:
    """The state of an engine, and totals since it was made.

    Attributes:
        waiting, running: requests.
        finished, aborted, failed: requests that have ended.
        preempted: how often a request has lost its slot for want of pages.
        underruns: how often the playback of a real-time stream had to pause.
        steps, rows: steps, and rows that they computed.
        prompt_rows: the rows among them that belong to prompts.
        prefill_seconds, decode_seconds: time of the steps with rows of prompts, and of the others.
        frames: frames drawn; 25 are a second of audio.
        scheduling_seconds: time in which a step did not compute.
        pages_held, pages: of the cache.
    """

    waiting: int
    running: int
    finished: int
    aborted: int
    failed: int
    preempted: int
    underruns: int
    steps: int
    rows: int
    prompt_rows: int
    prefill_seconds: float
    decode_seconds: float
    frames: int
    scheduling_seconds: float
    pages_held: int
    pages: int


_Sample = Callable[[slice, torch.Tensor], torch.Tensor]


def _sample_at(sample: _Sample, rows: slice, _: slice, slots: torch.Tensor) -> torch.Tensor:
    return sample(rows, slots)


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
        prefix_bytes: the maximum part of it that keeps prefixes of prompts which no running request holds.
        clock: the time in seconds.

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
        position = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * model.dtype.itemsize
        self._page_bytes = position * PAGE_SIZE
        least = pages_for(model.max_cache_length)
        if cache_bytes is not None and cache_bytes < least * self._page_bytes:
            raise ParameterError(
                f"cache_bytes must be at least {least * self._page_bytes} for {model.max_cache_length} positions "
                f"(max_cache_length), got {cache_bytes}"
            )
        self._model: LanguageModel = weakref.proxy(model)
        self._num_slots = num_slots
        self._cache_bytes = cache_bytes
        self._prefix_bytes = 0
        self._clock = clock
        # Both are made for the first request, by `_prepare`.
        self._runner: ModelRunner
        self._scheduler: Scheduler
        self._is_prepared = False
        self._frames_ahead = _PAGES_AHEAD * PAGE_SIZE if model.device.type == "cuda" else 1
        self.prefix_bytes = prefix_bytes

        self._handles: dict[SequenceState, RequestHandle] = {}
        self._members: list[SequenceState] = []  # of the model runner's steps
        self._launches_left = 0
        self._finished = self._aborted = self._failed = 0
        self._steps = self._rows = self._prompt_rows = self._frames = 0
        self._prefill_seconds = self._decode_seconds = self._step_seconds = 0.0

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
        scheduler = self._scheduler if self._is_prepared else None
        computing = self._prefill_seconds + self._decode_seconds
        return EngineMetrics(
            waiting=len(self._incoming) + (scheduler.waiting if scheduler else 0),
            running=len(scheduler.running) if scheduler else 0,
            finished=self._finished,
            aborted=self._aborted,
            failed=self._failed,
            preempted=scheduler.preempted if scheduler else 0,
            underruns=scheduler.underruns if scheduler else 0,
            steps=self._steps,
            rows=self._rows,
            prompt_rows=self._prompt_rows,
            prefill_seconds=self._prefill_seconds,
            decode_seconds=self._decode_seconds,
            frames=self._frames,
            scheduling_seconds=max(self._step_seconds - computing, 0.0),
            pages_held=scheduler.pages.held if scheduler else 0,
            pages=scheduler.pages.num_pages if scheduler else 0,
        )

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
        """End aborted requests now, unless a step is being computed: the one who computes it looks again after it."""
        while self._aborting and self._step_lock.acquire(blocking=False):
            try:
                with self._on_stream():
                    self._prepare()
                    self._accept()
            finally:
                self._step_lock.release()

    # Steps

    def prepare(self) -> None:
        """Allocate the cache, and on a GPU capture all graphs and load all kernels, before the first request."""
        with self._step_lock, self._on_stream():
            is_new = not self._is_prepared
            self._prepare()
            if is_new and self._stream is not None:
                self._runner.warm_up()

    def step(self) -> bool:
        """Compute one step of the requests; return whether any is left."""
        with self._step_lock:
            begin = self._clock()
            try:
                with self._on_stream():
                    self._prepare()
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

    def _prepare(self) -> None:
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
                self._aborted += 1
                self._end(handle)

    def _advance(self) -> None:
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
        self._draw_frame()

    def _decodes(self, sequence: SequenceState) -> bool:
        """Return whether the model runner can do a sequence's next step.

        The graphs that it captures on a GPU hold no adapters, which come and go: a step with one is launched kernel by
        kernel.
        """
        return sequence.decodes and (self._stream is None or sequence.adapter is None)

    def _begin_frames(self, step: Step) -> None:
        """Let the model runner draw the next frames of the step's sequences."""
        self._members = [sequence for sequence, _ in step.pieces]
        frames = min(step.num_frames, *(sequence.steps_left(self._model) for sequence in self._members))
        if any(sequence.request.real_time for sequence in self._members):
            frames = min(frames, _REAL_TIME_FRAMES)
        self._launches_left = frames
        last = [(s, s.rows[-1]) for s in self._members]
        self._runner.begin(
            [DecodeRow(s.slot, s.computed, row, s.adapter) for s, row in last if not isinstance(row, int)]
        )

    def _draw_frame(self) -> None:
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
            # On the CPU, the sampler refuses the logits of all for those of one. A pass of its own tells which.
            self._launches_left = 0
            self._compute(Step(pieces=[(sequence, 1) for sequence in self._members]))
            return
        self._read_frame()
        self._decode_seconds += self._clock() - begin

    def _read_frame(self) -> None:
        frames = self._runner.read()
        now = self._clock()
        self._steps += 1
        for sequence, frame in zip(self._members, frames, strict=True):
            if sequence.finish_reason is not None or sequence.mode is GenerationMode.TEXT:
                continue  # it ended in an earlier step, when this one was in flight
            self._rows += 1
            sequence.computed += 1
            sequence.steps += 1
            if min(frame.codes) < 0:
                self._fail(sequence, "a code")
                continue
            self._add_frame(sequence, frame.codes, now)
            self._end_step(sequence, frame.is_active)

    def _drain(self) -> None:
        """Take the frames of all steps in flight."""
        while self._runner.in_flight:
            self._read_frame()
        self._launches_left = 0

    def _compute(self, step: Step) -> None:
        """Compute pending rows in one pass, and draw for the sequences that have none left."""
        begin = self._clock()
        rows, last = _pending_rows(self._model, step.pieces)
        states = self._model.forward(rows, self._runner.cache)
        self._scheduler.computed(step.pieces)
        drawing = [(sequence, row) for (sequence, _), row in zip(step.pieces, last, strict=True) if row >= 0]
        if drawing:
            self._draw(drawing, states)
        num_rows = len(rows.slots)
        prompt_rows = sum(count for _, count in step.pieces if count > 1)
        seconds = self._clock() - begin
        self._steps += 1
        self._rows += num_rows
        self._prompt_rows += prompt_rows
        if prompt_rows:
            self._prefill_seconds += seconds
            self._scheduler.measured(prompt_rows, seconds)
        else:
            self._decode_seconds += seconds

    def _draw(self, drawing: Sequence[tuple[SequenceState, int]], states: torch.Tensor) -> None:
        """Draw the next frame or token of sequences from the states of their last rows."""
        model, sampler = self._model, self._runner.sampler
        by_mode: dict[GenerationMode, list[tuple[SequenceState, int]]] = {mode: [] for mode in GenerationMode}
        for sequence, row in drawing:
            sequence.steps += 1
            by_mode[sequence.mode].append((sequence, row))
        now = self._clock()
        for sequence, row in by_mode[GenerationMode.AUDIO_INIT]:
            if sequence.output_logits and model.text_head is not None:
                sequence.text_logits.append(model.text_logits(states[row : row + 1], self._adapters([sequence]))[0])
            sequence.mode = GenerationMode.AUDIO_IN_PROGRESS
            self._add_frame(sequence, tuple(sampler.begin_segment(sequence.slot).tolist()), now)
            self._end_step(sequence, True)
        if audio := by_mode[GenerationMode.AUDIO_IN_PROGRESS]:
            self._draw_audio([sequence for sequence, _ in audio], states[[row for _, row in audio]])
        if text := by_mode[GenerationMode.TEXT]:
            self._draw_text([sequence for sequence, _ in text], states[[row for _, row in text]])

    def _draw_audio(self, sequences: Sequence[SequenceState], states: torch.Tensor) -> None:
        sampler = self._runner.sampler
        logits = self._model.audio_logits(states, adapters=self._adapters(sequences))
        frames = self._drawn(sequences, "a code", lambda rows, slots: sampler.sample_audio_frame(logits[rows], slots))
        now = self._clock()
        for row, (sequence, frame) in enumerate(zip(sequences, frames, strict=True)):
            if frame is None:
                continue
            if sequence.output_logits:
                sequence.audio_logits.append(logits[row])
            self._add_frame(sequence, tuple(frame), now)
            self._end_step(sequence, sampler.is_active(sequence.slot))

    def _draw_text(self, sequences: Sequence[SequenceState], states: torch.Tensor) -> None:
        model, sampler = self._model, self._runner.sampler
        logits = model.text_logits(states, self._adapters(sequences))
        steps = torch.tensor([sequence.steps for sequence in sequences], dtype=torch.int32, device=model.device)
        tokens = self._drawn(
            sequences, "a token", lambda rows, slots: sampler.sample_text(logits[rows], slots, steps[rows])
        )
        for row, (sequence, token) in enumerate(zip(sequences, tokens, strict=True)):
            if token is None:
                continue
            if sequence.output_logits:
                sequence.text_logits.append(logits[row])
            sequence.add_token(token)
            self._note_item(sequence, self._clock())
            if token == model.config.audio_out_bos_token_id:
                sequence.mode = GenerationMode.AUDIO_INIT
                sequence.segments.append([])
            elif self._ends_reply(sequence):
                sequence.finish_reason = "stop"
            self._end_step(sequence, True)

    def _adapters(self, sequences: Sequence[SequenceState]) -> RowAdapters | None:
        """Return the adapters of a row of each sequence."""
        return RowAdapters.of([sequence.adapter for sequence in sequences], self._model.device)

    def _drawn(
        self,
        sequences: Sequence[SequenceState],
        name: str,
        sample: _Sample,
    ) -> list[Any]:
        """Sample a list of codes, or a token, for each sequence; None where logits can't be drawn from: it fails."""
        slots = torch.tensor([sequence.slot for sequence in sequences], dtype=torch.int32, device=self._model.device)
        try:
            drawn = sample(slice(None), slots)
        except RuntimeError as error:
            if len(sequences) == 1:
                self._fail(sequences[0], name, error)
                return [None]
            # The sampler has drawn nothing. One by one, the others are drawn.
            return [
                self._drawn([sequence], name, partial(_sample_at, sample, slice(row, row + 1)))[0]
                for row, sequence in enumerate(sequences)
            ]
        lowest = drawn.view(len(sequences), -1).amin(dim=1).tolist()
        for sequence, low in zip(sequences, lowest, strict=True):
            if low < 0:
                self._fail(sequence, name)
        return [None if low < 0 else values for values, low in zip(drawn.tolist(), lowest, strict=True)]

    # The end of a step

    def _add_frame(self, sequence: SequenceState, frame: Frame, now: float) -> None:
        sequence.add_frame(frame)
        self._frames += 1
        self._note_item(sequence, now)

    def _note_item(self, sequence: SequenceState, now: float) -> None:
        """Wake the reader of a sequence's items."""
        handle = self._handles[sequence]
        if handle.first_item_seconds is None:
            handle.first_item_seconds = now - handle.added
        if sequence.request.real_time:
            self._scheduler.drawn(sequence, now)
        if handle.wake is not None:
            handle.wake()

    def _end_step(self, sequence: SequenceState, is_active: bool) -> None:
        """Take the end of an audio segment, of a reply, and of what may be generated."""
        if not is_active:
            next_token = sequence.rules.text_after_audio(self._model)
            sequence.end_audio(self._model, next_token)
            if next_token is not None and self._ends_reply(sequence):
                sequence.finish_reason = "stop"
            self._launches_left = 0
        sequence.end_at_limit(self._model)
        if sequence.finish_reason is not None:
            self._model.verify()
            self._finished += 1
            self._end(self._handles[sequence])

    def _ends_reply(self, sequence: SequenceState) -> bool:
        stop_strings = sequence.request.known_sampling.stop_strings
        return sequence.rules.ends_reply(self._model, sequence.text_ids, stop_strings)

    def _fail(self, sequence: SequenceState, name: str, error: Exception | None = None) -> None:
        """End a request whose logits can't be drawn from; on a GPU, the sampler reports them by values below 0."""
        self._model.verify()
        failure = GenerationError(
            f"{name} can't be drawn: its logits hold a NaN or +inf, exceed float32 when divided by the temperature, "
            "or are all -inf"
        )
        failure.__cause__ = error
        sequence.finish_reason = "aborted"
        self._failed += 1
        self._end(self._handles[sequence], failure)

    def _fail_all(self, error: BaseException) -> None:
        """End all running requests: nobody knows how far the step has come."""
        if not isinstance(error, Exception):
            error = GenerationError(f"the step that computed this request was ended by {type(error).__name__}")
        self._launches_left = 0
        if self._is_prepared:
            while self._runner.in_flight:
                self._runner.read()
        running = [self._handles[sequence] for sequence in self._scheduler.running] if self._is_prepared else []
        for handle in running or [*self._handles.values(), *self._incoming]:
            handle.sequence.finish_reason = "aborted"
            self._failed += 1
            self._end(handle, error)
        self._incoming = deque(handle for handle in self._incoming if not handle.future.done())

    def _end(self, handle: RequestHandle, error: BaseException | None = None) -> None:
        """Free what a request holds, and give its output or its error to whoever waits."""
        self._launches_left = 0
        sequence = handle.sequence
        self._handles.pop(sequence, None)
        if self._is_prepared:
            self._scheduler.remove(sequence)
        if error is not None:
            handle.future.set_exception(error)
        else:
            if sequence.output_logits and self._stream is not None:
                self._stream.synchronize()  # the caller reads the logits on a stream of its own
            with torch.inference_mode(False):  # so that results are ordinary tensors
                handle.future.set_result(sequence.output(self._model))
        if handle.wake is not None:
            handle.wake()

    def _reset_slot(self, sequence: SequenceState) -> None:
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
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 8


def _pending_rows(model: LanguageModel, pieces: Sequence[tuple[SequenceState, int]]) -> tuple[Batch, list[int]]:
    """Gather pending rows, text first; return them and the index of each sequence's last row, -1 if rows are left."""
    ids: list[int] = []
    frames: list[Frame] = []
    text_rows: list[tuple[int, int, int]] = []
    audio_rows: list[tuple[int, int]] = []
    text_adapters: list[PackedAdapter | None] = []
    audio_adapters: list[PackedAdapter | None] = []
    last: list[tuple[bool, int]] = []
    for sequence, count in pieces:
        for position in range(sequence.computed, sequence.computed + count):
            row = sequence.rows[position]
            if isinstance(row, int):
                text_rows.append((sequence.slot, position, sequence.text_computed))
                ids.append(row)
                text_adapters.append(sequence.adapter)
                sequence.text_computed += 1
            else:
                audio_rows.append((sequence.slot, position))
                frames.append(row)
                audio_adapters.append(sequence.adapter)
        is_text = isinstance(row, int)
        is_last = sequence.computed + count == len(sequence.rows)
        last.append((is_text, (len(ids if is_text else frames) - 1) if is_last else -1))

    def int32(values: Sequence[int] | Sequence[Frame]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32, device=model.device)

    rows = [row[:2] for row in text_rows] + audio_rows
    batch = Batch(
        token_ids=int32(ids),
        codes=int32(frames).view(-1, model.config.num_codebooks),
        slots=int32([slot for slot, _ in rows]),
        positions=int32([position for _, position in rows]),
        text_positions=int32([text_position for _, _, text_position in text_rows]),
        adapters=RowAdapters.of(text_adapters + audio_adapters, model.device),
    )
    return batch, [index if is_text or index < 0 else len(ids) + index for is_text, index in last]
