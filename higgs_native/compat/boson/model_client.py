"""The client of Boson's example script."""

import warnings
from collections.abc import Sequence

import numpy as np
import torch

from higgs_native.compat.boson.audio_tokenizer import (
    BosonAudioTokenizer,
    load_higgs_audio_tokenizer,
)
from higgs_native.compat.boson.sampling import sampling_params
from higgs_native.compat.boson.serve_engine import KV_CACHE_LENGTHS, load_model
from higgs_native.convention import Convention
from higgs_native.errors import ParameterError, PromptError
from higgs_native.generation.delay_pattern import segment_codes
from higgs_native.generation.sampling_params import DEFAULT_STOP_STRINGS
from higgs_native.prompt.chat import build_prompt, spoken_turns
from higgs_native.prompt.messages import Message
from higgs_native.utils.checks import check_integer, check_strings


class HiggsAudioModelClient:
    """Speaks a text chunk by chunk, each with the last ones as context.

    Args:
        model_path: a folder or a Hub name.
        audio_tokenizer: a folder, a Hub name, or what `load_higgs_audio_tokenizer` returned.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, ....
        device_id: the number of a GPU, instead of `device`.
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
        kv_cache_lengths: Sequence[int] = KV_CACHE_LENGTHS,
        use_static_kv_cache: bool = False,
    ) -> None:
        check_integer("device_id", device_id, optional=True)
        if device is None:
            device = "auto" if device_id is None else f"cuda:{device_id}"
        self._model = load_model(model_path, None, device, "auto", kv_cache_lengths, None).native
        if not isinstance(audio_tokenizer, BosonAudioTokenizer):
            audio_tokenizer = load_higgs_audio_tokenizer(audio_tokenizer, device)
        self._audio_tokenizer = audio_tokenizer
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
        check_strings("chunked_text", chunked_text)
        if not chunked_text:
            raise PromptError("chunked_text must hold at least one chunk, got none")
        for name, items in (("messages", messages), ("audio_ids", audio_ids)):
            if not isinstance(items, Sequence):
                raise ParameterError(f"{name} must be a list, got {type(items).__name__}")
        check_integer("generation_chunk_buffer_size", generation_chunk_buffer_size, optional=True)
        if generation_chunk_buffer_size is not None and generation_chunk_buffer_size < 0:
            raise ParameterError(
                "generation_chunk_buffer_size must be at least 0, or None for all chunks, "
                f"got {generation_chunk_buffer_size}"
            )
        sampling = sampling_params(
            temperature,
            top_k,
            top_p,
            ras_win_len,
            ras_win_max_num_repeat,
            seed,
            self._max_new_tokens,
            DEFAULT_STOP_STRINGS,
        )
        tokenizer = self._model.require_tokenizer()
        spoken: list[torch.Tensor] = []
        turns: list[tuple[str, torch.Tensor]] = []  # the context: chunks, and their codes
        text = ""
        for index, chunk in enumerate(chunked_text):
            turns_so_far = [*messages, *spoken_turns(turns), Message("user", chunk)]
            prompt = build_prompt(turns_so_far, tokenizer, "boson", force_audio_gen=self._model.text_head is None)
            output = self._model.generate(
                prompt.input_ids,
                reference_codes=[*audio_ids, *(codes for _, codes in turns)],
                convention=Convention.BOSON,
                sampling=sampling,
            )
            text = tokenizer.decode(output.text_ids, skip_special_tokens=False)
            segments = [
                segment_codes(segment, self._model.config, Convention.BOSON) for segment in output.audio_segments
            ]
            no_codes = torch.empty(self._audio_tokenizer.num_codebooks, 0, dtype=torch.int64, device="cpu")
            codes = torch.cat([no_codes, *segments], dim=1)
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
