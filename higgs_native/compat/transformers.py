"""transformers' HiggsAudioV2ForConditionalGeneration and HiggsAudioV2TokenizerModel, run by the native engine.

    from higgs_native.compat.transformers import accelerate

    model = accelerate(HiggsAudioV2ForConditionalGeneration.from_pretrained(name))
    audio = model.generate(**inputs, max_new_tokens=1024)

`from_pretrained` here loads a language model that has no other weights than those of the engine.

The arguments of `generate` are read, checked and completed by transformers' own; only its loop over frames is
replaced. So everything else of the model, and what `generate` returns, stay what they were.
"""

import inspect
import os
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial, wraps
from typing import Any, TypeVar

import torch
from typing_extensions import Never

from higgs_native import ops
from higgs_native.audio_tokenizer.checkpoint import convert
from higgs_native.audio_tokenizer.config import HiggsAudioTokenizerConfig
from higgs_native.audio_tokenizer.tokenizer import HiggsAudioTokenizer
from higgs_native.convention import Convention
from higgs_native.errors import AudioError, CheckpointError, ConfigError, ParameterError, PromptError
from higgs_native.generation.engine import HiggsAudioModel, generate_batch
from higgs_native.generation.sampling_params import SamplingParams
from higgs_native.generation.sequence import GenerationRequest
from higgs_native.model.checkpoint import TEXT_LM_HEAD, expected_tensors, resolve_folder, transformers_name
from higgs_native.model.config import HiggsAudioConfig
from higgs_native.model.quantization import Quantization
from higgs_native.model.transformer import DEFAULT_CACHE_LENGTH, check_cache_length, checked_dtype
from higgs_native.ops import PackedWeight
from higgs_native.ops.device import checked_device
from higgs_native.utils.checks import expanded_path
from higgs_native.utils.files import read_json_object


try:
    from transformers import (
        HiggsAudioV2Config,
        HiggsAudioV2ForConditionalGeneration,
        HiggsAudioV2TokenizerModel,
        LogitsProcessorList,
        StoppingCriteriaList,
    )
    from transformers.generation import (
        EosTokenCriteria,
        GenerationConfig,
        MaxLengthCriteria,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )
    from transformers.models.higgs_audio_v2.generation_higgs_audio_v2 import (
        HiggsAudioV2DelayPatternLogitsProcessor,
        HiggsAudioV2GenerationOutput,
    )
    from transformers.models.higgs_audio_v2_tokenizer.modeling_higgs_audio_v2_tokenizer import (
        HiggsAudioV2TokenizerDecoderOutput,
        HiggsAudioV2TokenizerEncoderOutput,
    )
except ImportError as error:
    raise ImportError(
        f"higgs_native.compat.transformers needs transformers 5.23: pip install 'higgs-native[transformers]' ({error})"
    ) from error


_USED = ("attention_mask", "audio_input_ids", "audio_input_ids_mask", "position_ids", "past_key_values")
_WITHOUT_EFFECT = ("use_cache", "logits_to_keep")
# Of `from_pretrained`: how transformers would load or run the same weights.
_LOADED_WITHOUT = ("attn_implementation", "low_cpu_mem_usage", "trust_remote_code", "use_safetensors")


Model = TypeVar("Model", HiggsAudioV2ForConditionalGeneration, HiggsAudioV2TokenizerModel)


def accelerate(
    model: Model, max_cache_length: int = DEFAULT_CACHE_LENGTH, quantization: str | Quantization | None = None
) -> Model:
    """Let a language model's `generate`, or an audio tokenizer's `encode` and `decode`, run natively.

    A language model's embeddings and norms are shared with it. Its matrices are packed for the kernels, and an audio
    tokenizer's tensors copied, so that they are there twice; changes of the model's own after this call have no effect
    before the next one. `restore` undoes it. Until then the model's class is a subclass of what it was, of the same
    name, and copying or pickling it raises ParameterError.

    `generate` takes the arguments it took before: `generation_config`, `max_new_tokens`, `do_sample`, `temperature`,
    `top_k`, `top_p`, `ras_win_len` and `ras_win_max_num_repeat`, `num_return_sequences`, `return_dict_in_generate`,
    `output_scores`, `output_logits`, `streamer` (one sequence), batches with left padding. Draws depend on torch's
    seed, and are others than transformers'. Repetition-aware sampling looks back at a row's own frames, where
    transformers also counts the padding behind them. Each row follows its own prompt, where in transformers a row that
    ends in `<|audio_out_bos|>` begins all rows' delay pattern anew. After a row's end its logits are zero, and outputs
    carry no gradients. Anything else, such as
    attentions, hidden states, other logits processors or stopping criteria, raises ParameterError: `restore(model)`
    first, to generate it by the plain model.

    Args:
        model: on the CPU or a GPU, where it then runs; a language model in float32, bfloat16 or float16, an audio
            tokenizer in float32.
        max_cache_length: how many positions a language model's sequence may have, prompt and output.
        quantization: of a language model: `fp8`, `int8`, `int4`, or a format for each part; see `Quantization`. None:
            its dtype.

    Returns:
        The model itself.

    Raises:
        ParameterError: the model is another one, on another device or of another dtype, or there is no such
            quantization.
        CheckpointError, ConfigError: its shapes are not those of its configuration, or of this model.
    """
    if not isinstance(model, HiggsAudioV2ForConditionalGeneration | HiggsAudioV2TokenizerModel):
        raise ParameterError(
            f"model is a {type(model).__name__}; expected a HiggsAudioV2ForConditionalGeneration or a "
            "HiggsAudioV2TokenizerModel"
        )
    if isinstance(model, _WithoutWeights):
        raise ParameterError("the model is native already: it comes from higgs_native's from_pretrained")
    if model.device.type not in ("cpu", "cuda"):
        raise ParameterError(f"the model is on {model.device}; the engine runs on cpu and cuda")
    device = checked_device(model.device)
    check_cache_length(max_cache_length)
    quantization = Quantization.parse(quantization)
    if isinstance(model, HiggsAudioV2TokenizerModel):
        native = _native_audio_tokenizer(model, device)
    else:
        config = HiggsAudioConfig.from_dict(model.config.to_dict())
        weights = _ModelWeights(model, config, quantization)
        native = HiggsAudioModel(config, weights, None, device, max_cache_length)
    restore(model)
    model.__class__ = _accelerated(type(model))
    model.higgs_native = native
    return model


def restore(model: Model) -> Model:
    """Let the model's methods be transformers' own again, free what `accelerate` made, and return the model.

    Raises:
        ParameterError: the model came from `from_pretrained` of this module, and has no weights of its own.
    """
    if isinstance(model, _WithoutWeights):
        raise ParameterError("the model has no weights of its own; load it with transformers to have a plain model")
    if isinstance(model, _Accelerated):
        _, model.__class__ = type(model).__bases__
        del model.higgs_native
    return model


def from_pretrained(
    pretrained_model_name_or_path: str | os.PathLike,
    dtype: str | torch.dtype | None = None,
    max_cache_length: int = DEFAULT_CACHE_LENGTH,
    quantization: str | Quantization | None = None,
    device: str | torch.device | None = None,
    *,
    torch_dtype: str | torch.dtype | None = None,
    device_map: str | int | torch.device | dict[str, str | int | torch.device] | None = None,
    revision: str | None = None,
    **options: Any,
) -> HiggsAudioV2ForConditionalGeneration:
    """Load a checkpoint of transformers' layout into a model of which only `generate` can be called.

    transformers' own modules get no weights, so that memory holds them once, packed. `to`, `cuda`, `half` and the like
    return the model where they ask for what it is already, and raise ParameterError otherwise.

    Args:
        pretrained_model_name_or_path: a folder, or a Hub name.
        dtype: float32, bfloat16, float16, or `auto`, the default: as stored.
        max_cache_length, quantization: as for `accelerate`.
        device: `cpu`, the default, `cuda`, `cuda:1`, ..., or `auto`: a GPU where there is one.
        torch_dtype: the older name of `dtype`.
        device_map: transformers' way to name the device: a device, its number, or a dictionary of one device alone.
        revision: of a Hub name.
        options: `attn_implementation`, `low_cpu_mem_usage`, `trust_remote_code` and `use_safetensors` have no effect.

    Raises:
        CheckpointError, ConfigError: the files are missing, damaged, or of another layout.
        ParameterError: the dtype, the length, the quantization, the device or another option can't be used.
    """
    unknown = [name for name in options if name not in _LOADED_WITHOUT]
    if unknown:
        raise ParameterError(
            f"from_pretrained does not take {', '.join(unknown)}; "
            "load the model with transformers' own from_pretrained, and accelerate(model)"
        )
    name = expanded_path("pretrained_model_name_or_path", pretrained_model_name_or_path)
    chosen_device = _one_device(device, device_map)
    chosen_dtype = next((given for given in (dtype, torch_dtype) if given is not None), "auto")
    folder = resolve_folder(name if revision is None or os.path.isdir(name) else f"{name}@{revision}")
    raw = read_json_object(folder / "config.json")
    if "text_config" in raw or raw.get("model_type") != "higgs_audio_v2":
        raise ConfigError(f"{folder} is not of transformers' layout; load it with higgs_native.HiggsAudio")
    native = HiggsAudioModel.from_pretrained(folder, chosen_device, chosen_dtype, max_cache_length, quantization)
    with torch.device("meta"):
        model = _WithoutWeights(HiggsAudioV2Config.from_dict(raw)).eval()
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    model.higgs_native = native
    return model


def _one_device(device: str | torch.device | None, device_map: Any) -> torch.device:
    """The device that `device` or `device_map` names."""
    if device is not None and device_map is not None:
        raise ParameterError("both device and device_map are given; expected one of them")
    if device_map is None:
        return checked_device("cpu" if device is None else device)
    places = list(device_map.values()) if isinstance(device_map, dict) else [device_map]
    devices = {checked_device(f"cuda:{place}" if isinstance(place, int) else place) for place in places}
    if len(devices) != 1:
        raise ParameterError(f"device_map must name one device for the whole model, got {device_map!r}")
    return devices.pop()


class _Accelerated:
    """What stands before a model's own class while it is accelerated. Methods of the class, and not of the model:
    bound, they hold it, and it does not hold them.

    Attributes:
        higgs_native: what its methods run.
    """

    higgs_native: HiggsAudioModel | HiggsAudioTokenizer

    def _native(self) -> HiggsAudioModel | HiggsAudioTokenizer:
        if self.device != self.higgs_native.device:
            raise ParameterError(
                f"the model is on {self.device}, but was accelerated on {self.higgs_native.device}; "
                "accelerate(model) again"
            )
        return self.higgs_native

    def __reduce_ex__(self, protocol: int) -> Never:
        raise ParameterError("an accelerated model can't be copied or pickled; restore(model) first")


class _Generating(_Accelerated):
    """A language model whose loop over frames is native."""

    @wraps(HiggsAudioV2ForConditionalGeneration.generate)
    def generate(self, *arguments: Any, **options: Any) -> HiggsAudioV2GenerationOutput | torch.Tensor:
        plain = super().generate
        given = inspect.signature(plain).bind(*arguments, **options).arguments
        if given.get("custom_generate") is not None:
            raise _unsupported("custom_generate")
        # transformers gives a custom loop no streamer.
        loop = partial(_decode, self._native(), given.get("streamer"))
        return plain(*arguments, **options, custom_generate=loop)


class _Tokenizing(_Accelerated):
    """An audio tokenizer that encodes and decodes natively."""

    @wraps(HiggsAudioV2TokenizerModel.encode)
    def encode(
        self, input_values: torch.Tensor, bandwidth: float | None = None, return_dict: bool | None = None
    ) -> torch.Tensor | HiggsAudioV2TokenizerEncoderOutput:
        native = self._native()
        if input_values.dim() != 3 or input_values.shape[1] != 1:
            raise AudioError(f"input_values must have shape [batch, 1, samples], got {list(input_values.shape)}")
        bandwidths = self.config.target_bandwidths
        if bandwidth is not None and bandwidth not in bandwidths:
            raise ParameterError(f"bandwidth must be one of {bandwidths}, got {bandwidth}")
        levels = self.quantizer.get_num_quantizers_for_bandwidth(bandwidths[-1] if bandwidth is None else bandwidth)
        rows = [native.encode(row[0], native.sampling_rate, "transformers")[:levels] for row in input_values]
        codes = torch.stack(rows).to(input_values.device)
        wants_dict = self.config.return_dict if return_dict is None else return_dict
        return HiggsAudioV2TokenizerEncoderOutput(codes) if wants_dict else codes

    @wraps(HiggsAudioV2TokenizerModel.decode)
    def decode(
        self, audio_codes: torch.Tensor, return_dict: bool | None = None
    ) -> torch.Tensor | HiggsAudioV2TokenizerDecoderOutput:
        native = self._native()
        if audio_codes.dim() != 3 or audio_codes.shape[1] != native.num_codebooks:
            raise _unsupported(
                f"audio_codes of shape {list(audio_codes.shape)}, not [batch, {native.num_codebooks}, *]"
            )
        audio = torch.stack([native.decode(codes) for codes in audio_codes])[:, None].to(audio_codes.device)
        wants_dict = self.config.return_dict if return_dict is None else return_dict
        return HiggsAudioV2TokenizerDecoderOutput(audio) if wants_dict else audio


@cache
def _accelerated(plain: type[Model]) -> type[Model]:
    """The class of accelerated models of the class `plain`."""
    methods = _Generating if issubclass(plain, HiggsAudioV2ForConditionalGeneration) else _Tokenizing
    # The name stays: transformers writes it into the files that it saves.
    return type(plain.__name__, (methods, plain), {"__module__": plain.__module__, "__qualname__": plain.__qualname__})


def _needs_weights(name: str, what: str | None = None) -> Callable[..., Never]:
    """The method `name` of a model without weights; `what` it would do, for the message."""

    @wraps(getattr(HiggsAudioV2ForConditionalGeneration, name))
    def method(self: "_WithoutWeights", *arguments: Any, **options: Any) -> Never:
        raise ParameterError(
            f"{what or name}: this model has no weights of its own, and can only generate; "
            "HiggsAudioV2ForConditionalGeneration.from_pretrained loads the plain one, which can"
        )

    return method


class _WithoutWeights(_Generating, HiggsAudioV2ForConditionalGeneration):
    """A model whose tensors have no memory."""

    forward = _needs_weights("forward")
    state_dict = _needs_weights("state_dict")
    load_state_dict = _needs_weights("load_state_dict")
    save_pretrained = _needs_weights("save_pretrained")
    push_to_hub = _needs_weights("push_to_hub")
    __reduce_ex__ = _needs_weights("__reduce_ex__", "copying or pickling")

    @property
    def device(self) -> torch.device:
        """Where it runs, and inputs belong."""
        return self.higgs_native.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights that are not quantized."""
        return self.higgs_native.dtype

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "_WithoutWeights":
        """What `to`, `cuda`, `cpu`, `half` and the like do to each tensor: here nothing may change."""
        try:
            asked = fn(torch.empty(0, dtype=self.dtype, device=self.device))
            is_present = (asked.dtype, asked.device) == (self.dtype, self.device)
            wish = f"can't be changed to {asked.dtype} on {asked.device}"
        except (AssertionError, RuntimeError) as error:  # torch has no such device
            is_present, wish = False, f"can't be moved ({str(error).splitlines()[0]})"
        if is_present:
            return self
        raise ParameterError(
            f"the model is in {self.dtype} on {self.device} and {wish}; "
            "load it as it shall be: from_pretrained(name, dtype=..., device=...)"
        )


def _native_audio_tokenizer(model: HiggsAudioV2TokenizerModel, device: torch.device) -> HiggsAudioTokenizer:
    if model.dtype != torch.float32:
        raise ParameterError(f"the audio tokenizer is in {model.dtype}; expected torch.float32")
    config = HiggsAudioTokenizerConfig.from_dict(model.config.to_dict())
    return HiggsAudioTokenizer(config, convert(model.state_dict(), config), device)


class _ModelWeights:
    """`Weights` of a loaded model: tables and norms are its own tensors, matrices are packed."""

    def __init__(
        self, model: HiggsAudioV2ForConditionalGeneration, config: HiggsAudioConfig, quantization: Quantization
    ) -> None:
        self.dtype = checked_dtype(model.dtype)
        self.quantization = quantization
        state = model.state_dict()
        self._tensors = {}
        for name, shape in expected_tensors(config).items():
            tensor = state.get(transformers_name(name))
            if tensor is None and name == TEXT_LM_HEAD:
                continue
            if tensor is None:
                raise CheckpointError(
                    f"the model has no {transformers_name(name)}; merge adapters and parametrizations"
                )
            if tuple(tensor.shape) != shape:
                raise CheckpointError(
                    f"{transformers_name(name)} has shape {list(tensor.shape)}, but the configuration asks for "
                    f"{list(shape)}"
                )
            self._tensors[name] = tensor.to(self.dtype).contiguous()

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def tensor(self, name: str) -> torch.Tensor:
        return self._tensors[name]

    def linear(self, part: str, name: str, *names: str) -> PackedWeight:
        return ops.pack_linear(*(self._tensors[n] for n in names or (name,)), **self._packing(part))

    def gate_up(self, part: str, name: str, gate: str, up: str) -> PackedWeight:
        return ops.pack_gate_up(self._tensors[gate], self._tensors[up], **self._packing(part))

    def _packing(self, part: str) -> dict[str, object]:
        return {"format": getattr(self.quantization, part), "clip": self.quantization.clip}


def _decode(
    native: HiggsAudioModel,
    streamer: Any,
    model: HiggsAudioV2ForConditionalGeneration,
    input_ids: torch.Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    **inputs: Any,
) -> HiggsAudioV2GenerationOutput | torch.Tensor:
    """The loop over frames: what `HiggsAudioV2GenerationMixin._sample` takes and returns."""
    config = model.config
    for name in ("output_attentions", "output_hidden_states"):
        if getattr(generation_config, name):
            raise _unsupported(name)
    for name, value in inputs.items():
        if name not in (*_USED, *_WITHOUT_EFFECT) and value is not None:
            raise _unsupported(name)
    if streamer is not None and len(input_ids) > 1:
        raise _unsupported("a streamer for more than one sequence")
    if inputs.get("past_key_values") is not None and inputs["past_key_values"].get_seq_length():
        raise _unsupported("past_key_values")
    max_new_tokens = _max_new_tokens(stopping_criteria, config.eos_token_id, input_ids.shape[1])
    sampling = _sampling(logits_processor, generation_config, max_new_tokens)
    if input_ids.shape[1] + max_new_tokens > native.max_cache_length:
        raise ParameterError(
            f"the prompt's {input_ids.shape[1]} positions and {max_new_tokens} new ones exceed the "
            f"{native.max_cache_length} of accelerate(model, max_cache_length=...)"
        )

    requests = _requests(native, input_ids, inputs, sampling)
    ids = input_ids
    if streamer is not None:
        last = ids[:, -1]

        def on_frame(frame: torch.Tensor) -> None:
            nonlocal last
            last = _next_ids(model, frame[None].to(last.device), last)
            streamer.put(last)

        requests = [replace(request, on_frame=on_frame) for request in requests]
    wants_logits = generation_config.return_dict_in_generate and (
        generation_config.output_logits or generation_config.output_scores
    )
    outputs = generate_batch(native, requests, wants_logits)
    if streamer is not None:
        streamer.end()

    segments = [output.audio_segments[0].T for output in outputs]
    steps = max(map(len, segments))
    shape = len(segments), steps, config.num_codebooks
    frames = torch.full(shape, config.audio_stream_eos_id, device=input_ids.device)
    for row, segment in enumerate(segments):
        frames[row, : len(segment)] = segment
    before = inputs.get("audio_input_ids")
    audio = frames if before is None else torch.cat([before, frames], dim=1)
    if not generation_config.return_dict_in_generate:
        return audio

    scores, raw_logits = (), ()
    for step in range(steps):
        if wants_logits:
            size = config.num_codebooks * config.codebook_size
            logits = torch.zeros(len(outputs), size, device=input_ids.device)
            for row, output in enumerate(outputs):
                if step < len(output.audio_logits):
                    logits[row] = output.audio_logits[step].flatten()
            raw_logits += (logits,)
            if generation_config.output_scores:
                shape = len(outputs), config.num_codebooks, config.codebook_size
                scores += (logits_processor(ids, logits).view(shape),)
        ids = torch.cat([ids, _next_ids(model, frames[:, step], ids[:, -1])[:, None]], dim=1)
    return HiggsAudioV2GenerationOutput(
        sequences=ids,
        scores=scores if generation_config.output_scores else None,
        logits=raw_logits if generation_config.output_logits else None,
        audio_sequences=audio,
    )


def _requests(
    native: HiggsAudioModel, input_ids: torch.Tensor, inputs: dict[str, Any], sampling: SamplingParams
) -> list[GenerationRequest]:
    """The rows of a batch, without their padding."""
    if not input_ids.numel():
        raise PromptError(f"input_ids must have at least one row and one position, got shape {list(input_ids.shape)}")
    mask = inputs.get("attention_mask")
    mask = torch.ones_like(input_ids, dtype=torch.bool) if mask is None else mask.bool()
    if not (mask.int().diff(dim=1) >= 0).all() or not mask[:, -1].all():
        raise _unsupported("padding other than on the left")
    positions = inputs.get("position_ids")
    if positions is not None and not torch.equal(positions.expand_as(mask)[mask], (mask.cumsum(dim=1) - 1)[mask]):
        raise _unsupported("position_ids other than those of the attention mask")
    rows, codebooks = len(input_ids), native.config.num_codebooks
    audio, audio_mask = inputs.get("audio_input_ids"), inputs.get("audio_input_ids_mask")
    if audio is None:
        if audio_mask is not None:
            raise PromptError("audio_input_ids_mask is given without audio_input_ids")
        audio = torch.empty(rows, 0, codebooks, dtype=torch.int64, device=input_ids.device)
    if audio.is_floating_point() or audio.dim() != 3 or (audio.shape[0], audio.shape[2]) != (rows, codebooks):
        raise PromptError(
            f"audio_input_ids must be integers of shape [{rows}, frames, {codebooks}], "
            f"got {audio.dtype} {list(audio.shape)}"
        )
    if audio_mask is None:
        audio_mask = torch.ones(audio.shape[:2], device=audio.device)
    if audio_mask.shape != audio.shape[:2]:
        raise PromptError(
            f"audio_input_ids_mask must have the shape {list(audio.shape[:2])} of audio_input_ids, "
            f"got {list(audio_mask.shape)}"
        )
    # Drawn from torch's own generator, so that torch.manual_seed decides.
    seeds = torch.randint(2**63 - 1, (len(input_ids),)).tolist()
    return [
        GenerationRequest(
            input_ids[row, mask[row]],
            convention=Convention.TRANSFORMERS,
            sampling=replace(sampling, seed=seeds[row]),
            delayed_frames=audio[row, audio_mask[row].bool()],
        )
        for row in range(rows)
    ]


def _sampling(
    processors: LogitsProcessorList, generation_config: GenerationConfig, max_new_tokens: int
) -> SamplingParams:
    """The sampling parameters that transformers' logits processors stand for."""
    values: dict[str, Any] = {"temperature": 1.0, "top_k": None, "top_p": None}
    given = []
    kinds = {TemperatureLogitsWarper: "temperature", TopKLogitsWarper: "top_k", TopPLogitsWarper: "top_p"}
    remaining = list(kinds)  # in this order, once each: as the engine applies them
    for processor in processors:
        kind = type(processor)
        if kind is HiggsAudioV2DelayPatternLogitsProcessor:
            continue
        if kind not in remaining or getattr(processor, "min_tokens_to_keep", 1) != 1:
            raise _unsupported(f"the logits processor {kind.__name__}, or its order or settings")
        remaining = remaining[remaining.index(kind) + 1 :]
        values[kinds[kind]] = getattr(processor, kinds[kind])
        given.append(kind)
    if not generation_config.do_sample:
        if given:
            raise _unsupported("logits processors without do_sample")
        values["temperature"] = 0.0
    # transformers looks for repetitions only where both are set.
    window = getattr(generation_config, "ras_win_len", None)
    repeats = getattr(generation_config, "ras_win_max_num_repeat", None)
    if window is None or repeats is None:
        window, repeats = None, 2
    return SamplingParams(
        **values,
        ras_win_len=window,
        ras_win_max_num_repeat=repeats,
        max_new_tokens=max_new_tokens,
        stop_strings=None,
    )


def _max_new_tokens(criteria: StoppingCriteriaList, eos_token_id: int | None, prompt_length: int) -> int:
    """How many frames there may be; a sequence also ends at its all-EOS frame, whose id is `eos_token_id`."""
    limits = [criterion.max_length for criterion in criteria if isinstance(criterion, MaxLengthCriteria)]
    for criterion in criteria:
        if isinstance(criterion, EosTokenCriteria):
            if eos_token_id is None or criterion.eos_token_id.tolist() != [eos_token_id]:
                raise _unsupported("an eos_token_id other than the model's")
        elif not isinstance(criterion, MaxLengthCriteria):
            raise _unsupported(f"the stopping criterion {type(criterion).__name__}")
    if not any(isinstance(criterion, EosTokenCriteria) for criterion in criteria):
        raise _unsupported("generating without an eos_token_id")
    return min(limits) - prompt_length


def _next_ids(model: HiggsAudioV2ForConditionalGeneration, frames: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    """The text ids [batch] that stand for frames [batch, codebooks], after the ids `last` [batch]."""
    config = model.config
    is_eos = frames == config.audio_stream_eos_id
    ids = torch.full_like(last, config.audio_token_id)
    ids[is_eos.any(dim=1) | (last == config.audio_delay_token_id)] = config.audio_delay_token_id
    ids[is_eos.all(dim=1)] = config.eos_token_id
    return ids


def _unsupported(what: str) -> ParameterError:
    return ParameterError(
        f"{what}: the native engine can't; restore(model), or transformers' from_pretrained, gives the plain model, "
        "which may"
    )
