"""The loop over frames that replaces the one of transformers' `generate`."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import (
    HiggsAudioV2Config,
    HiggsAudioV2ForConditionalGeneration,
    LogitsProcessorList,
    StoppingCriteriaList,
)
from transformers.generation import (
    EosTokenCriteria,
    GenerationConfig,
    InfNanRemoveLogitsProcessor,
    MaxLengthCriteria,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.models.higgs_audio_v2.generation_higgs_audio_v2 import (
    HiggsAudioV2DelayPatternLogitsProcessor,
    HiggsAudioV2GenerationOutput,
)

from higgs_native.compat.transformers.rows import AllRowsStopped, Rows, next_ids
from higgs_native.convention import Convention
from higgs_native.errors import ParameterError, PromptError
from higgs_native.generation.model import HiggsAudioModel, generate_batch
from higgs_native.generation.requests import GenerationOutput, GenerationRequest
from higgs_native.generation.sampling_params import SamplingParams


_USED = ("attention_mask", "audio_input_ids", "audio_input_ids_mask", "position_ids", "past_key_values")
# `tokenizer` is for stop strings, whose criterion has it already; `labels` are for a loss, which nobody gets.
_WITHOUT_EFFECT = ("use_cache", "logits_to_keep", "tokenizer", "labels")


def decode_frames(
    native: HiggsAudioModel,
    model: HiggsAudioV2ForConditionalGeneration,
    input_ids: torch.Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    synced_gpus: bool = False,
    streamer: Any = None,
    **inputs: Any,
) -> HiggsAudioV2GenerationOutput | torch.Tensor:
    """The loop over frames: what `HiggsAudioV2GenerationMixin._sample` takes and returns."""
    config = model.config
    for name in ("output_attentions", "output_hidden_states"):
        if getattr(generation_config, name):
            raise unsupported(name)
    for name, value in inputs.items():
        if name not in (*_USED, *_WITHOUT_EFFECT) and value is not None:
            raise unsupported(name)
    if synced_gpus:
        raise unsupported("synced_gpus")
    if streamer is not None and len(input_ids) > 1:
        raise unsupported("a streamer for more than one sequence")
    if inputs.get("past_key_values") is not None and inputs["past_key_values"].get_seq_length():
        raise unsupported("past_key_values")
    max_new_tokens = _max_new_tokens(stopping_criteria, input_ids.shape[1])
    sampling = _sampling(logits_processor, generation_config, max_new_tokens)
    if input_ids.shape[1] + max_new_tokens > native.max_cache_length:
        raise ParameterError(
            f"the prompt's {input_ids.shape[1]} positions and {max_new_tokens} new ones exceed the "
            f"{native.max_cache_length} of accelerate(model, max_cache_length=...)"
        )

    requests = _requests(native, input_ids, inputs, sampling)
    wants_logits = generation_config.return_dict_in_generate and (
        generation_config.output_logits or generation_config.output_scores
    )
    if streamer is None and _engine_ends_rows(stopping_criteria, config):
        outputs = generate_batch(native, requests, wants_logits)
        segments = [output.audio_segments[0].T for output in outputs]
    else:
        rows = Rows(config, input_ids, stopping_criteria, max_new_tokens, streamer)
        outputs = _generate_until_stopped(native, requests, rows, wants_logits)
        segments = rows.finish()
    if streamer is not None:
        streamer.end()

    steps = max(map(len, segments))
    shape = len(segments), steps, config.num_codebooks
    frames = torch.full(shape, config.audio_stream_eos_id, dtype=torch.int64, device=input_ids.device)
    for row, segment in enumerate(segments):
        frames[row, : len(segment)] = segment
    before = inputs.get("audio_input_ids")
    audio = frames if before is None else torch.cat([before, frames], dim=1)
    if not generation_config.return_dict_in_generate:
        return audio

    ids = input_ids
    scores: tuple[torch.Tensor, ...] = ()
    raw_logits: tuple[torch.Tensor, ...] = ()
    for step in range(steps):
        if wants_logits:
            size = config.num_codebooks * config.codebook_size
            logits = torch.zeros(len(segments), size, dtype=torch.float32, device=input_ids.device)
            for row, (output, segment) in enumerate(zip(outputs, segments, strict=True)):
                drawn_from = output.audio_logits
                if drawn_from is not None and step < min(len(drawn_from), len(segment)):
                    logits[row] = drawn_from[step].flatten()
            raw_logits += (logits,)
            if generation_config.output_scores:
                shape = len(segments), config.num_codebooks, config.codebook_size
                scores += (logits_processor(ids, logits).view(shape),)
        ids = torch.cat([ids, next_ids(config, frames[:, step], ids[:, -1])[:, None]], dim=1)
    return HiggsAudioV2GenerationOutput(
        sequences=ids,
        scores=scores if generation_config.output_scores else None,
        logits=raw_logits if generation_config.output_logits else None,
        audio_sequences=audio,
    )


def _generate_until_stopped(
    native: HiggsAudioModel, requests: Sequence[GenerationRequest], rows: Rows, wants_logits: bool
) -> list[GenerationOutput]:
    """Generate until the engine or `rows` end it; return the outputs if logits are wanted."""
    watched = [replace(request, on_frame=rows.on_frame(index)) for index, request in enumerate(requests)]
    try:
        return generate_batch(native, watched, wants_logits)
    except AllRowsStopped:
        if not wants_logits:
            return []
    # A criterion ended the generation, and its logits are lost: generate again, with the same draws.
    limits = [
        replace(request.known_sampling, max_new_tokens=drawn)
        for request, drawn in zip(requests, rows.drawn(), strict=True)
    ]
    again = [replace(request, sampling=limit) for request, limit in zip(requests, limits, strict=True)]
    return generate_batch(native, again, wants_logits)


def _requests(
    native: HiggsAudioModel, input_ids: torch.Tensor, inputs: dict[str, Any], sampling: SamplingParams
) -> list[GenerationRequest]:
    """The rows of a batch, without their masked positions, which no other position attends to."""
    if input_ids.dim() != 2 or not input_ids.numel():
        raise PromptError(f"input_ids must have at least one row and one position, got shape {list(input_ids.shape)}")
    config, (rows, length) = native.config, input_ids.shape
    mask, positions = inputs.get("attention_mask"), inputs.get("position_ids")
    audio, audio_mask = inputs.get("audio_input_ids"), inputs.get("audio_input_ids_mask")
    if audio is None:
        if audio_mask is not None:
            raise PromptError("audio_input_ids_mask is given without audio_input_ids")
        audio = torch.empty(rows, 0, config.num_codebooks, dtype=torch.int64, device=input_ids.device)
    _check_shape("attention_mask", mask, rows, length)
    _check_shape("position_ids", positions, None, length)
    _check_shape("audio_input_ids", audio, rows, None, config.num_codebooks)
    _check_shape("audio_input_ids_mask", audio_mask, rows, audio.shape[1])

    mask = torch.ones_like(input_ids, dtype=torch.bool) if mask is None else mask.bool()
    if not mask[:, -1].all():
        raise unsupported("padding on the right")
    # transformers counts the delay from this token on, masked positions included.
    tail = input_ids[:, -config.num_codebooks :]
    opening = [token for token in (config.audio_out_bos_token_id, config.audio_delay_token_id) if token is not None]
    opened = torch.isin(tail, torch.tensor(opening, dtype=torch.int64, device=tail.device)).int().cumsum(dim=1) > 0
    if (opened & ~mask[:, -config.num_codebooks :]).any():
        raise unsupported("masked positions after <|audio_out_bos|>")
    expected = (mask.cumsum(dim=1) - 1)[mask]
    if positions is not None and (
        len(positions) not in (1, rows) or not torch.equal(positions.expand_as(mask)[mask], expected)
    ):
        raise unsupported("position_ids other than those of the attention mask")
    if audio_mask is None:
        audio_mask = torch.ones(audio.shape[:2], dtype=torch.bool, device=audio.device)
    is_audio = (input_ids == config.audio_out_token_id) | (input_ids == config.audio_delay_token_id)
    frames = [audio[row, audio_mask[row].bool()] for row in range(rows)]
    for row in range(rows):
        if len(frames[row]) == is_audio[row].sum():
            frames[row] = frames[row][mask[row, is_audio[row]]]
    # Drawn from torch's own generator, so that torch.manual_seed decides.
    seeds = torch.randint(2**63 - 1, (rows,), dtype=torch.int64, device="cpu").tolist()
    return [
        GenerationRequest(
            input_ids[row, mask[row]],
            convention=Convention.TRANSFORMERS,
            sampling=replace(sampling, seed=seeds[row]),
            delayed_frames=frames[row],
        )
        for row in range(rows)
    ]


def _check_shape(name: str, value: Any, *shape: int | None) -> None:
    """Raise PromptError unless `value` is None, or a tensor of integers or booleans; None in `shape` is any size."""
    if value is None:
        return
    is_tensor = isinstance(value, torch.Tensor)
    fits = is_tensor and not value.is_floating_point() and not value.is_complex() and value.dim() == len(shape)
    if not fits or any(size not in (None, found) for size, found in zip(shape, value.shape, strict=True)):
        expected = ", ".join("N" if size is None else str(size) for size in shape)
        got = f"{value.dtype} {list(value.shape)}" if is_tensor else type(value).__name__
        raise PromptError(f"{name} must be integers of shape [{expected}], got {got}")


def _sampling(
    processors: LogitsProcessorList, generation_config: GenerationConfig, max_new_tokens: int
) -> SamplingParams:
    """Return the sampling parameters that transformers' logits processors express."""
    values: dict[str, Any] = {"temperature": 1.0, "top_k": None, "top_p": None}
    given = []
    kinds = {TemperatureLogitsWarper: "temperature", TopKLogitsWarper: "top_k", TopPLogitsWarper: "top_p"}
    remaining = list(kinds)  # each once, and in the engine's order
    for processor in processors:
        kind = type(processor)
        if kind in (HiggsAudioV2DelayPatternLogitsProcessor, InfNanRemoveLogitsProcessor):
            continue  # the engine has the first itself, and refuses to draw from what the second removes
        if kind not in remaining or getattr(processor, "min_tokens_to_keep", 1) != 1:
            raise unsupported(f"the logits processor {kind.__name__}, or its order or settings")
        remaining = remaining[remaining.index(kind) + 1 :]
        values[kinds[kind]] = getattr(processor, kinds[kind])
        given.append(kind)
    if not generation_config.do_sample:
        if given:
            raise unsupported("logits processors without do_sample")
        values["temperature"] = 0.0
    # transformers looks for repetitions only where both are set.
    window = getattr(generation_config, "ras_win_len", None)
    repeats = getattr(generation_config, "ras_win_max_num_repeat", None)
    if window is None or repeats is None:
        window, repeats = None, 2
    return SamplingParams(
        **values,
        ras_win_len=window,
        ras_win_max_num_repeat=repeats,
        max_new_tokens=max_new_tokens,
        stop_strings=None,
    )


def _max_new_tokens(criteria: StoppingCriteriaList, prompt_length: int) -> int:
    """Return the maximum number of frames."""
    limits = [criterion.max_length for criterion in criteria if isinstance(criterion, MaxLengthCriteria)]
    return min(limits) - prompt_length


def _engine_ends_rows(criteria: StoppingCriteriaList, config: HiggsAudioV2Config) -> bool:
    """Whether the criteria end rows where the engine does: at a frame of EOS in all codebooks, and at a length."""
    if not all(isinstance(criterion, MaxLengthCriteria | EosTokenCriteria) for criterion in criteria):
        return False
    ends = {
        id
        for criterion in criteria
        if isinstance(criterion, EosTokenCriteria)
        for id in criterion.eos_token_id.flatten().tolist()
    }
    return ends & {config.audio_token_id, config.audio_delay_token_id, config.eos_token_id} == {config.eos_token_id}


def unsupported(what: str) -> ParameterError:
    return ParameterError(
        f"{what}: the native engine can't; restore(model), or transformers' from_pretrained, gives the plain model, "
        "which may"
    )
