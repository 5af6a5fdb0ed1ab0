"""The engine: requests in, codes and text out.

`generate_batch` gives each request a slot and runs them side by side. A step computes the pending rows of all
sequences in one forward pass and draws a frame or a token for each. While every sequence is inside audio, the model
runner draws frames without returning here.
"""

from collections.abc import Sequence
from typing import Any

import torch
from typing_extensions import Unpack

from higgs_native.convention import Convention
from higgs_native.generation.model_runner import DecodeRow, ModelRunner, RunnerPool
from higgs_native.generation.prefix_cache import PrefixCache, PromptBlock, prompt_blocks
from higgs_native.generation.sampler import SamplerState
from higgs_native.generation.sampling_params import SamplingOptions, SamplingParams
from higgs_native.generation.sequence import (
    GenerationMode,
    GenerationOutput,
    GenerationRequest,
    OnFrame,
    OnToken,
    SequenceState,
    begin_sequence,
)
from higgs_native.generation.stop import completes_stop_string, text_after_audio
from higgs_native.model.batch import Batch
from higgs_native.model.kv_cache import KVCache
from higgs_native.model.transformer import LanguageModel


class HiggsAudioModel(LanguageModel):
    """A Higgs Audio V2 language model that generates.

    >>> model = HiggsAudioModel.from_pretrained("bosonai/higgs-audio-v2-generation-3B-base")
    >>> output = model.generate(input_ids, reference_codes=[codes], seed=1)
    >>> codes = segment_codes(output.audio_segments[0], model.config, Convention.BOSON)

    Attributes:
        prefix_cache: keys and values of prompt prefixes, reused by later prompts; its `max_bytes` may be set.
        runner_pool: the model runners that requests take turns with.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.prefix_cache = PrefixCache()
        self.runner_pool = RunnerPool()

    def generate(
        self,
        input_ids: torch.Tensor,
        reference_codes: Sequence[torch.Tensor] = (),
        convention: str | Convention = Convention.BOSON,
        on_frame: OnFrame | None = None,
        partial_audio: torch.Tensor | None = None,
        output_logits: bool = False,
        on_token: OnToken | None = None,
        sampling: SamplingParams | None = None,
        **options: Unpack[SamplingOptions],
    ) -> GenerationOutput:
        """Generate after one prompt; see `GenerationRequest` and `generate_batch`.

        Args:
            input_ids: [1, S], integers, one placeholder per item of `reference_codes`.
            reference_codes: [codebooks, T] integers each, without BOS, EOS and delay.
            convention, on_frame, partial_audio, on_token: see `GenerationRequest`.
            output_logits: keep the logits that each step drew from.
            sampling: how to draw and when to stop, or in its place `options`: the attributes of `SamplingParams`.
        """
        request = GenerationRequest(
            input_ids,
            reference_codes,
            convention,
            SamplingParams.of(sampling, options),
            partial_audio,
            on_frame=on_frame,
            on_token=on_token,
        )
        return generate_batch(self, [request], output_logits)[0]


@torch.inference_mode()
def generate_batch(
    model: HiggsAudioModel, requests: Sequence[GenerationRequest], output_logits: bool = False
) -> list[GenerationOutput]:
    """Generate after several prompts side by side; each result is what its request gives alone.

    Args:
        model: the language model.
        requests: the prompts, of any lengths, conventions and sampling parameters.
        output_logits: keep the logits that each step drew from.

    Raises:
        PromptError: a prompt does not fit the model, its references, or the cache.
        CheckpointError: a request asks for text, and the checkpoint has no text head.
        RuntimeError: logits hold a NaN or +inf, exceed float32 when divided by the temperature, or are all -inf.
    """
    sequences = [begin_sequence(model, request) for request in requests]
    if not sequences:
        return []
    length = max(_max_length(model, sequence) for sequence in sequences)
    window = max(max(request.sampling.ras_win_len or 0, 1) for request in requests)
    with model.runner_pool.runner(model, len(sequences), length, window) as runner:
        for slot, sequence in enumerate(sequences):
            sequence.slot = slot
            _reset_slot(runner.sampler, sequence)
        prompts = [(sequence.slot, _restore_prefix(model, sequence, runner.cache)) for sequence in sequences]
        live = sequences
        while live:
            if not output_logits and all(sequence.draws_next for sequence in live):
                _draw_frames(model, live, runner)
            else:
                rows, last = _pending_rows(model, live)
                states = model.forward(rows, runner.cache)
                for slot, blocks in prompts:
                    model.prefix_cache.keep(blocks, runner.cache, slot)
                prompts = []  # their keys and values are complete after the first pass
                _advance(model, live, states[last], runner.sampler, output_logits)
            for sequence in live:
                if sequence.finish_reason is None and _steps_left(model, sequence) == 0:
                    sequence.finish_reason = "length"
            live = [sequence for sequence in live if sequence.finish_reason is None]
    with torch.inference_mode(False):  # so that results are ordinary tensors
        return [sequence.output(model, output_logits) for sequence in sequences]


def _max_length(model: LanguageModel, sequence: SequenceState) -> int:
    """The maximum number of positions of a sequence."""
    return min(sequence.prompt_tokens + sequence.request.sampling.max_new_tokens, model.max_cache_length)


def _steps_left(model: LanguageModel, sequence: SequenceState) -> int:
    """The number of steps until the sequence reaches `max_new_tokens` or the end of the cache."""
    steps = sequence.request.sampling.max_new_tokens - sequence.steps
    return min(steps, _max_length(model, sequence) - sequence.position)


def _reset_slot(sampler: SamplerState, sequence: SequenceState) -> None:
    sampler.reset_slot(
        sequence.slot,
        sequence.request.convention,
        sequence.request.sampling,
        prompt_frames=torch.stack(sequence.prompt_frames) if sequence.prompt_frames else None,
        prompt_ids=sequence.prompt_ids,
        num_resumed=len(sequence.segments[-1]) if sequence.segments else 0,
    )


def _restore_prefix(model: HiggsAudioModel, sequence: SequenceState, cache: KVCache) -> list[PromptBlock]:
    """Copy the cached prefix of a prompt into the sequence's slot; return the prompt's blocks."""
    # The last row is always computed: the first step draws from its state.
    blocks = prompt_blocks(sequence.pending[:-1]) if model.prefix_cache.max_bytes else []
    restored = blocks[: model.prefix_cache.restore(blocks, cache, sequence.slot)]
    if restored:
        sequence.position = sequence.cached_tokens = restored[-1].positions.stop
        sequence.text_position = restored[-1].text_positions.stop
        sequence.pending = sequence.pending[sequence.position :]
    return blocks


def _pending_rows(model: LanguageModel, live: Sequence[SequenceState]) -> tuple[Batch, list[int]]:
    """Gather the pending rows of all sequences, text first; return them with the index of each sequence's last row."""
    ids: list[int] = []
    frames: list[torch.Tensor] = []
    text_rows: list[tuple[int, int, int]] = []
    audio_rows: list[tuple[int, int]] = []
    last: list[tuple[bool, int]] = []
    for sequence in live:
        for row in sequence.pending:
            if isinstance(row, int):
                text_rows.append((sequence.slot, sequence.position, sequence.text_position))
                ids.append(row)
                sequence.text_position += 1
            else:
                audio_rows.append((sequence.slot, sequence.position))
                frames.append(row)
            sequence.position += 1
        is_text = isinstance(sequence.pending[-1], int)
        last.append((is_text, len(ids if is_text else frames) - 1))
        sequence.pending = []

    def int32(values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32, device=model.device)

    rows = [row[:2] for row in text_rows] + audio_rows
    batch = Batch(
        token_ids=int32(ids),
        codes=torch.stack(frames).to(model.device) if frames else int32([]).view(0, model.config.num_codebooks),
        slots=int32([slot for slot, _ in rows]),
        positions=int32([position for _, position in rows]),
        text_positions=int32([text_position for _, _, text_position in text_rows]),
    )
    return batch, [index if is_text else len(ids) + index for is_text, index in last]


def _draw_frames(model: LanguageModel, live: Sequence[SequenceState], runner: ModelRunner) -> None:
    """Draw frames of all sequences until one of them ends or reaches a limit."""
    ended: set[int] = set()

    def on_step(codes: torch.Tensor, active: list[int]) -> bool:
        _check_drawn("a code", min(map(min, codes.tolist())))
        for sequence, frame, is_active in zip(live, codes.unbind(), active, strict=True):
            if sequence.slot in ended:
                continue
            sequence.steps += 1
            sequence.position += 1
            sequence.add_frame(frame)
            if not is_active:
                ended.add(sequence.slot)
                sequence.end_audio(model, text_after_audio(model, sequence.request.convention))
        return not ended

    rows = [DecodeRow(sequence.slot, sequence.position, sequence.pending[0]) for sequence in live]
    runner.draw(rows, min(_steps_left(model, sequence) for sequence in live), on_step)


def _check_drawn(name: str, lowest: int) -> None:
    """Raise RuntimeError if a drawn value is below 0, which is how the sampler reports bad logits on a GPU."""
    if lowest < 0:
        raise RuntimeError(
            f"{name} can't be drawn: its logits hold a NaN or +inf, exceed float32 when divided by the temperature, "
            "or are all -inf"
        )


def _advance(
    model: LanguageModel,
    live: Sequence[SequenceState],
    states: torch.Tensor,
    sampler: SamplerState,
    output_logits: bool,
) -> None:
    """Draw each sequence's next frame or token from its last row's state [sequences, hidden]."""
    audio = [index for index, sequence in enumerate(live) if sequence.mode is GenerationMode.AUDIO_IN_PROGRESS]
    text = [index for index, sequence in enumerate(live) if sequence.mode is GenerationMode.TEXT]
    for index, sequence in enumerate(live):
        sequence.steps += 1
        if sequence.mode is GenerationMode.AUDIO_INIT:
            if output_logits and model.text_head is not None:
                sequence.text_logits.append(model.text_logits(states[index : index + 1])[0])
            sequence.mode = GenerationMode.AUDIO_IN_PROGRESS
            sequence.add_frame(sampler.begin_segment(sequence.slot).cpu())
    if audio:
        _draw_audio(model, [live[i] for i in audio], _selected(states, audio), sampler, output_logits)
    if text:
        _draw_text(model, [live[i] for i in text], _selected(states, text), sampler, output_logits)


def _selected(states: torch.Tensor, rows: list[int]) -> torch.Tensor:
    return states if len(rows) == len(states) else states[rows]


def _draw_audio(
    model: LanguageModel,
    sequences: Sequence[SequenceState],
    states: torch.Tensor,
    sampler: SamplerState,
    output_logits: bool,
) -> None:
    logits = model.audio_logits(states)
    slots = torch.tensor([sequence.slot for sequence in sequences], dtype=torch.int32, device=model.device)
    frames = sampler.sample_audio_frame(logits, slots).cpu()
    _check_drawn("a code", int(frames.min()))
    for row, sequence in enumerate(sequences):
        if output_logits:
            sequence.audio_logits.append(logits[row])
        sequence.add_frame(frames[row])
        if not sampler.is_active(sequence.slot):
            sequence.end_audio(model, text_after_audio(model, sequence.request.convention))


def _draw_text(
    model: LanguageModel,
    sequences: Sequence[SequenceState],
    states: torch.Tensor,
    sampler: SamplerState,
    output_logits: bool,
) -> None:
    logits = model.text_logits(states)
    slots = torch.tensor([sequence.slot for sequence in sequences], dtype=torch.int32, device=model.device)
    steps = torch.tensor([sequence.steps for sequence in sequences], dtype=torch.int32, device=model.device)
    tokens = sampler.sample_text(logits, slots, steps).tolist()
    _check_drawn("a token", min(tokens))
    for row, (sequence, token) in enumerate(zip(sequences, tokens, strict=True)):
        if output_logits:
            sequence.text_logits.append(logits[row])
        sequence.add_token(token)
        if token == model.config.audio_out_bos_token_id:
            sequence.mode = GenerationMode.AUDIO_INIT
            sequence.segments.append([])
        elif completes_stop_string(model.tokenizer, sequence.text_ids, sequence.request.sampling.stop_strings or ()):
            sequence.finish_reason = "stop"
