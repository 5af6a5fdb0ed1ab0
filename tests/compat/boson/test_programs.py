"""The calls of public programs for `boson_multimodal`, after one line that installs its module names.

Each program here makes the calls that a program of its kind makes, in the same order. Those that import transformers
run in a process of their own.
"""

import asyncio
import base64
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from higgs_native.compat import boson
from higgs_native.compat.boson.modules import MODULES
from higgs_native.testing.configs import DEMO_AUDIO_TOKENIZER_CONFIG, DEMO_CONFIG
from higgs_native.testing.random_checkpoint import write_audio_tokenizer, write_language_model


RATE = 24000


@pytest.fixture(scope="module")
def model_path(tmp_path_factory) -> str:
    """A model of the original layout that goes on speaking noise."""
    folder = tmp_path_factory.mktemp("model")
    write_language_model(folder, DEMO_CONFIG, "original", torch.float32, endless=True)
    return str(folder)


@pytest.fixture(scope="module")
def audio_tokenizer(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("audio_tokenizer")
    write_audio_tokenizer(folder, DEMO_AUDIO_TOKENIZER_CONFIG)
    return str(folder)


@pytest.fixture(scope="module", autouse=True)
def installed():
    boson.install()
    yield
    for suffix in MODULES:
        sys.modules.pop(f"boson_multimodal{suffix}", None)


@pytest.fixture
def engine(model_path, audio_tokenizer):
    from boson_multimodal.serve.serve_engine import HiggsAudioServeEngine

    return HiggsAudioServeEngine(model_path, audio_tokenizer, device="cpu", torch_dtype="auto")


@pytest.fixture(scope="module")
def recording(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("recording") / "voice.wav"
    noise = 0.1 * np.random.default_rng(0).standard_normal(RATE // 2)
    soundfile.write(path, noise, RATE)
    return path


def test_a_server_with_a_health_page(engine, recording):
    from boson_multimodal.data_types import AudioContent, ChatMLSample, Message

    health = json.dumps({"model_loaded": engine is not None, "device": engine.device})
    assert json.loads(health)["device"] == "cpu"

    encoded = base64.b64encode(recording.read_bytes()).decode("utf-8")
    messages = [
        Message(role="user", content="Some words."),
        Message(role="assistant", content=AudioContent(raw_audio=encoded, audio_url="placeholder")),
        Message(role="user", content="Others."),
    ]
    output = engine.generate(
        chat_ml_sample=ChatMLSample(messages=messages),
        max_new_tokens=30,
        temperature=0.3,
        top_p=0.95,
        top_k=50,
        stop_strings=["<|end_of_text|>", "<|eot_id|>"],
        force_audio_gen=True,
        seed=42,
    )
    wav = io.BytesIO()
    soundfile.write(wav, output.audio, output.sampling_rate, format="WAV")
    assert len(wav.getvalue()) > 2 * len(output.audio)
    assert json.loads(json.dumps(output.usage)).keys() == {
        "prompt_tokens",
        "completion_tokens",
        "total_tokens",
        "cached_tokens",
    }


def test_a_program_that_calls_the_engines_model(engine, recording):
    from boson_multimodal.data_types import AudioContent, ChatMLSample, Message
    from boson_multimodal.model.higgs_audio.utils import revert_delay_pattern

    sample = ChatMLSample(
        [Message("system", ["As here: ", AudioContent(audio_url=str(recording))]), Message("user", "Hello.")]
    )
    with torch.no_grad():
        inputs = engine._prepare_inputs(sample, force_audio_gen=True)
        engine._prepare_kv_caches()
        outputs = engine.model.generate(
            **inputs,
            max_new_tokens=30,
            use_cache=True,
            stop_strings=["<|end_of_text|>", "<|eot_id|>"],
            tokenizer=engine.tokenizer,
            do_sample=True,
            temperature=0.7,
            top_k=None,
            top_p=0.95,
            past_key_values_buckets=engine.kv_caches,
            ras_win_len=7,
            ras_win_max_num_repeat=2,
            seed=3,
        )
        waveforms = []
        for audio in outputs[1]:
            codes = revert_delay_pattern(audio).clip(0, engine.audio_codebook_size - 1)[:, 1:-1]
            waveforms.append(engine.audio_tokenizer.decode(codes.unsqueeze(0))[0, 0])
        reply = outputs[0][0].cpu().numpy()[inputs["input_ids"].shape[1] :]
    response = engine.generate(sample, 30, force_audio_gen=True, seed=3)
    assert np.array_equal(np.concatenate(waveforms), response.audio)
    assert engine.tokenizer.decode(reply) == response.generated_text


def test_a_stream_that_decodes_chunks_of_codes(engine):
    from boson_multimodal.data_types import ChatMLSample, Message
    from boson_multimodal.model.higgs_audio.utils import revert_delay_pattern

    bos, eos = engine.model.config.audio_stream_bos_id, engine.model.config.audio_stream_eos_id
    chunk_size = 4

    async def stream() -> list[np.ndarray]:
        frames, chunks, count = [], [], 0
        deltas = engine.generate_delta_stream(
            chat_ml_sample=ChatMLSample([Message("user", "Hello.")]),
            max_new_tokens=40,
            temperature=0.3,
            top_p=0.95,
            top_k=50,
            stop_strings=["<|end_of_text|>", "<|eot_id|>"],
            force_audio_gen=True,
            seed=5,
        )
        with torch.inference_mode():
            async for delta in deltas:
                if delta.audio_tokens is None:
                    continue
                if torch.all(delta.audio_tokens == eos):
                    break
                frames.append(delta.audio_tokens[:, None])
                joined = torch.cat(frames, dim=-1)
                count += bool(torch.all(delta.audio_tokens != bos))
                if count and count % chunk_size == 0:
                    start = count - chunk_size + 1
                    codes = revert_delay_pattern(joined, start_idx=start).clip(0, 1023).to(engine.device)
                    chunks.append(engine.audio_tokenizer.decode(codes.unsqueeze(0))[0, 0])
        return chunks

    chunks = asyncio.run(stream())
    assert {len(chunk) for chunk in chunks} == {chunk_size * engine.samples_per_token}
    fade = int(0.04 * engine.audio_tokenizer.sampling_rate)
    overlap = chunks[0][-fade:] * np.linspace(1, 0, fade) + chunks[-1][:fade] * np.linspace(0, 1, fade)
    assert np.isfinite(overlap).all()


def test_a_manager_of_loaded_models(engine):
    """It asks what there is before it moves it, and gives settings that mean `random` or `off` elsewhere."""
    from boson_multimodal.data_types import ChatMLSample, Message

    assert getattr(engine, "_cuda_graphs_enabled", True)
    assert not hasattr(engine, "to")
    if hasattr(engine, "kv_caches"):
        engine.kv_caches.clear()
    for part in (engine.model, engine.audio_tokenizer):
        assert part.to(engine.device) is part
    for name in ("semantic_model", "encoder", "decoder_2", "quantizer"):
        assert not hasattr(engine.audio_tokenizer, name)
    for settings in (
        {"seed": -1, "top_p": 0.0},
        {"seed": 2**63, "top_p": 1.5},
        {"max_new_tokens": 30.0},
        {"stop_strings": "<|eot_id|>"},
    ):
        options = {"max_new_tokens": 30, "temperature": 0.8, "top_k": 80, "force_audio_gen": True, **settings}
        with torch.no_grad():
            output = engine.generate(chat_ml_sample=ChatMLSample([Message("user", "Hello.")]), **options)
        assert output.audio is not None


def test_a_program_that_writes_what_it_finds_to_a_log(engine):
    from boson_multimodal.data_types import ChatMLSample, Message, TextContent

    engine.model.decode_graph_runners.clear()
    lengths = {length: cache.get_seq_length() for length, cache in engine.kv_caches.items()}
    assert lengths == {1024: 0, 4096: 0, 8192: 0}
    messages = [
        Message(role="system", content=TextContent(text="Generate speech.")),
        Message("user", [TextContent("Hi.")]),
    ]
    sample = ChatMLSample(messages=messages)
    output = engine.generate(sample, max_new_tokens=75000, temperature=0.7, top_p=0.95, force_audio_gen=True, seed=0)
    tokens = output.generated_audio_tokens
    found = tokens.shape[1], int(tokens.min()), int(tokens.max()), len(set(tokens.flatten().tolist()))
    parameters = sum(parameter.numel() for parameter in engine.model.parameters())
    config = engine.model.config
    described = (config.audio_num_codebooks, engine.hamming_window_len, str(next(engine.model.parameters()).device))
    assert described == (8, 2 * 8 * 960, "cpu")
    assert parameters > 0
    assert output.usage["completion_tokens"] > found[0] > 9
    assert 0 <= found[1] < found[2] <= config.audio_stream_eos_id


def test_an_adapter_that_replaces_the_audio_tokenizer(engine, audio_tokenizer, tmp_path):
    from boson_multimodal.audio_processing.higgs_audio_tokenizer import load_higgs_audio_tokenizer
    from boson_multimodal.data_types import ChatMLSample, Message

    write_audio_tokenizer(tmp_path, DEMO_AUDIO_TOKENIZER_CONFIG, seed=9)
    options = {"max_new_tokens": 30, "force_audio_gen": True, "seed": 1}
    before = engine.generate(ChatMLSample([Message("user", "Hi.")]), **options)
    engine.audio_tokenizer = load_higgs_audio_tokenizer(str(tmp_path), device="cpu")
    engine.audio_tokenizer_tps = engine.audio_tokenizer.tps
    engine.samples_per_token = int(engine.audio_tokenizer.sampling_rate // engine.audio_tokenizer_tps)
    engine.hamming_window_len = 2 * engine.audio_num_codebooks * engine.samples_per_token
    after = engine.generate(ChatMLSample([Message("user", "Hi.")]), **options)
    assert np.array_equal(before.generated_audio_tokens, after.generated_audio_tokens)
    assert not np.array_equal(before.audio, after.audio)


CLIENT = r"""
import copy, json, sys
import higgs_native.compat.boson
higgs_native.compat.boson.install()
import numpy as np
import torch
from dataclasses import asdict
from transformers import AutoConfig, AutoTokenizer
from transformers.cache_utils import StaticCache
from boson_multimodal.audio_processing.higgs_audio_tokenizer import load_higgs_audio_tokenizer
from boson_multimodal.data_collator.higgs_audio_collator import HiggsAudioSampleCollator
from boson_multimodal.data_types import AudioContent, ChatMLSample, Message, TextContent
from boson_multimodal.dataset.chatml_dataset import ChatMLDatasetSample, prepare_chatml_sample
from boson_multimodal.model.higgs_audio import HiggsAudioConfig, HiggsAudioModel
from boson_multimodal.model.higgs_audio.utils import revert_delay_pattern

model_path, tokenizer_path, voice, codes_path = sys.argv[1:]
audio_tokenizer = load_higgs_audio_tokenizer(tokenizer_path, device="cpu")
model = HiggsAudioModel.from_pretrained(model_path, device_map="cpu", torch_dtype=torch.float32)
model.eval()
tokenizer, config = AutoTokenizer.from_pretrained(model_path), AutoConfig.from_pretrained(model_path)
collator = HiggsAudioSampleCollator(
    whisper_processor=None,
    audio_in_token_id=config.audio_in_token_idx,
    audio_out_token_id=config.audio_out_token_idx,
    audio_stream_bos_id=config.audio_stream_bos_id,
    audio_stream_eos_id=config.audio_stream_eos_id,
    encode_whisper_embed=config.encode_whisper_embed,
    pad_token_id=config.pad_token_id,
    return_audio_in_tokens=config.encode_audio_in_tokens,
    use_delay_pattern=config.use_delay_pattern,
    round_to=1,
    audio_num_codebooks=config.audio_num_codebooks,
)
cache_config = copy.deepcopy(model.config.text_config)
cache_config.num_hidden_layers += len(model.config.audio_dual_ffn_layers)
kv_caches = {
    length: StaticCache(
        config=cache_config, max_batch_size=1, max_cache_len=length, device=model.device, dtype=model.dtype
    )
    for length in (64, 128)
}

system = Message("system", [TextContent("SPEAKER0: "), AudioContent(audio_url="")])
messages = [system, Message("user", "Some words."), Message("assistant", AudioContent(audio_url=voice))]
references = [audio_tokenizer.encode(voice)] * 2
spoken, turns = [], []
for chunk in ("One.", "Two."):
    turns.append(Message("user", chunk))
    tokens, _, _, _ = prepare_chatml_sample(ChatMLSample(messages=messages + turns), tokenizer)
    header = "<|start_header_id|>assistant<|end_header_id|>\n\n<|audio_out_bos|>"
    tokens.extend(tokenizer.encode(header, add_special_tokens=False))
    codes = references + spoken
    sample = ChatMLDatasetSample(
        input_ids=torch.LongTensor(tokens),
        label_ids=None,
        audio_ids_concat=torch.concat([part.cpu() for part in codes], dim=1),
        audio_ids_start=torch.cumsum(torch.tensor([0] + [part.shape[1] for part in codes], dtype=torch.long), dim=0),
        audio_waveforms_concat=None,
        audio_waveforms_start=None,
        audio_sample_rate=None,
        audio_speaker_indices=None,
    )
    batch = asdict(collator([sample]))
    for name, value in batch.items():
        if isinstance(value, torch.Tensor):
            batch[name] = value.contiguous().to(model.device)
    for cache in kv_caches.values():
        cache.reset()
    outputs = model.generate(
        **batch, max_new_tokens=30, use_cache=True, do_sample=True, temperature=1.0, top_k=50, top_p=0.95,
        past_key_values_buckets=kv_caches, ras_win_len=None, ras_win_max_num_repeat=2,
        stop_strings=["<|end_of_text|>", "<|eot_id|>"], tokenizer=tokenizer, seed=123,
    )
    segments = [
        revert_delay_pattern(segment).clip(0, audio_tokenizer.codebook_size - 1)[:, 1:-1] for segment in outputs[1]
    ]
    spoken.append(torch.concat(segments, dim=1))
    turns.append(Message("assistant", AudioContent(audio_url="")))
text = tokenizer.decode(outputs[0][0])
audio = audio_tokenizer.decode(torch.concat(spoken, dim=1).unsqueeze(0))[0, 0]
print(json.dumps({"text": text, "frames": [part.shape[1] for part in spoken], "samples": len(audio)}))
torch.save(spoken, codes_path)
"""


def test_the_example_of_bosons_repository(model_path, audio_tokenizer, recording, run_python, tmp_path):
    """Its client, chunk by chunk: the same codes as this package's own."""
    pytest.importorskip("transformers")
    finished = run_python(CLIENT, model_path, audio_tokenizer, str(recording), str(tmp_path / "codes"))
    assert finished.returncode == 0, finished.stderr
    told = json.loads(finished.stdout.splitlines()[-1])
    codes = torch.load(tmp_path / "codes")
    assert told["frames"] == [part.shape[1] for part in codes]
    assert told["samples"] == 960 * sum(told["frames"])
    assert "<|start_header_id|>user<|end_header_id|>\n\nTwo.<|eot_id|>" in told["text"]

    tokenizer = boson.load_higgs_audio_tokenizer(audio_tokenizer)
    client = boson.HiggsAudioModelClient(model_path, tokenizer, max_new_tokens=30)
    reference = tokenizer.encode(str(recording))
    messages = [
        boson.Message("system", [boson.TextContent("SPEAKER0: "), boson.AudioContent(audio_url="")]),
        boson.Message("user", "Some words."),
        boson.Message("assistant", boson.AudioContent(audio_url="")),
    ]
    client._model.text_head = None  # forces audio, as the program does
    audio, _, _ = client.generate(messages, [reference] * 2, ["One.", "Two."], None, ras_win_len=None, seed=123)
    assert len(audio) == told["samples"]
    assert np.array_equal(audio, tokenizer.decode(torch.cat(codes, dim=1))[0, 0])


INSPECTION = """
import sys
import higgs_native.compat.boson
higgs_native.compat.boson.install()
from transformers import AutoTokenizer
from boson_multimodal.model.higgs_audio import HiggsAudioConfig, HiggsAudioModel
from boson_multimodal.serve.serve_engine import HiggsAudioServeEngine

model_path, tokenizer_path = sys.argv[1:]
config = HiggsAudioConfig.from_pretrained(model_path)
print(config.audio_num_codebooks, config.audio_codebook_size, config.text_config.hidden_size)
for bits in (8, 4):
    engine = HiggsAudioServeEngine(
        model_name_or_path=model_path,
        audio_tokenizer_name_or_path=tokenizer_path,
        device="cpu",
        use_quantization=True,
        quantization_bits=bits,
    )
    print(sum(parameter.nbytes for parameter in engine.model.parameters()))
model = HiggsAudioModel.from_pretrained(model_path).to("cpu").eval()
try:
    model.load_state_dict({})
except AttributeError as error:
    print(error)
"""


def test_a_script_that_inspects_a_checkpoint(model_path, audio_tokenizer, run_python):
    pytest.importorskip("transformers")
    finished = run_python(INSPECTION, model_path, audio_tokenizer)
    assert finished.returncode == 0, finished.stderr
    sizes, eight, four, refused = finished.stdout.splitlines()
    assert sizes == "8 1024 64"
    assert int(four) < int(eight)
    assert refused == "the model has no load_state_dict: its weights are packed for the engine, and it only generates"
