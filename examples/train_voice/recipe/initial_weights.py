"""The language model's first weights: what codes sound like, and how a phase follows from the one before."""

import math

import torch
from torch import nn

from higgs_native.training.model import TrainableModel
from recipe.spectral_quantizer import CODEBOOKS, CODES, DIMENSION
from recipe.speech_quantizer import PHASE_LEVEL, PHASES, PITCH_LEVEL, SPECTRAL, TURNS, Quantizer


_PITCH_SCALE = 3.0
_PRODUCT_SCALE, _PHASE_SHARPNESS = 0.5, 0.6
"""With these, the head is about as sure of a phase as it is right."""


def initialise(model: TrainableModel, quantizer: Quantizer) -> None:
    """Set embeddings and heads to a linear map of what each code adds to the latent, and all else at random.

    So pitch and phase come as the cosines and sines that the next phase is a product of.
    """
    initialise_layers(model)
    table = quantizer.table()
    table = table.where(table.abs() < 20, 0)  # codes that are never taken
    width = model.config.hidden_size
    generator = torch.Generator().manual_seed(0)
    directions = torch.linalg.qr(torch.randn(width, width, generator=generator)).Q
    rotation, free = directions[: quantizer.latent], directions[quantizer.latent :]
    audio = model.model.embed_audio_tokens.embed_audio_tokens.weight.data.view(CODEBOOKS, CODES + 2, width)
    audio[:, :CODES] = 0.15 * table @ rotation + 0.2 * audio[:, :CODES]
    # Or what is learned of the other levels' codes drowns the cosines of which the phase is a product.
    for level in (PITCH_LEVEL, PHASE_LEVEL):
        audio[level, :CODES] *= _PITCH_SCALE
    head = model.audio_lm_head.weight.data.view(CODEBOOKS, CODES + 2, width)
    scale = table.std((1, 2), keepdim=True).clamp(min=1e-3)
    head[:, :CODES] = 0.05 * table / scale @ rotation + 0.5 * head[:, :CODES]
    if quantizer.pitch:
        _predict_phase(model, rotation, free)


def initialise_layers(model: TrainableModel) -> None:
    """Set all matrices as GPT-2 does: small, and what adds to the residual stream scaled by the depth."""
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            nn.init.normal_(parameter, std=0.02 if "embed" not in name else 0.05)
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.data /= (2 * model.config.num_hidden_layers) ** 0.5


def _predict_phase(model: TrainableModel, rotation: torch.Tensor, free: torch.Tensor) -> None:
    """Let the first layer compute the next phase: the last one, turned by the pitch.

    Cosine and sine of a sum are sums of products of cosines and sines. A pair of gated units multiplies exactly:
    silu(g) u + silu(-g) (-u) = g u. The first two of the `free` directions, which no latent has, take the results, and
    the head reads the phases there. Training alone did not find this in 5,000 steps.
    """
    turns = SPECTRAL + 1 + len(TURNS)  # height and voice, the cosines, the sines; the last turn is that of a frame
    turned = rotation[turns], rotation[turns + len(TURNS)]
    last = rotation[SPECTRAL + DIMENSION], rotation[SPECTRAL + DIMENSION + 1]
    products = (
        (turned[0], last[0], free[0]),
        (turned[1], last[1], -free[0]),
        (turned[1], last[0], free[1]),
        (turned[0], last[1], free[1]),
    )
    network = model.model.layers[0].audio_mlp
    for number, (first, second, out) in enumerate(products):
        for unit, sign in ((2 * number, 1), (2 * number + 1, -1)):
            network.gate_proj.weight.data[unit] = sign * _PRODUCT_SCALE * first
            network.up_proj.weight.data[unit] = sign * _PRODUCT_SCALE * second
            network.down_proj.weight.data[:, unit] = out
    angles = 2 * math.pi * torch.arange(PHASES)[:, None] / PHASES
    head = model.audio_lm_head.weight.data.view(CODEBOOKS, CODES + 2, -1)
    head[PHASE_LEVEL, 1 : PHASES + 1] = _PHASE_SHARPNESS * (angles.cos() * free[0] + angles.sin() * free[1])
