"""Drawn arguments for the interface of `boson_multimodal`; see `tests/test_properties.py`."""

import asyncio

import numpy as np
import pytest
import torch

from higgs_native.compat import boson
from higgs_native.compat.boson.text_tokenizer import TextTokenizer
from higgs_native.prompt.messages import ChatMLSample, Message
from tests.helpers.drawn_values import UNSET, Faces, check_calls, with_parameters_of


@pytest.fixture(scope="module")
def faces(demo_folder) -> Faces:
    engine = boson.HiggsAudioServeEngine(demo_folder, demo_folder / "audio_tokenizer", device="cpu")
    tokenizer = TextTokenizer(engine.tokenizer.backend_tokenizer)
    client = boson.HiggsAudioModelClient(str(demo_folder), engine.audio_tokenizer, max_new_tokens=12)
    samples = np.zeros(4800, dtype=np.float32)
    codes = torch.zeros(8, 3, dtype=torch.int64)
    conversation = [Message("system", "Speak."), Message("user", "Hi.")]
    asked = {"chat_ml_sample": ChatMLSample(conversation), "max_new_tokens": 12, "seed": 1, "force_audio_gen": True}
    recording = boson.AudioContent(raw_audio=(samples, 24000))
    inputs = engine._prepare_inputs(ChatMLSample([Message("system", recording), *conversation]), force_audio_gen=True)
    collator = dict.fromkeys(("audio_in_token_id", "audio_out_token_id"), 1) | dict.fromkeys(
        ("pad_token_id", "audio_stream_bos_id", "audio_stream_eos_id"), 0
    )

    async def deltas(arguments):
        return [delta async for delta in engine.generate_delta_stream(**arguments)]

    def generate_delta_stream(**arguments):
        return asyncio.run(deltas(arguments))

    async def put(arguments):
        streamer = boson.AsyncHiggsAudioStreamer(tokenizer, audio_num_codebooks=8)
        for value in arguments.values():
            streamer.put(value)

    def streamer_put(prompt, token, frame):
        asyncio.run(put(locals()))

    def collate(**arguments):
        return engine.collator([boson.ChatMLDatasetSample(**arguments)])

    def collate_by(round_to, pad_left, **arguments):
        made = boson.HiggsAudioSampleCollator(**arguments, round_to=round_to, pad_left=pad_left)
        return made([boson.ChatMLDatasetSample(torch.tensor([1, 2]), None, codes, torch.tensor([0]))])

    config = engine.model.config.to_dict()
    return {
        "load_higgs_audio_tokenizer": (
            boson.load_higgs_audio_tokenizer,
            {"tokenizer_name_or_path": demo_folder / "audio_tokenizer"},
        ),
        "HiggsAudioServeEngine": (
            boson.HiggsAudioServeEngine,
            {"model_name_or_path": demo_folder, "audio_tokenizer_name_or_path": demo_folder / "audio_tokenizer"},
        ),
        "engine.generate": (engine.generate, asked),
        "engine.generate_delta_stream": (generate_delta_stream, with_parameters_of(engine.generate, **asked)),
        "audio_tokenizer.encode": (engine.audio_tokenizer.encode, {"audio_path_or_wv": samples, "sr": 24000}),
        "audio_tokenizer.decode": (engine.audio_tokenizer.decode, {"vq_code": codes[None]}),
        "audio_tokenizer.to": (lambda device: engine.audio_tokenizer.to(device), {"device": "cpu"}),
        "HiggsAudioModel": (boson.HiggsAudioModel, {"native": engine.model.native}),
        "HiggsAudioModel.from_pretrained": (
            boson.HiggsAudioModel.from_pretrained,
            {"pretrained_model_name_or_path": demo_folder},
        ),
        "model.generate": (engine.model.generate, {**inputs, "max_new_tokens": 12}),
        "model.to": (lambda device: engine.model.to(device), {"device": "cpu"}),
        "HiggsAudioConfig": (boson.HiggsAudioConfig, config),
        "HiggsAudioConfig.from_dict": (boson.HiggsAudioConfig.from_dict, {"config_dict": config}),
        "HiggsAudioConfig.from_pretrained": (
            boson.HiggsAudioConfig.from_pretrained,
            {"pretrained_model_name_or_path": demo_folder},
        ),
        "HiggsAudioModelClient": (
            boson.HiggsAudioModelClient,
            {"model_path": str(demo_folder), "audio_tokenizer": engine.audio_tokenizer},
        ),
        "client.generate": (
            client.generate,
            {"messages": conversation, "audio_ids": [], "chunked_text": ["Hi."], "generation_chunk_buffer_size": 1},
        ),
        "HiggsAudioSampleCollator": (boson.HiggsAudioSampleCollator, {**collator, "whisper_processor": None}),
        "collator": (engine.collator, {"batch": [boson.ChatMLDatasetSample(torch.tensor([1, 2]))]}),
        "collator of samples": (collate, with_parameters_of(boson.ChatMLDatasetSample, input_ids=torch.tensor([1]))),
        "collator of settings": (
            collate_by,
            with_parameters_of(
                boson.HiggsAudioSampleCollator, **collator, whisper_processor=None, round_to=8, pad_left=False
            ),
        ),
        "prepare_chatml_sample": (
            boson.prepare_chatml_sample,
            {"sample": ChatMLSample(conversation), "tokenizer": tokenizer},
        ),
        "prepare_chatml_sample of a dictionary": (
            lambda **sample: boson.prepare_chatml_sample(sample, tokenizer),
            {"messages": [{"role": "user", "content": "Hi."}], "start_index": UNSET, "misc": UNSET, "speaker": UNSET},
        ),
        "prepare_chatml_sample of a message": (
            lambda **message: boson.prepare_chatml_sample({"messages": [message]}, tokenizer),
            {"role": "user", "content": "Hi.", "recipient": UNSET},
        ),
        "revert_delay_pattern": (boson.revert_delay_pattern, {"data": torch.zeros(8, 12, dtype=torch.int64)}),
        "build_delay_pattern_mask": (
            boson.build_delay_pattern_mask,
            {"input_ids": codes[None], "bos_token_id": 1024, "pad_token_id": 1025},
        ),
        "tokenizer.encode": (tokenizer.encode, {"text": "Hi."}),
        "tokenizer.decode": (tokenizer.decode, {"token_ids": [1, 2]}),
        "tokenizer.convert_tokens_to_ids": (tokenizer.convert_tokens_to_ids, {"tokens": ["Hi"]}),
        "streamer.put": (
            streamer_put,
            {"prompt": torch.tensor([[1, 2]]), "token": torch.tensor([1]), "frame": codes[:, 0]},
        ),
    }


@pytest.mark.filterwarnings("ignore:Generating overly large repr")
def test_drawn_arguments(faces, elsewhere):
    check_calls(faces, 0.3)
