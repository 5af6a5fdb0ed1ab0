"""Quantized weights: rounding, formats, and what is refused."""

import pytest
import torch

from higgs_native import HiggsAudio, HiggsAudioModel, ops
from higgs_native.checkpoint.quantization import Quantization
from higgs_native.errors import ParameterError
from higgs_native.ops.formats import WEIGHT_FORMATS
from tests.helpers.devices import CHECKS_VALUES, CUDA_DEVICE, DEVICES, NEEDS_CUDA, NEEDS_CUDA_KERNELS
from tests.ops.tensors import random


PROMPT = torch.tensor([[*range(40), 269]])
GREEDY = {"convention": "transformers", "temperature": 0.0, "max_new_tokens": 40}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("format", "error"), [("int8", 0.01), ("int4", 0.12)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rounding(format, error, dtype, device):
    """Integers times scales are near the matrix, and clipping brings them nearer."""
    weight = random((40, 300), dtype) * (1 + random((40, 300), seed=1).abs() ** 3).to(dtype)

    def rounded(matrix: torch.Tensor, clip: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
        """The integers [40, 300], and the scale of each."""
        integers, scales = (tensor.cpu() for tensor in ops.quantize_linear(matrix.to(device), format, clip))
        return integers, scales[:, None] if format == "int8" else scales.float().repeat_interleave(128, 1)[:, :300]

    errors = []
    for clip in (False, True):
        integers, spread = rounded(weight, clip)
        difference = integers * spread - weight.float()
        errors.append(difference.pow(2).sum(1))
        if not clip:
            assert difference.abs().max() <= spread.abs().max() * 0.51
    assert (errors[1] <= errors[0] * 1.0001).all()
    assert errors[1].sum() < 0.97 * errors[0].sum() or format == "int8"
    plain = random((40, 300), dtype)
    integers, spread = rounded(plain)
    assert (integers * spread - plain.float()).std() < error


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rounding_to_e4m3(dtype, device):
    """A row's max magnitude becomes 448, every value becomes its nearest in e4m3, and `clip` changes nothing."""
    weight = random((70, 300), dtype) * (1 + random((70, 300), seed=1).abs() ** 3).to(dtype)
    before = weight.clone()
    values, scales = (tensor.cpu() for tensor in ops.quantize_linear(weight.to(device), "fp8"))
    assert torch.equal(weight, before)
    assert torch.equal(scales, weight.float().abs().amax(1) / 448)
    every = torch.arange(256).to(torch.uint8).view(torch.float8_e4m3fn).float()
    scaled = weight.float() / scales[:, None]
    nearest = (scaled[..., None] - every[every.isfinite()]).abs().amin(-1)
    assert torch.equal((scaled - values.float()).abs(), nearest)
    unclipped = ops.quantize_linear(weight.to(device), "fp8", clip=False)
    assert torch.equal(unclipped[0].cpu().view(torch.uint8), values.view(torch.uint8))
    assert torch.equal(unclipped[1].cpu(), scales)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("format", ["fp8", "int8", "int4"])
def test_extreme_matrices(format, device):
    """Zeros stay zero, one value stays itself, denormal and huge values neither overflow nor become NaN."""
    for value in (0.0, 1.0, -3.0, 1e-42, 2e-38, 5e5 if format == "int4" else 1e30):
        weight = torch.zeros(2, 256)
        weight[1, 200] = value
        values, scales = (tensor.cpu().float() for tensor in ops.quantize_linear(weight.to(device), format))
        spread = scales.repeat_interleave(128, 1) if format == "int4" else scales[:, None]
        assert not values[weight == 0].any()
        assert spread.isfinite().all()
        torch.testing.assert_close(values * spread, weight, rtol=1e-2, atol=1e-7)


@CHECKS_VALUES
@pytest.mark.parametrize("format", ["fp8", "int8", "int4"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_values_that_are_not_finite_are_refused(format, value):
    weight = torch.zeros(2, 256)
    weight[1, 200] = value
    with pytest.raises(RuntimeError, match=r"weight\[1\] holds values that are not finite"):
        ops.quantize_linear(weight, format)


@NEEDS_CUDA_KERNELS
@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
def test_values_that_are_not_finite_have_no_scale_on_cuda(value):
    weight = torch.ones(2, 256, device=CUDA_DEVICE)
    weight[1, 200] = value
    assert ops.quantize_linear(weight, "int8")[1].isnan().tolist() == [False, True]
    assert ops.quantize_linear(weight, "int4")[1].isnan().tolist() == [[False, False], [False, True]]


@NEEDS_CUDA
@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
def test_values_that_are_not_finite_have_no_fp8_scale_on_cuda(value):
    weight = torch.ones(2, 256, device="cuda")
    weight[1, 200] = value
    assert ops.quantize_linear(weight, "fp8")[1].isnan().tolist() == [False, True]


def quantize(matrices, device):
    """The integers and scales of each matrix in every format, clipped and not."""
    from higgs_native import ops

    return [
        [tensor.cpu() for tensor in ops.quantize_linear(matrix.to(device), format, clip)]
        for matrix in matrices
        for format in ("int8", "int4")
        for clip in (False, True)
    ]


def test_both_backends_round_alike(on_other_backend):
    matrices = [
        random(shape, dtype) * (1 + random(shape, seed=1).abs() ** 3).to(dtype)
        for shape in ((5, 1), (64, 1000), (300, 777))
        for dtype in (torch.float32, torch.bfloat16)
    ]
    ours, theirs = quantize(matrices, device="cpu"), on_other_backend(quantize, matrices)
    differing = 0
    for (integers, scales), (other_integers, other_scales) in zip(ours, theirs, strict=True):
        same = scales.view(len(scales), -1) == other_scales.view(len(scales), -1)
        differing += int((~same).sum())
        size = integers.shape[1] if scales.dim() == 1 else 128
        columns = same.repeat_interleave(size, 1)[:, : integers.shape[1]]
        assert torch.equal(integers[columns], other_integers[columns])
    # The error of two scales may be so near that it depends on the order of its sum, and so on the instruction set.
    assert differing <= 10


@pytest.mark.parametrize(("change", "message"), [({"bits": 5}, "bits must be 8 or 4, got 5"), ({"n": 3}, "integers")])
def test_wrong_arguments_are_named(change, message):
    n, bits = change.get("n", 2), change.get("bits", 8)
    with pytest.raises(RuntimeError, match="quantize_linear: " + message):
        torch.ops.higgs_native.quantize_linear(
            torch.empty(n, 5, dtype=torch.int8), torch.empty(2), torch.zeros(2, 5), bits, True
        )


@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device):
    tensors = (torch.empty(2, 5, dtype=torch.int8), torch.empty(2), random((2, 5)))
    arguments = (*(tensor.to(device) for tensor in tensors), 8, True)
    torch.library.opcheck(torch.ops.higgs_native.quantize_linear.default, arguments)


def test_parsing():
    assert Quantization.parse(None) == Quantization()
    assert Quantization.parse("int8") == Quantization("int8", "int8", "int8", "int8")
    assert Quantization.parse("heads=int8, int4") == Quantization("int4", "int4", "int4", "int8")
    assert Quantization.parse("audio_ffn=int4") == Quantization(audio_ffn="int4")
    assert Quantization.parse("fp8,text_ffn=int4") == Quantization("fp8", "int4", "fp8", "fp8")
    for text, message in (
        ("int3", "attention must be one of float32, bfloat16, float16, fp8, int8, int4, got 'int3'"),
        ("int4,int8", "the format of all parts must be given once, got 'int4,int8'"),
        ("heads=int8,heads=int4", "heads must be given once, got"),
        ("", "attention must be one of .*, got ''"),
        (8, "must be a string such as 'int8', got 8"),
        ("head=int8", "a part must be one of attention, text_ffn, audio_ffn, heads, got 'head'"),
    ):
        with pytest.raises(ParameterError, match=message):
            Quantization.parse(text)


@pytest.mark.parametrize(
    ("quantization", "error"), [("fp8", 0.1), ("int8", 0.03), ("int4", 0.4), ("int4,heads=int8", 0.4)]
)
def test_a_quantized_model_is_near_the_whole_one(source, quantization, error):
    whole = HiggsAudioModel.from_pretrained(source, dtype="float32")
    model = HiggsAudioModel.from_pretrained(source, dtype="float32", quantization=quantization)
    assert model.nbytes < 0.8 * whole.nbytes
    first = {**GREEDY, "max_new_tokens": 1}
    whole_logits, logits = (m.generate(PROMPT, **first, output_logits=True).audio_logits[0][0] for m in (whole, model))
    assert (whole_logits - logits).std() < error * whole_logits.std()
    assert model.audio_head.data.dtype == WEIGHT_FORMATS[Quantization.parse(quantization).heads].dtype


@pytest.mark.parametrize(("quantization", "dtype"), [("int3", "auto"), ("int8", "float8")])
def test_wrong_parameters_show_before_anything_is_fetched(monkeypatch, quantization, dtype):
    def fetched(path_or_name):
        raise AssertionError(f"{path_or_name} was fetched")

    monkeypatch.setattr("higgs_native.model.transformer.resolve_folder", fetched)
    monkeypatch.setattr("higgs_native.pipeline.resolve_folder", fetched)
    for loader in (HiggsAudioModel, HiggsAudio):
        with pytest.raises(ParameterError):
            loader.from_pretrained("owner/name", quantization=quantization, dtype=dtype)
