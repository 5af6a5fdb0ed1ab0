"""Packed checkpoints: the weights as the kernels take them, in one file.

A packed file, `higgs_native.safetensors` in a checkpoint's folder, holds the weights as the kernels take them, so that
loading is reading. Its metadata:

- `higgs_native`: the version of the format; `panel`, `group`: the layout of packed matrices;
- `quantization`: the attributes of `Quantization`, as JSON;
- `calibrated`: `true` where weights were rounded for the inputs that they meet (see `higgs_native.calibration`);
- `checksums`: `checksum` of each tensor by its name, as JSON;
- `source`: the checkpoint that it was made from: `owner/name@revision` of the Hub, or a folder's name, and then
  `source_sha256`, the SHA-256 of each weight file that was read, as JSON.
"""

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from higgs_native.errors import CheckpointError
from higgs_native.model.checkpoint import expected_tensors, weight_files
from higgs_native.model.config import HiggsAudioConfig
from higgs_native.model.quantization import Quantization
from higgs_native.ops import PackedWeight
from higgs_native.ops.formats import PANEL, QUANTIZATION_GROUP, STORED_DTYPES, WEIGHT_FORMATS, format_of
from higgs_native.utils.files import check_file_can_be_made, replacing
from higgs_native.utils.memory import empty_weight, release_mapped


PACKED_FILE = "higgs_native.safetensors"


AUDIO_TOKENIZER_FOLDER = "audio_tokenizer"
"""Within a checkpoint's folder, where its audio tokenizer may stand."""


_VERSION = "2"


_SCALES = ".scales"


_CHECKSUM_BLOCK = 32 << 10  # bytes


class PackedWeights:
    """Weights of a packed file, copied to `device`.

    Raises:
        CheckpointError: it is damaged, of another version, or doesn't fit the configuration.
    """

    def __init__(self, folder: Path, config: HiggsAudioConfig, device: torch.device) -> None:
        self._path = folder / PACKED_FILE
        self._device = device
        try:
            self._file = safe_open(self._path, framework="pt")
            metadata = self._file.metadata() or {}
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{self._path} is damaged or incomplete: {error}") from None
        if metadata.get("higgs_native") != _VERSION:
            raise CheckpointError(
                f"{self._path} is of version {metadata.get('higgs_native', 'unknown')}; expected {_VERSION}. "
                "Make it anew with higgs-native quantize"
            )
        expected_layout = _layout()
        layout = {name: metadata.get(name) for name in expected_layout}
        if layout != expected_layout:
            raise CheckpointError(f"{self._path} is packed as {layout}; expected {expected_layout}")
        try:
            self.quantization = Quantization(**json.loads(metadata["quantization"]))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{self._path}: its quantization is not known: {error}") from None
        try:
            self._checksums = dict(json.loads(metadata["checksums"]))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{self._path} is damaged or incomplete: its checksums: {error}") from None
        self._left = set(self._file.keys())
        self._shapes = expected_tensors(config)
        self.dtype = self._stored("embed_tokens.weight", self._shapes["embed_tokens.weight"]).dtype
        if self.dtype not in STORED_DTYPES.values():
            expected = ", ".join(str(dtype) for dtype in STORED_DTYPES.values())
            raise CheckpointError(f"{self._path}: embed_tokens.weight is {self.dtype}; expected one of {expected}")

    def __contains__(self, name: str) -> bool:
        return name in self._file.keys()  # noqa: SIM118 (safe_open is no mapping)

    def tensor(self, name: str) -> torch.Tensor:
        return self._read(name, self._shapes[name], self.dtype)

    def linear(self, part: str, name: str, *names: str) -> PackedWeight:
        shapes = [self._shapes[n] for n in names or (name,)]
        return self._packed(part, name, sum(n for n, _ in shapes), shapes[0][1])

    def gate_up(self, part: str, name: str, gate: str, up: str) -> PackedWeight:
        n, k = self._shapes[gate]
        half = PANEL // 2
        return self._packed(part, name, -(-n // half) * PANEL, k)

    def check_all_read(self) -> None:
        """Raise CheckpointError where the file holds tensors that nobody asked for."""
        if self._left:
            raise CheckpointError(f"{self._path} holds unknown tensors: {', '.join(sorted(self._left)[:3])}")

    def _packed(self, part: str, name: str, n: int, k: int) -> PackedWeight:
        chosen = getattr(self.quantization, part)
        format = format_of(self.dtype) if chosen is None else WEIGHT_FORMATS[chosen]
        data = self._read(name, format.packed_shape(n, k), format.dtype)
        if not format.is_quantized:
            return PackedWeight(data)
        return PackedWeight(data, self._read(name + _SCALES, format.packed_scales_shape(n, k), format.scale_dtype))

    def _stored(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        try:
            tensor = self._file.get_tensor(name)
        except SafetensorError as error:
            raise CheckpointError(f"{self._path} lacks {name}: {error}") from None
        if tensor.shape != shape:
            raise CheckpointError(
                f"{self._path}: {name} has shape {list(tensor.shape)}, but config.json asks for {list(shape)}"
            )
        return tensor

    def _read(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        stored = self._stored(name, shape)
        if stored.dtype != dtype:
            raise CheckpointError(f"{self._path}: {name} is {stored.dtype}; expected {dtype}")
        self._left.discard(name)
        # Copied: a frame reads all weights, and a mapped file has small pages.
        tensor = empty_weight(shape, stored.dtype, self._device)
        tensor.copy_(stored)
        release_mapped(stored)
        if checksum(tensor) != self._checksums.get(name):
            raise CheckpointError(
                f"{self._path} is damaged or incomplete: {name} is not what was written (its checksum is another)"
            )
        return tensor


def checksum(tensor: torch.Tensor) -> int:
    """Return a checksum of a tensor's bytes, on any device: the CRC-32 of the sums of blocks of 32 KiB.

    A block's sum is that of its 64-bit words, modulo 2^64; bytes behind the last whole block are taken as they are. It
    costs one pass at the speed of memory, where a CRC of all bytes would take longer than loading. Any change of one
    block alters it, but for one chance in 2^32, unless words of a block change places.
    """
    data = tensor.flatten().view(torch.uint8)
    whole = len(data) // _CHECKSUM_BLOCK * _CHECKSUM_BLOCK
    sums = data[:whole].view(torch.int64).view(-1, _CHECKSUM_BLOCK // 8).sum(1)
    return zlib.crc32(data[whole:].cpu().numpy(), zlib.crc32(sums.cpu().numpy()))


def named_tensors(weights: Mapping[str, torch.Tensor | PackedWeight | None]) -> dict[str, torch.Tensor]:
    """The tensors of weights by name, scales under a name of their own; None is left out."""
    tensors: dict[str, torch.Tensor] = {}
    for name, weight in weights.items():
        if isinstance(weight, PackedWeight):
            tensors[name] = weight.data
            if weight.scales is not None:
                tensors[name + _SCALES] = weight.scales
        elif weight is not None:
            tensors[name] = weight
    return tensors


def check_target(target: Path) -> None:
    """Raise an error where a folder `target` can't be made. Nothing is made yet, parents neither.

    Raises:
        CheckpointError: something stands there.
        ParameterError: the folder in which it, or the first parent that is missing, would be made can't be written to.
    """
    if os.path.lexists(target):
        raise CheckpointError(f"{target} already exists; choose another folder")
    first = target
    while not os.path.lexists(first.parent):
        first = first.parent
    check_file_can_be_made(first)


def write_packed(
    tensors: Mapping[str, torch.Tensor],
    quantization: Quantization,
    source: Path,
    target: Path,
    calibrated: bool = False,
) -> None:
    """Write a checkpoint folder: a packed file, and the configuration, tokenizer and audio tokenizer of `source`.

    Args:
        tensors: `LanguageModel.named_weights` of the model in `source`.
        quantization: the model's.
        source: the folder that it was loaded from.
        target: must not exist; appears whole or not at all. Missing parents are made.
        calibrated: whether weights were rounded for the inputs that they meet.

    Raises:
        CheckpointError: `target` exists, or can't be written.
        ParameterError: as for `check_target`.
    """
    check_target(target)
    metadata = {
        "higgs_native": _VERSION,
        **_layout(),
        "quantization": json.dumps(quantization.to_dict()),
        "calibrated": json.dumps(calibrated),
        "checksums": json.dumps({name: checksum(tensor) for name, tensor in tensors.items()}),
        **_origin(source),
    }
    texts = [path for path in source.iterdir() if path.suffix in (".json", ".txt") and path.is_file()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as temporary:
            temporary.mkdir()
            save_file(dict(tensors), temporary / PACKED_FILE, metadata=metadata)
            (temporary / PACKED_FILE).chmod(0o644)  # it begins as its owner's alone
            for path in texts:
                if not path.name.endswith(".safetensors.index.json"):
                    shutil.copyfile(path, temporary / path.name)
            if (source / AUDIO_TOKENIZER_FOLDER).is_dir():
                shutil.copytree(source / AUDIO_TOKENIZER_FOLDER, temporary / AUDIO_TOKENIZER_FOLDER)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{target} can't be written: {' '.join(str(error).split())}") from None


def _origin(folder: Path) -> dict[str, str]:
    """The metadata's `source` of the checkpoint in `folder`. Where that is packed itself: what it says of its own."""
    if (folder / PACKED_FILE).is_file():
        with safe_open(folder / PACKED_FILE, framework="pt") as packed:
            names = ("source", "source_sha256", "calibrated")
            return {name: text for name, text in packed.metadata().items() if name in names}
    folder = folder.resolve()
    repository = folder.parent.parent.name
    # As the Hub's cache is laid out: models--owner--name/snapshots/revision.
    if folder.parent.name == "snapshots" and repository.startswith("models--"):
        return {"source": f"{repository.removeprefix('models--').replace('--', '/')}@{folder.name}"}
    digests = {path.name: _sha256(path) for path in weight_files(folder)}
    return {"source": folder.name, "source_sha256": json.dumps(digests)}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _layout() -> dict[str, str]:
    return {"panel": str(PANEL), "group": str(QUANTIZATION_GROUP)}
