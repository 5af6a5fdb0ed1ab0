import warnings

import numpy as np
import pytest
import soundfile
import torch

import higgs_native
from higgs_native import pipeline
from higgs_native.audio.quality import VoiceWarning
from higgs_native.errors import AudioError, CheckpointError, ConfigError, ParameterError, PromptError
from higgs_native.generation.delay_pattern import build_delay_pattern
from higgs_native.generation.requests import GenerationOutput
from higgs_native.long_form.long_speech import LongSpeech
from higgs_native.pipeline import HiggsAudio
from higgs_native.prompt.chat import spoken_turns
from higgs_native.prompt.messages import AudioContent, ChatMLSample, Message, TextContent
from higgs_native.prompt.voices import Voice
from higgs_native.testing.configs import DEMO_CONFIG
from higgs_native.testing.random_checkpoint import write_demo_checkpoint, write_language_model
from higgs_native.utils.variables import VOICES_VARIABLE
from tests.audio.test_quality import syllables


# Most references here are a second of a tone.
pytestmark = pytest.mark.filterwarnings("ignore::higgs_native.VoiceWarning")

TEXT = "The sun rises in the east."
RATE = 24000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    write_demo_checkpoint(folder)
    return folder


@pytest.fixture(scope="module")
def engine(folder):
    return HiggsAudio.from_pretrained(folder)


@pytest.fixture(scope="module")
def engines(folder, engine, tmp_path_factory):
    """An engine of either layout."""
    engines = {}
    for layout, name in (("original", "boson"), ("transformers", "transformers")):
        model = tmp_path_factory.mktemp(layout)
        write_language_model(model, DEMO_CONFIG, layout, torch.float32)
        engines[name] = HiggsAudio.from_pretrained(model, audio_tokenizer=folder / "audio_tokenizer")
        assert engines[name].convention == name
    return engines


@pytest.fixture(scope="module")
def samples():
    time = np.arange(RATE) / RATE
    return (0.5 * np.sin(2 * np.pi * 220 * time) * np.sin(np.pi * time)).astype(np.float32)


@pytest.fixture
def recording(samples, tmp_path):
    soundfile.write(tmp_path / "voice.wav", samples, RATE, subtype="FLOAT")
    return tmp_path / "voice.wav"


@pytest.mark.parametrize("layout", ["boson", "transformers"])
def test_speech(layout, engines):
    speech = engines[layout].speak(TEXT, seed=1, max_new_tokens=40)
    assert speech.audio.dtype == np.float32
    assert speech.audio.ndim == 1
    assert np.isfinite(speech.audio).all()
    assert speech.sampling_rate == RATE
    assert speech.codes.dtype == torch.int64
    assert speech.codes.shape[0] == 8
    assert 0 < speech.codes.shape[1] <= 40
    assert 0 <= speech.codes.min() <= speech.codes.max() < 1024
    assert len(speech.audio) == speech.codes.shape[1] * 960
    assert speech.duration == speech.codes.shape[1] / 25
    assert "<|" not in speech.text
    assert speech.finish_reason in ("stop", "length")
    assert speech.usage["total_tokens"] == speech.usage["prompt_tokens"] + speech.usage["completion_tokens"]
    assert speech.usage["completion_tokens"] <= 40


def test_the_seed_decides(engine):
    one, same, other = (engine.speak(TEXT, seed=seed, temperature=1.0, max_new_tokens=20) for seed in (1, 1, 2))
    assert torch.equal(one.codes, same.codes)
    assert np.array_equal(one.audio, same.audio)
    assert not torch.equal(one.codes, other.codes)


def test_the_result_names_its_seed(engine):
    options = {"temperature": 1.0, "max_new_tokens": 20}
    assert engine.speak(TEXT, seed=5, **options).seed == 5
    drawn = [engine.speak(TEXT, **options) for _ in range(2)]
    assert drawn[0].seed != drawn[1].seed
    for speech in drawn:
        again = engine.speak(TEXT, seed=speech.seed, **options)
        assert torch.equal(again.codes, speech.codes)
        assert again.seed == speech.seed


def test_the_result_names_its_failures(engine):
    """The demonstration model has no end; `generate` does not know which text is to be spoken."""
    long = "It is a good day for a long walk in the mountains. " * 4
    assert engine.speak("Hi.", seed=1, max_new_tokens=60).failures == ("no end",)
    assert engine.speak(long, seed=1, max_new_tokens=60).failures == ("no end", "too short")
    assert engine.speak(long, seed=1, max_new_tokens=3).failures == ("no end", "too short")
    messages = engine.speech_messages(long, [], None)
    assert engine.generate(messages, True, seed=1, max_new_tokens=60).failures is None


@pytest.mark.parametrize(
    ("options", "text", "plain"),
    [
        ({"normalize": True}, "It cost $3.", "It cost three dollars."),
        ({"strip_markup": True}, "A **good** day 🎉.", "A good day."),
    ],
)
def test_a_text_is_prepared(engine, options, text, plain):
    pytest.importorskip("markdown_it")
    limits = {"seed": 1, "max_new_tokens": 20}
    speech, expected = engine.speak(text, **options, **limits), engine.speak(plain, **limits)
    assert speech == expected
    assert speech != engine.speak(text, **limits)
    streamed = np.concatenate([chunk.samples for chunk in engine.stream(text, **options, **limits)])
    np.testing.assert_array_equal(streamed, expected.audio)
    assert [chunk.text for chunk in LongSpeech(engine, text, **options).chunks] == [plain]


def silent_runs(audio):
    """The lengths of the runs of zeros."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], audio == 0, [0]]).astype(int)))
    return [int(end - begin) for begin, end in zip(edges[::2], edges[1::2], strict=True) if end - begin > 100]


@pytest.mark.parametrize("name", ["boson", "transformers"])
def test_pauses_are_silence_of_their_length(engines, name):
    engine = engines[name]
    text = "[pause:0.1s] The sun rises. [pause:333ms] In the east. [pause:1s] And it sets."
    options = {"seed": 1, "max_new_tokens": 20}
    reports = []
    speech = engine.speak(text, **options, on_progress=reports.append)
    assert silent_runs(speech.audio) == [2400, 7992, 24000]
    assert reports == sorted(reports)
    chunks = list(engine.stream(text, **options))
    np.testing.assert_array_equal(np.concatenate([chunk.samples for chunk in chunks]), speech.audio)
    positions = np.cumsum([0, *(len(chunk.samples) for chunk in chunks[:-1])])
    assert [chunk.start_frame for chunk in chunks] == [position // 960 for position in positions]
    assert [chunk.is_last for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    first = engine.speak("The sun rises.", **options)
    np.testing.assert_array_equal(speech.codes[:, : first.codes.shape[1]], first.codes)
    assert speech.usage["completion_tokens"] > 2 * first.usage["completion_tokens"]
    assert speech.seed == 1


def test_passages_are_spoken_in_one_voice(engine, monkeypatch, recording):
    """By a recording, by the checkpoint's own voices, or by the first passage as context."""
    conversations = []
    original = HiggsAudio.generate

    def generate(self, conversation, *arguments, **options):
        conversations.append(conversation)
        return original(self, conversation, *arguments, **options)

    monkeypatch.setattr(HiggsAudio, "generate", generate)
    text = "[SPEAKER0] One [pause:1s] two. [pause:1s] Three."
    speech = engine.speak(text, seed=1, max_new_tokens=20)
    first, second, third = conversations
    assert [message.content for message in first[1:]] == ["[SPEAKER0] One."]
    assert second[1].content == third[1].content == "[SPEAKER0] One."
    codes = second[2].content.codes
    assert torch.equal(codes, speech.codes[:, : codes.shape[1]])
    assert [message.content for message in (second[-1], third[-1])] == ["[SPEAKER0] two.", "[SPEAKER0] Three."]
    assert (len(second), len(third)) == (len(first) + 2, len(first) + 2)

    conversations.clear()
    engine.speak(text, reference_audio=recording, reference_text="A tone.", seed=1, max_new_tokens=20)
    assert len({len(conversation) for conversation in conversations}) == 1
    conversations.clear()
    monkeypatch.setattr(engine, "trained_voices", ("anna",))
    engine.speak(text, seed=1, max_new_tokens=20)
    assert len({len(conversation) for conversation in conversations}) == 1


def test_wrong_pauses_are_refused_before_work(engine):
    for speak in (engine.speak, engine.stream, lambda text: LongSpeech(engine, text)):
        with pytest.raises(PromptError, match="a pause must be written as"):
            speak("One [pause:1] two.")


def test_temperature_zero_is_greedy(engine):
    one, other = (engine.speak(TEXT, seed=seed, temperature=0, ras_win_len=None, max_new_tokens=20) for seed in (1, 2))
    assert torch.equal(one.codes, other.codes)


@pytest.mark.parametrize("layout", ["boson", "transformers"])
@pytest.mark.parametrize("steps", [1, 2, 8, 9, 10, 11, 12])
def test_few_steps_give_little_or_no_audio(steps, layout, engines):
    speech = engines[layout].speak(TEXT, seed=1, temperature=0, max_new_tokens=steps)
    assert speech.finish_reason == "length"
    # The all-BOS frame and seven delayed ones come first; Boson's rule gives up the column that stands for EOS.
    frames = max(0, steps - 8 - (layout == "boson"))
    assert speech.codes.shape == (8, frames)
    assert speech.audio.shape == (960 * frames,)
    assert speech.audio.dtype == np.float32


def test_progress_counts_whole_frames(engine):
    seconds = []
    engine.speak(TEXT, seed=1, temperature=0, max_new_tokens=12, on_progress=seconds.append)
    assert seconds == [0.0] * 8 + [0.04, 0.08, 0.12, 0.16]


def test_a_reference_is_a_file_or_samples(engine, recording, samples):
    spoken = [
        engine.speak(TEXT, reference_audio=reference, reference_text="Hello.", seed=1, max_new_tokens=16)
        for reference in (recording, str(recording), (samples, RATE))
    ]
    assert torch.equal(spoken[0].codes, spoken[1].codes)
    assert torch.equal(spoken[0].codes, spoken[2].codes)
    assert spoken[0].usage["prompt_tokens"] > engine.speak(TEXT, max_new_tokens=1).usage["prompt_tokens"] + 25


def test_a_poor_reference_is_told(engine, tmp_path):
    soundfile.write(tmp_path / "anna.wav", syllables(2), RATE)
    options = {"max_new_tokens": 10, "seed": 1}
    message = r"it is short, with 2\.00 s of speech; expected at least 3 s; its words are not given"
    with pytest.warns(VoiceWarning, match=rf"anna\.wav: {message}") as caught:
        engine.speak(TEXT, reference_audio=tmp_path / "anna.wav", **options)
    assert caught[0].filename == __file__
    with pytest.warns(VoiceWarning, match=rf"the reference audio: {message}") as caught:
        engine.stream(TEXT, reference_audio=(syllables(2), RATE), **options)
    assert caught[0].filename == __file__
    with pytest.warns(VoiceWarning) as caught:
        engine.speak(TEXT, voice=[Voice(tmp_path / "anna.wav", "Two words."), Voice(profile="old")], **options)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error", VoiceWarning)
        integers = (32767 * syllables(5)).astype(np.int16)
        engine.speak(TEXT, reference_audio=(integers, RATE), reference_text="Words as many as fit into it.", **options)
        engine.speak(TEXT, voice=Voice(profile="old"), **options)


@pytest.mark.parametrize(
    ("reference", "error"),
    [
        (np.zeros(RATE, dtype=np.float32), r"needs its sampling_rate, in Hz: \(samples, sampling_rate\)"),
        (
            (np.zeros(RATE, dtype=np.float32),),
            r"audio must be a file's path, .*\(samples, sampling rate\).*, got tuple",
        ),
        (7, "audio must be a file's path, .*, got int"),
        (b"voice.wav", "the audio file can't be read as audio"),
    ],
)
def test_a_reference_of_another_type_is_refused(engine, reference, error):
    with pytest.raises(AudioError, match=error):
        engine.speak(TEXT, reference_audio=reference)


@pytest.mark.parametrize("layout", ["boson", "transformers"])
def test_what_the_model_reads(layout, engines, recording, tmp_path, monkeypatch):
    engine = engines[layout]
    prompts = []

    def generate_batch(model, requests):
        (request,) = requests
        assert request.convention == layout
        prompts.append(engine.model.tokenizer.decode(request.input_ids[0].tolist(), skip_special_tokens=False))
        assert [codes.shape[0] for codes in request.reference_codes] == [8] * prompts[-1].count("<|AUDIO_OUT|>")
        return [GenerationOutput([], [], "stop", 1, 0)]

    monkeypatch.setattr(pipeline, "generate_batch", generate_batch)
    (tmp_path / "voice.txt").write_text("Hello there.")
    engine.speak("你好，世界", voice="voice", voices_folder=tmp_path, scene="A room.")
    engine.speak("[SPEAKER0] a\n\n[SPEAKER1] b", voice="voice, voice", voices_folder=tmp_path)
    system = "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nGenerate audio following instruction."
    user, assistant = (f"<|eot_id|><|start_header_id|>{role}<|end_header_id|>\n\n" for role in ("user", "assistant"))
    audio = "<|audio_out_bos|><|AUDIO_OUT|><|audio_eos|>"
    assert prompts[0] == (
        f"{system}\n\n<|scene_desc_start|>\nA room.\n<|scene_desc_end|>{user}Hello there.{assistant}{audio}"
        f"{user}你好, 世界.{assistant}<|audio_out_bos|>"
    )
    assert prompts[1] == (
        f"{system}{user}[SPEAKER0] Hello there.{assistant}{audio}{user}[SPEAKER1] Hello there.{assistant}{audio}"
        f"{user}[SPEAKER0] a\n[SPEAKER1] b.{assistant}<|audio_out_bos|>"
    )


def test_codes_take_the_place_of_a_recording(engine, samples, recording, monkeypatch):
    system = Message("system", "Speak.")
    shown = [Message("user", "Hello."), Message("assistant", AudioContent(str(recording)))]
    options = {"force_audio_gen": True, "seed": 1, "max_new_tokens": 16}
    expected = engine.generate([system, *shown, Message("user", TEXT)], **options)
    codes = engine.audio_tokenizer.encode(samples, RATE)
    spoken = [system, *spoken_turns([("Hello.", codes)]), Message("user", TEXT)]
    monkeypatch.setattr(engine.audio_tokenizer, "encode", None)
    assert torch.equal(engine.generate(spoken, **options).codes, expected.codes)
    spoken = [system, *spoken_turns([("Hello.", codes.numpy())]), Message("user", TEXT)]
    assert torch.equal(engine.generate(spoken, **options).codes, expected.codes)
    for wrong, kind in ((codes.float(), "torch.float32"), (5, "int")):
        spoken = [system, *spoken_turns([("Hello.", wrong)]), Message("user", TEXT)]
        with pytest.raises(PromptError, match=f"codes must be integers in a tensor or an array, got {kind}"):
            engine.generate(spoken, **options)


def test_a_fingerprint_tells_models_apart(engine, engines, folder):
    fingerprints = {
        engine.fingerprint(),
        engines["transformers"].fingerprint(),
        HiggsAudio.from_pretrained(folder, dtype="float32" if engine.model.dtype is torch.bfloat16 else "bfloat16")
        .fingerprint(),
        HiggsAudio(engine.model, engine.audio_tokenizer, "boson").fingerprint(),
    }  # fmt: skip
    assert len(fingerprints) == 4
    assert HiggsAudio.from_pretrained(folder).fingerprint() == engine.fingerprint()
    table = engine.model.audio_table
    first = table[0, 0].clone()
    table[0, 0] += 1
    # Weights don't change after loading, so an engine keeps its fingerprint.
    changed = HiggsAudio(engine.model, engine.audio_tokenizer, engine.convention)
    assert changed.fingerprint() not in fingerprints
    table[0, 0] = first
    assert changed.fingerprint() not in fingerprints
    assert HiggsAudio(engine.model, engine.audio_tokenizer, engine.convention).fingerprint() == engine.fingerprint()


def test_the_embedded_voice_is_known(engine):
    assert not engine.is_embedded_voice
    assert HiggsAudio.from_pretrained().is_embedded_voice
    assert HiggsAudio.from_pretrained(pipeline.EMBEDDED_VOICE).is_embedded_voice


def test_voices_of_the_checkpoint_have_names(engine, monkeypatch):
    monkeypatch.delenv(VOICES_VARIABLE, raising=False)
    embedded = HiggsAudio.from_pretrained()
    assert embedded.trained_voices == ("feminine", "masculine", "scottish", "child")
    named = embedded.speak("Hello.", voice="masculine", seed=1)
    described = embedded.speak("Hello.", voice=Voice(profile="masculine"), seed=1)
    assert torch.equal(named.codes, described.codes)
    assert engine.trained_voices == ()
    with pytest.raises(PromptError, match="the folder of voices must be given"):
        engine.speak(TEXT, voice="masculine")


@pytest.mark.parametrize("voices", ['"anna"', "[1]", '[" "]', "{}"])
def test_a_wrong_list_of_voices_is_refused(tmp_path, voices):
    (tmp_path / "config.json").write_text(f'{{"{pipeline.VOICES_KEY}": {voices}}}')
    with pytest.raises(ConfigError, match="must be a list of names"):
        pipeline.read_trained_voices(tmp_path)


def test_a_reply_in_text_has_no_audio(engines):
    engine = engines["boson"]
    eot = engine.model.tokenizer.token_to_id("<|eot_id|>")
    text_ids = [*engine.model.tokenizer.encode("No.", add_special_tokens=False).ids, eot]
    speech = engine.speech(GenerationOutput([], text_ids, "stop", 10, 4))
    assert (speech.audio.shape, speech.audio.dtype) == ((0,), np.float32)
    assert (speech.codes.shape, speech.codes.dtype) == ((8, 0), torch.int64)
    assert (speech.text, speech.finish_reason, speech.duration) == ("No.", "stop", 0)


def test_generate_takes_a_conversation_and_may_answer_in_text(engines):
    sample = ChatMLSample([Message("user", "Hi.")])
    speech = engines["boson"].generate(sample, seed=1, max_new_tokens=5)
    assert speech.usage["completion_tokens"] <= 5
    assert len(speech.audio) == 960 * speech.codes.shape[1]


@pytest.mark.parametrize("frames", [0, 1, 2, 9])
@pytest.mark.parametrize("layout", ["boson", "transformers"])
def test_codes_come_back_from_a_delayed_segment(layout, frames, engines):
    engine = engines[layout]
    codes = torch.randint(0, 1024, (8, frames), generator=torch.Generator().manual_seed(frames))
    # What follows the codes of a row is EOS; transformers ends in a frame that is EOS throughout.
    delayed = build_delay_pattern(codes, engine.model.config).T.long()
    assert torch.equal(engine._codes(delayed), codes)
    if layout == "transformers" and frames:
        assert torch.equal(engine._codes(delayed[:, :-1]), codes)
        assert torch.equal(engine._codes(delayed[:, :-2])[:, : frames - 1], codes[:, : frames - 1])


def test_several_segments_are_joined(engines):
    engine = engines["boson"]
    parts = [torch.full((8, frames), frames) for frames in (3, 2)]
    segments = [build_delay_pattern(part, engine.model.config).T.long() for part in parts]
    speech = engine.speech(GenerationOutput([segments[0], segments[1][:, :5]], [], "length", 1, 1))
    assert torch.equal(speech.codes, parts[0])
    speech = engine.speech(GenerationOutput(segments, [], "stop", 1, 1))
    assert torch.equal(speech.codes, torch.cat(parts, dim=1))
    alone = [engine.audio_tokenizer.decode(part).numpy() for part in parts]
    assert np.array_equal(speech.audio, np.concatenate(alone))


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"text": "a <|eot_id|> b"}, "text"),
        ({"text": "《|eot_id|》"}, "text"),
        ({"text": TEXT, "scene": "<|scene_desc_end|>"}, "scene"),
        ({"text": TEXT, "voice": Voice("a.wav", "<|AUDIO_OUT|>")}, "reference text"),
        ({"text": TEXT, "voice": Voice(profile="<|eot_id|>")}, "profile"),
    ],
)
def test_special_tokens_of_end_users_are_refused(arguments, name, engine):
    with pytest.raises(PromptError, match=rf"{name} must be plain text, got the special token <\|"):
        engine.speak(**arguments)


@pytest.mark.parametrize(
    "parameters",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_p": 0},
        {"top_p": 2},
        {"top_k": -1},
        {"max_new_tokens": 0},
        {"seed": 2**64},
        {"ras_win_max_num_repeat": 0},
        {"max_new_tokens": 2.5},
        {"temperature": "0.3"},
    ],
)
def test_parameters_are_checked_before_anything_is_done(parameters, engine, recording, monkeypatch):
    def fail(*arguments, **options):
        raise AssertionError("the reference was encoded")

    monkeypatch.setattr(engine.audio_tokenizer, "encode", fail)
    with pytest.raises(ParameterError, match=next(iter(parameters))):
        engine.speak(TEXT, reference_audio=recording, **parameters)


def test_one_stop_string_is_no_list(engine):
    with pytest.raises(ParameterError, match="stop_strings must be a list of strings, got the string 'abc'"):
        engine.generate([Message("system", "a"), Message("user", "b")], stop_strings="abc")


def test_more_than_the_cache_holds(engine):
    with pytest.raises(PromptError, match=str(engine.model.max_cache_length)):
        engine.speak("a" * engine.model.max_cache_length)


def test_the_device_and_the_dtype(folder):
    assert HiggsAudio.from_pretrained(folder, dtype="float32").model.dtype == torch.float32
    assert HiggsAudio.from_pretrained(folder, device=torch.device("cpu"), dtype=torch.bfloat16)
    for device, message in (
        ("cuda:99", "device must be .*, got cuda:99: "),
        ("gpu", "device must be auto, cpu, cuda or cuda:N, got 'gpu'"),
        ("mps", "device must be auto, cpu, cuda or cuda:N, got 'mps'"),
    ):
        with pytest.raises(ParameterError, match=message):
            HiggsAudio.from_pretrained(folder, device=device)


def test_a_model_and_an_audio_tokenizer_that_do_not_fit(engine, monkeypatch):
    monkeypatch.setattr(type(engine.audio_tokenizer), "codebook_size", 30)
    with pytest.raises(CheckpointError, match="8 codebooks of 1024 codes, but the audio tokenizer has 8 of 30"):
        HiggsAudio(engine.model, engine.audio_tokenizer)


def test_a_model_without_a_tokenizer(folder, tmp_path):
    for file in folder.iterdir():
        if file.name != "tokenizer.json":
            (tmp_path / file.name).symlink_to(file)
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
        HiggsAudio.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("conversation", "message"),
    [
        ("hi", r"conversation must hold Message\(role, content\) only, got 'h'"),
        (None, r"conversation must be a list of Message\(role, content\), got None"),
        ([Message("user", 5)], "content of a user message must be str, TextContent or AudioContent, got 5"),
        ([Message("user", TextContent(5))], "text of a user message must be a string, got 5"),
        ([Message("user", "\ud800")], "text of a user message must be valid Unicode, got"),
    ],
)
def test_what_is_no_conversation(engines, conversation, message):
    with pytest.raises(PromptError, match=message):
        engines["boson"].generate(conversation)


def test_what_can_only_speak_must_be_told_to(engines):
    conversation = [Message("system", "Speak."), Message("user", TEXT)]
    with pytest.raises(PromptError, match="force_audio_gen must be True in the convention 'transformers', got False"):
        engines["transformers"].generate(conversation)
    voice = HiggsAudio.from_pretrained()
    voice = HiggsAudio(voice.model, voice.audio_tokenizer, "boson")
    with pytest.raises(CheckpointError, match=r"no text head .*; with force_audio_gen=True it speaks"):
        voice.generate(conversation)


@pytest.mark.parametrize("argument", ["path_or_name", "audio_tokenizer"])
def test_what_is_no_checkpoint(folder, argument):
    kind = "model" if argument == "path_or_name" else "audio tokenizer"
    arguments = {"path_or_name": folder, argument: 5}
    with pytest.raises(ParameterError, match=f"{kind} must be a string or a path, got 5"):
        HiggsAudio.from_pretrained(**arguments)
    arguments[argument] = "https://example.org/voice"
    with pytest.raises(
        CheckpointError, match=f"{kind} must be .*, got https://example.org/voice, which does not exist"
    ):
        HiggsAudio.from_pretrained(**arguments)


def test_the_published_audio_tokenizer_is_the_default(folder, tmp_path, monkeypatch):
    """A folder without `audio_tokenizer` in it asks the Hub."""
    for file in folder.iterdir():
        if file.is_file():
            (tmp_path / file.name).symlink_to(file)
    asked = []

    def from_pretrained(path_or_name, device):
        asked.append(path_or_name)
        raise CheckpointError("stop here")

    monkeypatch.setattr(pipeline.HiggsAudioTokenizer, "from_pretrained", from_pretrained)
    with pytest.raises(CheckpointError, match="stop here"):
        HiggsAudio.from_pretrained(tmp_path)
    assert asked == ["bosonai/higgs-audio-v2-tokenizer"]


def test_the_public_names_are_there():
    assert [name for name in higgs_native.__all__ if not hasattr(higgs_native, name)] == []
    assert higgs_native.HiggsAudio is HiggsAudio
