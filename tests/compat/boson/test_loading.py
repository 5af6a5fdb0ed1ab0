"""Loading Boson's serving engine: quantization, cache lengths, layouts, and what can't be loaded."""

import numpy as np
import pytest
import torch

from higgs_native.compat.boson import AudioContent, ChatMLSample, HiggsAudioModelClient, HiggsAudioServeEngine, Message
from higgs_native.errors import CheckpointError, ParameterError
from higgs_native.testing.configs import DEMO_AUDIO_TOKENIZER_CONFIG, DEMO_CONFIG
from higgs_native.testing.random_checkpoint import write_audio_tokenizer, write_language_model
from tests.compat.boson.golden import FOLDER, GREEDY, RATE, noise


def test_quantized(audio_tokenizer_folder):
    engine = HiggsAudioServeEngine(str(FOLDER), str(audio_tokenizer_folder), quantization="int8")
    assert engine.model.native.quantization.attention == "int8"
    response = engine.generate(ChatMLSample([Message("user", "Hi.")]), 20, force_audio_gen=True)
    assert response.generated_audio_tokens.shape[0] == 8


@pytest.mark.parametrize(
    ("options", "quantization"),
    [
        ({"quantization": False}, None),
        ({"quantization": True}, "int8"),
        ({"use_quantization": False, "quantization_bits": 4}, None),
        ({"use_quantization": True}, "int8"),
        ({"use_quantization": True, "quantization_bits": 4}, "int4"),
        ({"use_quantization": True, "quantization": "fp8"}, "fp8"),
    ],
)
def test_ways_to_ask_for_quantization(audio_tokenizer_folder, options, quantization):
    engine = HiggsAudioServeEngine(str(FOLDER), str(audio_tokenizer_folder), **options)
    assert engine.model.native.quantization.attention == quantization


def test_bits_that_no_format_has(audio_tokenizer_folder):
    with pytest.raises(ParameterError, match=r"quantization: .*, got 'int3'"):
        HiggsAudioServeEngine(str(FOLDER), str(audio_tokenizer_folder), use_quantization=True, quantization_bits=3)


def test_what_can_not_be_loaded(audio_tokenizer_folder, tmp_path):
    paths = str(FOLDER), str(audio_tokenizer_folder)
    for lengths, message in (
        ([], r"kv_cache_lengths must be a list of numbers of positions, got \[\]"),
        (1024, "kv_cache_lengths must be a list of numbers of positions, got 1024"),
        ([0], "each of kv_cache_lengths must be between 1 and 1048576, got 0"),
        ([1024.5], "each of kv_cache_lengths must be an integer, got 1024.5"),
    ):
        with pytest.raises(ParameterError, match=message):
            HiggsAudioServeEngine(*paths, kv_cache_lengths=lengths)
    with pytest.raises(ParameterError, match="model must be a string or a path, got 5"):
        HiggsAudioServeEngine(5, paths[1])
    with pytest.raises(ParameterError, match="audio tokenizer must be a string or a path, got 5"):
        HiggsAudioServeEngine(paths[0], 5)
    with pytest.raises(ParameterError, match="device"):
        HiggsAudioServeEngine(*paths, device="cuda")
    with pytest.raises(ParameterError, match="cuda:1"):
        HiggsAudioModelClient(*paths, device_id=1)
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.json"):
        HiggsAudioServeEngine(*paths, tokenizer_name_or_path=str(tmp_path))


def test_the_longest_cache_length_is_the_limit(audio_tokenizer_folder):
    engine = HiggsAudioServeEngine(
        str(FOLDER), str(audio_tokenizer_folder), str(FOLDER), "cpu", torch.float32, kv_cache_lengths=[64, 128]
    )
    response = engine.generate(ChatMLSample([Message("user", "Hi.")]), 1000, stop_strings=[], **GREEDY)
    assert response.finish_reason == "length"
    assert "<|AUDIO_OUT|>" not in response.generated_text
    assert response.usage["total_tokens"] == 128 + 1  # what was drawn last needs no place


def test_a_checkpoint_of_the_other_layout_follows_the_same_rule(tmp_path):
    """Recordings in every role, too, though the layout has no placeholder for those of a user."""
    write_audio_tokenizer(tmp_path / "audio_tokenizer", DEMO_AUDIO_TOKENIZER_CONFIG)
    recording = AudioContent(audio_url="", raw_audio=(noise(0.5), RATE))
    messages = [
        Message("system", ["Generate audio following instruction.", recording]),
        Message("user", ["Like this:", recording]),
        Message("assistant", recording),
        Message("user", "Hi."),
    ]
    responses = []
    for layout in ("original", "transformers"):
        write_language_model(tmp_path / layout, DEMO_CONFIG, layout, torch.float32)
        engine = HiggsAudioServeEngine(str(tmp_path / layout), str(tmp_path / "audio_tokenizer"))
        responses.append(engine.generate(ChatMLSample(messages), 30, force_audio_gen=True, **GREEDY))
    assert np.array_equal(responses[0].generated_audio_tokens, responses[1].generated_audio_tokens)
    assert responses[0].generated_text_tokens.tolist() == responses[1].generated_text_tokens.tolist()
    assert responses[0].usage["prompt_tokens"] > 3 * 13
