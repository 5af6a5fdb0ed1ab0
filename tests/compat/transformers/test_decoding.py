"""transformers' `generate` and the accelerated one, beside each other on the same models and arguments."""

import pytest
import torch

from higgs_native.errors import ParameterError, PromptError
from tests.generation.test_parity_transformers import CONFIGURATIONS
from tests.helpers import transformers_reference as reference
from tests.helpers.accelerated import EVERYTHING, Streamer, batch, both, compat
from tests.helpers.transformers_reference import transformers


accelerate = compat.accelerate


def live_steps(model, output) -> list[int]:
    """In how many steps each row was not over."""
    frames = output.audio_sequences[:, -len(output.scores) :]
    ended = (frames == model.config.audio_stream_eos_id).all(dim=2)
    return [int((row.int().cumsum(0) <= 1).sum() - (row.int().cumsum(0) == 1).sum() + row.any()) for row in ended]


@pytest.mark.parametrize("index", range(5))
@pytest.mark.parametrize(("rows", "first"), [(1, 0), (1, 2), (3, 0)])
@pytest.mark.parametrize("endless", [False, True])
def test_greedy_output_is_equal(index, rows, first, endless):
    model = reference.tiny_model(index, endless=endless, **CONFIGURATIONS[index])
    inputs = batch(model.config, rows, first)
    expected, output = both(model, inputs, max_new_tokens=40, do_sample=False, **EVERYTHING)
    assert type(output) is type(expected)
    assert torch.equal(output.audio_sequences, expected.audio_sequences)
    assert torch.equal(output.sequences, expected.sequences)
    for name in ("scores", "logits"):
        ours, theirs = getattr(output, name), getattr(expected, name)
        assert len(ours) == len(theirs)
        for row, steps in enumerate(live_steps(model, expected)):
            for one, other in zip(ours[:steps], theirs[:steps], strict=True):
                assert one.shape == other.shape
                torch.testing.assert_close(one[row], other[row], rtol=0, atol=1e-4)
    plain = model.generate(**inputs, max_new_tokens=40, do_sample=False)
    assert torch.equal(plain, expected.audio_sequences)


def test_sampling_from_the_likeliest_alone_is_equal():
    model = reference.tiny_model(1)
    options = {"max_new_tokens": 30, "do_sample": True, "temperature": 0.7, "top_k": 1, "top_p": 0.9}
    expected, output = both(model, batch(model.config, 3), **options, **EVERYTHING)
    assert torch.equal(output.audio_sequences, expected.audio_sequences)
    for one, other in zip(output.scores[:8], expected.scores[:8], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4)


def test_sampled_codes_have_their_scores_and_torch_decides_the_draws():
    model = accelerate(reference.tiny_model(2, endless=True))
    inputs = batch(model.config, 2)
    options = {"max_new_tokens": 30, "do_sample": True, "temperature": 0.8, "top_k": 7, "top_p": 0.9, **EVERYTHING}
    outputs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outputs.append(model.generate(**inputs, **options))
    assert torch.equal(outputs[0].audio_sequences, outputs[1].audio_sequences)
    assert not torch.equal(outputs[0].audio_sequences, outputs[2].audio_sequences)
    frames, scores = outputs[0].audio_sequences[:, -30:], torch.stack(outputs[0].scores, dim=1)
    assert torch.isfinite(scores.gather(3, frames[..., None])).all()
    assert (torch.isfinite(scores).sum(dim=3) <= 7).all()


def test_a_generation_config_and_repetition_aware_sampling():
    model = reference.tiny_model(3, endless=True)
    accelerate(model)
    config = transformers.GenerationConfig(
        max_new_tokens=25, do_sample=False, eos_token_id=265, ras_win_len=7, ras_win_max_num_repeat=1
    )
    inputs = batch(model.config, 1)
    once = model.generate(**inputs, generation_config=config)
    assert once.shape == (1, 25, 8)
    config.ras_win_max_num_repeat = 10**6
    never = model.generate(**inputs, generation_config=config)
    assert torch.equal(never, model.generate(**inputs, max_new_tokens=25, do_sample=False))
    assert not torch.equal(once, never)
    # As keywords too, where the model's configuration knows them, as that of the published checkpoint does.
    model.generation_config.ras_win_len, model.generation_config.ras_win_max_num_repeat = 7, 1
    options = {"max_new_tokens": 25, "do_sample": False, "ras_win_len": 7, "ras_win_max_num_repeat": 10**6}
    assert torch.equal(model.generate(**inputs, **options), never)


def test_a_prompt_that_ends_inside_audio_is_gone_on_with():
    model = reference.tiny_model(4, endless=True)
    inputs = batch(model.config, 1, first=1)
    whole = model.generate(**inputs, max_new_tokens=30, do_sample=False, return_dict_in_generate=True)
    for taken in (3, 8, 20):
        sequence, audio = whole.sequences[:, : -30 + taken], whole.audio_sequences[:, : -30 + taken]
        begun = {
            "input_ids": sequence,
            "attention_mask": torch.ones_like(sequence),
            "audio_input_ids": audio,
            "audio_input_ids_mask": torch.ones(audio.shape[:2], dtype=torch.bool),
        }
        expected, output = both(model, begun, max_new_tokens=10, do_sample=False)
        assert torch.equal(output, expected)


def test_several_sequences_of_one_prompt():
    model = reference.tiny_model(5, endless=True)
    options = {"max_new_tokens": 12, "do_sample": True, "top_k": 1, "num_return_sequences": 2}
    expected, output = both(model, batch(model.config, 1, first=1), **options)
    assert torch.equal(output, expected)
    options["top_k"] = 0
    first, second = model.generate(**batch(model.config, 1), **options)
    assert not torch.equal(first, second)


def test_a_streamer_gets_the_same():
    model = reference.tiny_model(0)
    streamers = [Streamer(), Streamer()]
    inputs = batch(model.config, 1, first=1)
    model.generate(**inputs, max_new_tokens=40, do_sample=False, streamer=streamers[0])
    accelerate(model).generate(**inputs, max_new_tokens=40, do_sample=False, streamer=streamers[1])
    assert streamers[0].values == streamers[1].values


def test_quantized():
    model = accelerate(reference.tiny_model(7, endless=True), quantization="int8")
    inputs = batch(model.config, 3)
    quantized = model.generate(**inputs, max_new_tokens=15, do_sample=False, **EVERYTHING)
    exact = accelerate(model).generate(**inputs, max_new_tokens=15, do_sample=False, **EVERYTHING)
    difference = (quantized.logits[0] - exact.logits[0]).abs().max()
    assert 0 < difference < 0.2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits(dtype):
    model = accelerate(reference.tiny_model(6, dtype=dtype, endless=True))
    output = model.generate(**batch(model.config, 3), max_new_tokens=15, do_sample=False, **EVERYTHING)
    assert output.audio_sequences.shape[1] >= 15
    assert output.scores[0].dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output_attentions": True}, "output_attentions"),
        ({"output_hidden_states": True}, "output_hidden_states"),
        ({"do_sample": True, "temperature": 0.5, "top_p": 0.9, "top_k": 3, "min_p": 0.1}, "MinP"),
        ({"streamer": Streamer()}, "a streamer for more than one sequence"),
        ({"synced_gpus": True}, "synced_gpus"),
        ({"num_beams": 2}, "BEAM_SEARCH"),
        ({"max_new_tokens": 9000}, "max_cache_length"),
        ({"repetition_penalty": 1.5}, "RepetitionPenalty"),
    ],
)
def test_what_it_can_not_do_raises(options, message):
    model = accelerate(reference.tiny_model(0))
    with pytest.raises(ValueError, match=message) as error:
        model.generate(**batch(model.config, 2), **{"max_new_tokens": 5, "do_sample": False, **options})
    if isinstance(error.value, ParameterError) and "max_new_tokens" not in options:
        assert "restore(model), or transformers' from_pretrained, gives the plain model" in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda inputs: inputs.pop("audio_input_ids"), "audio_input_ids_mask is given without audio_input_ids"),
        (
            lambda inputs: inputs.update({name: tensor[:0] for name, tensor in inputs.items()}),
            r"input_ids must have at least one row and one position, got shape \[0, 45\]",
        ),
        (
            lambda inputs: inputs.update(audio_input_ids_mask=inputs["audio_input_ids_mask"][:, 1:]),
            r"audio_input_ids_mask must be integers of shape \[1, 16\], got torch.bool \[1, 15\]",
        ),
        (
            lambda inputs: inputs.update(audio_input_ids=inputs["audio_input_ids"][:, :, 1:]),
            r"audio_input_ids must be integers of shape \[1, N, 8\], got torch.int64 \[1, 16, 7\]",
        ),
        (
            lambda inputs: inputs.update(audio_input_ids=inputs["audio_input_ids"].expand(2, -1, -1)),
            r"audio_input_ids must be integers of shape \[1, N, 8\], got torch.int64 \[2, 16, 8\]",
        ),
    ],
)
def test_inputs_that_do_not_fit_each_other_are_named(change, message):
    model = accelerate(reference.tiny_model(0))
    inputs = dict(batch(model.config, 1, first=1))
    change(inputs)
    with pytest.raises(PromptError, match=message):
        model.generate(**inputs, max_new_tokens=3, do_sample=False)


def masked(config, rows: int) -> dict[str, torch.Tensor]:
    """Inputs without audio, some positions of which are masked besides the padding on the left."""
    inputs = batch(config, rows)
    ids = torch.randint(0, 256, inputs["input_ids"].shape, generator=torch.Generator().manual_seed(0))
    mask = inputs["attention_mask"].clone()
    mask[:, 4:20:3] = 0
    ids[:, -1] = config.audio_bos_token_id
    return {"input_ids": ids, "attention_mask": mask}


def test_masked_positions_within_a_prompt():
    model = reference.tiny_model(2, endless=True)
    inputs = masked(model.config, 3)
    expected, output = both(model, inputs, max_new_tokens=20, do_sample=False, **EVERYTHING)
    assert torch.equal(output.audio_sequences, expected.audio_sequences)
    for one, other in zip(output.logits, expected.logits, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4)
    everything = {**inputs, "attention_mask": torch.ones_like(inputs["attention_mask"])}
    assert not torch.equal(model.generate(**everything, max_new_tokens=20, do_sample=False), output.audio_sequences)


def test_a_masked_position_takes_its_frame_along():
    model = reference.tiny_model(2, endless=True)
    inputs = batch(model.config, 1, first=1)
    placeholders = (inputs["input_ids"][0] == model.config.audio_token_id).nonzero().flatten().tolist()
    inputs["attention_mask"][0, placeholders[2:4]] = 0
    expected, output = both(model, inputs, max_new_tokens=20, do_sample=False)
    assert torch.equal(output, expected)


def test_masked_positions_that_are_refused():
    model = accelerate(reference.tiny_model(0))
    inputs = masked(model.config, 2)
    right = {**inputs, "attention_mask": inputs["attention_mask"].flip(1)}
    with pytest.raises(ParameterError, match="padding on the right"):
        model.generate(**right, max_new_tokens=5)
    inputs["input_ids"][:, -3] = model.config.audio_bos_token_id
    inputs["attention_mask"][:, -2] = 0
    with pytest.raises(ParameterError, match=r"masked positions after <\|audio_out_bos\|>"):
        model.generate(**inputs, max_new_tokens=5)


def test_values_that_can_not_be_drawn_from_are_an_option_of_no_effect():
    model = reference.tiny_model(1)
    options = {"max_new_tokens": 20, "do_sample": False, "remove_invalid_values": True, **EVERYTHING}
    expected, output = both(model, batch(model.config, 2), **options)
    assert torch.equal(output.audio_sequences, expected.audio_sequences)
    torch.testing.assert_close(output.scores[9], expected.scores[9], rtol=0, atol=1e-4)


def test_a_loop_of_the_users_runs_as_it_is():
    def loop(model, input_ids, logits_processor, stopping_criteria, generation_config, **inputs):
        return model(input_ids=input_ids, audio_input_ids=inputs["audio_input_ids"]).logits

    model = reference.tiny_model(1)
    expected, output = both(model, batch(model.config, 1, first=1), custom_generate=loop)
    assert torch.equal(output, expected)
