"""`higgs-native read`: books, runs that go on, and what is told of them."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile

import higgs_native
from higgs_native import HiggsAudio
from higgs_native.utils.files import locked
from tests.cli.conftest import RATE
from tests.helpers.waiting import PATIENCE, until
from tests.manuscript.books.epubs import page, write_epub


BOOK = 'The sun rises in the east.\n\n"Good morning," she said. They drink tea.\n\nIt is cold.'


def test_read_speaks_a_book(run):
    (run.work / "book.txt").write_text(BOOK, encoding="utf-8")
    code, out, err = run("read", "book.txt", "--seed", 1, "--out", "book.wav", "--folder", "parts")
    assert (code, out) == (0, "")
    assert "embedded demonstration voice" in err
    assert re.search(r"book\.wav: \d+\.\d\d s of audio in 4 chunks, \d of them spoken again, seed 1\n", err)
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


def test_read_speaks_the_same_side_by_side(run):
    for name, count in (("one", 1), ("four", 4)):
        assert run("read", BOOK, "--seed", 1, "--parallel", count, "--out", f"{name}.wav", "--folder", name)[0] == 0
    assert (run.work / "one.wav").read_bytes() == (run.work / "four.wav").read_bytes()
    # A run may go on with another number of chunks at a time.
    (run.work / "one" / "00002.json").unlink()
    assert run("read", BOOK, "--parallel", 8, "--out", "again.wav", "--folder", "one")[0] == 0
    assert (run.work / "again.wav").read_bytes() == (run.work / "one.wav").read_bytes()


# The command, which waits instead of storing a chunk: it never ends by itself, however fast the machine is.
NEVER_ENDS = """
import signal, sys, time
from higgs_native.cli import main
from higgs_native.long_form.chunk_store import ChunkStore

last, store = int(sys.argv.pop(1)), ChunkStore.store

def store_all_but_the_last(self, index, *arguments):
    while index == last:
        time.sleep(0.01)
    store(self, index, *arguments)

ChunkStore.store = store_all_but_the_last
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a process in the background doesn't have
main(sys.argv[1:])
"""


@pytest.fixture
def read_but_last(run, monkeypatch):
    """Starts the command, and waits for a file of its folder."""
    monkeypatch.setenv("PYTHONPATH", str(Path(higgs_native.__file__).parent.parent))

    def start(last, awaited, *arguments):
        program = [sys.executable, "-c", NEVER_ENDS, str(last), *arguments]
        process = subprocess.Popen(program, stderr=subprocess.PIPE, text=True)
        until(lambda: awaited.exists() or process.poll() is not None)
        return process

    return start


def test_read_goes_on_where_it_was_killed(run, read_but_last):
    arguments = ["read", BOOK, "--seed", "1", "--out", "cut.wav"]
    with read_but_last(3, run.work / "cut.wav.parts" / "00000.json", *arguments) as process:
        process.kill()
        _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors
    assert not (run.work / "cut.wav").exists()
    code, _, err = run(*arguments)
    assert code == 0
    assert re.search(r"cut\.wav\.parts: \d of 4 chunks are finished\.", err)
    assert [file.name for file in run.work.iterdir()] == ["cut.wav"]
    assert run("read", BOOK, "--seed", 1, "--out", "whole.wav")[0] == 0
    assert (run.work / "whole.wav").read_bytes() == (run.work / "cut.wav").read_bytes()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_chunks_that_are_spoken_side_by_side(run, read_but_last, number):
    arguments = ["read", "\n\n".join([BOOK] * 10), "--seed", "1", "--parallel", "4", "--folder", "parts"]
    with read_but_last(39, run.work / "parts" / "00003.json", *arguments) as process:
        process.send_signal(number)
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + number, errors
    assert "Traceback" not in errors
    left = os.listdir(run.work / "parts")
    assert os.listdir(run.work) == ["parts"]
    assert not [name for name in left if name.startswith(".")]
    assert 1 < len([name for name in left if name.endswith(".json")]) < 41
    assert run(*arguments)[0] == 0
    assert run(*arguments[:-4], "--out", "whole.wav")[0] == 0
    assert (run.work / "whole.wav").read_bytes() == (run.work / "out.wav").read_bytes()


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
        (("Hi.", "--parallel", "0"), "parallel must be at least 1, got 0"),
        (
            ("Hi.", "--parallel", "8", "--context-chunks", "2"),
            "context_chunks must be 0 if parallel is 8, got 2",
        ),
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
