"""Accelerating loaded models in place, their classes, and changes of their weights."""

import copy
import inspect
import io
import json
import pickle
import weakref

import pytest
import torch

from higgs_native.errors import CheckpointError, ParameterError
from higgs_native.testing.random_checkpoint import write_audio_tokenizer
from tests.audio_tokenizer.test_config import SMALL
from tests.helpers import transformers_reference as reference
from tests.helpers.accelerated import batch, both, compat
from tests.helpers.transformers_reference import transformers


accelerate, restore = compat.accelerate, compat.restore


@pytest.fixture(scope="module")
def audio_tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audio_tokenizer")
    write_audio_tokenizer(folder, SMALL)
    return transformers.HiggsAudioV2TokenizerModel.from_pretrained(folder).eval()


def test_tables_and_norms_are_shared():
    model = accelerate(reference.tiny_model(0))
    native = model.higgs_native
    assert native.text_table.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert native.norm.data_ptr() == model.model.norm.weight.data_ptr()


def test_restoring():
    model = reference.tiny_model(0)
    plain, attributes = model._sample, vars(model).keys() | set()
    assert accelerate(model) is model
    assert model._sample != plain
    assert restore(restore(model)) is model
    assert model._sample == plain
    assert vars(model).keys() == attributes


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


def through_a_pickle(model):
    return pickle.loads(pickle.dumps(model))


def through_a_file(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, through_a_pickle, through_a_file])
def test_a_copy_is_a_plain_model(copied):
    model = accelerate(reference.tiny_model(0))
    inputs = batch(model.config, 1)
    expected = model.generate(**inputs, max_new_tokens=5, do_sample=False)
    copy = copied(model)
    assert type(copy) is transformers.HiggsAudioV2ForConditionalGeneration
    assert not [name for name in vars(copy) if name.startswith("higgs_native")]
    assert copy.state_dict().keys() == model.state_dict().keys()
    assert torch.equal(copy.generate(**inputs, max_new_tokens=5, do_sample=False), expected)
    assert torch.equal(accelerate(copy).generate(**inputs, max_new_tokens=5, do_sample=False), expected)
    assert torch.equal(model.generate(**inputs, max_new_tokens=5, do_sample=False), expected)


def test_a_copied_audio_tokenizer_is_a_plain_one(audio_tokenizer):
    codes = torch.randint(SMALL.codebook_size, (1, SMALL.num_codebooks, 5), generator=torch.Generator().manual_seed(0))
    expected = restore(audio_tokenizer).decode(codes).audio_values
    copy_of_it = copy.deepcopy(accelerate(audio_tokenizer))
    assert type(copy_of_it) is transformers.HiggsAudioV2TokenizerModel
    assert torch.equal(copy_of_it.decode(codes).audio_values, expected)


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


def test_the_class_makes_plain_models(tmp_path):
    model = accelerate(reference.tiny_model(0))
    inputs = batch(model.config, 1)
    expected = model.generate(**inputs, max_new_tokens=5, do_sample=False)
    model.save_pretrained(tmp_path)
    plain = transformers.HiggsAudioV2ForConditionalGeneration
    loaded = type(model).from_pretrained(tmp_path)
    for new in (type(model)(model.config), loaded, type(model)._from_config(model.config)):
        assert type(new) is plain
        restore(new)
        assert torch.isfinite(new.eval()(**inputs).logits).all()
    assert torch.equal(loaded.generate(**inputs, max_new_tokens=5, do_sample=False), expected)
    assert torch.equal(accelerate(loaded).generate(**inputs, max_new_tokens=5, do_sample=False), expected)


def test_the_class_of_an_audio_tokenizer_makes_plain_ones(audio_tokenizer, tmp_path):
    accelerated = accelerate(copy.deepcopy(audio_tokenizer))
    accelerated.save_pretrained(tmp_path)
    loaded = type(accelerated).from_pretrained(tmp_path)
    assert type(loaded) is type(type(accelerated)(accelerated.config)) is transformers.HiggsAudioV2TokenizerModel
    codes = torch.zeros(1, SMALL.num_codebooks, 3, dtype=torch.int64)
    assert torch.equal(accelerate(loaded).decode(codes).audio_values, accelerated.decode(codes).audio_values)


def flip_in_place(model):
    with torch.no_grad():
        model.audio_lm_head.weight.copy_(model.audio_lm_head.weight.flip(1))


def flip_data(model):
    """As a merge of an adapter writes."""
    model.audio_lm_head.weight.data += model.audio_lm_head.weight.data.flip(1)


def double_data(model):
    """Of each number, this changes the exponent alone."""
    model.model.layers[0].self_attn.o_proj.weight.data *= 2


def load_others(model):
    model.load_state_dict(reference.tiny_model(5, endless=True).state_dict())


def replace_others(model):
    model.load_state_dict(reference.tiny_model(5, endless=True).state_dict(), assign=True)


def step(optimizer):
    def change(model):
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
        optimizer(model.parameters(), lr=0.1).step()

    return change


@pytest.mark.parametrize(
    "change",
    [
        flip_in_place,
        flip_data,
        double_data,
        load_others,
        replace_others,
        step(torch.optim.SGD),
        step(torch.optim.AdamW),
    ],
)
def test_changed_weights_are_packed_anew(change):
    model = accelerate(reference.tiny_model(0, endless=True))
    inputs = batch(model.config, 1)
    options = {"max_new_tokens": 20, "do_sample": False}
    before = model.generate(**inputs, **options)
    native = model.higgs_native
    assert torch.equal(model.generate(**inputs, **options), before)
    assert model.higgs_native is native
    change(model)
    changed = model.generate(**inputs, **options)
    assert model.higgs_native is not native
    assert torch.equal(changed, accelerate(restore(model)).generate(**inputs, **options))
    assert not torch.equal(changed, before)


def test_another_dtype_is_packed_anew():
    model = accelerate(reference.tiny_model(0, endless=True))
    model.bfloat16().generate(**batch(model.config, 1), max_new_tokens=2, do_sample=False)
    assert model.higgs_native.dtype == torch.bfloat16


def test_packing_anew_keeps_the_options():
    model = accelerate(reference.tiny_model(0, endless=True), max_cache_length=100, quantization="int8")
    inputs = batch(model.config, 1)
    flip_in_place(model)
    changed = model.generate(**inputs, max_new_tokens=5, do_sample=False)
    assert model.higgs_native.quantization.heads == "int8"
    assert model.higgs_native.max_cache_length == 100
    model = accelerate(restore(model), max_cache_length=100, quantization="int8")
    assert torch.equal(changed, model.generate(**inputs, max_new_tokens=5, do_sample=False))


def test_a_changed_audio_tokenizer_is_packed_anew(audio_tokenizer):
    model = accelerate(copy.deepcopy(audio_tokenizer))
    codes = torch.zeros(1, SMALL.num_codebooks, 3, dtype=torch.int64)
    before = model.decode(codes).audio_values
    with torch.no_grad():
        model.acoustic_decoder.conv2.bias += 0.5
    changed = model.decode(codes).audio_values
    torch.testing.assert_close(changed, before + 0.5)


class Adapted(torch.nn.Module):
    """A linear layer with an adapter, as libraries of adapters put them into a model."""

    def __init__(self, base_layer):
        super().__init__()
        self.base_layer = base_layer

    def forward(self, x):
        return 2 * self.base_layer(x)


def test_an_adapter_is_refused_until_it_is_merged():
    model = accelerate(reference.tiny_model(0, endless=True))
    inputs = batch(model.config, 1)
    before = model.generate(**inputs, max_new_tokens=20, do_sample=False)
    attention = model.model.layers[0].self_attn
    attention.o_proj = Adapted(attention.o_proj)
    for _ in range(2):
        with pytest.raises(
            CheckpointError, match=r"has no model\.layers\.0\.self_attn\.o_proj\.weight; merge adapters"
        ):
            model.generate(**inputs, max_new_tokens=20, do_sample=False)
    attention.o_proj = attention.o_proj.base_layer
    assert torch.equal(model.generate(**inputs, max_new_tokens=20, do_sample=False), before)
    attention.o_proj.weight.data *= 2
    merged, plain = model.generate(**inputs, max_new_tokens=20, do_sample=False), restore(model)
    assert torch.equal(merged, plain.generate(**inputs, max_new_tokens=20, do_sample=False))
    assert not torch.equal(merged, before)


def test_a_model_that_was_moved(audio_tokenizer):
    model = accelerate(copy.deepcopy(audio_tokenizer)).to("meta")
    with pytest.raises(ParameterError, match="model must be on cpu or cuda, got meta"):
        model.decode(torch.zeros(1, SMALL.num_codebooks, 3, dtype=torch.int64))


def test_a_resized_vocabulary():
    model = accelerate(reference.tiny_model(0, endless=True))
    inputs = batch(model.config, 1)
    expected = model.generate(**inputs, max_new_tokens=5, do_sample=False)
    model.resize_token_embeddings(model.config.vocab_size + 8)
    assert torch.equal(model.generate(**inputs, max_new_tokens=5, do_sample=False), expected)
    assert model.higgs_native.config.vocab_size == model.config.vocab_size


def test_a_model_loaded_in_inference_mode():
    """Its tensors have no versions."""
    with torch.inference_mode():
        model = reference.tiny_model(0, endless=True)
        inputs = batch(model.config, 1)
        expected, output = both(model, inputs, max_new_tokens=10, do_sample=False)
        assert torch.equal(output, expected)
        model.audio_lm_head.weight.copy_(model.audio_lm_head.weight.flip(1))
        expected, output = model.generate(**inputs, max_new_tokens=10, do_sample=False), restore(model)
        assert torch.equal(output.generate(**inputs, max_new_tokens=10, do_sample=False), expected)


class Subclass(torch.Tensor):
    """A tensor with a meaning of its own, as libraries of quantization make them."""


def int8_layer(model):
    """A layer as bitsandbytes leaves it: integers, and their scales beside them."""
    layer = model.model.layers[0].mlp.up_proj
    scales = layer.weight.detach().abs().amax(dim=1) / 127
    integers = (layer.weight.detach() / scales[:, None]).round().to(torch.int8)
    layer.weight = torch.nn.Parameter(integers, requires_grad=False)
    layer.register_buffer("SCB", scales)


def subclassed_layer(model):
    layer = model.model.layers[0].mlp.up_proj
    layer.weight = torch.nn.Parameter(layer.weight.detach().as_subclass(Subclass), requires_grad=False)


def fp8_layer(model):
    layer = model.model.layers[0].mlp.up_proj
    layer.weight = torch.nn.Parameter(layer.weight.detach().to(torch.float8_e4m3fn), requires_grad=False)


def offloaded_layer(model):
    model.model.layers[0].mlp.up_proj.to("meta")


@pytest.mark.parametrize(
    ("change", "got"),
    [
        (int8_layer, "a Tensor of int8 on cpu"),
        (subclassed_layer, "a Subclass of float32 on cpu"),
        (fp8_layer, "a Tensor of float8_e4m3fn on cpu"),
        (offloaded_layer, "a Tensor of float32 on meta"),
    ],
)
def test_tensors_that_are_not_the_weight_itself_are_refused(change, got):
    model = reference.tiny_model(0)
    accelerated = accelerate(copy.deepcopy(model))
    inputs = batch(model.config, 1)
    change(model)
    message = rf"model\.layers\.0\.mlp\.up_proj\.weight must be a plain tensor of .*, got {got}; load the model whole"
    with pytest.raises(CheckpointError, match=message):
        accelerate(model)
    assert type(model) is transformers.HiggsAudioV2ForConditionalGeneration
    change(accelerated)
    with pytest.raises(CheckpointError, match=message):
        accelerated.generate(**inputs, max_new_tokens=3, do_sample=False)


def test_a_quantized_audio_tokenizer_is_refused(audio_tokenizer):
    model = copy.deepcopy(audio_tokenizer)
    model.fc2.weight = torch.nn.Parameter(model.fc2.weight.detach().round().to(torch.int8), requires_grad=False)
    with pytest.raises(
        CheckpointError, match=r"fc2\.weight must be a plain tensor of .*, got a Tensor of int8 on cpu"
    ):
        accelerate(model)


def test_a_model_that_transformers_quantized_is_named():
    class Quantizer:
        quantization_config = transformers.BitsAndBytesConfig(load_in_8bit=True)

    model = reference.tiny_model(0)
    model.hf_quantizer = Quantizer()
    with pytest.raises(ParameterError, match="model must not be quantized, got one of bitsandbytes; load it without"):
        accelerate(model)


def test_what_can_not_be_accelerated():
    with pytest.raises(ParameterError, match=r"model must be a HiggsAudioV2For\w+ or .*, got a Linear"):
        accelerate(torch.nn.Linear(1, 1))
    with pytest.raises(ParameterError, match="dtype must be one of"):
        accelerate(reference.tiny_model(0, dtype=torch.float64))
    with pytest.raises(ParameterError, match="max_cache_length must be between 1 and 1048576, got 0"):
        accelerate(reference.tiny_model(0), max_cache_length=0)
    with pytest.raises(ParameterError, match="max_cache_length must be an integer, got 'a'"):
        accelerate(reference.tiny_model(0), max_cache_length="a")
    with pytest.raises(ParameterError, match="model must be on cpu or cuda, got meta"):
        accelerate(reference.tiny_model(0).to("meta"))
