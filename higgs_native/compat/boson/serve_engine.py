"""Boson's serving engine."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer

from higgs_native.compat.boson.audio_tokenizer import load_higgs_audio_tokenizer
from higgs_native.compat.boson.streamer import DELTAS_AHEAD, HiggsAudioStreamerDelta, TextDeltas
from higgs_native.errors import CheckpointError, ParameterError, short_repr
from higgs_native.generation.engine import HiggsAudioModel
from higgs_native.generation.sampling_params import SamplingParams
from higgs_native.generation.sequence import GenerationOutput
from higgs_native.generation.stop import DEFAULT_STOP_STRINGS
from higgs_native.model.checkpoint import load_tokenizer, resolve_folder
from higgs_native.model.quantization import Quantization
from higgs_native.model.transformer import check_cache_length
from higgs_native.pipeline import HiggsAudio
from higgs_native.prompt.messages import ChatMLSample
from higgs_native.utils.background_iterator import BackgroundIterator


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
        usage: the number of tokens of the prompt and of the reply, text and frames, and `cached_tokens`: those of the
            prompt that the prefix cache held.
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
        quantization: `fp8`, `int8`, `int4`, or one format per part; see `Quantization`. None: as stored.

    Raises:
        CheckpointError, ConfigError: a checkpoint is missing, damaged, or not one of this model.
        ParameterError: the device, the dtype, or a length can't be used.
    """

    def __init__(
        self,
        model_name_or_path: str,
        audio_tokenizer_name_or_path: str,
        tokenizer_name_or_path: str | None = None,
        device: str = "auto",
        torch_dtype: torch.dtype | str = "auto",
        kv_cache_lengths: Sequence[int] = KV_CACHE_LENGTHS,
        quantization: str | Quantization | None = None,
    ) -> None:
        self.model = load_model(
            model_name_or_path, tokenizer_name_or_path, device, torch_dtype, kv_cache_lengths, quantization
        )
        self.tokenizer: Tokenizer = self.model.tokenizer
        self.audio_tokenizer = load_higgs_audio_tokenizer(audio_tokenizer_name_or_path, device)
        self.audio_num_codebooks = self.audio_tokenizer.num_codebooks
        self.audio_codebook_size = self.audio_tokenizer.codebook_size
        self.audio_tokenizer_tps = self.audio_tokenizer.tps
        self.samples_per_token = self.audio_tokenizer.native.hop_length
        self._speaker = HiggsAudio(self.model, self.audio_tokenizer.native, convention="boson")

    def generate(
        self,
        chat_ml_sample: ChatMLSample,
        max_new_tokens: int,
        temperature: float = 0.7,
        top_k: int | None = None,
        top_p: float = 0.95,
        stop_strings: list[str] | None = None,
        force_audio_gen: bool = False,
        ras_win_len: int | None = 7,
        ras_win_max_num_repeat: int = 2,
        seed: int | None = None,
    ) -> HiggsAudioResponse:
        """Generate the reply to a conversation, in text, audio, or both.

        Args:
            chat_ml_sample: the conversation.
            max_new_tokens: the maximum number of steps, text tokens and frames together.
            temperature: 0 takes the most likely token or code.
            top_k: draws among the k most likely; None: among all.
            top_p: draws among the most likely that together have this probability.
            stop_strings: text that ends the reply; by default `<|end_of_text|>` and `<|eot_id|>`.
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
        stop_strings = DEFAULT_STOP_STRINGS if stop_strings is None else stop_strings
        sampling = SamplingParams(
            temperature, top_k, top_p, ras_win_len, ras_win_max_num_repeat, seed, max_new_tokens, stop_strings
        )
        output = self._speaker.prepare(chat_ml_sample, force_audio_gen, sampling)()
        audio = self._speaker.speech(output).audio
        return HiggsAudioResponse(
            audio=audio if len(audio) else None,
            generated_audio_tokens=output.audio_segments[0].numpy() if output.audio_segments else None,
            sampling_rate=self.audio_tokenizer.sampling_rate,
            generated_text=self.tokenizer.decode(output.text_ids, skip_special_tokens=False),
            generated_text_tokens=np.array(output.text_ids, dtype=np.int64),
            usage={**output.usage, "cached_tokens": output.cached_tokens},
            finish_reason=output.finish_reason,
        )

    async def generate_delta_stream(
        self,
        chat_ml_sample: ChatMLSample,
        max_new_tokens: int,
        temperature: float = 0.7,
        top_k: int | None = None,
        top_p: float = 0.95,
        stop_strings: list[str] | None = None,
        force_audio_gen: bool = False,
        ras_win_len: int | None = 7,
        ras_win_max_num_repeat: int = 2,
        seed: int | None = None,
    ) -> AsyncIterator[HiggsAudioStreamerDelta]:
        """Yield the reply to a conversation in deltas, while a background thread generates it.

        Leaving the `async for` ends the thread; the thread waits for a slow consumer.

        Args: as for `generate`.

        Raises:
            CheckpointError, PromptError, AudioError, ParameterError: as for `generate`; and any error of the thread.
        """
        stop_strings = DEFAULT_STOP_STRINGS if stop_strings is None else stop_strings
        sampling = SamplingParams(
            temperature, top_k, top_p, ras_win_len, ras_win_max_num_repeat, seed, max_new_tokens, stop_strings
        )
        generate = self._speaker.prepare(chat_ml_sample, force_audio_gen, sampling)
        placeholder = torch.tensor([self.model.config.audio_out_token_id], dtype=torch.int64, device="cpu")
        texts = TextDeltas(self.tokenizer, {})

        def make(deltas: BackgroundIterator[HiggsAudioStreamerDelta]) -> None:
            in_audio = False

            def on_frame(frame: torch.Tensor) -> None:
                nonlocal in_audio
                if not in_audio:
                    deltas.put(texts.delta(placeholder))
                in_audio = True
                deltas.put(HiggsAudioStreamerDelta(audio_tokens=frame))

            def on_token(token: int) -> None:
                nonlocal in_audio
                in_audio = False
                deltas.put(texts.delta(torch.tensor([token], dtype=torch.int64, device="cpu")))

            output: GenerationOutput = generate(on_frame, on_token)
            for rest in texts.rest():
                deltas.put(rest)
            deltas.put(HiggsAudioStreamerDelta(finish_reason=output.finish_reason))

        deltas = aiter(BackgroundIterator(make, DELTAS_AHEAD))
        try:
            async for delta in deltas:
                yield delta
        finally:
            await deltas.aclose()


def load_model(
    path: str,
    tokenizer_path: str | None,
    device: str,
    dtype: torch.dtype | str,
    lengths: Sequence[int],
    quantization: str | Quantization | None,
) -> HiggsAudioModel:
    """Load the language model, and its text tokenizer; arguments and errors are those of `HiggsAudioServeEngine`."""
    if not isinstance(lengths, Sequence) or not lengths:
        raise ParameterError(f"kv_cache_lengths must be a list of numbers of positions, got {short_repr(lengths)}")
    for length in lengths:
        check_cache_length(length, "each of kv_cache_lengths")
    model = HiggsAudioModel.from_pretrained(path, device, dtype, max(lengths), quantization)
    if tokenizer_path is not None:
        model.tokenizer = load_tokenizer(resolve_folder(tokenizer_path, kind="tokenizer"))
    if model.tokenizer is None:
        raise CheckpointError(f"{tokenizer_path or path} has no tokenizer.json")
    return model
