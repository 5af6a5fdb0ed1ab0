"""Checkpoints loaded into models that can only generate."""

import copy
import importlib
from pathlib import Path

import pytest
import torch

from higgs_native.errors import CheckpointError, ConfigError, ParameterError
from higgs_native.ops.device import checked_device
from tests.helpers import transformers_reference as reference
from tests.helpers.accelerated import EVERYTHING, batch, compat
from tests.helpers.transformers_reference import transformers


loading = importlib.import_module("higgs_native.compat.transformers.loading")
accelerate, restore = compat.accelerate, compat.restore


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
        {
            "cache_dir": "elsewhere",
            "local_files_only": True,
            "token": "t",
            "force_download": True,
            "weights_only": True,
        },
        {"token": None, "quantization_config": None, "config": None, "load_in_8bit": False, "max_memory": None},
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
        ({"load_in_8bit": True, "gguf_file": "x"}, "does not take load_in_8bit, gguf_file; load the model with trans"),
        (
            {"quantization_config": {"load_in_4bit": True}},
            r"take quantization_config; .*; quantization=\.\.\. packs it",
        ),
        ({"config": 5}, "config must be a HiggsAudioV2Config or its path, got a int"),
        ({"torch_dtype": torch.float64}, "dtype must be one of"),
        ({"max_cache_length": "a"}, "max_cache_length must be an integer, got 'a'"),
        ({"revision": [10**5000]}, "revision must be a string or None, got"),
    ],
)
def test_what_loading_does_not_take(saved, options, message):
    with pytest.raises(ParameterError, match=message):
        compat.from_pretrained(saved, **options)


def test_options_of_the_hub_reach_it(saved, monkeypatch):
    seen = {}

    def snapshot_download(name, **options):
        seen.update(options, name=name)
        return str(saved)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    options = {"cache_dir": "cache", "local_files_only": True, "token": "t", "force_download": True}
    compat.from_pretrained("owner/model", revision="v2", **options)
    assert seen.items() >= {**options, "name": "owner/model", "revision": "v2"}.items()
    seen.clear()
    compat.from_pretrained("owner/model", token=None, force_download=False)
    assert seen.keys() == {"name", "allow_patterns"}


def test_a_configuration_to_load_with(saved):
    config = transformers.HiggsAudioV2Config.from_pretrained(saved)
    assert compat.from_pretrained(saved, config=str(saved)).config.to_dict() == config.to_dict()
    config.eos_token_id = None
    model = compat.from_pretrained(saved, config=config)
    assert model.config is config
    assert model.generate(**batch(config, 1), max_new_tokens=3, do_sample=False).shape[2] == 8
    config.rms_norm_eps = 0.5
    with pytest.raises(
        ParameterError, match=r"config must be the checkpoint's, whose rms_norm_eps is 1e-05, got 0\.5"
    ):
        compat.from_pretrained(saved, config=config)


def test_a_generation_configuration_to_load_with(saved):
    config = transformers.GenerationConfig(max_new_tokens=4, eos_token_id=265)
    model = compat.from_pretrained(saved, generation_config=config)
    assert model.generation_config is config
    assert model.generate(**batch(model.config, 1)).shape[1] == 4


def test_the_class_of_a_model_without_modules_makes_plain_ones(saved):
    model = compat.from_pretrained(saved)
    inputs = batch(model.config, 1)
    plain = type(model).from_pretrained(saved)
    assert type(plain) is type(type(model)(model.config)) is transformers.HiggsAudioV2ForConditionalGeneration
    options = {"max_new_tokens": 5, "do_sample": False}
    assert torch.equal(plain.generate(**inputs, **options), model.generate(**inputs, **options))


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
        compat.from_pretrained(Path(__file__).parents[2] / "golden" / "boson_lm")
