"""`higgs_native.ops.dual_ffn` in plain PyTorch."""

from collections.abc import Sequence

import torch

from higgs_native.ops.linear import PackedWeight
from higgs_native.reference.linear import RowFactors, packed_linear, rms_norm, unpack_linear


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
    factors: Sequence[RowFactors | None] = (None,) * 4,
) -> None:
    """See `higgs_native.ops.dual_ffn`; `factors` are those of gate_up and down of text rows, then of audio rows."""
    segments = (
        (slice(0, num_text_rows), text_norm, text_gate_up, text_down),
        (slice(num_text_rows, None), audio_norm, audio_gate_up, audio_down),
    )
    for index, (rows, norm, gate_up, down) in enumerate(segments):
        gate_up_factors, down_factors = (
            None if of_linear is None else (of_linear[0][rows], of_linear[1])
            for of_linear in factors[2 * index : 2 * index + 2]
        )
        # A panel holds 16 rows of the gate, then 16 of the up projection.
        both = packed_linear(rms_norm(x[rows], norm, eps), gate_up, gate_up_factors).unflatten(1, (-1, 2, 16))
        activated = torch.nn.functional.silu(both[:, :, 0]) * both[:, :, 1]
        columns = min(activated[0].numel(), unpack_linear(down).shape[1]) if len(activated) else 0
        added = packed_linear(activated.flatten(1)[:, :columns], down, down_factors)[:, : x.shape[1]]
        out[rows] = x[rows] + added
