"""Boson's serving engine."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from typing_extensions import Never

from higgs_native.checkpoint.files import load_tokenizer, resolve_folder
from higgs_native.checkpoint.quantization import Quantization
from higgs_native.compat.boson.audio_tokenizer import load_higgs_audio_tokenizer
from higgs_native.compat.boson.dataset import ChatMLDatasetSample, HiggsAudioSampleCollator
from higgs_native.compat.boson.model import HiggsAudioModel, KVCacheBucket, reply_callbacks
from higgs_native.compat.boson.sampling import sampling_params
from higgs_native.compat.boson.streamer import DELTAS_AHEAD, HiggsAudioStreamerDelta, TextDeltas
from higgs_native.compat.boson.text_tokenizer import TextTokenizer
from higgs_native.convention import Convention
from higgs_native.errors import CheckpointError, ParameterError, short_repr
from higgs_native.generation.requests import GenerationOutput
from higgs_native.generation.sampling_params import DEFAULT_STOP_STRINGS
from higgs_native.model.transformer import check_cache_length
from higgs_native.pipeline import HiggsAudio
from higgs_native.prompt.chat import build_prompt
from higgs_native.prompt.messages import ChatMLSample
from higgs_native.prompt.recordings import read_recording
from higgs_native.utils.background_iterator import BackgroundIterator
from higgs_native.utils.checks import check_flag, check_integer


KV_CACHE_LENGTHS = (1024, 4096, 8192)


@dataclass
class HiggsAudioResponse:
    """A generated reply.

    Attributes:
        audio: [samples], float32; all audio segments joined; None without audio.
        generated_audio_tokens: [codebooks, N], int64: the first audio segment, still delayed; None without audio.
        sampling_rate: of `audio`, in Hz.
        generated_text: the reply, special tokens included; `<|AUDIO_OUT|>` stands for an audio segment.
        generated_text_tokens: [tokens], int64.
        usage: the number of positions of the prompt, and of tokens of the reply: those of `generated_text_tokens`, and
            the frames of all segments; and `cached_tokens`: positions that the prefix cache held.
        finish_reason: `stop`, or `length` where `max_new_tokens` or the cache ended it.
    """

    audio: np.ndarray | None = None
    generated_audio_tokens: np.ndarray | None = None
    sampling_rate: int | None = None
    generated_text: str = ""
    generated_text_tokens: np.ndarray | None = None
    usage: dict | None = None
    finish_reason: str | None = None


class HiggsAudioServeEngine:
    """Generates replies to conversations; safe to call from several threads.

    Args:
        model_name_or_path: a folder or a Hub name.
        audio_tokenizer_name_or_path: a folder or a Hub name.
        tokenizer_name_or_path: where the text tokenizer is, if not with the model.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, ...
        torch_dtype: of the weights: `auto` (as stored), float32, bfloat16 or float16.
        kv_cache_lengths: the longest is the maximum number of positions of a conversation with its reply. A call's
            cache is only as long as it needs.
        quantization: `fp8`, `int8`, `int4`, or one format per part; see `Quantization`. None or False: as stored.
            True: `int8`.
        use_quantization, quantization_bits: the same as `quantization`, as some versions of the original have it: 8 or
            4 bits.

    Attributes:
        model, tokenizer, audio_tokenizer, collator: may be replaced.
        device: where it runs, as a string.
        kv_caches: a stand-in by each of `kv_cache_lengths`.

    Raises:
        CheckpointError, ConfigError: a checkpoint is missing, damaged, or not one of this model.
        ParameterError: the device, the dtype, a length or the quantization can't be used.
    """

    def __init__(
        self,
        model_name_or_path: str,
        audio_tokenizer_name_or_path: str,
        tokenizer_name_or_path: str | None = None,
        device: str | torch.device = "auto",
        torch_dtype: torch.dtype | str = "auto",
        kv_cache_lengths: Sequence[int] = KV_CACHE_LENGTHS,
        quantization: str | Quantization | bool | None = None,
        use_quantization: bool = False,
        quantization_bits: int = 8,
    ) -> None:
        check_flag("use_quantization", use_quantization)
        check_integer("quantization_bits", quantization_bits)
        if use_quantization and quantization is None:
            quantization = f"int{quantization_bits}"
        if isinstance(quantization, bool):
            quantization = "int8" if quantization else None
        self.model = load_model(
            model_name_or_path, tokenizer_name_or_path, device, torch_dtype, kv_cache_lengths, quantization
        )
        self.tokenizer = TextTokenizer(self.model.native.require_tokenizer())
        self.audio_tokenizer = load_higgs_audio_tokenizer(audio_tokenizer_name_or_path, device)
        self.model_name_or_path = model_name_or_path
        self.torch_dtype = torch_dtype
        self.device = str(self.model.device)
        self.audio_num_codebooks = self.audio_tokenizer.num_codebooks
        self.audio_codebook_size = self.audio_tokenizer.codebook_size
        self.audio_tokenizer_tps = self.audio_tokenizer.tps
        self.samples_per_token = self.audio_tokenizer.hop_length
        self.hamming_window_len = 2 * self.audio_num_codebooks * self.samples_per_token
        self.kv_caches = {length: KVCacheBucket(length) for length in sorted(kv_cache_lengths)}
        config = self.model.require_config()
        self.collator = HiggsAudioSampleCollator(
            None,
            config.audio_in_token_idx,
            config.audio_out_token_idx,
            config.pad_token_id,
            config.audio_stream_bos_id,
            config.audio_stream_eos_id,
            round_to=1,
            audio_num_codebooks=self.audio_num_codebooks,
            use_delay_pattern=True,
        )
        self._speaker: HiggsAudio | None = None
        self._parts()

    def __getattr__(self, name: str) -> Never:
        raise AttributeError(f"the engine has no {name}; docs/compat_boson.md lists what it has of Boson's")

    def _parts(self) -> HiggsAudio:
        """The speaker with the current model and tokenizers, which programs replace."""
        native, audio_tokenizer = self.model.native, self.audio_tokenizer.native
        native.tokenizer = self.tokenizer.backend_tokenizer
        speaker = self._speaker
        if speaker is None or (speaker.model, speaker.audio_tokenizer) != (native, audio_tokenizer):
            speaker = self._speaker = HiggsAudio(native, audio_tokenizer, convention=Convention.BOSON)
        return speaker

    def generate(
        self,
        chat_ml_sample: ChatMLSample,
        max_new_tokens: int,
        temperature: float = 0.7,
        top_k: int | None = None,
        top_p: float = 0.95,
        stop_strings: list[str] | str | None = None,
        force_audio_gen: bool = False,
        ras_win_len: int | None = 7,
        ras_win_max_num_repeat: int = 2,
        seed: int | None = None,
    ) -> HiggsAudioResponse:
        """Generate the reply to a conversation, in text, audio, or both.

        Args:
            chat_ml_sample: the conversation.
            max_new_tokens: the maximum number of steps, text tokens and frames together.
            temperature: 0 takes the most likely token or code; others count as at least 0.001 and at most 1000.
            top_k: draws among the k most likely; None: among all.
            top_p: draws among the most likely that together have this probability; 1 and more: among all.
            stop_strings: texts that end the reply, or one; by default `<|end_of_text|>` and `<|eot_id|>`.
            force_audio_gen: begin with audio.
            ras_win_len: the window, in frames, of repetition-aware sampling; None or <= 0 turns it off.
            ras_win_max_num_repeat: occurrences in the window from which a code is drawn again.
            seed: the same seed gives the same reply.

        Raises:
            CheckpointError: the checkpoint has no text head, and `force_audio_gen` is not set.
            PromptError: the conversation can't become a prompt, or is longer than the cache.
            AudioError: a recording can't be read or used.
            ParameterError: a parameter is outside its range.
        """
        speaker = self._parts()
        stops = DEFAULT_STOP_STRINGS if stop_strings is None else stop_strings
        sampling = sampling_params(
            temperature, top_k, top_p, ras_win_len, ras_win_max_num_repeat, seed, max_new_tokens, stops
        )
        output = speaker.prepare(chat_ml_sample, force_audio_gen, sampling)()
        audio = speaker.speech(output).audio
        # As in the original, a segment's placeholder counts besides its frames.
        completion = len(output.text_ids) + sum(segment.shape[1] for segment in output.audio_segments)
        return HiggsAudioResponse(
            audio=audio if len(audio) else None,
            generated_audio_tokens=output.audio_segments[0].numpy() if output.audio_segments else None,
            sampling_rate=self.audio_tokenizer.sampling_rate,
            generated_text=self.tokenizer.decode(output.text_ids),
            generated_text_tokens=np.array(output.text_ids, dtype=np.int64),
            usage={
                "prompt_tokens": output.prompt_tokens,
                "completion_tokens": completion,
                "total_tokens": output.prompt_tokens + completion,
                "cached_tokens": output.cached_tokens,
            },
            finish_reason=output.finish_reason,
        )

    async def generate_delta_stream(
        self,
        chat_ml_sample: ChatMLSample,
        max_new_tokens: int,
        temperature: float = 0.7,
        top_k: int | None = None,
        top_p: float = 0.95,
        stop_strings: list[str] | str | None = None,
        force_audio_gen: bool = False,
        ras_win_len: int | None = 7,
        ras_win_max_num_repeat: int = 2,
        seed: int | None = None,
    ) -> AsyncGenerator[HiggsAudioStreamerDelta, None]:
        """Yield the reply to a conversation in deltas, while a background thread generates it.

        Leaving the `async for` ends the thread; the thread waits for a slow consumer.

        Args: as for `generate`.

        Raises:
            CheckpointError, PromptError, AudioError, ParameterError: as for `generate`; and any error of the thread.
        """
        stops = DEFAULT_STOP_STRINGS if stop_strings is None else stop_strings
        sampling = sampling_params(
            temperature, top_k, top_p, ras_win_len, ras_win_max_num_repeat, seed, max_new_tokens, stops
        )
        generate = self._parts().prepare(chat_ml_sample, force_audio_gen, sampling)
        texts = TextDeltas(self.tokenizer, {})

        def make(deltas: BackgroundIterator[HiggsAudioStreamerDelta]) -> None:
            def put(value: torch.Tensor) -> None:
                deltas.put(texts.delta(value) if len(value) == 1 else HiggsAudioStreamerDelta(audio_tokens=value))

            output: GenerationOutput = generate(*reply_callbacks(put, self.model.native.config.audio_out_token_id))
            for rest in texts.rest():
                deltas.put(rest)
            deltas.put(HiggsAudioStreamerDelta(finish_reason=output.finish_reason))

        deltas = aiter(BackgroundIterator(make, DELTAS_AHEAD))
        try:
            async for delta in deltas:
                yield delta
        finally:
            await deltas.aclose()

    def _prepare_inputs(self, chat_ml_sample: ChatMLSample, force_audio_gen: bool = False) -> dict[str, Any]:
        """The inputs of `model.generate`, for programs that call it themselves."""
        prompt = build_prompt(chat_ml_sample, self.tokenizer.backend_tokenizer, Convention.BOSON, force_audio_gen)
        codes = [
            self.audio_tokenizer.encode(recording.samples, recording.sampling_rate)
            for recording in map(read_recording, prompt.audio)
        ]
        sample = ChatMLDatasetSample(prompt.input_ids[0])
        if codes:
            sample.audio_ids_concat = torch.cat(codes, dim=1)
            lengths = [0, *(part.shape[1] for part in codes[:-1])]
            sample.audio_ids_start = torch.tensor(lengths, dtype=torch.int64, device="cpu").cumsum(0)
        inputs = asdict(self.collator([sample]))
        return {
            name: value.to(self.device) if isinstance(value, torch.Tensor) else value for name, value in inputs.items()
        }

    def _prepare_kv_caches(self) -> None:
        """Do nothing: the engine makes its own cache for each call."""


def load_model(
    path: str,
    tokenizer_path: str | None,
    device: str | torch.device,
    dtype: torch.dtype | str,
    lengths: Sequence[int],
    quantization: str | Quantization | None,
) -> HiggsAudioModel:
    """Load the language model, and its text tokenizer; arguments and errors are those of `HiggsAudioServeEngine`."""
    if not isinstance(lengths, Sequence) or not lengths:
        raise ParameterError(f"kv_cache_lengths must be a list of numbers of positions, got {short_repr(lengths)}")
    for length in lengths:
        check_cache_length(length, "each of kv_cache_lengths")
    model = HiggsAudioModel.from_pretrained(path, device, dtype, None, max(lengths), quantization)
    if tokenizer_path is not None:
        model.native.tokenizer = load_tokenizer(resolve_folder(tokenizer_path, kind="tokenizer"))
    if model.native.tokenizer is None:
        raise CheckpointError(f"{tokenizer_path or path} has no tokenizer.json")
    return model
