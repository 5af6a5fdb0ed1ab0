"""WebSockets: text comes in pieces, as a language model writes it, and is spoken sentence by sentence, in one voice.

The client sends objects in JSON: `{"type": "session", ...}` first, with the fields of a speech request but `input`,
then `{"type": "text", "text": "..."}` any number of times, `{"type": "flush"}` to have the rest of a sentence spoken
at once, `{"type": "cancel"}` to drop what is not spoken yet, and `{"type": "done"}`. The server sends the audio of
each sentence in binary messages between `sentence.start` and `sentence.end`; each sentence is a separate file.
"""

import asyncio
import json
import re
import time
from collections.abc import Awaitable
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Any

import numpy as np
from anyio import fail_after
from anyio.to_thread import run_sync
from fastapi import WebSocket, WebSocketDisconnect

from higgs_native.manuscript.phonemes import whole_phonemes
from higgs_native.manuscript.timing import without_timing
from higgs_native.prompt.markup import SPEED, TIMING
from higgs_native.prompt.normalize import SPEAKABLE
from higgs_native.prompt.recordings import Recording
from higgs_native.prompt.sentences import split_sentences
from higgs_native.prompt.voices import Voice
from higgs_native.server.observing import LOGGER, log
from higgs_native.server.speech.encoder import AudioEncoder
from higgs_native.server.speech.schema import ApiError, SessionRequest
from higgs_native.server.speech.service import SpeechService, Timing
from higgs_native.server.speech.speaking import Utterance


_PARAGRAPH = re.compile(r"(?<=\n\n)")
_MIN_REFERENCE_SECONDS = 1.0


class SpeechSession:
    """One connection. `run` serves it and returns at its end.

    Args:
        service: speaks.
        websocket: not accepted yet.
        key: of the client.
    """

    def __init__(self, service: SpeechService, websocket: WebSocket, key: str) -> None:
        self._service = service
        self._websocket = websocket
        self._key = key
        self._unfinished = ""  # the beginning of a sentence
        self._timing = ""  # pauses and speeds before the next sentence
        self._speed = ""  # the tag of the last sentence's speed at its end
        self._sentences: asyncio.Queue[str | None] = asyncio.Queue()  # None ends the session
        self._buffered = 0  # characters of all three
        self._speaking: asyncio.Task | None = None
        self._last_activity = time.monotonic()
        self._index = 0
        self._seconds = 0.0
        self._tokens = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}

    async def run(self) -> None:
        await self._websocket.accept()
        code = None
        try:
            await self._begin()
            await self._converse()
            await self._send({"type": "done", "seconds": round(self._seconds, 3), "usage": self._tokens})
            await self._websocket.close()
        except WebSocketDisconnect:
            self._service.metrics.left.inc()
        except Exception as error:
            answer = ApiError.of(error)
            code = answer.code
            self._service.metrics.errors.labels(code).inc()
            if answer.status == 500:
                LOGGER.error("session failed", exc_info=error)
            with suppress(WebSocketDisconnect):
                await self._send({"type": "error", **answer.body})
                await self._websocket.close({429: 1013, 503: 1013, 500: 1011}.get(answer.status, 1008))
        finally:
            log("session", sentences=self._index, audio_seconds=round(self._seconds, 3), key=self._key, code=code)

    async def _begin(self) -> None:
        """Read the settings."""
        try:
            settings = await asyncio.wait_for(self._receive(), self._service.settings.idle_seconds)
        except asyncio.TimeoutError:
            raise _idle() from None
        if settings.pop("type", None) != "session":
            raise ApiError(400, "the first message must be of the type session, got another", "invalid_value", "type")
        self._request = SessionRequest.model_validate(settings)
        self._template = await run_sync(self._service.speaker.utterance, self._request)
        if self._service.speaker.invents_voice(self._template):
            self._template.audio = []
        await self._send(
            {
                "type": "session.started",
                "seed": self._template.sampling.seed,
                "sampling_rate": self._service.speaker.sampling_rate,
                "response_format": self._request.response_format,
            }
        )

    async def _converse(self) -> None:
        """Read and speak side by side, until both are over or one fails."""
        tasks = [asyncio.create_task(run()) for run in (self._read, self._speak, self._watch_idleness)]
        reading, speaking, watching = tasks
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if reading.done() and not reading.exception():
                await asyncio.wait((speaking, watching), return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch_idleness(self) -> None:
        limit = self._service.settings.idle_seconds
        while (
            (left := self._last_activity + limit - time.monotonic()) > 0 or self._speaking or self._sentences.qsize()
        ):
            await asyncio.sleep(max(left, limit / 10))
        raise _idle()

    async def _read(self) -> None:
        """Take messages until the client is done."""
        while True:
            message = await self._receive()
            self._last_activity = time.monotonic()
            match message.get("type"):
                case "text":
                    text = message.get("text")
                    if not isinstance(text, str):
                        raise ApiError(400, f"text must be a string, got {text!r:.50}", "invalid_value", "text")
                    self._add(text)
                case "flush":
                    self._flush()
                case "cancel":
                    self._cancel()
                case "done":
                    self._flush()
                    self._sentences.put_nowait(None)
                    return
                case kind:
                    expected = "text, flush, cancel or done"
                    raise ApiError(400, f"type must be {expected}, got {kind!r:.50}", "invalid_value", "type")

    async def _receive(self) -> dict[str, Any]:
        message = await self._websocket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1005))
        try:
            contents = json.loads(message.get("text") or "")
        except (ValueError, RecursionError):
            contents = None
        if not isinstance(contents, dict):
            raise ApiError(400, "a message must be an object in JSON, got something else", "invalid_json")
        return contents

    def _add(self, text: str) -> None:
        self._buffered += len(text)
        limit = self._service.settings.max_characters
        if self._buffered > limit:
            message = f"text that waits to be spoken must have at most {limit} characters, got {self._buffered}"
            raise ApiError(400, message, "string_above_max_length", "text")
        self._unfinished += text
        # A sentence is complete when the next one has begun: "3." may go on as "3.5".
        sentences = [
            sentence for part in _PARAGRAPH.split(self._unfinished) for sentence in split_sentences(part) or [""]
        ]
        if self._template.engine.phonemes is not None:
            sentences = whole_phonemes(sentences)
        *complete, self._unfinished = sentences
        for sentence in complete:
            self._queue(sentence)

    def _flush(self) -> None:
        self._queue(self._unfinished)
        self._unfinished = ""

    def _queue(self, sentence: str) -> None:
        """Queue a sentence. Pauses and speeds after its last word go to the next sentence, as do those alone."""
        sentence = self._timing + sentence
        end = len(sentence)
        for tag in reversed(list(TIMING.finditer(sentence))):
            if SPEAKABLE.search(sentence, tag.end(), end):
                break
            end = tag.start()
        spoken = sentence[:end] if SPEAKABLE.search(without_timing(sentence[:end])) else ""
        self._timing = "".join(TIMING.findall(sentence[len(spoken) :]))
        if spoken:
            self._sentences.put_nowait(spoken)
        self._buffered -= len(sentence) - len(spoken) - len(self._timing)

    def _cancel(self) -> None:
        while not self._sentences.empty():
            self._sentences.get_nowait()
        self._unfinished, self._timing, self._speed, self._buffered = "", "", "", 0
        if self._speaking is not None:
            self._speaking.cancel()

    async def _speak(self) -> None:
        while (sentence := await self._sentences.get()) is not None:
            self._buffered = max(0, self._buffered - len(sentence))
            self._speaking = asyncio.create_task(self._speak_sentence(sentence.strip()))
            try:
                await self._speaking
            except asyncio.CancelledError:
                if not self._speaking.cancelled():  # the session is over
                    self._speaking.cancel()
                    await asyncio.gather(self._speaking, return_exceptions=True)
                    raise
                await self._send({"type": "sentence.end", "index": self._index, "cancelled": True})
            finally:
                self._speaking = None
                self._last_activity = time.monotonic()
            self._index += 1

    async def _speak_sentence(self, sentence: str) -> None:
        seed = (self._template.sampling.known_seed + self._index) % 2**64
        text = self._template.engine.prepare_text(sentence, self._request.normalize, self._request.strip_markup)
        text = self._speed + text
        self._speed = "".join(SPEED.findall(text)[-1:])
        utterance = replace(
            self._template,
            text=text,
            sampling=replace(self._template.sampling, seed=seed),
            failures=[],
            script=[],
            words=[],
            audio=None if self._template.audio is None else [],
        )
        await self._send({"type": "sentence.start", "index": self._index, "text": sentence})
        encoder = AudioEncoder(self._request.response_format, self._service.speaker.sampling_rate, self._request.speed)
        timing = Timing(time.monotonic())
        deadline = self._service.settings.deadline_seconds
        try:
            await asyncio.wait_for(self._send_audio(utterance, encoder, timing), deadline)
        except asyncio.TimeoutError:
            raise TimeoutError from None
        self._keep_voice(utterance)
        self._seconds += utterance.seconds
        self._tokens = {name: count + utterance.usage[name] for name, count in self._tokens.items()}
        await self._send(
            {
                "type": "sentence.end",
                "index": self._index,
                "seconds": round(utterance.seconds, 3),
                "failures": utterance.failures,
                **utterance.times(self._request.speed),
            }
        )

    async def _send_audio(self, utterance: Utterance, encoder: AudioEncoder, timing: Timing) -> None:
        async with aclosing(self._service.encoded(utterance, encoder, self._key, timing)) as pieces:
            async for data in pieces:
                await self._read_in_time(self._websocket.send_bytes(data))

    async def _send(self, message: dict[str, Any]) -> None:
        await self._read_in_time(self._websocket.send_json(message))

    async def _read_in_time(self, sending: Awaitable[None]) -> None:
        # Before Python 3.12, `asyncio.wait_for` loses a cancellation that comes when the message has just been sent.
        try:
            with fail_after(self._service.settings.idle_seconds):
                await sending
        except TimeoutError:
            raise WebSocketDisconnect(1006, "the client does not read") from None

    def _keep_voice(self, utterance: Utterance) -> None:
        """Let later sentences clone the first one, if the voice follows from its seed alone."""
        audio, utterance.audio = utterance.audio, None
        if not audio:
            return
        samples = np.concatenate(audio).astype(np.float32) / 32768
        rate = self._service.speaker.sampling_rate
        if len(samples) >= _MIN_REFERENCE_SECONDS * rate and not utterance.failures:
            voice = Voice(Recording(samples, rate, "the first sentence"), without_timing(utterance.text))
            self._template = replace(self._template, voices=[voice], audio=None)


def _idle() -> ApiError:
    return ApiError(408, "a message must come before the idle time-out, got none", "idle_timeout")
