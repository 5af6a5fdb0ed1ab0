"""Fixtures of the tests of checkpoints: a model of random weights, and a Hub on this machine."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import constants

from higgs_native.testing.random_checkpoint import write_language_model
from tests.model.test_transformer import config


COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONFIG = b'{"model_type": "higgs_audio_v2"}'


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source") / "model"
    write_language_model(folder, config(hidden_size=144, intermediate_size=200, audio_delay_token_id=270))
    return folder


class Hub(BaseHTTPRequestHandler):
    """A Hub with one repository, owner/name; `failure` replaces its answers to requests for a path that holds `at`."""

    files = ("config.json", "model.safetensors")
    failure: tuple[int, dict[str, str]] | str | None = None
    at = ""

    def do_GET(self) -> None:
        if self.failure is not None and self.at in self.path:
            self.fail()
        elif "/tree/" in self.path:
            listed = [{"type": "file", "path": name, "size": len(CONFIG), "oid": "1" * 40} for name in self.files]
            self.answer(200, json.dumps(listed).encode())
        elif "/resolve/" in self.path:
            self.answer(200, CONFIG, **{"X-Repo-Commit": COMMIT, "ETag": '"1"'})
        else:
            files = [{"rfilename": name} for name in self.files]
            self.answer(200, json.dumps({"id": "owner/name", "sha": COMMIT, "siblings": files}).encode())

    do_HEAD = do_POST = do_GET

    def fail(self) -> None:
        if self.failure == "silence":
            self.server.ended.wait()
        elif self.failure == "another page":
            self.answer(200, b"<html>Sign in to this network</html>")
        else:
            status, headers = self.failure
            self.answer(status, b"", **headers)

    def answer(self, status: int, contents: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(contents)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(contents)

    def log_message(self, *arguments: object) -> None:
        """Keep quiet."""


def set_endpoint(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    address = f"http://127.0.0.1:{port}"
    files = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
    monkeypatch.setattr(constants, "ENDPOINT", address)


@pytest.fixture
def endpoint(tmp_path, monkeypatch) -> Iterator[type[Hub]]:
    """The class whose attributes decide what the Hub answers."""

    class Handler(Hub):
        pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.ended = threading.Event()
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        set_endpoint(monkeypatch, server.server_port)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield Handler
        server.ended.set()
        server.shutdown()
