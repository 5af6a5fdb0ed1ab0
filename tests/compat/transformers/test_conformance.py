"""The demands of transformers' tests on a model that generates, for one that is accelerated when it is made.

The model is as small as there: 2 codebooks, 16 codes, and no id of EOS that ends a row early.
"""

import inspect

import pytest
import torch

from higgs_native.errors import ParameterError
from tests.helpers import transformers_reference as reference
from tests.helpers.accelerated import Streamer, compat
from tests.helpers.transformers_reference import transformers


NEW_TOKENS = 3


CONFIG = reference.tiny_config(
    codebooks=2, codebook_size=16, hidden=32, heads=2, kv_heads=2, head_dim=16, ffn=37, layers=2
)


@pytest.fixture(scope="module", params=["plain", "accelerated"])
def model(request):
    """The checks hold for the plain model too, so that they ask what transformers promises."""
    model = reference.tiny_model(0, config=CONFIG)
    return compat.accelerate(model) if request.param == "accelerated" else model


@pytest.fixture
def inputs() -> dict[str, torch.Tensor]:
    """Three rows of random text that end in frames of audio, and random codes."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 200, (3, 14), generator=generator)
    ids[:, 4:] = CONFIG.audio_token_id
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "audio_input_ids": torch.randint(0, 14, (3, 10, 2), generator=generator),
        "audio_input_ids_mask": torch.ones(3, 10, dtype=torch.bool),
    }


def generate(model, inputs, **options):
    defaults = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": None, "do_sample": False, "eos_token_id": -1}
    return model.generate(**inputs, **{**defaults, **options})


EVERYTHING = {"output_scores": True, "output_logits": True, "return_dict_in_generate": True}


@pytest.mark.parametrize("sampling", [{}, {"do_sample": True, "top_k": 10, "top_p": 0.7, "temperature": 0.7}])
def test_the_shape_of_the_output(model, inputs, sampling):
    assert generate(model, inputs, **sampling).shape == (3, 10 + NEW_TOKENS, 2)
    output = generate(model, inputs, **sampling, **EVERYTHING)
    assert output.audio_sequences.shape == (3, 10 + NEW_TOKENS, 2)
    assert output.sequences.shape == (3, 14 + NEW_TOKENS)
    assert [tuple(scores.shape) for scores in output.scores] == [(3, 2, 16)] * NEW_TOKENS
    assert [tuple(logits.shape) for logits in output.logits] == [(3, 32)] * NEW_TOKENS
    assert isinstance(output, transformers.generation.GenerateDecoderOnlyOutput)
    assert (output.attentions, output.hidden_states) == (None, None)


def test_several_sequences_of_each_row(model, inputs):
    output = generate(model, inputs, do_sample=True, num_return_sequences=2)
    assert output.shape == (6, 10 + NEW_TOKENS, 2)


def test_the_same_seed_gives_the_same(model, inputs):
    outputs = []
    for _ in range(2):
        torch.manual_seed(3)
        outputs.append(generate(model, inputs, do_sample=True))
    assert torch.equal(*outputs)


def test_padding_on_the_left_changes_nothing(model, inputs):
    expected = generate(model, inputs, **EVERYTHING)
    padding = torch.zeros(3, 5, dtype=torch.int64)
    padded = {
        **inputs,
        "input_ids": torch.cat([padding + model.config.pad_token_id, inputs["input_ids"]], dim=1),
        "attention_mask": torch.cat([padding, inputs["attention_mask"]], dim=1),
    }
    output = generate(model, padded, **EVERYTHING)
    assert torch.equal(output.audio_sequences, expected.audio_sequences)
    torch.testing.assert_close(torch.stack(output.logits), torch.stack(expected.logits), rtol=0, atol=1e-4)


def test_how_many_logits_are_kept_changes_nothing(model, inputs):
    expected = generate(model, inputs)
    for count in (0, 1, 4):
        assert torch.equal(generate(model, inputs, logits_to_keep=count), expected)


@pytest.mark.parametrize("options", [{"use_cache": False}, {"cache_implementation": "static"}, {"use_cache": True}])
def test_a_cache_changes_nothing(model, inputs, options):
    assert torch.equal(generate(model, inputs, **options), generate(model, inputs))


def test_generating_goes_on_from_what_was_generated(model, inputs):
    whole = generate(model, inputs, max_new_tokens=6, **EVERYTHING)
    begun = generate(model, inputs, max_new_tokens=2, **EVERYTHING)
    more = {
        "input_ids": begun.sequences,
        "attention_mask": torch.ones_like(begun.sequences),
        "audio_input_ids": begun.audio_sequences,
        "audio_input_ids_mask": torch.ones(begun.audio_sequences.shape[:2], dtype=torch.bool),
    }
    output = generate(model, more, max_new_tokens=4, **EVERYTHING)
    torch.testing.assert_close(output.logits[0], whole.logits[2], rtol=0, atol=1e-4)


def test_a_generation_configuration_decides(model, inputs):
    config = transformers.GenerationConfig(max_new_tokens=2, eos_token_id=-1, do_sample=False)
    assert model.generate(**inputs, generation_config=config).shape[1] == 12
    assert model.generate(**inputs, generation_config=config, max_new_tokens=5).shape[1] == 15
    assert config.max_new_tokens == 2


def test_lengths(model, inputs):
    assert model.generate(**inputs, max_length=16, eos_token_id=-1).shape[1] == 12
    with pytest.raises(ValueError, match="`max_new_tokens` must be greater than 0"):
        generate(model, inputs, max_new_tokens=0)


def test_a_forward_pass_and_its_gradients(model, inputs):
    logits = model(**inputs).logits
    assert logits.shape == (3, 14, 32)
    logits.float().square().mean().backward()
    assert model.audio_lm_head.weight.grad is not None
    model.zero_grad()


def test_saving_and_loading(model, inputs, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = transformers.HiggsAudioV2ForConditionalGeneration.from_pretrained(tmp_path).eval()
    assert torch.equal(generate(loaded, inputs), generate(model, inputs))
    assert loaded.state_dict().keys() == model.state_dict().keys()


def test_the_signature_is_that_of_transformers(model):
    plain = transformers.HiggsAudioV2ForConditionalGeneration
    for name in ("generate", "forward", "prepare_inputs_for_generation"):
        assert inspect.signature(getattr(type(model), name)) == inspect.signature(getattr(plain, name))


class OneCode(transformers.LogitsProcessor):
    def __call__(self, input_ids, scores):
        return scores.index_fill(-1, torch.tensor([3]), -torch.inf)


# What transformers' tests of generation pass beside the lengths and the draws: it refuses the most.
OPTIONS = {
    "nothing": {},
    "assistant_model": {"assistant_model": reference.tiny_model(0, config=CONFIG)},
    "bad_words_ids": {"bad_words_ids": [[3]]},
    "beams": {"num_beams": 2},
    "beams that are sampled": {"num_beams": 2, "do_sample": True},
    "begin_suppress_tokens": {"begin_suppress_tokens": [3]},
    "bos_token_id": {"bos_token_id": 1},
    "cache_implementation, dynamic": {"cache_implementation": "dynamic"},
    "cache_implementation, unknown": {"cache_implementation": "other"},
    "compile_config": {"compile_config": transformers.CompileConfig()},
    "contrastive search": {"penalty_alpha": 0.6, "top_k": 4},
    "custom_generate": {"custom_generate": lambda model, input_ids, **options: input_ids},
    "disable_compile": {"disable_compile": True},
    "dola_layers": {"dola_layers": "low"},
    "early_stopping": {"early_stopping": True},
    "epsilon_cutoff": {"do_sample": True, "epsilon_cutoff": 0.1},
    "eta_cutoff": {"do_sample": True, "eta_cutoff": 0.1},
    "forced_bos_token_id": {"forced_bos_token_id": 2},
    "forced_eos_token_id": {"forced_eos_token_id": 2},
    "guidance_scale": {"guidance_scale": 1.5},
    "inputs_embeds": {"inputs_embeds": torch.zeros(3, 14, 32)},
    "labels": {"labels": torch.zeros(3, 14, dtype=torch.int64)},
    "length_penalty": {"length_penalty": 2.0},
    "logits_processor": {"logits_processor": transformers.LogitsProcessorList([OneCode()])},
    "low_memory": {"low_memory": True},
    "max_time": {"max_time": 1000.0},
    "min_length": {"min_length": 20},
    "min_new_tokens": {"min_new_tokens": 2},
    "min_p": {"do_sample": True, "min_p": 0.9},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 2},
    "num_return_sequences": {"num_return_sequences": 2},
    "pad_token_id": {"pad_token_id": 1},
    "prefix_allowed_tokens_fn": {"prefix_allowed_tokens_fn": lambda index, ids: [1, 2]},
    "prompt_lookup_num_tokens": {"prompt_lookup_num_tokens": 2},
    "remove_invalid_values": {"remove_invalid_values": True},
    "renormalize_logits": {"renormalize_logits": True},
    "repetition_penalty": {"repetition_penalty": 1.3},
    "sequence_bias": {"sequence_bias": {(3,): -10.0}},
    "suppress_tokens": {"suppress_tokens": [3]},
    "token_healing": {"token_healing": True},
    "trust_remote_code": {"trust_remote_code": False},
    "typical_p": {"do_sample": True, "typical_p": 0.5},
    "unknown": {"other": 1},
    "watermarking_config": {"watermarking_config": transformers.WatermarkingConfig()},
}


@pytest.fixture(scope="module")
def models():
    plain = reference.tiny_model(0, config=CONFIG)
    return plain, compat.accelerate(reference.tiny_model(0, config=CONFIG))


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_does_or_says_what_it_does_there(models, inputs, name):
    found = []
    for model in models:
        try:
            found.append(generate(model, inputs, **OPTIONS[name]).tolist())
        except Exception as error:
            found.append(repr(error))
    assert found[0] == found[1]


def test_a_prompt_in_chunks_changes_nothing(models, inputs):
    """A prompt of text in chunks; in transformers, one with frames loses those of later chunks."""
    text = {name: inputs[name][:, :4] for name in ("input_ids", "attention_mask")}
    for size in (1, 3, 4):
        plain, accelerated = (generate(model, text, prefill_chunk_size=size) for model in models)
        assert torch.equal(accelerated, plain)
    whole = generate(models[1], inputs)
    assert torch.equal(generate(models[1], inputs, prefill_chunk_size=5), whole)


def test_it_can_generate(models):
    for model in models:
        assert isinstance(model, transformers.GenerationMixin)
        assert model.can_generate()


def right_padded(inputs):
    mask = inputs["attention_mask"].clone()
    mask[0, -2:] = 0
    return {"attention_mask": mask}


def used_cache(inputs):
    model = reference.tiny_model(0, config=CONFIG)
    return {"past_key_values": model(**inputs, use_cache=True).past_key_values}


# All that the plain model does and the accelerated one does not; docs/compat_transformers.md lists the same.
REFUSED = {
    "output_attentions": lambda inputs: {"output_attentions": True, "return_dict_in_generate": True},
    "output_hidden_states": lambda inputs: {"output_hidden_states": True, "return_dict_in_generate": True},
    "past_key_values": used_cache,
    "position_ids": lambda inputs: {"position_ids": torch.arange(1, 15).expand(3, -1)},
    "padding on the right": right_padded,
    "a streamer for more than one sequence": lambda inputs: {"streamer": Streamer()},
    "synced_gpus": lambda inputs: {"synced_gpus": True},
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused(inputs, what):
    model = compat.accelerate(reference.tiny_model(0, config=CONFIG))
    advice = r"restore\(model\), or transformers' from_pretrained, gives the plain model"
    with pytest.raises(ParameterError, match=f"{what}.*: the native engine can't; {advice}"):
        generate(model, {**inputs, **REFUSED[what](inputs)})
