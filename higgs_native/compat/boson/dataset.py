"""Boson's samples and their collator: conversations as the inputs of its language model."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch.nn import functional as F

from higgs_native.compat.boson.audio_tokenizer import build_delay_pattern_mask
from higgs_native.compat.boson.text_tokenizer import encode_text
from higgs_native.errors import ParameterError, PromptError, short_repr
from higgs_native.model.transformer import MAX_CACHE_LENGTH
from higgs_native.prompt.chat import checked_messages
from higgs_native.prompt.conventions import boson
from higgs_native.prompt.messages import AudioContent, ChatMLSample, Message, TextContent
from higgs_native.utils.checks import check_flag, check_id, check_instance, check_integer, check_string
from higgs_native.utils.tensors import integer_tensor


_NOT_LABELED = -100


@dataclass
class ChatMLDatasetSample:
    """A tokenized conversation, with the codes of its recordings.

    Attributes:
        input_ids: [S], int64.
        label_ids: [S], int64, or None.
        audio_ids_concat: [codebooks, frames], the codes of all recordings, or None.
        audio_ids_start: where each recording begins in it; a last item may say where the last one ends. Or None.

    The other attributes are kept, and unused.
    """

    input_ids: torch.Tensor
    label_ids: torch.Tensor | None = None
    audio_ids_concat: torch.Tensor | None = None
    audio_ids_start: torch.Tensor | None = None
    audio_waveforms_concat: torch.Tensor | None = None
    audio_waveforms_start: torch.Tensor | None = None
    audio_sample_rate: torch.Tensor | None = None
    audio_speaker_indices: torch.Tensor | None = None
    audio_label_ids_concat: torch.Tensor | None = None
    reward: float | None = None

    def num_audios(self) -> int:
        """Return how many recordings there are."""
        return max(
            0 if starts is None else len(starts) for starts in (self.audio_waveforms_start, self.audio_ids_start)
        )

    def get_audio_codes(self, idx: int) -> torch.Tensor:
        """Return the codes [codebooks, frames] of a recording.

        Raises:
            ParameterError: `idx` is no number of a recording.
            PromptError: there are not so many, or the codes are not those of recordings.
        """
        check_integer("idx", idx)
        if idx < 0:
            raise ParameterError(f"idx must be at least 0, got {idx}")
        starts = [] if self.audio_ids_start is None else _integers("audio_ids_start", self.audio_ids_start, 1).tolist()
        if self.audio_ids_concat is None or idx >= len(starts):
            raise PromptError(f"audio_ids_start must have an item per audio placeholder, got {len(starts)} items")
        codes = _integers("audio_ids_concat", self.audio_ids_concat, 2)
        begin, end = [*starts, codes.shape[1]][idx : idx + 2]
        if not 0 <= begin <= end <= codes.shape[1]:
            raise PromptError(
                f"audio_ids_start must ascend from 0 to the {codes.shape[1]} frames, got {begin} before {end}"
            )
        return codes[:, begin:end]


@dataclass
class HiggsAudioBatchInput:
    """The inputs of the model's `generate`: ids [rows, S], and the delayed codes [codebooks, N] of all recordings."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    audio_features: None
    audio_feature_attention_mask: None
    audio_out_ids: torch.Tensor
    audio_out_ids_start: torch.Tensor
    audio_out_ids_start_group_loc: torch.Tensor | None
    audio_in_ids: torch.Tensor | None
    audio_in_ids_start: torch.Tensor | None
    label_ids: None = None
    label_audio_ids: None = None
    reward: float | None = None


class HiggsAudioSampleCollator:
    """Makes the model's inputs of samples without labels.

    Args:
        whisper_processor: None: recordings reach the model as codes.
        audio_in_token_id, audio_out_token_id: the placeholders of recordings.
        pad_token_id: fills shorter rows.
        audio_stream_bos_id, audio_stream_eos_id: the codes before and after a recording.
        round_to: the width of a batch is a multiple of it.
        pad_left: fill rows on their left.
        encode_whisper_embed: False.
        return_audio_in_tokens: return the codes of recordings in system and user messages; the model needs them.
        audio_num_codebooks: how many of the codebooks to return; None: all.
        use_delay_pattern: delay the codes, as the model reads them.
        disable_audio_codes_transform: the codes have their BOS, EOS and delay already.
        chunk_size_seconds, add_new_bos_eos_for_long_chunk, mask_audio_out_token_label: without effect.

    Raises:
        ParameterError: Whisper's features are asked for, or a setting is of a wrong type or out of range.
    """

    def __init__(
        self,
        whisper_processor: None,
        audio_in_token_id: int,
        audio_out_token_id: int,
        pad_token_id: int,
        audio_stream_bos_id: int,
        audio_stream_eos_id: int,
        round_to: int = 8,
        pad_left: bool = False,
        encode_whisper_embed: bool = False,
        return_audio_in_tokens: bool = True,
        audio_num_codebooks: int | None = None,
        use_delay_pattern: bool = False,
        disable_audio_codes_transform: bool = False,
        chunk_size_seconds: float = 30,
        add_new_bos_eos_for_long_chunk: bool = True,
        mask_audio_out_token_label: bool = True,
    ) -> None:
        check_flag("encode_whisper_embed", encode_whisper_embed)
        if encode_whisper_embed or whisper_processor is not None:
            raise ParameterError("encode_whisper_embed must be False: the model reads recordings as codes, got True")
        for name, token in (
            ("audio_in_token_id", audio_in_token_id),
            ("audio_out_token_id", audio_out_token_id),
            ("pad_token_id", pad_token_id),
            ("audio_stream_bos_id", audio_stream_bos_id),
            ("audio_stream_eos_id", audio_stream_eos_id),
        ):
            check_id(name, token, optional=True)
        check_id("audio_num_codebooks", audio_num_codebooks, optional=True)
        check_id("round_to", round_to)
        if not 1 <= round_to <= MAX_CACHE_LENGTH:
            raise ParameterError(f"round_to must be between 1 and {MAX_CACHE_LENGTH}, got {round_to}")
        for name, flag in (
            ("pad_left", pad_left),
            ("return_audio_in_tokens", return_audio_in_tokens),
            ("use_delay_pattern", use_delay_pattern),
            ("disable_audio_codes_transform", disable_audio_codes_transform),
        ):
            check_flag(name, flag)
        self.audio_in_token_id = audio_in_token_id
        self.audio_out_token_id = audio_out_token_id
        self.pad_token_id = pad_token_id
        self.audio_stream_bos_id = audio_stream_bos_id
        self.audio_stream_eos_id = audio_stream_eos_id
        self.round_to = round_to
        self.pad_left = pad_left
        self.return_audio_in_tokens = return_audio_in_tokens
        self.audio_num_codebooks = audio_num_codebooks
        self.use_delay_pattern = use_delay_pattern
        self.disable_audio_codes_transform = disable_audio_codes_transform

    def __call__(self, batch: Sequence[ChatMLDatasetSample]) -> HiggsAudioBatchInput:
        """Return the inputs of a batch.

        Raises:
            ParameterError: the batch is no list of samples, or a sample has labels.
            PromptError: a sample's ids are none, or a recording's codes are missing.
        """
        if not isinstance(batch, Sequence) or not batch:
            raise ParameterError(f"batch must be a list of at least one sample, got {short_repr(batch)}")
        for sample in batch:
            check_instance("each sample", sample, ChatMLDatasetSample)
        if any(sample.label_ids is not None for sample in batch):
            raise ParameterError("label_ids must be None: the model only generates, got labels")
        rows = [_integers("input_ids", sample.input_ids, 1) for sample in batch]
        width = max(map(len, rows))
        width += -width % self.round_to
        codes: dict[int, list[torch.Tensor]] = {self.audio_in_token_id: [], self.audio_out_token_id: []}
        for sample, row in zip(batch, rows, strict=True):
            placeholders = [token for token in row.tolist() if token in codes]
            for index, token in enumerate(placeholders):
                codes[token].append(self._written(sample.get_audio_codes(index)))
        audio_in = _joined(codes[self.audio_in_token_id]) if self.return_audio_in_tokens else (None, None)
        audio_out = _joined(codes[self.audio_out_token_id])
        groups = torch.arange(len(batch), dtype=torch.int64, device="cpu")
        return HiggsAudioBatchInput(
            input_ids=self._padded(rows, width, self.pad_token_id),
            attention_mask=self._padded([torch.ones_like(row) for row in rows], width, 0),
            audio_features=None,
            audio_feature_attention_mask=None,
            audio_out_ids=audio_out[0],
            audio_out_ids_start=audio_out[1],
            audio_out_ids_start_group_loc=groups if codes[self.audio_out_token_id] else None,
            audio_in_ids=audio_in[0],
            audio_in_ids_start=audio_in[1],
        )

    def _padded(self, rows: Sequence[torch.Tensor], width: int, value: int) -> torch.Tensor:
        missing = [width - len(row) for row in rows]
        sides = [(count, 0) if self.pad_left else (0, count) for count in missing]
        return torch.stack([F.pad(row, side, value=value) for row, side in zip(rows, sides, strict=True)])

    def _written(self, codes: torch.Tensor) -> torch.Tensor:
        """A recording's codes as the model reads them."""
        codes = codes[: self.audio_num_codebooks].long()
        if self.disable_audio_codes_transform:
            return codes
        codes = F.pad(F.pad(codes, (1, 0), value=self.audio_stream_bos_id), (0, 1), value=self.audio_stream_eos_id)
        if not self.use_delay_pattern:
            return codes
        return build_delay_pattern_mask(codes[None], self.audio_stream_bos_id, self.audio_stream_eos_id)[0][0]


def _joined(recordings: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """All recordings in one tensor, and where each begins."""
    if not recordings:
        nothing = torch.zeros(0, dtype=torch.int64, device="cpu")
        return nothing.view(0, 0), nothing
    if len({len(codes) for codes in recordings}) > 1:
        raise PromptError(
            f"all recordings must have as many codebooks, got {short_repr([len(codes) for codes in recordings])}"
        )
    starts = [0, *(codes.shape[1] for codes in recordings[:-1])]
    lengths = torch.tensor(starts, dtype=torch.int64, device="cpu")
    return torch.cat(list(recordings), dim=1), lengths.cumsum(0)


def prepare_chatml_sample(
    sample: ChatMLSample | dict[str, Any], tokenizer: Any
) -> tuple[list[int], list[int], list[AudioContent], str | None]:
    """Tokenize a conversation.

    Args:
        sample: the conversation, or the dictionary that a data set has of it.
        tokenizer: any tokenizer with `encode(text, add_special_tokens=False)`.

    Returns:
        The ids, with a placeholder per recording; the same ids with -100 for all but the assistant's; the recordings;
        and the speaker, or None.

    Raises:
        ParameterError: a value of the sample is of a wrong type, or the tokenizer is none.
        PromptError: the sample is no conversation, or can't be written as Boson's prompts are.
    """
    if not isinstance(sample, ChatMLSample):
        sample = _sample_from_dict(sample)
    messages = checked_messages(sample)
    check_integer("start_index", sample.start_index, optional=True)
    check_string("speaker", sample.speaker, optional=True)
    if not isinstance(sample.misc, dict | None):
        raise ParameterError(f"misc must be a dictionary or None, got {short_repr(sample.misc)}")
    parts = iter(boson.render(messages))
    ids: list[int] = []
    labels: list[int] = []
    for turn, message in enumerate(messages):
        is_labeled = message.role == "assistant" and (sample.start_index is None or turn >= sample.start_index)
        count = 1 + bool(message.recipient) + len(message.contents()) + 1  # with a header, and an end
        for index in range(count):
            tokens = encode_text(tokenizer, next(parts))
            ids += tokens
            labels += tokens if is_labeled and index > 0 else [_NOT_LABELED] * len(tokens)
    recordings = [item for message in messages for item in message.contents() if isinstance(item, AudioContent)]
    return ids, labels, recordings, sample.speaker or (sample.misc or {}).get("speaker")


def _sample_from_dict(raw: dict[str, Any]) -> ChatMLSample:
    def part(content: Any) -> Any:
        if not isinstance(content, dict):
            return content
        kind = AudioContent if content.get("type") == "audio" else TextContent
        return kind(**{key: value for key, value in content.items() if key in _names(kind)})

    def turn(message: Any) -> Message:
        if not isinstance(message, dict):
            raise TypeError(f"a message must be a dictionary, got {type(message).__name__}")
        content = message["content"]
        parts = [part(item) for item in content] if isinstance(content, list) else part(content)
        return Message(message["role"], parts, message.get("recipient"))

    if not isinstance(raw, dict):
        raise PromptError(f"sample must be a ChatMLSample or its dictionary, got {short_repr(raw)}")
    try:
        messages = [turn(message) for message in raw["messages"]]
        return ChatMLSample(messages, **{name: raw.get(name) for name in ("start_index", "misc", "speaker")})
    except (KeyError, TypeError, AttributeError) as error:
        raise PromptError(
            f"sample must be a ChatMLSample or its dictionary, got {short_repr(raw)} ({error})"
        ) from None


def _integers(name: str, value: torch.Tensor, dimensions: int) -> torch.Tensor:
    """The value as int64; raises PromptError unless it is a tensor of integers with so many dimensions."""
    tensor = integer_tensor(name, value, PromptError)
    if tensor.dim() != dimensions:
        raise PromptError(f"{name} must have {dimensions} dimensions, got {list(tensor.shape)}")
    return tensor


def _names(kind: type) -> set[str]:
    return {field.name for field in fields(kind)}
