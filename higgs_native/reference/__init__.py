"""The operators of `higgs_native.ops` in plain PyTorch, with the same signatures, for tests and benchmarks."""

from higgs_native.reference.attention import attention, qkv_rope_cache
from higgs_native.reference.audio_tokenizer import (
    acoustic_decoder,
    conv1d,
    residual_unit,
    rvq_decode,
    rvq_encode,
    snake,
    snake_conv_transpose1d,
)
from higgs_native.reference.decoder import decoder_layers
from higgs_native.reference.delay_pattern import delay_pattern_build, delay_pattern_revert
from higgs_native.reference.dual_ffn import dual_ffn
from higgs_native.reference.embedding import embed
from higgs_native.reference.linear import (
    linear,
    pack_linear,
    pack_quantized,
    packed_linear,
    rms_norm,
    rms_norm_linear,
    unpack_linear,
)
from higgs_native.reference.quantization import quantize_linear
from higgs_native.reference.sampling import process_logits, sample_audio_frame, sample_text


__all__ = [
    "acoustic_decoder",
    "attention",
    "conv1d",
    "decoder_layers",
    "delay_pattern_build",
    "delay_pattern_revert",
    "dual_ffn",
    "embed",
    "linear",
    "pack_linear",
    "pack_quantized",
    "packed_linear",
    "process_logits",
    "qkv_rope_cache",
    "quantize_linear",
    "residual_unit",
    "rms_norm",
    "rms_norm_linear",
    "rvq_decode",
    "rvq_encode",
    "sample_audio_frame",
    "sample_text",
    "snake",
    "snake_conv_transpose1d",
    "unpack_linear",
]
