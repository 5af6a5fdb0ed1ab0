"""Where the text comes from, and how it is prepared."""

import io
import os
import sys
import threading

import numpy as np
import pytest
import soundfile

from tests.helpers.waiting import join
from tests.manuscript.voices import write_phoneme_voice


def test_the_text_comes_from_an_argument_a_file_or_standard_input(run, model, monkeypatch):
    (run.work / "text.txt").write_text("\ufeffHello, 世界.\n", encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("Hello, 世界.\n".encode())))
    options = ("--model", model, "--max-new-tokens", 16, "--temperature", 0, "--seed", 1)
    os.mkfifo(run.work / "pipe")  # what a shell makes of <(command)
    writer = threading.Thread(target=(run.work / "pipe").write_text, args=("Hello, 世界.\n", "utf-8"))
    writer.start()
    for index, text in enumerate(("Hello, 世界.", "text.txt", "-", "pipe")):
        assert run("speak", text, *options, "--out", f"{index}.wav")[0] == 0
    join(writer)
    assert len({(run.work / f"{index}.wav").read_bytes() for index in range(4)}) == 1


@pytest.mark.parametrize("text", ["-5 degrees.", "- Good morning.", "--5", "-5", "--- and so on", "-h ello = 3"])
def test_a_text_can_begin_with_a_dash(run, model, text, monkeypatch):
    options = ("--model", model, "--max-new-tokens", 16, "--seed", 1)
    assert run("speak", text, *options, "--out", "argument.wav")[0] == 0
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert run("speak", *options, "-", "--out", "input.wav")[0] == 0
    assert (run.work / "argument.wav").read_bytes() == (run.work / "input.wav").read_bytes()
    assert run("read", text, "--model", model, "--max-retries", 0, "--chunk-seconds", 2)[0] == 0


def test_a_word_that_is_the_name_of_a_folder_is_spoken(run, model):
    options = ("--model", model, "--max-new-tokens", 16, "--seed", 1)
    assert run("speak", "music", *options, "--out", "before.wav")[0] == 0
    (run.work / "music").mkdir()
    assert run("speak", "music", *options, "--out", "after.wav")[0] == 0
    assert (run.work / "before.wav").read_bytes() == (run.work / "after.wav").read_bytes()
    code, _, err = run("speak", "./music", *options)
    assert (code, err.count("\n")) == (2, 1)
    assert "got the folder ./music" in err


def test_a_long_text_is_no_file_name(run, model):
    assert run("speak", "Hello there. " * 50, "--model", model, "--max-new-tokens", 12)[0] == 0


@pytest.mark.parametrize("command", ["speak", "read"])
def test_a_text_is_prepared(run, model, command):
    pytest.importorskip("markdown_it")
    options = ("--model", model, "--seed", 1)
    assert run(command, "**It** cost $3 🎉.", *options, "--normalize", "--strip-markup", "--out", "a.wav")[0] == 0
    assert run(command, "It cost three dollars.", *options, "--out", "b.wav")[0] == 0
    assert (run.work / "a.wav").read_bytes() == (run.work / "b.wav").read_bytes()


@pytest.mark.parametrize("command", ["speak", "read"])
def test_a_lexicon_and_pauses(run, model, command):
    (run.work / "words.txt").write_text("nginx = engine x\n")
    options = ("--model", model, "--seed", 1)
    text = "<speak>This is nginx.<break time='1s'/>It runs.</speak>"
    assert run(command, text, *options, "--lexicon", "words.txt", "--out", "a.wav")[0] == 0
    assert run(command, "This is engine x. [pause:1s] It runs.", *options, "--out", "b.wav")[0] == 0
    assert (run.work / "a.wav").read_bytes()[-48000:] == (run.work / "b.wav").read_bytes()[-48000:]
    audio, rate = soundfile.read(run.work / "a.wav", dtype="int16")
    loud = np.flatnonzero(audio)
    assert np.diff(loud).max() == pytest.approx(rate, abs=2 * rate / 25)
    for bad, message in (
        ("a [pause:1] b", "a pause must be written"),
        ("a [speed:fast] b", "a speed must be written as [speed:1.2] or [speed], got '[speed:fast]'\n"),
        ("<speak><audio/></speak>", "SSML must hold"),
    ):
        code, _, err = run(command, bad, *options)
        assert code == 2
        assert err.startswith(f"error: {message}")


@pytest.mark.parametrize("command", ["speak", "read"])
def test_speeds(run, model, command):
    options = ("--model", model, "--seed", 1)
    for name, text in (
        ("normal", "It runs well."),
        ("slow", "[speed:0.5] It runs well."),
        ("ssml", "<speak><prosody rate='50%'>It runs well.</prosody></speak>"),
    ):
        assert run(command, text, *options, "--out", f"{name}.wav")[0] == 0
    normal, slow = (soundfile.info(run.work / f"{name}.wav").frames for name in ("normal", "slow"))
    assert slow == pytest.approx(2 * normal, rel=0.05)
    assert (run.work / "slow.wav").read_bytes()[-48000:] == (run.work / "ssml.wav").read_bytes()[-48000:]


@pytest.mark.parametrize("command", ["speak", "read"])
def test_words_that_a_voice_cannot_read_are_named(run, tmp_path, command):
    voice = write_phoneme_voice(tmp_path / "voice")
    code, _, err = run(command, "The 猫 cat.", "--model", voice, "--voice", "emma", "--seed", 1)
    assert code == 0
    assert "warning: the voice can't read, and leaves out: 猫\n" in err
    code, _, err = run(command, "The cat.", "--model", voice, "--seed", 1)
    assert (code, "can't read" in err) == (0, False)
    assert run("quantize", voice, "quantized", "--format", "int8")[0] == 0
    code, _, err = run(command, "The 猫 cat.", "--model", "quantized", "--seed", 1)
    assert "leaves out: 猫\n" in err
