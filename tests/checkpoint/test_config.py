"""The language model's configuration: what is wrong in a config.json is named in one line."""

import copy
import itertools
import math
import time

import pytest
import torch

from higgs_native.checkpoint.config import MAX_LAYERS, HiggsAudioConfig
from higgs_native.checkpoint.language_model import expected_tensors
from higgs_native.errors import ConfigError
from higgs_native.model.rope import rope_table
from higgs_native.testing.configs import DEMO_CONFIG, config_json


def written(layout: str, **changes) -> dict:
    """DEMO_CONFIG as a layout writes it, with changes; those of the transformer are nested in the original one."""
    raw = config_json(DEMO_CONFIG, layout, torch.bfloat16)
    nested = raw.get("text_config", {})
    for name, value in changes.items():
        (nested if name in nested else raw)[name] = value
    return raw


@pytest.mark.parametrize("layout", ["original", "transformers"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 0}, "vocab_size must be at least 1, got 0"),
        ({"hidden_size": -64}, "hidden_size must be at least 1, got -64"),
        ({"intermediate_size": 0}, "intermediate_size must be at least 1, got 0"),
        ({"num_hidden_layers": -1}, "num_hidden_layers must be at least 1, got -1"),
        ({"num_attention_heads": 0}, "num_attention_heads must be at least 1, got 0"),
        ({"num_attention_heads": 0, "head_dim": None}, "num_attention_heads must be at least 1, got 0"),
        ({"num_key_value_heads": 0}, "num_key_value_heads must be at least 1, got 0"),
        (
            {"num_attention_heads": 2, "num_key_value_heads": 3},
            "num_attention_heads must be a multiple of num_key_value_heads 3, got 2",
        ),
        ({"head_dim": 0}, "head_dim must be at least 1, got 0"),
        ({"head_dim": 15}, "head_dim must be even, got 15"),
        ({"max_position_embeddings": 0}, "max_position_embeddings must be at least 1, got 0"),
        ({"audio_stream_bos_id": 1026}, "audio_stream_bos_id must be from 0 to 1025, got 1026"),
        ({"audio_stream_eos_id": -1}, "audio_stream_eos_id must be from 0 to 1025, got -1"),
        ({"audio_stream_eos_id": 1024}, "audio_stream_eos_id must be another id than audio_stream_bos_id, got 1024"),
    ],
)
def test_a_wrong_value_is_named(layout, changes, message):
    with pytest.raises(ConfigError) as error:
        HiggsAudioConfig.from_dict(written(layout, **changes))
    assert str(error.value) == f"config.json: {message}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"audio_embed_avg": True}, "audio_embed_avg must be false, got true"),
        ({"use_delay_pattern": False}, "use_delay_pattern must be true, got false"),
        ({"audio_num_codebooks": 0}, "audio_num_codebooks must be at least 1, got 0"),
        ({"audio_codebook_size": -2}, "codebook_size must be at least 1, got 0"),
        (
            {"audio_adapter_type": "bogus"},
            "audio_adapter_type must be one of dual_ffn, dual_ffn_fast_forward, stack, got 'bogus'",
        ),
        ({"audio_dual_ffn_layers": [0, 99]}, "audio_dual_ffn_layers must be layers from 0 to 1, got (0, 99)"),
        ({"audio_dual_ffn_layers": [-1]}, "audio_dual_ffn_layers must be layers from 0 to 1, got (-1,)"),
        ({"audio_in_token_idx": 10**9}, "audio_in_token_idx must be from 0 to 287, got 1000000000"),
        ({"audio_out_token_idx": -7}, "audio_out_token_idx must be from 0 to 287, got -7"),
        ({"audio_out_bos_token_id": 288}, "audio_out_bos_token_id must be from 0 to 287, got 288"),
        ({"audio_eos_token_id": -7}, "audio_eos_token_id must be from 0 to 287, got -7"),
    ],
)
def test_a_wrong_value_of_the_original_layout_is_named(changes, message):
    with pytest.raises(ConfigError) as error:
        HiggsAudioConfig.from_dict(written("original", **changes))
    assert str(error.value) == f"config.json: {message}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_codebooks": -8}, "num_codebooks must be at least 1, got -8"),
        ({"codebook_size": 0}, "codebook_size must be at least 1, got 0"),
        ({"audio_token_id": 10**9}, "audio_token_id must be from 0 to 287, got 1000000000"),
        ({"audio_bos_token_id": -7}, "audio_bos_token_id must be from 0 to 287, got -7"),
        ({"audio_delay_token_id": 288}, "audio_delay_token_id must be from 0 to 287, got 288"),
    ],
)
def test_a_wrong_value_of_the_transformers_layout_is_named(changes, message):
    with pytest.raises(ConfigError) as error:
        HiggsAudioConfig.from_dict(written("transformers", **changes))
    assert str(error.value) == f"config.json: {message}"


@pytest.mark.parametrize("layout", ["original", "transformers"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": [64]}, "hidden_size must be an integer, got [64]"),
        ({"hidden_size": "64"}, "hidden_size must be an integer, got '64'"),
        ({"hidden_size": 64.5}, "hidden_size must be an integer, got 64.5"),
        ({"hidden_size": True}, "hidden_size must be an integer, got True"),
        ({"hidden_size": math.inf}, "hidden_size must be an integer, got inf"),
        ({"vocab_size": 2**31}, "vocab_size must be at most 2147483647, got 2147483648"),
        ({"vocab_size": 10**5000}, f"vocab_size must be at most 2147483647, got {hex(10**5000)[:12]}..."),
        ({"vocab_size": -(10**4000)}, f"vocab_size must be at least -2147483647, got {hex(-(10**4000))[:12]}..."),
        ({"num_hidden_layers": 65536}, "num_hidden_layers must be at most 1024, got 65536"),
        ({"num_attention_heads": 2048}, "num_attention_heads must be at most 1024, got 2048"),
        ({"head_dim": 2048}, "head_dim must be at most 1024, got 2048"),
        ({"max_position_embeddings": {}}, "max_position_embeddings must be an integer, got {}"),
        ({"rms_norm_eps": [1e-5]}, "rms_norm_eps must be a finite number, got [1e-05]"),
        ({"rms_norm_eps": math.nan}, "rms_norm_eps must be a finite number, got nan"),
        ({"eos_token_id": "</s>"}, "eos_token_id must be an integer, got '</s>'"),
        ({"eos_token_id": [None]}, "eos_token_id must be an integer, got None"),
    ],
    ids=range(16),
)
def test_a_value_of_another_kind_is_named(layout, changes, message):
    source = "config.json: text_config" if layout == "original" else "config.json"
    with pytest.raises(ConfigError) as error:
        HiggsAudioConfig.from_dict(written(layout, **changes))
    assert str(error.value) == f"{source}: {message}"


@pytest.mark.parametrize("layout", ["original", "transformers"])
@pytest.mark.parametrize("eps", [0, -1, 2])
def test_an_eps_that_makes_no_norm_is_named(layout, eps):
    with pytest.raises(ConfigError, match=rf"^config.json: rms_norm_eps must be above 0 and at most 1, got {eps}\.0$"):
        HiggsAudioConfig.from_dict(written(layout, rms_norm_eps=eps))


@pytest.mark.parametrize("raw", [None, [], 3, "config"])
def test_what_is_no_object_is_refused(raw):
    with pytest.raises(ConfigError, match=r"^config\.json must be a JSON object, got "):
        HiggsAudioConfig.from_dict(raw)


def test_repeated_dual_layers_count_once():
    raw = written("original", audio_dual_ffn_layers=[1, 0, 1] + [0] * 100_000)
    assert HiggsAudioConfig.from_dict(raw).audio_dual_ffn_layers == (0, 1)
    raw["audio_dual_ffn_layers"] = None
    assert HiggsAudioConfig.from_dict(raw).audio_dual_ffn_layers == ()


def test_the_largest_number_of_layers_is_described_quickly():
    start = time.process_time()
    config = HiggsAudioConfig.from_dict(written("transformers", num_hidden_layers=MAX_LAYERS))
    assert len(expected_tensors(config)) == 14 * MAX_LAYERS + 5
    assert time.process_time() - start < 2


ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}
# The fields of rotary positions as configurations write them.
ROTARY_FIELDS = {
    "nested": {"rope_parameters": {**ROPE, "rope_theta": 400000.0}},
    "nested_without_theta": {"rope_parameters": ROPE},
    "nested_beside_theta": {"rope_parameters": ROPE, "rope_theta": 300000.0},
    "nested_without_scaling": {"rope_parameters": {"rope_theta": 200000.0}},
    "empty": {"rope_parameters": {}},
    "null": {"rope_parameters": None},
    "absent": {},
    "theta_alone": {"rope_theta": 300000.0},
    "old": {"rope_scaling": ROPE, "rope_theta": 300000.0},
    "old_without_theta": {"rope_scaling": ROPE},
    "old_without_length": {
        "rope_scaling": {name: value for name, value in ROPE.items() if name != "original_max_position_embeddings"}
    },
    "old_null": {"rope_scaling": None, "rope_theta": 300000.0},
    "both": {"rope_scaling": ROPE, "rope_parameters": {"rope_theta": 200000.0}},
}


@pytest.mark.parametrize("layout", ["original", "transformers"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_theta": 0}, "config.json: rope_theta must be from 1 to 1e12, got 0.0"),
        ({"rope_theta": 1e30}, "config.json: rope_theta must be from 1 to 1e12, got 1e+30"),
        ({"rope_theta": -math.inf}, "config.json: rope_parameters: rope_theta must be a finite number, got -inf"),
        ({"factor": 0}, "config.json: factor must be from 1 to 1e+06, got 0"),
        ({"factor": 1e30}, "config.json: factor must be from 1 to 1e+06, got 1e+30"),
        ({"factor": [8]}, "config.json: rope_parameters: factor must be a finite number, got [8]"),
        ({"low_freq_factor": 0}, "config.json: low_freq_factor must be from 1e-06 to 1e+06, got 0"),
        ({"high_freq_factor": 1e30}, "config.json: high_freq_factor must be from 1e-06 to 1e+06, got 1e+30"),
        ({"high_freq_factor": 1.0}, "config.json: high_freq_factor must be above low_freq_factor 1, got 1"),
        (
            {"original_max_position_embeddings": 0},
            "config.json: original_max_position_embeddings must be from 1 to 2.14748e+09, got 0",
        ),
        (
            {"rope_type": ["llama3"]},
            "config.json: rope_parameters: rope_type must be 'llama3' or 'default', got ['llama3']",
        ),
    ],
)
def test_rotary_fields_out_of_range_are_named(layout, changes, message):
    raw = written(layout, rope_parameters={**ROPE, "rope_theta": 5e5, **changes})
    fields = raw.get("text_config", raw)
    fields.pop("rope_scaling", None)
    fields["rope_parameters"] = raw.pop("rope_parameters")
    with pytest.raises(ConfigError) as error:
        HiggsAudioConfig.from_dict(raw)
    assert str(error.value) == message


@pytest.mark.parametrize("rope", [3, "llama3", [1]])
def test_rotary_fields_of_another_kind_are_named(rope):
    with pytest.raises(ConfigError, match=r"^config\.json: rope_parameters must be a JSON object, got "):
        HiggsAudioConfig.from_dict(written("transformers", rope_parameters=rope))


@pytest.mark.parametrize("theta", [1, 1e12])
@pytest.mark.parametrize("factor", [1, 1e6])
@pytest.mark.parametrize(("low", "high"), [(1e-6, 1e6), (1.0, math.nextafter(1.0, 2)), (1e-6, 2e-6), (9e5, 1e6)])
@pytest.mark.parametrize("positions", [1, 2**31 - 1])
def test_the_extremes_of_rotary_fields_make_a_finite_table(theta, factor, low, high, positions):
    scaling = {"factor": factor, "low_freq_factor": low, "high_freq_factor": high}
    rope = {"rope_type": "llama3", "rope_theta": theta, **scaling, "original_max_position_embeddings": positions}
    config = HiggsAudioConfig.from_dict(written("transformers", rope_parameters=rope))
    assert rope_table(config, 8192).isfinite().all()


@pytest.mark.parametrize("layout", ["original", "transformers"])
@pytest.mark.parametrize("form", ROTARY_FIELDS)
def test_rotary_fields_are_what_the_class_of_the_layout_takes(layout, form):
    raw = written(layout)
    fields = raw.get("text_config", raw)
    for name in ("rope_parameters", "rope_scaling", "rope_theta"):
        fields.pop(name, None)
    fields |= ROTARY_FIELDS[form]
    config = HiggsAudioConfig.from_dict(copy.deepcopy(raw))
    expected = reference_config(layout, fields).rope_parameters
    assert config.rope_theta == expected["rope_theta"]
    if expected["rope_type"] == "default":
        assert config.rope_scaling is None
    else:
        assert vars(config.rope_scaling) == {name: expected[name] for name in vars(config.rope_scaling)}


@pytest.mark.parametrize(
    ("layout", "name", "is_null"),
    [
        *itertools.product(
            ("original", "transformers"),
            ("rms_norm_eps", "max_position_embeddings", "num_key_value_heads", "head_dim"),
            (False,),
        ),
        ("transformers", "eos_token_id", False),
        ("transformers", "eos_token_id", True),
        ("transformers", "pad_token_id", False),
        ("original", "num_key_value_heads", True),
        ("original", "head_dim", True),
        ("transformers", "head_dim", True),
    ],
)
def test_absent_fields_are_what_the_class_of_the_layout_takes(layout, name, is_null):
    raw = written(layout, num_attention_heads=16)
    fields = raw.get("text_config", raw)
    del fields[name]
    if is_null:
        fields[name] = None
    expected = getattr(reference_config(layout, fields), name)
    assert getattr(HiggsAudioConfig.from_dict(copy.deepcopy(raw)), name) == expected


def reference_config(layout: str, fields: dict):
    """The transformer's fields as the configuration class of a layout reads them."""
    from tests.helpers.transformers_reference import transformers

    kind = transformers.LlamaConfig if layout == "original" else transformers.HiggsAudioV2Config
    return kind.from_dict(copy.deepcopy(fields))


@pytest.mark.parametrize(
    ("text", "top", "generation", "expected"),
    [
        ({}, {}, None, (2,)),  # LlamaConfig's default
        ({"eos_token_id": None}, {}, None, ()),
        ({"eos_token_id": [7, 8]}, {}, None, (7, 8)),
        ({"eos_token_id": 7}, {"eos_token_id": 9}, None, (9,)),
        ({"eos_token_id": 7}, {"eos_token_id": 9}, {"eos_token_id": [3]}, (3,)),
        ({"eos_token_id": 7}, {"eos_token_id": 9}, {}, ()),
    ],
)
def test_the_end_tokens_of_the_original_layout(text, top, generation, expected):
    raw = written("original")
    for fields in (raw, raw["text_config"]):
        fields.pop("eos_token_id", None)
    raw["text_config"].update(text)
    config = HiggsAudioConfig.from_dict(raw | top, generation)
    assert config.end_token_ids == expected


@pytest.mark.parametrize(
    ("changes", "expected"), [({}, (128009,)), ({"eos_token_id": None}, ()), ({"eos_token_id": [7, 8]}, (7, 8))]
)
def test_the_end_tokens_of_the_transformers_layout(changes, expected):
    """In Boson's convention."""
    raw = written("transformers")
    raw.pop("eos_token_id", None)
    assert HiggsAudioConfig.from_dict(raw | changes).end_token_ids == expected


@pytest.mark.parametrize(
    ("name", "value", "off"),
    [
        ("repetition_penalty", 1.2, "1.0"),
        ("repetition_penalty", "1.0", "1.0"),
        ("min_new_tokens", 5, "null"),
        ("suppress_tokens", [7], "null"),
    ],
)
def test_what_generation_config_changes_is_refused_by_name(name, value, off):
    raw = written("original")
    with pytest.raises(ConfigError) as error:
        HiggsAudioConfig.from_dict(raw, {name: value})
    assert str(error.value) == f"generation_config.json: {name} must be {off} or left out, got {value!r}"
    neutral = {"repetition_penalty": 1.0, "min_new_tokens": None, "suppress_tokens": None, "eos_token_id": 7}
    assert HiggsAudioConfig.from_dict(raw, neutral).end_token_ids == (7,)
