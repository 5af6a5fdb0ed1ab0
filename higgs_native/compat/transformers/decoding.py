"""The loop over frames that replaces the one of transformers' `generate`."""

from dataclasses import replace
from typing import Any

import torch
from transformers import (
    HiggsAudioV2ForConditionalGeneration,
    LogitsProcessorList,
    StoppingCriteriaList,
)
from transformers.generation import (
    EosTokenCriteria,
    GenerationConfig,
    MaxLengthCriteria,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.models.higgs_audio_v2.generation_higgs_audio_v2 import (
    HiggsAudioV2DelayPatternLogitsProcessor,
    HiggsAudioV2GenerationOutput,
)

from higgs_native.convention import Convention
from higgs_native.errors import ParameterError, PromptError
from higgs_native.generation.engine import HiggsAudioModel, generate_batch
from higgs_native.generation.sampling_params import SamplingParams
from higgs_native.generation.sequence import GenerationRequest


_USED = ("attention_mask", "audio_input_ids", "audio_input_ids_mask", "position_ids", "past_key_values")


_WITHOUT_EFFECT = ("use_cache", "logits_to_keep")


def decode_frames(
    native: HiggsAudioModel,
    streamer: Any,
    model: HiggsAudioV2ForConditionalGeneration,
    input_ids: torch.Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
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
    if streamer is not None and len(input_ids) > 1:
        raise unsupported("a streamer for more than one sequence")
    if inputs.get("past_key_values") is not None and inputs["past_key_values"].get_seq_length():
        raise unsupported("past_key_values")
    max_new_tokens = _max_new_tokens(stopping_criteria, config.eos_token_id, input_ids.shape[1])
    sampling = _sampling(logits_processor, generation_config, max_new_tokens)
    if input_ids.shape[1] + max_new_tokens > native.max_cache_length:
        raise ParameterError(
            f"the prompt's {input_ids.shape[1]} positions and {max_new_tokens} new ones exceed the "
            f"{native.max_cache_length} of accelerate(model, max_cache_length=...)"
        )

    requests = _requests(native, input_ids, inputs, sampling)
    ids = input_ids
    if streamer is not None:
        last = ids[:, -1]

        def on_frame(frame: torch.Tensor) -> None:
            nonlocal last
            last = _next_ids(model, frame[None].to(last.device), last)
            streamer.put(last)

        requests = [replace(request, on_frame=on_frame) for request in requests]
    wants_logits = generation_config.return_dict_in_generate and (
        generation_config.output_logits or generation_config.output_scores
    )
    outputs = generate_batch(native, requests, wants_logits)
    if streamer is not None:
        streamer.end()

    segments = [output.audio_segments[0].T for output in outputs]
    steps = max(map(len, segments))
    shape = len(segments), steps, config.num_codebooks
    frames = torch.full(shape, config.audio_stream_eos_id, dtype=torch.int64, device=input_ids.device)
    for row, segment in enumerate(segments):
        frames[row, : len(segment)] = segment
    before = inputs.get("audio_input_ids")
    audio = frames if before is None else torch.cat([before, frames], dim=1)
    if not generation_config.return_dict_in_generate:
        return audio

    scores, raw_logits = (), ()
    for step in range(steps):
        if wants_logits:
            size = config.num_codebooks * config.codebook_size
            logits = torch.zeros(len(outputs), size, dtype=torch.float32, device=input_ids.device)
            for row, output in enumerate(outputs):
                if step < len(output.audio_logits):
                    logits[row] = output.audio_logits[step].flatten()
            raw_logits += (logits,)
            if generation_config.output_scores:
                shape = len(outputs), config.num_codebooks, config.codebook_size
                scores += (logits_processor(ids, logits).view(shape),)
        ids = torch.cat([ids, _next_ids(model, frames[:, step], ids[:, -1])[:, None]], dim=1)
    return HiggsAudioV2GenerationOutput(
        sequences=ids,
        scores=scores if generation_config.output_scores else None,
        logits=raw_logits if generation_config.output_logits else None,
        audio_sequences=audio,
    )


def _requests(
    native: HiggsAudioModel, input_ids: torch.Tensor, inputs: dict[str, Any], sampling: SamplingParams
) -> list[GenerationRequest]:
    """The rows of a batch, without their padding."""
    if not input_ids.numel():
        raise PromptError(f"input_ids must have at least one row and one position, got shape {list(input_ids.shape)}")
    mask = inputs.get("attention_mask")
    mask = torch.ones_like(input_ids, dtype=torch.bool) if mask is None else mask.bool()
    if not (mask.int().diff(dim=1) >= 0).all() or not mask[:, -1].all():
        raise unsupported("padding other than on the left")
    positions = inputs.get("position_ids")
    if positions is not None and not torch.equal(positions.expand_as(mask)[mask], (mask.cumsum(dim=1) - 1)[mask]):
        raise unsupported("position_ids other than those of the attention mask")
    rows, codebooks = len(input_ids), native.config.num_codebooks
    audio, audio_mask = inputs.get("audio_input_ids"), inputs.get("audio_input_ids_mask")
    if audio is None:
        if audio_mask is not None:
            raise PromptError("audio_input_ids_mask is given without audio_input_ids")
        audio = torch.empty(rows, 0, codebooks, dtype=torch.int64, device=input_ids.device)
    if audio.is_floating_point() or audio.dim() != 3 or (audio.shape[0], audio.shape[2]) != (rows, codebooks):
        raise PromptError(
            f"audio_input_ids must be integers of shape [{rows}, frames, {codebooks}], "
            f"got {audio.dtype} {list(audio.shape)}"
        )
    if audio_mask is None:
        audio_mask = torch.ones(audio.shape[:2], dtype=torch.bool, device=audio.device)
    if audio_mask.shape != audio.shape[:2]:
        raise PromptError(
            f"audio_input_ids_mask must have the shape {list(audio.shape[:2])} of audio_input_ids, "
            f"got {list(audio_mask.shape)}"
        )
    # Drawn from torch's own generator, so that torch.manual_seed decides.
    seeds = torch.randint(2**63 - 1, (len(input_ids),), dtype=torch.int64, device="cpu").tolist()
    return [
        GenerationRequest(
            input_ids[row, mask[row]],
            convention=Convention.TRANSFORMERS,
            sampling=replace(sampling, seed=seeds[row]),
            delayed_frames=audio[row, audio_mask[row].bool()],
        )
        for row in range(rows)
    ]


def _sampling(
    processors: LogitsProcessorList, generation_config: GenerationConfig, max_new_tokens: int
) -> SamplingParams:
    """The sampling parameters that transformers' logits processors stand for."""
    values: dict[str, Any] = {"temperature": 1.0, "top_k": None, "top_p": None}
    given = []
    kinds = {TemperatureLogitsWarper: "temperature", TopKLogitsWarper: "top_k", TopPLogitsWarper: "top_p"}
    remaining = list(kinds)  # in this order, once each: as the engine applies them
    for processor in processors:
        kind = type(processor)
        if kind is HiggsAudioV2DelayPatternLogitsProcessor:
            continue
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


def _max_new_tokens(criteria: StoppingCriteriaList, eos_token_id: int | None, prompt_length: int) -> int:
    """How many frames there may be; a sequence also ends at its all-EOS frame, whose id is `eos_token_id`."""
    limits = [criterion.max_length for criterion in criteria if isinstance(criterion, MaxLengthCriteria)]
    for criterion in criteria:
        if isinstance(criterion, EosTokenCriteria):
            if eos_token_id is None or criterion.eos_token_id.tolist() != [eos_token_id]:
                raise unsupported("an eos_token_id other than the model's")
        elif not isinstance(criterion, MaxLengthCriteria):
            raise unsupported(f"the stopping criterion {type(criterion).__name__}")
    if not any(isinstance(criterion, EosTokenCriteria) for criterion in criteria):
        raise unsupported("generating without an eos_token_id")
    return min(limits) - prompt_length


def _next_ids(model: HiggsAudioV2ForConditionalGeneration, frames: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    """The text ids [batch] that stand for frames [batch, codebooks], after the ids `last` [batch]."""
    config = model.config
    is_eos = frames == config.audio_stream_eos_id
    ids = torch.full_like(last, config.audio_token_id)
    ids[is_eos.any(dim=1) | (last == config.audio_delay_token_id)] = config.audio_delay_token_id
    ids[is_eos.all(dim=1)] = config.eos_token_id
    return ids


def unsupported(what: str) -> ParameterError:
    return ParameterError(
        f"{what}: the native engine can't; restore(model), or transformers' from_pretrained, gives the plain model, "
        "which may"
    )
