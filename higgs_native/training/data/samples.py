"""Samples made of conversations: the rows that the model reads, and what each row is to predict."""

import torch
from tokenizers import Tokenizer

from higgs_native.checkpoint.config import HiggsAudioConfig
from higgs_native.convention import Convention
from higgs_native.errors import PromptError
from higgs_native.generation.delay_pattern import build_delay_pattern
from higgs_native.prompt.chat import build_prompt
from higgs_native.prompt.markup import AUDIO_PLACEHOLDERS, header
from higgs_native.training.data.codes import CodesCache
from higgs_native.training.data.manifest import Entry, located
from higgs_native.training.data.rows import IGNORED, Sample


def build_sample(
    entry: Entry,
    cache: CodesCache,
    tokenizer: Tokenizer,
    config: HiggsAudioConfig,
    convention: Convention,
    learns_text: bool = False,
    offset: float = 0.0,
) -> Sample:
    """Return the rows and targets of a conversation.

    Learned are the codes of the replies from `entry.start_index` on, EOS included. BOS, and the EOS that fill up the
    delay pattern, are no targets: generation sets them itself. With `learns_text`, their text is learned where text
    precedes it: generation sets the token after audio itself, too. Recordings begin `offset` frames late (see
    `CodesCache.codes`).

    Raises:
        PromptError, AudioError, CheckpointError: the convention can't express the conversation, or a recording can't
            be used; the message names the line of the manifest.
    """
    with located(entry.location):
        prompt = build_prompt(entry.messages, tokenizer, convention)
        reply = tokenizer.encode(header("assistant"), add_special_tokens=False).ids
        ids = prompt.input_ids[0].tolist()[: -len(reply)]
        learned = _learned(ids, reply, entry, tokenizer)
        placeholders = [tokenizer.token_to_id(token) for token in AUDIO_PLACEHOLDERS]
        clips = iter(entry.clips())
        rows: list[torch.Tensor | int] = []
        text_targets: list[int] = []
        audio_targets: list[torch.Tensor] = []
        nothing = torch.full((config.num_codebooks,), IGNORED)
        for token, is_learned in zip(ids, learned, strict=True):
            if token not in placeholders:
                follows_text = bool(rows) and isinstance(rows[-1], int)
                rows.append(token)
                text_targets.append(token if learns_text and is_learned and follows_text else IGNORED)
                audio_targets.append(nothing)
                continue
            delayed = build_delay_pattern(cache.codes(next(clips), offset), config).to(torch.int64)
            rows += delayed.unbind(0)
            text_targets += [IGNORED] * len(delayed)
            audio_targets += frame_targets(delayed).unbind(0) if is_learned else [nothing] * len(delayed)
        is_audio = torch.tensor([not isinstance(row, int) for row in rows])
        frames = [row for row in rows if not isinstance(row, int)]
        # Row n predicts row n + 1.
        text, audio = torch.tensor([*text_targets[1:], IGNORED]), torch.stack([*audio_targets[1:], nothing])
        if bool((text == IGNORED).all()) and bool((audio == IGNORED).all()):
            raise PromptError("messages must hold a recording of the assistant from start_index on, got none")
        return Sample(
            token_ids=torch.tensor([row for row in rows if isinstance(row, int)], dtype=torch.int64),
            codes=torch.stack(frames) if frames else torch.empty(0, config.num_codebooks, dtype=torch.int64),
            is_audio=is_audio,
            text_targets=text,
            audio_targets=audio,
        )


def frame_targets(frames: torch.Tensor) -> torch.Tensor:
    """Return the targets [N, codebooks] of a segment: its codes and the EOS after them, without what fills up."""
    num_frames, num_codebooks = frames.shape
    entries = torch.arange(num_frames)[:, None] - torch.arange(num_codebooks)
    # Entry 0 is BOS; the last one is EOS.
    return torch.where((entries >= 1) & (entries <= num_frames - num_codebooks), frames, IGNORED)


def _learned(ids: list[int], reply: list[int], entry: Entry, tokenizer: Tokenizer) -> list[bool]:
    """Return for each token whether it belongs to a reply that is learned, its header left out."""
    begin = tokenizer.token_to_id("<|start_header_id|>")
    # A scene is folded into the system message in one of the conventions.
    indices = [index for index, message in enumerate(entry.messages) if message.role != "scene"]
    begins = [position for position, token in enumerate(ids) if token == begin]
    if len(begins) != len(indices):
        raise PromptError(f"messages must hold no <|start_header_id|> in their texts, got {len(begins)} of it")
    learned = [False] * len(ids)
    for index, start, end in zip(indices, begins, [*begins[1:], len(ids)], strict=True):
        if index >= entry.start_index and entry.messages[index].role == "assistant":
            start += len(reply)
            learned[start:end] = [True] * (end - start)
    return learned
