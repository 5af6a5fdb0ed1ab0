"""`TrainableModel.states` and the loss on a CPU that multiplies bfloat16: the same results, in bfloat16.

Each product takes all rows of a kind; between the products stand the kernels of row_kernels.cpp, and the gradient of a
layer is written out. It takes models in which all layers are dual and each head has keys of its own, and samples whose
last rows predict.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch.autograd import Function
from torch.nn import functional as F

from higgs_native.model.rope import rope_table
from higgs_native.training.data.rows import IGNORED, PackedRows
from higgs_native.training.loss import Losses, LossWeights
from higgs_native.training.model import TrainableModel
from recipe.row_kernels import run


_PADDED_ROWS = 128
"""oneDNN makes kernels for each new shape, so few numbers of rows occur."""
_PADDED_LENGTH = 32
_SAMPLES = 8
"""That attend in one product. oneDNN makes and keeps kernels for each shape, so few numbers of samples occur."""


@dataclass
class Attending:
    """Samples that attend in one product.

    Attributes:
        keys: int32 [samples, keys], the row of each position; -1 behind the end.
        queries: int32 [samples, queries], likewise of those that attend, the last ones.
        written: the same, as indices into the rows that the layer returns.
        starts: int32 [samples], the position of the first query.
        seen: int32 [samples, queries], how many keys each query attends to.
        zeros: int32 [samples].
    """

    keys: torch.Tensor
    queries: torch.Tensor
    written: torch.Tensor
    starts: torch.Tensor
    seen: torch.Tensor
    zeros: torch.Tensor

    @classmethod
    def split(cls, rows: list[np.ndarray], written: list[np.ndarray]) -> "list[Attending]":
        """Make tables from the rows of each sample, and where those of its last rows that attend are written."""
        firsts = range(0, len(rows), _SAMPLES)
        return [cls._of(rows[i : i + _SAMPLES], written[i : i + _SAMPLES]) for i in firsts]

    @classmethod
    def _of(cls, rows: list[np.ndarray], written: list[np.ndarray]) -> "Attending":
        starts = np.array([len(own) - len(out) for own, out in zip(rows, written, strict=True)], np.int32)
        queries = _table([own[start:] for own, start in zip(rows, starts, strict=True)])
        seen = np.where(queries < 0, 0, starts[:, None] + np.arange(queries.shape[1]) + 1).astype(np.int32)
        tables = _table(rows), queries, _table(written), starts, seen, np.zeros(len(rows), np.int32)
        return cls(*map(torch.from_numpy, tables))


def _table(rows: list[np.ndarray]) -> np.ndarray:
    length = -(-max(map(len, rows)) // _PADDED_LENGTH) * _PADDED_LENGTH
    table = np.full((len(rows), length), -1, np.int32)
    for index, own in enumerate(rows):
        table[index, : len(own)] = own
    return table


def _padding(count: int) -> int:
    return -count % _PADDED_ROWS


class Packing:
    """The rows of a pass: text, then audio, each kind padded.

    Attributes:
        text: int64 [text rows], token ids.
        audio: int64 [audio rows, codebooks], delayed codes.
        kept: int64, the rows that predict, padded with others.
        count: how many of them there are before padding.
        all: of the samples, for all layers but the last one.
        last: the same for the last layer, which returns the kept rows alone.
    """

    def __init__(self, rows: PackedRows) -> None:
        texts = len(rows.token_ids)
        self.text = F.pad(rows.token_ids, (0, _padding(texts)))
        self.audio = F.pad(rows.codes, (0, 0, 0, _padding(len(rows.codes))))
        kept = rows.kept_audio + len(self.text)
        self.count = len(kept)
        self.kept = F.pad(kept, (0, _padding(self.count)))
        order = rows.by_sample + (rows.by_sample >= texts) * (len(self.text) - texts)
        whole = np.split(order.numpy().astype(np.int32), np.cumsum(rows.lengths)[:-1])
        numbers = np.full(len(self.text) + len(self.audio), -1, np.int32)
        numbers[kept.numpy()] = np.arange(self.count)
        self.all = Attending.split(whole, whole)
        self.last = Attending.split(whole, [numbers[own][numbers[own] >= 0] for own in whole])


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
    """Heads [samples, heads, length, width] of rows [rows, heads * width]."""
    samples, length = table.shape
    heads = rows.shape[1] // width
    gathered = torch.empty(samples, heads, length, width, dtype=torch.bfloat16)
    run("gather_heads", rows, rows.stride(0), table, starts, turns, samples, heads, length, width, gathered)
    return gathered


def _scatter(
    gathered: torch.Tensor, table: torch.Tensor, starts: torch.Tensor, turns: torch.Tensor | None, rows: torch.Tensor
) -> None:
    """The reverse."""
    run("scatter_heads", gathered, rows.stride(0), table, starts, turns, *gathered.shape, rows)


def _attend(
    projected: torch.Tensor, group: Attending, turns: torch.Tensor, width: int, out: torch.Tensor
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
    group: Attending,
    turns: torch.Tensor,
    saved: tuple[torch.Tensor, ...],
    into: torch.Tensor,
) -> None:
    """Write the gradient of the projections into `into`."""
    q, k, v, weights = saved
    width = q.shape[-1]
    above = _gather(gradient, group.written, group.starts, None, width)
    of_scores = above @ v.mT
    run("masked_softmax_backward", weights, of_scores, group.seen, *weights.shape, width**-0.5)
    queries, keys, values = into.chunk(3, 1)
    _scatter(of_scores @ k, group.queries, group.starts, turns, queries)
    _scatter(of_scores.mT @ q, group.keys, group.zeros, turns, keys)
    _scatter(weights.mT @ above, group.keys, group.zeros, None, values)


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
        groups = packing.last if last else packing.all
        text, audio = slice(0, len(packing.text)), slice(len(packing.text), len(x))
        norms = [(text, text_norm), (audio, audio_norm)]
        normed, inverse = _norm(x, norms, eps)
        into, back = torch.cat([q, k, v]).bfloat16(), o.bfloat16()
        projected = normed @ into.T
        before = x.index_select(0, packing.kept) if last else x
        attended = torch.zeros(len(before), o.shape[1], dtype=torch.bfloat16)
        saved = [_attend(projected, group, turns, width, attended) for group in groups]
        dropout.apply(attended, 0)
        middle = torch.addmm(before, attended, back.T)
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
        kept = packing.kept[: packing.count] if last else None
        ctx.before = x, turns, kept, groups, saved, norms, normed, inverse, into, dropout
        ctx.behind = attended, back, middle, second_norms, second_normed, second_inverse, inner
        return out

    @staticmethod
    def backward(ctx, gradient):
        x, turns, kept, groups, saved, norms, normed, inverse, into, dropout = ctx.before
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
        for group, tensors in zip(groups, saved, strict=True):
            _attend_backward(of_attended, group, turns, tensors, of_projected)
        of_output, of_heads = (of_middle.T @ attended).float(), (of_projected.T @ normed).float()
        of_x = of_middle
        if kept is not None:
            of_x = torch.zeros_like(x).index_copy_(0, kept, of_middle[: len(kept)])
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
        books = targets.shape[1]
        losses = torch.zeros(books, dtype=torch.float64)
        run("cross_entropy", logits, targets, losses, *targets.shape, logits.shape[1] // books)
        ctx.kept = hidden, head, logits
        return losses.float()

    @staticmethod
    def backward(ctx, gradient):
        hidden, head, of_logits = ctx.kept
        del ctx.kept
        of_logits = (of_logits.view(len(hidden), len(gradient), -1) * gradient.bfloat16()[:, None]).flatten(1)
        return of_logits @ head, (of_logits.T @ hidden).float(), None


def packed_states(model: TrainableModel, rows: PackedRows) -> torch.Tensor:
    """The states of the kept rows [rows, hidden], after the final norm."""
    packing = Packing(rows)
    inner = model.model
    eps = model.config.rms_norm_eps
    offsets = torch.arange(packing.audio.shape[1]) * model.config.codebook_size
    # In half the time of `inner.embed_audio_tokens`, which adds up a copy of each code's row.
    audio = F.embedding_bag(packing.audio + offsets, inner.embed_audio_tokens.embed_audio_tokens.weight, mode="sum")
    x = torch.cat([part.bfloat16() for part in (inner.embed_tokens(packing.text), audio)])
    turns = rope_table(model.config, max(rows.lengths))
    for layer in inner.layers:
        last = layer is inner.layers[-1]
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


def packed_losses(states: torch.Tensor, rows: PackedRows, head: torch.nn.Linear, weights: LossWeights) -> Losses:
    """The losses of a pass, of which all kept rows are audio; see `higgs_native.training.loss.losses_of`."""
    counts = (rows.audio_targets != IGNORED).sum(0).clamp(min=1)
    codebooks = _CodeLosses.apply(states, head.weight, rows.audio_targets) / counts
    return Losses((torch.tensor(weights.codebooks) * codebooks).sum(), codebooks.detach(), torch.zeros(()))
