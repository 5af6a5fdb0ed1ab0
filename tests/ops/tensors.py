"""What the operator tests share."""

import torch


def random(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    """Standard normal numbers of the given shape, drawn in float32."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def int32(*values: int) -> torch.Tensor:
    """A vector of 32-bit integers."""
    return torch.tensor(values, dtype=torch.int32)
