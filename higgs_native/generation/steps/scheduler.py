"""The scheduler: which requests have a slot, which pages they hold, and which rows the next step computes.

Requests wait by priority, then by arrival. A request gets a slot when its prompt is the next to be computed and its
pages are available. Prompts are computed in pieces between frames.

A stream is a request whose audio is played while it is generated. Its slack is the time that its next frame can wait:
the audio that is generated and not played yet, and 0 before the first. The smallest slack bounds the rows of a piece,
and streams with little slack go first.

If pages run out, the request with the lowest priority (of several, the last to arrive) loses its slot, and is computed
again later.
"""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from higgs_native.generation.requests import Playback
from higgs_native.generation.sequence import SequenceState
from higgs_native.generation.steps.pages import PagePool
from higgs_native.model.kv_cache import PAGE_SIZE, pages_for


FRAME_SECONDS = 0.04
MAX_PROMPT_ROWS = 512
"""Maximum rows of prompts in a step: more rows compute no faster, and take memory."""
_URGENT_SECONDS, _AHEAD_SECONDS = 0.2, 0.6
"""While a stream has less slack than `_URGENT_SECONDS`, requests with more than `_AHEAD_SECONDS` pause."""
_MAX_PAUSED_STEPS = 8
"""Steps after which paused requests get one."""
_LONGEST_STEP = FRAME_SECONDS / 4
"""Assumed seconds per step, for a stream that needs several frames before it can play on."""


class _Listener:
    """The listener of a stream, who plays each frame as soon as it can be played.

    Args:
        playback: of the stream's request.
        now: the time when the request was added.

    Attributes:
        underruns: how often the playback had to pause.
    """

    def __init__(self, playback: Playback, now: float) -> None:
        self.underruns = 0
        self._missing = playback.lag + playback.first  # frames until the first chunk can be played
        self._first = playback.first
        # The time at which all audio so far has been played; None before the first.
        self._end = now + playback.ahead if playback.ahead else None

    def slack(self, now: float) -> float | None:
        """Return the seconds that the stream's next frame can wait; None before the playback begins."""
        return None if self._end is None else self._end - self._missing * _LONGEST_STEP - now

    def take(self, now: float) -> None:
        """Count a frame that was drawn."""
        if self._missing:
            self._missing -= 1
            if self._missing:
                return
        new = FRAME_SECONDS * self._first
        self._first = 1
        if self._end is not None and now > self._end:
            self.underruns += 1
        self._end = max(now, self._end or now) + new


@dataclass
class Step:
    """The work of the next step.

    Attributes:
        pieces: sequences, and how many of their pending rows are computed.
        new_pages: entries (slot, index, page) to write into the page table before the step.
        admitted: sequences that got their slot in this step.
        num_frames: if the step draws one frame per sequence, the number of such steps that fit their pages.
    """

    pieces: list[tuple[SequenceState, int]] = field(default_factory=list)
    new_pages: list[tuple[int, int, int]] = field(default_factory=list)
    admitted: list[SequenceState] = field(default_factory=list)
    num_frames: int = 0


class Scheduler:
    """Slots and pages of requests. Not thread-safe: the engine calls it between steps.

    Args:
        num_slots: the maximum number of running requests.
        pages: the pages of the cache; they hold at least one sequence of `max_length` positions.
        max_pages: the maximum number of pages of a sequence.
        min_piece: rows of prompts that a step computes even if no stream can wait.
        clock: returns the time in seconds.

    Attributes:
        waiting: the number of requests without a slot.
        running: the requests with a slot, the first admitted first.
        preempted: how often a request has lost its slot.
        underruns: how often the playback of a stream had to pause.
    """

    def __init__(
        self, num_slots: int, pages: PagePool, max_pages: int, min_piece: int, clock: Callable[[], float]
    ) -> None:
        self.pages = pages
        self.running: list[SequenceState] = []
        self.preempted = self.underruns = 0
        self._waiting: list[tuple[int, int, SequenceState]] = []
        self._arrivals = 0
        self._order: dict[SequenceState, int] = {}
        self._free_slots = list(range(num_slots))[::-1]
        self._max_pages = max_pages
        self._min_piece = min_piece
        self._clock = clock
        self._listeners: dict[SequenceState, _Listener] = {}
        self._computing: set[bytes] = set()
        self._paused_steps = 0
        self._row_seconds = 0.0  # estimated time per row of a prompt

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def add(self, sequence: SequenceState) -> None:
        """Add a request to the waiting ones."""
        self._order[sequence] = self._arrivals
        self._arrivals += 1
        if sequence.request.playback is not None:
            self._listeners[sequence] = _Listener(sequence.request.playback, self._clock())
        heapq.heappush(self._waiting, (-sequence.request.priority, self._order[sequence], sequence))

    def remove(self, sequence: SequenceState) -> None:
        """Remove a request that has ended."""
        if sequence in self.running:
            self._release(sequence)
        else:
            self._waiting = [entry for entry in self._waiting if entry[2] is not sequence]
            heapq.heapify(self._waiting)
        self._order.pop(sequence, None)
        self._listeners.pop(sequence, None)

    def plan(self, num_ahead: int = 1) -> Step:
        """Return the next step; its rows count as computed only after `computed`.

        Args:
            num_ahead: frames that the pages of each sequence should have room for; one frame is guaranteed.
        """
        step = Step()
        now = self._clock()
        ready = [sequence for sequence in self.running if sequence.num_pending == 1]
        for sequence in self._urgent(ready, now):
            if sequence in self.running and self._grow(step, sequence, num_ahead):
                step.pieces.append((sequence, 1))
        step.pieces = [(sequence, count) for sequence, count in step.pieces if sequence.slot >= 0]
        budget = self._prompt_rows(now)
        for sequence in self.running:
            pending = sequence.num_pending
            if budget > 0 and pending > 1:
                step.pieces.append((sequence, min(pending, budget)))
                budget -= pending
        while budget > 0 and self._waiting and self._free_slots and self._admit(step):
            sequence = step.admitted[-1]
            step.pieces.append((sequence, min(sequence.num_pending, budget)))
            budget -= sequence.num_pending
        if step.pieces:
            step.num_frames = min(len(sequence.pages) * PAGE_SIZE - sequence.computed for sequence, _ in step.pieces)
        return step

    def computed(self, pieces: Sequence[tuple[SequenceState, int]]) -> None:
        """Count rows as computed, and let later prompts share the whole pages among them."""
        for sequence, count in pieces:
            before = sequence.computed
            sequence.computed += count
            keys = sequence.page_keys
            if before < len(keys) * PAGE_SIZE:
                for index in range(before // PAGE_SIZE, min(sequence.computed // PAGE_SIZE, len(keys))):
                    self.pages.know(keys[index], sequence.pages[index])
                    self._computing.discard(keys[index])

    def drawn(self, sequence: SequenceState, now: float) -> None:
        """Count a drawn frame of a stream."""
        listener = self._listeners[sequence]
        before = listener.underruns
        listener.take(now)
        self.underruns += listener.underruns - before

    def measured(self, num_rows: int, seconds: float) -> None:
        """Update the estimated time per row from a step that computed `num_rows` rows of prompts."""
        row = seconds / num_rows
        self._row_seconds = row if not self._row_seconds else 0.7 * self._row_seconds + 0.3 * row

    def _urgent(self, ready: list[SequenceState], now: float) -> list[SequenceState]:
        """Return the requests whose next frame is drawn now: all, unless a stream needs its next audio soon."""
        if not any(sequence in self._listeners for sequence in ready):
            return ready
        slacks = [
            (self._listeners[sequence].slack(now) or 0.0) if sequence in self._listeners else float("inf")
            for sequence in ready
        ]
        if min(slacks) >= _URGENT_SECONDS or max(slacks) <= _AHEAD_SECONDS or self._paused_steps == _MAX_PAUSED_STEPS:
            self._paused_steps = 0
            return ready
        self._paused_steps += 1
        return [sequence for sequence, slack in zip(ready, slacks, strict=True) if slack <= _AHEAD_SECONDS]

    def _prompt_rows(self, now: float) -> int:
        """Return how many rows of prompts the next step may compute while the streams wait.

        A stream before its first audio counts as one with `_URGENT_SECONDS`: the prompts wait for first audio, too.
        """
        slacks = [
            self._listeners[sequence].slack(now)
            for sequence in self.running
            if sequence in self._listeners and sequence.num_pending == 1
        ]
        if not slacks:
            return MAX_PROMPT_ROWS
        if not self._row_seconds:
            return self._min_piece
        # Half of the slack: the step also has the streams' own rows.
        shortest = min(_URGENT_SECONDS if slack is None else slack for slack in slacks)
        rows = int(shortest / 2 / self._row_seconds)
        return max(self._min_piece, min(rows, MAX_PROMPT_ROWS))

    def _admit(self, step: Step) -> bool:
        """Give the first waiting request a slot and pages; return False if it must wait."""
        sequence = self._waiting[0][2]
        keys = sequence.page_keys
        num_known = self.pages.num_known(keys)
        if num_known < len(keys) and keys[num_known] in self._computing:
            return False  # another sequence computes the next page of the same prefix
        needed = pages_for(len(sequence.rows)) - num_known
        # One page per running sequence stays available, so that the next frames preempt nobody.
        if needed + len(self.running) > self.pages.available - self.pages.num_unused(keys[:num_known]):
            return False
        heapq.heappop(self._waiting)
        sequence.slot = self._free_slots.pop()
        sequence.pages = self.pages.share(keys[:num_known])
        sequence.pages += self.pages.take(needed)
        sequence.computed = num_known * PAGE_SIZE
        sequence.text_computed = sum(isinstance(row, int) for row in sequence.rows[: sequence.computed])
        if not sequence.steps:
            sequence.cached_tokens = sequence.computed
        self._computing.update(keys[num_known:])
        step.new_pages += [(sequence.slot, index, page) for index, page in enumerate(sequence.pages)]
        step.admitted.append(sequence)
        self.running.append(sequence)
        return True

    def _grow(self, step: Step, sequence: SequenceState, num_ahead: int) -> bool:
        """Give a sequence the pages of its next frames; return False if it has lost its slot for them."""
        while sequence.slot >= 0:
            # One page at least; further ones only while there are enough.
            missing = pages_for(len(sequence.rows)) - len(sequence.pages)
            if missing <= self.pages.available:
                ahead = min(pages_for(len(sequence.rows) - 1 + num_ahead), self._max_pages) - len(sequence.pages)
                pages = self.pages.take(max(missing, min(ahead, self.pages.available), 0))
                first = len(sequence.pages)
                step.new_pages += [(sequence.slot, first + index, page) for index, page in enumerate(pages)]
                sequence.pages += pages
                return True
            self._preempt()
        return False

    def _preempt(self) -> None:
        """Take the slot of the running request of lowest priority; of several, that of the last to arrive."""
        sequence = max(self.running, key=lambda sequence: (-sequence.request.priority, self._order[sequence]))
        self._release(sequence)
        sequence.computed = sequence.text_computed = 0
        self.preempted += 1
        heapq.heappush(self._waiting, (-sequence.request.priority, self._order[sequence], sequence))

    def _release(self, sequence: SequenceState) -> None:
        self.running.remove(sequence)
        self._computing.difference_update(sequence.page_keys[sequence.computed // PAGE_SIZE :])
        self._free_slots.append(sequence.slot)
        self.pages.release(sequence.pages)
        sequence.pages, sequence.slot = [], -1
