"""Higgs TTS 3 from a text to samples: against Boson's serving code (tests/golden/higgs3_bundled), and its formats."""

import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from higgs_native.audio.quality import VoiceWarning
from higgs_native.checkpoint.config import HiggsAudioConfig
from higgs_native.checkpoint.packed import write_packed
from higgs_native.checkpoint.rewriting import write_rewritten
from higgs_native.errors import CheckpointError, ConfigError, ParameterError, PromptError
from higgs_native.generation.sampling_params import SamplingParams
from higgs_native.long_form.chunking import chunk_text
from higgs_native.long_form.long_speech import LongSpeech
from higgs_native.manuscript.timing import split_passages
from higgs_native.ops._library import EMULATES_CUDA
from higgs_native.pipeline import HiggsAudio
from higgs_native.prompt.pace import spoken_seconds
from higgs_native.prompt.recordings import Recording
from higgs_native.subtitles import word_cues
from higgs_native.testing.configs import DEMO_AUDIO_TOKENIZER_CONFIG, DEMO_CONFIG, DEMO_TTS_3_CONFIG, config_json
from higgs_native.testing.random_checkpoint import write_language_model


FOLDER = Path(__file__).parent / "golden" / "higgs3_bundled"
GOLDEN = json.loads((FOLDER / "cases.json").read_text())
TENSORS = load_file(FOLDER / "cases.safetensors")
TEXT = "<|emotion:amusement|>Hello there. [laugh] How are you?"


@pytest.fixture(scope="module")
def golden() -> HiggsAudio:
    return HiggsAudio.from_pretrained(FOLDER, "cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A small model with random weights and its audio tokenizer, whose speech does not end."""
    folder = tmp_path_factory.mktemp("tts3") / "model"
    write_language_model(
        folder, DEMO_TTS_3_CONFIG, "higgs_tts_3", endless=True, audio_tokenizer=DEMO_AUDIO_TOKENIZER_CONFIG
    )
    return folder


@pytest.fixture(scope="module")
def engine(folder) -> HiggsAudio:
    return HiggsAudio.from_pretrained(folder, "cpu")


def voice_of(case: dict) -> dict:
    if case["reference_audio"] is None:
        return {}
    audio = TENSORS[case["reference_audio"]].flatten().numpy()
    return {"reference_audio": (audio, 24000), "reference_text": case["reference_text"]}


@pytest.mark.parametrize("name", GOLDEN["encode"])
def test_recordings_are_encoded_as_the_original_does(golden, name):
    recording = Recording(TENSORS[f"encode.{name}.audio"].flatten().numpy(), 24000)
    assert torch.equal(golden.encode_recording(recording), TENSORS[f"encode.{name}.codes"].long())


@pytest.mark.filterwarnings("ignore::higgs_native.audio.quality.VoiceWarning")
@pytest.mark.parametrize("name", GOLDEN["cases"])
def test_speech_equals_the_original(golden, name):
    case = GOLDEN["cases"][name]
    options = {"temperature": 0, "max_new_tokens": case["max_new_tokens"], **voice_of(case)}
    speech = golden.speak(case["text"], **options)
    assert torch.equal(speech.codes, TENSORS[f"{name}.codes"].long())
    np.testing.assert_allclose(speech.audio, TENSORS[f"{name}.audio"].flatten().numpy(), rtol=0, atol=1e-4)
    assert speech.usage["completion_tokens"] == case["rows"]
    assert speech.finish_reason == "stop"
    streamed = np.concatenate([chunk.samples for chunk in golden.stream(case["text"], **options)])
    assert np.array_equal(streamed, speech.audio)


def test_progress_counts_whole_frames(golden):
    seconds = []
    golden.speak("Hello.", temperature=0, max_new_tokens=12, on_progress=seconds.append)
    assert seconds == pytest.approx([0.0] * 7 + [0.04 * frame for frame in range(1, 6)])


@pytest.mark.parametrize("quantization", [None, "int8"] if EMULATES_CUDA else [None, "fp8", "int8", "int4,heads=int8"])
def test_packed_checkpoints_speak_as_the_model_that_they_were_made_from(folder, tmp_path, quantization):
    engine = HiggsAudio.from_pretrained(folder, "cpu", quantization=quantization)
    options = {"seed": 1, "max_new_tokens": 20}
    speech = engine.speak(TEXT, **options)
    assert speech.codes.shape == (8, 13)
    write_packed(engine.model.named_weights(), engine.model.quantization, folder, tmp_path / "packed")
    packed = HiggsAudio.from_pretrained(tmp_path / "packed", "cpu")
    assert np.array_equal(packed.speak(TEXT, **options).audio, speech.audio)
    assert packed.model.nbytes == engine.model.nbytes
    streamed = np.concatenate([chunk.samples for chunk in packed.stream(TEXT, **options)])
    assert np.array_equal(streamed, speech.audio)


def test_a_clone_needs_no_words(engine):
    noise = np.random.default_rng(0).standard_normal(48_000).astype(np.float32) * 0.1
    options = {"seed": 1, "max_new_tokens": 12, "reference_audio": (noise, 24000)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VoiceWarning)
        without, with_words = (
            engine.speak("Hello.", **options, reference_text=words) for words in (None, "Hi there.")
        )
    # `<|ref_text|>`, and a token per letter
    assert with_words.usage["prompt_tokens"] - without.usage["prompt_tokens"] == 1 + len("Hi there.")


@pytest.mark.skipif(EMULATES_CUDA, reason="the emulation is slow")
def test_books_have_spoken_chunks_as_context(engine, monkeypatch):
    seen = []
    add = engine.model.engine.add

    def recorded(request, *arguments):
        seen.append(request)
        return add(request, *arguments)

    monkeypatch.setattr(engine.model.engine, "add", recorded)
    speech = LongSpeech(engine, "The first one.\n\nThe second one [laugh].", seed=1, max_retries=0)
    # Endless speech fails, and failed chunks are no context.
    spoken = list(speech)
    assert [chunk.text.text for chunk in spoken] == ["The first one.", "The second one <|sfx:laughter|>Haha."]
    conversation = speech._conversation()
    conversation.add(spoken[0].text, spoken[0].codes)
    messages = conversation.messages(speech.chunks[1], 100)
    assert [message.role for message in messages] == ["user", "assistant", "user"]
    request = engine.prepare_request(messages, True, engine.default_sampling)()
    assert [codes.shape for codes in request.reference_codes] == [spoken[0].codes.shape]
    assert all(request.convention == "higgs_tts_3" and len(request.reference_codes) == 0 for request in seen)
    length = conversation._prompt_length(messages)
    assert length == request.input_ids.shape[1] - 1 + spoken[0].codes.shape[1] + 7


def test_chunks_keep_tags_whole_and_text_as_it_is():
    text = "<|emotion:amusement|>" + "Well, “this” (is) it; " * 30 + "<|prosody:long_pause|>and the end"
    chunks = chunk_text(text, 5, convention="higgs_tts_3")
    assert len(chunks) > 3
    assert "".join(chunk.text for chunk in chunks).replace(" ", "") == text.replace(" ", "")
    assert (
        sum(tag in chunk.text for chunk in chunks for tag in ("<|emotion:amusement|>", "<|prosody:long_pause|>")) == 2
    )


def test_what_other_models_have_is_refused(engine, tmp_path):
    for text, options, message in (
        ("<|emotion:joy|>Hi.", {}, r"text must hold tags that the model knows, got <\|emotion:joy\|>"),
        ("Hi. <|audio|>", {}, r"text must hold tags that the model knows, got <\|audio\|>"),
        ("Hi.", {"scene": "A room."}, "scene must be None with Higgs TTS 3"),
    ):
        with pytest.raises(PromptError, match=message):
            engine.speak(text, **options)
    with pytest.raises(ParameterError, match="convention must be 'higgs_tts_3' for this model, got 'boson'"):
        HiggsAudio(engine.model, engine.audio_tokenizer, "boson")
    with pytest.raises(CheckpointError, match="this checkpoint has no text head"):
        engine.generate([], force_audio_gen=False)


def test_defaults_are_the_conventions_own(engine):
    assert engine.default_sampling.temperature == 0.8
    chosen = engine.speak("Hello.", seed=3, max_new_tokens=15)
    sampling = SamplingParams(0.8, 30, 0.8, None, seed=3, max_new_tokens=15, stop_strings=None)
    assert torch.equal(chosen.codes, engine.speak("Hello.", sampling=sampling).codes)


def written(**changes) -> dict:
    """The demonstration's config.json with changes in whichever part has the field."""
    raw = config_json(DEMO_TTS_3_CONFIG, "higgs_tts_3", torch.bfloat16)
    for name, value in changes.items():
        holder = next((part for part in (raw["audio_encoder_config"], raw["text_config"]) if name in part), raw)
        holder[name] = value
    return raw


def test_the_configuration_is_read_back():
    assert HiggsAudioConfig.from_dict(written()) == DEMO_TTS_3_CONFIG
    raw = written()
    for parameters in ({"rope_parameters": None, "rope_theta": None}, {"rope_parameters": {"rope_type": "default"}}):
        raw["text_config"] |= parameters
        del raw["text_config"]["rms_norm_eps"]
        config = HiggsAudioConfig.from_dict(raw)
        assert (config.rope_theta, config.rms_norm_eps, config.rope_scaling) == (1e6, 1e-6, None)
        raw["text_config"]["rms_norm_eps"] = 1e-6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder_type": "whisper"}, "audio_encoder_config: encoder_type must be \"discrete\", got 'whisper'"),
        ({"tie_word_embeddings": False}, "audio_encoder_config: tie_word_embeddings must be true, got False"),
        ({"audio_token_id": 7}, "config.json: audio_token_id must be -100, got 7"),
        ({"vocab_size": 1}, "vocab_size of audio_encoder_config must be|audio_stream_bos_id must be from 0 to 0"),
        ({"head_dim": 15}, "head_dim must be even, got 15"),
        ({"attention_bias": True}, "text_config: attention_bias must be false, got True"),
    ],
)
def test_another_models_configuration_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        HiggsAudioConfig.from_dict(written(**changes))


def test_layouts_hold_their_own_models(tmp_path):
    with pytest.raises(ConfigError, match="layout must be 'higgs_tts_3' for Higgs TTS 3"):
        write_language_model(tmp_path / "a", DEMO_TTS_3_CONFIG)
    with pytest.raises(ConfigError, match="layout must be 'higgs_tts_3' for Higgs TTS 3, and for it alone"):
        write_language_model(tmp_path / "b", DEMO_CONFIG, "higgs_tts_3")
    with pytest.raises(ConfigError, match="layout must be 'higgs_tts_3' to bundle an audio tokenizer"):
        write_language_model(tmp_path / "c", DEMO_CONFIG, audio_tokenizer=DEMO_AUDIO_TOKENIZER_CONFIG)


def test_a_missing_tensor_is_named(folder, tmp_path):
    fewer = replace(DEMO_TTS_3_CONFIG, num_hidden_layers=1)
    write_language_model(tmp_path / "model", fewer, "higgs_tts_3")
    raw = config_json(DEMO_TTS_3_CONFIG, "higgs_tts_3", torch.bfloat16)
    (tmp_path / "model" / "config.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match=r"11 missing .*layers\.1\.input_layernorm\.weight"):
        HiggsAudio.from_pretrained(tmp_path / "model", "cpu")


def test_copies_of_tied_tensors_follow_them(tmp_path):
    """A checkpoint written anew, as with a merged adapter, has the same tables under all of their names."""
    tables = ("embed_tokens.weight", "audio_codebook_embeddings.weight")
    write_rewritten(FOLDER, tmp_path / "new", lambda name, tensor: tensor + 1 if name in tables else tensor)
    old, new = (load_file(folder / "model.safetensors") for folder in (FOLDER, tmp_path / "new"))
    assert old.keys() == new.keys()
    for table in ("embedding.text_embedding", "head.text_head", "head.modality_heads.0"):
        assert torch.equal(new[f"tied.{table}.weight"], old[f"tied.{table}.weight"] + 1)
    kept = "tied.embedding.modality_embeddings.0.model.fc.weight"
    assert torch.equal(new[kept], old[kept])


def test_control_tags_are_kept_whole_and_take_no_time():
    words = "今天天气真好我们去公园玩" * 5
    chunks = chunk_text(f"{words}<|prosody:long_pause|>{words}。", 20, convention="higgs_tts_3")
    assert len(chunks) > 1
    assert "".join(chunk.text for chunk in chunks) == f"{words}<|prosody:long_pause|>{words}。"
    assert sum("<|prosody:long_pause|>" in chunk.text for chunk in chunks) == 1
    assert spoken_seconds("<|emotion:amusement|>Yes.") == spoken_seconds("Yes.")


def test_control_tags_alone_go_to_what_is_said_next():
    chunks = chunk_text("Hello.\n\n<|prosody:long_pause|>\n\nBye.", 20, convention="higgs_tts_3")
    assert [chunk.text for chunk in chunks] == ["Hello.", "<|prosody:long_pause|>Bye."]
    passages = split_passages("<|emotion:sadness|>[pause:500ms] I miss you. [pause:1s] <|sfx:sigh|>")
    assert [(passage.text, passage.pause) for passage in passages] == [("<|emotion:sadness|>I miss you.", 0.5)]


def test_subtitles_show_no_control_tags():
    cues = word_cues("<|emotion:sadness|>I miss <|prosody:pause|>you.", np.ones(24000, dtype=np.float32), 24000)
    assert [cue.text for cue in cues] == ["I", "miss", "you."]


def test_long_speech_takes_sampling_without_its_limit(golden):
    assert LongSpeech(golden, "Hello.", sampling=SamplingParams(seed=1)).seed == 1
    with pytest.raises(ParameterError, match="max_new_tokens"):
        LongSpeech(golden, "Hello.", max_new_tokens=100)
