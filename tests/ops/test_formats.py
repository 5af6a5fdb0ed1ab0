"""The table of weight formats against what packing gives."""

import pytest
import torch

from higgs_native import ops
from higgs_native.ops.formats import STORED_DTYPES, WEIGHT_FORMATS, format_of
from tests.ops.tensors import random


@pytest.mark.parametrize("format", WEIGHT_FORMATS.values(), ids=list(WEIGHT_FORMATS))
@pytest.mark.parametrize(("n", "k"), [(1, 1), (32, 128), (70, 33), (100, 300)])
def test_a_packed_weight_has_the_shapes_of_its_format(format, n, k):
    weight = ops.pack_linear(random((n, k)), format=format.name)
    assert weight.data.dtype == format.dtype
    assert weight.data.shape == format.packed_shape(n, k)
    assert weight.nbytes == format.packed_nbytes(n, k)
    assert (weight.scales is not None) == format.is_quantized
    if format.is_quantized:
        assert weight.scales.dtype == format.scale_dtype
        assert weight.scales.shape == format.packed_scales_shape(n, k)
        values, scales = ops.quantize_linear(random((n, k)), format.name)
        assert (values.dtype, scales.dtype) == (format.value_dtype, format.scale_dtype)
        assert scales.shape == format.scales_shape(n, k)


@pytest.mark.parametrize(
    "format", [format for format in WEIGHT_FORMATS.values() if format.is_quantized], ids=lambda format: format.name
)
def test_values_reach_the_limits_and_stay_within(format):
    weight = torch.linspace(-1, 1, 128).repeat(8, 1) * torch.tensor([1.0, -1.0] * 4)[:, None]
    values = ops.quantize_linear(weight, format.name, clip=False)[0].float()
    min_value, max_value = format.limits
    assert values.max() == max_value
    assert min_value <= values.min() <= -max_value


def test_a_dtype_names_one_format():
    assert [format_of(format.dtype) for format in WEIGHT_FORMATS.values()] == list(WEIGHT_FORMATS.values())
    assert set(STORED_DTYPES.values()) == {f.dtype for f in WEIGHT_FORMATS.values() if not f.is_quantized}
