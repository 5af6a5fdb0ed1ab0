"""The audio tokenizer's weights: the tensors of a checkpoint, and the packed form that the layers read."""

from collections.abc import Callable

import torch

from higgs_native import ops
from higgs_native.audio_tokenizer.config import DILATIONS, HiggsAudioTokenizerConfig, HubertConfig
from higgs_native.audio_tokenizer.layers import Weights
from higgs_native.errors import CheckpointError
from higgs_native.utils.tensors import is_finite


def tensor_shapes(config: HiggsAudioTokenizerConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor that encoding and decoding need, by its name in transformers."""
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(name: str, *weight_shape: int, bias: int | None = None) -> None:
        shapes[f"{name}.weight"] = weight_shape
        if bias is not None:
            shapes[f"{name}.bias"] = (bias,)

    def snake(name: str, channels: int) -> None:
        shapes[f"{name}.alpha"] = (1, channels, 1)

    def residual_units(name: str, channels: int) -> None:
        for unit in range(1, len(DILATIONS) + 1):
            snake(f"{name}.res_unit{unit}.snake1", channels)
            layer(f"{name}.res_unit{unit}.conv1", channels, channels, 7, bias=channels)
            snake(f"{name}.res_unit{unit}.snake2", channels)
            layer(f"{name}.res_unit{unit}.conv2", channels, channels, 1, bias=channels)

    channels = config.encoder_hidden_size
    layer("acoustic_encoder.conv1", channels, 1, 7, bias=channels)
    for i, stride in enumerate(config.downsampling_ratios):
        block = f"acoustic_encoder.block.{i}"
        residual_units(block, channels)
        snake(f"{block}.snake1", channels)
        layer(f"{block}.conv1", 2 * channels, channels, 2 * stride, bias=2 * channels)
        channels *= 2
    snake("acoustic_encoder.snake1", channels)
    layer("acoustic_encoder.conv2", config.acoustic_hidden_size, channels, 3, bias=config.acoustic_hidden_size)

    channels = config.decoder_hidden_size
    layer("acoustic_decoder.conv1", channels, config.acoustic_hidden_size, 7, bias=channels)
    for i, stride in enumerate(config.upsampling_ratios):
        block = f"acoustic_decoder.block.{i}"
        snake(f"{block}.snake1", channels)
        # The weight of a transposed convolution is [in, out, taps].
        layer(f"{block}.conv_t1", channels, channels // 2, 2 * stride, bias=channels // 2)
        channels //= 2
        residual_units(block, channels)
    snake("acoustic_decoder.snake1", channels)
    layer("acoustic_decoder.conv2", 1, channels, 7, bias=1)

    _hubert_shapes(config.hubert, layer, shapes)

    width = config.hubert.hidden_size
    layer("encoder_semantic.conv", width, width, config.kernel_size)
    for i, (ratio, stride) in enumerate(zip(config.channel_ratios, config.strides, strict=True)):
        block = f"encoder_semantic.conv_blocks.{i}"
        for j in range(len(config.block_dilations)):
            layer(f"{block}.res_units.{j}.conv1", width, width, config.unit_kernel_size)
            layer(f"{block}.res_units.{j}.conv2", width, width, 1)
        out = int(config.hubert.hidden_size * ratio)
        layer(f"{block}.conv", out, width, 3 if stride == 1 else 2 * stride, bias=out)
        width = out

    hidden, entry = config.hidden_size, config.codebook_dim
    for i in range(config.num_codebooks):
        level = f"quantizer.quantizers.{i}"
        layer(f"{level}.project_in", entry, hidden, bias=entry)
        layer(f"{level}.project_out", hidden, entry, bias=hidden)
        shapes[f"{level}.codebook.embed"] = (config.codebook_size, entry)
    layer("fc", hidden, hidden, bias=hidden)
    layer("fc2", config.acoustic_hidden_size, hidden, bias=config.acoustic_hidden_size)
    return shapes


def pack_weights(tensors: Weights, config: HiggsAudioTokenizerConfig) -> Weights:
    """Pack a checkpoint's tensors for the layers of encoder and decoder.

    Args:
        tensors: by the names of `tensor_shapes`, float32, weight norm folded.
        config: of the checkpoint.

    Returns:
        The tensors by their names, float32, with these differences: Snake slopes are [channels]; transposed
        convolutions are packed (see `ops.pack_conv_transpose1d`); `quantizer.*` are the levels' tensors, stacked.
        `decode.table`, [levels, codebook size, acoustic hidden size], holds each codebook entry after its output
        projection and `fc2`, `decode.bias` the bias of `fc2`: their sum is the decoder's input.

    Raises:
        CheckpointError: that table is not finite.
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
    if not is_finite(weights["decode.table"]):
        raise CheckpointError(
            "the audio tokenizer's codebook.embed, project_out and fc2 must have a finite product, got NaN or infinity"
        )
    return weights


def _hubert_shapes(hubert: HubertConfig, layer: Callable[..., None], shapes: dict[str, tuple[int, ...]]) -> None:
    """Add the shapes of HuBERT's tensors to `shapes`; `layer` adds those of a weight and its bias."""
    channels = 1
    for i, (out, kernel) in enumerate(zip(hubert.conv_dim, hubert.conv_kernel, strict=True)):
        name = f"semantic_model.feature_extractor.conv_layers.{i}"
        layer(f"{name}.conv", out, channels, kernel, bias=out if hubert.conv_bias else None)
        if i == 0:
            layer(f"{name}.layer_norm", out, bias=out)
        channels = out
    width = hubert.hidden_size
    if hubert.feat_proj_layer_norm:
        layer("semantic_model.feature_projection.layer_norm", channels, bias=channels)
    layer("semantic_model.feature_projection.projection", width, channels, bias=width)
    # Checkpoints hold the positional convolution with its weight norm: a gain for each tap, and the direction.
    position, taps = "semantic_model.encoder.pos_conv_embed.conv", hubert.num_conv_pos_embeddings
    shapes[f"{position}.bias"] = (width,)
    shapes[f"{position}.parametrizations.weight.original0"] = (1, 1, taps)
    shapes[f"{position}.parametrizations.weight.original1"] = (
        width,
        width // hubert.num_conv_pos_embedding_groups,
        taps,
    )
    layer("semantic_model.encoder.layer_norm", width, bias=width)
    for i in range(hubert.num_hidden_layers):
        block = f"semantic_model.encoder.layers.{i}"
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            layer(f"{block}.attention.{projection}", width, width, bias=width)
        layer(f"{block}.layer_norm", width, bias=width)
        layer(
            f"{block}.feed_forward.intermediate_dense", hubert.intermediate_size, width, bias=hubert.intermediate_size
        )
        layer(f"{block}.feed_forward.output_dense", width, hubert.intermediate_size, bias=width)
        layer(f"{block}.final_layer_norm", width, bias=width)
