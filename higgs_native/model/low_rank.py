"""Adapters of single rows: low-rank factors beside the weights of the base, which stay as they are."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from typing_extensions import Self

from higgs_native import ops
from higgs_native.checkpoint.adapter import Adapter
from higgs_native.checkpoint.config import HiggsAudioConfig
from higgs_native.checkpoint.language_model import AUDIO_LM_HEAD, AUDIO_TABLE, TEXT_LM_HEAD, expected_tensors
from higgs_native.ops import LowRank, PackedWeight
from higgs_native.utils.tensors import fingerprint


MAX_ADAPTERS = 32
"""Adapters that a batch may have, and so a model."""


@dataclass(frozen=True, eq=False)
class PackedAdapter:
    """An adapter's factors, packed in the dtype of the model's unquantized weights.

    Attributes:
        name: what requests call it.
        speakers: names of the speakers that it was trained on.
        fingerprint: tells its factors from those of others.
        layers: `ops.layer_factors` of all layers.
        audio_head, text_head: the factors of the heads, if it has any.
        text_table, audio_table: those of the embeddings: B, a table [rows, rank], and A.T, packed.
    """

    name: str
    speakers: tuple[str, ...]
    fingerprint: str
    layers: list[torch.Tensor]
    audio_head: LowRank | None
    text_head: LowRank | None
    text_table: tuple[torch.Tensor, PackedWeight] | None
    audio_table: tuple[torch.Tensor, PackedWeight] | None

    @classmethod
    def pack(
        cls, name: str, adapter: Adapter, config: HiggsAudioConfig, dtype: torch.dtype, device: torch.device
    ) -> Self:
        """Pack an adapter that fits the base."""
        packing = _Packing(adapter, config, dtype, device)
        layers: list[torch.Tensor] = []
        for index in range(config.num_hidden_layers):
            prefix = f"layers.{index}."
            attention = prefix + "self_attn."
            text = packing.feed_forward(prefix)
            layers += ops.layer_factors(
                packing.linear(*(f"{attention}{kind}_proj.weight" for kind in "qkv")),
                packing.linear(attention + "o_proj.weight"),
                *text,
                *(packing.feed_forward(prefix + "audio_") if config.is_dual(index) else text),
            )
        factors = {f"{key} {i}": factor for key, pair in adapter.factors.items() for i, factor in enumerate(pair)}
        return cls(
            name,
            adapter.speakers,
            fingerprint(str(adapter.scale), factors),
            layers,
            packing.linear(AUDIO_TABLE if config.tied_audio_head else AUDIO_LM_HEAD),
            packing.linear(TEXT_LM_HEAD),
            packing.table("embed_tokens.weight"),
            packing.table(AUDIO_TABLE),
        )

    @property
    def nbytes(self) -> int:
        """The bytes of all factors."""
        heads = [part.nbytes for pair in (self.audio_head, self.text_head) if pair for part in pair]
        tables = [part.nbytes for pair in (self.text_table, self.audio_table) if pair for part in pair]
        return sum(factor.nbytes for factor in self.layers) + sum(heads) + sum(tables)


class _Packing:
    """Packs the factors of an adapter by the names of the tensors that they change."""

    def __init__(self, adapter: Adapter, config: HiggsAudioConfig, dtype: torch.dtype, device: torch.device) -> None:
        self._adapter, self._dtype, self._device = adapter, dtype, device
        self._shapes = expected_tensors(config)

    def linear(self, *names: str) -> LowRank | None:
        """Return the factors of matrices that are packed together along n; None if none of them has any."""
        stacked = self._stacked(names)
        if stacked is None:
            return None
        a, blocks = stacked
        return ops.pack_linear(a), ops.pack_linear(torch.cat(blocks))

    def feed_forward(self, prefix: str) -> tuple[LowRank | None, LowRank | None]:
        """Return the factors of gate and up, and of down."""
        mlp = prefix + "mlp."
        down = self.linear(mlp + "down_proj.weight")
        stacked = self._stacked((mlp + "gate_proj.weight", mlp + "up_proj.weight"))
        if stacked is None:
            return None, down
        a, (gate, up) = stacked
        return (ops.pack_linear(a), ops.pack_gate_up(gate, up)), down

    def table(self, name: str) -> tuple[torch.Tensor, PackedWeight] | None:
        """Return the factors of an embedding."""
        pair = self._adapter.pair(name)
        return None if pair is None else (self._cast(pair[1]), ops.pack_linear(self._cast(pair[0].T)))

    def _stacked(self, names: Sequence[str]) -> tuple[torch.Tensor, list[torch.Tensor]] | None:
        """Return A of all matrices, one below the other, and B of each, with zeros where A is that of another."""
        pairs = {name: pair for name in names if (pair := self._adapter.pair(name)) is not None}
        if not pairs:
            return None
        a, first = torch.cat([a for a, _ in pairs.values()]), 0
        blocks = []
        for name in names:
            block = torch.zeros(self._shapes[name][0], len(a), dtype=torch.float32, device="cpu")
            if name in pairs:
                b = pairs[name][1]
                block[:, first : first + b.shape[1]] = b
                first += b.shape[1]
            blocks.append(self._cast(block))
        return self._cast(a), blocks

    def _cast(self, factor: torch.Tensor) -> torch.Tensor:
        return factor.to(self._device, self._dtype).contiguous()


@dataclass(frozen=True, eq=False)
class RowAdapters:
    """The adapters of a batch's rows.

    Attributes:
        adapters: those that a row has.
        indices: [rows], int32: which of them each row has; -1: none.
        rows: [count], int64, of each adapter: its rows, ascending.
        layers: `PackedAdapter.layers` of each, concatenated.
    """

    adapters: tuple[PackedAdapter, ...]
    indices: torch.Tensor
    rows: tuple[torch.Tensor, ...]
    layers: list[torch.Tensor]

    @classmethod
    def of(cls, adapters: Sequence[PackedAdapter | None], device: torch.device) -> Self | None:
        """Return the adapters of rows, given that of each row; None if no row has one."""
        present = tuple(dict.fromkeys(adapter for adapter in adapters if adapter is not None))
        if not present:
            return None
        index_of = {adapter: index for index, adapter in enumerate(present)}
        indices = [-1 if adapter is None else index_of[adapter] for adapter in adapters]
        rows = [[row for row, index in enumerate(indices) if index == of_rows] for of_rows in range(len(present))]
        return cls(
            present,
            torch.tensor(indices, dtype=torch.int32, device=device),
            tuple(torch.tensor(own, dtype=torch.int64, device=device) for own in rows),
            [factor for adapter in present for factor in adapter.layers],
        )

    def add_embeddings(self, states: torch.Tensor, token_ids: torch.Tensor, codes: torch.Tensor) -> None:
        """Add to the embeddings of text rows, then of audio rows, what the adapters add to the tables."""
        num_text = len(token_ids)
        for adapter, rows in zip(self.adapters, self.rows, strict=True):
            if adapter.text_table is not None:
                text = rows[rows < num_text]
                _add_table(states, text, token_ids[text], codes[:0], *adapter.text_table)
            if adapter.audio_table is not None:
                audio = rows[rows >= num_text]
                _add_table(states, audio, token_ids[:0], codes[audio - num_text], *adapter.audio_table)

    def add_logits(
        self, logits: torch.Tensor, states: torch.Tensor, norm: torch.Tensor, eps: float, head: str
    ) -> None:
        """Add to the logits [rows, n] of states [rows, hidden] what the adapters add to a head, named as in them."""
        for adapter, rows in zip(self.adapters, self.rows, strict=True):
            factors: LowRank | None = getattr(adapter, head)
            if factors is not None:
                a, b = factors
                low = states.new_empty(len(rows), b.data.shape[1] * b.data.shape[3])
                ops.rms_norm_linear(low, states[rows], norm, eps, a)
                _add(logits, rows, low, b)


def _add_table(
    states: torch.Tensor,
    rows: torch.Tensor,
    token_ids: torch.Tensor,
    codes: torch.Tensor,
    table: torch.Tensor,
    transposed_a: PackedWeight,
) -> None:
    low = states.new_empty(len(rows), table.shape[1])
    ops.embed(low, token_ids, codes, table, table)
    _add(states, rows, low, transposed_a)


def _add(target: torch.Tensor, rows: torch.Tensor, low: torch.Tensor, weight: PackedWeight) -> None:
    """Add low @ weight.T to rows of `target`."""
    before = target[rows]
    added = torch.empty_like(before)
    ops.linear(added, low, weight, before)
    target[rows] = added
