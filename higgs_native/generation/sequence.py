"""Requests, the sequences that the engine makes of them, and outputs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch

from higgs_native.convention import Convention
from higgs_native.errors import PromptError, short_repr
from higgs_native.generation.conventions import rules_of
from higgs_native.generation.conventions.rules import GenerationMode, Rules
from higgs_native.generation.delay_pattern import build_delay_pattern
from higgs_native.generation.sampling_params import SamplingParams
from higgs_native.generation.steps.pages import page_keys
from higgs_native.model.low_rank import PackedAdapter
from higgs_native.model.transformer import LanguageModel
from higgs_native.utils.checks import check_callable, check_flag, check_instance, check_integer, check_string
from higgs_native.utils.tensors import integer_tensor


FinishReason = Literal["stop", "length", "aborted"]
OnFrame = Callable[[torch.Tensor], None]
OnToken = Callable[[int], None]
WantsItems = Callable[[int], bool]
Frame = tuple[int, ...]
"""The delayed codes of a frame, one per codebook. No tensor: each call of torch takes several microseconds."""
Row = int | Frame
"""A row of a sequence: a token id or a frame."""


@dataclass(frozen=True)
class GenerationRequest:
    """A prompt, and how to generate after it.

    Attributes:
        input_ids: [1, S] or [S], integers; one audio placeholder per item of `reference_codes`.
        reference_codes: [codebooks, T] integers each, without BOS, EOS and delay.
        convention: sets the delay pattern, the end and the stop strings; its name is accepted too. None: `boson`, with
            Higgs TTS 3 `higgs_tts_3`.
        sampling: how to draw, and when to stop; None: the defaults of the convention.
        partial_audio: [codebooks, N] integers, or None: delayed frames of an unfinished audio segment, BOS frame
            first, which generation continues. The prompt then ends in `<|audio_out_bos|>`.
        delayed_frames: [N, codebooks] integers, or None: the frames of `input_ids` that the caller has expanded, one
            per audio placeholder and, as transformers' processor has them, delay token. They replace
            `reference_codes`; generation continues wherever they end (not in Boson's convention).
        on_frame: called with each frame [codebooks], int64, as it is drawn, still delayed.
        on_token: called with each text token as it is drawn, after the end of any audio segment before it.
        wants_items: given the number of frames and tokens that were drawn since the last call of a callback,
            returns whether to call back for them now; asked after each step, maybe by another thread. None: at once.
        adapter: the name of an adapter that the model has loaded; None: none.
        priority: requests of higher priority get a slot first.
        real_time: each frame is played as it comes; the engine plans for a playback without pauses.
    """

    input_ids: torch.Tensor
    reference_codes: Sequence[torch.Tensor] = ()
    convention: Convention | None = None
    sampling: SamplingParams | None = None
    partial_audio: torch.Tensor | None = None
    delayed_frames: torch.Tensor | None = None
    on_frame: OnFrame | None = None
    on_token: OnToken | None = None
    wants_items: WantsItems | None = None
    adapter: str | None = None
    priority: int = 0
    real_time: bool = False

    def __post_init__(self) -> None:
        if self.convention is not None:
            object.__setattr__(self, "convention", Convention.parse(self.convention))
        if self.sampling is not None:
            check_instance("sampling", self.sampling, SamplingParams)
        check_callable("on_frame", self.on_frame, optional=True)
        check_callable("on_token", self.on_token, optional=True)
        check_string("adapter", self.adapter, optional=True)
        check_integer("priority", self.priority)
        check_flag("real_time", self.real_time)
        try:
            object.__setattr__(self, "reference_codes", tuple(self.reference_codes))
        except TypeError:
            got = short_repr(self.reference_codes)
            raise PromptError(f"reference_codes must be a list of tensors, got {got}") from None

    @property
    def known_convention(self) -> Convention:
        """The convention of a request that an engine has taken."""
        assert self.convention is not None
        return self.convention

    @property
    def known_sampling(self) -> SamplingParams:
        """The sampling parameters of a request that an engine has taken."""
        assert self.sampling is not None
        return self.sampling


@dataclass
class GenerationOutput:
    """The output of a request.

    Attributes:
        audio_segments: [codebooks, N] int64 each, still delayed, from the first frame on, which is BOS but with Higgs
            TTS 3.
        text_ids: the text tokens; one audio placeholder stands for a whole segment.
        finish_reason: "stop" (a stop string, or the end of audio that no text follows), "length"
            (`max_new_tokens`, or the cache is full) or "aborted" (its caller ended it).
        prompt_tokens: positions of the prompt, the references' frames included.
        completion_tokens: steps made, text tokens and frames.
        cached_tokens: positions of the prompt that an earlier prompt had computed.
        audio_logits: [frames drawn, codebooks, codebook_size] float32; None without `output_logits`.
        text_logits: [text steps, vocabulary] float32; None without `output_logits`.
    """

    audio_segments: list[torch.Tensor]
    text_ids: list[int]
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    audio_logits: torch.Tensor | None = None
    text_logits: torch.Tensor | None = None

    @property
    def usage(self) -> dict[str, int]:
        """The number of tokens of the prompt, of the reply, and of both together."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }


@dataclass(eq=False)
class SequenceState:
    """A request in progress: all of its rows, and what was generated so far.

    Attributes:
        request: the request; its convention, its sampling parameters and their seed are set.
        mode: what the next step generates.
        rows: the prompt's rows, then those that were generated; row n has position n.
        prompt_tokens: positions of the whole prompt.
        history: the frames that repetition-aware sampling counts: those of the prompt, then those generated.
        prompt_ids: the prompt's ids, one per position.
        adapter: of all its rows.
        page_keys: the keys of the prompt's whole pages (see `generation.steps.pages`).
        emit: called with each frame and each text token as it is drawn.
        output_logits: keep the logits that each step drew from.
        slot: its slot in the cache and in the sampler; -1 while it waits.
        pages: the pages of the cache that it holds, in order of their positions.
        computed: the number of rows whose keys and values are in the cache.
        text_computed: the number of text rows among them.
        cached_tokens: positions of the prompt that were found in shared pages when it was first computed.
        steps: steps made so far.
        segments: the frames of each audio segment.
        finish_reason: as in `GenerationOutput`; None while the sequence is generated.
    """

    request: GenerationRequest
    mode: GenerationMode
    rows: list[Row]
    prompt_tokens: int
    history: list[Frame]
    prompt_ids: list[int]
    adapter: PackedAdapter | None = None
    page_keys: list[bytes] = field(default_factory=list)
    emit: Callable[[Row], None] = lambda item: None
    output_logits: bool = False
    slot: int = -1
    pages: list[int] = field(default_factory=list)
    computed: int = 0
    text_computed: int = 0
    cached_tokens: int = 0
    steps: int = 0
    segments: list[list[Frame]] = field(default_factory=list)
    text_ids: list[int] = field(default_factory=list)
    audio_logits: list[torch.Tensor] = field(default_factory=list)
    text_logits: list[torch.Tensor] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    @property
    def rules(self) -> Rules:
        """The rules of the request's convention."""
        return rules_of(self.request.known_convention)

    @property
    def num_pending(self) -> int:
        """The number of rows that are not computed; after the last of them, a frame or a token is drawn."""
        return len(self.rows) - self.computed

    @property
    def decodes(self) -> bool:
        """Whether the model runner can do the next step alone: one pending frame, inside audio."""
        return (
            len(self.rows) - self.computed == 1
            and self.mode is GenerationMode.AUDIO_IN_PROGRESS
            and not isinstance(self.rows[-1], int)
            and not self.output_logits
        )

    def max_length(self, model: LanguageModel) -> int:
        """Return the maximum number of positions."""
        return min(self.prompt_tokens + self.request.known_sampling.max_new_tokens, model.max_cache_length)

    def steps_left(self, model: LanguageModel) -> int:
        """Return the number of steps until `max_new_tokens` or the end of the cache, counted from the last row."""
        steps = self.request.known_sampling.max_new_tokens - self.steps
        return min(steps, self.max_length(model) - len(self.rows) + 1)

    def add_frame(self, frame: Frame) -> None:
        """Take the next frame."""
        self.segments[-1].append(frame)
        self.history.append(frame)
        self.rows.append(frame)
        self.emit(frame)

    def add_token(self, token: int) -> None:
        """Take the next text token."""
        self.text_ids.append(token)
        self.rows.append(token)
        self.emit(token)

    def end_audio(self, model: LanguageModel, next_token: int | None) -> None:
        """Take the end of an audio segment: `next_token` follows it, or nothing."""
        if next_token is None:
            self.finish_reason = "stop"
        else:
            self.text_ids.append(model.config.audio_out_token_id)
            self.mode = GenerationMode.TEXT
            self.rows.pop()  # the token stands in place of the last frame
            self.add_token(next_token)

    def end_at_limit(self, model: LanguageModel) -> None:
        """End the sequence if `max_new_tokens` or the end of the cache is reached."""
        if self.finish_reason is None and self.steps_left(model) <= 0:
            self.finish_reason = "length"

    def output(self, model: LanguageModel) -> GenerationOutput:
        """Return what was generated."""
        config = model.config
        text_ids = list(self.text_ids)
        if self.mode is GenerationMode.AUDIO_IN_PROGRESS:
            text_ids.append(config.audio_out_token_id)
        output = GenerationOutput(
            audio_segments=[_segment(frames) for frames in self.segments if frames],
            text_ids=text_ids,
            finish_reason=self.finish_reason or "length",
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.steps,
            cached_tokens=self.cached_tokens,
        )
        if self.output_logits:
            shape = 0, config.num_codebooks, config.codebook_size
            no_frames = torch.empty(shape, dtype=torch.float32, device=model.device)
            output.audio_logits = torch.stack(self.audio_logits) if self.audio_logits else no_frames
            no_tokens = torch.empty(0, config.vocab_size, dtype=torch.float32, device=model.device)
            output.text_logits = torch.stack(self.text_logits) if self.text_logits else no_tokens
        return output


def begin_sequence(model: LanguageModel, request: GenerationRequest) -> SequenceState:
    """Check a request, and expand the placeholders of its prompt.

    Raises:
        ParameterError: `request` is no GenerationRequest, of a convention that the model does not follow, or of an
            adapter that it does not have.
        PromptError: the prompt does not fit the model, its references, or the cache.
        CheckpointError: text is asked for, and the checkpoint has no text head.
    """
    check_instance("request", request, GenerationRequest)
    convention = model.config.convention_of(request.convention)
    rules = rules_of(convention)
    ids = _checked_ids(model, request.input_ids, rules)
    sampling = rules.default_sampling if request.sampling is None else request.sampling
    request = replace(request, convention=convention, sampling=sampling.with_seed())
    adapter = None if request.adapter is None else model.require_adapter(request.adapter)
    begin = _begin_prompt if request.delayed_frames is None else _begin_expanded
    sequence = begin(model, request, ids)
    sequence.adapter = adapter
    if sequence.prompt_tokens >= model.max_cache_length:
        raise PromptError(
            f"input_ids must take fewer than {model.max_cache_length} positions (max_cache_length), references "
            f"included, got {sequence.prompt_tokens}"
        )
    # Layers that audio rows skip number their positions by text rows, so a page of theirs depends on later rows too.
    if not any(map(model.config.skips_audio, range(model.config.num_hidden_layers))):
        # The last row is always computed: the first step draws from its state.
        sequence.page_keys = page_keys(sequence.rows[:-1], "" if adapter is None else adapter.fingerprint)
    return sequence


def _checked_ids(model: LanguageModel, input_ids: torch.Tensor, rules: Rules) -> list[int]:
    input_ids = integer_tensor("input_ids", input_ids, PromptError)
    prompt = input_ids[0] if input_ids.dim() == 2 and input_ids.shape[0] == 1 else input_ids
    if prompt.dim() != 1 or len(prompt) == 0:
        raise PromptError(f"input_ids must have shape [1, S] with S of at least 1, got {list(input_ids.shape)}")
    ids: list[int] = prompt.tolist()
    placeholders = rules.placeholders(model)
    tokens = [token for token in ids if token not in placeholders]
    low, high = min(tokens, default=0), max(tokens, default=0)
    if low < 0 or high >= model.config.vocab_size:
        raise PromptError(
            f"input_ids must be between 0 and {model.config.vocab_size - 1}, got {low if low < 0 else high}"
        )
    return ids


def _begin_prompt(model: LanguageModel, request: GenerationRequest, ids: list[int]) -> SequenceState:
    """Begin after a prompt with one placeholder per recording."""
    rows, prompt_ids, prompt_frames = _expand_placeholders(model, request, ids)
    mode = rules_of(request.known_convention).first_mode(model, ids, request.partial_audio is not None)
    segments: list[list[Frame]] = [] if mode is GenerationMode.TEXT else [[]]
    sequence = SequenceState(request, mode, rows, len(rows), prompt_frames, prompt_ids, segments=segments)
    if request.partial_audio is not None:
        _resume_audio(sequence, _checked_partial_audio(model, request))
    return sequence


def _expand_placeholders(
    model: LanguageModel, request: GenerationRequest, ids: list[int]
) -> tuple[list[Row], list[int], list[Frame]]:
    """Return the prompt's rows, its ids (one per row), and the frames that repetition-aware sampling counts."""
    config, rules = model.config, rules_of(request.known_convention)
    placeholders = rules.placeholders(model)
    count = sum(token in placeholders for token in ids)
    if count != len(request.reference_codes):
        raise PromptError(
            f"reference_codes must have {count} items, one per audio placeholder of input_ids, "
            f"got {len(request.reference_codes)}"
        )
    references = iter(request.reference_codes)
    rows: list[Row] = []
    prompt_ids: list[int] = []
    prompt_frames: list[Frame] = []
    for token in ids:
        if token not in placeholders:
            rows.append(token)
            prompt_ids.append(token)
            continue
        frames = _frames(build_delay_pattern(next(references), config, request.known_convention))
        rows += frames
        prompt_ids += rules.ids_of_frames(token, len(frames), config)
        if rules.counts_repetitions(token, config):
            prompt_frames += frames
    return rows, prompt_ids, prompt_frames


def _resume_audio(sequence: SequenceState, frames: Sequence[Frame]) -> None:
    """Append the frames of an unfinished segment to the prompt."""
    sequence.rows += frames
    sequence.prompt_tokens += len(frames)
    sequence.history += frames
    sequence.segments = [list(frames)]
    sequence.mode = GenerationMode.AUDIO_IN_PROGRESS


def _begin_expanded(model: LanguageModel, request: GenerationRequest, ids: list[int]) -> SequenceState:
    """Begin after a prompt with one placeholder per frame."""
    config, frames = model.config, integer_tensor("delayed_frames", request.delayed_frames, PromptError)
    placeholders = rules_of(request.known_convention).frame_placeholders(config)
    if not placeholders or request.reference_codes or request.partial_audio is not None:
        raise PromptError(
            f"delayed_frames must be None in the convention {Convention.BOSON.value!r}, and with reference_codes or "
            "partial_audio, got a tensor"
        )
    is_audio = [token in placeholders for token in ids]
    if frames.dim() != 2 or frames.shape[1] != config.num_codebooks or len(frames) != sum(is_audio):
        raise PromptError(
            f"delayed_frames must have shape [{sum(is_audio)}, {config.num_codebooks}], one frame per audio "
            f"placeholder and delay token of input_ids, got {list(frames.shape)}"
        )
    _check_codes("delayed_frames", frames, config.codebook_size)
    prompt_frames = _frames(frames)
    remaining = iter(prompt_frames)
    pending = [next(remaining) if audio else token for token, audio in zip(ids, is_audio, strict=True)]
    mode = GenerationMode.AUDIO_IN_PROGRESS
    return SequenceState(request, mode, pending, len(pending), prompt_frames, ids, segments=[[]])


def _checked_partial_audio(model: LanguageModel, request: GenerationRequest) -> list[Frame]:
    config = model.config
    partial = integer_tensor("partial_audio", request.partial_audio, PromptError)
    if partial.dim() != 2 or partial.shape[0] != config.num_codebooks or partial.shape[1] < 1:
        raise PromptError(
            f"partial_audio must have shape [{config.num_codebooks}, N] with N of at least 1, "
            f"got {list(partial.shape)}"
        )
    _check_codes("partial_audio", partial, config.codebook_size)
    frames = _frames(partial.T)
    rules = rules_of(request.known_convention)
    if rules.has_bos_frame and set(frames[0]) != {config.audio_stream_bos_id}:
        raise PromptError(f"partial_audio must begin with a frame of BOS in all codebooks, got {list(frames[0])}")
    if set(frames[-1]) == {config.audio_stream_eos_id}:
        raise PromptError("partial_audio must not have ended, got EOS in all codebooks of its last frame")
    return frames


def _segment(frames: Sequence[Frame]) -> torch.Tensor:
    """Return the codes [codebooks, N] of frames."""
    return torch.tensor(frames, dtype=torch.int64, device="cpu").T.contiguous()


def _frames(codes: torch.Tensor) -> list[Frame]:
    """Return the frames of codes [N, codebooks]."""
    return list(map(tuple, codes.tolist()))


def _check_codes(name: str, codes: torch.Tensor, codebook_size: int) -> None:
    if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < codebook_size:
        raise PromptError(
            f"{name} must be between 0 and {codebook_size - 1}, got {int(codes.min())} to {int(codes.max())}"
        )
