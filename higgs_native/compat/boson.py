"""The interface of `boson_multimodal`: its serving engine, its example client, and its audio tokenizer.

    from higgs_native.compat.boson import AudioContent, ChatMLSample, HiggsAudioServeEngine, Message

    engine = HiggsAudioServeEngine(model_path, audio_tokenizer_path)
    response = engine.generate(ChatMLSample([Message("user", "Hello there.")]), max_new_tokens=1024)

Prompts and generation follow Boson's rule, whichever layout the checkpoint has. What differs from `boson_multimodal`
is listed in `docs/compat_boson.md`.
"""

import asyncio
import os
import warnings
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from higgs_native import generation
from higgs_native.audio_tokenizer import HiggsAudioTokenizer, read_audio
from higgs_native.background import Background
from higgs_native.checkpoint import resolve_folder
from higgs_native.errors import AudioError, CheckpointError, ParameterError, PromptError
from higgs_native.generation import DEFAULT_STOP_STRINGS, GenerationOutput, HiggsAudioModel, SamplingParameters
from higgs_native.loudness import normalized_to
from higgs_native.model import load_tokenizer
from higgs_native.pipeline import HiggsAudio
from higgs_native.prompt import AudioContent, ChatMLSample, Message, TextContent, build_prompt
from higgs_native.quantization import Quantization


__all__ = [
    "AsyncHiggsAudioStreamer",
    "AudioContent",
    "ChatMLSample",
    "HiggsAudioModelClient",
    "HiggsAudioResponse",
    "HiggsAudioServeEngine",
    "HiggsAudioStreamerDelta",
    "Message",
    "TextContent",
    "load_higgs_audio_tokenizer",
    "revert_delay_pattern",
]

_KV_CACHE_LENGTHS = (1024, 4096, 8192)
_DELTAS_AHEAD = 64


@dataclass
class HiggsAudioResponse:
    """What a call generated.

    Attributes:
        audio: [samples], float32; all audio segments joined; None where there is none.
        generated_audio_tokens: [codebooks, N], int64: the first audio segment, still delayed; None without audio.
        sampling_rate: of `audio`, in Hz.
        generated_text: the reply, special tokens included; `<|AUDIO_OUT|>` stands for an audio segment.
        generated_text_tokens: [tokens], int64.
        usage: how many tokens the prompt and the reply have, text and frames.
        finish_reason: `stop`, or `length` where `max_new_tokens` or the cache ended it.
    """

    audio: np.ndarray | None = None
    generated_audio_tokens: np.ndarray | None = None
    sampling_rate: int | None = None
    generated_text: str = ""
    generated_text_tokens: np.ndarray | None = None
    usage: dict | None = None
    finish_reason: str | None = None


@dataclass
class HiggsAudioStreamerDelta:
    """A piece of what is generated: text, or one frame of audio; the last one says why generation has ended.

    Attributes:
        text: of `text_tokens`; empty while a character is incomplete, and then that of all its tokens.
        text_tokens: [1], int64.
        audio_tokens: [codebooks], int64: the next frame, still delayed; an audio segment begins with one of BOS.
        finish_reason: `stop` or `length`, alone in the last delta.
    """

    text: str | None = None
    text_tokens: torch.Tensor | None = None
    audio_tokens: torch.Tensor | None = None
    finish_reason: str | None = None


class _TextDeltas:
    """Decodes tokens as they come, and keeps those that end inside of a character."""

    def __init__(self, tokenizer: Any, decode_options: dict[str, Any]) -> None:
        self._tokenizer = tokenizer
        self._options = {"skip_special_tokens": False} | decode_options
        self._pending: list[int] = []

    def delta(self, tokens: torch.Tensor) -> HiggsAudioStreamerDelta:
        self._pending += tokens.tolist()
        text = self._tokenizer.decode(self._pending, **self._options)
        if text.endswith("\ufffd") and len(self._pending) < 4:  # a character has up to four bytes
            text = ""
        else:
            self._pending = []
        return HiggsAudioStreamerDelta(text=text, text_tokens=tokens)


class AsyncHiggsAudioStreamer:
    """Takes tokens from a generating thread, and gives them as deltas to an `async for`.

    It is made in the event loop of the consumer. The thread calls `put`, then `end`, or `fail`.

    Args:
        tokenizer: decodes the text: `decode(ids, skip_special_tokens=...)`.
        skip_prompt: pass over what is put first.
        timeout: how long to wait for a delta, in seconds; None: for ever.
        audio_num_codebooks: how many codes a frame has.
        decode_kwargs: for `tokenizer.decode`.
    """

    def __init__(
        self,
        tokenizer: Any,
        skip_prompt: bool = False,
        timeout: float | None = None,
        audio_num_codebooks: int = 1,
        **decode_kwargs: Any,
    ) -> None:
        self.tokenizer = tokenizer
        self.skip_prompt = skip_prompt
        self.timeout = timeout
        self.audio_num_codebooks = audio_num_codebooks
        self.next_tokens_are_prompt = True
        self._texts = _TextDeltas(tokenizer, decode_kwargs)
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[HiggsAudioStreamerDelta | BaseException | None] = asyncio.Queue()

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt [1, S] or [S] first, then a text token [1] or a frame [codebooks] at a time.

        Raises:
            ParameterError: there are more codes than codebooks, or fewer.
        """
        is_prompt, self.next_tokens_are_prompt = self.next_tokens_are_prompt, False
        if is_prompt and self.skip_prompt:
            return
        if is_prompt or len(value) == 1:
            self._send(self._texts.delta(value.flatten()))
        elif len(value) == self.audio_num_codebooks:
            self._send(HiggsAudioStreamerDelta(audio_tokens=value))
        else:
            raise ParameterError(f"a frame must have {self.audio_num_codebooks} codes, got {len(value)}")

    def end(self) -> None:
        """Say that nothing will follow."""
        self.next_tokens_are_prompt = True
        self._send(None)

    def fail(self, error: BaseException) -> None:
        """Let the consumer raise an error."""
        self._send(error)

    def _send(self, item: HiggsAudioStreamerDelta | BaseException | None) -> None:
        self._loop.call_soon_threadsafe(self._queue.put_nowait, item)

    def __aiter__(self) -> AsyncIterator[HiggsAudioStreamerDelta]:
        return self

    async def __anext__(self) -> HiggsAudioStreamerDelta:
        try:
            item = await asyncio.wait_for(self._queue.get(), self.timeout)
        except asyncio.TimeoutError:
            raise TimeoutError(f"nothing was generated for {self.timeout} s") from None
        if item is None:
            raise StopAsyncIteration
        if isinstance(item, BaseException):
            raise item
        return item


class BosonAudioTokenizer:
    """The audio tokenizer with Boson's shapes; see `load_higgs_audio_tokenizer`."""

    def __init__(self, native: HiggsAudioTokenizer) -> None:
        self.native = native

    @property
    def tps(self) -> int:
        """Frames a second."""
        return round(self.native.frame_rate)

    @property
    def sampling_rate(self) -> int:
        """Of decoded audio, in Hz."""
        return self.native.sampling_rate

    @property
    def num_codebooks(self) -> int:
        """Codes a frame."""
        return self.native.num_codebooks

    @property
    def codebook_size(self) -> int:
        """Codes run from 0 to this, exclusive."""
        return self.native.codebook_size

    def encode(
        self,
        audio_path_or_wv: str | os.PathLike | np.ndarray,
        sr: int | None = None,
        loudness_normalize: bool = False,
        loudness_threshold: float = -23.0,
    ) -> torch.Tensor:
        """Encode a file or samples.

        Args:
            audio_path_or_wv: a file, or samples as `HiggsAudioTokenizer.encode` takes them.
            sr: the samples' rate in Hz.
            loudness_normalize: bring the audio to a loudness first (ITU-R BS.1770-4).
            loudness_threshold: that loudness, in LUFS.

        Returns:
            [codebooks, frames], int64.

        Raises:
            AudioError: the audio can't be read or used, or `sr` is missing.
        """
        if not loudness_normalize:
            return self.native.encode(audio_path_or_wv, sr)
        if isinstance(audio_path_or_wv, (str, os.PathLike)):
            samples, sr = read_audio(audio_path_or_wv)
        else:
            samples = np.asarray(audio_path_or_wv)
            if sr is None:
                raise AudioError("audio given as samples needs its sampling rate sr, in Hz")
            if samples.ndim != 1 or not np.issubdtype(samples.dtype, np.floating):
                raise AudioError(
                    "audio whose loudness is normalised must be floating and of shape [samples], "
                    f"got {samples.dtype} {list(samples.shape)}"
                )
        return self.native.encode(normalized_to(samples, sr, loudness_threshold), sr)

    def decode(self, vq_code: torch.Tensor) -> np.ndarray:
        """Decode codes [1, codebooks, frames] or [codebooks, frames] to audio [1, 1, samples], float32.

        Raises:
            AudioError: the codes have another shape, or lie out of range.
        """
        codes = vq_code[0] if vq_code.dim() == 3 and len(vq_code) == 1 else vq_code
        return self.native.decode(codes).numpy()[None, None]


def load_higgs_audio_tokenizer(tokenizer_name_or_path: str, device: str = "auto") -> BosonAudioTokenizer:
    """Load the audio tokenizer from a folder or the Hub; `device` is `auto` or `cpu`.

    Raises:
        CheckpointError, ConfigError: the files are missing, damaged, or don't fit each other.
        ParameterError: another device.
    """
    return BosonAudioTokenizer(HiggsAudioTokenizer.from_pretrained(tokenizer_name_or_path, _device(device)))


def revert_delay_pattern(data: torch.Tensor, start_idx: int = 0) -> torch.Tensor:
    """Take the diagonals of delayed codes: [codebooks, N] -> [codebooks, N - codebooks + 1 - start_idx], int64.

    Too few frames for a whole column give [codebooks, 0].
    """
    return generation.revert_delay_pattern(torch.as_tensor(data))[:, start_idx:]


class HiggsAudioServeEngine:
    """Generates replies to conversations; safe to call from several threads.

    Args:
        model_name_or_path: a folder or a Hub name.
        audio_tokenizer_name_or_path: a folder or a Hub name.
        tokenizer_name_or_path: where the text tokenizer is, if not with the model.
        device: `auto` or `cpu`.
        torch_dtype: of the weights: `auto` (as stored), float32 or bfloat16.
        kv_cache_lengths: the longest is how many positions a conversation may have, its reply included. A call's cache
            is as long as it needs.
        quantization: `int8`, `int4`, or a format for each part; see `Quantization`. None: as stored.

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
        kv_cache_lengths: Sequence[int] = _KV_CACHE_LENGTHS,
        quantization: str | Quantization | None = None,
    ) -> None:
        self.model = _load_model(
            model_name_or_path, tokenizer_name_or_path, device, torch_dtype, kv_cache_lengths, quantization
        )
        self.tokenizer: Tokenizer = self.model.tokenizer
        self.audio_tokenizer = load_higgs_audio_tokenizer(audio_tokenizer_name_or_path, device)
        self.audio_num_codebooks = self.audio_tokenizer.num_codebooks
        self.audio_codebook_size = self.audio_tokenizer.codebook_size
        self.audio_tokenizer_tps = self.audio_tokenizer.tps
        self.samples_per_token = self.audio_tokenizer.native.hop_length
        self._speaker = HiggsAudio(self.model, self.audio_tokenizer.native, layout="boson")

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
            max_new_tokens: how many text tokens and frames there may be, together.
            temperature: 0 takes the likeliest.
            top_k: draw among so many of the likeliest; None: among all.
            top_p: draw among the likeliest that together have this probability.
            stop_strings: text that ends the reply; by default `<|end_of_text|>` and `<|eot_id|>`.
            force_audio_gen: begin with audio.
            ras_win_len: a code that stands `ras_win_max_num_repeat` times among so many last frames is drawn again;
                None or <= 0: never.
            ras_win_max_num_repeat: see `ras_win_len`.
            seed: the same seed gives the same reply.

        Raises:
            PromptError: the conversation can't become a prompt, or is longer than the cache.
            AudioError: a recording can't be read or used.
            ParameterError: a parameter is outside its range.
        """
        sampling = SamplingParameters(temperature, top_k, top_p, ras_win_len, ras_win_max_num_repeat, seed)
        output = self._prepare(chat_ml_sample, force_audio_gen, sampling, max_new_tokens, stop_strings)()
        audio = self._speaker.speech(output).audio
        return HiggsAudioResponse(
            audio=audio if len(audio) else None,
            generated_audio_tokens=output.audio_segments[0].numpy() if output.audio_segments else None,
            sampling_rate=self.audio_tokenizer.sampling_rate,
            generated_text=self.tokenizer.decode(output.text_ids, skip_special_tokens=False),
            generated_text_tokens=np.array(output.text_ids, dtype=np.int64),
            usage={**output.usage, "cached_tokens": 0},
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
        """Give the reply to a conversation piece by piece, as it is generated in a thread of its own.

        Leaving the `async for` ends the thread; the thread waits for a consumer that is slow.

        Args: as for `generate`.

        Raises:
            PromptError, AudioError, ParameterError: as for `generate`; and any error of the thread.
        """
        sampling = SamplingParameters(temperature, top_k, top_p, ras_win_len, ras_win_max_num_repeat, seed)
        generate = self._prepare(chat_ml_sample, force_audio_gen, sampling, max_new_tokens, stop_strings)
        placeholder = torch.tensor([self.model.config.audio_out_token_id])
        texts = _TextDeltas(self.tokenizer, {})

        def make(deltas: Background[HiggsAudioStreamerDelta]) -> None:
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
                deltas.put(texts.delta(torch.tensor([token])))

            output: GenerationOutput = generate(on_frame, on_token)
            deltas.put(HiggsAudioStreamerDelta(finish_reason=output.finish_reason))

        deltas = aiter(Background(make, _DELTAS_AHEAD))
        try:
            async for delta in deltas:
                yield delta
        finally:
            await deltas.aclose()

    def _prepare(
        self,
        sample: ChatMLSample,
        force_audio_gen: bool,
        sampling: SamplingParameters,
        max_new_tokens: int,
        stop_strings: Sequence[str] | None,
    ) -> Callable[..., GenerationOutput]:
        stop_strings = DEFAULT_STOP_STRINGS if stop_strings is None else stop_strings
        return self._speaker.prepare(sample, force_audio_gen, sampling, max_new_tokens, stop_strings)


class HiggsAudioModelClient:
    """The client of Boson's example script: speaks a text chunk by chunk, each with the last ones as context.

    Args:
        model_path: a folder or a Hub name.
        audio_tokenizer: a folder, a Hub name, or what `load_higgs_audio_tokenizer` returned.
        device: `auto` or `cpu`.
        device_id: the number of a GPU; none can be used so far.
        max_new_tokens: how many text tokens and frames a chunk may have, together.
        kv_cache_lengths: the longest is how many positions a chunk may have, its context included.
        use_static_kv_cache: taken, and without effect: the cache is always a static one.

    Raises:
        CheckpointError, ConfigError, ParameterError: as for `HiggsAudioServeEngine`.
    """

    def __init__(
        self,
        model_path: str,
        audio_tokenizer: str | BosonAudioTokenizer,
        device: str | None = None,
        device_id: int | None = None,
        max_new_tokens: int = 2048,
        kv_cache_lengths: Sequence[int] = _KV_CACHE_LENGTHS,
        use_static_kv_cache: bool = False,
    ) -> None:
        device = device or ("auto" if device_id is None else f"cuda:{device_id}")
        self._model = _load_model(model_path, None, device, "auto", kv_cache_lengths, None)
        loaded = isinstance(audio_tokenizer, BosonAudioTokenizer)
        self._audio_tokenizer = audio_tokenizer if loaded else load_higgs_audio_tokenizer(audio_tokenizer, device)
        self._max_new_tokens = max_new_tokens

    def generate(
        self,
        messages: list[Message],
        audio_ids: list[torch.Tensor],
        chunked_text: list[str],
        generation_chunk_buffer_size: int | None,
        temperature: float = 1.0,
        top_k: int | None = 50,
        top_p: float | None = 0.95,
        ras_win_len: int | None = 7,
        ras_win_max_num_repeat: int = 2,
        seed: int | None = 123,
    ) -> tuple[np.ndarray, int, str]:
        """Speak the chunks of a text, one after the other.

        Args:
            messages: what comes before: the system message, and the references' turns, with an `AudioContent` for each
                of `audio_ids`.
            audio_ids: [codebooks, frames] each, integers.
            chunked_text: what to say.
            generation_chunk_buffer_size: how many of the last chunks a chunk has as context; None: all.
            temperature, top_k, top_p, ras_win_len, ras_win_max_num_repeat, seed: as for `HiggsAudioServeEngine`.

        Returns:
            The audio [samples], float32, its sampling rate in Hz, and the reply to the last chunk as text. A chunk
            that was answered without audio is missing in it, and named in a warning.

        Raises:
            PromptError: there is no text, the messages don't fit `audio_ids`, or a prompt is longer than the cache.
            ParameterError: a parameter is outside its range.
        """
        if not chunked_text:
            raise PromptError("chunked_text is empty; expected at least one chunk")
        tokenizer = self._model.tokenizer
        spoken: list[torch.Tensor] = []
        turns: list[tuple[str, torch.Tensor]] = []  # the context: chunks, and their codes
        text = ""
        for index, chunk in enumerate(chunked_text):
            context = [
                message
                for said, _ in turns
                for message in (Message("user", said), Message("assistant", AudioContent(audio_url="")))
            ]
            prompt = build_prompt([*messages, *context, Message("user", chunk)], tokenizer, "boson")
            output = self._model.generate(
                prompt.input_ids,
                reference_codes=[*audio_ids, *(codes for _, codes in turns)],
                rule="boson",
                max_new_tokens=self._max_new_tokens,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                ras_win_len=ras_win_len,
                ras_win_max_num_repeat=ras_win_max_num_repeat,
                seed=seed,
            )
            text = tokenizer.decode(output.text_ids, skip_special_tokens=False)
            segments = [revert_delay_pattern(segment)[:, 1:-1] for segment in output.audio_segments]
            codes = torch.cat(
                [torch.empty(self._audio_tokenizer.num_codebooks, 0, dtype=torch.int64), *segments], dim=1
            )
            codes = codes.clamp(0, self._audio_tokenizer.codebook_size - 1)
            if codes.shape[1]:
                spoken.append(codes)
                turns.append((chunk, codes))
            else:
                warnings.warn(f"chunk {index} was answered without audio: {text!r}", stacklevel=2)
            if generation_chunk_buffer_size is not None:
                turns = turns[max(len(turns) - generation_chunk_buffer_size, 0) :]
        sampling_rate = self._audio_tokenizer.sampling_rate
        if not spoken:
            return np.zeros(0, dtype=np.float32), sampling_rate, text
        return self._audio_tokenizer.decode(torch.cat(spoken, dim=1))[0, 0], sampling_rate, text


def _device(device: str) -> str:
    return "cpu" if device == "auto" else device


def _load_model(
    path: str,
    tokenizer_path: str | None,
    device: str,
    dtype: torch.dtype | str,
    lengths: Sequence[int],
    quantization: str | Quantization | None,
) -> HiggsAudioModel:
    if not lengths or any(not isinstance(length, int) or length < 1 for length in lengths):
        raise ParameterError(f"kv_cache_lengths must be positive numbers of positions, got {list(lengths)}")
    model = HiggsAudioModel.from_pretrained(path, _device(device), dtype, max(lengths), quantization)
    if tokenizer_path is not None:
        model.tokenizer = load_tokenizer(resolve_folder(tokenizer_path, kind="tokenizer"))
    if model.tokenizer is None:
        raise CheckpointError(f"{tokenizer_path or path} has no tokenizer.json")
    return model
