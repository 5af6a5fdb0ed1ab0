"""The native operators: one typed function each, one module per family.

Every operator writes into tensors that the caller owns, and runs on the device of its arguments, the CPU or CUDA.
`higgs_native.reference` has the same functions in plain PyTorch.
"""

from higgs_native.ops._library import check_instruction_set
from higgs_native.ops.attention import attention, qkv_rope_cache
from higgs_native.ops.audio_tokenizer import (
    acoustic_decoder,
    conv1d,
    pack_conv_transpose1d,
    residual_unit,
    rvq_decode,
    rvq_encode,
    snake,
    snake_conv_transpose1d,
)
from higgs_native.ops.decoder import LowRank, decoder_layers, layer_factors, layer_weights
from higgs_native.ops.delay_pattern import delay_pattern_build, delay_pattern_revert
from higgs_native.ops.dual_ffn import dual_ffn
from higgs_native.ops.embedding import embed
from higgs_native.ops.gptq import ErrorFeedback, Moments, error_feedback
from higgs_native.ops.linear import (
    PackedWeight,
    linear,
    pack_gate_up,
    pack_linear,
    pack_quantized,
    rms_norm_linear,
)
from higgs_native.ops.quantization import quantize_linear
from higgs_native.ops.sampling import process_logits, sample_audio_frame, sample_text


__all__ = [
    "ErrorFeedback",
    "LowRank",
    "Moments",
    "PackedWeight",
    "acoustic_decoder",
    "attention",
    "check_instruction_set",
    "conv1d",
    "decoder_layers",
    "delay_pattern_build",
    "delay_pattern_revert",
    "dual_ffn",
    "embed",
    "error_feedback",
    "layer_factors",
    "layer_weights",
    "linear",
    "pack_conv_transpose1d",
    "pack_gate_up",
    "pack_linear",
    "pack_quantized",
    "process_logits",
    "qkv_rope_cache",
    "quantize_linear",
    "residual_unit",
    "rms_norm_linear",
    "rvq_decode",
    "rvq_encode",
    "sample_audio_frame",
    "sample_text",
    "snake",
    "snake_conv_transpose1d",
]
