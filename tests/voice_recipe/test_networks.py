"""The networks of the voice's recipe in bfloat16: the same as the plain ones. Needs no download."""

import shutil
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from recipe import matrix_networks, snake, teacher, teacher_decoder, tokenizer_networks
from recipe.acoustic_networks import AcousticEncoder, Snake
from torch.nn import functional as F


needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="torch compiles Snake with g++")


def _far(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.detach().float() - expected.detach()).norm() / expected.detach().norm())


@needs_compiler
@pytest.mark.parametrize(("channels", "length"), [(12, 40), (24, 33), (96, 7)])
def test_snake_and_its_gradients_are_those_of_the_layer(channels, length):
    torch.manual_seed(0)
    layer = Snake(channels)
    layer.alpha.data = 0.2 + 3 * torch.rand(1, channels, 1)
    x = (4 * torch.randn(2, channels, length)).requires_grad_()
    expected, above = layer(x), torch.randn(2, channels, length)
    expected.backward(above)
    own = snake.laid(x.detach()[:, :, None], torch.float32).requires_grad_()
    alpha = layer.alpha.detach().flatten().requires_grad_()
    found = snake.snake(own, alpha)
    found.backward(above[:, :, None])
    torch.testing.assert_close(found[:, :, 0], expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(own.grad[:, :, 0], x.grad, rtol=1e-5, atol=3e-5)
    torch.testing.assert_close(alpha.grad, layer.alpha.grad.flatten(), rtol=1e-4, atol=2e-4)


@needs_compiler
def test_the_decoder_in_bfloat16_is_the_decoder():
    torch.manual_seed(0)
    network = tokenizer_networks.TaughtDecoder(tokenizer_networks.tokenizer_config(96, 64))
    latents = torch.randn(2, 96, 6)
    found, gradients = [], []
    for fast in (False, True):
        network.fast = fast
        audio, read = network(latents)
        (audio.float().square().mean() + sum(part.square().mean() for part in read)).backward()
        found.append([audio, *read])
        gradients.append([p.grad.clone() for p in network.parameters() if p.dim() == 3 and p.shape[2] > 1])
        network.zero_grad()
        assert all(map(torch.equal, network.first_blocks(latents), read))
    assert all(_far(rounded, exact) < 0.1 for exact, rounded in zip(*found, strict=True))
    # A convolution that is wrong makes them orthogonal.
    assert all(_far(rounded, exact) < 0.2 for exact, rounded in zip(*gradients, strict=True))


@needs_compiler
def test_the_encoder_in_bfloat16_is_the_encoder():
    torch.manual_seed(0)
    network, audio = AcousticEncoder(tokenizer_networks.tokenizer_config(96)), torch.randn(2, 1, 4800)
    assert _far(matrix_networks.encode(network, audio), network(audio)) < 0.05


def _teacher_weights(style: int = teacher_decoder.STYLE) -> dict[str, torch.Tensor]:
    """A small decoder of the teacher's kind, random."""
    torch.manual_seed(0)
    weights = {"window_sum": torch.rand(20)}

    def layer(name: str, *shape: int, outputs: int = 0) -> None:
        weights[f"{name}.weight"] = torch.randn(shape) / (shape[-1] * shape[-2]) ** 0.5
        weights[f"{name}.bias"] = 0.1 * torch.randn(outputs or shape[0])

    def norm(name: str, channels: int) -> None:
        layer(f"{name}.fc", style, 2 * channels, outputs=2 * channels)

    def block(name: str, inputs: int, outputs: int) -> None:
        norm(f"{name}.norm1", inputs)
        norm(f"{name}.norm2", outputs)
        for part, width, channels in (("conv1", 3, inputs), ("conv2", 3, outputs), ("conv1x1", 1, inputs)):
            layer(f"{name}.{part}", outputs, channels, width)

    def residual(name: str, channels: int, width: int) -> None:
        for half in (1, 2):
            for index in range(3):
                norm(f"{name}.adain{half}.{index}", channels)
                layer(f"{name}.convs{half}.{index}", channels, channels, width)
                weights[f"{name}.alpha{half}.{index}"] = 0.5 + torch.rand(channels)

    for name in ("F0_conv", "N_conv"):
        layer(name, 1, 1, 3)
    layer("asr_res.0", 4, 16, 1)
    block("encode", 18, 32)
    for index in range(4):
        block(f"decode.{index}", 38, 16 if index == 3 else 32)
    layer("decode.3.pool", 38, 1, 3)
    for index, (inputs, channels, stride, reach) in enumerate(((16, 16, 10, 12), (16, 16, 6, 1))):
        layer(f"generator.ups.{index}", inputs, channels, 2 * stride, outputs=channels)
        layer(f"generator.noise_convs.{index}", channels, 22, reach)
        residual(f"generator.noise_res.{index}", channels, 7)
        for kind, width in enumerate((3, 7, 11)):
            residual(f"generator.resblocks.{3 * index + kind}", channels, width)
    layer("generator.conv_post", 22, 16, 7)
    weights["generator.istft.stft.weight"] = torch.randn(22, 1, 20)
    return weights


def test_the_teacher_s_decoder_in_bfloat16():
    weights = _teacher_weights()
    steps = 6
    inputs = (
        torch.randn(1, 16, steps),
        torch.rand(1, 2 * steps),
        torch.rand(1, 2 * steps),
        torch.randn(1, 22, 120 * steps + 1),
        torch.randn(1, teacher_decoder.STYLE),
    )
    exact = teacher_decoder.TeacherDecoder(weights, torch.float32, compiled=False)(*inputs)
    assert exact.shape == (600 * steps,)
    rounded = teacher_decoder.TeacherDecoder(weights, compiled=False)(*inputs)
    assert np.corrcoef(exact, rounded)[0, 1] > 0.9


def test_a_residual_part_of_the_teacher_s_decoder():
    weights = _teacher_weights()
    decoder = teacher_decoder.TeacherDecoder(weights, torch.float32, compiled=False)
    x, style, name = torch.randn(1, 16, 50), torch.randn(1, teacher_decoder.STYLE), "generator.resblocks.4"
    expected = x
    for index, dilation in enumerate((1, 3, 5)):
        y = expected
        for half, reach in ((1, dilation), (2, 1)):
            size, shift = (style @ weights[f"{name}.adain{half}.{index}.fc.weight"]).chunk(2, 1)
            bias_size, bias_shift = weights[f"{name}.adain{half}.{index}.fc.bias"].chunk(2)
            y = F.instance_norm(y) * (1 + size + bias_size)[..., None] + (shift + bias_shift)[..., None]
            alpha = weights[f"{name}.alpha{half}.{index}"][:, None]
            y = y + torch.sin(alpha * y).square() / alpha
            layer = f"{name}.convs{half}.{index}"
            weight, bias = weights[f"{layer}.weight"], weights[f"{layer}.bias"]
            y = F.conv1d(y, weight, bias, padding=3 * reach, dilation=reach)
        expected = expected + y
    found = decoder._residual(name, snake.laid(x[:, :, None], torch.float32), style)[:, :, 0]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_the_teacher_s_weights_are_read_from_its_graph(monkeypatch):
    onnx = ModuleType("onnx")
    onnx.numpy_helper = SimpleNamespace(to_array=lambda tensor: tensor.array)
    onnx.helper = SimpleNamespace(make_empty_tensor_value_info=lambda name: name)
    monkeypatch.setitem(sys.modules, "onnx", onnx)

    def tensor(name: str, array: object) -> SimpleNamespace:
        return SimpleNamespace(name=name, array=np.asarray(array))

    def node(name: str, inputs: list[str], output: str) -> SimpleNamespace:
        return SimpleNamespace(name=name, input=inputs, output=[output])

    root = "/decoder/decoder"
    graph = SimpleNamespace(
        node=[
            node("/encoder/MatMul", ["tokens", "embedding"], "sounds"),
            node(f"{root}/asr_res/asr_res.0/Conv_quant", ["sounds", "a_quantized", "z", "a_zero_point"], "c"),
            node(f"{root}/generator/resblocks.0/adain1.0/fc/Gemm_MatMul_quant", ["s", "f_quantized", "z", "fz"], "d"),
            node(f"{root}/generator/conv_post/Conv", ["d", "post", "decoder.decoder.generator.conv_post.bias"], "e"),
            node(f"{root}/generator/istft/stft/ConvTranspose", ["e", "basis"], "audio"),
        ],
        initializer=[
            tensor("embedding", [1.0]),
            tensor("a_quantized", np.uint8([[[130], [128]]])),
            tensor("a_zero_point", np.uint8(128)),
            tensor("a_scale", np.float32(0.5)),
            tensor("decoder.decoder.asr_res.0.bias", np.float32([7])),
            tensor("f_quantized", np.int8([[1, 2]])),
            tensor("fz", np.int8([0, 1])),
            tensor("f_scale", np.float32([2, 3])),
            tensor("decoder.decoder.generator.resblocks.0.adain1.0.fc.bias", np.float32([8, 9])),
            tensor("post", np.float32([[[4]]])),
            tensor("decoder.decoder.generator.conv_post.bias", np.float32([5])),
            tensor("basis", np.float32([[[6]]])),
            tensor("decoder.decoder.generator.resblocks.0.alpha1.0", np.float32([[[1], [2]]])),
            tensor("decoder.decoder.generator.stft.istft.stft.window_sum", np.float32([0, 1])),
        ],
        output=["audio"],
    )
    found = {name: value.tolist() for name, value in teacher_decoder.read_weights(graph).items()}
    assert found == {
        "asr_res.0.weight": [[[1.0], [0.0]]],
        "asr_res.0.bias": [7.0],
        "generator.resblocks.0.adain1.0.fc.weight": [[2.0, 3.0]],
        "generator.resblocks.0.adain1.0.fc.bias": [8.0, 9.0],
        "generator.conv_post.weight": [[[4.0]]],
        "generator.conv_post.bias": [5.0],
        "generator.istft.stft.weight": [[[6.0]]],
        "generator.resblocks.0.alpha1.0": [1.0, 2.0],
        "window_sum": [0.0, 1.0],
    }
    teacher._reduce(graph, ("c",))
    assert [part.name for part in graph.node] == ["/encoder/MatMul", f"{root}/asr_res/asr_res.0/Conv_quant"]
    assert [part.name for part in graph.initializer] == ["embedding", "a_quantized", "a_zero_point"]
    assert graph.output == ["c"]
