"""Where the language model gets its weights from: a checkpoint, packed and quantized on the way, or a packed file.

A packed file, `higgs_native.safetensors` in a checkpoint's folder, holds the weights as the kernels take them, so that
loading is reading. Its metadata names its version, the quantization, and what it was made from.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from higgs_native import ops
from higgs_native.checkpoint import STORED_DTYPES, LanguageModelFiles, expected_tensors
from higgs_native.config import HiggsAudioConfig
from higgs_native.errors import CheckpointError, ParameterError
from higgs_native.memory import empty_weight, release_mapped
from higgs_native.ops import PackedWeight
from higgs_native.ops.linear import FORMATS, PANEL, QUANTIZATION_GROUP, QUANTIZED, packed_shape
from higgs_native.quantization import Quantization


PACKED_FILE = "higgs_native.safetensors"
AUDIO_TOKENIZER_FOLDER = "audio_tokenizer"
"""Within a checkpoint's folder, where its audio tokenizer may stand."""
_VERSION = "1"
_SCALES = ".scales"


class Weights(Protocol):
    """What the language model is built from. Names are those of the original layout.

    Attributes:
        dtype: of the tables, the norms, and the matrices of parts without a format.
        quantization: the format of each part.
    """

    dtype: torch.dtype
    quantization: Quantization

    def __contains__(self, name: str) -> bool: ...

    def tensor(self, name: str) -> torch.Tensor:
        """A table or a norm's weight."""

    def linear(self, part: str, name: str, *names: str) -> PackedWeight:
        """The matrices `names` below each other, packed under `name`; by default `name` itself.

        Args:
            part: the part of `Quantization` that it belongs to.
            name: what the packed weight is called.
            names: the matrices' names.
        """

    def gate_up(self, part: str, name: str, gate: str, up: str) -> PackedWeight:
        """The gate and up projections, packed together under `name`."""


class CheckpointWeights:
    """Weights of a checkpoint of either layout, packed while they are read, a matrix at a time.

    Args:
        folder: the checkpoint.
        config: its configuration.
        dtype: of what is not quantized; None: as stored.
        quantization: the format of each part.
        device: where they are packed, and stay.

    Raises:
        CheckpointError: files are missing or damaged, or tensors don't fit the configuration.
    """

    def __init__(
        self,
        folder: Path,
        config: HiggsAudioConfig,
        dtype: torch.dtype | None,
        quantization: Quantization,
        device: torch.device,
    ) -> None:
        self._files = LanguageModelFiles(folder, config)
        self._device = device
        self.dtype = dtype or STORED_DTYPES[self._files.dtype("embed_tokens.weight")]
        self.quantization = quantization

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def tensor(self, name: str) -> torch.Tensor:
        tensor = empty_weight(self._files.shape(name), self.dtype, self._device)
        self._files.copy_into(tensor, name)
        return tensor

    def linear(self, part: str, name: str, *names: str) -> PackedWeight:
        with ExitStack() as stack:
            matrices = [
                stack.enter_context(self._files.opened(n, self.dtype)).to(self._device) for n in names or (name,)
            ]
            return self._checked(name, ops.pack_linear, *matrices, format=getattr(self.quantization, part))

    def gate_up(self, part: str, name: str, gate: str, up: str) -> PackedWeight:
        with self._files.opened(gate, self.dtype) as first, self._files.opened(up, self.dtype) as second:
            matrices = first.to(self._device), second.to(self._device)
            return self._checked(name, ops.pack_gate_up, *matrices, format=getattr(self.quantization, part))

    def _checked(
        self, name: str, pack: Callable[..., PackedWeight], *matrices: torch.Tensor, format: str | None
    ) -> PackedWeight:
        if format in QUANTIZED and not all(matrix.isfinite().all() for matrix in matrices):
            raise CheckpointError(f"{name} holds values that are not finite and can't be quantized")
        return pack(*matrices, format=format, clip=self.quantization.clip)


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
        format = getattr(self.quantization, part)
        dtype = self.dtype if format is None else FORMATS[format]
        shape = packed_shape(n, k, dtype)
        data = self._read(name, shape, dtype)
        if format in ("fp8", "int8"):
            return PackedWeight(data, self._read(name + _SCALES, (shape[0], PANEL), torch.float32))
        if format == "int4":
            groups = -(-k // QUANTIZATION_GROUP)
            return PackedWeight(data, self._read(name + _SCALES, (shape[0], groups, PANEL), torch.float16))
        return PackedWeight(data)

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
        return tensor


def open_weights(
    folder: Path,
    config: HiggsAudioConfig,
    dtype: torch.dtype | None,
    quantization: str | Quantization | None,
    device: torch.device,
) -> Weights:
    """Open a checkpoint's packed file, or else its tensors, which are then packed in the formats asked for.

    What is read from them comes to `device`.

    Raises:
        CheckpointError: files are missing or damaged, or don't fit the configuration.
        ParameterError: the quantization is unknown, or the checkpoint is packed in another one or another dtype.
    """
    chosen = Quantization.parse(quantization)
    if not (folder / PACKED_FILE).is_file():
        return CheckpointWeights(folder, config, dtype, chosen, device)
    packed = PackedWeights(folder, config, device)
    if dtype not in (None, packed.dtype):
        raise ParameterError(f"{folder} is packed in {packed.dtype}; load it with dtype='auto'")
    if quantization is not None and not chosen.same_formats(packed.quantization):
        raise ParameterError(f"{folder} is packed with {packed.quantization}; load it without quantization")
    return packed


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
    """Raise CheckpointError where a folder `target` exists, or can't be made."""
    if target.exists():
        raise CheckpointError(f"{target} already exists; choose another folder")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryDirectory(dir=target.parent).cleanup()
    except OSError as error:
        raise CheckpointError(f"{target} can't be written: {error.strerror}") from None


def write_packed(tensors: Mapping[str, torch.Tensor], quantization: Quantization, source: Path, target: Path) -> None:
    """Write a checkpoint folder: a packed file, and the configuration, tokenizer and audio tokenizer of `source`.

    Args:
        tensors: `LanguageModel.named_weights` of the model in `source`.
        quantization: the model's.
        source: the folder that it was loaded from.
        target: must not exist; appears whole or not at all.

    Raises:
        CheckpointError: `target` exists, or can't be written.
    """
    check_target(target)
    metadata = {
        "higgs_native": _VERSION,
        **_layout(),
        "quantization": json.dumps(quantization.to_dict()),
        # A folder fetched from the Hub is named after its revision.
        "source": source.resolve().name,
    }
    texts = [path for path in source.iterdir() if path.suffix in (".json", ".txt") and path.is_file()]
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        save_file(dict(tensors), temporary / PACKED_FILE, metadata=metadata)
        for path in texts:
            if not path.name.endswith(".safetensors.index.json"):
                shutil.copyfile(path, temporary / path.name)
        if (source / AUDIO_TOKENIZER_FOLDER).is_dir():
            shutil.copytree(source / AUDIO_TOKENIZER_FOLDER, temporary / AUDIO_TOKENIZER_FOLDER)
        # Both begin as their owner's alone.
        (temporary / PACKED_FILE).chmod(0o644)
        temporary.chmod(0o755)
        temporary.rename(target)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{target} can't be written: {' '.join(str(error).split())}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _layout() -> dict[str, str]:
    return {"panel": str(PANEL), "group": str(QUANTIZATION_GROUP)}
