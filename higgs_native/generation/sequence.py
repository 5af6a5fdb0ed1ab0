"""A sequence: a request in progress."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from higgs_native.generation.conventions import behavior_of
from higgs_native.generation.conventions.behavior import Behavior, GenerationMode
from higgs_native.generation.requests import FinishReason, GenerationOutput, GenerationRequest
from higgs_native.model.low_rank import PackedAdapter
from higgs_native.model.transformer import LanguageModel


Frame = tuple[int, ...]
"""The delayed codes of a frame, one per codebook. No tensor: each call of torch takes several microseconds."""
Row = int | Frame
"""A row of a sequence: a token id or a frame."""


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
        adapter: the adapter of all its rows; None: none.
        page_keys: the keys of the prompt's full pages (see `generation.steps.pages`).
        emit: called with each frame and each text token as it is drawn.
        output_logits: whether the logits that each step draws from are kept.
        slot: its slot in the cache and in the sampler; -1 while it waits.
        pages: the pages of the cache that it holds, in order of their positions.
        computed: the number of rows whose keys and values are in the cache.
        text_computed: the number of text rows among them.
        cached_tokens: positions of the prompt that were found in shared pages when it was first computed.
        steps: steps made so far.
        segments: the frames of each audio segment.
        text_ids: the text tokens, and an audio placeholder per finished segment.
        audio_logits, text_logits: with `output_logits`, the logits of each frame and of each text step.
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
    def behavior(self) -> Behavior:
        """The behavior of the request's convention."""
        return behavior_of(self.request.known_convention)

    @property
    def num_pending(self) -> int:
        """The number of rows that are not computed; after the last of them, a frame or a token is drawn."""
        return len(self.rows) - self.computed

    @property
    def decodes(self) -> bool:
        """Whether the next step can be the model runner's: one pending frame, inside audio, no logits kept."""
        return (
            self.num_pending == 1
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
        """Append the next frame."""
        self.segments[-1].append(frame)
        self.history.append(frame)
        self.rows.append(frame)
        self.emit(frame)

    def add_token(self, model: LanguageModel, token: int) -> None:
        """Append the next text token: it may begin an audio segment, or end the reply."""
        self._append_token(token)
        if token == model.config.audio_out_bos_token_id:
            self.mode = GenerationMode.AUDIO_INIT
            self.segments.append([])
        elif self._ends_reply(model):
            self.finish_reason = "stop"

    def end_audio(self, model: LanguageModel) -> None:
        """End an audio segment: the convention's token follows it, or the reply ends too."""
        next_token = self.behavior.text_after_audio(model)
        if next_token is None:
            self.finish_reason = "stop"
            return
        self.text_ids.append(model.config.audio_out_token_id)
        self.mode = GenerationMode.TEXT
        self.rows.pop()  # the token takes the position of the last frame
        self._append_token(next_token)
        if self._ends_reply(model):
            self.finish_reason = "stop"

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

    def _append_token(self, token: int) -> None:
        self.text_ids.append(token)
        self.rows.append(token)
        self.emit(token)

    def _ends_reply(self, model: LanguageModel) -> bool:
        return self.behavior.ends_reply(model, self.text_ids, self.request.known_sampling.stop_strings)


def _segment(frames: Sequence[Frame]) -> torch.Tensor:
    """Return the codes [codebooks, N] of frames."""
    return torch.tensor(frames, dtype=torch.int64, device="cpu").T.contiguous()
