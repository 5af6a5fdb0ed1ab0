"""The sources of the language model's weights: a checkpoint, packed on loading, or a packed file."""

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import torch

from higgs_native import ops
from higgs_native.checkpoint.adapter import Adapter
from higgs_native.checkpoint.config import HiggsAudioConfig, configured_dtype
from higgs_native.checkpoint.files import WEIGHT_FILES
from higgs_native.checkpoint.language_model import LanguageModelFiles
from higgs_native.checkpoint.packed import PACKED_FILE, PackedWeights
from higgs_native.checkpoint.quantization import Quantization
from higgs_native.errors import ParameterError
from higgs_native.ops import Moments, PackedWeight
from higgs_native.ops.formats import QUANTIZED_FORMATS
from higgs_native.utils.memory import empty_weight


_LOGGER = logging.getLogger(__name__)


class Weights(Protocol):
    """A source of the language model's weights. Names are those of the original layout.

    Attributes:
        dtype: the dtype of the tables, the norms, and the matrices of parts without a format.
        quantization: the format of each part.
    """

    dtype: torch.dtype
    quantization: Quantization

    def __contains__(self, name: str) -> bool: ...

    def tensor(self, name: str) -> torch.Tensor:
        """Return a table or a norm's weight."""

    def linear(self, part: str, name: str, *names: str) -> PackedWeight:
        """Return matrices [n, k], concatenated along n and packed.

        Args:
            part: their part of `Quantization`.
            name: the name of the packed weight.
            names: the names of the matrices; by default `name` alone.
        """

    def gate_up(self, part: str, name: str, gate: str, up: str) -> PackedWeight:
        """Return the gate and up projections `gate` and `up`, packed together under `name`."""

    def check_adapter(self, adapter: Adapter) -> None:
        """Raise CheckpointError if an adapter does not fit, or was trained on other weights."""


class CheckpointWeights:
    """Weights of a checkpoint of either layout, read and packed one matrix at a time; implements `Weights`.

    Args:
        folder: the checkpoint.
        config: its configuration.
        dtype: the dtype of unquantized weights; None takes the one that config.json names, or else that of the stored
            matrices.
        quantization: the format of each part.
        device: the device of the packed weights.
        adapter: is added to the weights as they are read.

    Attributes:
        moments: the moments of the inputs of each packed weight, by its name. Quantized weights are rounded for these
            inputs (see `ops.error_feedback`); None rounds to the nearest value.

    Raises:
        CheckpointError: files are missing or damaged, or tensors don't fit the configuration. The methods raise it for
            values that are not finite.
    """

    def __init__(
        self,
        folder: Path,
        config: HiggsAudioConfig,
        dtype: torch.dtype | None,
        quantization: Quantization,
        device: torch.device,
        adapter: Adapter | None = None,
    ) -> None:
        self._files = LanguageModelFiles(folder, config)
        self._config = config
        if adapter is not None:
            self.check_adapter(adapter)
        self._adapter = adapter
        self._device = device
        self.dtype = dtype or configured_dtype(folder) or self._files.matrix_dtype
        self.quantization = quantization
        self.moments: dict[str, Moments] | None = None

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def tensor(self, name: str) -> torch.Tensor:
        """See `Weights.tensor`."""
        tensor = empty_weight(self._files.shape(name), self.dtype, self._device)
        self._files.copy_into(tensor, name)
        tensor = self._adapted(name, tensor)
        self._files.check_finite(name, tensor)
        return tensor

    def linear(self, part: str, name: str, *names: str) -> PackedWeight:
        """See `Weights.linear`."""
        return self._pack(name, ops.pack_linear, names or (name,), getattr(self.quantization, part))

    def gate_up(self, part: str, name: str, gate: str, up: str) -> PackedWeight:
        """See `Weights.gate_up`."""
        return self._pack(name, ops.pack_gate_up, (gate, up), getattr(self.quantization, part))

    def check_adapter(self, adapter: Adapter) -> None:
        """See `Weights.check_adapter`."""
        adapter.check_base(self._files, self._config)

    def _pack(
        self, name: str, pack: Callable[..., PackedWeight], names: Sequence[str], format: str | None
    ) -> PackedWeight:
        """Pack the matrices `names` together under `name`."""
        with ExitStack() as stack:
            matrices = [
                self._adapted(n, stack.enter_context(self._files.opened(n, self.dtype)).to(self._device))
                for n in names
            ]
            for n, matrix in zip(names, matrices, strict=True):
                self._files.check_finite(n, matrix)
            feedback = None
            if format in QUANTIZED_FORMATS and self.moments is not None:
                feedback = ops.error_feedback(self.moments[name])
            return pack(*matrices, format=format, clip=self.quantization.clip, feedback=feedback)

    def _adapted(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        return tensor if self._adapter is None else self._adapter.added(name, tensor)


def open_weights(
    folder: Path,
    config: HiggsAudioConfig,
    dtype: torch.dtype | None,
    quantization: str | Quantization | None,
    device: torch.device,
    adapter: Adapter | None = None,
) -> Weights:
    """Open the packed file of a checkpoint, or else its tensors, which are packed as they are read.

    If there are both, a warning is logged.

    Args:
        folder: the checkpoint.
        config: its configuration.
        dtype: see `CheckpointWeights`; a packed file allows its own dtype or None.
        quantization: the format of each part; a packed file allows its own formats or None.
        device: the device of the weights.
        adapter: is added to the weights; a packed file allows none.

    Raises:
        CheckpointError: files are missing or damaged, or don't fit the configuration, or the adapter doesn't fit.
        ParameterError: the quantization is unknown, or the checkpoint is packed with other formats or another dtype,
            or is packed and there is an adapter.
    """
    chosen = Quantization.parse(quantization)
    if not (folder / PACKED_FILE).is_file():
        return CheckpointWeights(folder, config, dtype, chosen, device, adapter)
    if adapter is not None:
        raise ParameterError(
            f"adapter must be None for a packed checkpoint, got {adapter.folder}: merge it into the checkpoint that "
            "the packed one was made from, and quantize the result"
        )
    original = next((name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if original is not None:
        _LOGGER.warning("%s holds %s and %s: the packed weights are used", folder, PACKED_FILE, original)
    packed = PackedWeights(folder, config, device)
    if dtype not in (None, packed.dtype):
        own, asked = (str(name).removeprefix("torch.") for name in (packed.dtype, dtype))
        raise ParameterError(f"dtype must be auto or {own} for a packed checkpoint, got {asked}")
    if quantization is not None and not chosen.same_formats(packed.quantization):
        raise ParameterError(f"quantization must be None for a checkpoint packed with {packed.quantization}")
    return packed
