"""Texts that are spoken: the result, the seed, pauses, progress, and what is refused before work."""

import sys

import numpy as np
import pytest
import torch

from higgs_native.audio.samples import pcm_samples
from higgs_native.audio.tempo import steady_at_speed
from higgs_native.errors import ParameterError, PromptError
from higgs_native.long_form.long_speech import LongSpeech
from higgs_native.pipeline import HiggsAudio
from higgs_native.prompt.voices import Voice
from tests.pipeline.conftest import RATE, TEXT


# Most references here are a second of a tone.
pytestmark = pytest.mark.filterwarnings("ignore::higgs_native.VoiceWarning")


@pytest.mark.parametrize("convention", ["boson", "transformers"])
def test_speech(convention, engines):
    speech = engines[convention].speak(TEXT, seed=1, max_new_tokens=40)
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


@pytest.mark.parametrize("name", ["boson", "transformers"])
def test_each_part_has_its_speed(engines, name):
    engine = engines[name]
    text = "The sun rises. [speed:2] In the east. [pause:1s] And it [speed:0.5] sets."
    options = {"seed": 1, "max_new_tokens": 30}
    reports = []
    speech = engine.speak(text, **options, on_progress=reports.append)
    normal_text = "The sun rises. [pause:0s] In the east. [pause:1s] And it [pause:0s] sets."
    normal = engine.speak(normal_text, **options)
    assert torch.equal(speech.codes, normal.codes)
    assert speech.failures == normal.failures
    # The last frames of a part make up for what the filter leaves out.
    assert np.diff(reports).min() > -0.06
    assert reports[-1] == pytest.approx(speech.duration, abs=0.2)
    spans = speech.spans
    assert [span.text for span in spans] == ["The sun rises.", "In the east.", "And it.", "sets."]
    assert " ".join(span.text for span in spans) == speech.script
    at_normal_speed = engine.stream(normal_text, **options)
    list(at_normal_speed)
    begins = [*(begin for _, begin in at_normal_speed.script), len(normal.audio)]
    lengths = np.diff(begins) - [0, RATE, 0, 0]
    for span, length, speed in zip(spans, lengths, (1, 2, 2, 0.5), strict=True):
        assert span.end - span.begin == pytest.approx(length / speed, rel=0.05)
    np.testing.assert_array_equal(speech.audio[: spans[0].end], normal.audio[: lengths[0]])
    begins = [0, spans[0].end, spans[1].end + RATE, spans[2].end]
    assert ([span.begin for span in spans], spans[3].end) == (begins, len(speech.audio))

    stream = engine.stream(text, **options)
    chunks = list(stream)
    np.testing.assert_array_equal(np.concatenate([chunk.samples for chunk in chunks]), speech.audio)
    positions = np.cumsum([0, *(len(chunk.samples) for chunk in chunks[:-1])])
    assert [chunk.start_frame for chunk in chunks] == [position // 960 for position in positions]
    assert [chunk.is_last for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert stream.script == [(span.text, span.begin) for span in spans]
    assert torch.equal(stream.codes, speech.codes)
    assert stream.failures == speech.failures


def test_one_speed_for_the_whole_is_that_of_the_file(engine):
    options = {"seed": 1, "max_new_tokens": 30}
    normal = engine.speak(TEXT, **options)
    fast = engine.speak(f"[speed:1.5] {TEXT}", **options)
    np.testing.assert_array_equal(pcm_samples(fast.audio), steady_at_speed(pcm_samples(normal.audio), RATE, 1.5))
    assert torch.equal(fast.codes, normal.codes)
    assert (fast.script, fast.failures) == (normal.script, normal.failures)
    for text in (f"[speed:1] {TEXT} [speed:3]", TEXT.replace(" rises", " [speed] rises")):
        assert engine.speak(text, **options) == normal


def test_subtitles_are_in_each_part_of_a_speed(engine, tmp_path):
    text = "The sun rises in the east. [speed:0.25] It is cold. [pause:1s] [speed:4] And it sets."
    speech = engine.speak(text, seed=1, max_new_tokens=60)
    for speed in (1, 2):
        speech.save_subtitles(tmp_path / "a.srt", words=True, speed=speed)
        words = [block.splitlines()[1:] for block in (tmp_path / "a.srt").read_text().split("\n\n")]
        times = {word: [_seconds(time) for time in span.split(" --> ")] for span, word in words}
        for (first, last), span in zip(
            (("The", "east."), ("It", "cold."), ("And", "sets.")), speech.spans, strict=True
        ):
            assert times[first][0] == pytest.approx(span.begin / RATE / speed, abs=1e-3)
            assert times[last][1] == pytest.approx(span.end / RATE / speed, abs=1e-3)


def _seconds(timestamp):
    hours, minutes, seconds = timestamp.replace(",", ".").split(":")
    return 3600 * int(hours) + 60 * int(minutes) + float(seconds)


@pytest.mark.parametrize(
    ("tag", "message"),
    [("[speed:fast]", "a speed must be written as"), ("[speed:9]", "a speed must be between 0.25 and 4, got")],
)
def test_wrong_speeds_are_refused_before_work(engine, monkeypatch, tmp_path, tag, message):
    monkeypatch.setattr(engine.model, "engine", None)
    text = f"One {tag} two."
    for speak in (engine.speak, engine.stream, lambda text: LongSpeech(engine, text, tmp_path / "parts")):
        with pytest.raises(PromptError, match=message):
            speak(text)
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "av", None)
            with pytest.raises(ParameterError, match="speed must be 1 without PyAV, got 2"):
                speak("One [speed:2] two.")
    assert not (tmp_path / "parts").exists()


def test_temperature_zero_is_greedy(engine):
    one, other = (engine.speak(TEXT, seed=seed, temperature=0, ras_win_len=None, max_new_tokens=20) for seed in (1, 2))
    assert torch.equal(one.codes, other.codes)


@pytest.mark.parametrize("convention", ["boson", "transformers"])
@pytest.mark.parametrize("steps", [1, 2, 8, 9, 10, 11, 12])
def test_few_steps_give_little_or_no_audio(steps, convention, engines):
    speech = engines[convention].speak(TEXT, seed=1, temperature=0, max_new_tokens=steps)
    assert speech.finish_reason == "length"
    # The all-BOS frame and seven delayed ones come first; Boson's convention gives up the column that stands for EOS.
    frames = max(0, steps - 8 - (convention == "boson"))
    assert speech.codes.shape == (8, frames)
    assert speech.audio.shape == (960 * frames,)
    assert speech.audio.dtype == np.float32


def test_progress_counts_whole_frames(engine):
    seconds = []
    engine.speak(TEXT, seed=1, temperature=0, max_new_tokens=12, on_progress=seconds.append)
    assert seconds == [0.0] * 8 + [0.04, 0.08, 0.12, 0.16]


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"text": "a <|eot_id|> b"}, "text"),
        ({"text": "《|eot_id|》 a"}, "text"),
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


def test_more_than_the_cache_holds(engine):
    with pytest.raises(PromptError, match=str(engine.model.max_cache_length)):
        engine.speak("a" * engine.model.max_cache_length)
