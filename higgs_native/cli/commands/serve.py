"""`higgs-native serve`: speech over HTTP."""

import importlib
import os
import socket
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from higgs_native.cli.options import (
    AdapterOption,
    AudioTokenizerOption,
    DeviceOption,
    DtypeOption,
    ModelOption,
    QuantizationOption,
    VoicesOption,
)
from higgs_native.errors import ParameterError
from higgs_native.utils.variables import KEYS_VARIABLE, VOICES_VARIABLE


if TYPE_CHECKING:  # the extra `serve` may be missing
    from higgs_native.server.settings import ServerSettings


_EXTRAS = {
    "serve": ("fastapi", "uvicorn", "prometheus_client", "av", "python_multipart", "websockets"),
    "wyoming": ("wyoming",),
}


def serve(
    host: Annotated[str, typer.Option(help="The address to listen at; 0.0.0.0 for all interfaces.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 chooses a free one.")] = 8000,
    model: ModelOption = None,
    audio_tokenizer: AudioTokenizerOption = None,
    model_id: Annotated[
        str | None,
        typer.Option(help="Name of the model in /v1/models.", show_default="that of its kind, such as higgs-audio-v2"),
    ] = None,
    voices: VoicesOption = None,
    adapter: AdapterOption = None,
    api_keys: Annotated[
        Path | None,
        typer.Option(
            help="A file with the keys of clients, one per line.",
            show_default=f"those of ${KEYS_VARIABLE}, separated by commas; without keys, everybody may speak",
        ),
    ] = None,
    cors_origin: Annotated[
        list[str] | None, typer.Option(help="An origin whose pages may call the server, or *; may be repeated.")
    ] = None,
    max_running: Annotated[int, typer.Option(help="Maximum number of requests that are spoken at once.")] = 16,
    max_queued: Annotated[int, typer.Option(help="Maximum number of requests that wait; more get status 429.")] = 64,
    max_per_key: Annotated[
        int | None, typer.Option(help="Maximum number of running and waiting requests per key.", show_default="none")
    ] = None,
    deadline: Annotated[float, typer.Option(help="Maximum seconds from a request's arrival to its end.")] = 600.0,
    unload_after: Annotated[
        float | None,
        typer.Option(
            help="Seconds without speech after which the model's memory is freed; the next request loads it again.",
            show_default="never",
        ),
    ] = None,
    drain: Annotated[float, typer.Option(help="Maximum seconds that running requests get after SIGTERM.")] = 60.0,
    max_characters: Annotated[int, typer.Option(help="Maximum number of characters of a text.")] = 50_000,
    max_body_bytes: Annotated[int, typer.Option(help="Maximum bytes of a request, uploads included.")] = 16 << 20,
    reference_url: Annotated[
        list[str] | None,
        typer.Option(
            help="A prefix of URLs that ref_audio may name, such as https://voices.example/; may be repeated.",
            show_default="none",
        ),
    ] = None,
    reference_folder: Annotated[
        list[Path] | None,
        typer.Option(help="A folder whose files ref_audio may name by file://; may be repeated.", show_default="none"),
    ] = None,
    wyoming_port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65535,
            help="Also serve the Wyoming protocol (Home Assistant), at this port.",
            show_default="none",
        ),
    ] = None,
    device: DeviceOption = "auto",
    devices: Annotated[
        str | None,
        typer.Option(
            help="Devices such as cuda:0,cuda:1: a process for each, behind one port. The limits hold per process.",
            show_default="one process, on --device",
        ),
    ] = None,
    dtype: DtypeOption = "auto",
    quantization: QuantizationOption = None,
) -> None:
    """Serve speech over HTTP, with the interface of OpenAI's speech API.

    SIGTERM and Ctrl-C end the server: it refuses new requests, finishes the running ones, and exits with 0.
    """
    check_extra("serve")
    from higgs_native.checkpoint.adapter import Adapter
    from higgs_native.cli.inputs import notice_embedded_voice, parsed_adapters
    from higgs_native.pipeline import HiggsAudio
    from higgs_native.prompt.voices import list_voices
    from higgs_native.server.settings import ServerSettings

    folder = voices or (Path(os.environ[VOICES_VARIABLE]) if os.environ.get(VOICES_VARIABLE) else None)
    settings = ServerSettings(
        model_id=model_id,
        voices_folder=None if folder is None else Path(os.path.expanduser(folder)),
        api_keys=_read_keys(api_keys),
        cors_origins=tuple(cors_origin or ()),
        max_running=max_running,
        max_queued=max_queued,
        max_per_key=max_per_key,
        deadline_seconds=deadline,
        drain_seconds=drain,
        unload_seconds=unload_after,
        max_characters=max_characters,
        max_body_bytes=max_body_bytes,
        reference_urls=tuple(reference_url or ()),
        reference_folders=tuple(Path(os.path.expanduser(path)) for path in reference_folder or ()),
    )
    if settings.voices_folder is not None:
        list_voices(settings.voices_folder)
    adapters = parsed_adapters(adapter)
    for folder in adapters.values():
        Adapter.from_pretrained(folder)  # refuses what is wrong before a port is taken
    workers = None if devices is None else _checked_devices(devices, device)
    bound = _bound(host, port, "--port")
    wyoming = None if wyoming_port is None else _bound_for_wyoming(host, wyoming_port, settings)
    notice_embedded_voice(model)
    load = partial(
        HiggsAudio.from_pretrained,
        model,
        dtype=dtype,
        audio_tokenizer=audio_tokenizer,
        quantization=quantization,
        adapters=adapters,
    )
    if workers is None or sys.platform == "win32":
        from higgs_native.server.running import run

        run(partial(load, device=device), settings, bound, lambda: _announce(bound, wyoming), wyoming=wyoming)
    else:
        from higgs_native.server.supervisor import Supervisor

        Supervisor(workers, load, settings, bound, lambda: _announce(bound, wyoming), wyoming).run()


def check_extra(extra: str) -> None:
    """Raise ParameterError if a package of an extra is missing."""
    for name in _EXTRAS[extra]:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ParameterError(
                f"the extra {extra} must be installed (pip install 'higgs-native[{extra}]'), got none of {name}: "
                f"{error}"
            ) from None


def _read_keys(path: Path | None) -> tuple[str, ...]:
    if path is None:
        return tuple(key.strip() for key in os.environ.get(KEYS_VARIABLE, "").split(",") if key.strip())
    try:
        lines = Path(os.path.expanduser(path)).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ParameterError(f"--api-keys must be a text file, got {path}: {error}") from None
    keys = tuple(line.strip() for line in lines if line.strip())
    if not keys:
        raise ParameterError(f"--api-keys must hold at least one key, got {path}, which holds none")
    return keys


def _checked_devices(devices: str, device: str) -> tuple[str, ...]:
    """Return the names in --devices, each the one of a device that there is."""
    from higgs_native.ops.device import checked_device

    if device != "auto":
        raise ParameterError(f"--device must be left out with --devices, got {device}")
    if sys.platform == "win32":  # whose processes inherit no socket
        raise ParameterError(f"--devices must be left out on Windows, got {devices}")
    return tuple(str(checked_device(name.strip())) for name in devices.split(","))


def _bound_for_wyoming(host: str, port: int, settings: "ServerSettings") -> socket.socket:
    check_extra("wyoming")
    if settings.api_keys:
        raise ParameterError("--wyoming-port must be left out if there are keys, which its clients can't send")
    return _bound(host, port, "--wyoming-port")


def _bound(host: str, port: int, option: str) -> socket.socket:
    """Return a socket that is bound, so that a port in use shows before the weights are loaded."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except UnicodeError:
        raise ParameterError(f"--host must be a name or an address, got {host}") from None
    except OSError as error:
        raise ParameterError(f"--host and {option} must be free, got {host}:{port}: {error.strerror}") from None
    return bound


def _announce(bound: socket.socket, wyoming: socket.socket | None) -> None:
    print(f"Speech at http://{_address(bound)}/v1/audio/speech", file=sys.stderr, flush=True)
    if wyoming is not None:
        print(f"Wyoming at tcp://{_address(wyoming)}", file=sys.stderr, flush=True)


def _address(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
