"""The loss, per codebook and of text, computed in chunks of rows that never hold all logits."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from higgs_native.training.data.rows import IGNORED, PackedRows


CHUNK_LOGITS = 1 << 22
"""Logits of a chunk, 17 MB in float32. Each chunk adds to the gradient of the head's weights, 101 MB in float32."""
MIN_CHUNK_ROWS = 64
"""Rows of a chunk for a large vocabulary: 33 MB of logits for 128,256 tokens."""


class Losses(NamedTuple):
    """The losses of a pass.

    Attributes:
        total: the weighted sum, with gradients.
        codebooks: [codebooks]: the share of the pass in the mean negative log-likelihood of each codebook.
        text: the same of text; 0 if it has no weight.
    """

    total: torch.Tensor
    codebooks: torch.Tensor
    text: torch.Tensor


@dataclass(frozen=True)
class LossWeights:
    """The weight of each mean in the loss.

    Attributes:
        codebooks: one weight per codebook; all 1 is the loss of transformers.
        text: the weight of the text loss; 0 leaves it out.
    """

    codebooks: tuple[float, ...]
    text: float = 0.0


@dataclass(frozen=True)
class TargetCounts:
    """The number of targets that the means are over: those of all passes whose gradients are added up.

    Attributes:
        codebooks: [codebooks], int64.
        text: of text.
    """

    codebooks: torch.Tensor
    text: int

    @classmethod
    def of(cls, *passes: PackedRows) -> "TargetCounts":
        """Count the targets of passes."""
        codebooks = torch.stack([(rows.audio_targets != IGNORED).sum(dim=0) for rows in passes]).sum(dim=0)
        return cls(codebooks, sum(len(rows.text_targets) for rows in passes))


class ChunkedCrossEntropy(torch.autograd.Function):
    """Cross-entropy of a head's logits in groups of classes, with all gradients computed along with the loss.

    A chunk's logits become gradients at once and are dropped. So the backward pass computes no logits again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        head: Any,  # nn.Linear, or the layer of an adapter around one
        targets: torch.Tensor,
        scales: torch.Tensor,
        with_gradients: bool,
        states: torch.Tensor,
        *parameters: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        num_groups = targets.shape[1]
        sums = torch.zeros_like(scales)
        grads: list[torch.Tensor | None] = [None] * len(parameters)
        states_grad = torch.empty_like(states) if with_gradients else None
        chunk_rows = max(MIN_CHUNK_ROWS, CHUNK_LOGITS // head.out_features)
        for begin in range(0, len(states), chunk_rows):
            chunk = states[begin : begin + chunk_rows].detach()
            with torch.set_grad_enabled(with_gradients):
                chunk.requires_grad_(with_gradients)
                groups = head(chunk).unflatten(1, (num_groups, -1)).to(scales.dtype)
                losses = F.cross_entropy(
                    groups.flatten(0, 1),
                    targets[begin : begin + len(chunk)].flatten(),
                    ignore_index=IGNORED,
                    reduction="none",
                )
                chunk_sums = losses.unflatten(0, (-1, num_groups)).sum(dim=0)
                total = (chunk_sums * scales).sum()
            if states_grad is not None:
                states_grad[begin : begin + len(chunk)], *chunk_grads = torch.autograd.grad(
                    total, [chunk, *parameters], allow_unused=True
                )
                for index, grad in enumerate(chunk_grads):
                    if grad is not None:
                        # Sums of many chunks would round away small gradients in bfloat16.
                        wide = grad.to(torch.promote_types(grad.dtype, torch.float32))
                        summed = grads[index]
                        grads[index] = wide if summed is None else summed.add_(wide)
            sums += chunk_sums.detach()
        narrow = (
            None if grad is None else grad.to(parameter.dtype)
            for grad, parameter in zip(grads, parameters, strict=True)
        )
        ctx.save_for_backward(states_grad, *narrow)
        ctx.mark_non_differentiable(sums)
        return (sums * scales).sum(), sums

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        scaled = (None if saved is None else saved * grad.to(saved.dtype) for saved in ctx.saved_tensors)
        return None, None, None, None, *scaled


@torch.compiler.disable
def chunked_cross_entropy(
    head: nn.Module, states: torch.Tensor, targets: torch.Tensor, scales: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the scaled sum of the cross-entropies of all targets, and the sum of each group without gradients.

    Args:
        head: a linear layer to logits [rows, groups * classes], or an adapted one.
        states: [rows, hidden].
        targets: [rows, groups]; `IGNORED` is left out.
        scales: [groups]: what the sum of each group is multiplied by; its dtype is that of the softmax.
    """
    parameters = [parameter for parameter in head.parameters() if parameter.requires_grad]
    with_gradients = torch.is_grad_enabled() and (states.requires_grad or bool(parameters))
    return ChunkedCrossEntropy.apply(head, targets, scales, with_gradients, states, *parameters)


def losses_of(
    states: torch.Tensor,
    rows: PackedRows,
    audio_head: nn.Module,
    text_head: nn.Module | None,
    weights: LossWeights,
    counts: TargetCounts,
) -> Losses:
    """Return the losses of a pass.

    Args:
        states: [kept rows, hidden], after the final norm.
        rows: of the pass.
        audio_head, text_head: give the logits.
        weights: of the means.
        counts: the number of targets that the means are over.
    """
    dtype = torch.promote_types(states.dtype, torch.float32)
    inverse = 1 / counts.codebooks.clamp(min=1).to(states.device, dtype)
    scales = torch.tensor(weights.codebooks, dtype=dtype, device=states.device) * inverse
    total, sums = chunked_cross_entropy(audio_head, states[rows.predict_audio], rows.audio_targets, scales)
    text = torch.zeros((), dtype=dtype, device=states.device)
    if weights.text and len(rows.text_targets):
        share = torch.full((1,), 1 / max(counts.text, 1), dtype=dtype, device=states.device)
        text_total, text_sums = chunked_cross_entropy(
            text_head, states[rows.predict_text], rows.text_targets[:, None], weights.text * share
        )
        total, text = total + text_total, (text_sums * share).sum()
    return Losses(total, sums * inverse, text)
