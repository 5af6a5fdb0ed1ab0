"""Checkpoints on the Hub, played by a server on this machine: what is fetched, and why it can't be."""

import logging
import socket
import time
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.utils import are_progress_bars_disabled

from higgs_native import HiggsAudio, HiggsAudioModel, HiggsAudioTokenizer
from higgs_native.checkpoint import hub
from higgs_native.checkpoint.files import resolve_folder
from higgs_native.compat.boson import config as boson_config
from higgs_native.compat.boson import model as boson_model
from higgs_native.errors import CheckpointError, ParameterError
from tests.checkpoint.conftest import COMMIT, CONFIG, set_endpoint


def refusal(name: str = "owner/name") -> str:
    with pytest.raises(CheckpointError) as error:
        resolve_folder(name)
    return str(error.value)


def test_a_repository_is_fetched_and_then_found_without_the_hub(endpoint):
    folder = resolve_folder("owner/name")
    assert (folder / "config.json").read_bytes() == CONFIG
    assert folder.name == COMMIT
    endpoint.failure = (500, {})
    assert resolve_folder("owner/name") == folder
    assert resolve_folder(f"owner/name@{COMMIT}") == folder


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (
            (404, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}),
            "the Hub has no such repository, or it is private and HF_TOKEN must hold a token with access "
            "(HTTP 404: Repository not found)",
        ),
        (
            (404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id: new"}),
            "the repository has no revision new (HTTP 404: Invalid rev id: new)",
        ),
        (
            (403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "You are not on the list"}),
            "its owner must grant access, and the environment variable HF_TOKEN must hold your token "
            "(HTTP 403: You are not on the list)",
        ),
    ],
)
def test_the_hub_s_refusal_keeps_its_reason(endpoint, failure, reason):
    endpoint.failure = failure
    expected = f"model must be a folder or a Hub name, got owner/name, which could not be fetched: {reason}"
    assert refusal("owner/name@new") == expected


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        ((403, {"X-Error-Message": "Your plan has ended"}), "403 Forbidden: Your plan has ended."),
        ((404, {}), "404 Not Found"),
        ((500, {}), "500 Internal Server Error"),
        ("another page", "which could not be fetched: "),
    ],
)
def test_other_failures_are_told_whole(endpoint, failure, reason):
    endpoint.failure = failure
    message = refusal()
    assert reason in message
    assert not message.endswith(": ")


@pytest.mark.parametrize("at", ["/api/models/owner/name", "/resolve/"])
def test_a_hub_that_never_answers_ends_the_wait(endpoint, monkeypatch, at):
    """Neither the first request, which the client makes without a limit, nor those of a file, which it repeats."""
    monkeypatch.setattr(hub, "HUB_TIMEOUT", 0.2)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    endpoint.failure, endpoint.at = "silence", at
    message = refusal()
    assert message.endswith("got owner/name, which could not be fetched: the Hub did not answer within 0.2 seconds")


def test_a_hub_that_is_not_there_is_named(endpoint, monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        set_endpoint(monkeypatch, unused.getsockname()[1])
        assert "Connection refused" in refusal()


def test_an_interrupted_download_is_not_taken_for_a_checkpoint(endpoint):
    folder = resolve_folder("owner/name")
    (folder / "config.json").unlink()
    endpoint.failure = (500, {})
    assert "could not be fetched" in refusal()
    endpoint.failure = None
    assert (resolve_folder("owner/name") / "config.json").read_bytes() == CONFIG


@pytest.mark.parametrize("name", ["a" * 5000, "owner/" + "a" * 5000, "owner/na\x1b[31mme", "owner/\ud800", "owner/-"])
def test_names_that_are_none_are_refused(endpoint, name):
    message = refusal(name)
    assert message.startswith("model must be a folder or a Hub name")
    assert message.isprintable()


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        (("README.md", "model-Q4_K_M.gguf"), "a GGUF file, which llama.cpp reads"),
        (("config.json", "tokenizer.json", "model.gguf"), "a GGUF file"),
        (("config.json", "pytorch_model-00001-of-00002.bin"), "a pickle (.bin)"),
        (("adapter_config.json", "adapter_model.bin"), "an adapter (LoRA)"),
    ],
)
def test_a_repository_of_another_kind_is_named(endpoint, files, kind):
    endpoint.files = files
    assert refusal().startswith(f"model must be a folder or a Hub name, got owner/name, which holds {kind}")


def test_a_tokenizer_alone_is_fetched(endpoint):
    endpoint.files = ("tokenizer.json",)
    folder = resolve_folder("owner/name")
    assert [path.name for path in folder.iterdir()] == ["tokenizer.json"]
    endpoint.failure = (500, {})
    assert resolve_folder("owner/name") == folder


def test_options_of_the_client_are_handed_on(endpoint, tmp_path):
    endpoint.files = ("tokenizer.json",)
    with pytest.raises(CheckpointError, match="could not be fetched: Cannot find an appropriate cached snapshot"):
        resolve_folder("owner/name", cache_dir=tmp_path / "mine", local_files_only=True)
    folder = resolve_folder("owner/name", cache_dir=tmp_path / "mine", token="secret")
    assert folder.is_relative_to(tmp_path / "mine")
    endpoint.failure = "silence"  # not asked
    assert resolve_folder("owner/name", cache_dir=tmp_path / "mine", local_files_only=True) == folder


def test_the_client_s_bars_are_hidden_where_those_of_the_package_are(endpoint, monkeypatch):
    hidden = []

    def download(name, **options):
        hidden.append(are_progress_bars_disabled())
        raise OSError("no more is needed")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    logger = logging.getLogger("higgs_native")
    for level in (logging.NOTSET, logging.ERROR):
        logger.setLevel(level)
        try:
            refusal()
        finally:
            logger.setLevel(logging.NOTSET)
    assert hidden == [False, True]
    assert not are_progress_bars_disabled()


def test_the_revision_may_be_an_option(endpoint):
    folder = resolve_folder("owner/name", revision=COMMIT)
    endpoint.failure = (500, {})
    assert resolve_folder(f"owner/name@{COMMIT}") == folder
    with pytest.raises(ParameterError, match="revision must be None for the name owner/name@main, got 'v1'"):
        resolve_folder("owner/name@main", revision="v1")


def load_boson_config(name, **options):
    return boson_config.HiggsAudioConfig.from_pretrained(name, **options)


def load_boson_model(name, **options):
    return boson_model.HiggsAudioModel.from_pretrained(name, **options)


FACES = [HiggsAudio.from_pretrained, HiggsAudioModel.from_pretrained, HiggsAudioTokenizer.from_pretrained]


@pytest.mark.parametrize("load", [*FACES, load_boson_config, load_boson_model], ids=lambda load: load.__qualname__)
def test_every_face_hands_options_on(endpoint, tmp_path, load):
    endpoint.failure = "silence"  # not asked
    with pytest.raises(CheckpointError, match="could not be fetched: Cannot find an appropriate cached snapshot"):
        load("owner/name", cache_dir=tmp_path / "mine", local_files_only=True, token="secret", revision="v1")


@pytest.mark.parametrize("load", FACES, ids=lambda load: load.__qualname__)
def test_a_mistyped_option_is_refused(demo_folder, load):
    with pytest.raises(ParameterError, match=r"options must be of revision, token, .*, got 'cache_dirs'"):
        load(demo_folder, cache_dirs="mine")
    with pytest.raises(ParameterError, match="got 'devise'"):
        HiggsAudio.from_pretrained(devise="cpu")


def test_the_client_s_other_requests_are_as_before(endpoint):
    from huggingface_hub.utils import get_session

    resolve_folder("owner/name")
    hooks = list(get_session().event_hooks["request"])
    endpoint.failure = (404, {"X-Error-Code": "RepoNotFound"})
    refusal("owner/other")
    assert get_session().event_hooks["request"] == hooks
    assert Path(constants.HF_HUB_CACHE).is_dir()
