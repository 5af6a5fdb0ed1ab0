"""Long texts, spoken by the embedded voice and by a fake model."""

import itertools
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch

from higgs_native import pipeline
from higgs_native.errors import GenerationError, ParameterError, PromptError
from higgs_native.generation.sampling_params import SamplingParams
from higgs_native.long_form import long_speech, saving
from higgs_native.long_form.joining import EDGE_SECONDS
from higgs_native.long_form.long_speech import LongSpeech
from higgs_native.long_form.settings import Pauses
from higgs_native.prompt.messages import AudioContent
from higgs_native.prompt.pace import spoken_seconds
from tests.long_form.conftest import RATE, TEXT


# The references here are tones.
pytestmark = pytest.mark.filterwarnings("ignore::higgs_native.VoiceWarning")


def test_chunks_are_the_speech(engine, whole, tmp_path):
    _, chunks = whole
    speech = LongSpeech(engine, TEXT, seed=1, pauses=Pauses(paragraph=1, turn=0, sentence=0.5))
    assert len(speech) == len(speech.chunks) == len(chunks) == 7
    speech.save(tmp_path / "book.wav")
    with_pauses = list(speech)
    assert [chunk.index for chunk in with_pauses] == list(range(7))
    assert [chunk.text for chunk in with_pauses] == speech.chunks
    assert [chunk.text.boundary for chunk in with_pauses] == [
        "paragraph", "sentence", "paragraph", "sentence", "paragraph", "sentence", "sentence"
    ]  # fmt: skip
    read, rate = soundfile.read(tmp_path / "book.wav", dtype="int16")
    assert rate == RATE
    np.testing.assert_array_equal(read, np.concatenate([chunk.pcm for chunk in with_pauses]))
    for chunk, same, pause in zip(with_pauses, chunks, (0, 0.5, 1, 0.5, 1, 0.5, 0.5), strict=True):
        silence = round(pause * RATE)
        assert not chunk.pcm[:silence].any()
        voiced = np.flatnonzero(np.abs(chunk.audio) > 0.01 * np.abs(chunk.audio).max())
        assert silence <= voiced[0] <= silence + EDGE_SECONDS * RATE + 1
        assert len(chunk.pcm) - voiced[-1] <= EDGE_SECONDS * RATE + 2
        np.testing.assert_array_equal(chunk.pcm[-1000:], same.pcm[-1000:])
        assert chunk.audio.dtype == np.float32
        assert np.array_equal((chunk.audio * 32768).astype(np.int16), chunk.pcm)
        assert chunk.duration == len(chunk.pcm) / RATE
        assert torch.equal(chunk.codes, same.codes)
        assert chunk.codes.dtype == torch.int64


def test_progress_counts_each_chunk_and_may_end_the_run(engine):
    reported = []
    first = next(iter(LongSpeech(engine, TEXT, seed=1, on_progress=reported.append)))
    assert reported == sorted(reported)
    assert reported[-1] == pytest.approx(first.attempts[0].duration, abs=0.05)  # EOS counts

    def leave(seconds):
        if seconds > 0.2:
            raise KeyError(seconds)

    speech = LongSpeech(engine, TEXT, seed=1, on_progress=leave)
    with pytest.raises(KeyError):
        next(iter(speech))
    assert speech.num_finished == 0


def test_cancelled_speech_ends_within_its_first_chunk(engine):
    before = engine.model.engine.metrics
    asked = itertools.count()
    speech = LongSpeech(engine, TEXT, seed=1, is_cancelled=lambda: next(asked) > 5)
    with pytest.raises(GenerationError, match="cancelled"):
        next(iter(speech))
    after = engine.model.engine.metrics
    assert speech.num_finished == 0
    assert after.frames - before.frames < 12
    assert after.aborted == before.aborted + 1


def test_embedded_voice_speaks_all_of_it(whole):
    _, chunks = whole
    for chunk in chunks:
        assert chunk.failures == ()
        assert chunk.seed == 1 + 1000 * chunk.index + chunk.kept
    paces = [chunk.attempts[chunk.kept].duration / spoken_seconds(chunk.text.text) for chunk in chunks]
    assert 0.75 < np.median(paces) < 1.15


def test_same_seed_gives_the_same_bytes(engine, whole, tmp_path):
    folder, _ = whole
    assert len(list(LongSpeech(engine, TEXT, tmp_path / "same", seed=1))) == 7
    assert {file.name for file in folder.iterdir()} == {file.name for file in (tmp_path / "same").iterdir()}
    for file in folder.iterdir():
        assert (tmp_path / "same" / file.name).read_bytes() == file.read_bytes()
    other = next(iter(LongSpeech(engine, TEXT, seed=2)))
    assert other.pcm.tobytes() != soundfile.read(folder / "00000.wav", dtype="int16")[0].tobytes()


def test_temporary_folder_is_deleted(engine, fake):
    fake()
    speech = LongSpeech(engine, TEXT)
    list(speech)
    folder = speech.folder
    assert folder.is_dir()
    del speech
    assert not folder.exists()


def test_bad_input_makes_no_folder(engine, tmp_path):
    folder = tmp_path / "parts"
    for error, changes, message in (
        (PromptError, {"text": " "}, "something to say"),
        (PromptError, {"text": "Hi <|eot_id|>"}, "special token"),
        (PromptError, {"text": b"Hi"}, "text must be a string, got b'Hi'"),
        (PromptError, {"scene": 3}, "scene must be a string, got 3"),
        (PromptError, {"voice": "anna"}, "folder of voices"),
        (ParameterError, {"chunk_seconds": 100}, "chunk_seconds must be between 2 and 30, got 100"),
        (ParameterError, {"context_chunks": -1}, "context_chunks must be at least 0, got -1"),
        (ParameterError, {"max_retries": 1000}, "max_retries must be between 0 and 999, got 1000"),
        (ParameterError, {"chunk_seconds": "9"}, "chunk_seconds must be a number, got '9'"),
        (ParameterError, {"context_chunks": 1.5}, "context_chunks must be an integer or None, got 1.5"),
        (ParameterError, {"parallel": 0}, "parallel must be at least 1, got 0"),
        (ParameterError, {"parallel": "8"}, "parallel must be an integer or None, got '8'"),
        (
            ParameterError,
            {"parallel": 4, "context_chunks": 1},
            "context_chunks must be 0 if parallel is 4, got 1",
        ),
        (ParameterError, {"max_retries": None}, "max_retries must be an integer, got None"),
        (ParameterError, {"temperature": -1}, "temperature"),
        (ParameterError, {"seed": 2**64}, "seed"),
        (ParameterError, {"folder": 3}, "folder must be a string or a path, got 3"),
        (ParameterError, {"folder": "a\0b"}, r"folder must be a path without zero bytes, got"),
    ):
        with pytest.raises(error, match=message):
            LongSpeech(engine, **({"text": TEXT, "folder": folder} | changes))
    assert not folder.exists()


def test_failed_chunk_is_spoken_again(engine, fake):
    # Chunk 1 is good at the third attempt, chunk 2 never, though its second attempt is the best.
    script = {1010: "short", 1011: "endless", 2010: "short", 2011: "endless", 2012: "nothing", 2013: "short"}
    model = fake(lambda seed: script.get(seed, "good"))
    text = "The first of four.\n\nThe second of four.\n\nThe third of four.\n\nThe fourth of four."
    speech = LongSpeech(engine, text, seed=10, context_chunks=1)
    chunks = list(speech)
    assert [len(chunk.attempts) for chunk in chunks] == [1, 3, 4, 1]
    assert [seed for _, seed, *_ in model.calls] == [10, 1010, 1011, 1012, 2010, 2011, 2012, 2013, 3010]
    assert [attempt.failures for attempt in chunks[1].attempts] == [("too short",), ("no end",), ()]
    assert chunks[1].seed == 1012
    assert chunks[1].failures == ()
    assert chunks[2].seed == 2011
    assert chunks[2].failures == ("no end",)
    # A failed chunk is no context.
    assert model.conversations[-1][1::2] == ["The first of four.", "The second of four.", "The fourth of four."]
    # The attempts are kept in the folder.
    assert [chunk.attempts for chunk in speech] == [chunk.attempts for chunk in chunks]


def test_attempt_with_the_fewest_failures_is_kept(engine, fake, monkeypatch):
    failures = iter([["silence", "no end"], ["silence"], ["no end", "too short"]])
    monkeypatch.setattr(pipeline, "detect_failures", lambda *arguments: tuple(next(failures)))
    fake()
    (chunk,) = LongSpeech(engine, "One.", seed=0, max_retries=2)
    assert (chunk.kept, chunk.failures) == (1, ("silence",))


def test_strict(engine, fake, tmp_path):
    model = fake(lambda seed: "short" if seed // 1000 == 1 else "good")
    speech = LongSpeech(engine, "The first one.\n\nThe second one.", tmp_path, seed=0, max_retries=1, strict=True)
    expected = re.escape(
        "chunk 1 failed with every seed: too short (seed 1000); too short (seed 1001); its text is 'The second one.'"
    )
    with pytest.raises(GenerationError, match=expected):
        list(speech)
    # The folder holds the chunk: it is not spoken again, is still refused, and without `strict` the run continues.
    calls = len(model.calls)
    with pytest.raises(GenerationError, match=expected):
        list(speech)
    assert len(list(LongSpeech(engine, "The first one.\n\nThe second one.", tmp_path, max_retries=1))) == 2
    assert len(model.calls) == calls == 3


def test_greedy_attempts_are_not_repeated(engine, fake, monkeypatch):
    model = fake(lambda seed: "short")
    speech = model.speech
    monkeypatch.setattr(model, "speech", lambda messages, seed: speech(messages, 0))
    (chunk,) = LongSpeech(engine, "The first one.", seed=0, temperature=0)
    assert len(chunk.attempts) == 2


def test_speech_without_audio_is_an_empty_chunk(engine, fake, tmp_path):
    fake(lambda seed: "nothing" if seed < 1000 else "good")
    speech = LongSpeech(engine, "The first one.\n\nThe second one.", seed=0, pauses=Pauses(paragraph=0))
    first, second = speech
    assert first.failures == ("too short",)
    assert len(first.pcm) == 0
    speech.save(tmp_path / "out.flac")
    assert soundfile.info(tmp_path / "out.flac").frames == len(second.pcm)


def test_seeds_wrap_after_the_largest(engine, fake):
    model = fake()
    list(LongSpeech(engine, "One.\n\nTwo.", seed=2**64 - 1))
    assert [seed for _, seed, *_ in model.calls] == [2**64 - 1, 999]


def test_arguments_of_generation(engine, fake):
    model = fake()
    list(LongSpeech(engine, "The first one.", temperature=0.7, top_k=None, top_p=0.8, ras_win_len=None))
    _, seed, sampling = model.calls[0]
    max_new_tokens = sampling.max_new_tokens
    assert sampling == SamplingParams(0.7, None, 0.8, None, seed=seed, max_new_tokens=max_new_tokens)
    # The maximum duration, and the frames without audio.
    assert 25 * long_speech.max_seconds("The first one.") + 10 <= max_new_tokens < 25 * 6


def test_wav_has_a_maximum_size(engine, fake, tmp_path, monkeypatch):
    fake()
    monkeypatch.setattr(saving, "_MAX_WAV_BYTES", 10_000)
    speech = LongSpeech(engine, TEXT)
    with pytest.raises(ParameterError, match=r"out\.wav must be \.flac, .* over 10000 bytes, got"):
        speech.save(tmp_path / "out.wav")
    speech.save(tmp_path / "out.flac")
    assert [file.name for file in tmp_path.iterdir()] == ["out.flac"]


def test_save_checks_the_path_first(engine, fake, tmp_path):
    model = fake()
    with pytest.raises(ParameterError, match="path must end in"):
        LongSpeech(engine, TEXT).save(tmp_path / "out.aac")
    assert not model.calls


def test_text_chunks_and_audio_contents_compare():
    """Codes are left out of the comparison, since that of tensors is no single value."""
    one, two = (AudioContent(codes=torch.zeros(8, 3)) for _ in range(2))
    assert one == two
    assert replace(one, audio_url="a") != two


def test_pauses_of_the_text_replace_those_of_boundaries(engine):
    text = "The sun rises. [pause:1s]\n\n[pause:500ms] The water is cold. It is clear. [pause:9s]"
    speech = LongSpeech(engine, text, seed=1)
    assert [(chunk.text, chunk.pause) for chunk in speech.chunks] == [
        ("The sun rises.", None),
        ("The water is cold.", 1.5),
        ("It is clear.", None),
    ]
    first, second, third = speech
    plain = list(LongSpeech(engine, "The sun rises.\n\nThe water is cold. It is clear.", seed=1))
    assert not second.pcm[: round(1.5 * RATE)].any()
    for chunk, other, cut, other_cut in zip((first, second, third), plain, (0, 1.5, 0), (0, 0.7, 0), strict=True):
        expected = other.pcm[round(other_cut * RATE) :]
        np.testing.assert_array_equal(chunk.pcm[round(cut * RATE) :], expected)


def test_the_record_of_a_text_without_pauses_has_none(engine, tmp_path):
    LongSpeech(engine, "The sun rises.", tmp_path / "parts", seed=1)
    (chunk,) = json.loads((tmp_path / "parts" / "run.json").read_text())["inputs"]["text"]
    assert chunk == {"text": "The sun rises.", "tag": "", "boundary": "paragraph"}
