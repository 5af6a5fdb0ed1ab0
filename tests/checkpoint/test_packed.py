"""Packed checkpoints: writing, loading, and what is refused."""

import hashlib
import json
import os
import shutil
import stat
import threading
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from higgs_native import HiggsAudioModel
from higgs_native.checkpoint import packed
from higgs_native.checkpoint.packed import PACKED_FILE, checksum, write_packed
from higgs_native.checkpoint.quantization import Quantization
from higgs_native.errors import CheckpointError, ParameterError
from higgs_native.generation.requests import GenerationRequest
from higgs_native.generation.sampling_params import SamplingParams
from higgs_native.model.transformer import LanguageModel
from higgs_native.testing.random_checkpoint import write_demo_checkpoint, write_language_model
from higgs_native.utils import progress
from tests.helpers.devices import DEVICES
from tests.helpers.waiting import PATIENCE
from tests.model.test_transformer import config
from tests.utils.test_progress import Terminal


PROMPT = torch.tensor([[*range(40), 269]])
GREEDY = {"convention": "transformers", "temperature": 0.0, "max_new_tokens": 40}


def write(model: HiggsAudioModel, source: Path, target: Path) -> None:
    write_packed(model.named_weights(), model.quantization, source, target)


def codes(model: HiggsAudioModel) -> torch.Tensor:
    return model.generate(PROMPT, **GREEDY).audio_segments[0]


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


def test_a_packed_file_comes_before_the_weights_beside_it_with_a_warning(source, tmp_path, caplog):
    model = HiggsAudioModel.from_pretrained(source, quantization="int4")
    write(model, source, tmp_path / "packed")
    assert torch.equal(codes(HiggsAudioModel.from_pretrained(tmp_path / "packed")), codes(model))
    assert not caplog.records
    shutil.copyfile(source / "model.safetensors", tmp_path / "packed" / "model.safetensors")
    assert torch.equal(codes(HiggsAudioModel.from_pretrained(tmp_path / "packed")), codes(model))
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert f"packed holds {PACKED_FILE} and model.safetensors: the packed weights" in record.message


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt, SafetensorError("I/O error: No space left on device"), OSError(28)]
)
def test_interrupted_writing_leaves_nothing(source, tmp_path, monkeypatch, error):
    def half_written(tensors, metadata, path):
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(packed, "write_tensors", half_written)
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


@pytest.fixture
def large_and_damaged(source, tmp_path, monkeypatch) -> Path:
    """A packed checkpoint that counts as large, with a changed byte among the weights."""
    monkeypatch.setattr(packed, "_CHECKED_AT_LOAD", 0)
    write(HiggsAudioModel.from_pretrained(source, quantization="int8"), source, tmp_path / "packed")
    change_byte(tmp_path / "packed" / PACKED_FILE, -1)
    return tmp_path / "packed"


DAMAGED = r"packed/higgs_native\.safetensors is damaged or incomplete: .* must have the written checksum"


def test_a_large_damaged_file_generates_nothing_that_is_complete(large_and_damaged):
    for _ in range(2):
        model = HiggsAudioModel.from_pretrained(large_and_damaged)
        for _ in range(2):
            with pytest.raises(CheckpointError, match=DAMAGED):
                model.generate(PROMPT, **GREEDY)


def test_damage_that_is_found_late_ends_requests(large_and_damaged, monkeypatch):
    begin = threading.Event()
    checked = packed.checksum

    def late(tensor, go_on):
        assert begin.wait(PATIENCE)
        return checked(tensor, go_on)

    monkeypatch.setattr(packed, "checksum", late)
    model = HiggsAudioModel.from_pretrained(large_and_damaged)
    handle = model.engine.add(GenerationRequest(PROMPT, convention="transformers", sampling=SamplingParams(seed=1)))
    model.engine.step()
    model.engine.step()
    assert not handle.future.done()
    begin.set()
    with pytest.raises(CheckpointError, match=DAMAGED):
        handle.result()


def test_damaged_weights_are_not_written_again(large_and_damaged, tmp_path):
    model = HiggsAudioModel.from_pretrained(large_and_damaged)
    with pytest.raises(CheckpointError, match=DAMAGED):
        model.named_weights()
    with pytest.raises(CheckpointError, match=DAMAGED):
        model.verify()


def test_weights_on_a_cpu_are_the_mapped_file(source, tmp_path, monkeypatch):
    monkeypatch.setattr(packed, "_CHECKED_AT_LOAD", 0)
    model = HiggsAudioModel.from_pretrained(source, quantization="int8")
    write(model, source, tmp_path / "packed")
    loaded = HiggsAudioModel.from_pretrained(tmp_path / "packed")
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    path = str(tmp_path / "packed" / PACKED_FILE)
    ranges = [[int(end, 16) for end in line[0].split("-")] for line in lines if line[-1] == path]
    for name, tensor in loaded.named_weights().items():
        assert any(begin <= tensor.data_ptr() < end for begin, end in ranges), name
    assert torch.equal(codes(loaded), codes(model))


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


def test_the_same_checkpoint_has_the_same_bytes(source, tmp_path):
    model = LanguageModel.from_pretrained(source, quantization="int8")
    for name in ("one", "other", "third", "fourth"):
        write_packed(model.named_weights(), model.quantization, source, tmp_path / name)
    files = {(tmp_path / name / PACKED_FILE).read_bytes() for name in ("one", "other", "third", "fourth")}
    assert len(files) == 1
    with safe_open(tmp_path / "one" / PACKED_FILE, framework="pt") as packed:
        assert json.loads(packed.metadata()["quantization"]) == model.quantization.to_dict()


@pytest.mark.parametrize("quantization", ["fp8", "int8", "int4", "attention=fp8,text_ffn=int8,audio_ffn=int4", None])
def test_the_file_is_that_of_safetensors(source, tmp_path, quantization):
    """But for the order of the metadata."""
    model = LanguageModel.from_pretrained(source, quantization=quantization)
    write_packed(model.named_weights(), model.quantization, source, tmp_path / "packed")
    written = (tmp_path / "packed" / PACKED_FILE).read_bytes()
    save_file(dict(model.named_weights()), tmp_path / "expected", metadata_of(tmp_path / "packed"))
    expected = (tmp_path / "expected").read_bytes()
    size = int.from_bytes(expected[:8], "little")
    assert written[:8] == expected[:8]
    assert list(json.loads(written[8 : 8 + size]).items()) == list(json.loads(expected[8 : 8 + size]).items())
    assert written[8 + size :] == expected[8 + size :]


def test_a_terminal_shows_what_is_read_and_written(source, tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "_SECONDS_BEFORE_A_BAR", 0.0)
    model = LanguageModel.from_pretrained(source, quantization="int8")
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    write_packed(model.named_weights(), model.quantization, source, tmp_path / "packed")
    assert "checksums:" in terminal.getvalue()
    assert "digests of the source:" in terminal.getvalue()
    assert "writing:" in terminal.getvalue()


def test_the_bar_moves_while_the_file_is_written(source, tmp_path, monkeypatch):
    """In steps of at most a piece, until all bytes are written."""
    steps, totals = [], []

    @contextmanager
    def bar(description, total):
        totals.append(total)
        yield SimpleNamespace(update=steps.append)

    monkeypatch.setattr(packed, "bar_of_bytes", bar)
    monkeypatch.setattr(packed, "_WRITTEN_PIECE", 1 << 10)
    model = LanguageModel.from_pretrained(source, quantization="int8")
    write_packed(model.named_weights(), model.quantization, source, tmp_path / "packed")
    assert max(steps) == 1 << 10
    assert len(steps) > 100
    assert [sum(steps)] == totals
    assert totals[0] < (tmp_path / "packed" / PACKED_FILE).stat().st_size


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
