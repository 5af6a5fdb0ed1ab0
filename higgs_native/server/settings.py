"""The settings of a server: limits, keys, and what clients may refer to."""

import os
from dataclasses import dataclass
from pathlib import Path

from higgs_native.errors import ParameterError
from higgs_native.utils.checks import check_integer, check_number


@dataclass(frozen=True)
class ServerSettings:
    """The settings of a server.

    Attributes:
        model_id: the name of the model in `/v1/models`; None: derived from the checkpoint.
        voices_folder: the folder of voices (see `higgs_native.prompt.voices`), where uploads are kept. None: there are
            only the voices of the checkpoint, and uploads are refused.
        api_keys: a client must send one of them; without any, everyone may speak.
        cors_origins: origins whose pages may call the server; `*` for all.
        max_running: requests that are spoken at once.
        max_queued: further requests that wait for their turn; more are refused with 429.
        max_per_key: running and waiting requests of one key; None: no limit.
        deadline_seconds: maximum time from a request's arrival to the end of its speech.
        idle_seconds: time without a message after which a WebSocket is closed, and for which a client may refuse to
            read what it was sent.
        drain_seconds: time that running requests get to finish after SIGTERM.
        max_characters: maximum length of a text.
        max_body_bytes: maximum size of a request, uploads included.
        max_uploaded_voices: number of voices in the folder at which uploads are refused.
        reference_urls: prefixes of the URLs that `ref_audio` may name, such as `https://voices.example/`.
        reference_folders: folders whose files `ref_audio` may name by `file://`.
        max_batch: maximum number of items in a batch.
        unload_seconds: time without speech after which the model is released until the next request; None: never.

    Raises:
        ParameterError: a value is of a wrong type, or outside its range.
    """

    model_id: str | None = None
    voices_folder: Path | None = None
    api_keys: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    max_running: int = 16
    max_queued: int = 64
    max_per_key: int | None = None
    deadline_seconds: float = 600.0
    idle_seconds: float = 60.0
    drain_seconds: float = 60.0
    max_characters: int = 50_000
    max_body_bytes: int = 16 << 20
    max_uploaded_voices: int = 1000
    reference_urls: tuple[str, ...] = ()
    reference_folders: tuple[Path, ...] = ()
    max_batch: int = 32
    unload_seconds: float | None = None

    def __post_init__(self) -> None:
        for name, minimum in (
            ("max_running", 1),
            ("max_queued", 0),
            ("max_per_key", 1),
            ("max_characters", 1),
            ("max_body_bytes", 1),
            ("max_uploaded_voices", 0),
            ("max_batch", 1),
        ):
            value = getattr(self, name)
            check_integer(name, value, optional=name == "max_per_key")
            if value is not None and value < minimum:
                raise ParameterError(f"{name} must be at least {minimum}, got {value}")
        for name in ("deadline_seconds", "idle_seconds", "drain_seconds", "unload_seconds"):
            value = getattr(self, name)
            check_number(name, value, optional=name == "unload_seconds")
            if value is not None and not 0 < value < float("inf"):
                raise ParameterError(f"{name} must be above 0 and finite, got {value}")
        for prefix in self.reference_urls:
            scheme, _, rest = prefix.partition("://")
            # Without the slash after the host, https://voices.example would also allow https://voices.example.evil.
            if scheme not in ("http", "https") or "/" not in rest or "@" in rest:
                raise ParameterError(f"reference_urls must be such as https://voices.example/, got {prefix!r:.100}")
        for folder in self.reference_folders:
            if not os.path.isdir(folder):  # a name that is too long is none
                raise ParameterError(f"reference_folders must be existing folders, got {folder}")
        if any(not key or not key.isascii() or not key.isprintable() or " " in key for key in self.api_keys):
            raise ParameterError("api_keys must be printable ASCII without spaces, got another or an empty one")
