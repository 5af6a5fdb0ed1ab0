"""transformers' `generate` and the accelerated one, beside each other on the same models and arguments."""

import copy
import importlib
import inspect
import io
import json
import pickle
import weakref
from pathlib import Path

import pytest
import torch

from higgs_native.errors import CheckpointError, ConfigError, ParameterError, PromptError
from higgs_native.ops.device import checked_device
from higgs_native.testing.byte_tokenizer import build_tokenizer
from higgs_native.testing.configs import DEMO_AUDIO_TOKENIZER_CONFIG
from higgs_native.testing.random_checkpoint import write_audio_tokenizer
from tests.audio_tokenizer.test_config import SMALL
from tests.generation.test_parity_transformers import CONFIGURATIONS
from tests.helpers import transformers_reference as reference
from tests.helpers.transformers_reference import transformers


# Where transformers is missing, the imports above have skipped this file.
compat = importlib.import_module("higgs_native.compat.transformers")
loading = importlib.import_module("higgs_native.compat.transformers.loading")
accelerate, restore = compat.accelerate, compat.restore

REFERENCES = [(), (7,), (5, 11)]
EVERYTHING = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}


def both(model, inputs, **options):
    """What transformers gives, and what the engine gives."""
    restore(model)
    expected = model.generate(**inputs, **options)
    accelerate(model)
    return expected, model.generate(**inputs, **options)


def batch(config, rows: int, first: int = 0):
    """Inputs of so many rows, of different lengths, with none, one and two references."""
    prompts = [
        reference.random_prompt(config, row, 20 + 7 * row, REFERENCES[row % 3]) for row in range(first, first + rows)
    ]
    return reference.model_inputs(config, prompts)


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


class Streamer:
    def __init__(self):
        self.values = []

    def put(self, value):
        self.values.append(value.tolist())

    def end(self):
        self.values.append("end")


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


def test_tables_and_norms_are_shared():
    model = accelerate(reference.tiny_model(0))
    native = model.higgs_native
    assert native.text_table.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert native.norm.data_ptr() == model.model.norm.weight.data_ptr()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits(dtype):
    model = accelerate(reference.tiny_model(6, dtype=dtype, endless=True))
    output = model.generate(**batch(model.config, 3), max_new_tokens=15, do_sample=False, **EVERYTHING)
    assert output.audio_sequences.shape[1] >= 15
    assert output.scores[0].dtype == torch.float32


class Never(transformers.StoppingCriteria):
    def __call__(self, input_ids, scores, **options):
        return torch.zeros(len(input_ids), dtype=torch.bool)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output_attentions": True}, "output_attentions"),
        ({"output_hidden_states": True}, "output_hidden_states"),
        ({"stopping_criteria": [Never()]}, "the stopping criterion Never"),
        ({"do_sample": True, "temperature": 0.5, "top_p": 0.9, "top_k": 3, "min_p": 0.1}, "MinP"),
        ({"custom_generate": lambda *arguments: None}, "custom_generate"),
        ({"streamer": Streamer()}, "a streamer for more than one sequence"),
        ({"eos_token_id": 1}, "an eos_token_id other than the model's"),
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
            r"audio_input_ids_mask must have the shape \[1, 16\] of audio_input_ids, got \[1, 15\]",
        ),
        (
            lambda inputs: inputs.update(audio_input_ids=inputs["audio_input_ids"][:, :, 1:]),
            r"audio_input_ids must be integers of shape \[1, frames, 8\], got torch.int64 \[1, 16, 7\]",
        ),
        (
            lambda inputs: inputs.update(audio_input_ids=inputs["audio_input_ids"].expand(2, -1, -1)),
            r"audio_input_ids must be integers of shape \[1, frames, 8\], got torch.int64 \[2, 16, 8\]",
        ),
    ],
)
def test_inputs_that_do_not_fit_each_other_are_named(change, message):
    model = accelerate(reference.tiny_model(0))
    inputs = dict(batch(model.config, 1, first=1))
    change(inputs)
    with pytest.raises(PromptError, match=message):
        model.generate(**inputs, max_new_tokens=3, do_sample=False)


def test_padding_on_the_right_is_refused():
    model = accelerate(reference.tiny_model(0))
    inputs = {name: tensor.flip(1) for name, tensor in batch(model.config, 3).items() if tensor.dim() == 2}
    inputs.pop("audio_input_ids_mask", None)
    with pytest.raises(ParameterError, match="padding other than on the left"):
        model.generate(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], max_new_tokens=5)


def test_restoring():
    model = reference.tiny_model(0)
    plain = model.generate
    assert accelerate(model) is model
    assert model.generate is not plain
    assert restore(restore(model)) is model
    assert model.generate == plain
    assert inspect.ismethod(model.generate)


def test_an_accelerated_model_is_freed_with_its_last_name():
    gone = weakref.ref(accelerate(reference.tiny_model(0)))
    assert gone() is None


def test_a_method_holds_its_model(audio_tokenizer):
    """It may be all that is left: `accelerate(Model.from_pretrained(name)).generate(...)`."""
    model = reference.tiny_model(0)
    inputs = batch(model.config, 1)
    expected = accelerate(model).generate(**inputs, max_new_tokens=5, do_sample=False)
    assert torch.equal(
        accelerate(reference.tiny_model(0)).generate(**inputs, max_new_tokens=5, do_sample=False), expected
    )
    codes = torch.zeros(1, SMALL.num_codebooks, 3, dtype=torch.int64)
    decode = accelerate(copy.deepcopy(restore(audio_tokenizer))).decode
    assert torch.equal(decode(codes).audio_values, accelerate(audio_tokenizer).decode(codes).audio_values)


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, pickle.dumps, lambda model: torch.save(model, io.BytesIO())]
)
def test_an_accelerated_model_is_not_copied(copied):
    model = accelerate(reference.tiny_model(0))
    with pytest.raises(ParameterError, match=r"can't be copied or pickled; restore\(model\) first"):
        copied(model)
    copied(restore(model))


def test_the_class_of_an_accelerated_model(tmp_path):
    model = reference.tiny_model(0)
    plain = type(model)
    accelerated = type(accelerate(model))
    assert isinstance(model, plain)
    assert accelerated is not plain
    assert type(accelerate(accelerate(reference.tiny_model(1)))) is accelerated
    assert (accelerated.__name__, accelerated.__module__) == (plain.__name__, plain.__module__)
    assert inspect.signature(model.generate) == inspect.signature(restore(model).generate)
    assert type(model) is plain
    # What transformers saves names the plain class, and no tensor of the engine's.
    accelerate(model).save_pretrained(tmp_path)
    assert type(plain.from_pretrained(tmp_path)) is plain
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [plain.__name__]


def test_a_subclass_of_the_users(tmp_path):
    class Mine(transformers.HiggsAudioV2ForConditionalGeneration):
        def generate(self, *arguments, **options):
            return super().generate(*arguments, **options)[:, :-1]

    model = reference.tiny_model(0)
    inputs = batch(model.config, 1)
    expected = accelerate(model).generate(**inputs, max_new_tokens=5, do_sample=False)
    restore(model).__class__ = Mine
    assert isinstance(accelerate(model), Mine)
    assert torch.equal(model.generate(**inputs, max_new_tokens=5, do_sample=False), expected[:, :-1])


def test_a_model_that_was_moved_is_to_be_accelerated_again(audio_tokenizer):
    model = accelerate(copy.deepcopy(restore(audio_tokenizer))).to("meta")
    with pytest.raises(ParameterError, match=r"is on meta, but was accelerated on cpu; accelerate\(model\) again"):
        model.decode(torch.zeros(1, SMALL.num_codebooks, 3, dtype=torch.int64))


def test_the_weights_are_taken_anew_by_each_call():
    model = accelerate(reference.tiny_model(0, endless=True))
    inputs = batch(model.config, 1)
    before = model.generate(**inputs, max_new_tokens=20, do_sample=False)
    with torch.no_grad():
        model.audio_lm_head.weight.copy_(model.audio_lm_head.weight.flip(1))
    assert torch.equal(model.generate(**inputs, max_new_tokens=20, do_sample=False), before)
    expected, output = both(model, inputs, max_new_tokens=20, do_sample=False)
    assert torch.equal(output, expected)
    assert not torch.equal(output, before)


def test_what_can_not_be_accelerated():
    with pytest.raises(ParameterError, match=r"model must be a HiggsAudioV2For\w+ or .*, got a Linear"):
        accelerate(torch.nn.Linear(1, 1))
    with pytest.raises(ParameterError, match="dtype must be one of"):
        accelerate(reference.tiny_model(0, dtype=torch.float64))
    with pytest.raises(ParameterError, match="max_cache_length must be at least 1, got 0"):
        accelerate(reference.tiny_model(0), max_cache_length=0)
    with pytest.raises(ParameterError, match="max_cache_length must be an integer, got 'a'"):
        accelerate(reference.tiny_model(0), max_cache_length="a")
    with pytest.raises(ParameterError, match="model must be on cpu or cuda, got meta"):
        accelerate(reference.tiny_model(0).to("meta"))


def test_a_model_loaded_without_modules_generates_the_same(tmp_path):
    model = reference.tiny_model(0)
    reference.save(model, tmp_path)
    model = reference.load(tmp_path)
    native = compat.from_pretrained(tmp_path)
    assert native.device.type == "cpu"
    assert all(parameter.is_meta for parameter in native.parameters())
    inputs = batch(model.config, 3)
    expected = model.generate(**inputs, max_new_tokens=30, do_sample=False, **EVERYTHING)
    output = native.generate(**inputs, max_new_tokens=30, do_sample=False, **EVERYTHING)
    assert torch.equal(output.audio_sequences, expected.audio_sequences)
    assert torch.equal(output.sequences, expected.sequences)
    assert native.generation_config.to_dict() == model.generation_config.to_dict()
    with pytest.raises(ParameterError, match="model must have its own weights"):
        restore(native)
    with pytest.raises(ParameterError, match="model must have its own weights"):
        accelerate(native)
    quantized = compat.from_pretrained(tmp_path, quantization="int8")
    assert quantized.generate(**inputs, max_new_tokens=5, do_sample=False).shape[2] == 8


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of a model of transformers' layout, in float32."""
    folder = tmp_path_factory.mktemp("saved")
    reference.save(reference.tiny_model(0), folder)
    return folder


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"device": "cpu"},
        {"device": torch.device("cpu")},
        {"device_map": "cpu"},
        {"device_map": torch.device("cpu")},
        {"device_map": {"": "cpu"}},
        {"device_map": {"model": "cpu", "audio_lm_head": torch.device("cpu")}},
        {"revision": "main", "low_cpu_mem_usage": True, "use_safetensors": True, "attn_implementation": "sdpa"},
    ],
)
def test_loading_takes_what_transformers_takes(saved, options):
    model = compat.from_pretrained(saved, **options)
    assert (model.device, model.dtype) == (torch.device("cpu"), torch.float32)


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        ({"dtype": "auto"}, torch.float32),
        ({"dtype": torch.bfloat16}, torch.bfloat16),
        ({"torch_dtype": "float16"}, torch.float16),
        ({"dtype": "float32", "torch_dtype": torch.bfloat16}, torch.float32),
    ],
)
def test_the_dtype_to_load(saved, options, dtype):
    model = compat.from_pretrained(pretrained_model_name_or_path=saved, **options)
    assert model.dtype == model.higgs_native.dtype == dtype


def test_a_gpu_is_chosen_where_there_is_one(saved):
    device = checked_device("auto")
    for options in ({"device": "auto"}, {"device_map": "auto"}, {"device_map": {"": "auto"}}):
        assert compat.from_pretrained(saved, **options).device == device


@pytest.mark.parametrize(
    "options",
    [
        {"device": "cuda:1"},
        {"device_map": "cuda:1"},
        {"device_map": 1},
        {"device_map": {"": 1}},
        {"device_map": {"model": 1, "audio_lm_head": torch.device("cuda:1")}},
    ],
)
def test_the_gpu_to_load_to(saved, options, monkeypatch):
    monkeypatch.setattr(loading, "checked_device", torch.device)
    seen = []

    def from_pretrained(folder, device, *arguments):
        seen.append(device)
        raise CheckpointError("stop here")

    monkeypatch.setattr(loading.HiggsAudioModel, "from_pretrained", from_pretrained)
    with pytest.raises(CheckpointError, match="stop here"):
        compat.from_pretrained(saved, **options)
    assert seen == [torch.device("cuda", 1)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cuda:99"}, "device must be .*, got cuda:99"),
        ({"device_map": 99}, "device must be .*, got cuda:99"),
        ({"device_map": {"": 99}}, "device must be .*, got cuda:99"),
        ({"device_map": "balanced"}, "device must be auto, cpu, cuda or cuda:N, got 'balanced'"),
        ({"device_map": {"model": "cpu", "audio_lm_head": "disk"}}, "got 'disk'"),
        ({"device_map": {}}, "device_map must name one device for the whole model, got {}"),
        ({"device_map": 1.5}, "device must be auto, cpu, cuda or cuda:N, got 1.5"),
        ({"device": "cpu", "device_map": "cpu"}, "both device and device_map are given"),
        ({"load_in_8bit": True, "token": "x"}, "does not take load_in_8bit, token; load the model with transformers'"),
        ({"torch_dtype": torch.float64}, "dtype must be one of"),
        ({"max_cache_length": "a"}, "max_cache_length must be an integer, got 'a'"),
    ],
)
def test_what_loading_does_not_take(saved, options, message):
    with pytest.raises(ParameterError, match=message):
        compat.from_pretrained(saved, **options)


def test_no_name_to_load():
    with pytest.raises(ParameterError, match="pretrained_model_name_or_path must be a string or a path, got 5"):
        compat.from_pretrained(5)


def test_a_model_without_modules_stays_where_and_what_it_is(saved):
    model = compat.from_pretrained(saved)
    for same in (
        model.to("cpu"),
        model.to(model.device),
        model.to(torch.device("cpu"), torch.float32),
        model.to(torch.float32),
        model.cpu(),
        model.float(),
        model.eval(),
    ):
        assert same is model
    for change in (
        lambda: model.to("meta"),
        lambda: model.half(),
        lambda: model.bfloat16(),
        lambda: model.to(dtype=torch.float16),
        lambda: model.cuda(99),
    ):
        with pytest.raises(
            ParameterError, match=r"is in torch.float32 on cpu and can't be .*; load it as it shall be"
        ):
            change()
    inputs = batch(model.config, 1)
    assert model.generate(**inputs, max_new_tokens=3, do_sample=False).shape[2] == 8


def test_a_model_without_modules_can_only_generate(saved, tmp_path):
    inputs = batch(reference.tiny_model(0).config, 1)
    expected = reference.load(saved).generate(**inputs, max_new_tokens=5, do_sample=False)
    assert torch.equal(compat.from_pretrained(saved).generate(**inputs, max_new_tokens=5, do_sample=False), expected)
    model = compat.from_pretrained(saved)
    for name, call in (
        ("forward", lambda: model(**inputs)),
        ("state_dict", model.state_dict),
        ("load_state_dict", lambda: model.load_state_dict({})),
        ("save_pretrained", lambda: model.save_pretrained(tmp_path / "new")),
        ("push_to_hub", lambda: model.push_to_hub("name")),
        ("copying or pickling", lambda: copy.deepcopy(model)),
    ):
        with pytest.raises(ParameterError, match=rf"{name} needs the model's own weights, and this model"):
            call()
    assert not (tmp_path / "new").exists()


def test_another_layout_is_not_loaded():
    with pytest.raises(ConfigError, match="is not of transformers' layout"):
        compat.from_pretrained(Path(__file__).parents[1] / "golden" / "boson_lm")


@pytest.fixture(scope="module")
def audio_tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audio_tokenizer")
    write_audio_tokenizer(folder, SMALL)
    return transformers.HiggsAudioV2TokenizerModel.from_pretrained(folder).eval()


@torch.no_grad()
def test_the_audio_tokenizer_gives_the_same(audio_tokenizer):
    model = restore(audio_tokenizer)
    levels = SMALL.num_codebooks
    noise = 0.1 * torch.randn(2, 1, 9600, generator=torch.Generator().manual_seed(0))
    codes = torch.randint(SMALL.codebook_size, (3, levels, 13), generator=torch.Generator().manual_seed(1))
    expected = model.encode(noise), model.decode(codes), model(noise)
    accelerate(model)
    outputs = model.encode(noise), model.decode(codes), model(noise)
    for output, other in zip(outputs, expected, strict=True):
        assert type(output) is type(other)
    assert outputs[0].audio_codes.shape == expected[0].audio_codes.shape
    assert (outputs[0].audio_codes == expected[0].audio_codes).float().mean() > 0.98  # the rest are near ties
    peak = expected[1].audio_values.abs().max()
    torch.testing.assert_close(outputs[1].audio_values, expected[1].audio_values, rtol=0, atol=1e-5 * peak)
    assert outputs[2].audio_values.shape == expected[2].audio_values.shape
    assert torch.equal(model.encode(noise, return_dict=False), outputs[0].audio_codes)
    assert torch.equal(model.decode(codes, return_dict=False), outputs[1].audio_values)
    lowest = model.config.target_bandwidths[0]
    accelerated = model.encode(noise, bandwidth=lowest).audio_codes
    assert accelerated.shape == restore(model).encode(noise, bandwidth=lowest).audio_codes.shape


def test_from_a_text_and_a_recording_to_sound_with_the_processor(tmp_path):
    write_audio_tokenizer(tmp_path, DEMO_AUDIO_TOKENIZER_CONFIG)
    audio_tokenizer = transformers.HiggsAudioV2TokenizerModel.from_pretrained(tmp_path).eval()
    model = reference.tiny_model(8, codebook_size=1026, endless=True)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=build_tokenizer(reference.native_config(model.config)), pad_token="<|end_of_text|>"
    )
    features = transformers.DacFeatureExtractor(sampling_rate=24000, hop_length=960)
    processor = transformers.HiggsAudioV2Processor(features, tokenizer, audio_tokenizer)
    text = "Hello there.<|audio_out_bos|><|AUDIO_OUT|><|audio_eos|>And now, something longer.<|audio_out_bos|>"
    recording = 0.1 * torch.randn(9600, generator=torch.Generator().manual_seed(0)).numpy()

    def speak():
        inputs = processor(text=text, audio=recording, return_tensors="pt", sampling_rate=24000)
        outputs = model.generate(**inputs, max_new_tokens=25, do_sample=False)
        (audio,) = processor.batch_decode(outputs)
        return inputs, outputs, audio

    expected = speak()
    accelerate(model)
    accelerate(audio_tokenizer)
    inputs, outputs, audio = speak()
    assert inputs.keys() == expected[0].keys()
    assert torch.equal(inputs["audio_input_ids"], expected[0]["audio_input_ids"])
    assert torch.equal(outputs, expected[1])
    assert audio.shape == (960 * (25 - 1 - 7),)
    torch.testing.assert_close(audio, expected[2], rtol=0, atol=1e-5 * expected[2].abs().max())


def test_what_the_audio_tokenizer_refuses(audio_tokenizer):
    model = accelerate(audio_tokenizer)
    with pytest.raises(ValueError, match=r"input_values must have shape \[batch, 1, samples\], got \[1, 2, 9600\]"):
        model.encode(torch.zeros(1, 2, 9600))
    with pytest.raises(ParameterError, match="bandwidth must be one of"):
        model.encode(torch.zeros(1, 1, 9600), bandwidth=123)
    with pytest.raises(ParameterError, match=r"audio_codes of shape \[1, 2, 5\].* restore\(model\)"):
        model.decode(torch.zeros(1, 2, 5, dtype=torch.int64))
