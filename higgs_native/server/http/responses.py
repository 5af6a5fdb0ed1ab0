"""Responses with speech: sent as fast as the client reads, and ended when it leaves."""

import asyncio
import base64
import json
import time
from contextlib import aclosing
from typing import Any

from anyio import fail_after
from anyio.to_thread import run_sync
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from higgs_native.server.observing import LOGGER
from higgs_native.server.speech.encoder import MEDIA_TYPES, AudioEncoder, wav_header
from higgs_native.server.speech.schema import ApiError, SpeechRequest
from higgs_native.server.speech.service import SpeechService, Timing
from higgs_native.server.speech.speaking import Utterance


# Maximum encoded pieces that wait for a slow client, each of at most two seconds of audio. A streamed text has fewer,
# so its slot is freed as soon as it is generated, however slow the client is.
_MAX_PIECES = 64


class SpeechResponse(Response):
    """The response to a speech request. Its status is sent with the first audio, or with the error before it.

    If the client leaves, the generation ends, also while the request waits for its turn. An error after the first
    audio breaks the connection, so that the client does not take a part for the whole; with `sse` it is an event.

    Args:
        service: speaks.
        utterance: to speak.
        request: the client's request.
        key: of the client.
        arrived: when the request arrived, by the monotonic clock.
        log_fields: fields of the request's log line, which the response adds to.
    """

    def __init__(
        self,
        service: SpeechService,
        utterance: Utterance,
        request: SpeechRequest,
        key: str,
        arrived: float,
        log_fields: dict[str, Any],
    ) -> None:
        self._service = service
        self._utterance = utterance
        self._request = request
        self._key = key
        self._timing = Timing(arrived)
        self._log_fields = log_fields
        self._pieces: asyncio.Queue[bytes | None] = asyncio.Queue()  # None ends it
        self._room = asyncio.Semaphore(_MAX_PIECES)
        self._error: BaseException | None = None
        self._has_left = False
        self._is_complete = False
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        make = asyncio.create_task(self._make())
        watch = asyncio.create_task(self._watch(receive, make))
        try:
            await self._deliver(scope, receive, send)
        except TimeoutError:  # of a client that does not read
            self._has_left = True
        finally:
            for task in (watch, make):
                task.cancel()
            await asyncio.gather(watch, make, return_exceptions=True)
            self._report()

    async def _make(self) -> None:
        """Make the audio, until the deadline."""
        deadline = self._service.settings.deadline_seconds - (time.monotonic() - self._timing.arrived)
        try:
            await asyncio.wait_for(self._fill(), max(0.0, deadline))
        except BaseException as error:
            self._error = TimeoutError() if isinstance(error, asyncio.TimeoutError) else error
            if isinstance(error, asyncio.CancelledError):
                raise
        finally:
            self._pieces.put_nowait(None)

    async def _fill(self) -> None:
        encoder = AudioEncoder(self._request.response_format, self._service.speaker.sampling_rate, self._request.speed)
        pieces = self._service.encoded(self._utterance, encoder, self._key, self._timing)
        async with aclosing(pieces):
            async for data in pieces:
                await self._room.acquire()
                self._pieces.put_nowait(data)

    async def _watch(self, receive: Receive, make: asyncio.Task) -> None:
        await disconnected(receive)
        if not self._is_complete:  # the end of a response is reported as a disconnection, too
            self._has_left = True
            make.cancel()

    async def _deliver(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._utterance.is_live:
            await self._deliver_whole(scope, receive, send)
            return
        data = await self._pieces.get()
        if data is None:
            await self._refuse(scope, receive, send)
            return
        await self._start(send)
        while data is not None:
            self._room.release()
            await self._send(send, self._as_event(data) if self._request.stream_format == "sse" else data)
            data = await self._pieces.get()
        if self._request.stream_format == "sse" and not self._has_left:
            await self._send(send, self._closing_event())
        elif self._error is not None:
            return  # without the last message, the server breaks the connection
        await self._send(send, b"", more=False)

    async def _deliver_whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        pieces = []
        while (data := await self._pieces.get()) is not None:
            self._room.release()
            pieces.append(data)
        if self._error is not None:
            await self._refuse(scope, receive, send)
            return
        audio = b"".join(pieces)
        if self._request.response_format == "wav":
            empty = wav_header(self._service.speaker.sampling_rate)
            audio = wav_header(self._service.speaker.sampling_rate, len(audio) - len(empty)) + audio[len(empty) :]
        usage = self._utterance.usage
        await self._start(
            send,
            {
                "content-length": str(len(audio)),
                "x-audio-seconds": f"{self._utterance.seconds:.3f}",
                "x-failures": ", ".join(self._utterance.failures) or "none",
                "x-input-tokens": str(usage["input_tokens"]),
                "x-output-tokens": str(usage["output_tokens"]),
            },
        )
        await self._send(send, audio, more=False)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._has_left and self._error is not None:
            self._is_complete = True
            await ApiError.of(self._error).response()(scope, receive, send)

    async def _start(self, send: Send, headers: dict[str, str] | None = None) -> None:
        is_sse = self._request.stream_format == "sse"
        headers = {
            "content-type": "text/event-stream" if is_sse else MEDIA_TYPES[self._request.response_format],
            "cache-control": "no-store",
            "x-accel-buffering": "no",  # proxies must not collect a stream
            "x-seed": str(self._utterance.sampling.seed),
            **(headers or {}),
        }
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": 200, "headers": raw})

    async def _send(self, send: Send, data: bytes, more: bool = True) -> None:
        self._is_complete = not more
        message = {"type": "http.response.body", "body": data, "more_body": more}
        with fail_after(self._service.settings.idle_seconds):
            await send(message)

    @staticmethod
    def _as_event(data: bytes) -> bytes:
        return _event({"type": "speech.audio.delta", "audio": base64.b64encode(data).decode()})

    def _closing_event(self) -> bytes:
        if self._error is not None:
            return _event({"type": "error", **ApiError.of(self._error).body})
        utterance = self._utterance
        return _event(
            {
                "type": "speech.audio.done",
                "usage": utterance.usage,
                "seed": utterance.sampling.seed,
                "seconds": round(utterance.seconds, 3),
                "failures": utterance.failures,
                **utterance.times(self._request.speed),
            }
        )

    def _report(self) -> None:
        """Fill the log line."""
        utterance = self._utterance
        self._log_fields |= {
            "characters": len(utterance.text),
            "format": self._request.response_format,
            "seed": utterance.sampling.seed,
            "audio_seconds": round(utterance.seconds, 3),
            "failures": utterance.failures or None,
            **self._timing.fields(),
        }
        if self._has_left:
            self._service.metrics.left.inc()
            self._log_fields["client_left"] = True
        elif self._error is not None:
            error = ApiError.of(self._error)
            self._log_fields["code"] = error.code
            if error.status == 500:
                LOGGER.error("generation failed", exc_info=self._error, extra={"fields": {"code": error.code}})


class BatchResponse(Response):
    """The response to a batch: one result per item, in their order, when all are complete.

    Args:
        service: speaks.
        items: requests for speech, each checked by itself.
        key: of the client.
        arrived: when the request came, by the monotonic clock.
    """

    def __init__(self, service: SpeechService, items: list[dict[str, Any]], key: str, arrived: float) -> None:
        settings = service.settings
        # More at once would only wait in the queue, where others could be waiting.
        self._turns = asyncio.Semaphore(min(settings.max_running, settings.max_per_key or settings.max_running))
        self._service = service
        self._items = items
        self._key = key
        self._arrived = arrived
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        make = asyncio.ensure_future(asyncio.gather(*(self._result(item) for item in self._items)))
        watch = asyncio.create_task(disconnected(receive))
        try:
            await asyncio.wait((make, watch), return_when=asyncio.FIRST_COMPLETED)
            if not make.done():
                self._service.metrics.left.inc()
                return
            results = [{"index": index, **result} for index, result in enumerate(make.result())]
            await JSONResponse({"object": "list", "data": results})(scope, receive, send)
        finally:
            for task in (watch, make):
                task.cancel()
            await asyncio.gather(watch, make, return_exceptions=True)

    async def _result(self, item: dict[str, Any]) -> dict[str, Any]:
        async with self._turns:
            deadline = self._service.settings.deadline_seconds - (time.monotonic() - self._arrived)
            try:
                return await asyncio.wait_for(self._spoken(item), max(0.0, deadline))
            except Exception as error:
                answer = ApiError.of(TimeoutError() if isinstance(error, asyncio.TimeoutError) else error)
                self._service.metrics.errors.labels(answer.code).inc()
                if answer.status == 500:
                    LOGGER.error("generation failed", exc_info=error)
                return {"status": answer.status, **answer.body}

    async def _spoken(self, item: dict[str, Any]) -> dict[str, Any]:
        request = SpeechRequest.model_validate(item)
        utterance = await run_sync(self._service.speaker.utterance, request)
        utterance.is_live = False  # the client gets all items at once
        encoder = AudioEncoder(request.response_format, self._service.speaker.sampling_rate, request.speed)
        pieces = self._service.encoded(utterance, encoder, self._key, Timing(self._arrived))
        async with aclosing(pieces):
            audio = b"".join([data async for data in pieces])
        return {
            "status": 200,
            "audio": base64.b64encode(audio).decode(),
            "media_type": MEDIA_TYPES[request.response_format],
            "usage": utterance.usage,
            "seed": utterance.sampling.seed,
            "seconds": round(utterance.seconds, 3),
            "failures": utterance.failures,
            **utterance.times(request.speed),
        }


async def disconnected(receive: Receive) -> None:
    """Return when the client has left, or has its response."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _event(contents: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(contents)}\n\n".encode()
