"""Boson's language model and its configuration, against recorded outputs of the original."""

import asyncio
import copy
import json
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from higgs_native.compat.boson import (
    AsyncHiggsAudioStreamer,
    ChatMLDatasetSample,
    HiggsAudioConfig,
    HiggsAudioModel,
    HiggsAudioSampleCollator,
    build_delay_pattern_mask,
)
from higgs_native.compat.boson.model import KVCacheBucket
from higgs_native.compat.boson.text_tokenizer import TextTokenizer
from higgs_native.errors import ConfigError, ParameterError, PromptError
from higgs_native.testing.configs import DEMO_CONFIG
from higgs_native.testing.random_checkpoint import write_language_model


FOLDER = Path(__file__).parents[2] / "golden" / "boson_lm"
CASES = json.loads((FOLDER / "cases.json").read_text())["cases"]
RECORDING = build_delay_pattern_mask(torch.tensor([[[30, 1, 2, 31]] * 8]), 30, 31)[0][0]
GREEDY = {"do_sample": False, "stop_strings": ["<|end_of_text|>", "<|eot_id|>"]}


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    return load_file(FOLDER / "cases.safetensors")


@pytest.fixture(scope="module")
def model() -> HiggsAudioModel:
    return HiggsAudioModel.from_pretrained(FOLDER, device_map="cpu", torch_dtype="auto")


def inputs_of(model: HiggsAudioModel, tensors: dict[str, torch.Tensor], name: str, **options) -> dict:
    """The inputs of a golden case, by the collator that programs make from the configuration."""
    config = model.config
    collator = HiggsAudioSampleCollator(
        whisper_processor=None,
        audio_in_token_id=config.audio_in_token_idx,
        audio_out_token_id=config.audio_out_token_idx,
        audio_stream_bos_id=config.audio_stream_bos_id,
        audio_stream_eos_id=config.audio_stream_eos_id,
        encode_whisper_embed=config.encode_whisper_embed,
        pad_token_id=config.pad_token_id,
        return_audio_in_tokens=True,
        use_delay_pattern=config.use_delay_pattern,
        audio_num_codebooks=config.audio_num_codebooks,
        **options,
    )
    references = [tensors[key] for key in sorted(tensors) if key.startswith(f"{name}.reference_codes.")]
    sample = ChatMLDatasetSample(tensors[f"{name}.input_ids"].long().flatten())
    if references:
        sample.audio_ids_concat = torch.cat(references, dim=1)
        sample.audio_ids_start = torch.tensor([0, *(part.shape[1] for part in references[:-1])]).cumsum(0)
    return vars(collator([sample]))


@pytest.mark.parametrize("round_to", [1, 8])
@pytest.mark.parametrize("name", CASES)
def test_the_golden_cases(model, tensors, name, round_to):
    case = CASES[name]
    inputs = inputs_of(model, tensors, name, round_to=round_to)
    buckets = {8192: KVCacheBucket(8192)}
    outputs = model.generate(
        **inputs, max_new_tokens=case["max_new_tokens"], use_cache=True, past_key_values_buckets=buckets, **GREEDY
    )
    sequences, segments = outputs
    prompt = tensors[f"{name}.input_ids"].numel()
    reply = tensors[f"{name}.sequences"].flatten()[prompt:]
    assert sequences[0, inputs["input_ids"].shape[1] :].tolist() == reply.tolist()
    assert torch.equal(sequences[:, : inputs["input_ids"].shape[1]], inputs["input_ids"])
    assert len(segments) == case["num_audio_segments"]
    for index, segment in enumerate(segments):
        assert torch.equal(segment, tensors[f"{name}.audio_tokens.{index}"].long())
    assert (outputs.sequences is sequences, outputs.audio_sequences is segments) == (True, True)


def test_draws_depend_on_the_seed(model, tensors):
    options = {"max_new_tokens": 20, "do_sample": True, "temperature": 1.0, "top_p": 1.5}
    inputs = inputs_of(model, tensors, "plain.force")
    first, again, other = (model.generate(**inputs, **options, seed=seed).audio_sequences[0] for seed in (-1, -1, 3))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_streamer(model, tensors):
    """In a thread of the program's, as the original's engine runs it."""
    name = "clone_system.free"
    inputs = inputs_of(model, tensors, name)
    outputs = model.generate(**inputs, max_new_tokens=80, **GREEDY)

    async def collect():
        tokenizer = TextTokenizer(model.native.tokenizer)
        streamer = AsyncHiggsAudioStreamer(tokenizer, skip_prompt=True, audio_num_codebooks=8)
        options = {**inputs, "max_new_tokens": 80, "streamer": streamer, **GREEDY}
        thread = threading.Thread(target=model.generate, kwargs=options)
        thread.start()
        deltas = [delta async for delta in streamer]
        thread.join()
        return deltas

    deltas = asyncio.run(collect())
    frames = [delta.audio_tokens for delta in deltas if delta.audio_tokens is not None]
    assert torch.equal(torch.stack(frames, dim=1), outputs.audio_sequences[0])
    tokens = torch.cat([delta.text_tokens for delta in deltas if delta.text_tokens is not None])
    assert torch.equal(tokens, outputs.sequences[0, inputs["input_ids"].shape[1] :])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"audio_features": torch.zeros(1)},
            ParameterError,
            "generate does not take audio_features: the model reads ids",
        ),
        ({"labels": torch.zeros(1)}, ParameterError, "generate does not take labels"),
        ({"input_ids": torch.zeros(2, 5, dtype=torch.int64)}, PromptError, r"must have shape \[1, S\], got \[2, 5\]"),
        ({"input_ids": torch.zeros(1, 5)}, PromptError, "input_ids must be integers"),
        (
            {"audio_out_ids": torch.zeros(8, 9, dtype=torch.int64), "audio_out_ids_start": torch.tensor([0])},
            PromptError,
            "audio_out_ids must be whole recordings with a delay pattern, got other codes from frame 0 on",
        ),
        (
            {"audio_out_ids": RECORDING, "audio_out_ids_start": torch.tensor([0])},
            PromptError,
            "input_ids must have a placeholder 266 per recording, got 0 for 1",
        ),
        ({"max_new_tokens": 0}, ParameterError, "max_new_tokens must be at least 1, got 0"),
    ],
)
def test_what_generate_refuses(model, tensors, change, error, message):
    inputs = inputs_of(model, tensors, "plain.force")
    with pytest.raises(error, match=message):
        model.generate(**{**inputs, "max_new_tokens": 5, **change})


def test_what_programs_ask_of_the_weights(model):
    parameters = list(model.parameters())
    assert sum(parameter.numel() for parameter in parameters) > 10**5
    assert (next(model.parameters()).dtype, next(model.parameters()).device) == (model.dtype, model.device)
    assert dict(model.named_parameters()).keys() == model.native.named_weights().keys()
    assert model.eval() is model.to("cpu") is model.to(torch.device("cpu"), dtype=torch.float32) is model
    model.set_audio_special_tokens(None)
    model.capture_model([])
    assert model.decode_graph_runners == {}
    for change in (lambda: model.to("meta"), lambda: model.to(torch.bfloat16), lambda: model.to("cuda:99")):
        with pytest.raises(ParameterError, match=r"float32 on cpu and can't be .*; load it as it shall be"):
            change()
    assert not hasattr(model, "state_dict")
    assert not hasattr(model, "train")
    with pytest.raises(ParameterError, match="must be loaded by from_pretrained, got a HiggsAudioConfig"):
        HiggsAudioModel(model.config)


def test_the_dtype_and_the_quantization_to_load():
    loaded = HiggsAudioModel.from_pretrained(str(FOLDER), torch_dtype=torch.bfloat16, attn_implementation="sdpa")
    assert loaded.dtype == torch.bfloat16
    assert HiggsAudioModel.from_pretrained(FOLDER, dtype="float16", quantization="int8").dtype == torch.float16


def test_a_stand_in_for_a_cache():
    bucket = KVCacheBucket(1024)
    bucket.reset()
    assert (bucket.max_cache_len, bucket.get_seq_length()) == (1024, 0)


def test_a_configuration_of_the_original_layout():
    raw = json.loads((FOLDER / "config.json").read_text())
    config = HiggsAudioConfig.from_pretrained(FOLDER)
    assert config.to_dict().items() >= {key: value for key, value in raw.items() if key != "text_config"}.items()
    assert (config.audio_num_codebooks, config.audio_codebook_size) == (8, 30)
    assert config.text_config.num_hidden_layers == raw["text_config"]["num_hidden_layers"]
    assert config.use_delay_pattern is True
    assert copy.deepcopy(config).to_dict() == config.to_dict()
    assert HiggsAudioConfig(**raw).to_dict() == config.to_dict()
    assert HiggsAudioConfig.from_dict(raw, name_or_path="x").name_or_path == "x"
    with pytest.raises(ConfigError, match=r"config\.json has no"):
        HiggsAudioConfig(text_config={})


def test_a_configuration_of_the_other_layout_has_the_same_names(tmp_path):
    configs = []
    for layout in ("original", "transformers"):
        write_language_model(tmp_path / layout, DEMO_CONFIG, layout)
        configs.append(HiggsAudioConfig.from_pretrained(str(tmp_path / layout)))
    for name in (
        "audio_num_codebooks",
        "audio_codebook_size",
        "audio_in_token_idx",
        "audio_out_token_idx",
        "audio_stream_bos_id",
        "audio_stream_eos_id",
        "audio_dual_ffn_layers",
        "encode_whisper_embed",
        "use_delay_pattern",
        "pad_token_id",
    ):
        values = [getattr(config, name) for config in configs]
        assert values[0] == values[1], name
    assert [config.text_config.num_hidden_layers for config in configs] == [DEMO_CONFIG.num_hidden_layers] * 2


def test_a_text_tokenizer(model):
    tokenizer = TextTokenizer(model.native.tokenizer)
    ids = tokenizer.encode("Hi.<|eot_id|>", add_special_tokens=False)
    assert isinstance(ids, list)
    for same in (ids, tuple(ids), torch.tensor(ids), torch.tensor(ids).numpy(), torch.tensor([ids])):
        assert tokenizer.decode(same, clean_up_tokenization_spaces=False) == "Hi.<|eot_id|>"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "Hi."
    assert tokenizer.decode(ids[0]) == "H"
    assert tokenizer.convert_tokens_to_ids("<|eot_id|>") == ids[-1]
    assert tokenizer.convert_tokens_to_ids(["<|eot_id|>", "<|none|>"]) == [ids[-1], None]
    assert len(tokenizer) == model.native.tokenizer.get_vocab_size()
