"""Every program in `examples/` runs, and the audio that it writes has the right words and voice."""

import importlib.util
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import threading
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import higgs_native
from benchmarks.tools.speech_distance import mel_spectrogram, pitch, warped_distances
from higgs_native import HiggsAudio, HiggsAudioModel, SpeechStream
from higgs_native.pipeline import EMBEDDED_VOICE, EMBEDDED_VOICE_KEY
from tests.helpers.waiting import PATIENCE


ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
RATE = 24000
SUNRISE = "The sun rises in the east and sets in the west."
# Text and voice of the files that have one text in one voice.
SAID = {
    "boson_interface.wav": (SUNRISE, "heart"),
    "clone_voice.wav": ("The train to the city leaves at seven in the morning.", "fenrir"),
    "reference.wav": ("My name is on the list, and my house is on the hill.", "fenrir"),
    "scene_and_profiles.wav": ("The old house stands between the river and the forest.", "george"),
    "single_voice.wav": (SUNRISE, "heart"),
    "stream.wav": ("The wind and the rain came over the mountain in the night.", "heart"),
    "transformers_interface.wav": (SUNRISE, "heart"),
}
PITCHES = {"heart": 197, "fenrir": 136, "george": 142}
# Runs a script; transformers_interface.py needs transformers to import with any torch.
RUN = """
import runpy, sys
root, *sys.argv = sys.argv[1:]
if sys.argv[0].endswith("transformers_interface.py"):
    sys.path.append(root)
    from benchmarks.tools.transformers_baseline import import_transformers
    import_transformers()
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def spectrograms():
    """Each text of `SAID`, spoken with another seed by each of its voices."""
    engine = HiggsAudio.from_pretrained()
    texts = dict.fromkeys(text for text, _ in SAID.values())
    return {
        voice: {text: mel_spectrogram(engine.speak(text, voice, seed=7).audio) for text in texts}
        for voice in dict.fromkeys(voice for _, voice in SAID.values())
    }


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs an example in this process, in an empty folder; returns its standard error and its exit status."""

    def run(name, *arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        code = 0
        try:
            runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
        except SystemExit as exit:
            code = exit.code
        return capsys.readouterr().err, code

    return run


def test_there_are_examples():
    assert len(EXAMPLES) >= 8
    listed = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in EXAMPLES if f"({path.name})" not in listed] == []


def skip_without_what_it_needs(path):
    needed = ("transformers", "torchaudio") if path.stem == "transformers_interface" else ()
    if os.environ.get("HIGGS_NATIVE_REQUIRE_TRANSFORMERS") != "1":
        for package in needed:
            if importlib.util.find_spec(package) is None:
                pytest.skip(f"{path.name} needs {package}")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_writes_speech(path, run_python, tmp_path, spectrograms):
    skip_without_what_it_needs(path)
    finished = run_python(RUN, str(ROOT), str(path))
    assert finished.returncode == 0, finished.stderr
    written = sorted(tmp_path.rglob("*.wav"))
    assert written
    for file in written:
        audio, rate = soundfile.read(file, dtype="float32")
        assert rate == RATE
        assert 0.3 < len(audio) / rate < 120
        assert np.sqrt(np.mean(audio**2)) > 0.01
        if file.name in SAID:
            text, voice = SAID[file.name]
            spoken = spectrograms[voice]
            distances = warped_distances(mel_spectrogram(audio), list(spoken.values()))
            assert list(spoken)[int(torch.argmin(distances))] == text
            assert abs(np.log2(pitch(audio) / PITCHES[voice])) < 0.35  # a cloned man may sound as another
            assert abs(len(audio) / (480 * len(spoken[text])) - 1) < 0.3


def test_every_example_tells_a_wrong_model_in_one_line(run, tmp_path):
    for path in EXAMPLES:
        if path.stem != "transformers_interface":
            told = (
                "error: model must be a folder or a Hub name such as owner/name, got nonexist, which does not exist\n"
            )
            assert run(path.name, "--model", "nonexist") == (told, 2)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_transformers_tells_a_wrong_model_in_one_line(run_python, tmp_path):
    path = ROOT / "examples" / "transformers_interface.py"
    skip_without_what_it_needs(path)
    finished = run_python(RUN, str(ROOT), str(path), "--model", "nonexist", HF_HUB_OFFLINE="1")
    assert finished.returncode == 2
    assert "Traceback" not in finished.stderr
    assert finished.stderr.splitlines()[-1].startswith("error: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("long_form.py", ["nobook.txt"], "No such file or directory: 'nobook.txt'"),
        ("long_form.py", [EMBEDDED_VOICE / "model.safetensors"], "can't decode byte"),
        ("dialogue.py", ["--voice", "nosuch"], "voice must be in the folder of voices (profile:feminine"),
        ("scene_and_profiles.py", ["--voices-folder", "nosuch"], "the folder of voices must exist, got nosuch"),
        ("batch.py", ["--manifest", "nosuch.csv"], "No such file or directory: 'nosuch.csv'"),
        ("batch.py", ["--out", Path(__file__)], "File exists"),
        ("batch.py", ["--parallel", 0], "--parallel must be at least 1, got 0"),
        *(
            (f"{name}.py", ["--out", out], message)
            for name in (
                "boson_interface",
                "clone_voice",
                "dialogue",
                "long_form",
                "scene_and_profiles",
                "single_voice",
                "stream",
            )
            for out, message in (
                ("nosuch/x.wav", "nosuch/x.wav can't be written: No such file or directory"),
                ("x.abc", "path must end in .wav, .flac, .mp3, .ogg, .opus, got x.abc"),
            )
        ),
    ],
)
def test_a_mistake_is_told_in_one_line_before_the_work(run, tmp_path, monkeypatch, name, arguments, message):
    def fail(*arguments, **options):
        raise AssertionError("the model was loaded")

    for loader in (HiggsAudio, HiggsAudioModel):
        monkeypatch.setattr(loader, "from_pretrained", fail)
    error, code = run(name, *arguments)
    assert code == 2
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_recording_that_is_missing_is_told_in_one_line(run, tmp_path):
    told = "error: audio must be an existing file (wav, flac, ogg, mp3), got no.wav\n"
    assert run("clone_voice.py", "--reference-audio", "no.wav") == (told, 2)
    assert list(tmp_path.iterdir()) == []


def test_the_turns_of_the_dialogue_are_in_their_voices(run, tmp_path):
    assert run("dialogue.py") == ("", 0)
    audio, _ = soundfile.read(tmp_path / "dialogue.wav", dtype="float32")
    silent = np.lib.stride_tricks.sliding_window_view(np.abs(audio), 5000)[::500].max(1) == 0
    begins, ends = (500 * np.flatnonzero(np.diff(np.pad(~silent, 1, constant_values=False).astype(int)) == step)
                    for step in (1, -1))  # fmt: skip
    pitches = [round(pitch(audio[begin:end])) for begin, end in zip(begins, ends, strict=True)]
    assert pitches == pytest.approx([PITCHES["heart"], PITCHES["fenrir"], PITCHES["heart"]], rel=0.15)


def test_another_model_takes_the_dialogue_in_one_text(run, tmp_path):
    shutil.copytree(EMBEDDED_VOICE, tmp_path / "model")
    described = json.loads((EMBEDDED_VOICE / "config.json").read_text())
    del described[EMBEDDED_VOICE_KEY]
    (tmp_path / "model" / "config.json").write_text(json.dumps(described))
    turns = {}
    for model in (EMBEDDED_VOICE, tmp_path / "model"):
        assert run("dialogue.py", "--model", model) == ("", 0)
        audio, _ = soundfile.read(tmp_path / "dialogue.wav")
        turns[model] = audio[-6000:]
    assert not turns[EMBEDDED_VOICE].any()  # the pause after a turn
    assert turns[tmp_path / "model"].any()


@pytest.mark.parametrize("text", ["Hello.", "[SPEAKER0] Hello. [SPEAKER2] Hello."])
def test_a_dialogue_needs_a_voice_for_each_speaker(run, tmp_path, text):
    error, code = run("dialogue.py", text)
    assert code == 2
    assert "tags from [SPEAKER0] to [SPEAKER1], one per --voice, got " in error
    assert not (tmp_path / "dialogue.wav").exists()


def test_the_stream_goes_to_a_file_or_the_sound_device(run, tmp_path, monkeypatch):
    played = []

    class OutputStream:
        def __init__(self, *, samplerate, channels, dtype):
            assert (samplerate, channels, dtype) == (RATE, 1, "float32")

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def write(self, samples):
            played.append(samples)

    assert run("stream.py")[1] == 0
    expected, _ = soundfile.read(tmp_path / "stream.wav", dtype="float32")
    monkeypatch.setitem(sys.modules, "sounddevice", types.SimpleNamespace(OutputStream=OutputStream))
    (tmp_path / "stream.wav").unlink()
    assert run("stream.py", "--play")[1] == 0
    assert len(played) > 1
    np.testing.assert_allclose(np.concatenate(played), expected, rtol=0, atol=1e-4)
    assert not (tmp_path / "stream.wav").exists()
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    error, code = run("stream.py", "--play")
    assert code == 2
    assert "--play needs PortAudio and sounddevice" in error


def test_the_stream_in_a_pipe_is_pcm(run_python, tmp_path):
    to_file = f"import os; os.dup2(os.open('out.pcm', os.O_CREAT | os.O_WRONLY), 1)\n{RUN}"
    finished = run_python(to_file, str(ROOT), str(ROOT / "examples" / "stream.py"), "--out", "-")
    assert finished.returncode == 0, finished.stderr
    samples = np.fromfile(tmp_path / "out.pcm", "<i2")
    speech = HiggsAudio.from_pretrained().speak(SAID["stream.wav"][0], seed=0)
    np.testing.assert_allclose(samples / 32767, speech.audio.clip(-1, 1), rtol=0, atol=1e-4)


def test_a_stream_that_is_cut_off_leaves_no_file(run, tmp_path, monkeypatch):
    whole = SpeechStream.__iter__

    def cut_off(stream):
        yield next(whole(stream))
        raise KeyboardInterrupt

    monkeypatch.setattr(SpeechStream, "__iter__", cut_off)
    with pytest.raises(KeyboardInterrupt):
        run("stream.py")
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_leaves_ends_the_stream_quietly(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(higgs_native.__file__).parent.parent))
    program = [sys.executable, str(ROOT / "examples" / "stream.py"), "--out", "-"]
    with subprocess.Popen(
        program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0, pipesize=4096
    ) as process:
        assert len(process.stdout.read(100)) == 100
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == -signal.SIGPIPE


def test_a_batch_goes_on_where_it_was_stopped(run, tmp_path):
    rows = [{"id": name, "text": "Hello and welcome.", "voice": "profile:feminine", "seed": 3} for name in "abc"]
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "speeches").mkdir()
    (tmp_path / "speeches" / "b.wav").write_text("a finished speech")
    assert run("batch.py", "--manifest", manifest) == ("", 0)
    assert sorted(path.name for path in (tmp_path / "speeches").iterdir()) == ["a.wav", "b.wav", "c.wav"]
    assert (tmp_path / "speeches" / "b.wav").read_text() == "a finished speech"
    (a, _), (c, _) = (soundfile.read(tmp_path / "speeches" / f"{name}.wav") for name in "ac")
    np.testing.assert_array_equal(a, c)
    assert abs(pitch(a) / PITCHES["heart"] - 1) < 0.15


def test_a_batch_is_the_same_side_by_side(run, tmp_path):
    texts = ("Hello and welcome.", "It is cold.", "The sun rises.", "They drink tea.", "Good morning.")
    (tmp_path / "m.csv").write_text("id,text,voice,seed\n" + "".join(
        f"{number},{text},{'profile:feminine' if number % 2 else ''},{number}\n" for number, text in enumerate(texts)
    ), encoding="utf-8")  # fmt: skip
    for parallel in (1, 4):
        assert run("batch.py", "--manifest", "m.csv", "--parallel", parallel, "--out", f"by{parallel}") == ("", 0)
    files = [{path.name: path.read_bytes() for path in (tmp_path / f"by{count}").iterdir()} for count in (1, 4)]
    assert files[0] == files[1]
    assert len(files[0]) == len(texts)


def test_an_interrupted_batch_begins_no_other_text(run, tmp_path, monkeypatch):
    rows = [{"id": str(number), "text": "Hello.", "seed": number} for number in range(6)]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    speak = HiggsAudio.speak
    shutdown = ThreadPoolExecutor.shutdown
    begun, is_stopping = [], threading.Event()

    def interrupted(engine, text, voice, seed):
        begun.append(seed)
        if seed == 2:
            raise KeyboardInterrupt
        assert seed != 3 or is_stopping.wait(PATIENCE)  # the interrupt is on its way
        return speak(engine, text, voice=voice, seed=seed)

    def stop(pool, wait=True, cancel_futures=False):
        shutdown(pool, wait=False, cancel_futures=cancel_futures)
        is_stopping.set()
        shutdown(pool, wait=wait)

    monkeypatch.setattr(HiggsAudio, "speak", interrupted)
    monkeypatch.setattr(ThreadPoolExecutor, "shutdown", stop)
    with pytest.raises(KeyboardInterrupt):
        run("batch.py", "--manifest", "m.jsonl", "--parallel", 1)
    assert begun in ([0, 1, 2], [0, 1, 2, 3])
    monkeypatch.setattr(HiggsAudio, "speak", speak)
    assert run("batch.py", "--manifest", "m.jsonl")[1] == 0
    assert len(list((tmp_path / "speeches").glob("*.wav"))) == 6


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("m.csv", "b,,,", "line 3: id and text must be given, got no text"),
        ("m.csv", "a,Hello.,,", "line 3: id must be a file name that no other row has, got 'a'"),
        ("m.csv", "../b,Hello.,,", "line 3: id must be a file name that no other row has, got '../b'"),
        ("m.csv", "b,Hello.,nobody,", "line 3: voice must be one of profile:feminine"),
        (
            "m.csv",
            f"b,Hello.,,{2**64}",
            "line 3: seed must be an integer from -2**63 to 2**64 - 1, got '18446744073709551616'",
        ),
        ("m.jsonl", "{", "line 2: row must be JSON, got: "),
        ("m.jsonl", "[]", "line 2: row must be a JSON object, got a list"),
    ],
)
def test_a_bad_line_of_a_manifest_is_named_before_anything_is_spoken(run, tmp_path, name, line, message):
    first = "id,text,voice,seed\na,Hello.,," if name.endswith(".csv") else '{"id": "a", "text": "Hello."}'
    (tmp_path / name).write_text(f"{first}\n{line}\n", encoding="utf-8")
    error, code = run("batch.py", "--manifest", name)
    assert code == 2
    assert error.startswith(f"error: {name}, {message}")
    assert not (tmp_path / "speeches").exists()


def test_a_batch_tells_of_a_text_that_can_not_be_spoken_and_goes_on(run, tmp_path):
    (tmp_path / "m.csv").write_text("id,text\na,Hello <|eot_id|>.\nb,Hello.\n", encoding="utf-8")
    error, code = run("batch.py", "--manifest", "m.csv")
    assert code == 1
    assert "error: m.csv, line 2: text must be plain text, got the special token <|eot_id|>" in error
    assert [path.name for path in (tmp_path / "speeches").iterdir()] == ["b.wav"]
