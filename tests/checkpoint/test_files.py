"""Files of a checkpoint that are none: pipes, devices, huge ones, and names that are no text to print."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from higgs_native.audio_tokenizer.tokenizer import HiggsAudioTokenizer
from higgs_native.checkpoint.files import load_tokenizer
from higgs_native.checkpoint.packed import PACKED_FILE, write_packed
from higgs_native.checkpoint.rewriting import write_rewritten
from higgs_native.errors import MAX_MESSAGE, CheckpointError, HiggsNativeError
from higgs_native.model.transformer import LanguageModel
from higgs_native.testing.configs import DEMO_AUDIO_TOKENIZER_CONFIG, DEMO_CONFIG
from higgs_native.testing.random_checkpoint import write_audio_tokenizer, write_demo_checkpoint, write_language_model


def make_sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**40)


ENDLESS = {
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "sparse": make_sparse,
    "folder": Path.mkdir,
}
NETWORKS = {
    "language model": (LanguageModel, lambda folder: write_language_model(folder, DEMO_CONFIG)),
    "audio tokenizer": (
        HiggsAudioTokenizer,
        lambda folder: write_audio_tokenizer(folder, DEMO_AUDIO_TOKENIZER_CONFIG),
    ),
}


def refusal(network: type, folder: Path) -> str:
    with pytest.raises(HiggsNativeError) as error:
        network.from_pretrained(folder)
    message = str(error.value)
    assert message.isprintable()
    assert len(message) <= MAX_MESSAGE
    return message


@pytest.mark.parametrize("kind", ENDLESS)
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "model.safetensors.index.json"])
def test_a_file_that_may_never_end_is_not_read(tmp_path, network, name, kind):
    load, write = NETWORKS[network]
    write(tmp_path)
    if name.endswith("index.json"):
        (tmp_path / "model.safetensors").unlink()
    else:
        (tmp_path / name).unlink()
    ENDLESS[kind](tmp_path / name)
    message = refusal(load, tmp_path)
    if name == "config.json":
        expected = "it is larger than 16777216 bytes" if kind == "sparse" else "it is not a regular file"
        assert message == f"{tmp_path / name} can't be read: {expected}"
    elif kind == "sparse":
        assert f"{name} is damaged" in message
    else:
        assert "must hold model.safetensors or model." in message


@pytest.mark.parametrize("kind", ENDLESS)
def test_a_pickle_that_may_never_end_is_not_read(tmp_path, kind):
    write_audio_tokenizer(tmp_path, DEMO_AUDIO_TOKENIZER_CONFIG)
    (tmp_path / "model.safetensors").unlink()
    ENDLESS[kind](tmp_path / "model.pth")
    expected = "model.pth is damaged or incomplete" if kind == "sparse" else "must hold model.safetensors or model.pth"
    assert expected in refusal(HiggsAudioTokenizer, tmp_path)


@pytest.mark.parametrize("kind", ENDLESS)
def test_a_tokenizer_that_may_never_end_is_not_read(tmp_path, kind):
    write_language_model(tmp_path, DEMO_CONFIG)
    (tmp_path / "tokenizer.json").unlink()
    assert load_tokenizer(tmp_path) is None
    ENDLESS[kind](tmp_path / "tokenizer.json")
    expected = "it is larger than 134217728 bytes" if kind == "sparse" else "it is not a regular file"
    assert refusal(LanguageModel, tmp_path) == f"{tmp_path / 'tokenizer.json'} can't be read: {expected}"


@pytest.mark.parametrize(
    "contents", [b"", b"{}", b"\xff", b"[" * 100_000, b'{"version": "1.0", "model": {"type": 5}}']
)
def test_a_damaged_tokenizer_is_refused(tmp_path, contents):
    (tmp_path / "tokenizer.json").write_bytes(contents)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is damaged: ."):
        load_tokenizer(tmp_path)


def test_what_may_never_end_is_not_copied(tmp_path):
    write_demo_checkpoint(tmp_path / "model")
    for folder in (tmp_path / "model", tmp_path / "model" / "audio_tokenizer"):
        (folder / "notes.json").symlink_to("/dev/zero")
        os.mkfifo(folder / "pipe.txt")
        (folder / "loop").symlink_to(".")
    model = LanguageModel.from_pretrained(tmp_path / "model")
    write_packed(model.named_weights(), model.quantization, tmp_path / "model", tmp_path / "packed")
    write_rewritten(tmp_path / "model", tmp_path / "rewritten", lambda name, tensor: tensor)
    files = ["audio_tokenizer", "audio_tokenizer/config.json", "audio_tokenizer/model.safetensors", "config.json"]
    for folder, weights in (("packed", PACKED_FILE), ("rewritten", "model.safetensors")):
        written = sorted(str(path.relative_to(tmp_path / folder)) for path in (tmp_path / folder).rglob("*"))
        assert written == [*files, weights, "tokenizer.json", "tokenizer_config.json"]


NAMES = ["a\x1b[2Jb", "a\nb", "\u202etxt", "\x9b31m", "a\u2028b", "n" * 5000]


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_names_in_files_are_printed_as_text(tmp_path, network, name):
    """Names of tensors, of files in an index, and of folders."""
    load, write = NETWORKS[network]
    folder = tmp_path / name[:100]
    write(folder)
    stored = load_file(folder / "model.safetensors")
    save_file({**stored, name: torch.zeros(1)}, folder / "model.safetensors")
    assert "1 unknown (" in refusal(load, folder)
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    for weight_map in ({name: 3}, {"a": f"{name}/b"}, {"a": name[:100]}):
        index.write_text(json.dumps({"weight_map": weight_map}))
        assert "model.safetensors.index.json" in refusal(load, folder)
    (folder / "config.json").write_text(json.dumps({"model_type": name}))
    refusal(load, folder)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(
    "contents",
    [b"[" * 5000 + b"]" * 5000, b'{"a": ' + b"[" * 5000 + b"]" * 5000 + b"}", b'{"a": ' + b"9" * 4301 + b"}"],
)
def test_json_that_python_can_not_hold_is_refused(tmp_path, network, contents):
    load, write = NETWORKS[network]
    write(tmp_path)
    (tmp_path / "config.json").write_bytes(contents)
    assert "config.json is not readable as JSON" in refusal(load, tmp_path)
