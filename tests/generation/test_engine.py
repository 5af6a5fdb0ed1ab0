"""The generation loop: modes, limits, stop strings, seeds, callbacks, resuming, and bad input."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from higgs_native import ops
from higgs_native.errors import CheckpointError, ParameterError, PromptError
from higgs_native.generation.delay_pattern import revert_delay_pattern
from higgs_native.generation.model import HiggsAudioModel, generate_batch
from higgs_native.generation.requests import GenerationRequest
from higgs_native.generation.sampling_params import SamplingParams


FOLDER = Path(__file__).parents[1] / "golden" / "boson_lm"


@pytest.fixture(scope="module")
def model() -> HiggsAudioModel:
    return HiggsAudioModel.from_pretrained(FOLDER)


def ids(model: HiggsAudioModel, text: str) -> torch.Tensor:
    return torch.tensor([model.tokenizer.encode(text, add_special_tokens=False).ids])


@pytest.fixture(scope="module")
def audio_prompt(model) -> torch.Tensor:
    return ids(model, "<|begin_of_text|>Say this.<|eot_id|><|audio_out_bos|>")


@pytest.fixture(scope="module")
def text_prompt(model) -> torch.Tensor:
    return ids(model, "<|begin_of_text|>Say this.<|eot_id|>")


def is_delayed(segment: torch.Tensor, bos: int) -> bool:
    """Whether BOS fills exactly the triangle before each codebook's first code."""
    return all((segment[k, : min(k + 1, segment.shape[1])] == bos).all() for k in range(segment.shape[0]))


def test_max_new_tokens_counts_all_steps(model, audio_prompt):
    for limit in (1, 2, 9, 30):
        output = model.generate(audio_prompt, max_new_tokens=limit, temperature=0, ras_win_len=None)
        assert output.completion_tokens == limit
        assert output.finish_reason == "length"
    assert output.prompt_tokens == audio_prompt.shape[1]


def test_output_of_fewer_frames_than_codebooks_reverts_to_nothing(model, audio_prompt):
    output = model.generate(audio_prompt, max_new_tokens=5, temperature=0, ras_win_len=None)
    (segment,) = output.audio_segments
    assert segment.shape == (8, 5)
    assert revert_delay_pattern(segment).shape == (8, 0)


def test_text_only_output(model, text_prompt):
    output = model.generate(text_prompt, max_new_tokens=20, temperature=0, stop_strings=())
    assert output.audio_segments == []
    assert len(output.text_ids) == 20
    assert output.finish_reason == "length"


def test_a_stop_string_ends_generation(model, text_prompt):
    free = model.generate(text_prompt, max_new_tokens=20, temperature=0, stop_strings=())
    token = free.text_ids[7]
    stop = model.tokenizer.decode([token], skip_special_tokens=False)
    first = free.text_ids.index(token)
    output = model.generate(text_prompt, max_new_tokens=20, temperature=0, stop_strings=[stop])
    assert output.text_ids == free.text_ids[: first + 1]
    assert output.finish_reason == "stop"


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("text_config", "token"),
        ("text_config", ["other", "token"]),
        ("config", "token"),
        ("generation_config", ["token"]),
    ],
)
def test_an_end_token_ends_the_reply_beside_the_stop_strings(model, text_prompt, tmp_path, where, value):
    """transformers' `generate`, which the original model runs through, stops at the EOS ids of its configuration."""
    free = model.generate(text_prompt, max_new_tokens=20, temperature=0, stop_strings=["zzz"])
    token = free.text_ids[3]
    assert token not in free.text_ids[:3]
    ids = {"token": token, "other": 5}
    value = ids[value] if isinstance(value, str) else [ids[name] for name in value]
    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    config = json.loads((FOLDER / "config.json").read_text())
    if where == "generation_config":
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
        config["eos_token_id"] = 5  # decided by the other file
    else:
        (config if where == "config" else config[where])["eos_token_id"] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    changed = HiggsAudioModel.from_pretrained(tmp_path)
    output = changed.generate(text_prompt, max_new_tokens=20, temperature=0, stop_strings=["zzz"])
    assert output.text_ids == free.text_ids[:4]
    assert output.finish_reason == "stop"


def test_a_stop_string_of_several_tokens(model, text_prompt):
    # Drawn at a high temperature: bytes, many of them letters.
    options = {"max_new_tokens": 60, "temperature": 1.0, "seed": 3, "stop_strings": ()}
    free = model.generate(text_prompt, **options)
    texts = [model.tokenizer.decode([token], skip_special_tokens=False) for token in free.text_ids]
    at = next(i for i in range(5, 60) if all(len(text) == 1 and text.isascii() for text in texts[i - 2 : i + 1]))
    stop = "".join(texts[at - 2 : at + 1])
    output = model.generate(text_prompt, **(options | {"stop_strings": [stop]}))
    assert output.finish_reason == "stop"
    assert "".join(texts[: len(output.text_ids)]).endswith(stop)
    assert len(output.text_ids) <= at + 1


def test_text_and_several_audio_segments(model, text_prompt):
    config = model.config
    sampling = SamplingParams(3.0, None, None, seed=1, max_new_tokens=1200, stop_strings=())
    frames: list[torch.Tensor] = []
    request = GenerationRequest(text_prompt, sampling=sampling, on_frame=frames.append)
    (output,) = generate_batch(model, [request])
    assert len(output.audio_segments) >= 2
    for segment in output.audio_segments:
        assert is_delayed(segment, config.audio_stream_bos_id)
    # Each <|audio_out_bos|> is followed by a placeholder, and that, once the segment has ended, by <|audio_eos|>.
    begins = [at for at, token in enumerate(output.text_ids) if token == config.audio_out_bos_token_id]
    assert len(begins) == len(output.audio_segments)
    for at in begins:
        assert output.text_ids[at + 1] == config.audio_out_token_id
        assert output.text_ids[at + 2 : at + 3] in ([config.audio_eos_token_id], [])
    assert torch.equal(torch.stack(frames, dim=1), torch.cat(output.audio_segments, dim=1))


def test_a_full_cache_ends_in_a_result(audio_prompt):
    length = audio_prompt.shape[1] + 6
    small = HiggsAudioModel.from_pretrained(FOLDER, max_cache_length=length)
    output = small.generate(audio_prompt, max_new_tokens=100, temperature=0, ras_win_len=None)
    # The cache takes the prompt and six frames; the last of them still gives a step.
    assert output.completion_tokens == 7
    assert output.finish_reason == "length"
    with pytest.raises(PromptError, match=rf"must take fewer than {length} positions .* got {length}"):
        small.generate(torch.cat([audio_prompt[:, :1].expand(1, 6), audio_prompt], dim=1))


def test_the_same_seed_gives_the_same_codes(model, audio_prompt):
    def codes(seed: int | None) -> torch.Tensor:
        return model.generate(audio_prompt, max_new_tokens=12, temperature=1.0, seed=seed).audio_segments[0]

    assert torch.equal(codes(1), codes(1))
    assert not torch.equal(codes(1), codes(2))
    # All 64 bits count, as in torch: programs send unsigned seeds, and -1.
    assert torch.equal(codes(2**64 - 1), codes(-1))
    assert torch.equal(codes(2**63), codes(-(2**63)))
    assert not torch.equal(codes(2**63), codes(0))
    assert not torch.equal(codes(None), codes(None))


def test_requests_without_a_seed_differ(model, audio_prompt):
    requests = [GenerationRequest(audio_prompt, sampling=SamplingParams(temperature=1.0, max_new_tokens=12))] * 2
    first, second = generate_batch(model, requests)
    assert not torch.equal(first.audio_segments[0], second.audio_segments[0])


def test_requests_of_a_batch_have_their_own_sampling_params(model, audio_prompt, text_prompt):
    sampling = [
        SamplingParams(temperature=1.0, top_k=None, top_p=None, seed=1, max_new_tokens=12),
        SamplingParams(temperature=0, ras_win_len=None, max_new_tokens=30),
        SamplingParams(temperature=0.5, top_k=5, top_p=0.9, ras_win_len=3, seed=2, max_new_tokens=20),
        SamplingParams(temperature=0.8, seed=3, max_new_tokens=25, stop_strings=("a",)),
    ]
    prompts = [audio_prompt, audio_prompt, audio_prompt, text_prompt]
    requests = [
        GenerationRequest(prompt, convention=convention, sampling=params)
        for prompt, params in zip(prompts, sampling, strict=True)
        for convention in (["boson", "transformers"] if prompt is audio_prompt else ["boson"])
    ]
    for request, batched in zip(requests, generate_batch(model, requests), strict=True):
        (alone,) = generate_batch(model, [request])
        assert (alone.text_ids, alone.finish_reason) == (batched.text_ids, batched.finish_reason)
        for one, other in zip(alone.audio_segments, batched.audio_segments, strict=True):
            assert torch.equal(one, other)


def test_sampling_params_and_options_exclude_each_other(model, audio_prompt):
    with pytest.raises(ParameterError, match="sampling must be given alone, got seed, top_k beside it"):
        model.generate(audio_prompt, sampling=SamplingParams(), seed=1, top_k=3)
    with pytest.raises(ParameterError, match="sampling must be SamplingParams or None, got dict"):
        model.generate(audio_prompt, sampling={"seed": 1})


@pytest.mark.parametrize(
    ("convention", "begun"), [(convention, n) for convention in ("boson", "transformers") for n in (1, 4, 8, 11, 13)]
)
def test_partial_audio_goes_on_where_it_stopped(model, convention, begun):
    options = {"convention": convention, "temperature": 0, "ras_win_len": None, "max_new_tokens": 60}
    compared = 0
    for number in range(12):
        prompt = ids(model, f"<|begin_of_text|>Say {number}.<|eot_id|><|audio_out_bos|>")
        whole = model.generate(prompt, **options).audio_segments[0]
        if whole.shape[1] > 13:
            output = model.generate(prompt, **options, partial_audio=whole[:, :begun])
            assert torch.equal(output.audio_segments[0], whole)
            compared += 1
    assert compared >= 2


@pytest.mark.parametrize(("placeholder", "counts"), [("<|AUDIO|>", False), ("<|AUDIO_OUT|>", True)])
def test_repetitions_are_counted_among_the_assistants_audio(model, placeholder, counts):
    """With a window over the whole prompt, a code that the assistant's audio repeats is drawn again."""
    codes = torch.arange(30).repeat(8, 1)
    options = {"reference_codes": [codes.repeat(1, 4)], "temperature": 0, "max_new_tokens": 3, "seed": 1}
    differs = 0
    for text in "abcdefgh":
        prompt = ids(model, f"{placeholder}{text}<|audio_out_bos|>")
        plain = model.generate(prompt, **options, ras_win_len=None)
        ras = model.generate(prompt, **options, ras_win_len=200)
        differs += not torch.equal(plain.audio_segments[0], ras.audio_segments[0])
    assert (differs > 0) == counts


def test_numbers_of_numpy_are_numbers(model, audio_prompt):
    options = {
        "max_new_tokens": np.int64(4),
        "temperature": np.float32(0.5),
        "top_k": np.int32(3),
        "seed": np.int64(1),
    }
    plain = {name: value.item() for name, value in options.items()}
    outputs = [model.generate(audio_prompt, **given).audio_segments[0] for given in (options, plain)]
    assert torch.equal(*outputs)


def test_what_comes_out_are_tensors_as_any_other(model, audio_prompt):
    """Those of inference mode could not be changed outside of it."""
    received: list[torch.Tensor] = []

    def on_frame(frame):
        assert not torch.is_inference_mode_enabled()
        received.append(frame)

    output = model.generate(audio_prompt, max_new_tokens=12, on_frame=on_frame, output_logits=True)
    for tensor in (*received, *output.audio_segments, output.audio_logits, output.text_logits):
        assert not tensor.is_inference()
        tensor += 1


def test_no_requests_give_no_outputs(model):
    assert generate_batch(model, []) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, "temperature must be 0 .greedy. or between 0.001 and 1000, got -0.1"),
        ({"temperature": float("nan")}, "temperature must be 0 .greedy. or between 0.001 and 1000, got nan"),
        ({"temperature": 1e39}, "temperature must be 0 .greedy. or between 0.001 and 1000, got 1e"),
        ({"top_k": 2**31}, r"top_k must be between 0 and 2\*\*31 - 1, or None, got 2147483648"),
        ({"ras_win_len": 2**31 - 1}, "ras_win_len must be at most 10000, got 2147483647"),
        ({"top_p": 0}, "top_p must be between 1e-6 and 1, or None, got 0"),
        ({"top_p": 1e-7}, "top_p must be between 1e-6 and 1, or None, got 1e-07"),
        ({"top_p": 2}, "top_p must be between 1e-6 and 1, or None, got 2"),
        ({"top_k": -1}, r"top_k must be between 0 and 2\*\*31 - 1, or None, got -1"),
        ({"ras_win_max_num_repeat": 0}, r"ras_win_max_num_repeat must be between 1 and 2\*\*31 - 1, got 0"),
        ({"seed": -(2**63) - 1}, r"seed must be between -2\*\*63 and 2\*\*64 - 1, got -9223372036854775809"),
        ({"seed": 2**64}, r"seed must be between -2\*\*63 and 2\*\*64 - 1, got 18446744073709551616"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"max_new_tokens": 2.5}, "max_new_tokens must be an integer, got 2.5"),
        ({"max_new_tokens": None}, "max_new_tokens must be an integer, got None"),
        ({"temperature": "hot"}, "temperature must be a number, got 'hot'"),
        ({"top_p": "0.9"}, "top_p must be a number or None, got '0.9'"),
        ({"top_k": 2.5}, "top_k must be an integer or None, got 2.5"),
        ({"ras_win_len": "7"}, "ras_win_len must be an integer or None, got '7'"),
        ({"ras_win_max_num_repeat": 1.5}, "ras_win_max_num_repeat must be an integer, got 1.5"),
        ({"seed": 1.0}, "seed must be an integer or None, got 1.0"),
        ({"stop_strings": "abc"}, "stop_strings must be a list of strings, got the string 'abc'"),
        ({"stop_strings": [1]}, r"stop_strings must be a list of strings, got \[1\]"),
        ({"stop_strings": 5}, "stop_strings must be a list of strings, got 5"),
        ({"convention": "other"}, "convention must be 'boson', 'transformers' or 'higgs_tts_3', got 'other'"),
    ],
)
def test_parameters_out_of_range_are_refused(model, audio_prompt, options, message):
    with pytest.raises(ParameterError, match=message):
        model.generate(audio_prompt, **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"input_ids": torch.empty(1, 0, dtype=torch.int64)},
            r"input_ids must have shape \[1, S\] with S of at least 1",
        ),
        ({"input_ids": torch.zeros(2, 3, dtype=torch.int64)}, r"input_ids must have shape \[1, S\].* got \[2, 3\]"),
        ({"input_ids": torch.zeros(1, 3)}, "input_ids must be integers in a tensor or an array, got torch.float32"),
        ({"input_ids": [[5]]}, "input_ids must be integers in a tensor or an array, got list"),
        ({"input_ids": torch.tensor([[5, 271]])}, "input_ids must be between 0 and 270, got 271"),
        (
            {"input_ids": torch.tensor([[266, 264]])},
            "reference_codes must have 1 items, one per audio placeholder of input_ids, got 0",
        ),
        (
            {"reference_codes": [torch.zeros(8, 3)]},
            "reference_codes must have 0 items, one per audio placeholder of input_ids, got 1",
        ),
        (
            {"input_ids": torch.tensor([[266, 264]]), "reference_codes": [torch.zeros(8, 3)]},
            "reference codes must be integers in a tensor or an array, got torch.float32",
        ),
        (
            {"input_ids": torch.tensor([[266, 264]]), "reference_codes": [torch.zeros(7, 3, dtype=torch.int64)]},
            r"reference codes must have shape \[8, frames\], got \[7, 3\]",
        ),
        (
            {"input_ids": torch.tensor([[266, 264]]), "reference_codes": [torch.full((8, 3), 30)]},
            "reference codes must be between 0 and 29, got 30 to 30",
        ),
        (
            {"input_ids": torch.tensor([[5]]), "convention": "transformers"},
            r"input_ids must end in <\|audio_out_bos\|> in the convention 'transformers', got 5",
        ),
        (
            {"input_ids": torch.tensor([[5]]), "partial_audio": torch.zeros(8, 1)},
            r"input_ids must end in <\|audio_out_bos\|> with partial_audio, got 5",
        ),
        ({"partial_audio": torch.zeros(7, 1).int()}, r"partial_audio must have shape \[8, N\]"),
        ({"partial_audio": torch.full((8, 1), 0.5)}, "partial_audio must be integers"),
        ({"partial_audio": torch.full((8, 1), 2**40)}, "partial_audio must be between 0 and 31, got 1099511627776"),
    ],
)
def test_prompts_that_do_not_fit_are_refused(model, audio_prompt, change, message):
    with pytest.raises(PromptError, match=message):
        model.generate(**({"input_ids": audio_prompt} | change))


@pytest.mark.parametrize("convention", ["boson", "transformers"])
@pytest.mark.parametrize("with_reference", [False, True])
@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([[5] * 8], r"must begin with a frame of BOS in all codebooks, got \[5, 5, 5, 5, 5, 5, 5, 5\]"),
        ([[5] * 8, [30] * 8], "must begin with a frame of BOS in all codebooks"),
        ([[30] * 7 + [5], [30] * 8], "must begin with a frame of BOS in all codebooks"),
        ([[30] * 8, [31] * 8], "must not have ended, got EOS in all codebooks of its last frame"),
    ],
)
def test_partial_audio_that_cannot_be_resumed_is_refused(model, convention, with_reference, frames, message):
    """A reference before it also has frames of BOS."""
    text = "<|AUDIO_OUT|>Say this.<|audio_out_bos|>" if with_reference else "Say this.<|audio_out_bos|>"
    references = [torch.arange(12).repeat(8, 1)] if with_reference else []
    with pytest.raises(PromptError, match=f"partial_audio {message}"):
        model.generate(
            ids(model, text), references, convention, partial_audio=torch.tensor(frames).T, max_new_tokens=2
        )


def test_without_a_text_head_audio_ends_the_output(tmp_path):
    from safetensors.torch import load_file, save_file

    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((FOLDER / name).read_bytes())
    tensors = load_file(FOLDER / "model.safetensors")
    del tensors["audio_decoder_proj.text_lm_head.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    model = HiggsAudioModel.from_pretrained(tmp_path)
    output = model.generate(ids(model, "Say this.<|audio_out_bos|>"), temperature=0, ras_win_len=None)
    assert output.finish_reason == "stop"
    assert output.text_ids == [model.config.audio_out_token_id]
    with pytest.raises(CheckpointError, match="no text head"):
        model.generate(ids(model, "Say this."))


@pytest.mark.parametrize("output_logits", [False, True])
def test_logits_that_are_not_finite_are_refused(audio_prompt, text_prompt, output_logits):
    """By the sampler on the CPU, and where its codes are read on a GPU."""
    broken = HiggsAudioModel.from_pretrained(FOLDER)
    broken.norm.fill_(torch.nan)
    for prompt in (audio_prompt, text_prompt):
        with pytest.raises(RuntimeError, match=r"logits .*hold a NaN"):
            broken.generate(prompt, max_new_tokens=4, output_logits=output_logits)


def test_what_a_gpu_could_not_draw_is_refused(model, audio_prompt, text_prompt, monkeypatch):
    for name in ("sample_audio_frame", "sample_text"):
        monkeypatch.setattr(ops, name, lambda drawn, *arguments: drawn.fill_(-1))
    with pytest.raises(RuntimeError, match="a code can't be drawn: its logits hold a NaN"):
        model.generate(audio_prompt, max_new_tokens=4)
    with pytest.raises(RuntimeError, match="a code can't be drawn: its logits hold a NaN"):
        model.generate(audio_prompt, max_new_tokens=4, output_logits=True)
    with pytest.raises(RuntimeError, match="a token can't be drawn: its logits hold a NaN"):
        model.generate(text_prompt, max_new_tokens=4)
