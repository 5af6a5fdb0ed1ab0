"""Boson's language model, of which `generate` can be called."""

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from typing_extensions import Never

from higgs_native.checkpoint.files import resolve_folder
from higgs_native.checkpoint.hub import hub_options
from higgs_native.checkpoint.quantization import Quantization
from higgs_native.compat.boson.audio_tokenizer import revert_delay_pattern
from higgs_native.compat.boson.config import HiggsAudioConfig
from higgs_native.compat.boson.sampling import sampling_params
from higgs_native.compat.placement import check_stays
from higgs_native.convention import Convention
from higgs_native.errors import ParameterError, PromptError, short_repr
from higgs_native.generation.model import HiggsAudioModel as NativeModel
from higgs_native.generation.model import generate_batch
from higgs_native.generation.requests import GenerationRequest, OnFrame, OnToken
from higgs_native.model.transformer import DEFAULT_CACHE_LENGTH
from higgs_native.utils.checks import check_flag
from higgs_native.utils.tensors import integer_tensor


# Inputs and options of Boson's `generate` that say how to compute, or what the model does not read.
_WITHOUT_EFFECT = ("attention_mask", "audio_out_ids_start_group_loc", "use_cache", "past_key_values_buckets", "reward")


class HiggsAudioGenerationOutput(NamedTuple):
    """The output of `generate`.

    Attributes:
        sequences: [1, S], the prompt's ids and the reply's, of which `<|AUDIO_OUT|>` stands for an audio segment.
        audio_sequences: the audio segments, [codebooks, N] each, still delayed.
    """

    sequences: torch.Tensor
    audio_sequences: list[torch.Tensor]


@dataclass
class KVCacheBucket:
    """A stand-in for Boson's key-value caches: the engine has its own.

    Attributes:
        max_cache_len: the positions that it stands for.
    """

    max_cache_len: int

    def get_seq_length(self) -> int:
        """Return 0: it is empty between calls."""
        return 0

    def reset(self) -> None:
        """Do nothing: it is empty between calls."""


class HiggsAudioModel:
    """A language model that generates.

    Args:
        native: the engine's model.
        config: its configuration under Boson's names.

    Attributes:
        native: the engine's model.
        config: its configuration under Boson's names.
        decode_graph_runners: empty: the engine has its own captured graphs.

    Raises:
        ParameterError: `native` is something else, such as a configuration.
    """

    def __init__(self, native: NativeModel, config: HiggsAudioConfig | None = None) -> None:
        if not isinstance(native, NativeModel):
            raise ParameterError(
                f"HiggsAudioModel must be loaded by from_pretrained, got a {type(native).__name__} to build it from"
            )
        self.native = native
        self.config = config
        self.decode_graph_runners: dict[Any, Any] = {}

    def require_config(self) -> HiggsAudioConfig:
        """Return the configuration; raise ParameterError if the model was built without one."""
        if self.config is None:
            raise ParameterError("config must be a HiggsAudioConfig to generate with, got None")
        return self.config

    def __getattr__(self, name: str) -> Never:
        raise AttributeError(f"the model has no {name}: its weights are packed for the engine, and it only generates")

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        device_map: str | torch.device = "auto",
        torch_dtype: torch.dtype | str | None = None,
        dtype: torch.dtype | str | None = None,
        max_cache_length: int = DEFAULT_CACHE_LENGTH,
        quantization: str | Quantization | None = None,
        **options: Any,
    ) -> "HiggsAudioModel":
        """Load a checkpoint of either layout.

        Args:
            pretrained_model_name_or_path: a folder or a Hub name.
            device_map: the device; by default a GPU if there is one.
            torch_dtype, dtype: of the weights: `auto` (as stored, the default), float32, bfloat16 or float16.
            max_cache_length: the maximum number of positions of a conversation with its reply.
            quantization: see `HiggsAudioServeEngine`.

        Of transformers' other options, those of the Hub have an effect (`revision`, `token`, `cache_dir`,
        `local_files_only`, `force_download`).

        Raises:
            CheckpointError, ConfigError: a checkpoint is missing, damaged, or not one of this model.
            ParameterError: the device, the dtype, the length or the quantization can't be used.
        """
        chosen = next((given for given in (torch_dtype, dtype) if given is not None), "auto")
        folder = resolve_folder(pretrained_model_name_or_path, **hub_options(options))
        native = NativeModel.from_pretrained(folder, device_map, chosen, max_cache_length, quantization)
        return cls(native, HiggsAudioConfig.from_pretrained(folder))

    @property
    def device(self) -> torch.device:
        """The device that it runs on."""
        return self.native.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights that are not quantized."""
        return self.native.dtype

    def to(self, *arguments: Any, **options: Any) -> "HiggsAudioModel":
        """Return the model, which stays where it was loaded.

        Raises:
            ParameterError: another device or dtype is asked for.
        """
        check_stays(self.dtype, self.device, lambda tensor: tensor.to(*arguments, **options))
        return self

    def eval(self) -> "HiggsAudioModel":
        """Return the model, which is not for training."""
        return self

    def named_parameters(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the packed weights by their names, for their count, dtype and device."""
        yield from self.native.named_weights().items()

    def parameters(self) -> Iterator[torch.Tensor]:
        """Yield the packed weights."""
        for _, weight in self.named_parameters():
            yield weight

    def capture_model(self, past_key_values: Any = ()) -> None:
        """Do nothing: the engine captures its graphs itself."""

    def set_audio_special_tokens(self, tokenizer: Any) -> None:
        """Do nothing: the engine reads the ids from the checkpoint."""

    def generate(
        self,
        input_ids: torch.Tensor,
        audio_in_ids: torch.Tensor | None = None,
        audio_in_ids_start: torch.Tensor | None = None,
        audio_out_ids: torch.Tensor | None = None,
        audio_out_ids_start: torch.Tensor | None = None,
        max_new_tokens: int = 1024,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_k: int | None = 50,
        top_p: float | None = 1.0,
        stop_strings: Sequence[str] | str | None = None,
        tokenizer: Any = None,
        ras_win_len: int | None = None,
        ras_win_max_num_repeat: int = 2,
        seed: int | None = None,
        streamer: Any = None,
        **inputs: Any,
    ) -> HiggsAudioGenerationOutput:
        """Generate after the inputs that `HiggsAudioSampleCollator` makes of one sample.

        Args:
            input_ids: [1, S], with a placeholder per recording.
            audio_in_ids, audio_out_ids: [codebooks, frames], the delayed codes of the recordings in system and user
                messages, and of those in assistant messages.
            audio_in_ids_start, audio_out_ids_start: where each of them begins.
            max_new_tokens, temperature, top_k, top_p, stop_strings, ras_win_len, ras_win_max_num_repeat, seed: as for
                `HiggsAudioServeEngine.generate`.
            do_sample: draw; otherwise take the most likely.
            tokenizer: unused: stop strings are those of the model's own tokenizer.
            streamer: gets the prompt, and then each text token and frame: see `AsyncHiggsAudioStreamer`.
            inputs: `attention_mask`, which may mask positions; options of transformers' caches have no effect.

        Raises:
            PromptError: the inputs don't fit each other or the model, or are longer than the cache.
            ParameterError: an option can't be used, or is outside its range.
            CheckpointError: the checkpoint has no text head, and the prompt does not end in `<|audio_out_bos|>`.
        """
        unknown = [name for name, value in inputs.items() if name not in _WITHOUT_EFFECT and value is not None]
        if unknown:
            raise ParameterError(f"generate does not take {', '.join(unknown)}: the model reads ids and codes alone")
        check_flag("do_sample", do_sample)
        sampling = sampling_params(
            temperature if do_sample else 0.0,
            top_k,
            top_p,
            ras_win_len,
            ras_win_max_num_repeat,
            seed,
            max_new_tokens,
            stop_strings,
        )
        if streamer is not None and not (hasattr(streamer, "put") and hasattr(streamer, "end")):
            raise ParameterError(f"streamer must have the methods put and end, got {type(streamer).__name__}")
        ids = integer_tensor("input_ids", input_ids, PromptError)
        if ids.dim() != 2 or len(ids) != 1:
            raise PromptError(f"input_ids must have shape [1, S], got {list(ids.shape)}")
        prompt = _unmasked(ids, inputs.get("attention_mask"))
        audio_in = self._split("audio_in_ids", audio_in_ids, audio_in_ids_start)
        audio_out = self._split("audio_out_ids", audio_out_ids, audio_out_ids_start)
        recordings = self._recordings(prompt, audio_in, audio_out)
        request = GenerationRequest(prompt, recordings, Convention.BOSON, sampling)
        if streamer is not None:
            streamer.put(ids)
            on_frame, on_token = reply_callbacks(streamer.put, self.native.config.audio_out_token_id)
            request = replace(request, on_frame=on_frame, on_token=on_token)
        (output,) = generate_batch(self.native, [request])
        if streamer is not None:
            streamer.end()
        reply = torch.tensor([output.text_ids], dtype=torch.int64, device=ids.device)
        return HiggsAudioGenerationOutput(torch.cat([ids, reply], dim=1), output.audio_segments)

    def _recordings(
        self, prompt: torch.Tensor, audio_in: list[torch.Tensor], audio_out: list[torch.Tensor]
    ) -> list[torch.Tensor]:
        """The codes of all recordings, in the order of their placeholders."""
        config = self.require_config()
        remaining = {config.audio_in_token_idx: audio_in, config.audio_out_token_idx: audio_out}
        placeholders = [token for token in prompt[0].tolist() if token in remaining]
        for token, recordings in remaining.items():
            if placeholders.count(token) != len(recordings):
                raise PromptError(
                    f"input_ids must have a placeholder {token} per recording, "
                    f"got {placeholders.count(token)} for {len(recordings)}"
                )
        return [remaining[token].pop(0) for token in placeholders]

    def _split(self, name: str, joined: torch.Tensor | None, starts: torch.Tensor | None) -> list[torch.Tensor]:
        """The codes [codebooks, frames] of each recording, without BOS, EOS and delay."""
        if joined is None or starts is None:
            return []
        joined = integer_tensor(name, joined, PromptError)
        starts = integer_tensor(f"{name}_start", starts, PromptError)
        if joined.dim() != 2 or starts.dim() != 1:
            raise PromptError(
                f"{name} must have shape [codebooks, frames], and {name}_start one dimension, "
                f"got {list(joined.shape)} and {list(starts.shape)}"
            )
        config = self.require_config()
        bos, eos = config.audio_stream_bos_id, config.audio_stream_eos_id
        recordings = []
        begins = starts.tolist()
        for begin, end in itertools.pairwise([*begins, joined.shape[1]] if begins else ()):
            if not 0 <= begin <= end <= joined.shape[1]:
                raise PromptError(
                    f"{name}_start must ascend from 0 to the {joined.shape[1]} frames, got {short_repr(begins)}"
                )
            codes = revert_delay_pattern(joined[:, begin:end])
            if codes.shape[1] < 2 or (codes[:, 0] != bos).any() or (codes[:, -1] != eos).any():
                raise PromptError(
                    f"{name} must be whole recordings with a delay pattern, got other codes from frame {begin} on"
                )
            recordings.append(codes[:, 1:-1])
        return recordings


def reply_callbacks(put: Callable[[torch.Tensor], None], placeholder: int) -> tuple[OnFrame, OnToken]:
    """Return callbacks that give `put` a reply's text tokens [1] and frames [codebooks], in their order.

    The token `placeholder` comes before the frames of each audio segment.
    """
    in_audio = False

    def on_frame(frame: torch.Tensor) -> None:
        nonlocal in_audio
        if not in_audio:
            put(torch.tensor([placeholder], dtype=torch.int64, device="cpu"))
        in_audio = True
        put(frame)

    def on_token(token: int) -> None:
        nonlocal in_audio
        in_audio = False
        put(torch.tensor([token], dtype=torch.int64, device="cpu"))

    return on_frame, on_token


def _unmasked(ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """The ids [1, S] without masked positions."""
    if mask is None:
        return ids
    is_bool = isinstance(mask, torch.Tensor) and mask.dtype == torch.bool
    mask = integer_tensor("attention_mask", mask.to(torch.uint8) if is_bool else mask, PromptError)
    if mask.shape != ids.shape:
        raise PromptError(f"attention_mask must have the shape {list(ids.shape)} of input_ids, got {list(mask.shape)}")
    return ids[:, mask[0].bool()]
