"""The audio tokenizer's weights, and its encoder as functions over them: waveform -> codes.

An acoustic branch (the DAC encoder, arXiv 2306.06546) beside a semantic one (HuBERT, arXiv 2106.07447, and a small
convolution encoder), joined by a linear layer and quantized by a residual vector quantizer.

All audio here is [1, samples] and all features are [1, channels, frames], float32. `prepare` makes the weights.
"""

import math

import torch
from torch.nn import functional as F

from higgs_native import ops
from higgs_native.audio_tokenizer.config import DILATIONS, HiggsAudioTokenizerConfig, HubertConfig


Weights = dict[str, torch.Tensor]


def prepare(tensors: Weights, config: HiggsAudioTokenizerConfig) -> Weights:
    """Bring a checkpoint's tensors into the form that the functions here take.

    Args:
        tensors: by the names of `codec_config.tensor_shapes`, float32, weight norm folded.
        config: of the checkpoint.

    Returns:
        The tensors: Snake slopes as [channels], transposed convolutions packed, the quantizer's levels stacked, and
        each entry taken through its output projection and `fc2`.
    """
    weights = {}
    for name, tensor in tensors.items():
        if name.startswith(("quantizer.", "fc2.")):
            continue
        if name.endswith(".alpha"):
            tensor = tensor.flatten()
        elif name.endswith(".conv_t1.weight"):
            tensor = ops.pack_conv_transpose1d(tensor)
        weights[name] = tensor.contiguous()
    levels = [f"quantizer.quantizers.{i}." for i in range(config.num_codebooks)]
    for name in (
        "codebook.embed",
        "project_in.weight",
        "project_in.bias",
        "project_out.weight",
        "project_out.bias",
    ):
        weights[f"quantizer.{name}"] = torch.stack([tensors[level + name] for level in levels])
    fc2 = tensors["fc2.weight"]
    projection = fc2 @ weights["quantizer.project_out.weight"]  # [levels, acoustic, dim]
    constant = weights["quantizer.project_out.bias"] @ fc2.T  # [levels, acoustic]
    weights["decode.table"] = weights["quantizer.codebook.embed"] @ projection.mT + constant[:, None]
    weights["decode.bias"] = tensors["fc2.bias"]
    return weights


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
    x = _conv(weights, "acoustic_encoder.conv1", audio[:, None], padding=3)
    for i, stride in enumerate(config.downsampling_ratios):
        block = f"acoustic_encoder.block.{i}"
        x = _residual_units(weights, block, x)
        x = _snake(weights, f"{block}.snake1", x)
        x = _conv(weights, f"{block}.conv1", x, stride=stride, padding=math.ceil(stride / 2))
    x = _snake(weights, "acoustic_encoder.snake1", x)
    return _conv(weights, "acoustic_encoder.conv2", x, padding=1)


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


def _snake(weights: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    """Snake, in place."""
    ops.snake(x, x, weights[f"{name}.alpha"])
    return x


def _conv(weights: Weights, name: str, x: torch.Tensor, **options: int) -> torch.Tensor:
    return F.conv1d(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"), **options)


def semantic_features(weights: Weights, config: HiggsAudioTokenizerConfig, audio: torch.Tensor) -> torch.Tensor:
    """What HuBERT hears: the mean of all its hidden states, a frame in `semantic_downsample_factor`.

    Args:
        audio: [1, samples] at `config.sampling_rate`.

    Returns:
        [1, frames, HuBERT's hidden size].
    """
    audio = resample(audio, config.sampling_rate, config.semantic_sampling_rate)
    hidden_states = _hubert(weights, config.hubert, F.pad(audio, (160, 160)))
    return hidden_states[:, :: config.semantic_downsample_factor]


def _hubert(weights: Weights, config: HubertConfig, audio: torch.Tensor) -> torch.Tensor:
    """[1, samples] -> [1, frames, width]: the mean of the transformer's input and each layer's output."""
    x = audio[:, None]
    for i, stride in enumerate(config.conv_stride):
        layer = f"semantic_model.feature_extractor.conv_layers.{i}"
        x = _conv(weights, f"{layer}.conv", x, stride=stride)
        if i == 0:  # a norm of each channel over time
            x = F.group_norm(x, x.shape[1], weights[f"{layer}.layer_norm.weight"], weights[f"{layer}.layer_norm.bias"])
        x = F.gelu(x)
    x = x.mT
    if config.feat_proj_layer_norm:
        x = _layer_norm(weights, "semantic_model.feature_projection.layer_norm", x, config.layer_norm_eps)
    x = _linear(weights, "semantic_model.feature_projection.projection", x)

    position = _conv(
        weights,
        "semantic_model.encoder.pos_conv_embed.conv",
        x.mT,
        padding=config.num_conv_pos_embeddings // 2,
        groups=config.num_conv_pos_embedding_groups,
    )
    # An even kernel, padded by half of it on both sides, gives one frame too many.
    x = x + F.gelu(position[..., : x.shape[1]]).mT
    x = _layer_norm(weights, "semantic_model.encoder.layer_norm", x, config.layer_norm_eps)
    total = x
    for i in range(config.num_hidden_layers):
        layer = f"semantic_model.encoder.layers.{i}"
        x = x + _attention(weights, f"{layer}.attention", x, config.num_attention_heads)
        x = _layer_norm(weights, f"{layer}.layer_norm", x, config.layer_norm_eps)
        hidden = F.gelu(_linear(weights, f"{layer}.feed_forward.intermediate_dense", x))
        x = x + _linear(weights, f"{layer}.feed_forward.output_dense", hidden)
        x = _layer_norm(weights, f"{layer}.final_layer_norm", x, config.layer_norm_eps)
        total = total + x
    return total / (config.num_hidden_layers + 1)


def _attention(weights: Weights, name: str, x: torch.Tensor, heads: int) -> torch.Tensor:
    query, key, value = (
        _linear(weights, f"{name}.{projection}", x).unflatten(2, (heads, -1)).transpose(1, 2)
        for projection in ("q_proj", "k_proj", "v_proj")
    )
    mixed = F.scaled_dot_product_attention(query, key, value)
    return _linear(weights, f"{name}.out_proj", mixed.transpose(1, 2).flatten(2))


def _linear(weights: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def _layer_norm(weights: Weights, name: str, x: torch.Tensor, eps: float) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps)


def semantic_encoder(weights: Weights, config: HiggsAudioTokenizerConfig, features: torch.Tensor) -> torch.Tensor:
    """The convolutions behind HuBERT: [1, frames, width] -> [1, width, frames]."""
    x = _conv(weights, "encoder_semantic.conv", features.mT, padding=config.kernel_size // 2)
    for i, stride in enumerate(config.strides):
        block = f"encoder_semantic.conv_blocks.{i}"
        for j, dilation in enumerate(config.block_dilations):
            unit = f"{block}.res_units.{j}"
            padding = (config.unit_kernel_size - 1) // 2 * dilation
            y = _conv(weights, f"{unit}.conv1", F.elu(x), padding=padding, dilation=dilation)
            x = x + _conv(weights, f"{unit}.conv2", F.elu(y))
        kernel = weights[f"{block}.conv.weight"].shape[2]
        x = _conv(weights, f"{block}.conv", x, stride=stride, padding=(kernel - 1) // 2)
    return x


def resample(audio: torch.Tensor, from_rate: int, to_rate: int) -> torch.Tensor:
    """Resample by windowed-sinc interpolation, as `torchaudio.functional.resample` does by default.

    A sinc cut off at 0.99 of the lower Nyquist frequency, under a Hann window of 6 zero crossings on each side. HuBERT
    was fed by this filter, so no other will do.

    Args:
        audio: [channels, samples], float32.
        from_rate, to_rate: in Hz.

    Returns:
        [channels, ceil(samples * to_rate / from_rate)], float32.
    """
    if from_rate == to_rate:
        return audio
    divisor = math.gcd(from_rate, to_rate)
    from_rate, to_rate = from_rate // divisor, to_rate // divisor
    zero_crossings, cutoff = 6, 0.99 * min(from_rate, to_rate)
    width = math.ceil(zero_crossings * from_rate / cutoff)
    # Output j of each group of to_rate lies at time j / to_rate; the taps lie at times i / from_rate around it.
    taps = torch.arange(-width, width + from_rate, dtype=torch.float32) / from_rate
    phases = torch.arange(0, -to_rate, -1, dtype=torch.float32) / to_rate
    times = ((phases[:, None] + taps) * cutoff).clamp(-zero_crossings, zero_crossings)
    window = torch.cos(times * math.pi / zero_crossings / 2).square()
    kernels = torch.sinc(times) * window * (cutoff / from_rate)
    padded = F.pad(audio, (width, width + from_rate))
    resampled = F.conv1d(padded[:, None], kernels[:, None].to(audio.device), stride=from_rate)
    samples = math.ceil(audio.shape[1] * to_rate / from_rate)
    return resampled.mT.flatten(1)[:, :samples]
