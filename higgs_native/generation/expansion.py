"""From a request to a sequence: checks the request, and expands its placeholders into rows."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from higgs_native.convention import Convention
from higgs_native.errors import PromptError
from higgs_native.generation.conventions import behavior_of
from higgs_native.generation.conventions.behavior import Behavior, GenerationMode
from higgs_native.generation.delay_pattern import build_delay_pattern
from higgs_native.generation.requests import GenerationRequest
from higgs_native.generation.sequence import Frame, Row, SequenceState
from higgs_native.generation.steps.pages import page_keys
from higgs_native.model.transformer import LanguageModel
from higgs_native.utils.checks import check_instance
from higgs_native.utils.tensors import integer_tensor


def begin_sequence(model: LanguageModel, request: GenerationRequest) -> SequenceState:
    """Check a request, and expand the placeholders of its prompt.

    Raises:
        ParameterError: `request` is no GenerationRequest, or the model does not follow its convention, or does not
            have its adapter.
        PromptError: the prompt does not fit the model, its references, or the cache.
        CheckpointError: text is asked for, and the checkpoint has no text head.
    """
    check_instance("request", request, GenerationRequest)
    convention = model.config.convention_of(request.convention)
    behavior = behavior_of(convention)
    ids = _checked_ids(model, request.input_ids, behavior)
    sampling = behavior.default_sampling if request.sampling is None else request.sampling
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
    # In a layer that audio rows skip, positions count text rows, so the content of a page depends on later rows too.
    if not any(map(model.config.skips_audio, range(model.config.num_hidden_layers))):
        # The last row is always computed: the first step draws from its state.
        sequence.page_keys = page_keys(sequence.rows[:-1], "" if adapter is None else adapter.fingerprint)
    return sequence


def _checked_ids(model: LanguageModel, input_ids: torch.Tensor, behavior: Behavior) -> list[int]:
    input_ids = integer_tensor("input_ids", input_ids, PromptError)
    prompt = input_ids[0] if input_ids.dim() == 2 and input_ids.shape[0] == 1 else input_ids
    if prompt.dim() != 1 or len(prompt) == 0:
        raise PromptError(f"input_ids must have shape [1, S] with S of at least 1, got {list(input_ids.shape)}")
    ids: list[int] = prompt.tolist()
    placeholders = behavior.placeholders(model)
    tokens = [token for token in ids if token not in placeholders]
    low, high = min(tokens, default=0), max(tokens, default=0)
    if low < 0 or high >= model.config.vocab_size:
        raise PromptError(
            f"input_ids must be between 0 and {model.config.vocab_size - 1}, got {low if low < 0 else high}"
        )
    return ids


def _begin_prompt(model: LanguageModel, request: GenerationRequest, ids: list[int]) -> SequenceState:
    """Begin a sequence whose prompt has one placeholder per recording."""
    rows, prompt_ids, prompt_frames = _expand_placeholders(model, request, ids)
    mode = behavior_of(request.known_convention).first_mode(model, ids, request.partial_audio is not None)
    segments: list[list[Frame]] = [] if mode is GenerationMode.TEXT else [[]]
    sequence = SequenceState(request, mode, rows, len(rows), prompt_frames, prompt_ids, segments=segments)
    if request.partial_audio is not None:
        _resume_audio(sequence, _checked_partial_audio(model, request))
    return sequence


def _expand_placeholders(
    model: LanguageModel, request: GenerationRequest, ids: list[int]
) -> tuple[list[Row], list[int], list[Frame]]:
    """Return the prompt's rows, its ids (one per row), and the frames that repetition-aware sampling counts."""
    config, behavior = model.config, behavior_of(request.known_convention)
    placeholders = behavior.placeholders(model)
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
        prompt_ids += behavior.ids_of_frames(token, len(frames), config)
        if behavior.counts_repetitions(token, config):
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
    """Begin a sequence whose prompt has one placeholder per delayed frame."""
    config, frames = model.config, integer_tensor("delayed_frames", request.delayed_frames, PromptError)
    placeholders = behavior_of(request.known_convention).frame_placeholders(config)
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
    rows = [next(remaining) if audio else token for token, audio in zip(ids, is_audio, strict=True)]
    mode = GenerationMode.AUDIO_IN_PROGRESS
    return SequenceState(request, mode, rows, len(rows), prompt_frames, ids, segments=[[]])


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
    behavior = behavior_of(request.known_convention)
    if behavior.has_bos_frame and set(frames[0]) != {config.audio_stream_bos_id}:
        raise PromptError(f"partial_audio must begin with a frame of BOS in all codebooks, got {list(frames[0])}")
    if set(frames[-1]) == {config.audio_stream_eos_id}:
        raise PromptError("partial_audio must not have ended, got EOS in all codebooks of its last frame")
    return frames


def _frames(codes: torch.Tensor) -> list[Frame]:
    """Return the frames of codes [N, codebooks]."""
    return list(map(tuple, codes.tolist()))


def _check_codes(name: str, codes: torch.Tensor, codebook_size: int) -> None:
    if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < codebook_size:
        raise PromptError(
            f"{name} must be between 0 and {codebook_size - 1}, got {int(codes.min())} to {int(codes.max())}"
        )
