"""Speaking chunks side by side: each is a request to the engine, and again one if it fails."""

from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace

import torch

from higgs_native.errors import GenerationError
from higgs_native.generation.handle import RequestHandle
from higgs_native.generation.requests import GenerationOutput, OnFrame
from higgs_native.generation.sampling_params import SamplingParams
from higgs_native.long_form.chunk_store import Attempt, ChunkStore
from higgs_native.long_form.chunking import TextChunk
from higgs_native.long_form.joining import trim_silence
from higgs_native.pipeline import HiggsAudio
from higgs_native.prompt.messages import Message
from higgs_native.prompt.pace import spoken_seconds
from higgs_native.speech import Speech


@dataclass(eq=False)
class _Job:
    """A chunk that is being spoken.

    Attributes:
        index: of the chunk.
        text: to speak.
        messages: the prompt.
        sampling: of the first attempt; each further one adds 1 to the seed.
        on_frame: counts the frames of the current attempt.
        attempts, speeches: that have ended.
    """

    index: int
    text: TextChunk
    messages: list[Message]
    sampling: SamplingParams
    on_frame: OnFrame = lambda frame: None
    attempts: list[Attempt] = field(default_factory=list)
    speeches: list[Speech] = field(default_factory=list)


class ChunkSpeaker:
    """Speaks chunks, and stores each when it is finished.

    `wait` computes the engine's steps in the calling thread. A thread beside it decodes, checks and stores.

    Args:
        engine: speaks the chunks.
        store: keeps them.
        max_retries: how often a failed chunk is spoken again, each time with the next seed.
        on_progress: called by `wait` after every frame with the seconds of audio of its attempt.
        is_cancelled: whether nobody waits for chunks any more; asked after every step, maybe by another thread.
        adapter: of all requests.
    """

    def __init__(
        self,
        engine: HiggsAudio,
        store: ChunkStore,
        max_retries: int,
        on_progress: Callable[[float], None] | None = None,
        is_cancelled: Callable[[], bool] | None = None,
        adapter: str | None = None,
    ) -> None:
        self._engine = engine
        self._store = store
        self._max_retries = max_retries
        self._on_progress = on_progress
        self._is_cancelled = is_cancelled or (lambda: False)
        self._adapter = adapter
        self._generating: dict[RequestHandle, _Job] = {}
        self._decoding: dict[Future[bool], _Job] = {}
        # One thread is enough: decoding takes a fraction of the time of generation.
        self._decoder = ThreadPoolExecutor(1, "higgs-native-decoder")

    @property
    def indices(self) -> set[int]:
        """The chunks that are being spoken."""
        return {job.index for jobs in (self._generating, self._decoding) for job in jobs.values()}

    def begin(self, index: int, text: TextChunk, messages: list[Message], sampling: SamplingParams) -> None:
        """Let the engine speak a chunk.

        Args:
            index: of the chunk.
            text: to speak.
            messages: its prompt.
            sampling: of its first attempt.
        """
        self._add(_Job(index, text, messages, sampling))

    def wait(self) -> set[int]:
        """Speak until a chunk is finished and stored; return the indices of those that are.

        Raises:
            GenerationError: a chunk can't be generated, or the speech was cancelled.
            ParameterError: the store's folder can't be written to.
        """
        finished: set[int] = set()
        while not finished:
            if self._generating:
                self._engine.model.engine.drive(self._is_ready)
            else:
                wait(self._decoding, return_when=FIRST_COMPLETED)
            if self._is_cancelled():
                raise GenerationError("the speech was cancelled")
            for handle, job in list(self._generating.items()):
                self._take(handle, job)
            for future in [future for future in self._decoding if future.done()]:
                job = self._decoding.pop(future)
                if future.result():
                    finished.add(job.index)
                else:
                    self._add(job)
        return finished

    def close(self) -> None:
        """End all requests; wait until what they have generated to the end is stored."""
        for handle in self._generating:
            handle.abort()
        self._decoder.shutdown()

    def _add(self, job: _Job) -> None:
        """Add the request of a job's next attempt."""
        sampling = replace(job.sampling, seed=(job.sampling.known_seed + len(job.attempts)) % 2**64)
        if self._on_progress is not None:
            job.on_frame = self._engine.frame_counter(self._on_progress)
        request = self._engine.prepare_request(job.messages, True, sampling, adapter=self._adapter)()
        self._generating[self._engine.model.engine.add(request)] = job

    def _is_ready(self) -> bool:
        """Return whether an attempt has ended or, if they are counted, frames have been drawn, or all is cancelled."""
        if self._is_cancelled() or any(future.done() for future in self._decoding):
            return True
        if self._on_progress is None:
            return any(handle.future.done() for handle in self._generating)
        return any(handle.is_ready for handle in self._generating)

    def _take(self, handle: RequestHandle, job: _Job) -> None:
        """Count the frames of a request, and decode its output at the end."""
        has_ended = handle.future.done()  # first, since frames come until then
        for item in handle.take() if self._on_progress is not None else ():
            if isinstance(item, torch.Tensor):
                job.on_frame(item)
        if has_ended:
            del self._generating[handle]
            self._decoding[self._decoder.submit(self._finish, job, handle.future.result())] = job

    def _finish(self, job: _Job, output: GenerationOutput) -> bool:
        """Decode an attempt; store the best one and return True, or return False if another one is needed."""
        speech = self._engine.speech(output)
        seed = (job.sampling.known_seed + len(job.attempts)) % 2**64
        attempts, speeches = job.attempts, job.speeches
        attempts.append(Attempt(seed, speech.duration, self._engine.failures(speech, job.text.text)))
        speeches.append(speech)
        # Greedy attempts are alike: another seed changes nothing.
        is_same = len(speeches) > 1 and torch.equal(speech.codes, speeches[-2].codes)
        if attempts[-1].failures and not is_same and len(attempts) <= self._max_retries:
            return False
        expected = spoken_seconds(job.text.text)
        ranks = [(len(attempt.failures), abs(attempt.duration - expected)) for attempt in attempts]
        kept = ranks.index(min(ranks))
        best = speeches[kept]
        audio = trim_silence(best.audio, best.sampling_rate)
        self._store.store(job.index, job.text, audio, best.sampling_rate, best.codes, kept, attempts)
        return True
