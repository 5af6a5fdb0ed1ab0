"""A residual quantizer, fitted to log-mel spectra by k-means before anything is trained.

So the codes are final from the start: the language model, the encoder and the decoder train side by side, and no code
is ever unused. A level projects the residual on its 16 strongest directions (project_in), takes the nearest of 256
centres, and projects it back (project_out, the transpose), as the audio tokenizer's own quantizer does.
"""

from dataclasses import dataclass

import torch


CODEBOOKS, CODES, DIMENSION = 8, 256, 16
LATENT = 64
"""Width of what is quantized: the strongest directions of the spectra, scaled to a mean variance of one."""


@dataclass
class SpectralQuantizer:
    """Fitted levels.

    Attributes:
        mean: [bands], and
        basis: [LATENT, bands]: spectra to latents, `(spectra - mean) @ basis.T`.
        directions: [CODEBOOKS, DIMENSION, LATENT], orthonormal rows.
        centres: [CODEBOOKS, CODES, DIMENSION].
    """

    mean: torch.Tensor
    basis: torch.Tensor
    directions: torch.Tensor
    centres: torch.Tensor


def nearest(points: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """Index of the centre nearest to each point: [n, d], [k, d] -> [n], int64."""
    return (points @ centres.T - centres.square().sum(1) / 2).argmax(1)


def fit(spectra: torch.Tensor, rounds: int = 25, seed: int = 0, levels: int = CODEBOOKS) -> SpectralQuantizer:
    """Fit a quantizer to `spectra` [frames, bands]; prints the share of the variance that is left after each level."""
    generator = torch.Generator().manual_seed(seed)
    mean = spectra.mean(0)
    basis = _strongest(spectra - mean, LATENT)
    latents = (spectra - mean) @ basis.T
    scale = latents.var(0).mean().rsqrt()
    basis, latents = basis * scale, latents * scale
    total, residual = latents.square().mean(), latents
    parts = []
    for level in range(levels):
        directions = _strongest(residual, DIMENSION)
        points = residual @ directions.T
        centres = _k_means(points, rounds, generator)
        residual = residual - centres[nearest(points, centres)] @ directions
        parts.append((directions, centres))
        print(f"level {level}: {residual.square().mean() / total:.4f} of the variance left", flush=True)
    return SpectralQuantizer(mean, basis, *map(torch.stack, zip(*parts, strict=True)))


def _strongest(points: torch.Tensor, count: int) -> torch.Tensor:
    """The directions of the greatest variance: [n, d] -> [count, d]."""
    return torch.linalg.eigh(points.T @ points).eigenvectors.flip(1)[:, :count].T.contiguous()


def _k_means(points: torch.Tensor, rounds: int, generator: torch.Generator) -> torch.Tensor:
    centres = points[torch.randperm(len(points), generator=generator)[:CODES]].clone()
    for _ in range(rounds):
        chosen = nearest(points, centres)
        counts = torch.bincount(chosen, minlength=CODES)
        sums = torch.zeros_like(centres).index_add_(0, chosen, points)
        centres = sums / counts.clamp(min=1)[:, None]
        unused = counts == 0
        centres[unused] = points[torch.randint(len(points), (int(unused.sum()),), generator=generator)]
    return centres
