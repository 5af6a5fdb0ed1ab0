"""Quantized weights: rounding, loading, writing, and what is refused."""

import hashlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

import higgs_native
from higgs_native import HiggsAudio, HiggsAudioModel, LongSpeech, ops
from higgs_native.cli import main
from higgs_native.errors import CheckpointError, ParameterError
from higgs_native.model import packed_checkpoint
from higgs_native.model.packed_checkpoint import PACKED_FILE, checksum, write_packed
from higgs_native.model.quantization import Quantization
from higgs_native.model.transformer import LanguageModel
from higgs_native.ops.formats import WEIGHT_FORMATS
from higgs_native.pipeline import EMBEDDED_VOICE
from higgs_native.testing.random_checkpoint import write_demo_checkpoint, write_language_model
from tests.helpers.devices import CHECKS_VALUES, CUDA_DEVICE, DEVICES, NEEDS_CUDA, NEEDS_CUDA_KERNELS
from tests.model.test_transformer import config
from tests.ops.tensors import random


PROMPT = torch.tensor([[*range(40), 269]])
GREEDY = {"convention": "transformers", "temperature": 0.0, "max_new_tokens": 40}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source") / "model"
    write_language_model(folder, config(hidden_size=144, intermediate_size=200, audio_delay_token_id=270))
    return folder


def write(model: HiggsAudioModel, source: Path, target: Path) -> None:
    write_packed(model.named_weights(), model.quantization, source, target)


def codes(model: HiggsAudioModel) -> torch.Tensor:
    return model.generate(PROMPT, **GREEDY).audio_segments[0]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("format", "error"), [("int8", 0.01), ("int4", 0.12)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rounding(format, error, dtype, device):
    """Integers times scales are near the matrix, and clipping brings them nearer."""
    weight = random((40, 300), dtype) * (1 + random((40, 300), seed=1).abs() ** 3).to(dtype)

    def rounded(matrix: torch.Tensor, clip: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
        """The integers [40, 300], and the scale of each."""
        integers, scales = (tensor.cpu() for tensor in ops.quantize_linear(matrix.to(device), format, clip))
        return integers, scales[:, None] if format == "int8" else scales.float().repeat_interleave(128, 1)[:, :300]

    errors = []
    for clip in (False, True):
        integers, spread = rounded(weight, clip)
        difference = integers * spread - weight.float()
        errors.append(difference.pow(2).sum(1))
        if not clip:
            assert difference.abs().max() <= spread.abs().max() * 0.51
    assert (errors[1] <= errors[0] * 1.0001).all()
    assert errors[1].sum() < 0.97 * errors[0].sum() or format == "int8"
    plain = random((40, 300), dtype)
    integers, spread = rounded(plain)
    assert (integers * spread - plain.float()).std() < error


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rounding_to_e4m3(dtype, device):
    """A row's max magnitude becomes 448, every value becomes its nearest in e4m3, and `clip` changes nothing."""
    weight = random((70, 300), dtype) * (1 + random((70, 300), seed=1).abs() ** 3).to(dtype)
    before = weight.clone()
    values, scales = (tensor.cpu() for tensor in ops.quantize_linear(weight.to(device), "fp8"))
    assert torch.equal(weight, before)
    assert torch.equal(scales, weight.float().abs().amax(1) / 448)
    every = torch.arange(256).to(torch.uint8).view(torch.float8_e4m3fn).float()
    scaled = weight.float() / scales[:, None]
    nearest = (scaled[..., None] - every[every.isfinite()]).abs().amin(-1)
    assert torch.equal((scaled - values.float()).abs(), nearest)
    unclipped = ops.quantize_linear(weight.to(device), "fp8", clip=False)
    assert torch.equal(unclipped[0].cpu().view(torch.uint8), values.view(torch.uint8))
    assert torch.equal(unclipped[1].cpu(), scales)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("format", ["fp8", "int8", "int4"])
def test_extreme_matrices(format, device):
    """Zeros stay zero, one value stays itself, denormal and huge values neither overflow nor become NaN."""
    for value in (0.0, 1.0, -3.0, 1e-42, 2e-38, 5e5 if format == "int4" else 1e30):
        weight = torch.zeros(2, 256)
        weight[1, 200] = value
        values, scales = (tensor.cpu().float() for tensor in ops.quantize_linear(weight.to(device), format))
        spread = scales.repeat_interleave(128, 1) if format == "int4" else scales[:, None]
        assert not values[weight == 0].any()
        assert spread.isfinite().all()
        torch.testing.assert_close(values * spread, weight, rtol=1e-2, atol=1e-7)


@CHECKS_VALUES
@pytest.mark.parametrize("format", ["fp8", "int8", "int4"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_values_that_are_not_finite_are_refused(format, value):
    weight = torch.zeros(2, 256)
    weight[1, 200] = value
    with pytest.raises(RuntimeError, match=r"weight\[1\] holds values that are not finite"):
        ops.quantize_linear(weight, format)


@NEEDS_CUDA_KERNELS
@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
def test_values_that_are_not_finite_have_no_scale_on_cuda(value):
    weight = torch.ones(2, 256, device=CUDA_DEVICE)
    weight[1, 200] = value
    assert ops.quantize_linear(weight, "int8")[1].isnan().tolist() == [False, True]
    assert ops.quantize_linear(weight, "int4")[1].isnan().tolist() == [[False, False], [False, True]]


@NEEDS_CUDA
@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
def test_values_that_are_not_finite_have_no_fp8_scale_on_cuda(value):
    weight = torch.ones(2, 256, device="cuda")
    weight[1, 200] = value
    assert ops.quantize_linear(weight, "fp8")[1].isnan().tolist() == [False, True]


def quantize(matrices, device):
    """The integers and scales of each matrix in every format, clipped and not."""
    from higgs_native import ops

    return [
        [tensor.cpu() for tensor in ops.quantize_linear(matrix.to(device), format, clip)]
        for matrix in matrices
        for format in ("int8", "int4")
        for clip in (False, True)
    ]


def test_both_backends_round_alike(on_other_backend):
    matrices = [
        random(shape, dtype) * (1 + random(shape, seed=1).abs() ** 3).to(dtype)
        for shape in ((5, 1), (64, 1000), (300, 777))
        for dtype in (torch.float32, torch.bfloat16)
    ]
    ours, theirs = quantize(matrices, device="cpu"), on_other_backend(quantize, matrices)
    differing = 0
    for (integers, scales), (other_integers, other_scales) in zip(ours, theirs, strict=True):
        same = scales.view(len(scales), -1) == other_scales.view(len(scales), -1)
        differing += int((~same).sum())
        size = integers.shape[1] if scales.dim() == 1 else 128
        columns = same.repeat_interleave(size, 1)[:, : integers.shape[1]]
        assert torch.equal(integers[columns], other_integers[columns])
    # The error of two scales may be so near that it depends on the order of its sum, and so on the instruction set.
    assert differing <= 10


@pytest.mark.parametrize(("change", "message"), [({"bits": 5}, "bits must be 8 or 4, got 5"), ({"n": 3}, "integers")])
def test_wrong_arguments_are_named(change, message):
    n, bits = change.get("n", 2), change.get("bits", 8)
    with pytest.raises(RuntimeError, match="quantize_linear: " + message):
        torch.ops.higgs_native.quantize_linear(
            torch.empty(n, 5, dtype=torch.int8), torch.empty(2), torch.zeros(2, 5), bits, True
        )


@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device):
    tensors = (torch.empty(2, 5, dtype=torch.int8), torch.empty(2), random((2, 5)))
    arguments = (*(tensor.to(device) for tensor in tensors), 8, True)
    torch.library.opcheck(torch.ops.higgs_native.quantize_linear.default, arguments)


def test_parsing():
    assert Quantization.parse(None) == Quantization()
    assert Quantization.parse("int8") == Quantization("int8", "int8", "int8", "int8")
    assert Quantization.parse("heads=int8, int4") == Quantization("int4", "int4", "int4", "int8")
    assert Quantization.parse("audio_ffn=int4") == Quantization(audio_ffn="int4")
    assert Quantization.parse("fp8,text_ffn=int4") == Quantization("fp8", "int4", "fp8", "fp8")
    for text, message in (
        ("int3", "attention must be one of float32, bfloat16, float16, fp8, int8, int4, got 'int3'"),
        ("int4,int8", "the format of all parts must be given once, got 'int4,int8'"),
        ("heads=int8,heads=int4", "heads must be given once, got"),
        ("", "attention must be one of .*, got ''"),
        (8, "must be a string such as 'int8', got 8"),
        ("head=int8", "a part must be one of attention, text_ffn, audio_ffn, heads, got 'head'"),
    ):
        with pytest.raises(ParameterError, match=message):
            Quantization.parse(text)


@pytest.mark.parametrize(
    ("quantization", "error"), [("fp8", 0.1), ("int8", 0.03), ("int4", 0.4), ("int4,heads=int8", 0.4)]
)
def test_a_quantized_model_is_near_the_whole_one(source, quantization, error):
    whole = HiggsAudioModel.from_pretrained(source, dtype="float32")
    model = HiggsAudioModel.from_pretrained(source, dtype="float32", quantization=quantization)
    assert model.nbytes < 0.8 * whole.nbytes
    logits = [m.generate(PROMPT, **GREEDY, output_logits=True).audio_logits[0] for m in (whole, model)]
    assert (logits[0][0] - logits[1][0]).std() < error * logits[0][0].std()
    assert model.audio_head.data.dtype == WEIGHT_FORMATS[Quantization.parse(quantization).heads].dtype


@pytest.mark.parametrize("quantization", ["fp8", "int8", "int4", "attention=fp8,text_ffn=int8,audio_ffn=int4", None])
def test_a_written_checkpoint_speaks_the_same_codes(source, tmp_path, quantization):
    """Written, moved and loaded again; the same bits as quantizing while loading."""
    model = HiggsAudioModel.from_pretrained(source, quantization=quantization)
    write(model, source, tmp_path / "packed")
    moved = tmp_path / "elsewhere" / "moved"
    moved.parent.mkdir()
    shutil.move(tmp_path / "packed", moved)
    loaded = HiggsAudioModel.from_pretrained(moved)
    assert loaded.quantization == Quantization.parse(quantization)
    assert torch.equal(codes(loaded), codes(model))
    assert HiggsAudioModel.from_pretrained(moved, quantization=quantization).nbytes == model.nbytes
    with pytest.raises(CheckpointError, match="target must not exist, got"):
        write(model, source, moved)


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt, SafetensorError("I/O error: No space left on device"), OSError(28)]
)
def test_interrupted_writing_leaves_nothing(source, tmp_path, monkeypatch, error):
    def half_written(tensors, path, metadata):
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(packed_checkpoint, "save_file", half_written)
    model = HiggsAudioModel.from_pretrained(source, quantization="int8")
    with pytest.raises((KeyboardInterrupt, CheckpointError)):
        write(model, source, tmp_path / "packed")
    assert not list(tmp_path.iterdir())


def metadata_of(folder):
    with safe_open(folder / PACKED_FILE, framework="pt") as file:
        return file.metadata()


def change_metadata(path, **changes):
    metadata = metadata_of(path.parent) | changes
    save_file(load_file(path), path, {name: value for name, value in metadata.items() if value is not None})


def change_tensors(path, change):
    tensors, metadata = load_file(path), metadata_of(path.parent)
    change(tensors)
    save_file(tensors, path, metadata)


def change_byte(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "is damaged or incomplete"),
        (lambda path: path.write_bytes(b"something else"), "is damaged or incomplete"),
        (lambda path: change_byte(path, -1), "is damaged or incomplete: .* must have the written checksum"),
        (
            lambda path: change_byte(path, path.stat().st_size // 2),
            "is damaged or incomplete: .* must have the written checksum",
        ),
        (
            lambda path: change_metadata(path, checksums="{}"),
            "damaged or incomplete: .* must have the written checksum",
        ),
        (lambda path: change_metadata(path, checksums="1"), "is damaged or incomplete: its checksums"),
        (lambda path: change_metadata(path, checksums="[" * 100_000), "is damaged or incomplete: its checksums"),
        (lambda path: change_metadata(path, quantization="[" * 100_000), "its quantization must be known"),
        (lambda path: change_metadata(path, checksums=None), "is damaged or incomplete: its checksums"),
        (lambda path: change_metadata(path, higgs_native="1"), "must be of version 2, got 1; write it again"),
        (lambda path: change_metadata(path, higgs_native=None), "must be of version 2, got none"),
        (lambda path: change_metadata(path, panel="64"), "must be packed with .*'32'.*, got .*'64'"),
        (lambda path: change_metadata(path, quantization='{"heads": "int3"}'), "heads must be one of"),
        (lambda path: change_metadata(path, quantization='{"tail": "int8"}'), "its quantization must be known"),
        (lambda path: change_metadata(path, quantization="none"), "its quantization must be known"),
        (lambda path: change_tensors(path, lambda t: t.pop("norm.weight")), "lacks norm.weight"),
        (lambda path: change_tensors(path, lambda t: t.update(extra=torch.zeros(1))), "unknown tensors: extra"),
        (
            lambda path: change_tensors(path, lambda t: t.update({"norm.weight": torch.zeros(3)})),
            r"norm.weight must have shape \[144\], got \[3\]",
        ),
        (
            lambda path: change_tensors(path, lambda t: t.update({"norm.weight": torch.zeros(144)})),
            "norm.weight must be torch.bfloat16, got torch.float32",
        ),
        (
            lambda path: change_tensors(
                path, lambda t: t.update({"embed_tokens.weight": t["embed_tokens.weight"].double()})
            ),
            "embed_tokens.weight must be float32, bfloat16 or float16, got torch.float64",
        ),
    ],
)
def test_a_damaged_or_foreign_file_is_refused(source, tmp_path, damage, message):
    model = HiggsAudioModel.from_pretrained(source, quantization="heads=int8")
    write(model, source, tmp_path / "packed")
    damage(tmp_path / "packed" / PACKED_FILE)
    with pytest.raises((CheckpointError, ParameterError), match=message) as raised:
        HiggsAudioModel.from_pretrained(tmp_path / "packed")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("count", [0, 1, 32 << 10, (96 << 10) + 5])
def test_the_checksum_depends_on_all_bytes_and_their_order(count, device):
    """The sums of 32 KiB blocks, and the bytes after the last block."""
    data = torch.randint(0, 256, (count,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = checksum(data.to(device))
    assert expected == checksum(data.clone())
    changed = [data.roll(shift) for shift in (1, 32 << 10) if count > shift]
    for position in range(0, count, 4999):
        changed.append(data.clone())
        changed[-1][position] += 1
    assert expected not in {checksum(other.to(device)) for other in changed}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.int8])
def test_the_checksum_does_not_depend_on_the_dtype(dtype):
    data = torch.randint(0, 256, (3, 64, 1024), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert checksum(data.view(dtype)) == checksum(data.flatten())


@pytest.mark.parametrize("layout", ["transformers", "original"])
def test_a_packed_file_says_what_it_was_made_from(tmp_path, layout):
    """A checkpoint of the Hub by name and revision, another by its folder's name and its files' SHA-256."""
    shapes = config(hidden_size=144, intermediate_size=200, audio_delay_token_id=270)
    cached = tmp_path / "hub" / "models--owner--some-name" / "snapshots" / "0123abcd"
    write_language_model(cached, shapes, layout=layout)
    shutil.copytree(cached, tmp_path / "mine")
    (tmp_path / "link").symlink_to(cached)
    digest = hashlib.sha256((tmp_path / "mine" / "model.safetensors").read_bytes()).hexdigest()
    for source, expected in (
        (cached, {"source": "owner/some-name@0123abcd"}),
        (tmp_path / "link", {"source": "owner/some-name@0123abcd"}),
        (tmp_path / "mine", {"source": "mine", "source_sha256": json.dumps({"model.safetensors": digest})}),
    ):
        model = HiggsAudioModel.from_pretrained(source, quantization="int8")
        packed, again = tmp_path / f"{source.name}-packed", tmp_path / f"{source.name}-again"
        write(model, source, packed)
        write(HiggsAudioModel.from_pretrained(packed), packed, again)
        for folder in (packed, again):
            found = metadata_of(folder)
            assert {name: found[name] for name in found if name.startswith("source")} == expected


def test_a_packed_checkpoint_is_not_quantized_again(source, tmp_path):
    write(HiggsAudioModel.from_pretrained(source, quantization="int8"), source, tmp_path / "packed")
    with pytest.raises(
        ParameterError,
        match="quantization must be None for a checkpoint packed with attention=int8, text_ffn=int8, audio_ffn=int8",
    ):
        HiggsAudioModel.from_pretrained(tmp_path / "packed", quantization="int4")
    with pytest.raises(ParameterError, match="dtype must be auto or bfloat16 for a packed checkpoint, got float32"):
        HiggsAudioModel.from_pretrained(tmp_path / "packed", dtype="float32")


def test_both_layouts_are_read_alike(source, tmp_path):
    shapes = config(hidden_size=144, intermediate_size=200, audio_delay_token_id=270)
    write_language_model(tmp_path / "original", shapes, layout="original")
    ours, theirs = (
        HiggsAudioModel.from_pretrained(path, quantization="int4").named_weights()
        for path in (source, tmp_path / "original")
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_target_inside_the_source_holds_no_copy_of_itself(source, tmp_path):
    shutil.copytree(source, tmp_path / "model")
    (tmp_path / "model" / "audio_tokenizer").mkdir()
    (tmp_path / "model" / "audio_tokenizer" / "config.json").write_text("{}")
    (tmp_path / "model" / "other").mkdir()
    model = HiggsAudioModel.from_pretrained(tmp_path / "model", quantization="int8")
    write(model, tmp_path / "model", tmp_path / "model" / "int8")
    written = sorted(path.name for path in (tmp_path / "model" / "int8").iterdir())
    assert written == ["audio_tokenizer", "config.json", PACKED_FILE, "tokenizer.json", "tokenizer_config.json"]


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


@pytest.mark.parametrize(
    ("quantization", "name"),
    [
        (None, "layers.1.self_attn.o_proj.weight"),
        (None, "embed_tokens.weight"),
        ("fp8", "layers.0.mlp.gate_up"),
        ("fp8", "layers.0.mlp.gate_up.scales"),
        ("int8", "layers.3.audio_mlp.down_proj.weight.scales"),
        ("int4", "audio_decoder_proj.audio_lm_head.weight.scales"),
        ("int4", "norm.weight"),
    ],
)
def test_packed_weights_that_are_not_finite_are_named(source, tmp_path, quantization, name):
    """Though their checksums fit."""
    write(HiggsAudioModel.from_pretrained(source, quantization=quantization), source, tmp_path / "packed")
    path = tmp_path / "packed" / PACKED_FILE
    tensors, metadata = load_file(path), metadata_of(path.parent)
    changed = tensors[name].float()
    changed.view(-1)[-1] = torch.nan
    tensors[name] = changed.to(tensors[name].dtype)
    checksums = {name: checksum(tensor) for name, tensor in tensors.items()}
    save_file(tensors, path, metadata | {"checksums": json.dumps(checksums)})
    with pytest.raises(CheckpointError) as error:
        HiggsAudioModel.from_pretrained(tmp_path / "packed")
    assert str(error.value) == f"{path}: {name} must be finite, got NaN or infinity"


@pytest.mark.parametrize(("quantization", "dtype"), [("int3", "auto"), ("int8", "float8")])
def test_wrong_parameters_show_before_anything_is_fetched(monkeypatch, quantization, dtype):
    def fetched(path_or_name):
        raise AssertionError(f"{path_or_name} was fetched")

    monkeypatch.setattr("higgs_native.model.transformer.resolve_folder", fetched)
    monkeypatch.setattr("higgs_native.pipeline.resolve_folder", fetched)
    for loader in (HiggsAudioModel, HiggsAudio):
        with pytest.raises(ParameterError):
            loader.from_pretrained("owner/name", quantization=quantization, dtype=dtype)


def test_the_same_checkpoint_has_the_same_bytes(source, tmp_path):
    model = LanguageModel.from_pretrained(source, quantization="int8")
    for name in ("one", "other", "third", "fourth"):
        write_packed(model.named_weights(), model.quantization, source, tmp_path / name)
    files = {(tmp_path / name / PACKED_FILE).read_bytes() for name in ("one", "other", "third", "fourth")}
    assert len(files) == 1
    with safe_open(tmp_path / "one" / PACKED_FILE, framework="pt") as packed:
        assert json.loads(packed.metadata()["quantization"]) == model.quantization.to_dict()


@pytest.mark.parametrize(("mask", "bits"), [(0o022, 0o644), (0o077, 0o600)])
def test_the_umask_decides_who_may_read(mask, bits, tmp_path):
    source = tmp_path / "source"
    write_demo_checkpoint(source)
    for path in source.rglob("*.*"):
        path.chmod(0o664)
    model = LanguageModel.from_pretrained(source, quantization="int8")
    before = os.umask(mask)
    try:
        write_packed(model.named_weights(), model.quantization, source, tmp_path / "packed")
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "packed").rglob("*") if path.is_file()]
    assert {PACKED_FILE, "config.json", "model.safetensors"} <= {path.name for path in files}
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {bits}


def run_command(capsys, *arguments) -> tuple[int, str, str]:
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as error:
        code = error.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_command(source, tmp_path, capsys):
    code, out, _ = run_command(capsys, "quantize", source, tmp_path / "packed", "--format", "int4,heads=int8")
    assert code == 0
    loaded = HiggsAudioModel.from_pretrained(tmp_path / "packed")
    assert out == f"{tmp_path / 'packed'}: {loaded.nbytes / 1e3:.2f} kB of weights\n"
    assert loaded.quantization == Quantization("int4", "int4", "int4", "int8")


def test_the_command_makes_missing_parents(source, tmp_path, capsys):
    target = tmp_path / "new" / "folder" / "packed"
    assert run_command(capsys, "quantize", source, target)[0] == 0
    assert sorted(path.name for path in target.iterdir()) == [
        "config.json",
        PACKED_FILE,
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert list(target.parent.iterdir()) == [target]


def test_a_quantized_copy_of_the_embedded_voice_is_one(tmp_path, capsys):
    assert run_command(capsys, "quantize", EMBEDDED_VOICE, tmp_path / "q4", "--format", "int4")[0] == 0
    engine = HiggsAudio.from_pretrained(tmp_path / "q4")
    assert engine.is_embedded_voice
    assert engine.trained_voices == HiggsAudio.from_pretrained().trained_voices
    sentences = "The sun rises in the east. The water is cold and clear."
    assert len(LongSpeech(engine, sentences)) == 2  # one sentence per chunk, as in training


WRITE_SLOWLY = """
import sys, time
from higgs_native.model import packed_checkpoint
from higgs_native.cli import main

def write_half(tensors, path, metadata):
    path.write_bytes(b"half")
    print("writing", flush=True)
    time.sleep(60)

packed_checkpoint.save_file = write_half
main(sys.argv[1:])
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_what_a_killed_command_wrote_is_removed(source, tmp_path, capsys, monkeypatch, number):
    monkeypatch.setenv("PYTHONPATH", str(Path(higgs_native.__file__).parent.parent))
    arguments = ["quantize", str(source), str(tmp_path / "packed")]
    program = [sys.executable, "-c", WRITE_SLOWLY, *arguments]
    with subprocess.Popen(program, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "writing\n"
        process.send_signal(number)
        code = process.wait()
    left = [path.name for path in tmp_path.iterdir()]
    if number == signal.SIGTERM:
        assert (code, left) == (128 + number, [])
    else:  # SIGKILL: no process can clean up
        assert left == [f".packed.{process.pid}.tmp"]
    assert run_command(capsys, *arguments)[0] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["packed"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["{source}", "{new}", "--format", "int3"],
            "attention must be one of float32, bfloat16, float16, fp8, int8, int4, got 'int3'",
        ),
        (["{source}", "{source}"], "target must not exist, got"),
        (["{new}", "{new}"], "must be a folder or a Hub name"),
        (["{new}", "{new}/inside/packed"], "must be a folder or a Hub name"),
        (["{source}", "{new}/inside/packed", "--format", "int3"], "attention must be one of"),
        (["{source}", "/proc/new/packed"], "can't be written"),
        (["{source}", "{source}/config.json/inside"], "can't be written"),
    ],
)
def test_the_command_refuses_bad_input(source, tmp_path, capsys, arguments, message):
    folders = {"source": source, "new": tmp_path / "new"}
    code, _, err = run_command(capsys, "quantize", *(argument.format(**folders) for argument in arguments))
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())
