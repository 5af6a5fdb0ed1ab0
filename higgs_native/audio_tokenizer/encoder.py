"""The audio tokenizer's weights, and its encoder as functions over them: waveform -> codes.

An acoustic branch (the DAC encoder, arXiv 2306.06546) beside a semantic one (HuBERT, arXiv 2106.07447, and a small
convolution encoder), joined by a linear layer and quantized by a residual vector quantizer.

All audio here is [1, samples] and all features are [1, channels, frames], float32. `prepare` makes the weights.
"""

import math

import torch
from torch.nn import functional as F

from higgs_native import ops
from higgs_native.audio_tokenizer.config import DILATIONS, HiggsAudioTokenizerConfig
from higgs_native.audio_tokenizer.hubert import semantic_encoder, semantic_features
from higgs_native.audio_tokenizer.layers import Weights, conv, snake


def encode(
    weights: Weights, config: HiggsAudioTokenizerConfig, audio: torch.Tensor, length_rule: str = "boson"
) -> torch.Tensor:
    """Encode a waveform.

    Args:
        audio: [1, samples] at `config.sampling_rate`.
        length_rule: what happens where the two branches differ in length, see `match_lengths`.

    Returns:
        [codebooks, frames], int32.

    Raises:
        ValueError: the branches differ in length by more than the rule mends.
    """
    to_quantize = embeddings(weights, config, audio, length_rule)
    codes = torch.empty(config.num_codebooks, to_quantize.shape[0], dtype=torch.int32, device=to_quantize.device)
    ops.rvq_encode(
        codes,
        to_quantize,
        weights["quantizer.codebook.embed"],
        weights["quantizer.project_in.weight"],
        weights["quantizer.project_in.bias"],
        weights["quantizer.project_out.weight"],
        weights["quantizer.project_out.bias"],
    )
    return codes


def embeddings(
    weights: Weights, config: HiggsAudioTokenizerConfig, audio: torch.Tensor, length_rule: str
) -> torch.Tensor:
    """What `encode` quantizes: both branches, joined: [1, samples] -> [frames, hidden size]."""
    semantic = semantic_encoder(weights, config, semantic_features(weights, config, audio))
    acoustic, semantic = match_lengths(weights, config, audio, semantic, length_rule)
    features = torch.cat([acoustic, semantic], dim=1)[0].T
    return F.linear(features, weights["fc.weight"], weights["fc.bias"])


def match_lengths(
    weights: Weights, config: HiggsAudioTokenizerConfig, audio: torch.Tensor, semantic: torch.Tensor, length_rule: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode the acoustic branch so that it has as many frames as the semantic one.

    Where they differ, `boson` pads the audio by 160 samples a HuBERT frame on each side (320), and cuts the longer
    branch if they still differ; `transformers` pads it by half a frame (480), and fails if they still differ.

    Returns:
        The acoustic and the semantic features, [1, channels, frames] each.
    """
    acoustic = acoustic_encoder(weights, config, audio)
    if acoustic.shape[2] != semantic.shape[2]:
        boson = length_rule == "boson"
        padding = 160 * config.semantic_downsample_factor if boson else config.hop_length // 2
        acoustic = acoustic_encoder(weights, config, F.pad(audio, (padding, padding)))
        if not boson and acoustic.shape[2] != semantic.shape[2]:
            raise ValueError(
                f"{audio.shape[1]} samples make {acoustic.shape[2]} acoustic and {semantic.shape[2]} semantic frames; "
                f"pad the audio to a multiple of {config.hop_length} samples, or use length_rule='boson'"
            )
    frames = min(acoustic.shape[2], semantic.shape[2])
    return acoustic[..., :frames], semantic[..., :frames]


def acoustic_encoder(weights: Weights, config: HiggsAudioTokenizerConfig, audio: torch.Tensor) -> torch.Tensor:
    """The DAC encoder: [1, samples] -> [1, acoustic hidden size, frames]."""
    x = conv(weights, "acoustic_encoder.conv1", audio[:, None], padding=3)
    for i, stride in enumerate(config.downsampling_ratios):
        block = f"acoustic_encoder.block.{i}"
        x = _residual_units(weights, block, x)
        x = snake(weights, f"{block}.snake1", x)
        x = conv(weights, f"{block}.conv1", x, stride=stride, padding=math.ceil(stride / 2))
    x = snake(weights, "acoustic_encoder.snake1", x)
    return conv(weights, "acoustic_encoder.conv2", x, padding=1)


def _residual_units(weights: Weights, block: str, x: torch.Tensor) -> torch.Tensor:
    """The three residual units of a block. `x` is the caller's to lose: its memory is written over."""
    other = torch.empty_like(x)
    for unit, dilation in enumerate(DILATIONS, start=1):
        name = f"{block}.res_unit{unit}"
        ops.residual_unit(
            other,
            x,
            weights[f"{name}.snake1.alpha"],
            weights[f"{name}.conv1.weight"],
            weights[f"{name}.conv1.bias"],
            weights[f"{name}.snake2.alpha"],
            weights[f"{name}.conv2.weight"],
            weights[f"{name}.conv2.bias"],
            dilation,
        )
        x, other = other, x
    return x
