"""The service behind all protocols: speech waits for its turn, is generated, encoded and counted."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, closing, contextmanager
from dataclasses import dataclass

from anyio.to_thread import run_sync

from higgs_native.convention import Convention
from higgs_native.errors import ParameterError
from higgs_native.pipeline import HiggsAudio
from higgs_native.server.observing import Metrics, log
from higgs_native.server.settings import ServerSettings
from higgs_native.server.speech.admission import Admission, Refused
from higgs_native.server.speech.encoder import AudioEncoder
from higgs_native.server.speech.holder import EngineHolder
from higgs_native.server.speech.schema import ApiError
from higgs_native.server.speech.speaking import Speaker, Utterance
from higgs_native.server.speech.voices import VoiceStore


def _model_name(engine: HiggsAudio) -> str:
    if engine.is_embedded_voice:
        return "Embedded voice"
    if engine.convention is Convention.HIGGS_TTS_3:
        return "Higgs TTS 3 (license: research and non-commercial use)"
    return "Higgs Audio V2"


class SpeechService:
    """The state that the routes of one server share.

    Args:
        engine: speaks.
        settings: of the server.
        load: returns the engine again after its release; needed if the settings release it.

    Raises:
        ParameterError: it is needed and missing.

    Attributes:
        model_name: of the model, for people; where its license forbids uses, with what it allows.
        languages: that it speaks, by their codes. Those of Higgs TTS 3, over a hundred, are not listed anywhere: it
            has those of Higgs Audio V2.
        settings, engines, voices, admission, metrics, speaker: see their classes.
        sessions: the number of open WebSockets.
    """

    def __init__(
        self, engine: HiggsAudio, settings: ServerSettings, load: Callable[[], HiggsAudio] | None = None
    ) -> None:
        if settings.unload_seconds is not None and load is None:
            raise ParameterError(
                f"unload_seconds must be None if the model can't be loaded again, got {settings.unload_seconds}"
            )
        self.model_name = _model_name(engine)
        self.languages = ("en",) if engine.is_embedded_voice else ("en", "zh", "de", "ko")  # as on the model's card
        model_id = settings.model_id or self.model_name.split(" (")[0].lower().replace(" ", "-")
        self.settings = settings
        self.engines = EngineHolder(engine, load)
        self.voices = VoiceStore(settings, engine.trained_voices, self.engines.adapters)
        self.admission = Admission(settings.max_running, settings.max_queued, settings.max_per_key)
        self.metrics = Metrics(
            lambda: self.admission.running,
            lambda: self.admission.queued,
            self.engines.metrics,
            lambda: self.engines.is_loaded,
        )
        self.sessions = 0
        self.speaker = Speaker(self.engines, self.voices, settings, model_id)

    @property
    def status(self) -> str:
        """`ready`, or `draining`: new requests are refused."""
        return "draining" if self.admission.is_draining else "ready"

    @property
    def model_status(self) -> str:
        """`loaded`, or `unloaded`: the next request loads the model again."""
        return "loaded" if self.engines.is_loaded else "unloaded"

    def report(self) -> dict[str, str]:
        """Return the status and metrics of this process, for the other processes of the server."""
        return {"status": self.status, "model": self.model_status, "metrics": self.metrics.text().decode()}

    async def release_when_idle(self, seconds: float) -> None:
        """Release the engine whenever nothing has been spoken for a time. It runs until it is cancelled."""
        while True:
            if self.admission.running or self.admission.queued or self.sessions:
                self.engines.touch()
            left = seconds - (time.monotonic() - self.engines.last_used)
            if left <= 0 and await run_sync(self.engines.release, seconds):
                log("unloaded")
            await asyncio.sleep(left if left > 0 else seconds)

    @contextmanager
    def session(self) -> Iterator[None]:
        """Count a WebSocket, which may hold no slot for long.

        Raises:
            Refused: the server drains, or there are as many as requests may run and wait.
        """
        limit = self.settings.max_running + self.settings.max_queued
        if self.admission.is_draining:
            raise Refused("the server is shutting down and takes no new requests", True, 1)
        if self.sessions >= limit:
            raise Refused(f"sessions must be at most {limit}, got one more", False, 1)
        self.sessions += 1
        try:
            yield
        finally:
            self.sessions -= 1

    async def encoded(
        self, utterance: Utterance, encoder: AudioEncoder, key: str, timing: "Timing"
    ) -> AsyncGenerator[bytes, None]:
        """Wait for a turn, then yield encoded audio as it is generated. Leaving the loop frees the slot.

        Args:
            utterance: to speak.
            encoder: a new one, which is closed at the end.
            key: of the client.
            timing: the moments of the request, which this sets.

        Raises:
            Refused: there is no room in the queue.
            HiggsNativeError: the text or the references are wrong.
            ApiError: there is no audio.
        """
        with closing(encoder):
            async with self.admission.slot(key):
                timing.started = time.monotonic()
                self.metrics.queue_time.observe(timing.started - timing.arrived)
                async with aclosing(self.speaker.speak(utterance)) as pieces:
                    async for samples in pieces:
                        if encoder.is_copy:  # a turn of another thread would take longer
                            data = encoder.encode(samples)
                        else:
                            data = await run_sync(encoder.encode, samples)
                        if self._is_late(timing, len(samples) / self.speaker.sampling_rate):
                            self.metrics.underruns.inc()
                        if data:
                            yield data
                if not utterance.seconds:
                    # A short max_new_tokens, or a high temperature: the server is in order.
                    raise ApiError(422, "the model must make audio, got none for this text and seed", "no_audio")
                self._count(utterance, timing)
            rest = await run_sync(encoder.finish)
            if rest:
                yield rest

    def _is_late(self, timing: "Timing", seconds: float) -> bool:
        """Return whether a piece comes too late for a client that plays from the first piece on."""
        now = time.monotonic()
        if timing.first_audio is None:
            timing.first_audio = timing.played = now
            self.metrics.first_audio.observe(now - timing.arrived)
        late = now > timing.played
        timing.played = max(timing.played, now) + seconds
        return late

    def _count(self, utterance: Utterance, timing: "Timing") -> None:
        self.metrics.audio_seconds.inc(utterance.seconds)
        if timing.started is not None:
            self.metrics.real_time_factor.observe((time.monotonic() - timing.started) / utterance.seconds)
        self.metrics.tokens.labels("input").inc(utterance.prompt_tokens)
        self.metrics.tokens.labels("output").inc(utterance.completion_tokens)
        for failure in utterance.failures:
            self.metrics.failures.labels(failure).inc()


@dataclass
class Timing:
    """Moments of a request, by the monotonic clock.

    Attributes:
        arrived: when its headers were read.
        started: when its turn came.
        first_audio: when its first samples were made.
        played: when a client that plays at once has played everything so far.
    """

    arrived: float
    started: float | None = None
    first_audio: float | None = None
    played: float = 0.0

    def fields(self) -> dict[str, float]:
        """Return the durations for the log."""
        moments = {"queue_seconds": self.started, "first_audio_seconds": self.first_audio}
        return {name: round(moment - self.arrived, 4) for name, moment in moments.items() if moment is not None}
