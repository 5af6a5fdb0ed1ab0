"""The classes of native models: subclasses of transformers' own, with the methods that run natively."""

from collections.abc import Callable
from functools import cache, wraps
from typing import Any, ClassVar, SupportsIndex, TypeVar

import torch
from transformers import (
    HiggsAudioV2ForConditionalGeneration,
    HiggsAudioV2TokenizerModel,
)
from transformers.models.higgs_audio_v2.generation_higgs_audio_v2 import (
    HiggsAudioV2GenerationOutput,
)
from transformers.models.higgs_audio_v2_tokenizer.modeling_higgs_audio_v2_tokenizer import (
    HiggsAudioV2TokenizerDecoderOutput,
    HiggsAudioV2TokenizerEncoderOutput,
)
from typing_extensions import Never

from higgs_native.audio_tokenizer.tokenizer import HiggsAudioTokenizer
from higgs_native.compat.placement import check_stays
from higgs_native.compat.transformers.decoding import decode_frames, unsupported
from higgs_native.compat.transformers.weights import weights_state
from higgs_native.convention import Convention
from higgs_native.errors import AudioError, ParameterError, short_repr
from higgs_native.generation.model import HiggsAudioModel
from higgs_native.utils.checks import check_flag, check_number


Model = TypeVar("Model", HiggsAudioV2ForConditionalGeneration, HiggsAudioV2TokenizerModel)
Native = HiggsAudioModel | HiggsAudioTokenizer


class Accelerated:
    """Base of the classes that precede a model's own class while the model is accelerated.

    The methods belong to the class: a bound method in an attribute would keep the model alive in a circle. Whatever
    makes a new object of such a class, a call, a copy or a pickle, makes a plain model, which `accelerate` takes.

    Attributes:
        plain_class: the model's own class.
        higgs_native: what its methods run.
        higgs_native_pack: packs the model's weights, and returns what its methods run.
        higgs_native_state: the `weights_state` that was packed.
    """

    plain_class: ClassVar[type]
    higgs_native: Native | None
    higgs_native_pack: Callable[..., Native]
    higgs_native_state: tuple | None

    def __new__(cls, *arguments: Any, **options: Any) -> HiggsAudioV2ForConditionalGeneration:
        return cls.plain_class(*arguments, **options)

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple:
        return object.__new__, (self.plain_class,), plain_state(self)

    def _native(self) -> Native:
        """The native model, packed anew if the model's weights have changed."""
        state = weights_state(self)
        if state != self.higgs_native_state:
            self.higgs_native = self.higgs_native_state = None  # frees its memory before the next one takes as much
            self.higgs_native = self.higgs_native_pack(self)
            self.higgs_native_state = state
        assert self.higgs_native is not None
        return self.higgs_native


def plain_state(model: Accelerated) -> dict[str, Any]:
    """The attributes that the model has without acceleration."""
    return {name: value for name, value in vars(model).items() if not name.startswith("higgs_native")}


class Generating(Accelerated):
    """A language model whose loop over frames is native."""

    def _sample(self, *arguments: Any, **options: Any) -> HiggsAudioV2GenerationOutput | torch.Tensor:
        native = self._native()
        assert isinstance(native, HiggsAudioModel)
        return decode_frames(native, self, *arguments, **options)


class Tokenizing(Accelerated):
    """An audio tokenizer that encodes and decodes natively."""

    # The class that is mixed in has these.
    config: Any
    quantizer: Any

    @wraps(HiggsAudioV2TokenizerModel.encode)
    def encode(
        self, input_values: torch.Tensor, bandwidth: float | None = None, return_dict: bool | None = None
    ) -> torch.Tensor | HiggsAudioV2TokenizerEncoderOutput:
        native = self._native()
        assert isinstance(native, HiggsAudioTokenizer)
        _check_tensor("input_values", input_values)
        if input_values.dim() != 3 or input_values.shape[1] != 1:
            raise AudioError(f"input_values must have shape [batch, 1, samples], got {list(input_values.shape)}")
        shortest = native.config.min_samples
        if len(input_values) == 0 or input_values.shape[2] < shortest:
            raise AudioError(
                f"input_values must have a row and {shortest} samples or more, got shape {list(input_values.shape)}"
            )
        if not input_values.isfinite().all():
            raise AudioError("input_values must be finite, got NaN or infinity")
        bandwidths = self.config.target_bandwidths
        check_number("bandwidth", bandwidth, optional=True)
        if bandwidth is not None and bandwidth not in bandwidths:
            raise ParameterError(f"bandwidth must be one of {bandwidths}, got {short_repr(bandwidth)}")
        levels = self.quantizer.get_num_quantizers_for_bandwidth(bandwidths[-1] if bandwidth is None else bandwidth)
        waveforms = input_values[:, 0].detach().to("cpu", torch.float32).numpy()
        rows = [native.encode_waveform(waveform, Convention.TRANSFORMERS)[:levels] for waveform in waveforms]
        codes = torch.stack(rows).to(input_values.device)
        return HiggsAudioV2TokenizerEncoderOutput(codes) if self._wants_dict(return_dict) else codes

    @wraps(HiggsAudioV2TokenizerModel.decode)
    def decode(
        self, audio_codes: torch.Tensor, return_dict: bool | None = None
    ) -> torch.Tensor | HiggsAudioV2TokenizerDecoderOutput:
        native = self._native()
        assert isinstance(native, HiggsAudioTokenizer)
        _check_tensor("audio_codes", audio_codes)
        if audio_codes.dim() != 3 or audio_codes.shape[1] != native.num_codebooks:
            raise unsupported(
                f"audio_codes of shape {list(audio_codes.shape)}, not [batch, {native.num_codebooks}, *]"
            )
        if len(audio_codes) == 0:
            raise AudioError(f"audio_codes must have at least one row, got shape {list(audio_codes.shape)}")
        audio = torch.stack([native.decode(codes) for codes in audio_codes])[:, None].to(audio_codes.device)
        return HiggsAudioV2TokenizerDecoderOutput(audio) if self._wants_dict(return_dict) else audio

    def _wants_dict(self, return_dict: bool | None) -> bool:
        if return_dict is None:
            return self.config.return_dict
        check_flag("return_dict", return_dict)
        return return_dict


def _check_tensor(name: str, value: Any) -> None:
    """Raise AudioError unless `value` is a dense tensor of numbers with memory."""
    is_tensor = isinstance(value, torch.Tensor)
    if not is_tensor or value.is_meta or value.layout != torch.strided or value.is_complex():
        got = f"a {value.dtype} tensor of {value.layout} on {value.device}" if is_tensor else type(value).__name__
        raise AudioError(f"{name} must be a dense tensor of numbers, got {got}")


@cache
def accelerated_class(plain: type[Model]) -> type[Model]:
    """The class of accelerated models of the class `plain`."""
    methods = Generating if issubclass(plain, HiggsAudioV2ForConditionalGeneration) else Tokenizing
    # The name stays: transformers writes it into the files that it saves.
    names = {"__module__": plain.__module__, "__qualname__": plain.__qualname__, "plain_class": plain}
    return type(plain.__name__, (methods, plain), names)


def _needs_weights(name: str, what: str | None = None) -> Callable[..., Never]:
    """Return the method `name` of a model without weights, which raises; the message calls it `what`."""

    @wraps(getattr(HiggsAudioV2ForConditionalGeneration, name))
    def method(self: "WithoutWeights", *arguments: Any, **options: Any) -> Never:
        raise ParameterError(
            f"{what or name} needs the model's own weights, and this model can only generate; "
            "HiggsAudioV2ForConditionalGeneration.from_pretrained loads the plain model"
        )

    return method


class WithoutWeights(Generating, HiggsAudioV2ForConditionalGeneration):
    """A model whose tensors have no memory."""

    plain_class = HiggsAudioV2ForConditionalGeneration

    forward = _needs_weights("forward")
    state_dict = _needs_weights("state_dict")
    load_state_dict = _needs_weights("load_state_dict")
    save_pretrained = _needs_weights("save_pretrained")
    push_to_hub = _needs_weights("push_to_hub")
    __reduce_ex__ = _needs_weights("__reduce_ex__", "copying or pickling")

    def _native(self) -> HiggsAudioModel:
        assert isinstance(self.higgs_native, HiggsAudioModel)
        return self.higgs_native

    @property
    def device(self) -> torch.device:
        """The device that the engine runs on, and that inputs must be on."""
        return self._native().device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights that are not quantized."""
        return self._native().dtype

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "WithoutWeights":
        """Called by `to`, `cuda`, `cpu`, `half` and the like for each tensor: here nothing may change."""
        check_stays(self.dtype, self.device, fn)
        return self
