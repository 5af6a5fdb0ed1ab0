"""Comparing codes of two implementations, whose rounding decides where two entries are equally near."""

import torch
from torch.nn import functional as F


TIE = 1e-4
"""Entries whose squared distances differ by less than this may be chosen either way."""


def assert_same_codes(
    weights: dict[str, torch.Tensor],
    embeddings: torch.Tensor,
    codes: torch.Tensor,
    expected: torch.Tensor,
    most_ties: float = 0.02,
) -> None:
    """Assert that codes are the expected ones, but for frames that part at a near tie, at most a share of all.

    Args:
        weights: as `audio_tokenizer.weights.pack_weights` makes them.
        embeddings: [frames, width], what was quantized.
        codes, expected: [levels, frames].
        most_ties: the share of the frames that may part.
    """
    assert codes.shape == expected.shape
    parted = torch.zeros(codes.shape[1], dtype=torch.bool)
    residual = embeddings
    for level, (ours, theirs) in enumerate(zip(codes.long(), expected.long(), strict=True)):
        name = "quantizer.project_in"
        x = F.linear(residual, weights[f"{name}.weight"][level], weights[f"{name}.bias"][level])
        book = weights["quantizer.codebook.embed"][level]
        gap = ((x - book[ours]).square().sum(1) - (x - book[theirs]).square().sum(1)).abs()
        # After it has parted, a frame's residual is another one, and its codes can't be compared.
        different = (ours != theirs) & ~parted
        assert (gap[different] < TIE).all(), f"level {level}: codes differ by {gap[different].max():.3g} in distance"
        parted |= different
        name = "quantizer.project_out"
        residual = residual - F.linear(book[ours], weights[f"{name}.weight"][level], weights[f"{name}.bias"][level])
    assert parted.sum() <= most_ties * len(parted), f"{parted.sum()} of {len(parted)} frames part at near ties"
