"""Weight formats: the one table of how the values and scales of a packed weight are stored.

A packed weight is cut into panels of `PANEL` rows, and a panel into units of 128 bytes: 4 bytes of every row. The C++
side of this table is csrc/common/weight_format.h.
"""

from dataclasses import dataclass

import torch


PANEL = 32
"""Rows of a panel."""
QUANTIZATION_GROUP = 128
"""Columns that share a scale, in activations rounded to 8 bits and in int4 weights."""
_UNIT_BITS = 32
"""Bits of a row in one unit."""


@dataclass(frozen=True)
class WeightFormat:
    """How a weight matrix [n, k] is stored.

    Attributes:
        name: the name in `Quantization` and on the command line.
        dtype: the dtype of the packed data, different for each format. An element of uint8 holds two 4-bit integers.
        bits: the size of a value.
        safetensors_name: the name of `dtype` in unpacked safetensors files; None for quantized formats.
        limits: the min and the max value of a quantized format.
        scale_dtype: the dtype of the scales; None for formats without scales.
        scale_group: columns that share a scale; None if a row has one scale.
    """

    name: str
    dtype: torch.dtype
    bits: int
    safetensors_name: str | None = None
    limits: tuple[int, int] | None = None
    scale_dtype: torch.dtype | None = None
    scale_group: int | None = None

    @property
    def is_quantized(self) -> bool:
        """Whether values are multiplied by scales."""
        return self.scale_dtype is not None

    @property
    def is_integer(self) -> bool:
        """Whether values are integers; activations are then rounded to 8 bits in groups of `QUANTIZATION_GROUP`."""
        return not self.dtype.is_floating_point

    @property
    def value_dtype(self) -> torch.dtype:
        """The dtype of values before packing; 4-bit integers come as int8."""
        return torch.int8 if self.is_integer else self.dtype

    @property
    def unit_columns(self) -> int:
        """Columns of a unit."""
        return _UNIT_BITS // self.bits

    def num_scales(self, k: int) -> int:
        """Scales of a row of `k` columns."""
        if not self.is_quantized:
            return 0
        return 1 if self.scale_group is None else -(-k // self.scale_group)

    def scales_shape(self, n: int, k: int) -> tuple[int, ...]:
        """The shape of the scales of a matrix [n, k] before packing: [n], or [n, groups]."""
        return (n,) if self.scale_group is None else (n, self.num_scales(k))

    def packed_shape(self, n: int, k: int) -> tuple[int, int, int, int]:
        """The shape of `PackedWeight.data` for a matrix [n, k]: [panels, units, 32, elements of 4 bytes]."""
        if self.is_integer:
            k = -(-k // QUANTIZATION_GROUP) * QUANTIZATION_GROUP
        return -(-n // PANEL), -(-k // self.unit_columns), PANEL, _UNIT_BITS // 8 // self.dtype.itemsize

    def packed_scales_shape(self, n: int, k: int) -> tuple[int, ...]:
        """The shape of `PackedWeight.scales`: [panels, 32], or [panels, groups, 32]."""
        panels = -(-n // PANEL)
        return (panels, PANEL) if self.scale_group is None else (panels, self.num_scales(k), PANEL)

    def packed_nbytes(self, n: int, k: int) -> int:
        """Bytes of a packed matrix [n, k] and its scales."""
        panels, units, rows, elements = self.packed_shape(n, k)
        nbytes = panels * units * rows * elements * self.dtype.itemsize
        if self.scale_dtype is not None:
            nbytes += panels * self.num_scales(k) * PANEL * self.scale_dtype.itemsize
        return nbytes


WEIGHT_FORMATS = {
    format.name: format
    for format in (
        WeightFormat("float32", torch.float32, bits=32, safetensors_name="F32"),
        WeightFormat("bfloat16", torch.bfloat16, bits=16, safetensors_name="BF16"),
        WeightFormat("float16", torch.float16, bits=16, safetensors_name="F16"),
        WeightFormat("fp8", torch.float8_e4m3fn, bits=8, limits=(-448, 448), scale_dtype=torch.float32),
        WeightFormat("int8", torch.int8, bits=8, limits=(-127, 127), scale_dtype=torch.float32),
        WeightFormat(
            "int4",
            torch.uint8,
            bits=4,
            limits=(-8, 7),
            scale_dtype=torch.float16,
            scale_group=QUANTIZATION_GROUP,
        ),
    )
}
"""The formats by name."""
QUANTIZED_FORMATS = tuple(name for name, format in WEIGHT_FORMATS.items() if format.is_quantized)
"""The names of the formats with scales."""
STORED_DTYPES = {
    format.safetensors_name: format.dtype for format in WEIGHT_FORMATS.values() if format.safetensors_name is not None
}
"""The dtypes of unpacked checkpoints by their names in safetensors files."""
_BY_DTYPE = {format.dtype: format for format in WEIGHT_FORMATS.values()}


def format_of(dtype: torch.dtype) -> WeightFormat:
    """Return the format whose packed data has `dtype`.

    Raises:
        KeyError: no format has it.
    """
    return _BY_DTYPE[dtype]
