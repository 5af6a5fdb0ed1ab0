"""The files of `speak` and `read`: format, loudness, speed and subtitles; standard output."""

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile

import higgs_native
from higgs_native.audio.loudness import integrated_loudness


@pytest.mark.parametrize(("format", "kind"), [(None, "WAV"), ("flac24", "FLAC"), ("mp3", "MP3")])
def test_standard_output_takes_the_file(model, tmp_path, format, kind):
    options = [] if format is None else ["--format", format]
    arguments = ["speak", "Hello there.", "--model", model, "--max-new-tokens", "20", "--seed", "1", "--out", "-"]
    process = subprocess.run(
        [sys.executable, "-m", "higgs_native", *arguments, *options],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(higgs_native.__file__).parent.parent)},
        capture_output=True,
        check=True,
    )
    with soundfile.SoundFile(io.BytesIO(process.stdout)) as file:
        assert (file.format, file.title) == (kind, "Hello there.")
        assert file.comment == f"model {model.name}, seed 1"
        assert 0 < file.frames <= 960 * 20
    assert b"s of audio in" in process.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_terminal_gets_no_audio(run, model, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    code, _, err = run("speak", "Hello.", "--model", model, "--out", "-")
    assert code == 2
    assert err == "error: --out must be a file, or - with a pipe behind it, got -, which is the terminal\n"


@pytest.mark.parametrize("command", ["speak", "read"])
def test_the_output_has_a_format_a_loudness_and_a_speed(run, model, command):
    pytest.importorskip("av")
    options = ("--model", model, "--seed", 1, "--format", "wav24", "--loudness", -23)
    for name, speed in (("slow", 1), ("fast", 1.5)):
        code, _, err = run(command, "Hello there.", *options, "--speed", speed, "--out", f"{name}.wav")
        assert code == 0, err
    (slow, rate), (fast, _) = (soundfile.read(run.work / f"{name}.wav") for name in ("slow", "fast"))
    assert soundfile.info(run.work / "slow.wav").subtype == "PCM_24"
    assert len(slow) / len(fast) == pytest.approx(1.5, rel=0.05)
    assert integrated_loudness(slow, rate) == pytest.approx(-23, abs=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--format", "m4a"), "format must be one of wav, wav24, wav_float, flac, flac24, mp3, ogg, opus, got 'm4a'"),
        (("--out", "a.mp3", "--format", "wav"), "path must end in .wav for the format wav, got a.mp3"),
        (("--loudness", "3"), "loudness must be between -70 and 0 LUFS, got 3.0"),
        (("--speed", "9"), "speed must be between 0.25 and 4, got 9.0"),
    ],
)
@pytest.mark.parametrize("command", ["speak", "read"])
def test_wrong_outputs_are_told_before_work(run, command, options, message):
    code, _, err = run(command, "Hello.", *options)
    assert (code, err) == (2, f"error: {message}\n")


@pytest.mark.parametrize("command", ["speak", "read"])
def test_subtitles(run, model, command):
    options = ("--model", model, "--seed", 1)
    assert run(command, "Hello there. It is good.", *options, "--subtitles", "out.srt")[0] == 0
    assert re.findall("[A-Z].*", (run.work / "out.srt").read_text()) == ["Hello there.", "It is good."]
    assert run(command, "Hello there.", *options, "--subtitles", "out.vtt", "--subtitle-words")[0] == 0
    assert re.findall("[A-Za-z].*", (run.work / "out.vtt").read_text()) == ["WEBVTT", "Hello", "there."]
    code, _, err = run(command, "Hello.", *options, "--subtitles", "out.txt")
    assert (code, err) == (2, "error: subtitles must end in .srt, .vtt, got out.txt\n")
