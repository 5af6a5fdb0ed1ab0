import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

import higgs_native
from higgs_native import HiggsAudio
from higgs_native.cli import main, voices
from higgs_native.cli.options import MODEL_NAME
from higgs_native.cli.quantize import size_text
from higgs_native.errors import ParameterError
from higgs_native.generation.sampler import SamplerState
from higgs_native.generation.sampling_params import SamplingParams
from higgs_native.testing.random_checkpoint import write_demo_checkpoint
from higgs_native.utils.files import locked
from tests.audio.test_quality import syllables


RATE = 24000


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    write_demo_checkpoint(folder)
    return folder


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """Runs the command in an empty folder; returns its exit code, standard output and standard error."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("HIGGS_NATIVE_VOICES", raising=False)
    monkeypatch.delenv("HIGGS_NATIVE_TRACEBACK", raising=False)

    def run(*arguments):
        with pytest.raises(SystemExit) as exit:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return exit.value.code, captured.out, captured.err

    run.work = work
    return run


def tone(seconds):
    return (0.5 * np.sin(2 * np.pi * 220 / RATE * np.arange(round(RATE * seconds)))).astype(np.float32)


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
            run("speak", "Hello.", *options, "--temperature", 0, "--ras-win-len", ras, "--out", f"{name}.wav")[0] == 0
        )
    assert (run.work / "greedy.wav").read_bytes() == (run.work / "same.wav").read_bytes()


def test_the_text_comes_from_an_argument_a_file_or_standard_input(run, model, monkeypatch):
    (run.work / "text.txt").write_text("\ufeffHello, 世界.\n", encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("Hello, 世界.\n".encode())))
    options = ("--model", model, "--max-new-tokens", 16, "--temperature", 0)
    os.mkfifo(run.work / "pipe")  # what a shell makes of <(command)
    writer = threading.Thread(target=(run.work / "pipe").write_text, args=("Hello, 世界.\n", "utf-8"))
    writer.start()
    for index, text in enumerate(("Hello, 世界.", "text.txt", "-", "pipe")):
        assert run("speak", text, *options, "--out", f"{index}.wav")[0] == 0
    writer.join(5)
    assert len({(run.work / f"{index}.wav").read_bytes() for index in range(4)}) == 1


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
        "higgs_native.cli",
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
    reader.join(5)
    assert code == 0, err
    assert len(heard[0]) == 22 * 1920


def test_an_unknown_instruction_set_is_one_line_too(run_python):
    process = run_python("from higgs_native.cli import main; main(['info'])", HIGGS_NATIVE_ISA="sse9")
    assert process.returncode == 2
    assert process.stderr == "error: HIGGS_NATIVE_ISA must be generic, avx2, avx512 or avx512_bf16, got sse9\n"


BOOK = 'The sun rises in the east.\n\n"Good morning," she said. They drink tea.\n\nIt is cold.'


def test_read_speaks_a_book(run):
    (run.work / "book.txt").write_text(BOOK, encoding="utf-8")
    code, out, err = run("read", "book.txt", "--seed", 1, "--out", "book.wav", "--folder", "parts")
    assert (code, out) == (0, "")
    assert "embedded demonstration voice" in err
    assert re.search(r"book\.wav: \d+\.\d\d s of audio in 4 chunks, \d of them spoken again\n", err)
    assert "failed with every seed" not in err
    assert {file.name for file in run.work.iterdir()} == {"book.txt", "book.wav", "parts"}
    audio, rate = soundfile.read(run.work / "book.wav")
    assert rate == RATE
    assert 5 < len(audio) / rate < 12

    # Other pauses take no other speech: three paragraphs, two pauses between them.
    code, _, err = run("read", BOOK, "--folder", "parts", "--paragraph-pause", "2.7")
    assert code == 0
    assert "parts: 4 of 4 chunks are finished." in err
    assert soundfile.info(run.work / "out.wav").frames == len(audio) + 2 * 2 * RATE

    # Without a folder of its own the run leaves nothing behind.
    assert run("read", BOOK, "--seed", 1, "--out", "same.wav")[0] == 0
    assert (run.work / "same.wav").read_bytes() == (run.work / "book.wav").read_bytes()
    assert not (run.work / "same.wav.parts").exists()


def test_read_goes_on_where_it_was_killed(run, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(higgs_native.__file__).parent.parent))
    arguments = ["read", BOOK, "--seed", "1", "--out", "cut.wav"]
    with subprocess.Popen(
        [sys.executable, "-m", "higgs_native.cli", *arguments], stderr=subprocess.DEVNULL
    ) as process:
        while not (run.work / "cut.wav.parts" / "00000.json").exists():
            assert process.poll() is None
            time.sleep(0.005)
        process.kill()
    assert not (run.work / "cut.wav").exists()
    code, _, err = run(*arguments)
    assert code == 0
    assert re.search(r"cut\.wav\.parts: \d of 4 chunks are finished\.", err)
    assert [file.name for file in run.work.iterdir()] == ["cut.wav"]
    assert run("read", BOOK, "--seed", 1, "--out", "whole.wav")[0] == 0
    assert (run.work / "whole.wav").read_bytes() == (run.work / "cut.wav").read_bytes()


SAVE_SLOWLY = """
import signal, sys, time
import soundfile
from higgs_native.cli import main

def write_slowly(file, samples):
    print("writing", flush=True)
    time.sleep(60)

soundfile.SoundFile.write = write_slowly
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a process in the background doesn't have
main(sys.argv[1:])
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(("command", "left"), [("speak", []), ("read", ["out.wav.parts"])])
def test_a_signal_leaves_nothing_half_written(run, command, left, number, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(higgs_native.__file__).parent.parent))
    program = [sys.executable, "-c", SAVE_SLOWLY, command, "Good morning.", "--seed", "1"]
    if command == "read":  # its chunks are written; the file is not
        assert run("read", "Good morning.", "--seed", 1, "--folder", "out.wav.parts")[0] == 0
        (run.work / "out.wav").unlink()
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "writing\n"
        assert f".out.wav.{process.pid}.tmp" in os.listdir(run.work)
        process.send_signal(number)
        _, errors = process.communicate()
    assert process.returncode == 128 + number
    assert "Traceback" not in errors
    assert os.listdir(run.work) == left


def test_two_runs_do_not_share_a_folder(run):
    code, _, _ = run("read", BOOK, "--seed", 1, "--folder", "parts")
    assert code == 0
    with locked(run.work / "parts"):
        code, _, err = run("read", BOOK, "--folder", "parts")
    assert code == 2
    assert "error: folder must be free, got parts, which is in use by another run" in err


def test_what_else_stands_in_the_folder_is_kept(run):
    (run.work / "elsewhere").mkdir()
    (run.work / "out.wav.parts").symlink_to("elsewhere")
    assert run("read", "Good morning.")[0] == 0
    assert list((run.work / "elsewhere").iterdir()) == []
    (run.work / "out.wav").unlink()
    (run.work / "elsewhere" / ".notes").touch()
    assert run("read", "Good morning.")[0] == 0
    assert [file.name for file in (run.work / "elsewhere").iterdir()] == [".notes"]


def test_read_reports_failed_chunks(run, model):
    options = ("--model", model, "--max-retries", 1, "--chunk-seconds", 2)
    code, _, err = run("read", "Hello there.", *options)
    assert code == 0
    assert "1 of them spoken again" in err
    assert "chunk 0 failed with every seed (no end): 'Hello there.'" in err
    (run.work / "out.wav").unlink()
    code, _, err = run("read", "Hello there.", *options, "--strict")
    assert code == 2
    assert err.startswith("error: chunk 0 failed with every seed: no end (seed ")
    assert not (run.work / "out.wav").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("",), "text must hold something to say, got"),
        (("* * *",), "text must hold something to say, got"),
        (("Hi.", "--chunk-seconds", "1"), "chunk_seconds must be between 2 and 30, got 1"),
        (("Hi.", "--context-chunks", "-1"), "context_chunks must be at least 0, got -1"),
        (("Hi.", "--max-retries", "-1"), "max_retries must be between 0 and 999, got -1"),
        (("Hi.", "--paragraph-pause", "-1"), "paragraph_pause must be between 0 and 60 seconds, got -1"),
        (("Hi.", "--temperature", "-1"), "temperature"),
        (("Hi.", "--voice", "zoe"), "the folder of voices must be given"),
        (("Hi.", "--out", "out.aac"), "path must end in"),
        (("Hi.", "--folder", "other"), "got other files and no run.json"),
    ],
)
def test_read_tells_what_is_wrong_before_weights_are_loaded(arguments, message, run, monkeypatch):
    def fail(*arguments, **options):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(HiggsAudio, "from_pretrained", fail)
    (run.work / "other").mkdir()
    (run.work / "other" / "notes.txt").touch()
    code, out, err = run("read", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert [file.name for file in run.work.iterdir()] == ["other"]


def test_a_long_text_is_no_file_name(run, model):
    assert run("speak", "Hello there. " * 50, "--model", model, "--max-new-tokens", 12)[0] == 0


def test_a_limit_that_was_reached_is_told(run, model):
    _, _, err = run("speak", "Hello.", "--model", model, "--temperature", 0, "--max-new-tokens", 10)
    assert "cut off at --max-new-tokens 10" in err


def test_cloning_from_a_recording_and_from_the_folder_of_voices(run, model, monkeypatch):
    soundfile.write(run.work / "anna.wav", tone(1), RATE)
    (run.work / "anna.txt").write_text("Hello there.")
    options = ("--model", model, "--max-new-tokens", 16, "--temperature", 0)
    reference = ("--reference-audio", "anna.wav", "--reference-text", "Hello there.")
    assert run("speak", "Hi.", *options, *reference, "--out", "a.wav")[0] == 0
    assert run("speak", "Hi.", *options, "--voice", "anna", "--voices", ".", "--out", "b.wav")[0] == 0
    monkeypatch.setenv("HIGGS_NATIVE_VOICES", str(run.work))
    assert run("speak", "Hi.", *options, "--voice", "anna", "--scene", "A room.", "--out", "c.wav")[0] == 0
    a, b, c = ((run.work / f"{name}.wav").read_bytes() for name in "abc")
    assert a == b
    assert a != c


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


def test_info(run):
    code, out, _ = run("info")
    assert code == 0
    info = higgs_native._C.build_info()
    for text in (higgs_native.__version__, info["torch_built_against"], info["cpu_instruction_set"]):
        assert text in out
    for name in ("CPU kernels built in", "CUDA kernels built in", "this CPU runs", "GPUs", "will be used"):
        assert name in out


def test_voices_are_listed_with_what_is_wrong_with_them(run):
    soundfile.write(run.work / "anna.wav", syllables(5), RATE)
    (run.work / "anna.txt").write_text("Hello there, this is how I speak.")
    soundfile.write(run.work / "bert.flac", syllables(2), RATE)
    (run.work / "profile.yaml").write_text("profiles:\n  old: An old man.\n")
    bert = (
        "bert\t\n"
        "    it is short, with 2.00 s of speech; expected at least 3 s\n"
        "    its words are not given; with them a clone is closer\n"
    )
    anna, old = "anna\tHello there, this is how I speak.\n", "profile:old\tAn old man.\n"
    assert run("voices", ".") == (0, anna + bert + old, "")
    (run.work / "carl.wav").touch()
    (run.work / "config.json").write_text('{"dora": {"audio_file": "d.wav", "transcript": "Hi."}}')
    code, out, err = run("voices", ".")
    assert code == 2
    assert out.startswith(anna + bert + "carl\t\n    it can't be used: carl.wav can't be read as audio")
    assert out.endswith(
        "dora\tHi.\n    it can't be used: audio must be an existing file (wav, flac, ogg, mp3), got d.wav\n" + old
    )
    assert err == "error: 2 of 5 voices can't be used: carl, dora\n"
    code, out, err = run("voices")
    assert (code, out) == (2, "")
    assert err.startswith("error: the folder of voices must be given")


def test_a_folder_without_voices_is_told(run):
    told = "holds no voices: neither recordings nor config.json nor profile.yaml\n"
    assert run("voices", ".") == (0, "", f". {told}")


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


def test_sizes_have_fitting_units():
    sizes = (12_340, 999_999, 1_000_000, 4_700_000_000)
    assert [size_text(size) for size in sizes] == ["12.34 kB", "1000.00 kB", "1.00 MB", "4.70 GB"]


def change_json(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def copy_of(model, folder):
    shutil.copytree(model, folder)
    return folder


def missing_model(folder, model):
    return ["Hi.", "--model", folder / "missing"], "does not exist"


def unknown_hub_name_offline(folder, model):
    return ["Hi.", "--model", "nobody/nothing"], "nobody/nothing"


def folder_of_something_else(folder, model):
    (folder / "other").mkdir()
    return ["Hi.", "--model", folder / "other"], "has no config.json"


def model_that_is_a_file(folder, model):
    return ["Hi.", "--model", model / "config.json"], "model must be the folder that holds config.json, got the file"


def config_of_another_model(folder, model):
    change_json(copy_of(model, folder / "model") / "config.json", model_type="llama")
    return ["Hi.", "--model", folder / "model"], "model_type must be 'higgs_audio' or 'higgs_audio_v2', got 'llama'"


def config_that_is_no_json(folder, model):
    (copy_of(model, folder / "model") / "config.json").write_text("{")
    return ["Hi.", "--model", folder / "model"], "not readable as JSON"


def truncated_weights(folder, model):
    path = copy_of(model, folder / "model") / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    return ["Hi.", "--model", folder / "model"], "model.safetensors is damaged"


def shapes_that_do_not_fit(folder, model):
    config = copy_of(model, folder / "model") / "config.json"
    raw = json.loads(config.read_text())
    raw.get("text_config", raw)["intermediate_size"] += 8
    config.write_text(json.dumps(raw))
    return ["Hi.", "--model", folder / "model"], "must have shape"


def missing_tokenizer(folder, model):
    (copy_of(model, folder / "model") / "tokenizer.json").unlink()
    return ["Hi.", "--model", folder / "model"], "no tokenizer.json"


def damaged_tokenizer(folder, model):
    (copy_of(model, folder / "model") / "tokenizer.json").write_text("{}")
    return ["Hi.", "--model", folder / "model"], "tokenizer.json is damaged"


def missing_audio_tokenizer(folder, model):
    return ["Hi.", "--model", model, "--audio-tokenizer", folder / "missing"], "does not exist"


def truncated_audio_tokenizer(folder, model):
    copied = copy_of(model, folder / "model") / "audio_tokenizer"
    for path in (*copied.glob("*.safetensors"), *copied.glob("*.pth")):
        path.write_bytes(path.read_bytes()[:-1000])
    return ["Hi.", "--model", folder / "model"], "audio_tokenizer"


def empty_text(folder, model):
    return ["", "--model", model], "text must hold something to say, got"


def white_space(folder, model):
    return [" \n\t", "--model", model], "text must hold something to say, got"


def empty_file(folder, model):
    (folder / "empty.txt").touch()
    return [folder / "empty.txt", "--model", model], "text must hold something to say, got"


def file_that_is_no_text(folder, model):
    (folder / "noise.txt").write_bytes(b"ab\xff")
    return [folder / "noise.txt", "--model", model], "which is not UTF-8 at byte 2"


def utf_16_file(folder, model):
    (folder / "wide.txt").write_text("Hello.", encoding="utf-16-le")
    return [folder / "wide.txt", "--model", model], "holds zero bytes, so it is UTF-16 or no text"


def mistyped_file(folder, model):
    return [
        "boook.txt",
        "--model",
        model,
    ], "text must be a text, an existing text file, or -, got the name of a missing file: boook.txt"


def mistyped_folder(folder, model):
    return ["./texts/book", "--model", model], "got the name of a missing file: ./texts/book"


def text_that_is_a_folder(folder, model):
    return [folder, "--model", model], "can't be read: Is a directory"


def special_token(folder, model):
    return ["Hi. <|eot_id|>", "--model", model], "text must be plain text, got the special token <|eot_id|>"


def missing_reference(folder, model):
    return ["Hi.", "--model", model, "--reference-audio", folder / "missing.wav"], "missing.wav"


def reference(folder, model, samples, **options):
    soundfile.write(folder / "voice.wav", samples, RATE, **options)
    return ["Hi.", "--model", model, "--reference-audio", folder / "voice.wav"]


def unreadable_reference(folder, model):
    (folder / "voice.wav").write_bytes(b"RIFF but not audio")
    return ["Hi.", "--model", model, "--reference-audio", folder / "voice.wav"], "voice.wav"


def reference_of_zero_bytes(folder, model):
    (folder / "voice.wav").touch()
    return ["Hi.", "--model", model, "--reference-audio", folder / "voice.wav"], "voice.wav"


def empty_reference(folder, model):
    return reference(folder, model, tone(0)), "must last at least 0.1 s, got 0 s"


def short_reference(folder, model):
    return reference(folder, model, tone(0.05)), "must last at least 0.1 s, got 0.05 s"


def long_reference(folder, model):
    return reference(folder, model, tone(600)), "must last at most 120 s, got 600 s"


def reference_with_nan(folder, model):
    samples = tone(1)
    samples[100] = np.nan
    return reference(folder, model, samples, subtype="FLOAT"), "NaN"


def reference_text_alone(folder, model):
    return ["Hi.", "--model", model, "--reference-text", "Hello."], "must be None without reference_audio"


def unknown_voice(folder, model):
    (folder / "anna.wav").touch()
    return ["Hi.", "--model", model, "--voice", "zoe", "--voices", folder], "folder of voices (anna), got 'zoe'"


def missing_folder_of_voices(folder, model):
    return ["Hi.", "--model", model, "--voice", "zoe"], "the folder of voices must be given"


def unwritable_output(folder, model):
    return ["Hi.", "--model", model, "--out", folder / "missing" / "out.wav"], "can't be written"


def output_that_is_a_folder(folder, model):
    (folder / "out.wav").mkdir()
    return ["Hi.", "--model", model, "--out", folder / "out.wav"], "is a folder"


def output_and_stream(folder, model):
    paths = ["--out", folder / "out.wav", "--stream", folder / "out.pcm"]
    return ["Hi.", "--model", model, *paths], "--out must not be given with --stream, got"


def stream_to_nothing(folder, model):
    return ["Hi.", "--model", model, "--stream", ""], "--stream must be a file, a named pipe, or -, got"


def unwritable_stream(folder, model):
    return ["Hi.", "--model", model, "--stream", "/proc/out.pcm"], "/proc/out.pcm can't be written"


def stream_of_a_long_name(folder, model):
    return ["Hi.", "--model", model, "--stream", "a" * 300], "can't be written: File name too long"


def unknown_ending(folder, model):
    return ["Hi.", "--model", model, "--out", folder / "out.aac"], "path must end in"


def unknown_device(folder, model):
    return ["Hi.", "--model", model, "--device", "cuda:99"], "got cuda:99: "


def unknown_dtype(folder, model):
    return ["Hi.", "--model", model, "--dtype", "int8"], "dtype"


def more_than_the_cache_holds(folder, model):
    (folder / "long.txt").write_text("long " * 2000)
    return [folder / "long.txt", "--model", model], "input_ids must take fewer than"


def no_audio(folder, model):
    return ["Hi.", "--model", model, "--max-new-tokens", "3"], "no audio"


def parameter(name, value):
    def case(folder, model):
        return ["Hi.", "--model", model, name, value], name.removeprefix("--").replace("-", "_")

    case.__name__ = f"{name} {value}"
    return case


BAD_INPUTS = (
    missing_model,
    unknown_hub_name_offline,
    folder_of_something_else,
    model_that_is_a_file,
    config_of_another_model,
    config_that_is_no_json,
    truncated_weights,
    shapes_that_do_not_fit,
    missing_tokenizer,
    damaged_tokenizer,
    missing_audio_tokenizer,
    truncated_audio_tokenizer,
    empty_text,
    white_space,
    empty_file,
    file_that_is_no_text,
    utf_16_file,
    mistyped_file,
    mistyped_folder,
    text_that_is_a_folder,
    special_token,
    missing_reference,
    unreadable_reference,
    reference_of_zero_bytes,
    empty_reference,
    short_reference,
    long_reference,
    reference_with_nan,
    reference_text_alone,
    unknown_voice,
    missing_folder_of_voices,
    unwritable_output,
    output_that_is_a_folder,
    output_and_stream,
    stream_to_nothing,
    unwritable_stream,
    stream_of_a_long_name,
    unknown_ending,
    unknown_device,
    unknown_dtype,
    more_than_the_cache_holds,
    no_audio,
    parameter("--top-p", 0),
    parameter("--top-p", 2),
    parameter("--top-k", -1),
    parameter("--temperature", -1),
    parameter("--temperature", "nan"),
    parameter("--max-new-tokens", 0),
    parameter("--seed", 2**64),
    parameter("--ras-win-max-num-repeat", 0),
)


@pytest.mark.parametrize("case", BAD_INPUTS, ids=lambda case: case.__name__)
def test_bad_input_gives_one_line_and_writes_nothing(case, run, model, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "input"
    folder.mkdir()
    arguments, message = case(folder, model)
    before = sorted(tmp_path.rglob("*"))
    code, out, err = run("speak", *arguments)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert err.startswith("error: ")
    assert message in err
    assert sorted(tmp_path.rglob("*")) == before


# What is known without the weights must not wait for them.
KNOWN_EARLY = (
    empty_text,
    unreadable_reference,
    empty_reference,
    short_reference,
    long_reference,
    reference_with_nan,
    unknown_voice,
    unwritable_output,
    output_and_stream,
    stream_to_nothing,
    unwritable_stream,
    unknown_ending,
    parameter("--top-p", 2),
    parameter("--max-new-tokens", 0),
)


@pytest.mark.parametrize("case", KNOWN_EARLY, ids=lambda case: case.__name__)
def test_what_is_wrong_is_told_before_weights_are_loaded(case, run, model, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(HiggsAudio, "from_pretrained", fail)
    arguments, message = case(tmp_path, model)
    code, _, err = run("speak", *arguments)
    assert code == 2
    assert message in err


def test_errors_of_several_lines_become_one(run, monkeypatch):
    def fail(folder):
        raise ParameterError("one\ntwo")

    monkeypatch.setattr(voices, "list_voices", fail)
    assert run("voices") == (2, "", "error: one two\n")


def test_an_unexpected_error_is_one_line_too(run, monkeypatch):
    def fail(folder):
        raise RuntimeError("broken")

    monkeypatch.setattr(voices, "list_voices", fail)
    code, out, err = run("voices")
    assert (code, out) == (1, "")
    assert err == "error: RuntimeError: broken (HIGGS_NATIVE_TRACEBACK=1 shows where)\n"


def test_a_traceback_on_demand(capsys, monkeypatch):
    def fail(folder):
        raise RuntimeError("broken")

    monkeypatch.setenv("HIGGS_NATIVE_TRACEBACK", "1")
    monkeypatch.setattr(voices, "list_voices", fail)
    with pytest.raises(RuntimeError, match="broken"):
        main(["voices"])


@pytest.mark.parametrize("options", [("--out", "out.wav"), ("--stream", "out.pcm")])
def test_sampling_params_are_built_once_and_unpacked_once(run, model, options, monkeypatch):
    """From the command line to the device tensors: one object, handed on whole."""
    built, unpacked = [], []
    check, reset_slot = SamplingParams.__post_init__, SamplerState.reset_slot

    def recorded_check(params):
        built.append(params)
        check(params)

    def recorded_reset(sampler, slot, convention, sampling, *arguments, **keywords):
        unpacked.append(sampling)
        reset_slot(sampler, slot, convention, sampling, *arguments, **keywords)

    monkeypatch.setattr(SamplingParams, "__post_init__", recorded_check)
    monkeypatch.setattr(SamplerState, "reset_slot", recorded_reset)
    arguments = ("--model", model, "--seed", 3, "--temperature", 0.7, "--top-k", 9, "--max-new-tokens", 20)
    code, _, err = run("speak", "Hello there.", *arguments, *options)
    assert code == 0, err
    assert built == unpacked == [SamplingParams(0.7, 9, seed=3, max_new_tokens=20)]
    assert built[0] is unpacked[0]
