"""Checkpoints and adapters are uploaded to a Hub that this process plays."""

import json
import shutil

import huggingface_hub
import pytest

from higgs_native import push_to_hub
from higgs_native.checkpoint.packed import PACKED_FILE
from higgs_native.cli import main
from higgs_native.errors import CheckpointError, ParameterError
from higgs_native.pipeline import EMBEDDED_VOICE
from higgs_native.testing.random_checkpoint import write_language_model
from tests.model.test_transformer import config


ADDRESS = "https://hub.example/owner/name"


class Api:
    """Takes what is uploaded, in place of the Hub's client."""

    def __init__(self, token: str | None = None) -> None:
        self.tokens.append(token)

    def create_repo(self, name, private, exist_ok):
        self.made.append((name, private, exist_ok))
        return ADDRESS

    def upload_folder(self, repo_id, folder_path, commit_message):
        self.files |= {path.name: path.read_bytes() for path in folder_path.iterdir() if path.is_file()}

    def upload_file(self, path_or_fileobj, path_in_repo, repo_id):
        self.files[path_in_repo] = path_or_fileobj

    def file_exists(self, name, path):
        return path in self.files


@pytest.fixture
def api(monkeypatch):
    """The class of the client, whose attributes tell what it was asked for."""
    fields = {"tokens": [], "made": [], "files": {}}
    kind = type("Api", (Api,), fields)
    monkeypatch.setattr(huggingface_hub, "HfApi", kind)
    return kind


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A checkpoint as it lies in the Hub's cache."""
    folder = tmp_path_factory.mktemp("cache") / "models--bosonai--higgs" / "snapshots" / "0123"
    folder.parent.mkdir(parents=True)
    write_language_model(folder, config(hidden_size=144, intermediate_size=200, audio_delay_token_id=270))
    return folder


def run(*arguments):
    with pytest.raises(SystemExit) as exit:
        main([str(argument) for argument in arguments])
    return exit.value.code


def test_quantize_uploads_what_it_writes(api, source, tmp_path, capsys):
    packed = tmp_path / "packed"
    assert run("quantize", source, packed, "--push-to-hub", "owner/name", "--private") == 0
    assert capsys.readouterr().out.endswith(f"{ADDRESS}\n")
    assert set(api.made) == {("owner/name", True, True)}
    assert api.files[PACKED_FILE] == (packed / PACKED_FILE).read_bytes()
    card = api.files["README.md"].decode()
    head = "library_name: higgs-native\npipeline_tag: text-to-speech\nbase_model: bosonai/higgs\n"
    assert card.startswith(f"---\n{head}base_model_relation: quantized\n---\n# owner/name\n")
    assert "--model owner/name" in card


def test_an_adapter_names_its_base(api, tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "bosonai/higgs"}))
    assert push_to_hub(tmp_path, "owner/name", token="secret") == ADDRESS
    assert set(api.tokens) == {"secret"}
    card = api.files["README.md"].decode()
    assert "base_model: bosonai/higgs\nbase_model_relation: adapter\n" in card
    assert 'from_pretrained("bosonai/higgs", adapter=snapshot_download("owner/name"))' in card
    assert "secret" not in card


def test_a_card_is_kept(api, tmp_path):
    shutil.copytree(EMBEDDED_VOICE, tmp_path / "voice")
    push_to_hub(tmp_path / "voice", "owner/name")
    assert api.files["README.md"] == (EMBEDDED_VOICE / "README.md").read_bytes()


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("name", {}, ParameterError, "^name must be owner/name, got 'name'$"),
        ("../a/b", {}, ParameterError, "^name must be owner/name, got '../a/b'$"),
        (None, {}, ParameterError, "^name must be owner/name, got None$"),
        ("owner/name", {"private": "yes"}, ParameterError, "^private must be True or False, got 'yes'$"),
        ("owner/name", {"token": 1}, ParameterError, "^token must be a string or None, got 1$"),
    ],
)
def test_wrong_arguments_are_refused(api, source, name, options, error, message):
    with pytest.raises(error, match=message):
        push_to_hub(source, name, **options)
    assert api.made == []


def test_a_folder_without_a_checkpoint_is_refused(api, tmp_path):
    with pytest.raises(CheckpointError, match=f"^folder must hold a checkpoint or an adapter, got {tmp_path}$"):
        push_to_hub(tmp_path, "owner/name")
    (tmp_path / "adapter_config.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"adapter_config.json must be a JSON object, got"):
        push_to_hub(tmp_path, "owner/name")
    assert api.made == []


def test_what_the_hub_refuses_is_told_before_the_work(endpoint, source, tmp_path, capsys):
    endpoint.failure = (403, {"X-Error-Message": "You may not write here"})
    assert run("quantize", source, tmp_path / "packed", "--push-to-hub", "owner/name") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: the repository owner/name can't be made: ")
    assert "You may not write here" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "packed").exists()


def test_private_needs_a_repository(source, tmp_path, capsys):
    assert run("quantize", source, tmp_path / "packed", "--private") == 2
    assert capsys.readouterr().err == "error: --private must be given with --push-to-hub, got it alone\n"
