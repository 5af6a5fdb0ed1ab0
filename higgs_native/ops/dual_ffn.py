"""The two feed-forward paths of a layer: one for text rows and one for audio rows."""

import torch

from higgs_native.ops._library import register_fakes
from higgs_native.ops.linear import PackedWeight


register_fakes("dual_ffn")


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
    """`out = x + (silu(gate) * up) @ down.T` with `gate, up = rms_norm(x) @ gate_up.T`, for text and audio rows.

    The first `num_text_rows` rows take the text weights, the others the audio weights. Weights without rows are not
    read.

    Args:
        out: [rows, hidden], float32; written; may be `x` itself.
        x: [rows, hidden], float32.
        text_norm, audio_norm: [hidden], float32, bfloat16 or float16.
        text_gate_up, audio_gate_up: gate and up, each [intermediate, hidden], packed by `pack_gate_up`.
        text_down, audio_down: [hidden, intermediate], packed.
        eps: added to the mean square by RMSNorm.
        num_text_rows: the first rows of the batch that are text.

    Raises:
        RuntimeError: a shape or dtype does not fit.
    """
    torch.ops.higgs_native.dual_ffn(
        out,
        x,
        text_norm,
        *text_gate_up,
        *text_down,
        audio_norm,
        *audio_gate_up,
        *audio_down,
        eps,
        num_text_rows,
    )
