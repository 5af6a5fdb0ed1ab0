"""`higgs_native.ops.dual_ffn` in plain PyTorch."""

import torch

from higgs_native.ops.linear import PackedWeight
from higgs_native.reference.linear import packed_linear, rms_norm, unpack_linear


def dual_ffn(
    out: torch.Tensor,
    x: torch.Tensor,
    text_norm: torch.Tensor,
    text_gate_up: PackedWeight,
    text_down: PackedWeight,
    audio_norm: torch.Tensor,
    audio_gate_up: PackedWeight,
    audio_down: PackedWeight,
    eps: float,
    num_text_rows: int,
) -> None:
    """See `higgs_native.ops.dual_ffn`."""
    segments = (
        (slice(0, num_text_rows), text_norm, text_gate_up, text_down),
        (slice(num_text_rows, None), audio_norm, audio_gate_up, audio_down),
    )
    for rows, norm, gate_up, down in segments:
        # A panel holds 16 rows of the gate, then 16 of the up projection.
        both = packed_linear(rms_norm(x[rows], norm, eps), gate_up).unflatten(1, (-1, 2, 16))
        activated = torch.nn.functional.silu(both[:, :, 0]) * both[:, :, 1]
        columns = min(activated[0].numel(), unpack_linear(down).shape[1]) if len(activated) else 0
        out[rows] = x[rows] + packed_linear(activated.flatten(1)[:, :columns], down)[:, : x.shape[1]]
