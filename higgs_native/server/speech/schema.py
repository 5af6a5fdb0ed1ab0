"""The contract with clients: their requests, and the errors that they get."""

import re
from asyncio import CancelledError
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError
from starlette.exceptions import HTTPException

from higgs_native.audio.tempo import MAX_SPEED, MIN_SPEED
from higgs_native.errors import HiggsNativeError, one_line, short_repr
from higgs_native.generation.sampling_params import SamplingParams
from higgs_native.server.speech.admission import Refused


MODEL_ALIASES = ("tts-1", "tts-1-hd", "gpt-4o-mini-tts")
"""Models of OpenAI, which many clients ask for by default."""
MAX_INSTRUCTIONS = 4096

_CODES = {404: "not_found", 405: "method_not_allowed"}
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


_SAMPLING_FIELDS = ("temperature", "top_k", "top_p", "ras_win_len", "ras_win_max_num_repeat", "max_new_tokens")


class VoiceId(BaseModel):
    """A voice by its id, as OpenAI's clients name a custom one."""

    id: Annotated[str, StringConstraints(min_length=1, max_length=256)]


MAX_RECORDINGS = 16
"""The maximum number of recordings of one voice in a request."""
RecordedText = Annotated[str, StringConstraints(max_length=10_000)]
VoiceName = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
Voices = Annotated[list[VoiceName | VoiceId], Field(min_length=1, max_length=16)]
ResponseFormat = Literal["mp3", "opus", "aac", "flac", "wav", "pcm"]


def _split(value: object) -> object:
    """Forms hold words separated by commas in place of a list."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


def _listed(value: str | list[str] | None) -> list[str]:
    return value if isinstance(value, list) else [] if value is None else [value]


Granularities = Annotated[list[Literal["word", "segment"]], BeforeValidator(_split)]


class SpeechRequest(BaseModel):
    """The body of `POST /v1/audio/speech`: OpenAI's fields, then extensions."""

    # Clients send fields of other servers, such as `lang_code`. Strict types would refuse `"speed": 1`.
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    input: Annotated[str, StringConstraints(min_length=1)] = Field(
        description="The text. `[SPEAKER0]`, `[SPEAKER1]`, ... begin the turns of several speakers."
    )
    model: Annotated[str, StringConstraints(max_length=256)] = Field(
        MODEL_ALIASES[0], description="The id of a model in `/v1/models`."
    )
    voice: VoiceName | VoiceId | Voices | None = Field(
        None,
        description="The id of a voice in `/v1/audio/voices`. Several, in a list or separated by commas, are those of "
        "SPEAKER0, SPEAKER1, ... None: the model chooses.",
    )
    instructions: Annotated[str, StringConstraints(max_length=MAX_INSTRUCTIONS)] | None = Field(
        None, description="The scene: where or how it is spoken."
    )
    response_format: ResponseFormat = Field(
        "mp3", description="pcm is 16 bit, little-endian, mono, at the sampling rate of the model, 24 kHz."
    )
    speed: float = Field(1.0, ge=MIN_SPEED, le=MAX_SPEED, description="The pitch stays.")
    stream_format: Literal["audio", "sse"] = Field("audio", description="`sse`: events with the audio in base64.")

    stream: bool = Field(
        True,
        description="false: the response begins when the speech is complete; its headers say the length and failures.",
    )
    timestamp_granularities: Granularities | None = Field(
        None,
        description="Estimated times of words (`word`), of sentences or parts of them (`segment`): `words` and "
        "`segments` of the last event of `stream_format` sse, of a batch's results, and of a WebSocket's sentences.",
    )
    normalize: bool = Field(False, description="Write out numbers, dates, units and the like of an English text.")
    strip_markup: bool = Field(False, description="Leave out the markup of Markdown, and emoji.")
    seed: int | None = Field(None, ge=-(2**63), lt=2**64, description="The same seed gives the same speech.")
    # The defaults of the next six are not used: `sampling` takes those that are given, and the model's for the others,
    # which `described_request` shows.
    temperature: float = SamplingParams.temperature
    top_k: int | None = SamplingParams.top_k
    top_p: float | None = SamplingParams.top_p
    ras_win_len: int | None = SamplingParams.ras_win_len
    ras_win_max_num_repeat: int = SamplingParams.ras_win_max_num_repeat
    max_new_tokens: int = Field(
        SamplingParams.max_new_tokens, le=8192, description="25 are a second. Not for texts that need several chunks."
    )
    adapter: Annotated[str, StringConstraints(min_length=1, max_length=256)] | None = Field(
        None,
        description="The name of an adapter that the server has loaded; `voice` may then be one of its speakers. An "
        "adapter is a voice, too: naming it there says the same.",
    )
    ref_audio: str | Annotated[list[str], Field(min_length=1, max_length=MAX_RECORDINGS)] | None = Field(
        None,
        description="A recording to clone instead of `voice`: a file in base64, or a data URL; or several of one "
        "speaker, each with its words in `ref_text`. A multipart request may upload them. URLs only as far as the "
        "operator allows.",
        validation_alias=AliasChoices("ref_audio", "reference_audio"),
    )
    ref_text: RecordedText | Annotated[list[RecordedText], Field(max_length=MAX_RECORDINGS)] | None = Field(
        None,
        description="The words spoken in `ref_audio`; of several recordings, a list in their order.",
        validation_alias=AliasChoices("ref_text", "reference_text"),
    )

    @property
    def voice_names(self) -> list[str]:
        """The voices of SPEAKER0, SPEAKER1, ..."""
        voices = self.voice if isinstance(self.voice, list) else [] if self.voice is None else [self.voice]
        names = [voice.id if isinstance(voice, VoiceId) else voice for voice in voices]
        return [part.strip() for name in names for part in name.split(",")]

    @property
    def recordings(self) -> list[str]:
        """`ref_audio` as a list, without empty items."""
        return [audio for audio in _listed(self.ref_audio) if audio]

    @property
    def recorded_texts(self) -> list[str]:
        """`ref_text` as a list; empty if it holds no words."""
        texts = _listed(self.ref_text)
        return texts if any(text.strip() for text in texts) else []

    @property
    def is_live(self) -> bool:
        """Whether the client hears the speech while it is made."""
        return self.stream or self.stream_format == "sse"

    def sampling(self, seed: int, defaults: SamplingParams) -> SamplingParams:
        """Return the sampling parameters: the given ones, and the model's `defaults` for the others.

        Raises:
            ParameterError: a value is outside its range.
        """
        given = {name: getattr(self, name) for name in _SAMPLING_FIELDS if name in self.model_fields_set}
        return replace(defaults, seed=seed, **given)


def described_request(defaults: SamplingParams) -> dict[str, Any]:
    """Return the JSON schema of `SpeechRequest`, with the sampling parameters that a model has by default."""
    schema = SpeechRequest.model_json_schema(ref_template="#/components/schemas/{model}")
    for name in _SAMPLING_FIELDS:
        schema["properties"][name]["default"] = getattr(defaults, name)
    return schema


class BatchRequest(BaseModel):
    """The body of `POST /v1/audio/speech/batch`. Each item is checked by itself."""

    items: Annotated[list[dict[str, Any]], Field(min_length=1)] = Field(description="Requests for speech.")


class SessionRequest(SpeechRequest):
    """The first message of `/v1/audio/speech/stream`: how the texts that follow are spoken."""

    input: str = "."
    response_format: ResponseFormat = "pcm"


class ApiError(Exception):
    """A request that is answered with an error.

    Attributes:
        status: of HTTP.
        message: one line for the client's developer.
        code: the error's name for programs.
        param: the field that is wrong.
        headers: of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = one_line(message)
        self.code = code
        self.param = param
        self.headers = dict(headers or {})

    @classmethod
    def of(cls, error: BaseException) -> "ApiError":
        """Return the error as a client is told it. Details of unexpected errors are kept from it."""
        match error:
            case ApiError():
                return error
            case Refused():
                retry = {"Retry-After": str(error.retry_seconds)}
                if error.is_draining:
                    return cls(503, str(error), "server_shutting_down", headers=retry)
                return cls(429, str(error), "rate_limit_exceeded", headers=retry)
            case ValidationError():
                return cls._of_validation(error.errors(include_url=False, include_context=False)[0])
            case RequestValidationError():
                return cls._of_validation(error.errors()[0])
            case HTTPException():
                if isinstance(error.__cause__, ApiError):  # raised while the body was read
                    return error.__cause__
                return cls(error.status_code, error.detail, _CODES.get(error.status_code), headers=error.headers)
            case HiggsNativeError():
                return cls(400, str(error), "invalid_value", _field(str(error)))
            case CancelledError():  # of a request that outlasted the drain
                return cls(503, "the server has shut down before the end of the request", "server_shutting_down")
            case TimeoutError():
                return cls(504, "the request must end before its deadline, got no end", "deadline_exceeded")
        return cls(500, "the server failed unexpectedly; its log says more under this request's id", "internal_error")

    @classmethod
    def _of_validation(cls, first: Mapping[str, Any]) -> "ApiError":
        """Return the answer to a body that pydantic refuses, given the first of its errors."""
        parts = [str(part) for part in first["loc"] if part not in ("body", "path")]
        param = parts[0] if parts else None
        name = param or "the body"
        if first["type"] == "missing":
            return cls(400, f"{name} must be given, got none", "missing_required_parameter", param)
        if first["type"] == "json_invalid":
            return cls(400, f"the body must be a JSON object, got {first['msg'].lower()}", "invalid_json")
        expected = re.sub(r"^(Input|String|List|Value) should ", "must ", first["msg"])
        return cls(400, f"{name} {expected}, got {short_repr(first['input'])}", "invalid_value", param)

    @property
    def body(self) -> dict[str, Any]:
        """The error as JSON, in OpenAI's shape."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body, self.status, self.headers)


def _field(message: str) -> str | None:
    """The field of a request that an error message begins with, as `name must be ...` does."""
    names = {"text": "input", "scene": "instructions", "reference": "ref_audio", "reference_audio": "ref_audio"}
    first = message.partition(" ")[0]
    name = names.get(first, first)
    return name if name in SpeechRequest.model_fields else None
