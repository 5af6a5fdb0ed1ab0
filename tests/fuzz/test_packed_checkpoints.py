"""Packed checkpoints: damaged headers, metadata and values, some with checksums that fit. What loads is finite."""

import functools
import json
import random
import tempfile
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save

from higgs_native.checkpoint.packed import PACKED_FILE, checksum, write_packed
from higgs_native.model.transformer import LanguageModel
from tests.fuzz import mutations
from tests.fuzz.checkpoint_files import damaged, files, write
from tests.fuzz.frame import run_cases


QUANTIZATIONS = (None, "int8", "int4", "fp8", "attention=fp8,text_ffn=int8,audio_ffn=int4")
_METADATA = ("higgs_native", "panel", "group", "quantization", "calibrated", "checksums", "source", "more")


@functools.cache
def packed(quantization: str | None) -> dict[str, bytes]:
    """Return the files of a packed checkpoint, by their names."""
    with tempfile.TemporaryDirectory() as name:
        source, target = Path(name) / "source", Path(name) / "target"
        source.mkdir()
        write(source, files("original"))
        model = LanguageModel.from_pretrained(source, quantization=quantization)
        write_packed(model.named_weights(), model.quantization, source, target)
        return {path.name: path.read_bytes() for path in target.iterdir()}


def resealed(contents: bytes, generator: random.Random, folder: Path) -> bytes:
    """Change tensors and metadata, and write the checksums that fit."""
    path = folder / "whole"
    path.write_bytes(contents)
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata())
    path.unlink()
    for _ in range(generator.choice((1, 1, 3))):
        name = generator.choice(list(tensors))
        tensor = tensors[name]
        match generator.randrange(6):
            case 0 | 1:
                data = tensor.clone().view(torch.uint8).flatten()
                at = generator.randrange(len(data))
                data[at] = generator.choice((0x7F, 0xFF, 0x80, 0x7C))
                data[at - 1] = generator.randrange(256)
                tensors[name] = data.view(tensor.dtype).view(tensor.shape)
            case 2:
                tensors[name] = tensor[:-1].contiguous()
            case 3:
                tensors[name] = tensor.view(torch.uint8)
            case 4:
                del tensors[name]
            case _:
                tensors[mutations.text(generator).encode(errors="replace").decode()] = torch.zeros(1)
    metadata["checksums"] = json.dumps({name: checksum(tensor) for name, tensor in tensors.items()})
    if generator.random() < 0.5:
        value = mutations.value(generator)
        text = value if isinstance(value, str) else json.dumps(value)
        metadata[generator.choice(_METADATA)] = text.encode(errors="replace").decode()
    return save(tensors, metadata)


def case(generator: random.Random, folder: Path) -> None:
    contents = dict(packed(generator.choice(QUANTIZATIONS)))
    change = generator.choice((damaged, functools.partial(resealed, folder=folder)))
    contents[PACKED_FILE] = change(contents[PACKED_FILE], generator)
    write(folder, contents)
    model = LanguageModel.from_pretrained(folder)
    assert all(tensor.float().isfinite().all() for tensor in model.named_weights().values())


def test_packed_checkpoints(tmp_path, record_property):
    run_cases("packed checkpoints", 0.1, case, tmp_path, record_property)
