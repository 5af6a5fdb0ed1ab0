"""The residual quantizer of speech: fitted before anything is trained, with or without pitch in its codes.

Plain, each level takes the nearest of 256 centres among the 16 strongest directions of what the levels before left
over of the spectrum.

With pitch, level 1 says F0 and level 2 the phase of the fundamental; the other six share the spectrum. So
a decoder knows where each period of a voice begins, which 25 frames a second can't tell otherwise. A level's 16
numbers hold what a network can use at once: cosines and sines of the turn that the pitch makes in some milliseconds,
and of multiples of the phase. Only the first two of them are searched; all centres of a level are equally far from
the origin in the others, so that the nearest is the nearest in these.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from recipe.spectral_quantizer import CODEBOOKS, CODES, DIMENSION, LATENT, nearest
from recipe.spectral_quantizer import fit as fit_spectra


SPECTRAL = LATENT
"""Strongest directions of the spectra that are quantized."""
PITCH_LEVEL, PHASE_LEVEL = 1, 2
"""One behind the other: when the phase is predicted, the pitch of its frame and the phase of the frame before stand in
the same row of the delay pattern, and it follows from these two."""
LOWEST_F0, HIGHEST_F0 = 55.0, 600.0
PHASES = 64
UNVOICED = 0
"""The code of a frame without voice, in both levels."""

TURNS = (0.001, 0.002, 0.004, 0.008, 0.016, 0.02, 0.04)
"""Seconds; the pitch level holds the turn that the fundamental makes in each. The last one is a frame: the next
phase follows from the last by that turn."""
_FAR = 100.0
"""Where centres lie that are never taken."""


@dataclass
class Quantizer:
    """A fitted quantizer.

    Attributes:
        mean, basis: spectra [bands] to spectral latents [SPECTRAL].
        search: [CODEBOOKS, DIMENSION, latent], what a level looks at (`project_in`).
        output: [CODEBOOKS, DIMENSION, latent], what its centres add (the transpose of `project_out`).
        centres: [CODEBOOKS, CODES, DIMENSION].
        pitch: whether levels hold pitch and phase.
    """

    mean: torch.Tensor
    basis: torch.Tensor
    search: torch.Tensor
    output: torch.Tensor
    centres: torch.Tensor
    pitch: bool

    @property
    def latent(self) -> int:
        """Width of what is quantized."""
        return self.search.shape[2]

    @classmethod
    def load(cls, path: Path) -> "Quantizer":
        tensors = load_file(path)
        return cls(**{**tensors, "pitch": bool(tensors["pitch"])})

    def save(self, path: Path) -> None:
        tensors = {name: value for name, value in vars(self).items() if name != "pitch"}
        partial = path.with_suffix(".partial")
        save_file({name: t.contiguous() for name, t in tensors.items()} | {"pitch": torch.tensor(self.pitch)}, partial)
        partial.rename(path)

    def latents(self, spectra: torch.Tensor, f0: torch.Tensor, phase: torch.Tensor) -> torch.Tensor:
        """What the encoder should give.

        Args:
            spectra: [..., bands].
            f0: [...], in Hz; 0 where nothing is voiced.
            phase: [...], in cycles.

        Returns:
            [..., latent]; of the numbers of pitch and phase, only those that are searched are not zero.
        """
        spectral = (spectra - self.mean) @ self.basis.T
        if not self.pitch:
            return spectral
        voiced = f0 > 0
        zeros = spectral.new_zeros(*f0.shape, DIMENSION - 2)
        height = torch.where(voiced, _height(f0.clamp(min=LOWEST_F0)), torch.zeros_like(f0))
        pitches = torch.stack([height, torch.where(voiced, 1.0, -1.0)], -1)
        phases = torch.stack([(2 * math.pi * phase).cos(), (2 * math.pi * phase).sin()], -1) * voiced[..., None]
        return torch.cat([spectral, pitches, zeros, phases, zeros], -1)

    def encode(self, latents: torch.Tensor) -> torch.Tensor:
        """[frames, latent] -> codes [CODEBOOKS, frames], int64."""
        residual, codes = latents, []
        for search, output, centres in zip(self.search, self.output, self.centres, strict=True):
            chosen = nearest(residual @ search.T, centres)
            residual = residual - centres[chosen] @ output
            codes.append(chosen)
        return torch.stack(codes)

    def table(self) -> torch.Tensor:
        """What each code adds to the latent: [CODEBOOKS, CODES, latent]."""
        return self.centres @ self.output

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes [CODEBOOKS, ...] -> latents [..., latent]."""
        return sum(table[level] for table, level in zip(self.table(), codes, strict=True))


def _height(f0: torch.Tensor) -> torch.Tensor:
    """F0 on a logarithmic scale: -3 at the lowest, 3 at the highest."""
    return 6 * (f0 / LOWEST_F0).log() / math.log(HIGHEST_F0 / LOWEST_F0) - 3


def _pitch_centres() -> torch.Tensor:
    """[CODES, DIMENSION]: height, voiced, and cosines and sines of turns; the first code is no voice."""
    f0 = LOWEST_F0 * (HIGHEST_F0 / LOWEST_F0) ** (torch.arange(CODES - 1) / (CODES - 2))
    turns = 2 * math.pi * f0[:, None] * torch.tensor(TURNS)
    voiced = torch.cat([_height(f0)[:, None], torch.ones(CODES - 1, 1), turns.cos(), turns.sin()], 1)
    silent = torch.zeros(1, DIMENSION)
    silent[0, 1], silent[0, 2] = -1.0, len(TURNS) ** 0.5
    return torch.cat([silent, voiced])


def _phase_centres() -> torch.Tensor:
    """[CODES, DIMENSION]: cosines and sines of eight multiples of the phase; the first code is no voice."""
    turns = 2 * math.pi * torch.arange(PHASES)[:, None] / PHASES * torch.arange(1, DIMENSION // 2 + 1)
    voiced = torch.stack([turns.cos(), turns.sin()], 2).flatten(1)
    silent = torch.zeros(1, DIMENSION)
    silent[0, 2] = (DIMENSION // 2 - 1) ** 0.5
    unused = torch.full((CODES - PHASES - 1, DIMENSION), _FAR)
    return torch.cat([silent, voiced, unused])


def fit(spectra: torch.Tensor, pitch: bool, seed: int = 0) -> Quantizer:
    """Fit a quantizer to `spectra` [frames, bands]; prints the share of the variance that is left after each level."""
    levels = [level for level in range(CODEBOOKS) if not pitch or level not in (PITCH_LEVEL, PHASE_LEVEL)]
    plain = fit_spectra(spectra, seed=seed, levels=len(levels))
    latent = SPECTRAL + 2 * DIMENSION * pitch
    search, output = torch.zeros(2, CODEBOOKS, DIMENSION, latent)
    centres = torch.zeros(CODEBOOKS, CODES, DIMENSION)
    for level, directions, found in zip(levels, plain.directions, plain.centres, strict=True):
        search[level, :, :SPECTRAL] = output[level, :, :SPECTRAL] = directions
        centres[level] = found
    if pitch:
        for level, start, found in (
            (PITCH_LEVEL, SPECTRAL, _pitch_centres()),
            (PHASE_LEVEL, SPECTRAL + DIMENSION, _phase_centres()),
        ):
            search[level, :2, start : start + 2] = torch.eye(2)
            output[level, :, start : start + DIMENSION] = torch.eye(DIMENSION)
            centres[level] = found
    return Quantizer(plain.mean, plain.basis, search, output, centres, pitch)
