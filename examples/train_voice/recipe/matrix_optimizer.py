"""Muon for weights of any shape: those of convolutions are taken as matrices, an output channel a row."""

from collections.abc import Iterable

import torch
from torch import nn


def muon(weights: Iterable[nn.Parameter], learning_rate: float, weight_decay: float) -> torch.optim.Muon:
    """Return an optimizer of weights of two dimensions or more, whose steps are as large as AdamW's.

    The gradient of a weight goes to the matrix that shares its numbers, as soon as it is complete.
    """
    matrices = []
    for weight in weights:
        matrix = nn.Parameter(weight.data.flatten(1))
        matrices.append(matrix)

        def hand_over(weight: nn.Parameter, matrix: nn.Parameter = matrix) -> None:
            matrix.grad, weight.grad = weight.grad.flatten(1), None

        weight.register_post_accumulate_grad_hook(hand_over)
    return torch.optim.Muon(matrices, learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
