"""The audio tokenizer's encoder, as functions of its weights: waveform -> codes.

An acoustic branch (the DAC encoder, arXiv 2306.06546) and a semantic branch (see `hubert`) give features for each
frame. A linear layer mixes both, and a residual vector quantizer turns them into codes.

`weights` are as `pack_weights` returns them, audio is [1, samples], and features are [1, channels, frames], float32.
"""

import math

import torch
from torch.nn import functional as F

from higgs_native import ops
from higgs_native.audio_tokenizer.config import DILATIONS, HiggsAudioTokenizerConfig
from higgs_native.audio_tokenizer.hubert import semantic_encoder, semantic_features
from higgs_native.audio_tokenizer.layers import Weights, conv, snake
from higgs_native.convention import Convention


def encode(
    weights: Weights,
    config: HiggsAudioTokenizerConfig,
    audio: torch.Tensor,
    convention: Convention = Convention.BOSON,
) -> torch.Tensor:
    """Encode a waveform.

    Args:
        weights: as `pack_weights` returns them.
        config: of the checkpoint.
        audio: [1, samples], float32, at `config.sampling_rate`.
        convention: how branches of different lengths are matched; see `match_lengths`.

    Returns:
        [codebooks, frames], int32.

    Raises:
        ValueError: the branches differ in length, and the convention does not match them.
    """
    features = embeddings(weights, config, audio, convention)
    codes = torch.empty(config.num_codebooks, features.shape[0], dtype=torch.int32, device=features.device)
    ops.rvq_encode(
        codes,
        features,
        weights["quantizer.codebook.embed"],
        weights["quantizer.project_in.weight"],
        weights["quantizer.project_in.bias"],
        weights["quantizer.project_out.weight"],
        weights["quantizer.project_out.bias"],
    )
    return codes


def embeddings(
    weights: Weights, config: HiggsAudioTokenizerConfig, audio: torch.Tensor, convention: Convention
) -> torch.Tensor:
    """Return the quantizer's input, both branches after `fc`: [1, samples] -> [frames, hidden size], float32."""
    semantic = semantic_encoder(weights, config, semantic_features(weights, config, audio))
    acoustic, semantic = match_lengths(weights, config, audio, semantic, convention)
    features = torch.cat([acoustic, semantic], dim=1)[0].T
    return F.linear(features, weights["fc.weight"], weights["fc.bias"])


def match_lengths(
    weights: Weights,
    config: HiggsAudioTokenizerConfig,
    audio: torch.Tensor,
    semantic: torch.Tensor,
    convention: Convention,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the acoustic branch so that it has as many frames as the semantic features.

    If they differ, the audio is padded on each side: under `boson` by 160 samples per HuBERT frame of a frame (320),
    under the others by half a frame (480). If they still differ, the longer one is cut, but not under `transformers`.

    Args:
        weights, config, audio, convention: as for `encode`.
        semantic: [1, HuBERT's hidden size, frames].

    Returns:
        The acoustic and the semantic features, [1, channels, frames] each.

    Raises:
        ValueError: under `transformers` they still differ.
    """
    is_short = audio.shape[1] < config.min_acoustic_samples
    acoustic = None if is_short else acoustic_encoder(weights, config, audio)
    if acoustic is None or acoustic.shape[2] != semantic.shape[2]:
        boson = convention is Convention.BOSON
        padding = 160 * config.semantic_downsample_factor if boson else config.hop_length // 2
        acoustic = acoustic_encoder(weights, config, F.pad(audio, (padding, padding)))
        if convention is Convention.TRANSFORMERS and acoustic.shape[2] != semantic.shape[2]:
            raise ValueError(
                f"the audio must have as many acoustic as semantic frames, got {acoustic.shape[2]} and "
                f"{semantic.shape[2]} of {audio.shape[1]} samples; pad it to a multiple of {config.hop_length} "
                "samples, or use convention='boson'"
            )
    frames = min(acoustic.shape[2], semantic.shape[2])
    return acoustic[..., :frames], semantic[..., :frames]


def acoustic_encoder(weights: Weights, config: HiggsAudioTokenizerConfig, audio: torch.Tensor) -> torch.Tensor:
    """Apply the DAC encoder: [1, samples] -> [1, acoustic hidden size, frames], float32."""
    x = conv(weights, "acoustic_encoder.conv1", audio[:, None], padding=3)
    for i, stride in enumerate(config.downsampling_ratios):
        block = f"acoustic_encoder.block.{i}"
        x = _residual_units(weights, block, x)
        x = snake(weights, f"{block}.snake1", x)
        x = conv(weights, f"{block}.conv1", x, stride=stride, padding=math.ceil(stride / 2))
    x = snake(weights, "acoustic_encoder.snake1", x)
    return conv(weights, "acoustic_encoder.conv2", x, padding=1)


def _residual_units(weights: Weights, block: str, x: torch.Tensor) -> torch.Tensor:
    """Apply the three residual units of a block to x [1, channels, columns], whose memory is overwritten."""
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
