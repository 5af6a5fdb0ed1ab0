"""Loaded models of transformers, made native in place."""

import torch
from transformers import (
    HiggsAudioV2ForConditionalGeneration,
    HiggsAudioV2TokenizerModel,
)

from higgs_native.audio_tokenizer.checkpoint import convert
from higgs_native.audio_tokenizer.config import HiggsAudioTokenizerConfig
from higgs_native.audio_tokenizer.tokenizer import HiggsAudioTokenizer
from higgs_native.compat.transformers.classes import Accelerated, Model, WithoutWeights, accelerated_class
from higgs_native.compat.transformers.weights import ModelWeights
from higgs_native.errors import ParameterError
from higgs_native.generation.engine import HiggsAudioModel
from higgs_native.model.config import HiggsAudioConfig
from higgs_native.model.quantization import Quantization
from higgs_native.model.transformer import DEFAULT_CACHE_LENGTH, check_cache_length
from higgs_native.ops.device import checked_device


def accelerate(
    model: Model, max_cache_length: int = DEFAULT_CACHE_LENGTH, quantization: str | Quantization | None = None
) -> Model:
    """Let a language model's `generate`, or an audio tokenizer's `encode` and `decode`, run natively.

    The engine shares a language model's embeddings and norms, and packs its matrices; it copies an audio tokenizer's
    tensors. Memory then holds matrices and copies twice, and later changes of the model have no effect before the next
    call. `restore` undoes it. Until then the model's class is a subclass of its former one, of the same name, and
    copying or pickling the model raises ParameterError.

    `generate` takes `generation_config`, `max_new_tokens`, `do_sample`, `temperature`, `top_k`, `top_p`,
    `ras_win_len` and `ras_win_max_num_repeat`, `num_return_sequences`, `return_dict_in_generate`, `output_scores`,
    `output_logits`, `streamer` (one sequence), and batches with left padding. Differences from transformers:

    - draws depend on torch's seed, but differ from those of transformers;
    - repetition-aware sampling counts a row's own frames, and not the padding after them;
    - each row follows its own prompt, while in transformers a row that ends in `<|audio_out_bos|>` restarts the delay
      pattern of all rows;
    - the logits after a row's end are zero, and outputs carry no gradients.

    Other arguments, such as attentions, hidden states, other logits processors or stopping criteria, raise
    ParameterError: `restore(model)` first, to generate with the plain model.

    Args:
        model: on the CPU or a GPU, where it then runs; a language model in float32, bfloat16 or float16, an audio
            tokenizer in float32.
        max_cache_length: positions per sequence of a language model, prompt and output together.
        quantization: of a language model: `fp8`, `int8`, `int4`, or one format per part; see `Quantization`. None: its
            dtype.

    Returns:
        The model itself.

    Raises:
        ParameterError: the model is another one, on another device or of another dtype, or there is no such
            quantization.
        CheckpointError, ConfigError: its shapes are not those of its configuration, or of this model.
    """
    if not isinstance(model, HiggsAudioV2ForConditionalGeneration | HiggsAudioV2TokenizerModel):
        raise ParameterError(
            "model must be a HiggsAudioV2ForConditionalGeneration or a HiggsAudioV2TokenizerModel, "
            f"got a {type(model).__name__}"
        )
    if isinstance(model, WithoutWeights):
        raise ParameterError("model must have its own weights, got one from higgs_native's from_pretrained")
    if model.device.type not in ("cpu", "cuda"):
        raise ParameterError(f"model must be on cpu or cuda, got {model.device}")
    device = checked_device(model.device)
    check_cache_length(max_cache_length)
    quantization = Quantization.parse(quantization)
    if isinstance(model, HiggsAudioV2TokenizerModel):
        native = _native_audio_tokenizer(model, device)
    else:
        config = HiggsAudioConfig.from_dict(model.config.to_dict())
        weights = ModelWeights(model, config, quantization)
        native = HiggsAudioModel(config, weights, None, device, max_cache_length)
    restore(model)
    model.__class__ = accelerated_class(type(model))
    model.higgs_native = native
    return model


def restore(model: Model) -> Model:
    """Restore the model's own methods, free the memory of `accelerate`, and return the model.

    Raises:
        ParameterError: the model came from `from_pretrained` of this module, and has no weights of its own.
    """
    if isinstance(model, WithoutWeights):
        raise ParameterError("model must have its own weights, got one from higgs_native's from_pretrained")
    if isinstance(model, Accelerated):
        _, model.__class__ = type(model).__bases__
        del model.higgs_native
    return model


def _native_audio_tokenizer(model: HiggsAudioV2TokenizerModel, device: torch.device) -> HiggsAudioTokenizer:
    if model.dtype != torch.float32:
        raise ParameterError(f"the audio tokenizer must be in torch.float32, got {model.dtype}")
    config = HiggsAudioTokenizerConfig.from_dict(model.config.to_dict())
    return HiggsAudioTokenizer(config, convert(model.state_dict(), config), device)
