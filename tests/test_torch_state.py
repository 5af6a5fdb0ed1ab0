"""The state of torch belongs to the program around the package: it changes no code and no sample."""

import ast
from pathlib import Path

import numpy as np
import pytest
import torch

import higgs_native
from higgs_native import HiggsAudio, LongSpeech
from higgs_native.calibration import calibrated_model
from higgs_native.checkpoint.packed import write_packed
from higgs_native.checkpoint.quantization import Quantization
from higgs_native.manuscript.phonemes import PhonemeReader
from higgs_native.model.transformer import LanguageModel
from higgs_native.pipeline import EMBEDDED_VOICE
from higgs_native.testing.random_checkpoint import write_demo_checkpoint
from tests.helpers.torch_states import STATES


TEXT = "Hello there."
OPTIONS = {"seed": 1, "max_new_tokens": 30}
FORMATS = "attention=fp8,text_ffn=int8,audio_ffn=int4"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    write_demo_checkpoint(folder)
    return folder


@pytest.fixture(params=STATES)
def state(request):
    return STATES[request.param]


def recording() -> tuple[np.ndarray, int]:
    return (0.1 * np.random.default_rng(0).standard_normal(24000)).astype(np.float32), 24000


def outputs(engine: HiggsAudio) -> dict[str, torch.Tensor | np.ndarray]:
    """What the faces of an engine compute; nothing comes from a cache."""
    model, tokenizer = engine.model, engine.audio_tokenizer
    model.engine.forget_prefixes()
    tokenizer._cache.clear()
    codes = tokenizer.encode(*recording())
    speech = engine.speak(TEXT, reference_audio=recording(), reference_text="Good morning.", **OPTIONS)
    chunks = list(engine.stream(TEXT, low_latency=4, **OPTIONS))
    ids = [*model.tokenizer.encode(TEXT).ids, model.config.audio_out_bos_token_id]
    output = model.generate(np.array([ids]), (), engine.convention, output_logits=True, **OPTIONS)
    book = LongSpeech(engine, TEXT, seed=1, max_retries=0)
    return {
        "encode": codes,
        "decode": tokenizer.decode(codes),
        "speak: codes": speech.codes,
        "speak: audio": speech.audio,
        "stream": np.concatenate([chunk.samples for chunk in chunks]),
        "generate: codes": output.audio_segments[0],
        "generate: logits": output.audio_logits,
        "LongSpeech": np.concatenate([chunk.pcm for chunk in book]),
        "fingerprint": np.array([int(engine.fingerprint()[:8], 16)]),
    }


def assert_equal(found: dict, expected: dict) -> None:
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        np.testing.assert_array_equal(np.asarray(found[name]), np.asarray(value), err_msg=name)


@pytest.fixture(scope="module")
def engine(folder):
    return HiggsAudio.from_pretrained(folder, quantization=FORMATS)


@pytest.fixture(scope="module")
def expected(engine):
    return outputs(engine)


@pytest.mark.filterwarnings("ignore::higgs_native.VoiceWarning")
def test_an_engine_computes_the_same(state, engine, expected):
    with state():
        found = outputs(engine)
    assert_equal(found, expected)


@pytest.mark.filterwarnings("ignore::higgs_native.VoiceWarning")
def test_an_engine_that_is_loaded_computes_the_same_from_then_on(state, folder, expected):
    with state():
        engine = HiggsAudio.from_pretrained(folder, quantization=FORMATS)
    assert_equal(outputs(engine), expected)


def quantized(folder: Path, target: Path) -> bytes:
    """A checkpoint's file of quantized weights."""
    model = calibrated_model(folder, Quantization.parse(FORMATS), [TEXT], torch.device("cpu"))
    write_packed(model.named_weights(), model.quantization, folder, target, calibrated=True)
    LanguageModel.from_pretrained(target)
    return (target / "higgs_native.safetensors").read_bytes()


@pytest.fixture(scope="module")
def expected_file(folder, tmp_path_factory):
    return quantized(folder, tmp_path_factory.mktemp("quantized") / "expected")


def test_a_quantized_checkpoint_is_the_same(state, folder, expected_file, tmp_path):
    with state():
        found = quantized(folder, tmp_path / "found")
    assert found == expected_file


def test_words_are_guessed_the_same(state):
    """Autocast would change the guesses of these words in float32."""
    text = "Zenaserirt bamodol wiedoso hecocedol jakunoukean wuhuchol tiegrea guchoducax."
    reader = PhonemeReader.from_folder(EMBEDDED_VOICE)
    expected = reader.spell(text)
    with state():
        loaded = PhonemeReader.from_folder(EMBEDDED_VOICE)
        assert [reader.spell(text), loaded.spell(text)] == [expected, expected]
    assert loaded.spell(text) == expected


CONSTRUCTORS = {"arange", "as_tensor", "asarray", "empty", "eye", "full", "linspace", "ones", "rand", "randint"}
CONSTRUCTORS |= {"randn", "randperm", "scalar_tensor", "tensor", "zeros"}
# Rooms that programs of tests, benchmarks and recipes use, which choose a default device.
NOT_SERVING = {"english", "reference", "testing", "training"}
ROOT = Path(higgs_native.__file__).parent


def test_tensors_are_made_with_a_dtype_and_a_device():
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        if path.relative_to(ROOT).parts[0] in NOT_SERVING:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(ast.Attribute(ast.Name("torch"), name), _, keywords) if name in CONSTRUCTORS:
                    given = {keyword.arg for keyword in keywords}  # None is that of **keywords
                    if None not in given and not {"dtype", "device"} <= given:
                        found.append(f"{path}:{node.lineno}")
    assert found == []
