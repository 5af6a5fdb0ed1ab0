"""The frozen base in int8 and int4: the outputs and gradients of the rounded layers."""

import pytest
import torch
from torch import nn

from higgs_native import ops, reference
from higgs_native.testing.configs import DEMO_CONFIG
from higgs_native.training.data.rows import PackedRows
from higgs_native.training.loss import LossWeights, TargetCounts
from higgs_native.training.model import TrainableModel
from higgs_native.training.quantized_base import DequantizedLinear, QuantizedLinear, dequantize, quantize_layers
from tests.training.samples import random_sample


def test_the_rounded_matrix_is_near_and_is_what_multiplies():
    linear = nn.Linear(48, 20, bias=False)
    rounded = QuantizedLinear(linear, 8)
    matrix = dequantize(rounded.weight, rounded.scales, torch.float32)
    limits = linear.weight.detach().abs().amax(dim=1, keepdim=True) / 254
    assert ((matrix - linear.weight).abs() <= limits * 1.001).all()
    x = torch.randn(5, 48)
    torch.testing.assert_close(rounded(x), x @ matrix.T)
    assert rounded.weight.dtype == torch.int8


def test_4_bits_are_those_of_a_quantized_checkpoint():
    linear = nn.Linear(300, 20, bias=False)
    rounded = QuantizedLinear(linear, 4)
    assert (rounded.weight.dtype, rounded.weight.shape) == (torch.uint8, (20, 150))
    served = reference.unpack_linear(ops.pack_linear(linear.weight.detach(), format="int4"))[:20, :300]
    matrix = dequantize(rounded.weight, rounded.scales, torch.float32)
    torch.testing.assert_close(matrix, served)
    x = torch.randn(5, 300, requires_grad=True)
    torch.testing.assert_close(rounded(x), x @ matrix.T)
    (gradient,) = torch.autograd.grad(rounded(x).sum(), x)
    torch.testing.assert_close(gradient, matrix.sum(dim=0).expand(5, -1))


def test_gradcheck():
    generator = torch.Generator().manual_seed(1)
    weight = torch.randint(-127, 128, (4, 6), generator=generator, dtype=torch.int8)
    scales = torch.rand(4, 1, generator=generator, dtype=torch.float64)
    x = torch.randn(3, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: DequantizedLinear.apply(x, weight, scales), x)


def test_a_row_of_zeros_stays_zero():
    linear = nn.Linear(8, 2, bias=False)
    nn.init.zeros_(linear.weight)
    for bits in (8, 4):
        assert torch.equal(QuantizedLinear(linear, bits)(torch.ones(3, 8)), torch.zeros(3, 2))


@pytest.mark.parametrize(("bits", "dtype", "error"), [(8, torch.int8, 0.01), (4, torch.uint8, 0.1)])
def test_all_matrices_of_the_layers_are_rounded(bits, dtype, error):
    torch.manual_seed(1)
    model = TrainableModel(DEMO_CONFIG)
    rows = PackedRows.pack([random_sample(DEMO_CONFIG, (9, 14), 1)])
    arguments = rows, LossWeights((1.0,) * 8), TargetCounts.of(rows)
    with torch.no_grad():
        before = model(*arguments).total
        quantize_layers(model.model.layers, bits)
        after = model(*arguments).total
    torch.testing.assert_close(after, before, rtol=error, atol=0)
    assert after != before
    matrices = [weight for name, weight in model.model.layers.named_parameters() if weight.dim() == 2]
    assert len(matrices) == 2 * 10
    assert all(weight.dtype == dtype for weight in matrices)
