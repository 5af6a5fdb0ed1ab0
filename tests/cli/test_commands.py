import io
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile

import higgs_native
from higgs_native._C import build_info
from higgs_native.audio.loudness import integrated_loudness
from higgs_native.cli.commands.quantize import size_text
from higgs_native.cli.options import MODEL_NAME
from higgs_native.generation.sampling_params import SamplingParams
from higgs_native.generation.steps.sampler import SamplerState
from tests.audio.test_quality import syllables
from tests.cli.conftest import RATE, tone
from tests.manuscript.books.epubs import page, write_epub
from tests.manuscript.voices import write_phoneme_voice


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


def test_the_text_comes_from_an_argument_a_file_or_standard_input(run, model, monkeypatch):
    (run.work / "text.txt").write_text("\ufeffHello, 世界.\n", encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("Hello, 世界.\n".encode())))
    options = ("--model", model, "--max-new-tokens", 16, "--temperature", 0, "--seed", 1)
    os.mkfifo(run.work / "pipe")  # what a shell makes of <(command)
    writer = threading.Thread(target=(run.work / "pipe").write_text, args=("Hello, 世界.\n", "utf-8"))
    writer.start()
    for index, text in enumerate(("Hello, 世界.", "text.txt", "-", "pipe")):
        assert run("speak", text, *options, "--out", f"{index}.wav")[0] == 0
    writer.join(5)
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


@pytest.mark.parametrize("options", [("--out", "out.wav"), ("--stream", "out.wav")])
def test_the_seed_that_was_drawn_is_told(run, model, options):
    arguments = ("speak", "Hello.", "--model", model, "--max-new-tokens", 20, "--temperature", 1, *options)
    code, _, err = run(*arguments)
    assert code == 0
    drawn = (run.work / "out.wav").read_bytes()
    seed = re.search(r", seed (\d+)$", err, re.MULTILINE)[1]
    assert run(*arguments, "--seed", seed)[0] == 0
    assert (run.work / "out.wav").read_bytes() == drawn


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
    for bad, message in (("a [pause:1] b", "a pause must be written"), ("<speak><audio/></speak>", "SSML must hold")):
        code, _, err = run(command, bad, *options)
        assert code == 2
        assert err.startswith(f"error: {message}")


def test_a_book_is_read_by_chapters(run, model):
    pytest.importorskip("markdown_it")
    (run.work / "notes.md").write_text("# One\n\nHello **there**.\n\n# Two\n\nIt is 5.\n")
    options = ("--model", model, "--seed", 1, "--max-retries", 0)
    assert run("read", "notes.md", *options, "--out", "chapters", "--format", "flac", "--normalize")[0] == 0
    assert sorted(path.name for path in (run.work / "chapters").iterdir()) == ["01 One.flac", "02 Two.flac"]
    assert not (run.work / "chapters.parts").exists()
    write_epub(run.work / "book.epub", {"a.xhtml": page("<h1>One</h1><p>Hello.</p>")})
    assert run("read", "book.epub", *options, "--out", "whole.mp3")[0] == 0
    with soundfile.SoundFile(run.work / "whole.mp3") as file:
        assert file.title == "The Book"
    code, _, err = run("read", "Hello.", *options, "--out", "folder")
    assert (code, err.count("\n")) == (2, 1)
    assert "path must end in .wav" in err


def test_a_resumed_run_says_so(run, model):
    options = ("--model", model, "--seed", 1, "--folder", "parts", "--max-retries", 0, "--chunk-seconds", 2)
    assert run("read", "Hello there. It is a good day for a long walk.", *options)[0] == 0
    (run.work / "parts" / "00001.json").unlink()
    _, _, err = run("read", "Hello there. It is a good day for a long walk.", *options)
    assert re.search(r"^parts: 1 of \d chunks are finished\.$", err, re.MULTILINE)


@pytest.mark.parametrize("command", ["speak", "read"])
def test_subtitles(run, model, command):
    options = ("--model", model, "--seed", 1)
    assert run(command, "Hello there. It is good.", *options, "--subtitles", "out.srt")[0] == 0
    assert re.findall("[A-Z].*", (run.work / "out.srt").read_text()) == ["Hello there.", "It is good."]
    assert run(command, "Hello there.", *options, "--subtitles", "out.vtt", "--subtitle-words")[0] == 0
    assert re.findall("[A-Za-z].*", (run.work / "out.vtt").read_text()) == ["WEBVTT", "Hello", "there."]
    code, _, err = run(command, "Hello.", *options, "--subtitles", "out.txt")
    assert (code, err) == (2, "error: subtitles must end in .srt, .vtt, got out.txt\n")


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


@pytest.mark.parametrize("option", [("--format", "wav"), ("--loudness", "-16.0"), ("--speed", "2.0")])
def test_a_stream_takes_no_option_of_files(run, option):
    code, _, err = run("speak", "Hello.", "--stream", "out.pcm", *option)
    assert (code, err) == (2, f"error: {option[0]} must not be given with --stream, got {option[1]}\n")


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


def test_good_speech_is_not_warned_of(run):
    _, _, err = run("speak", "Hello and welcome.", "--seed", 1)
    assert "warning" not in err


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
    reader.join(5)
    assert code == 0, err
    assert len(heard[0]) == 22 * 1920


def test_an_unknown_instruction_set_is_one_line_too(run_python):
    process = run_python("from higgs_native.cli import main; main(['info'])", HIGGS_NATIVE_ISA="sse9")
    assert process.returncode == 2
    sets = " or ".join(", ".join(build_info()["cpu_instruction_sets"]).rsplit(", ", 1))
    assert process.stderr == f"error: HIGGS_NATIVE_ISA must be {sets}, got sse9\n"


def test_a_long_text_is_no_file_name(run, model):
    assert run("speak", "Hello there. " * 50, "--model", model, "--max-new-tokens", 12)[0] == 0


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
