"""All layers of the language model in one call."""

from collections.abc import Sequence

import torch

from higgs_native.ops._library import register_fakes
from higgs_native.ops.linear import PackedWeight


register_fakes("decoder_layers")


def layer_weights(
    text_input_norm: torch.Tensor,
    audio_input_norm: torch.Tensor,
    qkv: PackedWeight,
    o: PackedWeight,
    text_norm: torch.Tensor,
    text_gate_up: PackedWeight,
    text_down: PackedWeight,
    audio_norm: torch.Tensor,
    audio_gate_up: PackedWeight,
    audio_down: PackedWeight,
    query_norm: torch.Tensor | None = None,
    key_norm: torch.Tensor | None = None,
) -> list[torch.Tensor]:
    """Return a layer's weights in the order of `decoder_layers`; see `qkv_rope_cache`, `linear` and `dual_ffn`."""
    absent = text_norm.new_empty(0)
    flat: list[torch.Tensor] = []
    for weight in (
        text_input_norm,
        audio_input_norm,
        qkv,
        o,
        text_norm,
        text_gate_up,
        text_down,
        audio_norm,
        audio_gate_up,
        audio_down,
        query_norm,
        key_norm,
    ):
        if isinstance(weight, PackedWeight):
            flat += [weight.data, absent if weight.scales is None else weight.scales]
        else:
            flat.append(absent if weight is None else weight)
    return flat


LowRank = tuple[PackedWeight, PackedWeight]
"""The factors A [rank, k] and B [n, rank] of an adapter, packed without quantization; B A is added to a weight."""


def layer_factors(
    qkv: LowRank | None,
    o: LowRank | None,
    text_gate_up: LowRank | None,
    text_down: LowRank | None,
    audio_gate_up: LowRank | None,
    audio_down: LowRank | None,
) -> list[torch.Tensor]:
    """Return an adapter's factors of a layer in the order of `decoder_layers`; None: the weight stays as it is.

    B is packed as the weight that it is added to: that of gate and up by `pack_gate_up`.
    """
    linears = qkv, o, text_gate_up, text_down, audio_gate_up, audio_down
    absent = torch.empty(0, dtype=torch.float32, device="cpu")
    for pair in linears:
        if pair is not None:
            absent = pair[0].data.new_empty(0)
    return [part for pair in linears for part in ((absent, absent) if pair is None else (w.data for w in pair))]


def decoder_layers(
    x: torch.Tensor,
    query: torch.Tensor,
    attended: torch.Tensor,
    key_caches: Sequence[torch.Tensor],
    value_caches: Sequence[torch.Tensor],
    weights: Sequence[torch.Tensor],
    skips_audio: Sequence[int],
    eps: float,
    rope_table: torch.Tensor,
    page_table: torch.Tensor,
    slots: torch.Tensor,
    positions: torch.Tensor,
    text_positions: torch.Tensor,
    num_text_rows: int,
    adapters: torch.Tensor | None = None,
    factors: Sequence[torch.Tensor] = (),
    first_kept: int = 0,
    num_kept: int | None = None,
    following: torch.Tensor | None = None,
) -> None:
    """For each layer `qkv_rope_cache`, `attention` with the scale head_dim ** -0.5, `linear` and `dual_ffn`.

    Rows of adapter i (LoRA) get x @ W.T + (x @ A_i.T) @ B_i.T in place of x @ W.T where the adapter changes W;
    all other rows have the bits that they have without adapters.

    Args:
        x: [rows, hidden], float32; the states before the first layer, overwritten by those after the last. Those of
            rows that are not kept are unspecified afterwards.
        query, attended: [rows, query heads * head_dim], float32; overwritten.
        key_caches, value_caches: [pages, KV heads, page size, head_dim] per layer; see `attention`.
        weights: `layer_weights` of all layers, concatenated.
        skips_audio: per layer, 1 if audio rows skip it; its cache then holds text rows alone.
        eps: added to the mean square by RMSNorm.
        rope_table: [positions, head_dim], float32.
        page_table: [slots, max pages], int32: the pages of each sequence, the same in all layers.
        slots, positions: [rows], int32: the sequence, and the position in it, which is also the cache position.
        text_positions: [num_text_rows], int32: the cache position in layers that audio rows skip.
        num_text_rows: the first rows of the batch that are text.
        adapters: [rows], int32: the adapter of each row; -1: none. None: no row has one.
        factors: `layer_factors` of all layers of adapter 0, then of adapter 1, ...; at most 32 adapters.
        first_kept, num_kept: the range of rows whose states are wanted after the last layer, which computes only keys
            and values of the others; None: all from `first_kept` on. They don't change the bits of kept rows.
        following: the data of the weight that is read next, which a GPU begins to load in the last layer; None: not
            known.

    Raises:
        RuntimeError: a shape or dtype does not fit, or a slot, position, page or adapter lies outside its tensor or
            list.
    """
    torch.ops.higgs_native.decoder_layers(
        x,
        query,
        attended,
        key_caches,
        value_caches,
        weights,
        skips_audio,
        eps,
        rope_table,
        page_table,
        slots,
        positions,
        text_positions,
        num_text_rows,
        adapters,
        factors,
        first_kept,
        x.shape[0] - first_kept if num_kept is None else num_kept,
        following,
    )
