"""The HTTP application: its routes, and how errors are answered."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import FastAPI, File, Form, Request, UploadFile, WebSocket
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from pydantic import ValidationError
from starlette.datastructures import UploadFile as FormFile
from starlette.exceptions import HTTPException

import higgs_native
from higgs_native.errors import HiggsNativeError
from higgs_native.pipeline import HiggsAudio
from higgs_native.prompt.recordings import Recording
from higgs_native.server.http.gate import Gate, checked_origin_and_key
from higgs_native.server.http.responses import BatchResponse, SpeechResponse
from higgs_native.server.http.websocket import SpeechSession
from higgs_native.server.observing import merged_metrics
from higgs_native.server.settings import ServerSettings
from higgs_native.server.speech.admission import Refused
from higgs_native.server.speech.encoder import MEDIA_TYPES
from higgs_native.server.speech.schema import (
    MAX_RECORDINGS,
    ApiError,
    BatchRequest,
    RecordedText,
    SpeechRequest,
    described_request,
)
from higgs_native.server.speech.service import SpeechService
from higgs_native.server.workers import Worker


_MAX_FIELDS = 64  # of a form
Samples = Annotated[
    list[UploadFile],
    File(
        min_length=1,
        max_length=MAX_RECORDINGS,
        description="A recording: wav, flac, ogg or mp3; or several of one speaker, each with its `ref_text`.",
    ),
]
RecordedTexts = Annotated[
    Sequence[RecordedText], Form(max_length=MAX_RECORDINGS, description="The words spoken in each recording.")
]
_PAGE = Path(__file__).with_name("page")
# Nothing from another host, and nothing inline.
_POLICY = "default-src 'self'; media-src blob:; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"


def create_app(
    engine: HiggsAudio,
    settings: ServerSettings | None = None,
    worker: Worker | None = None,
    load: Callable[[], HiggsAudio] | None = None,
) -> FastAPI:
    """Return the application of a server.

    Args:
        engine: speaks all requests.
        settings: of the operator.
        worker: this process, if it is one of several that are one server.
        load: returns the engine again after its release, for `SpeechService.release_when_idle`.

    Raises:
        PromptError: the folder of voices can't be read.
        ParameterError: the settings release the engine, and `load` is None.
    """
    service = SpeechService(engine, settings or ServerSettings(), load)
    app = FastAPI(
        title="higgs-native",
        version=higgs_native.__version__,
        description="Speech by Higgs Audio, with the interface of OpenAI's speech API.",
    )
    app.state.service = service
    _add_speech(app, service)
    _add_models_and_voices(app, service)
    _add_health(app, service, worker)
    _add_page(app)
    for kind in (ApiError, HiggsNativeError, ValidationError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, _answer_error)
    app.add_middleware(Gate, service=service)
    if service.settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=service.settings.cors_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=["*"],
        )
    return app


def _add_speech(app: FastAPI, service: SpeechService) -> None:
    schema = described_request(service.speaker.default_sampling)
    definitions = schema.pop("$defs")
    uploads = {"type": "array", "items": {"type": "string", "format": "binary"}, "maxItems": MAX_RECORDINGS}
    form = {**schema, "properties": {**schema["properties"], "ref_audio": uploads}}
    audio = {media_type: {"schema": {"type": "string", "format": "binary"}} for media_type in MEDIA_TYPES.values()}

    @app.post(
        "/v1/audio/speech",
        response_class=Response,
        responses={200: {"description": "The speech, as it is made.", "content": {**audio, "text/event-stream": {}}}},
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": schema}, "multipart/form-data": {"schema": form}},
            }
        },
    )
    async def create_speech(request: Request) -> Response:
        """Speak a text."""
        speech_request, uploads = await _read_request(request)
        if speech_request.timestamp_granularities and speech_request.stream_format != "sse":
            message = "stream_format must be sse with timestamp_granularities, got audio, which has no room for times"
            raise ApiError(400, message, "invalid_value", "stream_format")
        utterance = await run_sync(service.speaker.utterance, speech_request, uploads)
        state = request.state
        return SpeechResponse(service, utterance, speech_request, state.key, state.arrived, state.log_fields)

    @app.post("/v1/audio/speech/batch", response_class=JSONResponse)
    async def create_batch(batch: BatchRequest, request: Request) -> Response:
        """Speak several texts. Each item has a result: its audio in base64, or its error."""
        limit = service.settings.max_batch
        if len(batch.items) > limit:
            message = f"items must be at most {limit}, got {len(batch.items)}"
            raise ApiError(400, message, "array_above_max_length", "items")
        return BatchResponse(service, batch.items, request.state.key, request.state.arrived)

    @app.websocket("/v1/audio/speech/stream")
    async def stream_speech(websocket: WebSocket) -> None:
        try:
            key = checked_origin_and_key(service.settings, websocket.headers)
            with service.session():
                await SpeechSession(service, websocket, key).run()
        except (ApiError, Refused) as error:
            await websocket.send_denial_response(ApiError.of(error).response())

    describe = app.openapi

    def openapi() -> dict[str, Any]:
        described = describe()
        described.setdefault("components", {}).setdefault("schemas", {}).update(definitions)
        return described

    setattr(app, "openapi", openapi)  # noqa: B010 (FastAPI's way to extend the description)


async def _read_request(request: Request) -> tuple[SpeechRequest, list[bytes]]:
    """Return a request for speech, and the recordings that came with it as files."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        return SpeechRequest.model_validate_json(await request.body()), []
    uploads: list[bytes] = []
    async with request.form(max_files=MAX_RECORDINGS, max_fields=_MAX_FIELDS) as form:
        fields: dict[str, Any] = {}
        for name in form:
            values = form.getlist(name)
            if isinstance(values[0], FormFile):
                if name not in ("ref_audio", "reference_audio"):
                    raise ApiError(400, f"a file must be ref_audio, got {name!r:.80}", "invalid_value", "ref_audio")
                uploads = [await value.read() for value in values if isinstance(value, FormFile)]
            else:
                fields[name] = values if len(values) > 1 else values[0]
    return SpeechRequest.model_validate(fields), uploads


def _add_models_and_voices(app: FastAPI, service: SpeechService) -> None:
    started = int(time.time())

    def described(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": started, "owned_by": "higgs-native"}

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        """List the model, and the names of OpenAI's models, which are accepted for it."""
        return {"object": "list", "data": [described(name) for name in service.speaker.models]}

    @app.get("/v1/models/{model}")
    async def show_model(model: str) -> dict[str, Any]:
        if model not in service.speaker.models:
            message = f"model must be one of {', '.join(service.speaker.models)}, got {model!r:.80}"
            raise ApiError(404, message, "model_not_found", "model")
        return described(model)

    @app.get("/v1/audio/models")
    async def list_audio_models() -> dict[str, Any]:
        """List the models as Open WebUI reads them."""
        return {"models": [{"id": name, "name": name} for name in service.speaker.models]}

    @app.get("/v1/audio/voices")
    async def list_voices() -> dict[str, Any]:
        """List the voices."""
        voices = [voice.as_json() for voice in await run_sync(service.voices.listed)]
        return {"object": "list", "data": voices, "voices": voices}

    @app.post("/v1/audio/voices")
    async def create_voice(
        name: Annotated[str, Form(max_length=256)],
        audio_sample: Samples,
        ref_text: RecordedTexts = (),
        consent: Annotated[str | None, Form(description="Accepted for OpenAI's clients.")] = None,
        type: Annotated[str | None, Form(description="Accepted for OpenAI's clients.")] = None,
    ) -> dict[str, Any]:
        """Keep a recording, or several of one speaker, as a voice. `advice` says what would make it a better one."""
        files = [await sample.read() for sample in audio_sample]
        voice, advice = await run_sync(service.voices.add, name, files, ref_text)
        return {**voice.as_json(), "created_at": int(time.time()), "advice": advice}

    @app.post("/v1/audio/voices/check")
    async def check_voice(
        audio_sample: Samples,
        ref_text: RecordedTexts = (),
    ) -> dict[str, Any]:
        """Give the advice on recordings that keeping them as a voice would give."""
        files = [await sample.read() for sample in audio_sample]
        voice, advice = await run_sync(service.voices.check, files, ref_text)
        audio = [item.reference_audio for item in voice.recordings]
        seconds = sum(len(item.samples) / item.sampling_rate for item in audio if isinstance(item, Recording))
        return {"seconds": round(seconds, 3), "advice": advice}

    @app.delete("/v1/audio/voices/{voice}")
    async def delete_voice(voice: str) -> dict[str, Any]:
        """Delete an uploaded voice."""
        await run_sync(service.voices.remove, voice)
        return {"id": voice, "object": "audio.voice", "deleted": True}


def _add_health(app: FastAPI, service: SpeechService, worker: Worker | None) -> None:
    @app.get("/health")
    async def health() -> dict[str, Any]:
        """Answer as long as the process is alive. Of several processes, tell which are: `degraded` if one is down.

        `model` is `loaded`, or `unloaded`: the next request loads it again.
        """
        if worker is None:
            return {"status": "ok", "model": service.model_status}
        reports = await worker.reports()
        statuses = ["down" if report is None else report["status"] for report in reports]
        return {
            "status": "degraded" if "down" in statuses else "ok",
            "workers": [
                {
                    "worker": index,
                    "device": device,
                    "status": status,
                    "model": None if report is None else report["model"],
                }
                for index, (device, status, report) in enumerate(zip(worker.devices, statuses, reports, strict=True))
            ],
        }

    @app.get("/ready")
    async def ready() -> Response:
        """Say whether new requests are taken."""
        return JSONResponse({"status": service.status}, 200 if service.status == "ready" else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Metrics for Prometheus; of several processes, those of all, with the label `worker`."""
        if worker is None:
            text = service.metrics.text()
        else:
            texts = [None if report is None else str(report["metrics"]) for report in await worker.reports()]
            text = merged_metrics(texts, worker.devices)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_page(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(_PAGE / "index.html", headers={"content-security-policy": _POLICY})

    app.mount("/page", StaticFiles(directory=_PAGE))


async def _answer_error(request: Request, error: Exception) -> Response:
    answer = ApiError.of(error)
    request.state.log_fields["code"] = answer.code
    return answer.response()
