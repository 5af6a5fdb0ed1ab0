"""Where the language model gets its weights from: a checkpoint, packed and quantized on the way, or a packed file.

A packed file, `higgs_native.safetensors` in a checkpoint's folder, holds the weights as the kernels take them, so that
loading is reading. Its metadata:

- `higgs_native`: the version of the format; `panel`, `group`: the layout of packed matrices;
- `quantization`: the attributes of `Quantization`, as JSON;
- `calibrated`: `true` where weights were rounded for the inputs that they meet (see `higgs_native.calibration`);
- `checksums`: `checksum` of each tensor by its name, as JSON;
- `source`: the checkpoint that it was made from: `owner/name@revision` of the Hub, or a folder's name, and then
  `source_sha256`, the SHA-256 of each of its weight files, as JSON.
"""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import torch

from higgs_native import ops
from higgs_native.errors import CheckpointError, ParameterError
from higgs_native.model.checkpoint import LanguageModelFiles
from higgs_native.model.config import HiggsAudioConfig, configured_dtype
from higgs_native.model.packed_checkpoint import PACKED_FILE, PackedWeights
from higgs_native.model.quantization import Quantization
from higgs_native.ops import Moments, PackedWeight
from higgs_native.ops.formats import QUANTIZED_FORMATS
from higgs_native.utils.memory import empty_weight


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
        dtype: of what is not quantized; None: the one that config.json names, or else that of the stored matrices.
        quantization: the format of each part.
        device: where they are packed, and stay.

    Attributes:
        moments: of the inputs that matrices meet, by the name that they are packed under; what is quantized is then
            rounded for these (see `ops.error_feedback`). None: to the nearest.

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
        self.dtype = dtype or configured_dtype(folder) or self._files.matrix_dtype
        self.quantization = quantization
        self.moments: dict[str, Moments] | None = None

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
        feedback = None
        if format in QUANTIZED_FORMATS:
            # Of the extremes, for which no copy of the matrix is made.
            if not all(extreme.isfinite() for matrix in matrices for extreme in matrix.aminmax()):
                raise CheckpointError(f"{name} holds values that are not finite and can't be quantized")
            if self.moments is not None:
                feedback = ops.error_feedback(self.moments[name])
        return pack(*matrices, format=format, clip=self.quantization.clip, feedback=feedback)


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
