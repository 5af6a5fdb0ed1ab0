"""Adapters: what they add, to either layout, and which are refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from higgs_native.checkpoint.adapter import BASE_KEY, CONFIG_FILE, WEIGHTS_FILE, Adapter
from higgs_native.checkpoint.language_model import LanguageModelFiles
from higgs_native.checkpoint.packed import write_packed
from higgs_native.checkpoint.rewriting import write_rewritten
from higgs_native.errors import CheckpointError, HiggsNativeError, ParameterError
from higgs_native.model.transformer import LanguageModel
from higgs_native.testing.configs import DEMO_CONFIG
from higgs_native.testing.random_checkpoint import write_language_model


QUERY = "layers.1.self_attn.q_proj.weight"
TABLE = "audio_codebook_embeddings.weight"
SETTINGS = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "bias": "none", "use_dora": False, "fan_in_fan_out": False}


@pytest.fixture(params=["original", "transformers"])
def base(request, tmp_path) -> Path:
    write_language_model(tmp_path / "base", DEMO_CONFIG, layout=request.param, dtype=torch.float32)
    return tmp_path / "base"


def factors(seed: int = 1) -> dict[str, torch.Tensor]:
    """Factors of one projection and one table, by PEFT's names."""
    generator = torch.Generator().manual_seed(seed)
    rows = DEMO_CONFIG.num_codebooks * DEMO_CONFIG.codebook_size
    query, table = "base_model.model.model.layers.1.self_attn.q_proj", "embed_audio_tokens.embed_audio_tokens"
    shapes = {
        f"{query}.lora_A.weight": (3, 64),
        f"{query}.lora_B.weight": (64, 3),
        f"base_model.model.model.{table}.lora_embedding_A": (3, rows),
        f"base_model.model.model.{table}.lora_embedding_B": (64, 3),
    }
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def write_adapter(folder: Path, tensors=None, metadata=None, **settings) -> Path:
    folder.mkdir()
    save_file(factors() if tensors is None else tensors, folder / WEIGHTS_FILE, metadata)
    (folder / CONFIG_FILE).write_text(json.dumps(SETTINGS | settings))
    return folder


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    files = LanguageModelFiles(folder, DEMO_CONFIG)
    values = {}
    for name in (QUERY, TABLE, "norm.weight"):
        with files.opened(name, torch.float32) as tensor:
            values[name] = tensor.clone()
    return values


def test_factors_are_added(base, tmp_path):
    adapter = Adapter.from_pretrained(write_adapter(tmp_path / "adapter"))
    before = tensors_of(base)
    (a, b), (table_a, table_b) = list(factors().values())[:2], list(factors().values())[2:]
    torch.testing.assert_close(adapter.added(QUERY, before[QUERY]), before[QUERY] + 2 * b @ a)
    torch.testing.assert_close(adapter.added(TABLE, before[TABLE]), before[TABLE] + 2 * (table_b @ table_a).T)
    assert adapter.added("norm.weight", before["norm.weight"]) is before["norm.weight"]


def test_rslora_divides_by_the_root_of_the_rank(tmp_path):
    assert Adapter.from_pretrained(write_adapter(tmp_path / "a", use_rslora=True)).scale == pytest.approx(6 / 3**0.5)


@pytest.mark.parametrize("quantization", [None, "int8"])
def test_a_model_with_an_adapter_is_the_merged_checkpoint(base, tmp_path, quantization):
    folder = write_adapter(tmp_path / "adapter")
    write_rewritten(base, tmp_path / "merged", Adapter.from_pretrained(folder).added)
    merged = LanguageModel.from_pretrained(tmp_path / "merged", quantization=quantization).named_weights()
    adapted = LanguageModel.from_pretrained(base, quantization=quantization, adapter=folder).named_weights()
    plain = LanguageModel.from_pretrained(base, quantization=quantization).named_weights()
    assert merged.keys() == adapted.keys() == plain.keys()
    for name, tensor in merged.items():
        assert torch.equal(adapted[name], tensor), name
    changed = {name for name in plain if not torch.equal(plain[name], merged[name])}
    assert TABLE in changed
    assert {name.rpartition(".")[0] for name in changed - {TABLE}} <= {"layers.1.self_attn", "layers.1.self_attn.qkv"}
    assert len(changed) > 1


def test_parts_of_a_split_tensor_are_changed(tmp_path):
    write_language_model(tmp_path / "base", DEMO_CONFIG, layout="original", dtype=torch.float32)
    path = tmp_path / "base" / "model.safetensors"
    stored = load_file(path)
    whole = stored.pop(TABLE)
    stem = TABLE.removesuffix(".weight")
    stored[f"{stem}.embedding_frozen.weight"] = whole[:100].clone()
    stored[f"{stem}.embedding_trainable.weight"] = whole[100:].clone()
    save_file(stored, path)
    adapter = Adapter.from_pretrained(write_adapter(tmp_path / "adapter"))
    write_rewritten(tmp_path / "base", tmp_path / "merged", adapter.added)
    torch.testing.assert_close(tensors_of(tmp_path / "merged")[TABLE], adapter.added(TABLE, whole))
    assert load_file(tmp_path / "merged" / "model.safetensors").keys() == stored.keys()


def test_shards_stay_shards(tmp_path):
    write_language_model(tmp_path / "base", DEMO_CONFIG, dtype=torch.float32, shard_bytes=1 << 20)
    adapter = Adapter.from_pretrained(write_adapter(tmp_path / "adapter"))
    write_rewritten(tmp_path / "base", tmp_path / "merged", adapter.added)
    names = {path.name for path in (tmp_path / "base").iterdir()}
    assert {path.name for path in (tmp_path / "merged").iterdir()} == names
    assert sum(name.endswith(".safetensors") for name in names) > 1
    before = tensors_of(tmp_path / "base")
    torch.testing.assert_close(tensors_of(tmp_path / "merged")[QUERY], adapter.added(QUERY, before[QUERY]))


def test_the_fingerprint_of_a_base_depends_on_its_weights_alone(tmp_path):
    prints = []
    for layout, dtype, seed in (
        ("original", "float32", 0),
        ("transformers", "bfloat16", 0),
        ("original", "float32", 1),
    ):
        folder = tmp_path / f"{layout}{seed}"
        write_language_model(folder, DEMO_CONFIG, layout=layout, dtype=getattr(torch, dtype), seed=seed)
        prints.append(LanguageModelFiles(folder, DEMO_CONFIG).fingerprint())
    assert prints[0] == prints[1] != prints[2]


def test_an_adapter_of_this_base_loads_and_one_of_another_does_not(base, tmp_path):
    own = LanguageModelFiles(base, DEMO_CONFIG).fingerprint()
    LanguageModel.from_pretrained(base, adapter=write_adapter(tmp_path / "own", metadata={BASE_KEY: own}))
    other = write_adapter(tmp_path / "other", metadata={BASE_KEY: "0" * 64})
    with pytest.raises(CheckpointError, match="must be of this base, got one of another base"):
        LanguageModel.from_pretrained(base, adapter=other)


def test_a_packed_checkpoint_takes_no_adapter(base, tmp_path):
    model = LanguageModel.from_pretrained(base, quantization="int8")
    write_packed(model.named_weights(), model.quantization, base, tmp_path / "packed")
    adapter = write_adapter(tmp_path / "adapter")
    with pytest.raises(ParameterError, match="adapter must be None for a packed checkpoint"):
        LanguageModel.from_pretrained(tmp_path / "packed", adapter=adapter)
    with pytest.raises(ParameterError, match="must be a checkpoint that is not packed"):
        write_rewritten(tmp_path / "packed", tmp_path / "merged", Adapter.from_pretrained(adapter).added)


SETTINGS_REFUSED = {
    "kind": ({"peft_type": "IA3"}, "peft_type must be 'LORA', got 'IA3'"),
    "dora": ({"use_dora": True}, "use_dora must be False, got True"),
    "bias": ({"bias": "all"}, "bias must be 'none', got 'all'"),
    "modules": ({"modules_to_save": ["heads"]}, "modules_to_save must be None"),
    "ranks": ({"rank_pattern": {"q_proj": 4}}, "rank_pattern must be {}"),
    "rank": ({"r": 0}, "r must be at least 1, got 0"),
    "other rank": ({"r": 4}, "must be one of two factors of rank 4, got another"),
    "alpha": ({"lora_alpha": "x"}, "lora_alpha must be a finite number, got 'x'"),
}


@pytest.mark.parametrize(("settings", "message"), SETTINGS_REFUSED.values(), ids=SETTINGS_REFUSED.keys())
def test_adapters_of_other_kinds_are_refused(tmp_path, settings, message):
    with pytest.raises(HiggsNativeError, match=message):
        Adapter.from_pretrained(write_adapter(tmp_path / "adapter", **settings))


def without(name_part: str) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in factors().items() if name_part not in name}


TENSORS_REFUSED = {
    "nothing": ({}, "must hold factors of LoRA alone"),
    "no B": (without("lora_B"), "must be one of two factors of rank 3"),
    "no A": (without("lora_A"), "must hold factors of LoRA alone, got 1 unknown"),
    "extra": (factors() | {"x": torch.ones(1)}, "must hold factors of LoRA alone, got 1 unknown"),
    "infinite": ({name: tensor / 0 for name, tensor in factors().items()}, "must be finite numbers"),
    "integers": ({name: tensor.int() for name, tensor in factors().items()}, "must be finite numbers"),
}


@pytest.mark.parametrize(("tensors", "message"), TENSORS_REFUSED.values(), ids=TENSORS_REFUSED.keys())
def test_wrong_factors_are_refused(tmp_path, tensors, message):
    with pytest.raises(CheckpointError, match=message):
        Adapter.from_pretrained(write_adapter(tmp_path / "adapter", tensors))


def test_factors_that_do_not_fit_the_base_are_refused(base, tmp_path):
    unknown = {name.replace("layers.1", "layers.7"): tensor for name, tensor in factors().items()}
    with pytest.raises(CheckpointError, match=r"must fit its base, got 1 unknown \(layers.7"):
        LanguageModel.from_pretrained(base, adapter=write_adapter(tmp_path / "unknown", unknown))
    wide = {name: tensor.repeat(1, 2) if "lora_A" in name else tensor for name, tensor in factors().items()}
    with pytest.raises(CheckpointError, match=r"must be \[64, 64\], got \[64, 128\]"):
        LanguageModel.from_pretrained(base, adapter=write_adapter(tmp_path / "wide", wide))


def test_files_that_are_missing_or_damaged_are_refused(tmp_path):
    with pytest.raises(HiggsNativeError, match=r"has no adapter_config\.json"):
        Adapter.from_pretrained(tmp_path)
    folder = write_adapter(tmp_path / "adapter")
    (folder / WEIGHTS_FILE).write_bytes(b"x")
    with pytest.raises(CheckpointError, match="is missing or damaged"):
        Adapter.from_pretrained(folder)
