"""Checkpoints with random weights: complete, the same each time, in either layout."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from higgs_native.audio_tokenizer.config import HiggsAudioTokenizerConfig
from higgs_native.audio_tokenizer.weights import tensor_shapes
from higgs_native.checkpoint.config import HiggsAudioConfig
from higgs_native.checkpoint.language_model import LanguageModelFiles, expected_tensors
from higgs_native.errors import CheckpointError, ConfigError
from higgs_native.testing.byte_tokenizer import build_tokenizer
from higgs_native.testing.configs import DEMO_AUDIO_TOKENIZER_CONFIG, DEMO_CONFIG, REAL_SIZE_CONFIG
from higgs_native.testing.random_checkpoint import write_audio_tokenizer, write_demo_checkpoint, write_language_model


def read(folder: Path) -> dict[str, torch.Tensor]:
    config = HiggsAudioConfig.from_pretrained(folder)
    files = LanguageModelFiles(folder, config)
    tensors = {}
    for name, shape in expected_tensors(config).items():
        tensors[name] = torch.empty(shape)
        files.copy_into(tensors[name], name)
    return tensors


@pytest.mark.parametrize("layout", ["transformers", "original"])
def test_config_is_read_back(tmp_path: Path, layout: str) -> None:
    write_language_model(tmp_path, DEMO_CONFIG, layout)
    absent = (
        {"audio_in_token_id": None, "audio_eos_token_id": None}
        if layout == "transformers"
        else {"audio_delay_token_id": None}
    )
    assert HiggsAudioConfig.from_pretrained(tmp_path) == dataclasses.replace(DEMO_CONFIG, **absent)


def test_layouts_and_shards_hold_the_same_weights(tmp_path: Path) -> None:
    write_language_model(tmp_path / "whole", DEMO_CONFIG, "transformers", seed=3)
    write_language_model(tmp_path / "sharded", DEMO_CONFIG, "original", seed=3, shard_bytes=200_000)
    write_language_model(tmp_path / "other", DEMO_CONFIG, "original", seed=4)
    shards = sorted((tmp_path / "sharded").glob("*.safetensors"))
    assert len(shards) > 3
    index = json.loads((tmp_path / "sharded" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {shard.name for shard in shards}
    assert index["metadata"]["total_size"] == sum(t.nbytes for shard in shards for t in load_file(shard).values())
    whole, sharded, other = (read(tmp_path / name) for name in ("whole", "sharded", "other"))
    for name, tensor in whole.items():
        assert torch.equal(tensor, sharded[name]), name
        assert not torch.equal(tensor, other[name]), name


def test_values_keep_activations_near_one(tmp_path: Path) -> None:
    config = dataclasses.replace(DEMO_CONFIG, hidden_size=256, intermediate_size=1024)
    write_language_model(tmp_path, config)
    tensors = read(tmp_path)
    for name, expected in {
        "layers.0.self_attn.q_proj.weight": 1 / 16,
        "layers.1.audio_mlp.down_proj.weight": 1 / 32,
        "embed_tokens.weight": 1.0,
        "audio_codebook_embeddings.weight": 8**-0.5,
    }.items():
        assert abs(tensors[name].std() / expected - 1) < 0.02, name
        assert abs(tensors[name].mean() / expected) < 0.02, name
    assert abs(tensors["norm.weight"].mean() - 1) < 0.05
    gate, up = (tensors[f"layers.0.mlp.{name}_proj.weight"] for name in ("gate", "up"))
    assert abs((gate * up).mean() / (gate.std() * up.std())) < 0.01


def test_endless_differs_in_the_rows_of_eos_alone(tmp_path: Path) -> None:
    # Wider than a block of normals, so that the rows lie in several pieces.
    config = dataclasses.replace(DEMO_CONFIG, hidden_size=768, num_hidden_layers=1, audio_dual_ffn_layers=(0,))
    write_language_model(tmp_path / "ending", config)
    write_language_model(tmp_path / "endless", config, endless=True)
    ending, endless = read(tmp_path / "ending"), read(tmp_path / "endless")
    name = "audio_decoder_proj.audio_lm_head.weight"
    expected = ending[name].view(8, 1026, 768).clone()
    expected[:, config.audio_stream_eos_id] = 0
    assert torch.equal(endless.pop(name).view_as(expected), expected)
    assert all(torch.equal(tensor, ending[other]) for other, tensor in endless.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    write_language_model(tmp_path, DEMO_CONFIG, dtype=dtype)
    assert {tensor.dtype for tensor in load_file(tmp_path / "model.safetensors").values()} == {dtype}


def test_plain_layers_have_no_audio_path(tmp_path: Path) -> None:
    config = dataclasses.replace(DEMO_CONFIG, audio_dual_ffn_layers=(1,))
    write_language_model(tmp_path, config, "original")
    names = load_file(tmp_path / "model.safetensors")
    assert "layers.1.audio_mlp.up_proj.weight" in names
    assert not any(name.startswith("layers.0.audio_") for name in names)
    with pytest.raises(ConfigError, match="layout must be 'original' for layers without an audio path"):
        write_language_model(tmp_path / "new", config, "transformers")


@pytest.mark.parametrize("config", [DEMO_CONFIG, REAL_SIZE_CONFIG], ids=["demo", "real"])
def test_tokenizer(config: HiggsAudioConfig) -> None:
    tokenizer = Tokenizer.from_str(build_tokenizer(config).to_str())
    assert tokenizer.get_vocab_size() == config.vocab_size
    for token, token_id in {
        "<|AUDIO|>": config.audio_in_token_id,
        "<|AUDIO_OUT|>": config.audio_out_token_id,
        "<|audio_out_bos|>": config.audio_out_bos_token_id,
        "<|audio_eos|>": config.audio_eos_token_id,
        "<|reserved_special_token_6|>": config.audio_delay_token_id,
        "<|end_of_text|>": config.pad_token_id,
        "<|eot_id|>": config.eos_token_id,
    }.items():
        assert tokenizer.encode(f"a{token}b", add_special_tokens=False).ids[1:-1] == [token_id]
    text = "Grüße, 你好\n\n<|scene_desc_start|> 🙂 <|unused_300|>"
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert len(ids) == len(text.replace("<|scene_desc_start|>", "").encode()) + 1
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert tokenizer.decode(ids) == text.replace("<|scene_desc_start|>", "")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 270}, "vocab_size must be at least 271, got 270"),
        ({"audio_out_token_id": 300}, "must be 256 to 287, got 300"),
        ({"audio_out_token_id": 271}, "ids of special tokens must differ"),
        ({"audio_delay_token_id": None}, "audio_delay_token_id must be an id in the transformers layout, got None"),
    ],
)
def test_refuses_what_it_cannot_write(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        write_language_model(tmp_path / "new", dataclasses.replace(DEMO_CONFIG, **changes))
    assert not (tmp_path / "new").exists()


def test_keeps_a_model_that_is_there(tmp_path: Path) -> None:
    write_language_model(tmp_path, DEMO_CONFIG)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    with pytest.raises(CheckpointError, match="folder must not hold a model, got"):
        write_language_model(tmp_path, DEMO_CONFIG, seed=1)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_demo_is_small_and_whole(tmp_path: Path) -> None:
    write_demo_checkpoint(tmp_path)
    assert HiggsAudioConfig.from_pretrained(tmp_path).num_codebooks == 8
    audio_tokenizer = tmp_path / "audio_tokenizer"
    config = HiggsAudioTokenizerConfig.from_pretrained(audio_tokenizer)
    assert config == DEMO_AUDIO_TOKENIZER_CONFIG
    assert (config.num_codebooks, config.codebook_size) == (8, DEMO_CONFIG.codebook_size - 2)
    tensors = load_file(audio_tokenizer / "model.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == tensor_shapes(config)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < 16e6
    with pytest.raises(CheckpointError, match="folder must not hold a model, got"):
        write_audio_tokenizer(audio_tokenizer, config)


def test_transformers_reads_the_audio_tokenizer(tmp_path: Path) -> None:
    from tests.helpers.transformers_reference import transformers

    write_audio_tokenizer(tmp_path, DEMO_AUDIO_TOKENIZER_CONFIG)
    model, report = transformers.HiggsAudioV2TokenizerModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        audio = 0.2 * torch.randn(1, 1, 48000, generator=generator)
        codes = model.encode(audio).audio_codes
        assert codes.shape == (1, 8, 50)
        assert all(len(row.unique()) > 20 for row in codes[0])
        sound = model.decode(torch.randint(0, 1024, (1, 8, 50), generator=generator)).audio_values
    assert 0.03 < sound.std() < 0.3
    assert sound.abs().max() < 1


def test_transformers_reads_it(tmp_path: Path) -> None:
    from tests.helpers import transformers_reference as reference

    write_language_model(tmp_path, DEMO_CONFIG, dtype=torch.float32)
    model = reference.load(tmp_path)
    ours = read(tmp_path)
    assert torch.equal(model.model.layers[1].audio_mlp.up_proj.weight, ours["layers.1.audio_mlp.up_proj.weight"])
    assert reference.native_config(model.config) == HiggsAudioConfig.from_pretrained(tmp_path)
    prompt = reference.random_prompt(model.config, 0, reference_frames=(6,))
    logits = reference.generate(model, [prompt], 12).logits
    assert 0.5 < logits.std() < 2
