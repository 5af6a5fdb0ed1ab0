"""Speech as a stream of raw samples."""

import io
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile

import higgs_native
from higgs_native.cli.output import check_stream_path
from higgs_native.errors import ParameterError
from tests.helpers.waiting import join


def test_a_stream_is_the_speech_as_raw_samples(run, model, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(higgs_native.__file__).parent.parent))
    options = ("--model", model, "--max-new-tokens", 40, "--seed", 1)
    assert run("speak", "Hello there.", *options)[0] == 0
    expected, _ = soundfile.read(run.work / "out.wav", dtype="int16")
    (run.work / "out.wav").unlink()
    code, _, err = run("speak", "Hello there.", *options, "--stream", "out.pcm")
    assert code == 0
    assert "the first after" in err
    assert [file.name for file in run.work.iterdir()] == ["out.pcm"]
    streamed = np.fromfile(run.work / "out.pcm", "<i2")
    np.testing.assert_allclose(streamed, expected, rtol=0, atol=1)  # libsndfile rounds down

    arguments = [
        sys.executable,
        "-m",
        "higgs_native",
        "speak",
        "Hello there.",
        *map(str, options),
        "--stream",
        "-",
    ]
    finished = subprocess.run(arguments, capture_output=True, check=True)
    np.testing.assert_array_equal(np.frombuffer(finished.stdout, "<i2"), streamed)
    # A reader that has heard enough.
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0) as process:
        process.stdout.read(100)
        process.stdout.close()
        errors = process.stderr.read().decode()
    assert process.returncode == 0, errors
    assert "Traceback" not in errors


def test_a_stream_can_not_be_written_to_a_folder(run, model):
    for path in (".", "missing/out.pcm"):
        code, out, err = run("speak", "Hello.", "--model", model, "--stream", path)
        assert (code, out) == (2, "")
        assert err.startswith("error: --stream must be a file, a named pipe, or -, got ")


def test_what_stands_in_a_streams_file_is_kept_until_there_is_audio(run, model):
    (run.work / "out.pcm").write_bytes(b"earlier")
    assert run("speak", "Hi.", "--model", model, "--stream", "out.pcm", "--top-p", 2)[0] == 2
    assert (run.work / "out.pcm").read_bytes() == b"earlier"
    assert run("speak", "Hi.", "--model", model, "--stream", "out.pcm", "--max-new-tokens", 30)[0] == 0
    assert len((run.work / "out.pcm").read_bytes()) % 1920 == 0


def test_a_stream_can_go_through_a_named_pipe(run, model):
    os.mkfifo(run.work / "pipe")
    heard = []
    reader = threading.Thread(target=lambda: heard.append((run.work / "pipe").read_bytes()))
    reader.start()
    code, _, err = run("speak", "Hi.", "--model", model, "--stream", "pipe", "--max-new-tokens", 30)
    assert code == 0, err
    join(reader)
    assert len(heard[0]) == 22 * 1920


@pytest.mark.parametrize("option", [("--format", "wav"), ("--loudness", "-16.0"), ("--speed", "2.0")])
def test_a_stream_takes_no_option_of_files(run, option):
    code, _, err = run("speak", "Hello.", "--stream", "out.pcm", *option)
    assert (code, err) == (2, f"error: {option[0]} must not be given with --stream, got {option[1]}\n")


def test_a_stream_needs_a_standard_output_with_a_descriptor(monkeypatch):
    monkeypatch.setattr("sys.stdout", io.StringIO())
    with pytest.raises(ParameterError, match="--stream must be a file, got -, and standard output is none"):
        check_stream_path(Path("-"))
