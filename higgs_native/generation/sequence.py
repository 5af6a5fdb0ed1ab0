"""Requests, the sequences that they become, and outputs."""

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from higgs_native.errors import PromptError
from higgs_native.generation.delay_pattern import Rule, delayed_reference
from higgs_native.generation.sampling_params import _check_seed
from higgs_native.model.transformer import LanguageModel


OnFrame = Callable[[torch.Tensor], None]


OnToken = Callable[[int], None]


class GenerationMode(enum.Enum):
    """What the next step of a sequence gives."""

    TEXT = "text"
    AUDIO_INIT = "audio_init"
    AUDIO_IN_PROGRESS = "audio_in_progress"


@dataclass(frozen=True)
class GenerationRequest:
    """A prompt to go on from.

    Attributes:
        input_ids: [1, S] or [S], integers; one audio placeholder for each of `reference_codes`.
        reference_codes: [codebooks, T] integers each, without BOS, EOS and delay.
        partial_audio: [codebooks, N] integers, or None: delayed frames, from the all-BOS frame on, of an audio segment
            that the prompt's end has begun (it then ends in `<|audio_out_bos|>`) and generation goes on with.
        seed: overrides the sampling parameters' seed for this prompt.
        on_frame: called with each frame [codebooks], int64, as it is drawn, still delayed.
        on_token: called with each text token as it is drawn; an audio segment that came before it has ended.
        delayed_frames: [N, codebooks] integers, or None: the frames of `input_ids` where these are expanded already,
            as transformers' processor does it: one for each audio placeholder and delay token. They take the place of
            `reference_codes`; generation goes on wherever they end (transformers' rule only).
    """

    input_ids: torch.Tensor
    reference_codes: Sequence[torch.Tensor] = ()
    partial_audio: torch.Tensor | None = None
    seed: int | None = None
    on_frame: OnFrame | None = None
    on_token: OnToken | None = None
    delayed_frames: torch.Tensor | None = None


@dataclass
class GenerationOutput:
    """What was generated after a prompt.

    Attributes:
        audio_segments: [codebooks, N] int64 each, still delayed, from the all-BOS frame on.
        text_ids: the text tokens; one audio placeholder stands for a whole segment.
        finish_reason: "stop" (a stop string, or the end of the audio where no text follows) or "length"
            (`max_new_tokens`, or the cache is full).
        prompt_tokens: positions of the prompt, references' frames included.
        completion_tokens: steps made, text tokens and frames.
        cached_tokens: positions of the prompt that were not computed: an earlier prompt began alike.
        audio_logits: [frames drawn, codebooks, codebook_size] float32, with `output_logits`.
        text_logits: [text steps, vocabulary] float32, with `output_logits`.
    """

    audio_segments: list[torch.Tensor]
    text_ids: list[int]
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    audio_logits: torch.Tensor | None = None
    text_logits: torch.Tensor | None = None

    @property
    def usage(self) -> dict[str, int]:
        """How many tokens the prompt, the reply, and both together have."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }


@dataclass
class _Sequence:
    """A prompt on its way: what its next forward pass takes, and what came out so far."""

    request: GenerationRequest
    slot: int
    mode: GenerationMode
    # The rows of the next forward pass, in order: a token id, or a delayed frame [codebooks].
    pending: list[int | torch.Tensor]
    prompt_tokens: int
    # The prompt's frames that repetition-aware sampling looks back at, and its last ids, one a position.
    prompt_frames: list[torch.Tensor]
    prompt_ids: list[int]
    cached_tokens: int = 0
    position: int = 0
    text_position: int = 0
    steps: int = 0
    segments: list[list[torch.Tensor]] = field(default_factory=list)
    text_ids: list[int] = field(default_factory=list)
    audio_logits: list[torch.Tensor] = field(default_factory=list)
    text_logits: list[torch.Tensor] = field(default_factory=list)
    finish_reason: Literal["stop", "length"] | None = None

    # Callbacks run outside of inference mode: tensors made in it could not be changed by those who receive them.

    def add_frame(self, frame: torch.Tensor) -> None:
        self.segments[-1].append(frame)
        self.pending = [frame]
        if self.request.on_frame is not None:
            with torch.inference_mode(False):
                self.request.on_frame(frame.to(torch.int64, copy=True))

    def draws_next(self) -> bool:
        """Whether the next step is a frame after a frame."""
        return (
            self.mode is GenerationMode.AUDIO_IN_PROGRESS
            and len(self.pending) == 1
            and not isinstance(self.pending[0], int)
        )

    def add_token(self, token: int) -> None:
        self.text_ids.append(token)
        self.pending = [token]
        if self.request.on_token is not None:
            with torch.inference_mode(False):
                self.request.on_token(token)


def _begin(model: LanguageModel, request: GenerationRequest, slot: int, rule: Rule) -> _Sequence:
    """Check a prompt and expand its placeholders."""
    config = model.config
    ids = request.input_ids
    if ids.dim() == 2 and ids.shape[0] == 1:
        ids = ids[0]
    _check_seed(request.seed)
    if ids.is_floating_point():
        raise PromptError(f"input_ids must be integers, got {ids.dtype}")
    if ids.dim() != 1 or len(ids) == 0:
        raise PromptError(
            f"input_ids must have shape [1, S] with S of at least 1, got {list(request.input_ids.shape)}"
        )
    ids = ids.tolist()
    for token in (min(ids), max(ids)):
        if not 0 <= token < config.vocab_size:
            raise PromptError(f"input_ids must lie between 0 and {config.vocab_size - 1}, got {token}")
    if request.delayed_frames is not None:
        return _begin_expanded(model, request, slot, rule, ids)
    audio_in = _audio_in_token_id(model) if rule == "boson" else config.audio_in_token_id
    audio_ids = (audio_in, config.audio_out_token_id)
    placeholders = sum(token in audio_ids for token in ids)
    if placeholders != len(request.reference_codes):
        raise PromptError(
            f"input_ids has {placeholders} audio placeholders for {len(request.reference_codes)} reference_codes"
        )
    references = iter(request.reference_codes)
    pending: list[int | torch.Tensor] = []
    prompt_ids: list[int] = []
    prompt_frames: list[torch.Tensor] = []
    # transformers' rule marks the frames that close a delay pattern.
    closing = config.num_codebooks - 1 if rule == "transformers" and config.audio_delay_token_id is not None else 0
    for token in ids:
        if token not in audio_ids:
            pending.append(token)
            prompt_ids.append(token)
            continue
        frames = delayed_reference(model, next(references)).unbind(0)
        pending += frames
        prompt_ids += [token] * (len(frames) - closing) + [config.audio_delay_token_id] * closing
        # The original looks for repetitions among the assistant's audio alone.
        if rule == "transformers" or token == config.audio_out_token_id:
            prompt_frames += frames

    in_audio = isinstance(pending[-1], int) and pending[-1] == config.audio_out_bos_token_id
    if rule == "transformers" and not in_audio:
        raise PromptError("under the rule 'transformers' a prompt must end in <|audio_out_bos|>")
    if not in_audio:
        model.require_text_head()
    mode = GenerationMode.TEXT
    segments: list[list[torch.Tensor]] = []
    if in_audio:
        mode = GenerationMode.AUDIO_INIT if rule == "boson" else GenerationMode.AUDIO_IN_PROGRESS
        segments = [[]]
    if request.partial_audio is not None:
        partial = request.partial_audio
        if not in_audio:
            raise PromptError("partial_audio goes on after <|audio_out_bos|>, which must be the prompt's last id")
        if partial.dim() != 2 or partial.shape[0] != config.num_codebooks or partial.shape[1] < 1:
            raise PromptError(
                f"partial_audio must have shape [{config.num_codebooks}, N] with N of at least 1, "
                f"got {list(partial.shape)}"
            )
        frames = partial.T.to(device="cpu", dtype=torch.int32).contiguous().unbind(0)
        pending += frames
        prompt_frames += frames
        segments = [list(frames)]
        mode = GenerationMode.AUDIO_IN_PROGRESS
    _check_length(model, len(pending))
    return _Sequence(request, slot, mode, pending, len(pending), prompt_frames, prompt_ids, segments=segments)


def _begin_expanded(
    model: LanguageModel, request: GenerationRequest, slot: int, rule: Rule, ids: list[int]
) -> _Sequence:
    """Check a prompt whose placeholders are expanded, and give each its frame."""
    config = model.config
    frames = request.delayed_frames
    if rule != "transformers" or request.reference_codes or request.partial_audio is not None:
        raise PromptError("delayed_frames are for the rule 'transformers', without reference_codes and partial_audio")
    audio = [token in (config.audio_out_token_id, config.audio_delay_token_id) for token in ids]
    if frames.dim() != 2 or frames.shape[1] != config.num_codebooks or len(frames) != sum(audio):
        raise PromptError(
            f"delayed_frames must have shape [{sum(audio)}, {config.num_codebooks}], one frame for each audio "
            f"placeholder and delay token of input_ids, got {list(frames.shape)}"
        )
    if frames.numel() and not 0 <= int(frames.min()) <= int(frames.max()) < config.codebook_size:
        raise PromptError(f"delayed_frames must lie between 0 and {config.codebook_size - 1}")
    prompt_frames = list(frames.to(device="cpu", dtype=torch.int32).contiguous().unbind(0))
    remaining = iter(prompt_frames)
    pending = [next(remaining) if is_audio else token for token, is_audio in zip(ids, audio, strict=True)]
    _check_length(model, len(pending))
    mode = GenerationMode.AUDIO_IN_PROGRESS
    return _Sequence(request, slot, mode, pending, len(pending), prompt_frames, ids, segments=[[]])


def _check_length(model: LanguageModel, positions: int) -> None:
    if positions >= model.max_cache_length:
        raise PromptError(
            f"the prompt takes {positions} positions with its references; "
            f"the cache holds {model.max_cache_length} (max_cache_length), the output's included"
        )


def _audio_in_token_id(model: LanguageModel) -> int | None:
    """The placeholder of audio in a system or user message: as the next one, left to the tokenizer."""
    if model.config.audio_in_token_id is None and model.tokenizer is not None:
        return model.tokenizer.token_to_id("<|AUDIO|>")
    return model.config.audio_in_token_id


def _output(model: LanguageModel, sequence: _Sequence, output_logits: bool) -> GenerationOutput:
    config = model.config
    segments = [torch.stack(frames, dim=1).long() for frames in sequence.segments if frames]
    text_ids = list(sequence.text_ids)
    if sequence.mode is GenerationMode.AUDIO_IN_PROGRESS:
        text_ids.append(config.audio_out_token_id)
    output = GenerationOutput(
        audio_segments=segments,
        text_ids=text_ids,
        finish_reason=sequence.finish_reason or "length",
        prompt_tokens=sequence.prompt_tokens,
        completion_tokens=sequence.steps,
        cached_tokens=sequence.cached_tokens,
    )
    if output_logits:
        shape = (0, config.num_codebooks, config.codebook_size)
        output.audio_logits = torch.stack(sequence.audio_logits) if sequence.audio_logits else torch.empty(shape)
        output.text_logits = (
            torch.stack(sequence.text_logits) if sequence.text_logits else torch.empty(0, config.vocab_size)
        )
    return output
