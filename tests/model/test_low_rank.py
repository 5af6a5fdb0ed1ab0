"""Adapters beside the weights: what they add equals what merging adds, for the rows that have them alone."""

import logging
from pathlib import Path

import pytest
import torch

from higgs_native.checkpoint.adapter import BASE_KEY
from higgs_native.checkpoint.config import HiggsAudioConfig
from higgs_native.checkpoint.language_model import LanguageModelFiles, expected_tensors, transformers_name
from higgs_native.checkpoint.packed import write_packed
from higgs_native.errors import CheckpointError, ParameterError
from higgs_native.model.batch import Batch
from higgs_native.model.low_rank import MAX_ADAPTERS, RowAdapters
from higgs_native.model.transformer import LanguageModel
from higgs_native.ops._library import EMULATES_CUDA
from higgs_native.testing.configs import DEMO_CONFIG, DEMO_TTS_3_CONFIG
from higgs_native.testing.random_checkpoint import write_language_model
from tests.checkpoint.test_adapter import write_adapter


ATTENTION = ("q_proj", "v_proj")
FFN = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
EVERY = ("q_proj", "k_proj", "v_proj", "o_proj", *FFN, "lm_head", "embed_tokens", "codebook_embeddings")
RANK = 3


def write_factors(folder: Path, config: HiggsAudioConfig, parts: tuple[str, ...] = EVERY, seed: int = 0, **metadata):
    """Write an adapter of the tensors whose names hold one of the parts."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in expected_tensors(config).items():
        if len(shape) != 2 or not any(part in name for part in parts):
            continue
        module = "base_model.model." + (name if config.tied_audio_head else transformers_name(name)).removesuffix(
            ".weight"
        )
        n, k = shape
        a, b = (torch.randn(size, generator=generator) for size in ((RANK, k), (n, RANK)))
        if "embed" in name:
            tensors |= {
                f"{module}.lora_embedding_A": b.T.contiguous() / 20,
                f"{module}.lora_embedding_B": a.T.contiguous() / 20,
            }
        else:
            tensors |= {f"{module}.lora_A.weight": a * k**-0.5, f"{module}.lora_B.weight": b * RANK**-0.5 / 4}
    return write_adapter(folder, tensors, {key: str(value) for key, value in metadata.items()} or None)


@pytest.fixture(scope="module", params=["higgs_audio_v2", "higgs_tts_3"])
def base(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    config, layout = (
        (DEMO_CONFIG, "original") if request.param == "higgs_audio_v2" else (DEMO_TTS_3_CONFIG, "higgs_tts_3")
    )
    write_language_model(folder, config, layout, torch.float32)
    return folder


def rows_of(model: LanguageModel, count: int = 3) -> Batch:
    frames = torch.arange(model.config.num_codebooks * 4).view(-1, 4) % 7
    return Batch.text_then_audio([([5 + index, 6, 7], frames + index) for index in range(count)], model.device)


def logits_of(model: LanguageModel, batch: Batch) -> torch.Tensor:
    states = model.forward(batch, model.new_cache(3, 32))
    return torch.cat([model.audio_logits(states, adapters=batch.adapters).flatten(1), states], dim=1)


def adapted(model: LanguageModel, batch: Batch, names: tuple[str | None, ...]) -> Batch:
    """The batch with an adapter for each of its sequences."""
    chosen = [None if name is None else model.adapters[name] for name in names]
    batch.adapters = RowAdapters.of([chosen[slot] for slot in batch.slots.tolist()], model.device)
    return batch


FORMATS = ["float32"] if EMULATES_CUDA else ["float32", "bfloat16", "int8", "int4", "fp8"]


def load(base: Path, format: str, **options) -> LanguageModel:
    is_dtype = format in ("float32", "bfloat16")
    return LanguageModel.from_pretrained(
        base,
        dtype=format if is_dtype else "auto",
        quantization=None if is_dtype else format,
        max_cache_length=64,
        **options,
    )


@pytest.mark.parametrize("parts", [EVERY, ATTENTION, FFN])
def test_unmerged_equals_merged(base, tmp_path, parts):
    """To the rounding of float32 sums."""
    folder = write_factors(tmp_path / "a", HiggsAudioConfig.from_pretrained(base), parts)
    merged, model = load(base, "float32", adapter=folder), load(base, "float32")
    model.load_adapter("a", folder)
    expected = logits_of(merged, rows_of(merged))
    plain = logits_of(model, rows_of(model))
    ours = logits_of(model, adapted(model, rows_of(model), ("a", "a", "a")))
    scale = (expected - plain).abs().max()
    assert scale > 0.05 * plain.abs().max()
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4 * float(plain.abs().max()))


@pytest.mark.parametrize("format", FORMATS)
def test_rows_have_the_bits_that_they_have_alone(base, tmp_path, format):
    """Of two adapters and of none in one batch, over weights of each format."""
    model = load(base, format)
    config = model.config
    for seed, name in enumerate("ab"):
        model.load_adapter(name, write_factors(tmp_path / name, config, EVERY if name == "a" else FFN, seed))
    together = logits_of(model, adapted(model, rows_of(model), ("a", None, "b")))
    slots = rows_of(model).slots
    plain = logits_of(model, rows_of(model))
    assert torch.equal(together[slots == 1], plain[slots == 1])
    for slot, name in ((0, "a"), (2, "b")):
        all_of_one = logits_of(model, adapted(model, rows_of(model), (name,) * 3))
        assert torch.equal(together[slots == slot], all_of_one[slots == slot])
        assert not torch.equal(together[slots == slot], plain[slots == slot])


def test_a_packed_base_takes_adapters_of_its_original(tmp_path, caplog):
    write_language_model(tmp_path / "base", DEMO_CONFIG, "original", torch.float32)
    model = LanguageModel.from_pretrained(tmp_path / "base", quantization="int8")
    write_packed(model.named_weights(), model.quantization, tmp_path / "base", tmp_path / "packed")
    own = LanguageModelFiles(tmp_path / "base", DEMO_CONFIG).fingerprint()
    packed = LanguageModel.from_pretrained(tmp_path / "packed")
    with caplog.at_level(logging.INFO, "higgs_native"):
        loaded = packed.load_adapter("own", write_factors(tmp_path / "own", DEMO_CONFIG, **{BASE_KEY: own}))
    assert f"adapter own: {loaded.nbytes / 1e6:.1f} MB, from {tmp_path / 'own'}" in caplog.text
    with pytest.raises(CheckpointError, match="must be of this base, got one of another base"):
        packed.load_adapter("other", write_factors(tmp_path / "other", DEMO_CONFIG, **{BASE_KEY: "0" * 64}))
    assert list(packed.adapters) == ["own"]


def test_adapters_come_and_go(base, tmp_path):
    model = load(base, "float32")
    folder = write_factors(tmp_path / "a", model.config)
    first = model.load_adapter("a", folder)
    assert first.nbytes == sum(part.nbytes for part in first.layers) + sum(
        part.nbytes
        for pair in (first.audio_head, first.text_head, first.text_table, first.audio_table)
        for part in pair or ()
    )
    with pytest.raises(ParameterError, match="name of an adapter must be new, got 'a', which is loaded"):
        model.load_adapter("a", folder)
    with pytest.raises(ParameterError, match=r"adapter must be one that is loaded \(a\), got 'b'"):
        model.require_adapter("b")
    model.unload_adapter("a")
    with pytest.raises(ParameterError, match=r"adapter must be one that is loaded \(none\), got 'a'"):
        model.unload_adapter("a")
    assert model.load_adapter("again", folder).fingerprint == first.fingerprint
    for name in ("", "a,b"):
        with pytest.raises(ParameterError, match="name of an adapter must be a word without a comma"):
            model.load_adapter(name, folder)
    for index in range(MAX_ADAPTERS - 1):
        model.load_adapter(str(index), folder)
    with pytest.raises(ParameterError, match="adapters must be at most 32, got one more: 'last'"):
        model.load_adapter("last", folder)


def test_a_model_with_a_merged_adapter_takes_no_others(base, tmp_path):
    folder = write_factors(tmp_path / "a", HiggsAudioConfig.from_pretrained(base))
    model = load(base, "float32", adapter=folder)
    with pytest.raises(ParameterError, match="must be loaded beside a checkpoint's own weights"):
        model.load_adapter("a", folder)
