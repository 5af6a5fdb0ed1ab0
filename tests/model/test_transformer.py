"""The language model's forward pass: adapter types, pieces, rotary scaling, loading."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from higgs_native._C import build_info
from higgs_native.checkpoint.config import HiggsAudioConfig, RopeScaling
from higgs_native.convention import Convention
from higgs_native.errors import CheckpointError, ConfigError, ParameterError
from higgs_native.model.rope import rope_table
from higgs_native.model.transformer import LanguageModel
from higgs_native.testing.random_checkpoint import write_language_model
from tests.helpers.rows import forward


def config(**changes) -> HiggsAudioConfig:
    values = {
        "vocab_size": 300,
        "hidden_size": 48,
        "intermediate_size": 40,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": RopeScaling(32.0, 0.125, 0.5, 16),
        "max_position_embeddings": 512,
        "num_codebooks": 4,
        "codebook_size": 12,
        "audio_stream_bos_id": 10,
        "audio_stream_eos_id": 11,
        "audio_adapter_type": "dual_ffn",
        "audio_dual_ffn_layers": (0, 1, 2, 3),
        "audio_in_token_id": 271,
        "audio_out_token_id": 272,
        "audio_out_bos_token_id": 269,
        "audio_eos_token_id": 268,
        "audio_delay_token_id": None,
        "pad_token_id": 257,
        "eos_token_id": 265,
    }
    return HiggsAudioConfig(**(values | changes))


def mixed_rows(length: int, cfg: HiggsAudioConfig, seed: int = 0) -> list[int | torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rows: list[int | torch.Tensor] = []
    for _ in range(length):
        if torch.rand((), generator=generator) < 0.5:
            rows.append(int(torch.randint(0, 256, (), generator=generator)))
        else:
            rows.append(torch.randint(0, cfg.codebook_size, (cfg.num_codebooks,), generator=generator))
    return rows


def plain_forward(folder: Path, cfg: HiggsAudioConfig, rows: list[int | torch.Tensor]) -> torch.Tensor:
    """The states [rows, hidden] by the definition of the model: a whole sequence at once, with masks, in float32."""
    weights = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
    is_audio = torch.tensor([not isinstance(row, int) for row in rows])
    offsets = torch.arange(cfg.num_codebooks) * cfg.codebook_size
    x = torch.stack(
        [
            weights["embed_tokens.weight"][row]
            if isinstance(row, int)
            else weights["audio_codebook_embeddings.weight"][row + offsets].sum(0)
            for row in rows
        ]
    )
    count, head_dim = len(rows), cfg.head_dim
    cosines, sines = rope_table(cfg, count)[:, None].chunk(2, dim=-1)

    def norm(z: torch.Tensor, name: str) -> torch.Tensor:
        return z * torch.rsqrt(z.pow(2).mean(-1, keepdim=True) + cfg.rms_norm_eps) * weights[name]

    def rotate(z: torch.Tensor) -> torch.Tensor:
        first, second = z.chunk(2, dim=-1)
        return torch.cat([first * cosines - second * sines, second * cosines + first * sines], dim=-1)

    def mlp(z: torch.Tensor, prefix: str) -> torch.Tensor:
        gate, up, down = (weights[f"{prefix}mlp.{part}_proj.weight"] for part in ("gate", "up", "down"))
        return (torch.nn.functional.silu(z @ gate.T) * (z @ up.T)) @ down.T

    for index in range(cfg.num_hidden_layers):
        prefix = f"layers.{index}."
        dual = cfg.is_dual(index)
        visible = torch.ones(count, count, dtype=torch.bool).tril()
        if cfg.skips_audio(index):
            visible &= ~is_audio

        def choose(
            z: torch.Tensor, name: str, apply, audio: torch.Tensor = is_audio[:, None] & dual, prefix: str = prefix
        ) -> torch.Tensor:
            text = apply(z, prefix + name)
            return torch.where(audio, apply(z, f"{prefix}audio_{name}"), text) if audio.any() else text

        normed = choose(x, "input_layernorm.weight", norm)
        q, k, v = (
            (normed @ weights[f"{prefix}self_attn.{part}_proj.weight"].T).view(count, -1, head_dim) for part in "qkv"
        )
        repeats = cfg.num_attention_heads // cfg.num_key_value_heads
        k, v = rotate(k).repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
        scores = torch.einsum("qhd,khd->hqk", rotate(q), k) / math.sqrt(head_dim)
        # Audio rows of a layer that skips them see nothing; their result is dropped below.
        attended = torch.softmax(scores.masked_fill(~visible, -1e30), dim=-1)
        attended = torch.einsum("hqk,khd->qhd", attended, v).flatten(1) @ weights[f"{prefix}self_attn.o_proj.weight"].T
        h = x + attended
        normed = choose(h, "post_attention_layernorm.weight", norm)
        y = h + choose(normed, "", mlp)
        x = torch.where(is_audio[:, None], x, y) if cfg.skips_audio(index) else y
    return x


@pytest.mark.parametrize(
    ("adapter", "dual_layers"),
    [
        ("dual_ffn", (0, 1, 2, 3)),
        ("dual_ffn", (1, 3)),
        ("dual_ffn_fast_forward", (0, 2)),
        ("dual_ffn_fast_forward", (3,)),
        ("stack", ()),
    ],
)
def test_adapter_types_equal_the_definition(tmp_path, adapter, dual_layers):
    cfg = config(audio_adapter_type=adapter, audio_dual_ffn_layers=dual_layers)
    write_language_model(tmp_path / "model", cfg, layout="original", dtype=torch.float32)
    model = LanguageModel.from_pretrained(tmp_path / "model")
    assert model.config == cfg
    for seed, length in enumerate((1, 2, 33)):
        rows = mixed_rows(length, cfg, seed)
        expected = plain_forward(tmp_path / "model", cfg, rows)
        torch.testing.assert_close(forward(model, rows), expected, rtol=1e-4, atol=1e-4)
        # One position per pass, as in decoding, and uneven pieces.
        assert torch.equal(forward(model, rows, [1] * length), forward(model, rows))
    assert torch.equal(forward(model, rows, [5, 20, 8]), forward(model, rows))


@pytest.mark.parametrize("quantization", [None, "fp8", "int8", "int4"])
def test_the_number_of_threads_changes_nothing(tmp_path, quantization):
    # Large enough that threads share the linear layers and attention.
    cfg = config(hidden_size=128, intermediate_size=512, head_dim=32)
    write_language_model(tmp_path / "model", cfg, layout="original")
    model = LanguageModel.from_pretrained(tmp_path / "model", quantization=quantization)
    rows = mixed_rows(601, cfg)
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            states = forward(model, rows, [600, 1])
            found.append((states, model.audio_logits(states)))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for pair in found[1:] for one, other in zip(pair, found[0], strict=True))


def test_llama3_scaling_keeps_short_waves_and_stretches_long_ones():
    plain = rope_table(config(rope_scaling=None, head_dim=64), 2)
    scaled = rope_table(config(rope_scaling=RopeScaling(32.0, 0.125, 0.5, 1024), head_dim=64), 2)
    # For a long wave the sine of one step is nearly its angle.
    assert torch.equal(scaled[1, :16], plain[1, :16])
    torch.testing.assert_close(scaled[1, -1] * 32, plain[1, -1], rtol=1e-4, atol=0)


@pytest.fixture
def folder(tmp_path):
    write_language_model(tmp_path / "model", config(), layout="original", dtype=torch.float32)
    return tmp_path / "model"


def change_tensors(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_split_tables_are_joined(folder):
    whole = LanguageModel.from_pretrained(folder)

    def split(tensors: dict[str, torch.Tensor]) -> None:
        for name, kind in (("embed_tokens", "embedding"), ("audio_decoder_proj.text_lm_head", "linear")):
            table = tensors.pop(f"{name}.weight")
            tensors[f"{name}.{kind}_frozen.weight"] = table[:256].clone()
            tensors[f"{name}.{kind}_trainable.weight"] = table[256:].clone()

    change_tensors(folder, split)
    joined = LanguageModel.from_pretrained(folder)
    assert torch.equal(joined.text_table, whole.text_table)
    assert torch.equal(joined.text_head.data, whole.text_head.data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("norm.weight"), r"1 missing \(norm.weight\)"),
        (lambda t: t.update(extra=torch.zeros(1)), r"1 unknown \(extra\)"),
        (lambda t: t.update({"norm.weight": torch.zeros(3)}), r"norm.weight must have shape \[48\], got \[3\]"),
        (
            lambda t: t.update({"model.norm.weight": t["norm.weight"].clone()}),
            "must hold norm.weight once, got it as model.norm.weight and as norm.weight",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(folder, change, message):
    change_tensors(folder, change)
    with pytest.raises(CheckpointError, match=message):
        LanguageModel.from_pretrained(folder)


def split(tensors: dict[str, torch.Tensor], rows: int, width: int) -> None:
    """Split the embedding into parts of shapes that may not fit."""
    table = tensors.pop("embed_tokens.weight")
    tensors["embed_tokens.embedding_frozen.weight"] = table[:rows].clone()
    tensors["embed_tokens.embedding_trainable.weight"] = table[rows:, :width].clone()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: split(t, 200, 47),
            r"frozen.weight and embed_tokens.embedding_trainable.weight must have shape \[300, 48\], "
            r"got \[200, 48\] and \[100, 47\]",
        ),
        (
            lambda t: (split(t, 200, 48), t.pop("embed_tokens.embedding_trainable.weight")),
            r"1 missing \(embed_tokens.weight\)",
        ),
        (
            lambda t: t.update({"embed_tokens.embedding_frozen.weight": t["embed_tokens.weight"].clone()}),
            "must hold embed_tokens.weight once, got it as embed_tokens.embedding_frozen.weight and as ",
        ),
        (lambda t: t.update({"norm.weight": torch.tensor(1.0)}), r"norm.weight must have shape \[48\], got \[\]"),
    ],
)
def test_parts_that_do_not_fit_are_named(folder, change, message):
    change_tensors(folder, change)
    with pytest.raises(CheckpointError, match=message):
        LanguageModel.from_pretrained(folder)


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    write_language_model(tmp_path, config(), layout="original", shard_bytes=50_000)
    first, second = sorted(tmp_path.glob("model-*.safetensors"))[:2]
    tensors = load_file(first)
    name = next(iter(tensors))
    save_file({**load_file(second), name: tensors[name] + 1}, second)
    with pytest.raises(CheckpointError, match=f"must hold {name} once, got it in two files"):
        LanguageModel.from_pretrained(tmp_path)


def test_a_truncated_file_is_refused(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged or incomplete"):
        LanguageModel.from_pretrained(folder)


def test_a_missing_shard_is_refused(tmp_path):
    write_language_model(tmp_path / "model", config(), layout="original", dtype=torch.float32, shard_bytes=50_000)
    LanguageModel.from_pretrained(tmp_path / "model")
    shard = sorted((tmp_path / "model").glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(CheckpointError, match=f"names {shard.name}, which is missing"):
        LanguageModel.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize("shards", ["whole", "missing"])
def test_a_single_file_comes_before_shards(tmp_path, shards):
    """As in the published folder, whose shards are of the original layout, and config.json of transformers'."""
    cfg = config(audio_eos_token_id=None, audio_in_token_id=None, audio_delay_token_id=270)
    write_language_model(tmp_path / "new", cfg, layout="transformers", seed=1)
    write_language_model(tmp_path / "old", config(), layout="original", seed=2, shard_bytes=50_000)
    expected = LanguageModel.from_pretrained(tmp_path / "new")
    for path in (tmp_path / "old").glob("model*"):
        if shards == "whole" or path.suffix == ".json":
            path.rename(tmp_path / "new" / path.name)
    model = LanguageModel.from_pretrained(tmp_path / "new")
    assert model.config.convention is Convention.TRANSFORMERS
    assert torch.equal(model.text_table, expected.text_table)
    assert torch.equal(model.audio_head.data, expected.audio_head.data)


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ("{", "not readable as JSON"),
        ("[]", "must hold a JSON object, got a list"),
        (
            '{"model_type": "llama"}',
            "model_type must be 'higgs_audio', 'higgs_audio_v2' or 'higgs_multimodal_qwen3', got 'llama'",
        ),
        ('{"model_type": "higgs_audio_v2", "vocab_size": 5}', "config.json has no '"),
    ],
)
def test_a_foreign_config_is_refused(folder, contents, message):
    (folder / "config.json").write_text(contents)
    with pytest.raises(ConfigError, match=message):
        LanguageModel.from_pretrained(folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cuda:99"}, "device must be .*, got cuda:99"),
        ({"dtype": "int8"}, "dtype must be one of auto, float32, bfloat16, float16, got 'int8'"),
        ({"dtype": torch.float64}, "dtype must be one of auto, float32, bfloat16, float16, got torch.float64"),
        ({"max_cache_length": 0}, "max_cache_length must be between 1 and 1048576, got 0"),
        ({"max_cache_length": "a"}, "max_cache_length must be an integer, got 'a'"),
        ({"device": 1.5}, "device must be auto, cpu, cuda or cuda:N, got 1.5"),
    ],
)
def test_wrong_options_are_refused(folder, options, message):
    with pytest.raises(ParameterError, match=message):
        LanguageModel.from_pretrained(folder, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_are_read_as_stored(tmp_path, dtype):
    write_language_model(tmp_path / "model", config(), layout="original", dtype=dtype)
    assert LanguageModel.from_pretrained(tmp_path / "model").dtype == dtype


@pytest.mark.parametrize("named", ["dtype", "torch_dtype", None])
@pytest.mark.parametrize("table", ["embed_tokens.weight", "norm.weight"])
def test_a_single_float32_tensor_leaves_the_model_in_bfloat16(tmp_path, table, named):
    write_language_model(tmp_path, config(), layout="original", dtype=torch.bfloat16)
    raw = json.loads((tmp_path / "config.json").read_text())
    dtype = raw.pop("torch_dtype")
    (tmp_path / "config.json").write_text(json.dumps(raw if named is None else {**raw, named: dtype}))
    change_tensors(tmp_path, lambda tensors: tensors.update({table: tensors[table].float()}))
    model = LanguageModel.from_pretrained(tmp_path)
    assert model.dtype == model.text_table.dtype == model.audio_head.data.dtype == torch.bfloat16


def test_the_configured_dtype_comes_before_the_stored_one(tmp_path):
    write_language_model(tmp_path, config(), layout="original", dtype=torch.float32)
    raw = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**raw, "torch_dtype": "float16"}))
    assert LanguageModel.from_pretrained(tmp_path).dtype == torch.float16
    (tmp_path / "config.json").write_text(json.dumps({**raw, "torch_dtype": "auto"}))
    assert LanguageModel.from_pretrained(tmp_path).dtype == torch.float32


def test_missing_folders_are_named(tmp_path):
    with pytest.raises(
        CheckpointError, match=r"must be a folder or a Hub name .*, got .*nothing, which does not exist"
    ):
        LanguageModel.from_pretrained(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"empty has no config.json"):
        LanguageModel.from_pretrained(tmp_path / "empty")


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"norm.weight": 3}, r"norm.weight must lie in a file of this folder, got 3"),
        ({"norm.weight": "../model.safetensors"}, r"must lie in a file of this folder, got '../model.safetensors'"),
        ({"norm.weight": ["model.safetensors"]}, "must lie in a file of this folder"),
        ({}, "weight_map must name a file for each tensor"),
        ([], "weight_map must name a file for each tensor"),
        ({"norm.weight": "absent.safetensors"}, "names absent.safetensors, which is missing"),
    ],
)
def test_a_damaged_index_is_refused(folder, weight_map, message):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=message):
        LanguageModel.from_pretrained(folder)


def test_an_unknown_instruction_set_is_named(run_python):
    programs = {
        "ParameterError": "import higgs_native; higgs_native.HiggsAudio.from_pretrained()",
        # Enough work for several threads.
        "RuntimeError": "import torch; from higgs_native import ops; ops.pack_linear(torch.ones(2048, 512))",
    }
    sets = " or ".join(", ".join(build_info()["cpu_instruction_sets"]).rsplit(", ", 1))
    for error, program in programs.items():
        process = run_python(program, HIGGS_NATIVE_ISA="sse9")
        assert process.returncode == 1
        last = process.stderr.splitlines()[-1]
        assert last.endswith(f"{error}: HIGGS_NATIVE_ISA must be {sets}, got sse9")
