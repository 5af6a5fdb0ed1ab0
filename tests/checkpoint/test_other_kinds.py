"""Checkpoints of other kinds: each is named for what it is, with the way out, by both networks."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from higgs_native.audio_tokenizer.tokenizer import HiggsAudioTokenizer
from higgs_native.checkpoint.files import resolve_folder
from higgs_native.checkpoint.other_kinds import kind_of_config, kind_of_files, kind_of_tensors
from higgs_native.errors import CheckpointError
from higgs_native.model.transformer import LanguageModel
from higgs_native.testing.configs import DEMO_AUDIO_TOKENIZER_CONFIG, DEMO_CONFIG
from higgs_native.testing.random_checkpoint import write_audio_tokenizer, write_language_model


MERGE = "merge it into its model, such as with PEFT's merge_and_unload, and save the whole model"
ORIGINAL = "give the checkpoint that they were made from, with quantization='int8' or 'int4' to save memory"


@pytest.fixture(params=[LanguageModel, HiggsAudioTokenizer])
def network(request, tmp_path):
    """A class that loads checkpoints, and the folder of one that it can load."""
    folder = tmp_path / "model"
    if request.param is LanguageModel:
        write_language_model(folder, DEMO_CONFIG)
    else:
        write_audio_tokenizer(folder, DEMO_AUDIO_TOKENIZER_CONFIG)
    return request.param, folder


def refusal(network) -> str:
    kind, folder = network
    with pytest.raises(CheckpointError) as error:
        kind.from_pretrained(folder)
    return str(error.value)


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter(network, file):
    _, folder = network
    for path in folder.iterdir():
        path.unlink()
    (folder / file).write_text('{"peft_type": "LORA"}')
    assert refusal(network) == f"{folder} must hold a whole model with its config.json, got an adapter (LoRA): {MERGE}"


def test_an_adapter_beside_a_whole_model_does_not_matter(network):
    kind, folder = network
    (folder / "adapter_config.json").write_text("{}")
    kind.from_pretrained(folder)


@pytest.mark.parametrize(
    ("file", "named"),
    [
        ("adapter_model.safetensors", f"got an adapter (LoRA): {MERGE}"),
        ("model-Q4_K_M.gguf", "got a GGUF file, which llama.cpp reads: give the checkpoint that it was made from"),
        ("pytorch_model-00001-of-00002.bin", "got a pickle (.bin): save the model as safetensors"),
        ("notes.md", "got neither"),
    ],
)
def test_weights_in_files_of_another_kind(network, file, named):
    _, folder = network
    (folder / "model.safetensors").rename(folder / file)
    message = refusal(network)
    assert str(folder) in message
    assert "must hold model.safetensors or model." in message
    assert named in message


@pytest.mark.parametrize(
    ("quantization", "named"),
    [
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes to 8 bits"),
        ({"load_in_8bit": False, "load_in_4bit": True}, "bitsandbytes to 4 bits"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "gptq to 4 bits"),
        ({"quant_method": "awq", "bits": 4}, "awq to 4 bits"),
        ({"quant_method": "torchao"}, "torchao"),
        ({"quant_method": ["a"], "bits": [4]}, "['a']"),
        ("fp8", "other software"),
    ],
)
def test_a_configuration_of_quantized_weights(network, quantization, named):
    _, folder = network
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"quantization_config": quantization}))
    expected = f"{folder} must hold weights that are not quantized, got weights quantized by {named}: {ORIGINAL}"
    assert refusal(network) == expected


@pytest.mark.parametrize("empty", [None, {}])
def test_a_configuration_without_quantization(network, empty):
    kind, folder = network
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"quantization_config": empty}))
    kind.from_pretrained(folder)


@pytest.mark.parametrize(
    ("suffix", "named"),
    [
        ("SCB", f"weights quantized by bitsandbytes: {ORIGINAL}"),
        ("weight.quant_state.bitsandbytes__nf4", f"weights quantized by bitsandbytes: {ORIGINAL}"),
        ("qweight", f"weights quantized by GPTQ or AWQ: {ORIGINAL}"),
        ("weight_scale", f"weights quantized by other software: {ORIGINAL}"),
        ("lora_A.default.weight", f"an adapter (LoRA): {MERGE}"),
    ],
)
def test_tensors_of_quantized_weights_and_adapters(network, suffix, named):
    """Though config.json is that of the whole model."""
    _, folder = network
    stored = load_file(folder / "model.safetensors")
    first = next(name for name in stored if name.endswith(".weight"))
    surplus = f"{first.removesuffix('.weight')}.{suffix}"
    save_file({**stored, surplus: torch.zeros(1)}, folder / "model.safetensors")
    assert refusal(network).endswith(f"must fit its config.json, got {named}")


def test_a_file_in_place_of_a_folder(tmp_path):
    path = tmp_path / "higgs.Q4_K_M.gguf"
    path.touch()
    with pytest.raises(CheckpointError, match=r"holds config\.json, got a GGUF file, .* made from \(.*gguf\)$"):
        resolve_folder(path)


def test_published_checkpoints_are_of_no_other_kind():
    names = ("config.json", "model.safetensors", "model.safetensors.index.json", "model.pth", "tokenizer.json")
    assert kind_of_files(names) is None
    assert kind_of_config({"quantization_config": None}) is None
    assert kind_of_tensors(["layers.0.mlp.up_proj.weight", "quantizer.vq.layers.0._codebook.embed"]) is None
