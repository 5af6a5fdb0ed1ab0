"""The `transformers` implementation of Higgs Audio V2, to which tests compare.

Importing this module skips the tests of the importing file if `transformers` or `torchaudio` is missing. With
HIGGS_NATIVE_REQUIRE_TRANSFORMERS=1 (set in CI), it is an error instead.

A test makes a model with `tiny_model`, saves it with `save`, and loads the folder with higgs_native. Both get the same
`Prompt`: higgs_native its `input_ids` and `reference_codes`, transformers the result of `model_inputs`, which
`generate` and `forced_logits` call.
"""

import importlib.util
import os
import types
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from benchmarks.tools.transformers_baseline import import_transformers
from higgs_native.checkpoint.config import HiggsAudioConfig
from higgs_native.testing.byte_tokenizer import build_tokenizer


def _import_transformers() -> types.ModuleType:
    if os.environ.get("HIGGS_NATIVE_REQUIRE_TRANSFORMERS") != "1":
        if importlib.util.find_spec("torchaudio") is None:
            pytest.skip(
                "transformers' Higgs Audio V2 needs torchaudio: pip install '.[test]'", allow_module_level=True
            )
        pytest.importorskip(
            "transformers", minversion="5.23", reason="transformers 5.23 is the reference here: pip install '.[test]'"
        )
    return import_transformers()


transformers = _import_transformers()

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 0.125,
    "high_freq_factor": 0.5,
    "original_max_position_embeddings": 64,
}
PLAIN_ROPE = {"rope_type": "default", "rope_theta": 10000.0}


def tiny_config(
    *,
    hidden: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 16,
    layers: int = 2,
    ffn: int = 96,
    codebooks: int = 8,
    codebook_size: int = 34,
    vocab: int = 288,
    rope: dict | None = None,
    max_positions: int = 2048,
) -> "transformers.HiggsAudioV2Config":
    """A small configuration of `transformers`.

    Args:
        hidden: a multiple of `heads`; it may differ from `heads * head_dim`.
        codebook_size: rows of a codebook; the last two are BOS and EOS.
        vocab: min 273: 256 bytes and the special tokens.
        rope: LLAMA3_ROPE (the default) or PLAIN_ROPE.
    """
    return transformers.HiggsAudioV2Config(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=max_positions,
        rope_parameters=dict(rope or LLAMA3_ROPE),
        num_codebooks=codebooks,
        codebook_size=codebook_size,
        audio_stream_bos_id=codebook_size - 2,
        audio_stream_eos_id=codebook_size - 1,
        pad_token_id=257,
        eos_token_id=265,
        audio_bos_token_id=269,
        audio_delay_token_id=270,
        audio_token_id=272,
    )


def tiny_model(
    seed: int,
    config: "transformers.HiggsAudioV2Config | None" = None,
    *,
    dtype: torch.dtype = torch.float32,
    endless: bool = False,
    text_head: bool = False,
    **options,
) -> "transformers.HiggsAudioV2ForConditionalGeneration":
    """A model of `transformers` with random weights, in evaluation mode.

    The weights are scaled so that logits have a deviation near one and depend on every earlier position.

    Args:
        seed: of the weights.
        config: its shapes; by default `tiny_config(**options)`.
        endless: make EOS the least likely code, so that greedy output runs to its limit.
        text_head: add a text head, which `transformers` does not use in generation.
    """
    config = config or tiny_config(**options)
    model = transformers.HiggsAudioV2ForConditionalGeneration(config, use_text_head=text_head)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                parameter.copy_(1 + 0.2 * values)
            elif "embed" in name:
                parameter.copy_(values)
            else:
                parameter.copy_(1.5 * values / parameter.shape[1] ** 0.5)
        if endless:
            head = model.audio_lm_head.weight.view(config.num_codebooks, config.codebook_size, -1)
            head[:, config.audio_stream_eos_id] = 0
    return model.to(dtype).eval()


def native_config(config: "transformers.HiggsAudioV2Config") -> HiggsAudioConfig:
    """The same configuration as higgs_native reads it."""
    return HiggsAudioConfig.from_dict(config.to_dict())


def save(model: "transformers.HiggsAudioV2ForConditionalGeneration", folder: Path) -> Path:
    """Save `model` as `transformers` does, with a byte-level `tokenizer.json`; return the folder."""
    model.save_pretrained(folder)
    build_tokenizer(native_config(model.config)).save(str(folder / "tokenizer.json"))
    return folder


def load(folder: Path, dtype: torch.dtype = torch.float32) -> "transformers.HiggsAudioV2ForConditionalGeneration":
    """Load a folder in the layout of transformers, which must have every tensor of the model."""
    model, report = transformers.HiggsAudioV2ForConditionalGeneration.from_pretrained(
        folder, dtype=dtype, output_loading_info=True
    )
    assert not report["missing_keys"], report
    assert not report["mismatched_keys"], report
    return model.eval()


@dataclass
class Prompt:
    """A prompt as `HiggsAudioModel.generate` takes it.

    Attributes:
        input_ids: int64 [1, S], one placeholder for each reference; ends in `<|audio_out_bos|>`.
        reference_codes: int64 [codebooks, T] each, before BOS, EOS and delay.
    """

    input_ids: torch.Tensor
    reference_codes: list[torch.Tensor] = field(default_factory=list)


def random_prompt(
    config: "transformers.HiggsAudioV2Config", seed: int, text: int = 20, reference_frames: Sequence[int] = ()
) -> Prompt:
    """A prompt of `text` random byte tokens, with references of the given numbers of frames spread between them.

    At least one token per codebook follows the last reference. Nearer to the end, `transformers` mistakes the delay
    tokens of a reference for those of generated audio that closes.
    """
    assert not reference_frames or text > config.num_codebooks, (
        f"text must be longer than {config.num_codebooks}, got {text}"
    )
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 256, (text,), generator=generator).tolist()
    step = (text - config.num_codebooks) // max(1, len(reference_frames))
    for index in range(len(reference_frames), 0, -1):
        ids[index * step : index * step] = [config.audio_bos_token_id, config.audio_token_id]
    ids.append(config.audio_bos_token_id)
    codes = [
        torch.randint(0, config.audio_stream_bos_id, (config.num_codebooks, frames), generator=generator)
        for frames in reference_frames
    ]
    return Prompt(torch.tensor([ids]), codes)


def delayed(config: "transformers.HiggsAudioV2Config", codes: torch.Tensor) -> torch.Tensor:
    """`codes` [codebooks, T] between BOS and EOS, delayed by `transformers`: [codebooks, T + codebooks + 1]."""
    column = codes.new_ones(codes.shape[0], 1)
    closed = torch.cat([column * config.audio_stream_bos_id, codes, column * config.audio_stream_eos_id], dim=1)
    ids = types.SimpleNamespace(
        audio_stream_bos_id=config.audio_stream_bos_id, audio_stream_eos_id=config.audio_stream_eos_id
    )
    return transformers.HiggsAudioV2Processor.build_delay_pattern(ids, closed[None])[0]


def model_inputs(config: "transformers.HiggsAudioV2Config", prompts: Sequence[Prompt]) -> dict[str, torch.Tensor]:
    """The inputs that `transformers`' processor makes of a batch: expanded, left-padded ids; right-padded codes."""
    delays = config.num_codebooks - 1
    rows, frames = [], []
    for prompt in prompts:
        audio = [delayed(config, codes).T for codes in prompt.reference_codes]
        lengths = iter([len(codes) for codes in audio])
        row: list[int] = []
        for token in prompt.input_ids[0].tolist():
            if token == config.audio_token_id:
                row += [config.audio_token_id] * (next(lengths) - delays) + [config.audio_delay_token_id] * delays
            else:
                row.append(token)
        assert next(lengths, None) is None, "more references than placeholders"
        rows.append(row)
        frames.append(torch.cat(audio) if audio else torch.empty(0, config.num_codebooks, dtype=torch.int64))
    longest = max(map(len, rows))
    inputs = {
        "input_ids": torch.tensor([[config.pad_token_id] * (longest - len(row)) + row for row in rows]),
        "attention_mask": torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows]),
    }
    max_frames = max(map(len, frames))
    if max_frames:
        codes = torch.full((len(rows), max_frames, config.num_codebooks), config.audio_stream_eos_id)
        for index, row_frames in enumerate(frames):
            codes[index, : len(row_frames)] = row_frames
        inputs["audio_input_ids"] = codes
        inputs["audio_input_ids_mask"] = torch.arange(max_frames)[None] < torch.tensor([[len(row)] for row in frames])
    return inputs


@torch.no_grad()
def forced_logits(
    model: "transformers.HiggsAudioV2ForConditionalGeneration", prompt: Prompt, frames: torch.Tensor
) -> torch.Tensor:
    """Return the logits after `prompt` and after each of the forced `frames`.

    Args:
        frames: int64 [codebooks, N], delayed, from the all-BOS frame of a segment on.

    Returns:
        float32 [N + 1, codebooks, codebook_size]; row 0 follows the prompt.
    """
    config = model.config
    inputs = model_inputs(config, [prompt])
    count = frames.shape[1]
    start = inputs["input_ids"].shape[1] - 1
    ids = torch.nn.functional.pad(inputs["input_ids"], (0, count), value=config.audio_token_id)
    before = inputs.get("audio_input_ids", frames.new_empty(1, 0, config.num_codebooks))
    audio = torch.cat([before, frames.T[None]], dim=1)
    logits = model(input_ids=ids, audio_input_ids=audio if audio.shape[1] else None).logits[0, start:]
    return logits.float().view(count + 1, config.num_codebooks, config.codebook_size)


@dataclass
class Generated:
    """The output of `transformers` for a batch.

    Attributes:
        codes: int64 [batch, codebooks, steps], delayed, from the all-BOS frame on; EOS after the end of a row.
        logits: float32 [steps, batch, codebooks, codebook_size].
        scores: as `logits`, after the delay masks, temperature, top-k and top-p.
    """

    codes: torch.Tensor
    logits: torch.Tensor
    scores: torch.Tensor


@torch.no_grad()
def generate(
    model: "transformers.HiggsAudioV2ForConditionalGeneration",
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    **options,
) -> Generated:
    """Generate with `transformers`: greedily, unless `options` of its `generate` say otherwise.

    Repetition-aware sampling of the model's own settings is off too: what it replaces is drawn at random even where
    the rest is greedy.
    """
    config = model.config
    output = model.generate(
        **model_inputs(config, prompts),
        max_new_tokens=max_new_tokens,
        **{"do_sample": False, "ras_win_len": None, **options},
        return_dict_in_generate=True,
        output_logits=True,
        output_scores=True,
    )
    steps = len(output.scores)
    shape = (steps, len(prompts), config.num_codebooks, config.codebook_size)
    return Generated(
        codes=output.audio_sequences[:, -steps:].transpose(1, 2).contiguous(),
        logits=torch.stack(output.logits).reshape(shape),
        scores=torch.stack(output.scores).reshape(shape),
    )
