"""Weights whose values are not finite in the dtype to load them in."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from higgs_native import HiggsAudioModel
from higgs_native.errors import CheckpointError


@pytest.mark.parametrize(
    ("quantization", "value"), [(None, torch.nan), ("fp8", torch.inf), ("int8", -torch.inf), ("int4", torch.nan)]
)
def test_weights_that_are_not_finite_are_named(source, tmp_path, quantization, value):
    """Tables, norms, matrices, those that are packed together, and both heads."""
    tensors = load_file(source / "model.safetensors")
    shutil.copy(source / "config.json", tmp_path)
    for name in (
        "model.embed_tokens.weight",
        "model.embed_audio_tokens.embed_audio_tokens.weight",
        "model.norm.weight",
        "model.layers.1.audio_input_layernorm.weight",
        "model.layers.1.self_attn.o_proj.weight",
        "model.layers.3.self_attn.k_proj.weight",
        "model.layers.2.audio_mlp.up_proj.weight",
        "audio_lm_head.weight",
        "text_lm_head.weight",
    ):
        changed = tensors[name].clone()
        changed.view(-1)[-1] = value
        save_file({**tensors, name: changed}, tmp_path / "model.safetensors")
        with pytest.raises(CheckpointError) as error:
            HiggsAudioModel.from_pretrained(tmp_path, quantization=quantization)
        assert str(error.value) == f"{tmp_path}: {name} must be finite in bfloat16, got NaN or infinity"


def test_values_too_large_for_the_asked_dtype_are_named(source, tmp_path):
    shutil.copytree(source, tmp_path / "model")
    tensors = load_file(source / "model.safetensors")
    tensors["model.norm.weight"][0] = 1e30
    save_file(tensors, tmp_path / "model" / "model.safetensors")
    assert HiggsAudioModel.from_pretrained(tmp_path / "model").norm[0] > 9e29
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight must be finite in float16, got NaN or infinity"):
        HiggsAudioModel.from_pretrained(tmp_path / "model", dtype="float16")
