"""The audio tokenizer's weights in the form that its layers take."""

import torch

from higgs_native import ops
from higgs_native.audio_tokenizer.config import HiggsAudioTokenizerConfig
from higgs_native.audio_tokenizer.layers import Weights


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
