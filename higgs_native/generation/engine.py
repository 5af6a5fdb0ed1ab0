"""Generation: sampling parameters, the loop over frames and text tokens, and what comes out.

Both public implementations' rules are here. Boson's ("boson") goes from text to audio at `<|audio_out_bos|>`, back to
text where the audio ends, and on until a stop string; transformers' ("transformers") draws audio from the prompt's
end until all codebooks are at EOS. The delay pattern's state and the draws stand in `ops.sample_audio_frame`.
"""

import secrets
from collections.abc import Sequence
from typing import Any

import torch

from higgs_native.errors import ParameterError
from higgs_native.generation.delay_pattern import Rule
from higgs_native.generation.model_runner import DecodeRow, ModelRunner, RunnerPool
from higgs_native.generation.prefix_cache import PromptBlock, prompt_blocks
from higgs_native.generation.sampler import SamplerState
from higgs_native.generation.sampling_params import SamplingParams, check_parameters
from higgs_native.generation.sequence import (
    GenerationMode,
    GenerationOutput,
    GenerationRequest,
    OnFrame,
    OnToken,
    _begin,
    _output,
    _Sequence,
)
from higgs_native.generation.stop import DEFAULT_STOP_STRINGS, _stops, check_stop_strings
from higgs_native.model.batch import Batch
from higgs_native.model.kv_cache import KVCache
from higgs_native.model.transformer import LanguageModel


class HiggsAudioModel(LanguageModel):
    """A Higgs Audio V2 language model that generates.

    >>> model = HiggsAudioModel.from_pretrained("bosonai/higgs-audio-v2-generation-3B-base")
    >>> output = model.generate(input_ids, reference_codes=[codes], temperature=0.3, top_k=50, seed=1)
    >>> codes = revert_delay_pattern(output.audio_segments[0])
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.runner_pool = RunnerPool()

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
        """Generate after one prompt; see `GenerationRequest`, `SamplingParams` and `generate_batch`.

        Args:
            input_ids: [1, S], integers, one placeholder for each of `reference_codes`.
            reference_codes: [codebooks, T] integers each, without BOS, EOS and delay.
        """
        request = GenerationRequest(input_ids, reference_codes, partial_audio, seed, on_frame, on_token)
        sampling = SamplingParams(temperature, top_k, top_p, ras_win_len, ras_win_max_num_repeat, seed)
        return generate_batch(self, [request], rule, max_new_tokens, sampling, stop_strings, output_logits)[0]


@torch.inference_mode()
def generate_batch(
    model: HiggsAudioModel,
    requests: Sequence[GenerationRequest],
    rule: Rule = "boson",
    max_new_tokens: int = 1024,
    sampling: SamplingParams | None = None,
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
    sampling = sampling or SamplingParams()
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
    with model.runner_pool.loop(model, len(sequences), length, window) as loop:
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
    sampler: SamplerState, sequences: Sequence[_Sequence], rule: Rule, sampling: SamplingParams
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


def _rows(model: LanguageModel, live: Sequence[_Sequence]) -> tuple[Batch, list[int]]:
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
    rows = Batch(
        token_ids=int32(ids),
        codes=torch.stack(frames).to(model.device) if frames else int32([]).view(0, model.config.num_codebooks),
        slots=int32([slot for slot, _ in places]),
        positions=int32([position for _, position in places]),
        text_positions=int32([text_position for _, _, text_position in text_places]),
    )
    return rows, [index if is_text else len(ids) + index for is_text, index in last]


def _draw_frames(
    model: LanguageModel, live: Sequence[_Sequence], loop: ModelRunner, rule: Rule, length: int, max_new_tokens: int
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

    loop.draw([DecodeRow(sequence.slot, sequence.position, sequence.pending[0]) for sequence in live], limit, deliver)


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


def _audio_eos_token_id(model: LanguageModel) -> int | None:
    """The text token after an audio segment: the transformers layout's configuration leaves it to the tokenizer."""
    if model.config.audio_eos_token_id is None and model.tokenizer is not None:
        return model.tokenizer.token_to_id("<|audio_eos|>")
    return model.config.audio_eos_token_id
