"""Loaded models of transformers, made native in place."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from transformers import (
    HiggsAudioV2ForConditionalGeneration,
    HiggsAudioV2TokenizerModel,
)

from higgs_native.audio_tokenizer.checkpoint import convert
from higgs_native.audio_tokenizer.config import HiggsAudioTokenizerConfig
from higgs_native.audio_tokenizer.tokenizer import HiggsAudioTokenizer
from higgs_native.checkpoint.config import HiggsAudioConfig
from higgs_native.checkpoint.quantization import Quantization
from higgs_native.compat.transformers.classes import (
    Accelerated,
    Model,
    WithoutWeights,
    accelerated_class,
    plain_state,
)
from higgs_native.compat.transformers.weights import ModelWeights, check_plain, weights_state
from higgs_native.errors import ParameterError
from higgs_native.generation.model import HiggsAudioModel
from higgs_native.model.transformer import DEFAULT_CACHE_LENGTH, check_cache_length
from higgs_native.ops.device import checked_device


def accelerate(
    model: Model, max_cache_length: int = DEFAULT_CACHE_LENGTH, quantization: str | Quantization | None = None
) -> Model:
    """Let a language model's `generate`, or an audio tokenizer's `encode` and `decode`, run natively.

    The engine shares a language model's embeddings and norms, and packs its matrices; it copies an audio tokenizer's
    tensors. Memory then holds matrices and copies twice. A call that finds the weights changed packs them anew.
    `restore` undoes it. Until then the model's class is a subclass of its former one, of the same name; copies and
    pickles of the model are plain models.

    `generate` takes what transformers' own takes for this model, with these exceptions, which raise ParameterError:
    attentions, hidden states, a used `past_key_values`, and a prompt whose last position is masked. Differences from
    transformers:

    - draws depend on torch's seed, but differ from those of transformers;
    - repetition-aware sampling counts a row's own frames, and not the padding after them;
    - each row follows its own prompt, while in transformers a row that ends in `<|audio_out_bos|>` restarts the delay
      pattern of all rows;
    - stopping criteria see one row at a time, and no scores;
    - after a row's frame of EOS in all codebooks nothing is drawn: without an `eos_token_id` such frames follow;
    - the logits after a row's end are zero, and outputs carry no gradients and no `past_key_values`.

    Args:
        model: on the CPU or a GPU, where it then runs; a language model in float32, bfloat16 or float16, an audio
            tokenizer in float32. Not quantized.
        max_cache_length: positions per sequence of a language model, prompt and output together.
        quantization: of a language model: `fp8`, `int8`, `int4`, or one format per part; see `Quantization`. None: its
            dtype.

    Returns:
        The model itself.

    Raises:
        ParameterError: the model is another one, on another device, of another dtype or quantized, or there is no such
            quantization.
        CheckpointError, ConfigError: its tensors are not those of its configuration, or of this model.
    """
    if not isinstance(model, HiggsAudioV2ForConditionalGeneration | HiggsAudioV2TokenizerModel):
        raise ParameterError(
            "model must be a HiggsAudioV2ForConditionalGeneration or a HiggsAudioV2TokenizerModel, "
            f"got a {type(model).__name__}"
        )
    if isinstance(model, WithoutWeights):
        raise ParameterError("model must have its own weights, got one from higgs_native's from_pretrained")
    check_cache_length(max_cache_length)
    quantization = Quantization.parse(quantization)
    pack: Callable[[Any], HiggsAudioModel | HiggsAudioTokenizer]
    if isinstance(model, HiggsAudioV2TokenizerModel):
        pack = _native_audio_tokenizer
    else:
        pack = partial(_native_model, max_cache_length=max_cache_length, quantization=quantization)
    native = pack(model)
    restore(model)
    model.higgs_native_state = weights_state(model)
    model.higgs_native_pack = pack
    model.higgs_native = native
    plain: type = type(model)
    model.__class__ = accelerated_class(plain)
    return model


def restore(model: Model) -> Model:
    """Restore the model's own methods, free the memory of `accelerate`, and return the model.

    Raises:
        ParameterError: the model came from `from_pretrained` of this module, and has no weights of its own.
    """
    if isinstance(model, WithoutWeights):
        raise ParameterError("model must have its own weights, got one from higgs_native's from_pretrained")
    if isinstance(model, Accelerated):
        for name in vars(model).keys() - plain_state(model).keys():
            delattr(model, name)
        model.__class__ = type(model).plain_class
    return model


def _native_model(
    model: HiggsAudioV2ForConditionalGeneration, max_cache_length: int, quantization: Quantization
) -> HiggsAudioModel:
    device = _checked_device(model)
    config = HiggsAudioConfig.from_dict(model.config.to_dict())
    return HiggsAudioModel(config, ModelWeights(model, config, quantization), None, device, max_cache_length)


def _native_audio_tokenizer(model: HiggsAudioV2TokenizerModel) -> HiggsAudioTokenizer:
    device = _checked_device(model)
    if model.dtype != torch.float32:
        raise ParameterError(f"the audio tokenizer must be in torch.float32, got {model.dtype}")
    state = model.state_dict()
    check_plain(state, model.device)
    config = HiggsAudioTokenizerConfig.from_dict(model.config.to_dict())
    return HiggsAudioTokenizer(config, convert(state, config), device)


def _checked_device(model: Model) -> torch.device:
    """The device to run on.

    Raises:
        ParameterError: the model is quantized, or on a device that the engine has no kernels for.
    """
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None:
        method = quantizer.quantization_config.quant_method
        raise ParameterError(
            f"model must not be quantized, got one of {getattr(method, 'value', method)}; load it without "
            "quantization_config: accelerate(model, quantization=...) quantizes it"
        )
    if model.device.type not in ("cpu", "cuda"):
        raise ParameterError(f"model must be on cpu or cuda, got {model.device}")
    return checked_device(model.device)
