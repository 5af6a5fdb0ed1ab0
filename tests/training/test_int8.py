"""The frozen base in int8: the products and gradients of the rounded matrices."""

import torch
from torch import nn

from higgs_native.testing.configs import DEMO_CONFIG
from higgs_native.training.int8 import DequantizedProduct, Int8Linear, dequantize, quantize_layers
from higgs_native.training.loss import LossWeights, TargetCounts
from higgs_native.training.model import TrainableModel
from higgs_native.training.rows import PackedRows
from tests.training.samples import random_sample


def test_the_rounded_matrix_is_near_and_is_what_multiplies():
    linear = nn.Linear(48, 20, bias=False)
    rounded = Int8Linear(linear)
    matrix = dequantize(rounded.weight, rounded.scales, torch.float32)
    limits = linear.weight.detach().abs().amax(dim=1, keepdim=True) / 254
    assert ((matrix - linear.weight).abs() <= limits * 1.001).all()
    x = torch.randn(5, 48)
    torch.testing.assert_close(rounded(x), x @ matrix.T)
    assert rounded.weight.dtype == torch.int8


def test_gradcheck():
    generator = torch.Generator().manual_seed(1)
    weight = torch.randint(-127, 128, (4, 6), generator=generator, dtype=torch.int8)
    scales = torch.rand(4, 1, generator=generator, dtype=torch.float64)
    x = torch.randn(3, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: DequantizedProduct.apply(x, weight, scales), x)


def test_a_row_of_zeros_stays_zero():
    linear = nn.Linear(8, 2, bias=False)
    nn.init.zeros_(linear.weight)
    assert torch.equal(Int8Linear(linear)(torch.ones(3, 8)), torch.zeros(3, 2))


def test_all_matrices_of_the_layers_take_a_byte_per_value():
    torch.manual_seed(1)
    model = TrainableModel(DEMO_CONFIG)
    rows = PackedRows.pack([random_sample(DEMO_CONFIG, (9, 14), 1)])
    arguments = rows, LossWeights((1.0,) * 8), TargetCounts.of(rows)
    with torch.no_grad():
        before = model(*arguments).total
        quantize_layers(model.model.layers)
        after = model(*arguments).total
    torch.testing.assert_close(after, before, rtol=0.01, atol=0)
    assert after != before
    matrices = [weight for name, weight in model.model.layers.named_parameters() if weight.dim() == 2]
    assert len(matrices) == 2 * 10
    assert all(weight.dtype == torch.int8 for weight in matrices)
