"""Packed checkpoints: reading and writing `higgs_native.safetensors`, which holds the weights as kernels read them.

Loading a packed file packs, rounds and copies nothing: on a CPU, the weights are the mapped file. They are compared
with their checksums while they are used already. Its metadata:

- `higgs_native`: the version of the format;
- `panel`, `group`: `PANEL` and `QUANTIZATION_GROUP`;
- `quantization`: the attributes of `Quantization`, as JSON;
- `calibrated`: `true` if weights were rounded for their inputs (see `higgs_native.calibration`);
- `checksums`: the `checksum` of each tensor by its name, as JSON;
- `source`: the original checkpoint: `owner/name@revision` on the Hub, or a folder's name;
- `source_sha256`: for a folder, the SHA-256 of each weight file that was read, as JSON;
- `base`: the fingerprint of the original weights, which adapters name; files of older versions have none.
"""

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from higgs_native.checkpoint.adapter import Adapter
from higgs_native.checkpoint.config import HiggsAudioConfig
from higgs_native.checkpoint.files import AUDIO_TOKENIZER_FOLDER, READER_FILES, TensorFiles, weight_files
from higgs_native.checkpoint.language_model import (
    BUNDLED_AUDIO_TOKENIZER,
    BUNDLED_CONFIG_FILE,
    TEXT_LM_HEAD,
    LanguageModelFiles,
    expected_tensors,
)
from higgs_native.checkpoint.quantization import Quantization
from higgs_native.errors import CheckpointError
from higgs_native.ops import PackedWeight
from higgs_native.ops.formats import PANEL, QUANTIZATION_GROUP, STORED_DTYPES, WEIGHT_FORMATS, format_of
from higgs_native.utils.background_check import BackgroundCheck
from higgs_native.utils.files import check_file_can_be_made, replacing
from higgs_native.utils.memory import release_mapped
from higgs_native.utils.progress import bar_of_bytes, with_bar
from higgs_native.utils.tensors import is_finite


PACKED_FILE = "higgs_native.safetensors"
_VERSION = "2"
_SCALES = ".scales"
"""The suffix of the name of a packed weight's scales."""
_CHECKSUM_BLOCK = 32 << 10  # bytes
_CHECKSUM_PIECE = 64 << 20
"""Bytes that are added up at a time: a check can end between two pieces."""
_WRITTEN_PIECE = 16 << 20
# In the order in which safetensors writes them: the widest first, so that all are aligned.
_DTYPES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int8: "I8",
    torch.uint8: "U8",
}
_CHECKED_AT_LOAD = 64 << 20
"""Bytes of weights that are checked before they are used, which takes some milliseconds."""


class PackedWeights:
    """Weights of a packed file, mapped, or copied to a GPU; implements `Weights`. Call `check` when all are read.

    Raises:
        CheckpointError: the file is damaged, of another version, or does not fit the configuration.
        ParameterError: its quantization has an unknown format.
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
                f"{self._path} must be of version {_VERSION}, got {metadata.get('higgs_native', 'none')}; "
                "write it again with higgs-native quantize"
            )
        expected_layout = _layout()
        layout = {name: metadata.get(name) for name in expected_layout}
        if layout != expected_layout:
            raise CheckpointError(f"{self._path} must be packed with {expected_layout}, got {layout}")
        try:
            self.quantization = Quantization(**json.loads(metadata["quantization"]))
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{self._path}: its quantization must be known, got {error}") from None
        try:
            self._checksums = dict(json.loads(metadata["checksums"]))
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{self._path} is damaged or incomplete: its checksums: {error}") from None
        self._base = metadata.get("base")
        self._config = config
        self._unread = set(self._file.keys())
        self._stored_weights: dict[str, torch.Tensor] = {}
        self._shapes = expected_tensors(config)
        self.dtype = self._stored("embed_tokens.weight", self._shapes["embed_tokens.weight"]).dtype
        if self.dtype not in STORED_DTYPES.values():
            raise CheckpointError(
                f"{self._path}: embed_tokens.weight must be float32, bfloat16 or float16, got {self.dtype}"
            )

    def __contains__(self, name: str) -> bool:
        return name in self._file.keys()  # noqa: SIM118 (safe_open is no mapping)

    def tensor(self, name: str) -> torch.Tensor:
        """See `Weights.tensor`."""
        return self._read(name, self._shapes[name], self.dtype)

    def linear(self, part: str, name: str, *names: str) -> PackedWeight:
        """See `Weights.linear`."""
        shapes = [self._shapes[n] for n in names or (name,)]
        return self._packed(part, name, sum(n for n, _ in shapes), shapes[0][1])

    def gate_up(self, part: str, name: str, gate: str, up: str) -> PackedWeight:
        """See `Weights.gate_up`."""
        n, k = self._shapes[gate]
        half = PANEL // 2
        return self._packed(part, name, -(-n // half) * PANEL, k)

    def check_adapter(self, adapter: Adapter) -> None:
        """See `Weights.check_adapter`; whether the base is another one is known if the file names its own."""
        adapter.check_fit(self._config, TEXT_LM_HEAD in self, self._base)

    def check(self) -> BackgroundCheck | None:
        """Compare the weights that were read with their checksums; return a check that goes on if there are many.

        Raises:
            CheckpointError: the file holds tensors that have not been read, or is found to be damaged at once.
        """
        if self._unread:
            raise CheckpointError(f"{self._path} holds unknown tensors: {', '.join(sorted(self._unread)[:3])}")
        if sum(stored.nbytes for stored in self._stored_weights.values()) > _CHECKED_AT_LOAD:
            return BackgroundCheck(self._check_weights)
        self._check_weights(lambda: None)
        return None

    def _packed(self, part: str, name: str, n: int, k: int) -> PackedWeight:
        chosen = getattr(self.quantization, part)
        format = format_of(self.dtype) if chosen is None else WEIGHT_FORMATS[chosen]
        data = self._read(name, format.packed_shape(n, k), format.dtype)
        if format.scale_dtype is None:
            return PackedWeight(data)
        return PackedWeight(data, self._read(name + _SCALES, format.packed_scales_shape(n, k), format.scale_dtype))

    def _stored(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        try:
            tensor = self._file.get_tensor(name)
        except SafetensorError as error:
            raise CheckpointError(f"{self._path} lacks {name}: {error}") from None
        if tensor.shape != shape:
            raise CheckpointError(f"{self._path}: {name} must have shape {list(shape)}, got {list(tensor.shape)}")
        return tensor

    def _read(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        stored = self._stored(name, shape)
        if stored.dtype != dtype:
            raise CheckpointError(f"{self._path}: {name} must be {dtype}, got {stored.dtype}")
        self._unread.discard(name)
        self._stored_weights[name] = stored
        return stored.to(self._device)

    def _check_weights(self, go_on: Callable[[], None]) -> None:
        for name, stored in self._stored_weights.items():
            if (found := checksum(stored, go_on)) != self._checksums.get(name):
                raise CheckpointError(
                    f"{self._path} is damaged or incomplete: {name} must have the written checksum "
                    f"{self._checksums.get(name)}, got {found}"
                )
            if not is_finite(stored):
                raise CheckpointError(f"{self._path}: {name} must be finite, got NaN or infinity")
            if self._device.type != "cpu":
                release_mapped(stored)


def checksum(tensor: torch.Tensor, go_on: Callable[[], None] = lambda: None) -> int:
    """Return a checksum of a tensor's bytes, on any device: the CRC-32 of the sums of blocks of 32 KiB.

    A block's sum adds its 64-bit words modulo 2^64; the bytes after the last whole block enter the CRC as they are.
    This takes one pass at the speed of memory; a CRC of all bytes would take longer than loading. A change of one
    block goes unnoticed with a chance of 2^-32, or if it only swaps words of the block.

    `go_on` is called between pieces; an error that it raises ends the work.
    """
    data = tensor.flatten().view(torch.uint8)
    whole = len(data) // _CHECKSUM_BLOCK * _CHECKSUM_BLOCK
    crc = 0
    for piece in data[:whole].split(_CHECKSUM_PIECE):
        go_on()
        sums = piece.view(torch.int64).view(-1, _CHECKSUM_BLOCK // 8).sum(1)
        crc = zlib.crc32(sums.cpu().numpy().data, crc)
    return zlib.crc32(data[whole:].cpu().numpy().data, crc)


def named_tensors(weights: Mapping[str, torch.Tensor | PackedWeight | None]) -> dict[str, torch.Tensor]:
    """Return the tensors of weights by name, scales under separate names; weights that are None are left out."""
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
    """Raise an error if the folder `target` can't be created. Creates nothing, not even parents.

    Raises:
        CheckpointError: `target` exists.
        ParameterError: its first existing parent is no folder, or can't be written to.
    """
    if os.path.lexists(target):
        raise CheckpointError(f"target must not exist, got {target}")
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

    A bundled audio tokenizer becomes a folder, with its tensors and configurations as they are in the checkpoint.

    Args:
        tensors: `LanguageModel.named_weights` of the model in `source`.
        quantization: the model's formats.
        source: the folder that the model was loaded from.
        target: the folder to write, which must not exist; it appears whole or not at all, with missing parents.
        calibrated: whether weights were rounded for their inputs.

    Raises:
        CheckpointError: `target` exists, or can't be written.
        ParameterError: as for `check_target`.
    """
    check_target(target)
    described = with_bar(tensors.items(), "checksums", len(tensors), "tensor")
    metadata = {
        "higgs_native": _VERSION,
        **_layout(),
        "quantization": json.dumps(quantization.to_dict()),
        "calibrated": json.dumps(calibrated),
        "checksums": json.dumps({name: checksum(tensor) for name, tensor in described}),
        **_origin(source),
    }
    texts = [path for path in regular_files(source) if path.suffix in (".json", ".txt") or path.name in READER_FILES]
    audio_tokenizer = source / AUDIO_TOKENIZER_FOLDER
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as temporary:
            temporary.mkdir()
            write_tensors(tensors, metadata, temporary / PACKED_FILE)
            for path in texts:
                if not path.name.endswith(".safetensors.index.json") and path.name != BUNDLED_CONFIG_FILE:
                    shutil.copyfile(path, temporary / path.name)
            if audio_tokenizer.is_dir():
                (temporary / AUDIO_TOKENIZER_FOLDER).mkdir()
                for path in regular_files(audio_tokenizer):
                    shutil.copyfile(path, temporary / AUDIO_TOKENIZER_FOLDER / path.name)
            elif not (source / PACKED_FILE).is_file():
                _write_bundled(source, temporary / AUDIO_TOKENIZER_FOLDER)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{target} can't be written: {' '.join(str(error).split())}") from None


def _write_bundled(source: Path, target: Path) -> None:
    """Write the audio tokenizer that the files in `source` bundle, if they do, into the folder `target`."""
    files = TensorFiles(source)
    tensors = {name: files.get(name) for name in files.names() if name.startswith(BUNDLED_AUDIO_TOKENIZER)}
    if not tensors:
        return
    target.mkdir()
    save_file(tensors, target / "model.safetensors")
    (target / "model.safetensors").chmod(target.stat().st_mode & 0o666)
    for name in ("config.json", BUNDLED_CONFIG_FILE):
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def regular_files(folder: Path) -> list[Path]:
    """Return the files in a folder, without pipes and devices, which may never end, and without other folders."""
    return [path for path in folder.iterdir() if path.is_file()]


def write_tensors(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str], path: Path) -> None:
    """Write the safetensors file that `save_file` writes, but with a bar, and with sorted metadata.

    So the same checkpoint has the same bytes.
    """
    dtypes = list(_DTYPES)
    ordered = sorted(tensors.items(), key=lambda item: (dtypes.index(item[1].dtype), item[0]))
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    end = 0
    for name, tensor in ordered:
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    head = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    head = head.ljust(-(-len(head) // 8) * 8)
    with path.open("wb") as file, bar_of_bytes("writing", end) as bar:
        file.write(len(head).to_bytes(8, "little") + head)
        for _, tensor in ordered:
            for piece in tensor.contiguous().view(-1).view(torch.uint8).split(_WRITTEN_PIECE):
                bar.update(file.write(piece.cpu().numpy().data))


def _origin(folder: Path) -> dict[str, str]:
    """Return the metadata about the source of the checkpoint in `folder`; that of a packed one is passed on."""
    if (folder / PACKED_FILE).is_file():
        with safe_open(folder / PACKED_FILE, framework="pt") as packed:
            names = ("source", "source_sha256", "calibrated", "base")
            return {name: text for name, text in packed.metadata().items() if name in names}
    base = LanguageModelFiles(folder, HiggsAudioConfig.from_pretrained(folder)).fingerprint()
    folder = folder.resolve()
    repository = folder.parent.parent.name
    # The Hub's cache has folders models--owner--name/snapshots/revision.
    if folder.parent.name == "snapshots" and repository.startswith("models--"):
        return {"source": f"{repository.removeprefix('models--').replace('--', '/')}@{folder.name}", "base": base}
    paths = weight_files(folder)
    digests = {path.name: _sha256(path) for path in with_bar(paths, "digests of the source", len(paths), "file")}
    return {"source": folder.name, "source_sha256": json.dumps(digests), "base": base}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _layout() -> dict[str, str]:
    return {"panel": str(PANEL), "group": str(QUANTIZATION_GROUP)}
