"""Generation: sampling parameters, the loop over frames and text tokens, and what comes out.

Both public implementations' rules are here. Boson's ("boson") goes from text to audio at `<|audio_out_bos|>`, back to
text where the audio ends, and on until a stop string; transformers' ("transformers") draws audio from the prompt's
end until all codebooks are at EOS. The delay pattern's state and the draws stand in `ops.sample_audio_frame`.
"""

import enum
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from higgs_native import ops
from higgs_native.errors import ParameterError, PromptError
from higgs_native.generation.model_runner import FrameLoop, FrameLoops, FrameRow
from higgs_native.generation.prefix_cache import PromptBlock, prompt_blocks
from higgs_native.generation.sampler import SamplerState
from higgs_native.model.kv_cache import KVCache
from higgs_native.model.transformer import LanguageModel, Rows
from higgs_native.utils.checks import check_integer, check_number, integer_tensor


_MAX_RAS_WINDOW = 10_000
DEFAULT_STOP_STRINGS = ("<|end_of_text|>", "<|eot_id|>")
Rule = Literal["boson", "transformers"]
OnFrame = Callable[[torch.Tensor], None]
OnToken = Callable[[int], None]


class GenerationMode(enum.Enum):
    """What the next step of a sequence gives."""

    TEXT = "text"
    AUDIO_INIT = "audio_init"
    AUDIO_IN_PROGRESS = "audio_in_progress"


@dataclass(frozen=True)
class SamplingParameters:
    """How codes and text tokens are drawn.

    Attributes:
        temperature: 0 takes the likeliest.
        top_k: draw among the k likeliest; None or 0 for all.
        top_p: draw among the likeliest that make up this share; 1 for all.
        ras_win_len: repetition-aware sampling looks at so many of the last frames; None or 0 turns it off.
        ras_win_max_num_repeat: a code that stands there so often is drawn again from the unprocessed distribution.
        seed: the same seed gives the same output for the same logits, whatever else is in the batch; None for a new
            one each time.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    ras_win_len: int | None = 7
    ras_win_max_num_repeat: int = 2
    seed: int | None = None


def check_parameters(sampling: SamplingParameters, max_new_tokens: int) -> None:
    """Raise ParameterError where a parameter of generation is of a wrong type, or lies outside its range."""
    check_number("temperature", sampling.temperature)
    check_number("top_p", sampling.top_p, optional=True)
    for name in ("top_k", "ras_win_len", "seed"):
        check_integer(name, getattr(sampling, name), optional=True)
    check_integer("ras_win_max_num_repeat", sampling.ras_win_max_num_repeat)
    check_integer("max_new_tokens", max_new_tokens)
    # The kernels take float32 and int32; below 1e-3 a logit over the temperature could overflow.
    if sampling.temperature != 0 and not 1e-3 <= sampling.temperature <= 1e3:
        raise ParameterError(f"temperature must be 0 (greedy) or between 0.001 and 1000, got {sampling.temperature}")
    if sampling.top_k is not None and not 0 <= sampling.top_k < 2**31:
        raise ParameterError(f"top_k must be at least 1, or 0 or None for no limit, got {sampling.top_k}")
    if sampling.top_p is not None and not 1e-6 <= sampling.top_p <= 1:
        raise ParameterError(f"top_p must be above 0 and at most 1, got {sampling.top_p}")
    if sampling.ras_win_len is not None and sampling.ras_win_len > _MAX_RAS_WINDOW:
        raise ParameterError(f"ras_win_len must be at most {_MAX_RAS_WINDOW}, got {sampling.ras_win_len}")
    if not 1 <= sampling.ras_win_max_num_repeat < 2**31:
        raise ParameterError(f"ras_win_max_num_repeat must be at least 1, got {sampling.ras_win_max_num_repeat}")
    _check_seed(sampling.seed)
    if max_new_tokens < 1:
        raise ParameterError(f"max_new_tokens must be at least 1, got {max_new_tokens}")


def check_stop_strings(stop_strings: Sequence[str] | None) -> None:
    """Raise ParameterError where `stop_strings` is neither None nor a sequence of strings; one string is none."""
    if isinstance(stop_strings, str):
        raise ParameterError(f"stop_strings must be a list of strings, got the string {stop_strings!r}")
    if stop_strings is None:
        return
    if not isinstance(stop_strings, Sequence) or not all(isinstance(stop, str) for stop in stop_strings):
        raise ParameterError(f"stop_strings must be a list of strings, got {stop_strings!r}")


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


class HiggsAudioModel(LanguageModel):
    """A Higgs Audio V2 language model that generates.

    >>> model = HiggsAudioModel.from_pretrained("bosonai/higgs-audio-v2-generation-3B-base")
    >>> output = model.generate(input_ids, reference_codes=[codes], temperature=0.3, top_k=50, seed=1)
    >>> codes = revert_delay_pattern(output.audio_segments[0])
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.frame_loops = FrameLoops()

    def generate(
        self,
        input_ids: torch.Tensor,
        reference_codes: Sequence[torch.Tensor] = (),
        rule: Rule = "boson",
        max_new_tokens: int = 1024,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        ras_win_len: int | None = 7,
        ras_win_max_num_repeat: int = 2,
        stop_strings: Sequence[str] | None = DEFAULT_STOP_STRINGS,
        seed: int | None = None,
        on_frame: OnFrame | None = None,
        partial_audio: torch.Tensor | None = None,
        output_logits: bool = False,
        on_token: OnToken | None = None,
    ) -> GenerationOutput:
        """Generate after one prompt; see `GenerationRequest`, `SamplingParameters` and `generate_batch`.

        Args:
            input_ids: [1, S], integers, one placeholder for each of `reference_codes`.
            reference_codes: [codebooks, T] integers each, without BOS, EOS and delay.
        """
        request = GenerationRequest(input_ids, reference_codes, partial_audio, seed, on_frame, on_token)
        sampling = SamplingParameters(temperature, top_k, top_p, ras_win_len, ras_win_max_num_repeat, seed)
        return generate_batch(self, [request], rule, max_new_tokens, sampling, stop_strings, output_logits)[0]


def _check_seed(seed: int | None) -> None:
    if seed is not None and not 0 <= seed < 2**63:
        raise ParameterError(f"seed must be between 0 and 2**63 - 1, got {seed}")


@torch.inference_mode()
def generate_batch(
    model: HiggsAudioModel,
    requests: Sequence[GenerationRequest],
    rule: Rule = "boson",
    max_new_tokens: int = 1024,
    sampling: SamplingParameters | None = None,
    stop_strings: Sequence[str] | None = DEFAULT_STOP_STRINGS,
    output_logits: bool = False,
) -> list[GenerationOutput]:
    """Generate after a batch of prompts, which may be of any lengths; each result is what the prompt gives alone.

    Args:
        model: the language model.
        requests: the prompts.
        rule: whose generation rule to follow, "boson" or "transformers".
        max_new_tokens: steps at most, text tokens and frames together.
        sampling: how to draw; the default is temperature 1 without top-k and top-p.
        stop_strings: text that ends a sequence (Boson's rule only).
        output_logits: keep the logits that each step drew from.

    Raises:
        ParameterError: a parameter is of a wrong type, or lies outside its range.
        PromptError: a prompt does not fit the model, its references, or the cache.
        CheckpointError: the rule needs text, and the checkpoint has no text head.
        RuntimeError: logits hold a NaN or +inf, exceed float32 when divided by the temperature, or are all -inf.
    """
    sampling = sampling or SamplingParameters()
    check_parameters(sampling, max_new_tokens)
    check_stop_strings(stop_strings)
    if rule not in ("boson", "transformers"):
        raise ParameterError(f"rule must be 'boson' or 'transformers', got {rule!r}")
    stop_strings = tuple(stop_strings or ())
    sequences = [_begin(model, request, slot, rule) for slot, request in enumerate(requests)]
    if not sequences:
        return []
    longest = max(sequence.prompt_tokens for sequence in sequences)
    length = min(longest + max_new_tokens, model.max_cache_length)
    window = max(sampling.ras_win_len or 0, 1)
    with model.frame_loops.loop(model, len(sequences), length, window) as loop:
        _reset_sampler(loop.sampler, sequences, rule, sampling)
        prompts = [_restore_prefix(model, sequence, loop.cache) for sequence in sequences]
        live = sequences
        while live:
            if not output_logits and all(sequence.draws_next() for sequence in live):
                _draw_frames(model, live, loop, rule, length, max_new_tokens)
            else:
                rows, last = _rows(model, live)
                states = model.forward(rows, loop.cache)
                for slot, blocks in enumerate(prompts):
                    model.prefix_cache.keep(blocks, loop.cache, slot)
                prompts = []  # they are computed in the first pass
                _advance(model, live, states[last], loop.sampler, rule, stop_strings, output_logits)
            for sequence in live:
                if sequence.finish_reason is None and (
                    sequence.steps == max_new_tokens or sequence.position == length
                ):
                    sequence.finish_reason = "length"
            live = [sequence for sequence in live if sequence.finish_reason is None]
    with torch.inference_mode(False):  # so that results are tensors as any other
        return [_output(model, sequence, output_logits) for sequence in sequences]


def delayed_reference(model: LanguageModel, codes: torch.Tensor) -> torch.Tensor:
    """The frames of a reference as the model reads them: [codebooks, T] -> [T + codebooks + 1, codebooks], int32, CPU.

    Raises:
        PromptError: the type, the shape or a code does not fit the model.
    """
    config = model.config
    codes = integer_tensor("reference codes", codes, PromptError)
    if codes.dim() != 2 or codes.shape[0] != config.num_codebooks:
        raise PromptError(f"reference codes must have shape [{config.num_codebooks}, frames], got {list(codes.shape)}")
    limit = min(config.audio_stream_bos_id, config.audio_stream_eos_id)
    if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < limit:
        raise PromptError(
            f"reference codes must lie between 0 and {limit - 1}, got {int(codes.min())} to {int(codes.max())}"
        )
    codes = codes.to(device="cpu", dtype=torch.int32).contiguous()
    frames = codes.new_empty(config.num_codebooks, codes.shape[1] + config.num_codebooks + 1)
    ops.delay_pattern_build(frames, codes, config.audio_stream_bos_id, config.audio_stream_eos_id)
    return frames.T.contiguous()


def revert_delay_pattern(delayed: torch.Tensor) -> torch.Tensor:
    """Take the diagonals of a delayed segment: [codebooks, N] -> [codebooks, N - codebooks + 1], int64.

    A segment of fewer frames than codebooks holds no whole column and gives [codebooks, 0].

    Raises:
        ParameterError: the shape is another.
    """
    if delayed.dim() != 2:
        raise ParameterError(f"delayed codes must have shape [codebooks, N], got {list(delayed.shape)}")
    num_codebooks, length = delayed.shape
    if length < num_codebooks:
        return delayed.new_empty(num_codebooks, 0, dtype=torch.int64)
    delayed = delayed.to(torch.int32).contiguous()
    out = delayed.new_empty(num_codebooks, length - num_codebooks + 1)
    ops.delay_pattern_revert(out, delayed)
    return out.long()


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


def _restore_prefix(model: LanguageModel, sequence: _Sequence, cache: KVCache) -> list[PromptBlock]:
    """Take what is known of a prompt's beginning from earlier ones; return the prompt's blocks."""
    # The last row is always computed: its state is what the first step draws from.
    blocks = prompt_blocks(sequence.pending[:-1]) if model.prefix_cache.max_bytes else []
    restored = blocks[: model.prefix_cache.restore(blocks, cache, sequence.slot)]
    if restored:
        sequence.position = sequence.cached_tokens = restored[-1].positions.stop
        sequence.text_position = restored[-1].text_positions.stop
        sequence.pending = sequence.pending[sequence.position :]
    return blocks


def _reset_sampler(
    sampler: SamplerState, sequences: Sequence[_Sequence], rule: Rule, sampling: SamplingParameters
) -> None:
    for sequence in sequences:
        seed = sampling.seed if sequence.request.seed is None else sequence.request.seed
        sampler.reset_slot(
            sequence.slot,
            rule=rule,
            temperature=float(sampling.temperature),
            top_k=sampling.top_k or 0,
            top_p=1.0 if sampling.top_p is None else float(sampling.top_p),
            ras_win_len=max(sampling.ras_win_len or 0, 0),
            ras_win_max_num_repeat=sampling.ras_win_max_num_repeat,
            seed=secrets.randbits(63) if seed is None else seed,
            prompt_frames=torch.stack(sequence.prompt_frames) if sequence.prompt_frames else None,
            prompt_ids=sequence.prompt_ids[-sampler.config.num_codebooks :],
            resume=sequence.request.partial_audio is not None,
        )


def _rows(model: LanguageModel, live: Sequence[_Sequence]) -> tuple[Rows, list[int]]:
    """Gather what all sequences have pending, text first; return it with the index of each sequence's last row."""
    ids: list[int] = []
    frames: list[torch.Tensor] = []
    text_places: list[tuple[int, int, int]] = []
    audio_places: list[tuple[int, int]] = []
    last: list[tuple[bool, int]] = []
    for sequence in live:
        for row in sequence.pending:
            if isinstance(row, int):
                text_places.append((sequence.slot, sequence.position, sequence.text_position))
                ids.append(row)
                sequence.text_position += 1
            else:
                audio_places.append((sequence.slot, sequence.position))
                frames.append(row)
            sequence.position += 1
        is_text = isinstance(sequence.pending[-1], int)
        last.append((is_text, len(ids if is_text else frames) - 1))
        sequence.pending = []

    def int32(values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32, device=model.device)

    places = [place[:2] for place in text_places] + audio_places
    rows = Rows(
        token_ids=int32(ids),
        codes=torch.stack(frames).to(model.device) if frames else int32([]).view(0, model.config.num_codebooks),
        slots=int32([slot for slot, _ in places]),
        positions=int32([position for _, position in places]),
        text_positions=int32([text_position for _, _, text_position in text_places]),
    )
    return rows, [index if is_text else len(ids) + index for is_text, index in last]


def _draw_frames(
    model: LanguageModel, live: Sequence[_Sequence], loop: FrameLoop, rule: Rule, length: int, max_new_tokens: int
) -> None:
    """Draw frames of all sequences until one of them ends or has reached a limit."""
    limit = min(min(max_new_tokens - sequence.steps, length - sequence.position) for sequence in live)
    ended: set[int] = set()

    def deliver(codes: torch.Tensor, going_on: list[int]) -> bool:
        _check_drawn("a code", min(map(min, codes.tolist())))
        for sequence, frame, goes_on in zip(live, codes.unbind(), going_on, strict=True):
            if sequence.slot in ended:
                continue
            sequence.steps += 1
            sequence.position += 1
            sequence.add_frame(frame)
            if not goes_on:
                ended.add(sequence.slot)
                _end_audio(model, sequence, rule)
        return not ended

    loop.draw([FrameRow(sequence.slot, sequence.position, sequence.pending[0]) for sequence in live], limit, deliver)


def _check_drawn(what: str, least: int) -> None:
    """Raise RuntimeError where what was drawn is below 0: on a GPU the sampler can't raise for logits."""
    if least < 0:
        raise RuntimeError(
            f"{what} can't be drawn: its logits hold a NaN or +inf, exceed float32 when divided by the temperature, "
            "or are all -inf"
        )


def _end_audio(model: LanguageModel, sequence: _Sequence, rule: Rule) -> None:
    """An audio segment has ended: with it the sequence, or text follows."""
    audio_eos = _audio_eos_token_id(model)
    if rule == "transformers" or model.text_head is None or audio_eos is None:
        sequence.finish_reason = "stop"
    else:
        sequence.text_ids.append(model.config.audio_out_token_id)
        sequence.add_token(audio_eos)
        sequence.mode = GenerationMode.TEXT


def _advance(
    model: LanguageModel,
    live: Sequence[_Sequence],
    states: torch.Tensor,
    sampler: SamplerState,
    rule: Rule,
    stop_strings: tuple[str, ...],
    output_logits: bool,
) -> None:
    """Draw each sequence's next frame or token from its last row's state [sequences, hidden]."""
    config = model.config
    audio = [index for index, sequence in enumerate(live) if sequence.mode is GenerationMode.AUDIO_IN_PROGRESS]
    text = [index for index, sequence in enumerate(live) if sequence.mode is GenerationMode.TEXT]
    for index, sequence in enumerate(live):
        sequence.steps += 1
        if sequence.mode is GenerationMode.AUDIO_INIT:
            if output_logits and model.text_head is not None:
                sequence.text_logits.append(model.text_logits(states[index : index + 1])[0])
            sampler.begin_segment(sequence.slot)
            sequence.mode = GenerationMode.AUDIO_IN_PROGRESS
            bos = torch.full((config.num_codebooks,), config.audio_stream_bos_id, dtype=torch.int32)
            sequence.add_frame(bos)

    if audio:
        logits = model.audio_logits(states if len(audio) == len(live) else states[audio])
        slots = torch.tensor([live[index].slot for index in audio], dtype=torch.int32, device=model.device)
        frames = sampler.sample_audio_frame(logits, slots).cpu()
        _check_drawn("a code", int(frames.min()))
        for row, index in enumerate(audio):
            sequence = live[index]
            if output_logits:
                sequence.audio_logits.append(logits[row])
            sequence.add_frame(frames[row])
            if not sampler.is_active(sequence.slot):
                _end_audio(model, sequence, rule)
    if text:
        logits = model.text_logits(states if len(text) == len(live) else states[text])
        slots = torch.tensor([live[index].slot for index in text], dtype=torch.int32, device=model.device)
        steps = torch.tensor([live[index].steps for index in text], dtype=torch.int32, device=model.device)
        tokens = sampler.sample_text(logits, slots, steps).tolist()
        _check_drawn("a token", min(tokens))
        for row, (index, token) in enumerate(zip(text, tokens, strict=True)):
            sequence = live[index]
            if output_logits:
                sequence.text_logits.append(logits[row])
            sequence.add_token(token)
            if token == config.audio_out_bos_token_id:
                sequence.mode = GenerationMode.AUDIO_INIT
                sequence.segments.append([])
            elif _stops(model, sequence.text_ids, stop_strings):
                sequence.finish_reason = "stop"


def _audio_in_token_id(model: LanguageModel) -> int | None:
    """The placeholder of audio in a system or user message: as the next one, left to the tokenizer."""
    if model.config.audio_in_token_id is None and model.tokenizer is not None:
        return model.tokenizer.token_to_id("<|AUDIO|>")
    return model.config.audio_in_token_id


def _audio_eos_token_id(model: LanguageModel) -> int | None:
    """The text token after an audio segment: the transformers layout's configuration leaves it to the tokenizer."""
    if model.config.audio_eos_token_id is None and model.tokenizer is not None:
        return model.tokenizer.token_to_id("<|audio_eos|>")
    return model.config.audio_eos_token_id


def _stops(model: LanguageModel, ids: list[int], stop_strings: tuple[str, ...]) -> bool:
    """Whether the last token completes a stop string."""
    if model.tokenizer is None:
        return False
    # A stop string of n bytes spans at most n tokens; the last token may also hold text after it.
    for stop in stop_strings:
        tail = ids[-len(stop.encode()) :]
        whole = model.tokenizer.decode(tail, skip_special_tokens=False)
        before = model.tokenizer.decode(tail[:-1], skip_special_tokens=False)
        if stop in whole and stop not in before:
            return True
    return False


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
