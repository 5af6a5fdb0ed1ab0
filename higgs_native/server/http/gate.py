"""The gate in front of the routes: ids, log lines, keys, and the limit of bodies."""

import hmac
import re
import time
import urllib.parse
import uuid
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from higgs_native.server.observing import LOGGER, log
from higgs_native.server.settings import ServerSettings
from higgs_native.server.speech.schema import ApiError
from higgs_native.server.speech.service import SpeechService


_REQUEST_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)
_ANONYMOUS = "anonymous"


class Gate:
    """Gives each request an id and a line in the log, checks its key, and limits its body.

    It is plain ASGI: middleware of Starlette's base class would hide that a client has left.
    """

    def __init__(self, app: ASGIApp, service: SpeechService) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        arrived = time.monotonic()
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        log_fields: dict[str, Any] = {}
        status = None
        scope.setdefault("state", {}).update(arrived=arrived, log_fields=log_fields, request_id=request_id)

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            scope["state"]["key"] = self._checked_key(scope, headers)
            await self._app(scope, self._limited(headers, receive), send_with_id)
        except ClientDisconnect:
            self._service.metrics.left.inc()
            log_fields["client_left"] = True
        except Exception as error:
            answer = ApiError.of(error)
            log_fields["code"] = answer.code
            if answer.status == 500:
                LOGGER.exception("request failed", extra={"fields": {"request_id": request_id}})
            if status is None:
                await answer.response()(scope, receive, send_with_id)
        finally:
            route = getattr(scope.get("route"), "path", "unknown")
            if "code" in log_fields:
                self._service.metrics.errors.labels(log_fields["code"]).inc()
            self._service.metrics.requests.labels(route, str(status or "none")).inc()
            log(
                "request",
                request_id=request_id,
                client=scope["client"][0] if scope.get("client") else None,
                key=scope["state"].get("key"),
                method=scope["method"],
                path=scope["path"],
                status=status,
                seconds=round(time.monotonic() - arrived, 4),
                **log_fields,
            )

    def _checked_key(self, scope: Scope, headers: Headers) -> str:
        """Return the name of the client's key; pages and health checks need none."""
        if not self._service.settings.api_keys or not scope["path"].startswith("/v1/"):
            return _ANONYMOUS
        return _key_of(self._service.settings, headers.get("authorization", ""))

    def _limited(self, headers: Headers, receive: Receive) -> Receive:
        """Return `receive` for a body of limited length."""
        limit, received = self._service.settings.max_body_bytes, 0

        def check(length: int) -> None:
            if length > limit:
                raise ApiError(413, f"the body must have at most {limit} bytes, got more", "request_too_large")

        length = headers.get("content-length", "")
        check(int(length[:20]) if length.isdecimal() else 0)

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            check(received)
            return message

        return limited


def checked_origin_and_key(settings: ServerSettings, headers: Headers) -> str:
    """Return the name of the client's key.

    Browsers let any page open a WebSocket, so its origin is checked here.

    Raises:
        ApiError: the key is unknown, or the origin is not allowed.
    """
    origin = headers.get("origin")
    own = origin is None or urllib.parse.urlsplit(origin).netloc == headers.get("host")
    if not own and not {origin, "*"} & set(settings.cors_origins):
        message = f"the origin of the page must be allowed by the server, got {origin!r:.100}"
        raise ApiError(403, message, "origin_not_allowed")
    return _key_of(settings, headers.get("authorization", "")) if settings.api_keys else _ANONYMOUS


def _key_of(settings: ServerSettings, authorization: str) -> str:
    """Return the name of the key in an Authorization header, for the log and for limits.

    Raises:
        ApiError: the key is unknown.
    """
    given = authorization.removeprefix("Bearer ").strip().encode()
    # All keys are compared, each in constant time, so the time tells nothing about a key.
    equal = [hmac.compare_digest(given, key.encode()) for key in settings.api_keys]
    if not any(equal):
        message = "the Authorization header must be `Bearer KEY`, got no key of this server"
        raise ApiError(401, message, "invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
    return f"key-{equal.index(True)}"
