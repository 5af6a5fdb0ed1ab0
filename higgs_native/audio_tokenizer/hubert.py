"""The encoder's semantic branch: HuBERT (arXiv 2106.07447), and the semantic encoder, a few convolutions."""

import torch
from torch.nn import functional as F

from higgs_native.audio.resample import resample_sinc
from higgs_native.audio_tokenizer.config import SEMANTIC_PADDING, HiggsAudioTokenizerConfig, HubertConfig
from higgs_native.audio_tokenizer.layers import Weights, conv, layer_norm, linear


def semantic_features(weights: Weights, config: HiggsAudioTokenizerConfig, audio: torch.Tensor) -> torch.Tensor:
    """Return the mean of all hidden states of HuBERT, for one in `semantic_downsample_factor` of its frames.

    Args:
        weights: as `pack_weights` returns them.
        config: of the checkpoint.
        audio: [1, samples], float32, at `config.sampling_rate`.

    Returns:
        [1, frames, HuBERT's hidden size], float32.
    """
    audio = resample_sinc(audio, config.sampling_rate, config.semantic_sampling_rate)
    hidden_states = _hubert(weights, config.hubert, F.pad(audio, (SEMANTIC_PADDING, SEMANTIC_PADDING)))
    return hidden_states[:, :: config.semantic_downsample_factor]


def _hubert(weights: Weights, config: HubertConfig, audio: torch.Tensor) -> torch.Tensor:
    """Return the mean of the transformer's input and of each layer's output: [1, samples] -> [1, frames, width]."""
    x = audio[:, None]
    for i, stride in enumerate(config.conv_stride):
        layer = f"semantic_model.feature_extractor.conv_layers.{i}"
        x = conv(weights, f"{layer}.conv", x, stride=stride)
        if i == 0:  # a group per channel: each is normalized over time
            x = F.group_norm(x, x.shape[1], weights[f"{layer}.layer_norm.weight"], weights[f"{layer}.layer_norm.bias"])
        x = F.gelu(x)
    x = x.mT
    if config.feat_proj_layer_norm:
        x = layer_norm(weights, "semantic_model.feature_projection.layer_norm", x, config.layer_norm_eps)
    x = linear(weights, "semantic_model.feature_projection.projection", x)

    position = conv(
        weights,
        "semantic_model.encoder.pos_conv_embed.conv",
        x.mT,
        padding=config.num_conv_pos_embeddings // 2,
        groups=config.num_conv_pos_embedding_groups,
    )
    # An even kernel, padded by half of it on both sides, gives one frame too many, the last.
    x = x + F.gelu(position[..., : x.shape[1]]).mT
    x = layer_norm(weights, "semantic_model.encoder.layer_norm", x, config.layer_norm_eps)
    total = x
    for i in range(config.num_hidden_layers):
        layer = f"semantic_model.encoder.layers.{i}"
        x = x + _attention(weights, f"{layer}.attention", x, config.num_attention_heads)
        x = layer_norm(weights, f"{layer}.layer_norm", x, config.layer_norm_eps)
        hidden = F.gelu(linear(weights, f"{layer}.feed_forward.intermediate_dense", x))
        x = x + linear(weights, f"{layer}.feed_forward.output_dense", hidden)
        x = layer_norm(weights, f"{layer}.final_layer_norm", x, config.layer_norm_eps)
        total = total + x
    return total / (config.num_hidden_layers + 1)


def _attention(weights: Weights, name: str, x: torch.Tensor, heads: int) -> torch.Tensor:
    """Self-attention without a mask: [1, frames, width] -> [1, frames, width]."""
    query, key, value = (
        linear(weights, f"{name}.{projection}", x).unflatten(2, (heads, -1)).transpose(1, 2)
        for projection in ("q_proj", "k_proj", "v_proj")
    )
    attended = F.scaled_dot_product_attention(query, key, value)
    return linear(weights, f"{name}.out_proj", attended.transpose(1, 2).flatten(2))


def semantic_encoder(weights: Weights, config: HiggsAudioTokenizerConfig, features: torch.Tensor) -> torch.Tensor:
    """Apply the convolutions after HuBERT: [1, frames, width] -> [1, width, frames], float32."""
    x = conv(weights, "encoder_semantic.conv", features.mT, padding=config.kernel_size // 2)
    for i, stride in enumerate(config.strides):
        block = f"encoder_semantic.conv_blocks.{i}"
        for j, dilation in enumerate(config.block_dilations):
            unit = f"{block}.res_units.{j}"
            padding = (config.unit_kernel_size - 1) // 2 * dilation
            y = conv(weights, f"{unit}.conv1", F.elu(x), padding=padding, dilation=dilation)
            x = x + conv(weights, f"{unit}.conv2", F.elu(y))
        kernel = weights[f"{block}.conv.weight"].shape[2]
        x = conv(weights, f"{block}.conv", x, stride=stride, padding=(kernel - 1) // 2)
    return x
