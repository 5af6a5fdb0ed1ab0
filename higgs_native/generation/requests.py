"""Requests as callers write them, and their outputs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from higgs_native.convention import Convention
from higgs_native.errors import ParameterError, PromptError, short_repr
from higgs_native.generation.sampling_params import SamplingParams
from higgs_native.utils.checks import check_callable, check_instance, check_integer, check_number, check_string


FinishReason = Literal["stop", "length", "aborted"]
OnFrame = Callable[[torch.Tensor], None]
OnToken = Callable[[int], None]
WantsItems = Callable[[int], bool]


@dataclass(frozen=True)
class Playback:
    """The playback of audio while it is generated. The engine plans for an early start and no pauses.

    Attributes:
        lag: frames that must follow a frame before it can be played: the delay and the decoder's lookahead.
        first: frames of the first chunk that is played.
        ahead: seconds of earlier audio that are still to be played when the request is added.
    """

    lag: int = 0
    first: int = 1
    ahead: float = 0.0

    def __post_init__(self) -> None:
        check_integer("lag", self.lag)
        check_integer("first", self.first)
        check_number("ahead", self.ahead)
        if self.lag < 0 or self.first < 1 or not 0 <= self.ahead < float("inf"):
            raise ParameterError(
                f"lag and ahead must be at least 0 and first at least 1, got {self.lag}, {self.ahead} and {self.first}"
            )


@dataclass(frozen=True)
class GenerationRequest:
    """A prompt, and how to generate for it.

    Attributes:
        input_ids: [1, S] or [S], integers; one audio placeholder per item of `reference_codes`.
        reference_codes: [codebooks, T] integers each, without BOS, EOS and delay.
        convention: sets the delay pattern, the end and the stop strings; its name is accepted too. None: `boson`, with
            Higgs TTS 3 `higgs_tts_3`.
        sampling: how to draw, and when to stop; None: the defaults of the convention.
        partial_audio: [codebooks, N] integers, or None: delayed frames of an unfinished audio segment, BOS frame
            first; generation continues them. The prompt then ends in `<|audio_out_bos|>`.
        delayed_frames: [N, codebooks] integers, or None: the frames of `input_ids` that the caller has expanded, one
            per audio placeholder and, as transformers' processor has them, delay token. They replace
            `reference_codes`; generation continues wherever they end (not in Boson's convention).
        on_frame: called with each frame [codebooks], int64, as it is drawn, still delayed.
        on_token: called with each text token as it is drawn, after the end of any audio segment before it.
        wants_items: takes the number of items (frames and tokens) that no callback has had yet, and returns whether
            to call back for them now. It is called after each step, maybe in another thread. None: always.
        adapter: the name of an adapter that the model has loaded; None: none.
        priority: requests of higher priority get a slot first.
        playback: set if the audio is played while it is generated.
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
    playback: Playback | None = None

    def __post_init__(self) -> None:
        if self.convention is not None:
            object.__setattr__(self, "convention", Convention.parse(self.convention))
        if self.sampling is not None:
            check_instance("sampling", self.sampling, SamplingParams)
        check_callable("on_frame", self.on_frame, optional=True)
        check_callable("on_token", self.on_token, optional=True)
        check_string("adapter", self.adapter, optional=True)
        check_integer("priority", self.priority)
        if self.playback is not None:
            check_instance("playback", self.playback, Playback)
        try:
            object.__setattr__(self, "reference_codes", tuple(self.reference_codes))
        except TypeError:
            got = short_repr(self.reference_codes)
            raise PromptError(f"reference_codes must be a list of tensors, got {got}") from None

    @property
    def known_convention(self) -> Convention:
        """The convention; set once an engine has accepted the request."""
        assert self.convention is not None
        return self.convention

    @property
    def known_sampling(self) -> SamplingParams:
        """The sampling parameters; set once an engine has accepted the request."""
        assert self.sampling is not None
        return self.sampling


@dataclass
class GenerationOutput:
    """The output of a request.

    Attributes:
        audio_segments: [codebooks, N] int64 each, still delayed. The first frame is BOS, except with Higgs TTS 3.
        text_ids: the text tokens; one audio placeholder represents a whole segment.
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
