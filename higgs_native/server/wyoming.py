"""Speech for Home Assistant, by the Wyoming protocol, beside HTTP. Needs the extra `wyoming`.

A client asks for the voices (`describe`), or for the speech of a text (`synthesize`), which is sent as it is
generated. The protocol has no keys.
"""

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

from anyio.to_thread import run_sync
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.error import Error
from wyoming.event import Event, Eventable
from wyoming.info import Attribution, Describe, Info, TtsProgram, TtsVoice
from wyoming.server import AsyncEventHandler
from wyoming.tts import Synthesize

import higgs_native
from higgs_native.server.observing import LOGGER, log
from higgs_native.server.speech.admission import Refused
from higgs_native.server.speech.encoder import AudioEncoder
from higgs_native.server.speech.schema import ApiError, SpeechRequest
from higgs_native.server.speech.service import SpeechService, Timing


# Errors of reading from a client that has left, is silent, or sends something else than events.
_NO_EVENTS = (OSError, EOFError, asyncio.TimeoutError, AttributeError, TypeError, KeyError, RecursionError)
_KEY = "wyoming"
"""The key of all clients in limits and counts; clients of HTTP have their own."""


@asynccontextmanager
async def serving_wyoming(service: SpeechService, bound: socket.socket) -> AsyncIterator[None]:
    """Serve the clients of a socket within the `async with`."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _Client(service, reader, writer).run()

    server = await asyncio.start_server(connected, sock=bound)
    try:
        yield
    finally:
        server.close()  # clients that are silent would not let it end by itself


class _BoundedReader:
    """Reads from a client, with limits of length and time."""

    def __init__(self, service: SpeechService, reader: asyncio.StreamReader) -> None:
        self._settings = service.settings
        self._reader = reader

    async def readline(self) -> bytes:
        return await asyncio.wait_for(self._reader.readline(), self._settings.idle_seconds)

    async def readexactly(self, length: int) -> bytes:
        if length > self._settings.max_body_bytes:
            raise ValueError(f"an event must have at most {self._settings.max_body_bytes} bytes, got {length}")
        return await asyncio.wait_for(self._reader.readexactly(length), self._settings.idle_seconds)


class _Client(AsyncEventHandler):
    """One connection. `run` returns when it is over."""

    def __init__(self, service: SpeechService, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        super().__init__(_BoundedReader(service, reader), writer)
        self._service = service

    async def run(self) -> None:
        try:
            with self._service.session():
                await super().run()
        except Refused as error:
            await self._refuse(error)
            self.writer.close()
        except _NO_EVENTS as error:
            log("wyoming client sent away", reason=repr(error))

    async def handle_event(self, event: Event) -> bool:
        """Answer `describe` and `synthesize`; other events are ignored, as the protocol demands."""
        if not isinstance(event.data, dict):
            raise TypeError("the data of an event must be an object")
        if Describe.is_type(event.type):
            await self._send(await run_sync(self._info))
        elif Synthesize.is_type(event.type):
            try:
                await asyncio.wait_for(self._speak(event), self._service.settings.deadline_seconds)
            except asyncio.TimeoutError:
                await self._refuse(TimeoutError())
            except OSError:  # the client has left
                self._service.metrics.left.inc()
                raise
            except Exception as error:
                await self._refuse(error)
        return True

    def _info(self) -> Info:
        described = {
            "attribution": Attribution("higgs-native", ""),
            "installed": True,
            "version": higgs_native.__version__,
        }
        languages = list(self._service.languages)
        voices = [
            TtsVoice(name=voice.id, description=voice.description or voice.id, languages=languages, **described)
            for voice in self._service.voices.listed()
        ]
        name = self._service.model_name
        return Info(tts=[TtsProgram(name="higgs-native", description=name, voices=voices, **described)])

    async def _speak(self, event: Event) -> None:
        arrived = time.monotonic()
        voice = event.data.get("voice")
        name = voice.get("name") if isinstance(voice, dict) else voice
        request = SpeechRequest.model_validate({"input": event.data.get("text"), "voice": name})
        utterance = await run_sync(self._service.speaker.utterance, request)
        rate = self._service.speaker.sampling_rate
        encoder = AudioEncoder("pcm", rate, request.speed)
        timing = Timing(arrived)
        has_begun = False
        async with aclosing(self._service.encoded(utterance, encoder, _KEY, timing)) as pieces:
            async for data in pieces:
                if not has_begun:
                    await self._send(AudioStart(rate, 2, 1))
                    has_begun = True
                await self._send(AudioChunk(rate, 2, 1, data))
        await self._send(AudioStop())
        log("wyoming", characters=len(utterance.text), audio_seconds=round(utterance.seconds, 3), **timing.fields())

    async def _send(self, message: Eventable) -> None:
        await asyncio.wait_for(self.write_event(message.event()), self._service.settings.idle_seconds)

    async def _refuse(self, error: Exception) -> None:
        answer = ApiError.of(error)
        self._service.metrics.errors.labels(answer.code).inc()
        if answer.status == 500:
            LOGGER.error("generation failed", exc_info=error)
        await self._send(Error(answer.message, answer.code))
