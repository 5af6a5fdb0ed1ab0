"""What `speak` says, in which voice, and what it tells."""

import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

from higgs_native.cli.options import MODEL_NAME
from tests.audio.test_quality import syllables
from tests.cli.conftest import RATE, tone


def test_speak_writes_a_file(run, model):
    code, out, err = run("speak", "Hello there.", "--model", model, "--max-new-tokens", 20, "--seed", 1)
    assert code == 0
    assert out == ""
    assert "s of audio in" in err
    assert "real-time factor" in err
    assert "demonstration voice" not in err
    assert [file.name for file in run.work.iterdir()] == ["out.wav"]
    audio, rate = soundfile.read(run.work / "out.wav")
    assert rate == RATE
    assert 0 < len(audio) <= 960 * 20


def test_the_seed_and_the_parameters_reach_the_model(run, model):
    options = ("--model", model, "--max-new-tokens", 20, "--temperature", 1, "--top-k", 0, "--top-p", 1)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert run("speak", "Hello.", *options, "--seed", seed, "--out", f"{name}.flac")[0] == 0
    a, b, c = (soundfile.read(run.work / f"{name}.flac")[0] for name in "abc")
    np.testing.assert_array_equal(a, b)
    assert len(a) != len(c) or not np.array_equal(a, c)
    for name, ras in (("greedy", 0), ("same", 0)):
        assert (
            run(
                "speak",
                "Hello.",
                *options,
                "--seed",
                1,
                "--temperature",
                0,
                "--ras-win-len",
                ras,
                "--out",
                f"{name}.wav",
            )[0]
            == 0
        )
    assert (run.work / "greedy.wav").read_bytes() == (run.work / "same.wav").read_bytes()


@pytest.mark.parametrize("options", [("--out", "out.wav"), ("--stream", "out.pcm")])
def test_failures_of_the_speech_are_told_in_one_line(run, model, options):
    text = "It is a good day for a long walk in the mountains. " * 4
    code, _, err = run("speak", text, "--model", model, "--max-new-tokens", 60, *options)
    assert code == 0
    (warning,) = [line for line in err.splitlines() if line.startswith("warning: ")]
    assert warning == (
        f"warning: {options[1]}: no end (cut off at --max-new-tokens 60, or at the end of the cache), too short; "
        "higgs-native read speaks a text in chunks, and again those that fail"
    )


def test_good_speech_is_not_warned_of(run):
    _, _, err = run("speak", "Hello and welcome.", "--seed", 1)
    assert "warning" not in err


@pytest.mark.parametrize("options", [("--out", "out.wav"), ("--stream", "out.wav")])
def test_the_seed_that_was_drawn_is_told(run, model, options):
    arguments = ("speak", "Hello.", "--model", model, "--max-new-tokens", 20, "--temperature", 1, *options)
    code, _, err = run(*arguments)
    assert code == 0
    drawn = (run.work / "out.wav").read_bytes()
    seed = re.search(r", seed (\d+)$", err, re.MULTILINE)[1]
    assert run(*arguments, "--seed", seed)[0] == 0
    assert (run.work / "out.wav").read_bytes() == drawn


def test_a_limit_that_was_reached_is_told(run, model):
    _, _, err = run("speak", "Hello.", "--model", model, "--temperature", 0, "--max-new-tokens", 10)
    assert "cut off at --max-new-tokens 10" in err


def test_cloning_from_a_recording_and_from_the_folder_of_voices(run, model, monkeypatch):
    soundfile.write(run.work / "anna.wav", tone(1), RATE)
    (run.work / "anna.txt").write_text("Hello there.")
    options = ("--model", model, "--max-new-tokens", 16, "--temperature", 0, "--seed", 1)
    reference = ("--reference-audio", "anna.wav", "--reference-text", "Hello there.")
    assert run("speak", "Hi.", *options, *reference, "--out", "a.wav")[0] == 0
    assert run("speak", "Hi.", *options, "--voice", "anna", "--voices", ".", "--out", "b.wav")[0] == 0
    monkeypatch.setenv("HIGGS_NATIVE_VOICES", str(run.work))
    assert run("speak", "Hi.", *options, "--voice", "anna", "--scene", "A room.", "--out", "c.wav")[0] == 0
    a, b, c = ((run.work / f"{name}.wav").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_several_recordings_of_one_voice(run, model):
    (run.work / "anna").mkdir()
    reference = []
    for number in (1, 2):
        soundfile.write(run.work / "anna" / f"{number}.wav", tone(number), RATE)
        (run.work / "anna" / f"{number}.txt").write_text(f"Hello {number}.")
        reference += ["--reference-audio", f"anna/{number}.wav", "--reference-text", f"Hello {number}."]
    options = ("--model", model, "--max-new-tokens", 16, "--temperature", 0, "--seed", 1)
    assert run("speak", "Hi.", *options, *reference, "--out", "a.wav")[0] == 0
    assert run("speak", "Hi.", *options, "--voice", "anna", "--voices", ".", "--out", "b.wav")[0] == 0
    assert run("speak", "Hi.", *options, *reference[:4], "--out", "c.wav")[0] == 0
    a, b, c = ((run.work / f"{name}.wav").read_bytes() for name in "abc")
    assert a == b
    assert a != c
    code, _, err = run("speak", "Hi.", *options, *reference[:-2])
    assert code == 2
    assert "--reference-text must be given once per --reference-audio, got 1 for 2" in err


def test_a_poor_reference_is_told_once_and_early(run, model):
    soundfile.write(run.work / "anna.wav", syllables(2), RATE)
    for more in ((), ("--stream", "out.pcm")):
        arguments = ("Hi.", "--model", model, "--reference-audio", "anna.wav", "--max-new-tokens", 16, *more)
        code, _, err = run("speak", *arguments)
        assert code == 0
        lines = err.splitlines()
        assert lines[0] == "warning: anna.wav: it is short, with 2.00 s of speech; expected at least 3 s"
        assert lines[1] == "warning: anna.wav: its words are not given; with them a clone is closer"
        assert err.count("it is short") == 1


def test_without_a_model_the_embedded_voice_speaks(run):
    code, _, err = run("speak", "Hello and welcome.", "--seed", 1)
    assert code == 0
    assert "embedded demonstration voice" in err
    assert MODEL_NAME in err
    audio, rate = soundfile.read(run.work / "out.wav")
    assert rate == RATE
    assert 0.5 < len(audio) / rate < 4
    assert "cut off" not in err
    # It comes with the package: nothing is written but the file.
    assert [file.name for file in run.work.iterdir()] == ["out.wav"]


def test_speech_is_played_when_it_is_written(run, model, monkeypatch):
    played = []

    def play(samples, rate):
        assert Path("out.wav").is_file()
        played.append((samples, rate))

    monkeypatch.setattr("higgs_native.speech.play", play)
    assert run("speak", "Hi.", "--model", model, "--max-new-tokens", 30, "--play")[0] == 0
    ((samples, rate),) = played
    written, _ = soundfile.read("out.wav", dtype="float32")
    assert rate == RATE
    np.testing.assert_allclose(written, samples, rtol=0, atol=1e-4)
    code, _, err = run("speak", "Hi.", "--stream", "out.pcm", "--play")
    assert (code, err) == (2, "error: --play must not be given with --stream, got True\n")
