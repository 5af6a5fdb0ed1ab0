"""The server on a cluster: a Ray Serve application around the same FastAPI application.

    serve run higgs_native.server.ray:application model=NAME num_gpus=1 min_replicas=1 max_replicas=8

Serve chooses the replica of a request by its headers. If the header `serve_multiplexed_model_id` names the voice, too,
Serve prefers a replica that has spoken with that voice, whose cache holds its prefix.
"""

from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve.config import AutoscalingConfig
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from higgs_native.pipeline import HiggsAudio
from higgs_native.server.http.app import create_app
from higgs_native.server.observing import log_as_json
from higgs_native.server.settings import ServerSettings


_MAX_VOICES = 64
"""Maximum voices that Serve remembers per replica."""
_TARGET_LOAD = 0.6
"""Share of `max_running` above which Serve adds a replica; below 1, so that it starts before requests must wait."""


class SpeechOptions(BaseModel):
    """The options of the application."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(None, description="As for `HiggsAudio.from_pretrained`, like the next three.")
    audio_tokenizer: str | None = None
    dtype: str = "auto"
    quantization: str | None = None
    num_gpus: float = Field(0, ge=0, description="GPUs of a replica; 0: it runs on the CPU.")
    num_cpus: float = Field(1, ge=0, description="Cores of a replica, and its threads.")
    min_replicas: int = Field(1, ge=1)
    max_replicas: int = Field(1, ge=1)
    max_queued_requests: int = Field(64, ge=0, description="Requests that wait for a replica; more get status 503.")
    settings: ServerSettings = Field(
        # A replica queues few requests; the others wait for any replica that is free.
        ServerSettings(max_queued=4),
        description="The limits, keys and folders of each replica. Folders are read by all nodes.",
    )


def application(options: SpeechOptions) -> serve.Application:
    """Return the application, for `serve.run` or the command `serve run`."""
    settings = options.settings

    def build() -> ASGIApp:
        engine = HiggsAudio.from_pretrained(
            options.model,
            dtype=options.dtype,
            audio_tokenizer=options.audio_tokenizer,
            quantization=options.quantization,
        )
        log_as_json()
        app = create_app(engine, settings)
        app.add_middleware(_InServe)
        return app

    return serve.deployment(
        serve.ingress(build)(),
        name="speech",
        ray_actor_options={"num_cpus": options.num_cpus, "num_gpus": options.num_gpus},
        max_ongoing_requests=settings.max_running + settings.max_queued,
        max_queued_requests=options.max_queued_requests,
        graceful_shutdown_timeout_s=settings.drain_seconds,
        autoscaling_config=AutoscalingConfig(
            min_replicas=options.min_replicas,
            max_replicas=options.max_replicas,
            target_ongoing_requests=_TARGET_LOAD * settings.max_running,
        ),
    ).bind()


@serve.multiplexed(max_num_models_per_replica=_MAX_VOICES)
async def _keep(voice: str) -> str:
    """Tell Serve that this replica has spoken with a voice, so that the engine's cache holds its prefix."""
    return voice


class _InServe:
    """Between Serve and the application. Serve sends the id of a request itself, and a header must not come twice."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        voice = serve.get_multiplexed_model_id()
        if voice:
            await _keep(voice)

        async def send_without_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                del MutableHeaders(scope=message)["x-request-id"]
            await send(message)

        await self._app(scope, receive, send_without_id)
