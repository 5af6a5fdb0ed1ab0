"""`higgs_native.ops.dual_ffn` in plain PyTorch."""

import torch

from higgs_native.reference.linear import rms_norm


def dual_ffn(
    out: torch.Tensor,
    x: torch.Tensor,
    text_norm: torch.Tensor,
    text_gate_up: torch.Tensor,
    text_down: torch.Tensor,
    audio_norm: torch.Tensor,
    audio_gate_up: torch.Tensor,
    audio_down: torch.Tensor,
    eps: float,
    num_text_rows: int,
) -> None:
    """See `higgs_native.ops.dual_ffn`."""
    segments = (
        (slice(0, num_text_rows), text_norm, text_gate_up, text_down),
        (slice(num_text_rows, None), audio_norm, audio_gate_up, audio_down),
    )
    for rows, norm, gate_up, down in segments:
        gate, up = (rms_norm(x[rows], norm, eps) @ gate_up.float().T).chunk(2, dim=-1)
        out[rows] = x[rows] + (torch.nn.functional.silu(gate) * up) @ down.float().T
