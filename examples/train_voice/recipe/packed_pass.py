"""The language model's training pass on a CPU that multiplies bfloat16: the same parameters and results, in bfloat16.

Rows of all sequences lie one behind another without padding, text before audio, so that each product takes all rows of
a kind; between the products stand the kernels of row_kernels.cpp. Only attention sees sequences.
"""

from dataclasses import dataclass

import numpy as np
import torch
from language_model import LanguageModel
from prompts import IGNORED, Batch
from quantizer import CODEBOOKS
from torch.autograd import Function

from recipe.row_kernels import run


_PADDED_ROWS = 256
"""oneDNN makes kernels for each new shape, so few numbers of rows occur."""
_PADDED_LENGTH = 32
_SEQUENCES = 4
"""That attend in one product. oneDNN makes and keeps kernels for each shape, so few numbers of sequences occur."""


@dataclass
class Sequences:
    """Sequences that attend alike.

    Attributes:
        keys: int32 [sequences, keys], the row of each position; -1 behind the end.
        queries: int32 [sequences, queries], likewise of those that attend.
        written: the same, counted from the first row that a layer computes.
        starts: int32 [sequences], the position of the first query.
        seen: int32 [sequences, queries], how many keys each query attends to.
        zeros: int32 [sequences].
    """

    keys: torch.Tensor
    queries: torch.Tensor
    written: torch.Tensor
    starts: torch.Tensor
    seen: torch.Tensor
    zeros: torch.Tensor

    @classmethod
    def split(cls, rows: list[np.ndarray], starts: list[int], first: int) -> "list[Sequences]":
        """Make tables from the rows of each sequence, of which those from `starts` on attend."""
        firsts = range(0, len(rows), _SEQUENCES)
        return [cls._of(rows[i : i + _SEQUENCES], starts[i : i + _SEQUENCES], first) for i in firsts]

    @classmethod
    def _of(cls, rows: list[np.ndarray], starts: list[int], first: int) -> "Sequences":
        keys = _table(rows)
        queries = _table([own[start:] for own, start in zip(rows, starts, strict=True)])
        began = np.array(starts, np.int32)
        seen = np.where(queries < 0, 0, began[:, None] + np.arange(queries.shape[1]) + 1).astype(np.int32)
        written = np.where(queries < 0, -1, queries - first).astype(np.int32)
        tables = (keys, queries, written, began, seen, np.zeros(len(rows), np.int32))
        return cls(*map(torch.from_numpy, tables))


def _table(rows: list[np.ndarray]) -> np.ndarray:
    length = -(-max(map(len, rows)) // _PADDED_LENGTH) * _PADDED_LENGTH
    table = np.full((len(rows), length), -1, np.int32)
    for index, own in enumerate(rows):
        table[index, : len(own)] = own
    return table


def _padded(count: int) -> int:
    return -(-count // _PADDED_ROWS) * _PADDED_ROWS


class Packing:
    """The rows of a batch: prefixes, text, audio that is shown, and last the audio that is predicted.

    Attributes:
        text: int64 [text rows], token ids.
        audio: int64 [audio rows, codebooks], delayed codes.
        shared: how many rows, at the beginning, belong to several sequences.
        first: the first row of the last segments.
        count: how many rows there are from it on, before padding.
        chosen: bool [batch, length], which positions of the last segment these are.
        groups: of sequences, prefixes first, for all layers but the last one.
        last: the same for the last layer, which computes the last segments alone.
    """

    def __init__(self, batch: Batch) -> None:
        prefix = batch.prefixes.segment
        texts = [prefix, *(segment for segment in batch.segments if not segment.is_audio)]
        audios = [segment for segment in batch.segments if segment.is_audio]
        self.shared = int(prefix.valid.sum())
        self.chosen = audios[-1].valid
        self.count = int(self.chosen.sum())
        blocks = [texts, audios[:-1], audios[-1:]]
        ids, numbers, total = [], {}, 0
        for block in blocks:
            start = total
            for segment in block:
                ids.append(segment.ids[segment.valid])
                count = len(ids[-1])
                numbers[id(segment)] = np.split(
                    np.arange(total, total + count, dtype=np.int32), segment.valid.sum(1).cumsum(0)[:-1].tolist()
                )
                total += count
            if padding := start + _padded(total - start) - total:
                ids.append(torch.zeros((padding, *block[0].ids.shape[2:]), dtype=torch.int64))
                total += padding
            if block is texts:
                self.text = torch.cat(ids)
                ids = []
        self.audio = torch.cat(ids)
        self.first = total - _padded(self.count)
        beginnings = [numbers[id(prefix)][index] for index in batch.prefixes.chosen.tolist()]
        parts = [numbers[id(segment)] for segment in batch.segments]
        whole = [np.concatenate(rows) for rows in zip(beginnings, *parts, strict=True)]
        starts = [len(rows) for rows in beginnings]
        ends = [len(rows) - len(last) for rows, last in zip(whole, parts[-1], strict=True)]
        own = numbers[id(prefix)]
        self.groups = [*Sequences.split(own, [0] * len(own), 0), *Sequences.split(whole, starts, 0)]
        self.last = Sequences.split(whole, ends, self.first)


def _norm(x: torch.Tensor, layers: list[tuple[slice, torch.Tensor]], eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalize the rows of each kind with their weight; also 1 / rms of each row."""
    normed, inverse = torch.empty_like(x), torch.empty(len(x))
    for rows, weight in layers:
        part = x[rows]
        run("rms_norm", part, weight, normed[rows], inverse[rows], len(part), x.shape[1], eps)
    return normed, inverse


def _norm_backward(
    gradient: torch.Tensor,
    x: torch.Tensor,
    layers: list[tuple[slice, torch.Tensor]],
    inverse: torch.Tensor,
    into: torch.Tensor,
) -> list[torch.Tensor]:
    """Add the gradient of x to `into`, and return those of the weights."""
    found = []
    for rows, weight in layers:
        part = x[rows]
        found.append(torch.zeros_like(weight))
        parts = gradient[rows], part, weight, inverse[rows], into[rows]
        run("rms_norm_backward", *parts, found[-1], len(part), x.shape[1])
    return found


def _gather(
    rows: torch.Tensor, table: torch.Tensor, starts: torch.Tensor, turns: torch.Tensor | None, width: int
) -> torch.Tensor:
    """Heads [sequences, heads, length, width] of rows [rows, heads * width]."""
    sequences, length = table.shape
    heads = rows.shape[1] // width
    gathered = torch.empty(sequences, heads, length, width, dtype=torch.bfloat16)
    run("gather_heads", rows, rows.stride(0), table, starts, turns, sequences, heads, length, width, gathered)
    return gathered


def _scatter(
    gathered: torch.Tensor,
    table: torch.Tensor,
    starts: torch.Tensor,
    turns: torch.Tensor | None,
    rows: torch.Tensor,
    sums: torch.Tensor | None = None,
) -> None:
    """The reverse; the first rows are added up in `sums`."""
    sequences, heads, length, width = gathered.shape
    shared = 0 if sums is None else len(sums)
    shapes = sequences, heads, length, width, shared
    run("scatter_heads", gathered, rows.stride(0), table, starts, turns, *shapes, rows, sums)


def _attend(
    projected: torch.Tensor, group: Sequences, turns: torch.Tensor, width: int, out: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Write what each query of a group attends to into `out`; return what the gradient needs."""
    queries, keys, values = projected.chunk(3, 1)
    q = _gather(queries, group.queries, group.starts, turns, width)
    k = _gather(keys, group.keys, group.zeros, turns, width)
    v = _gather(values, group.keys, group.zeros, None, width)
    weights = q @ k.mT
    run("masked_softmax", weights, group.seen, *weights.shape, width**-0.5)
    _scatter(weights @ v, group.written, group.starts, None, out)
    return q, k, v, weights


def _attend_backward(
    gradient: torch.Tensor,
    group: Sequences,
    turns: torch.Tensor,
    saved: tuple[torch.Tensor, ...],
    into: torch.Tensor,
    sums: torch.Tensor,
) -> None:
    """Write the gradient of the projections into `into`, and add that of shared rows to `sums`."""
    q, k, v, weights = saved
    width = q.shape[-1]
    above = _gather(gradient, group.written, group.starts, None, width)
    of_scores = above @ v.mT
    run("masked_softmax_backward", weights, of_scores, group.seen, *weights.shape, width**-0.5)
    parts = zip(into.chunk(3, 1), sums.chunk(3, 1), strict=True)
    found = (
        (of_scores @ k, group.queries, group.starts, turns),
        (of_scores.mT @ q, group.keys, group.zeros, turns),
        (weights.mT @ above, group.keys, group.zeros, None),
    )
    for (rows, added), arguments in zip(parts, found, strict=True):
        _scatter(*arguments, rows, added)


@dataclass
class Dropout:
    """Which numbers of a layer's inner activations become 0: known from a seed, so that no mask is kept."""

    share: float
    seed: int

    def apply(self, x: torch.Tensor, number: int) -> None:
        """In place; the same for activations and their gradient, which have the same number."""
        if self.share > 0:
            seed = (self.seed * 8 + number) * 0x9E3779B1 % 2**32
            run("drop_out", x, x.numel(), seed, int(self.share * 2**32), 1 / (1 - self.share))


class _Layer(Function):
    """A dual layer. Its gradient is written out: autograd would copy and cast between the products."""

    @staticmethod
    def forward(ctx, x, packing, turns, last, width, eps, dropout, *weights):
        text_norm, audio_norm, second_text_norm, second_audio_norm, q, k, v, o, *feed_forward = weights
        first = packing.first if last else 0
        groups = packing.last if last else packing.groups
        text, audio = slice(0, len(packing.text)), slice(len(packing.text), len(x))
        norms = [(text, text_norm), (audio, audio_norm)]
        normed, inverse = _norm(x, norms, eps)
        into, back = torch.cat([q, k, v]).bfloat16(), o.bfloat16()
        projected = normed @ into.T
        attended = torch.zeros(len(x) - first, o.shape[1], dtype=torch.bfloat16)
        saved = [_attend(projected, group, turns, width, attended) for group in groups]
        dropout.apply(attended, 0)
        middle = torch.addmm(x[first:], attended, back.T)
        kinds = [(text, second_text_norm, feed_forward[:3]), (audio, second_audio_norm, feed_forward[3:])]
        if last:
            kinds = [(slice(0, len(middle)), *kinds[1][1:])]
        second_norms = [(rows, norm) for rows, norm, _ in kinds]
        second_normed, second_inverse = _norm(middle, second_norms, eps)
        out = torch.empty_like(middle)
        inner = []
        for rows, _, (gate, up, down) in kinds:
            gate_up, down = torch.cat([gate, up]).bfloat16(), down.bfloat16()
            gates = second_normed[rows] @ gate_up.T
            product = torch.empty(len(gates), len(gate), dtype=torch.bfloat16)
            run("silu_mul", gates, product, *product.shape)
            dropout.apply(product, 1 + len(inner))
            torch.addmm(middle[rows], product, down.T, out=out[rows])
            inner.append((rows, gate_up, down, gates, product))
        ctx.before = x, packing.shared, turns, first, groups, saved, norms, normed, inverse, into, dropout
        ctx.behind = attended, back, middle, second_norms, second_normed, second_inverse, inner
        return out

    @staticmethod
    def backward(ctx, gradient):
        x, shared, turns, first, groups, saved, norms, normed, inverse, into, dropout = ctx.before
        attended, back, middle, second_norms, second_normed, second_inverse, inner = ctx.behind
        del ctx.before, ctx.behind  # or they would live as long as the loss, into the next step
        of_middle, of_normed = gradient.clone(), torch.empty_like(middle)
        of_feed_forward = []
        for number, (rows, gate_up, down, gates, product) in enumerate(inner, 1):
            of_product = gradient[rows] @ down
            dropout.apply(of_product, number)
            run("silu_mul_backward", of_product, gates, *product.shape)
            torch.mm(gates, gate_up, out=of_normed[rows])
            of_gate_up = (gates.T @ second_normed[rows]).float()
            of_feed_forward += [*of_gate_up.chunk(2), (gradient[rows].T @ product).float()]
        of_second_norms = _norm_backward(of_normed, middle, second_norms, second_inverse, of_middle)
        of_attended = of_middle @ back
        dropout.apply(of_attended, 0)
        of_projected = torch.zeros(len(x), len(into), dtype=torch.bfloat16)
        sums = torch.zeros(shared, len(into))
        for group, tensors in zip(groups, saved, strict=True):
            _attend_backward(of_attended, group, turns, tensors, of_projected, sums)
        of_projected[:shared] = sums
        of_output, of_heads = (of_middle.T @ attended).float(), (of_projected.T @ normed).float()
        of_x = of_middle if first == 0 else torch.cat([of_middle.new_zeros(first, x.shape[1]), of_middle])
        of_norms = _norm_backward(of_projected @ into, x, norms, inverse, of_x)
        unused = [None] * (2 - len(inner))  # in the last layer no text rows come out
        of_weights = *of_norms, *unused, *of_second_norms, *of_heads.chunk(3), of_output, *unused * 3, *of_feed_forward
        return of_x, None, None, None, None, None, None, *of_weights


class _Norm(Function):
    @staticmethod
    def forward(ctx, x, weight, eps):
        ctx.kinds = [(slice(0, len(x)), weight)]
        normed, ctx.inverse = _norm(x, ctx.kinds, eps)
        ctx.x = x
        return normed

    @staticmethod
    def backward(ctx, gradient):
        of_x = torch.zeros_like(ctx.x)
        (of_weight,) = _norm_backward(gradient.contiguous(), ctx.x, ctx.kinds, ctx.inverse, of_x)
        return of_x, of_weight, None


class _CodeLosses(Function):
    """The sum over rows of each codebook's cross-entropy."""

    @staticmethod
    def forward(ctx, hidden, head, targets):
        head = head.bfloat16()
        logits = hidden @ head.T
        losses = torch.zeros(CODEBOOKS, dtype=torch.float64)
        run("cross_entropy", logits, targets, losses, *targets.shape, logits.shape[1] // CODEBOOKS)
        ctx.kept = hidden, head, logits
        return losses.float()

    @staticmethod
    def backward(ctx, gradient):
        hidden, head, of_logits = ctx.kept
        del ctx.kept
        of_logits = (of_logits.view(len(hidden), CODEBOOKS, -1) * gradient.bfloat16()[:, None]).flatten(1)
        return of_logits @ head, (of_logits.T @ hidden).float(), None


def hidden_states(model: LanguageModel, packing: Packing) -> torch.Tensor:
    """The hidden states after the final norm of the last segments' rows, without padding: [rows, width]."""
    inner = model.model
    eps = model.config.rms_norm_eps
    embedded = inner.embed_tokens(packing.text), inner.embed_audio_tokens(packing.audio[None])[0]
    x = torch.cat([part.bfloat16() for part in embedded])
    length = max(group.keys.shape[1] for group in packing.groups)
    angles = torch.arange(length)[:, None] * model.frequencies
    turns = torch.cat([angles.cos(), angles.sin()], 1)
    for number, layer in enumerate(inner.layers):
        last = number == len(inner.layers) - 1
        attention = layer.self_attn
        weights = (
            *(layer.input_layernorm.weight, layer.audio_input_layernorm.weight),
            *(layer.post_attention_layernorm.weight, layer.audio_post_attention_layernorm.weight),
            *(p.weight for p in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)),
            *(p.weight for m in (layer.mlp, layer.audio_mlp) for p in (m.gate_proj, m.up_proj, m.down_proj)),
        )
        dropout = Dropout(model.dropout if model.training else 0.0, int(torch.randint(2**24, ())))
        x = _Layer.apply(x, packing, turns, last, attention.head_dim, eps, dropout, *weights)
    return _Norm.apply(x[: packing.count], inner.norm.weight, eps)


def packed_code_losses(model: LanguageModel, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The mean cross-entropy of each codebook, of rows [rows, width] and targets [rows, codebooks]: [codebooks]."""
    counted = (targets != IGNORED).sum(0).clamp(min=1)
    return _CodeLosses.apply(hidden, model.audio_lm_head.weight, targets) / counted
