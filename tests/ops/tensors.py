"""What the operator tests share."""

from typing import Any

import torch

from higgs_native._C import build_info
from higgs_native.ops._library import EMULATES_CUDA


def random(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    """Standard normal numbers of the given shape, drawn in float32."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def int32(*values: int) -> torch.Tensor:
    """A vector of 32-bit integers."""
    return torch.tensor(values, dtype=torch.int32)


def tolerance(dtype: torch.dtype, k: int, scale: float = 1.0) -> dict[str, Any]:
    """How far a linear operator over k standard normal activations and weights of `dtype` may be from the reference.

    On CUDA, and where the processor multiplies bfloat16, activations are rounded to it: each is off by up to 2^-9; on
    CUDA likewise to float16, by 2^-12. Quantized weights meet activations that may be rounded to the neighbouring
    integer, one in thousands.
    """
    on_cuda = EMULATES_CUDA or torch.get_default_device().type == "cuda"
    multiplies_bfloat16 = on_cuda or build_info()["cpu_instruction_set"] in (
        "avx512_bf16",
        "amx",
        "neon_bf16",
        "neon_i8mm",
    )
    if dtype in (torch.bfloat16, torch.float8_e4m3fn) and multiplies_bfloat16:
        return {"rtol": 1e-5, "atol": scale * 12 * 2**-9 * k**0.5}
    if dtype == torch.float16 and on_cuda:
        return {"rtol": 1e-5, "atol": scale * 12 * 2**-12 * k**0.5}
    if dtype in (torch.int8, torch.uint8):
        return {"rtol": 1e-5, "atol": scale * 0.1}
    return {"rtol": 1e-5, "atol": scale * 2e-5 * k**0.5}
