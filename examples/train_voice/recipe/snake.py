"""Snake, x + sin(alpha x)² / alpha, in one compiled pass over memory each way: its sines are polynomials."""

import math

import torch


_VECTOR = 16
"""Numbers that a processor takes at a time."""
_SUMMED = 64
"""Rows that are summed before they go to memory."""
_SQUARE = (9.86952480, -32.46513917, 42.64342186, -29.42625426, 10.58126772)
"""sin(pi t)² / t² as a polynomial of t², for t from -1/2 to 1/2: the square is right within 5e-7."""
_SINE = (6.28318282, -41.34142141, 81.59618409, -76.58010213, 41.20540015, -12.27126872)
"""sin(2 pi t) / t, likewise, within 1e-7."""


def _polynomial(coefficients: tuple[float, ...], x: torch.Tensor) -> torch.Tensor:
    value = torch.zeros_like(x)
    for coefficient in reversed(coefficients):
        value = value * x + coefficient
    return value


def _part(angle: torch.Tensor) -> torch.Tensor:
    """What an angle has beyond whole multiples of pi, as a share of pi from -1/2 to 1/2."""
    turns = angle * (1 / math.pi)
    return turns - turns.round()


def sine_square(angle: torch.Tensor) -> torch.Tensor:
    square = _part(angle).square()
    return _polynomial(_SQUARE, square) * square


def _forward(x: torch.Tensor, alpha: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    wide = x.float()
    return (wide + sine_square(alpha * wide) * inverse).to(x.dtype)


def _backward(
    x: torch.Tensor, alpha: torch.Tensor, inverse: torch.Tensor, gradient: torch.Tensor, summed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradient of x, and alpha times that of alpha: sums over each `summed` rows."""
    wide, above = x.float(), gradient.float()
    part = _part(alpha * wide)
    double = part * _polynomial(_SINE, part.square())
    of_alpha = above * (wide * double - sine_square(alpha * wide) * inverse)
    return (above * (1 + double)).to(x.dtype), of_alpha.unflatten(0, (-1, summed)).sum(1)


_compiled_forward = torch.compile(_forward, dynamic=True)
_compiled_backward = torch.compile(_backward, dynamic=True)


def _rows(x: torch.Tensor, repeats: int) -> torch.Tensor:
    return x.permute(0, 2, 3, 1).reshape(-1, repeats * x.shape[1])


def _shaped(rows: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    batch, channels, height, length = like.shape
    return rows.view(batch, height, length, channels).permute(0, 3, 1, 2)


class _Snake(torch.autograd.Function):
    @staticmethod
    def forward(context: torch.autograd.function.FunctionCtx, x: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
        # A row takes as many time steps as fill a whole number of vectors.
        repeats = _VECTOR // math.gcd(x.shape[1], _VECTOR)
        repeats = repeats if x.numel() % (repeats * x.shape[1]) == 0 else 1
        context.save_for_backward(x, alpha)
        context.repeats = repeats
        many = alpha.repeat(repeats)
        return _shaped(_compiled_forward(_rows(x, repeats), many, 1 / many), x)

    @staticmethod
    def backward(
        context: torch.autograd.function.FunctionCtx, gradient: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x, alpha = context.saved_tensors
        rows, above = (_rows(part, context.repeats) for part in (x, gradient))
        summed = math.gcd(rows.shape[0], _SUMMED)
        many = alpha.repeat(context.repeats)
        of_x, of_alpha = _compiled_backward(rows, many, 1 / many, above, summed)
        return _shaped(of_x, x), of_alpha.sum(0).view(context.repeats, -1).sum(0) / alpha


def snake(x: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """Snake of x [batch, channels, 1, length], which lies with time before channels in memory; alpha is [channels]."""
    return _Snake.apply(x, alpha)


def multiplies_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 by itself: with AMX or AVX-512 BF16."""
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def laid(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The same numbers, time before channels in memory, as a CPU's convolutions in bfloat16 want them."""
    return x.to(dtype).contiguous(memory_format=torch.channels_last)
