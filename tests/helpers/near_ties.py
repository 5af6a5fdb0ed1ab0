"""Compares codes of two implementations, whose rounding decides between entries at nearly equal distances."""

import torch
from torch.nn import functional as F


TIE = 1e-4
"""Either of two entries may be chosen if their squared distances differ by less."""


def assert_same_codes(
    weights: dict[str, torch.Tensor],
    embeddings: torch.Tensor,
    codes: torch.Tensor,
    expected: torch.Tensor,
    max_ties: float = 0.02,
) -> None:
    """Assert that codes are the expected ones, except in a few frames that diverge at a near tie.

    Args:
        weights: as `audio_tokenizer.weights.pack_weights` makes them.
        embeddings: [frames, width], the input of the quantizer.
        codes, expected: [levels, frames].
        max_ties: the maximum share of frames that may diverge.
    """
    assert codes.shape == expected.shape
    diverged = torch.zeros(codes.shape[1], dtype=torch.bool)
    residual = embeddings
    for level, (ours, theirs) in enumerate(zip(codes.long(), expected.long(), strict=True)):
        name = "quantizer.project_in"
        x = F.linear(residual, weights[f"{name}.weight"][level], weights[f"{name}.bias"][level])
        book = weights["quantizer.codebook.embed"][level]
        gap = ((x - book[ours]).square().sum(1) - (x - book[theirs]).square().sum(1)).abs()
        # After a frame diverges, its residuals differ, so its codes can't be compared.
        different = (ours != theirs) & ~diverged
        assert (gap[different] < TIE).all(), f"level {level}: codes differ by {gap[different].max():.3g} in distance"
        diverged |= different
        name = "quantizer.project_out"
        residual = residual - F.linear(book[ours], weights[f"{name}.weight"][level], weights[f"{name}.bias"][level])
    assert diverged.sum() <= max_ties * len(diverged), (
        f"{diverged.sum()} of {len(diverged)} frames diverge at near ties"
    )
