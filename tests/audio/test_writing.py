"""Audio files are written completely or not at all, whatever ends the writing."""

import resource
import signal

import numpy as np
import pytest
import soundfile

from higgs_native.audio.writing import check_output_path, writing_audio
from higgs_native.errors import ParameterError


RATE = 24000
SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")

# Writes 20 s of noise over a file of each suffix, each in its own process, which gets SIGTERM while the library is in
# a function, or as the function returns. Prints the exit codes.
SAVE_AND_SIGNAL = """
import os, signal, sys, threading
import numpy as np, soundfile
from higgs_native.audio.writing import writing_audio

library = soundfile._snd
samples = np.random.default_rng(0).standard_normal(20 * 24000).astype(np.float32) * 0.1

class Library:
    def __init__(self, name, moment):
        self.name, self.moment, self.entered = name, moment, threading.Event()
        self.killer = threading.Thread(target=self.kill_when_entered, daemon=True)
        self.killer.start()

    def kill_when_entered(self):
        self.entered.wait()
        if self.moment == "during":
            os.kill(os.getpid(), signal.SIGTERM)

    def __getattr__(self, attribute):
        function = getattr(library, attribute)

        def call(*arguments):
            self.entered.set()
            result = function(*arguments)
            if self.moment == "after":
                os.kill(os.getpid(), signal.SIGTERM)
            else:
                self.killer.join()  # on a busy machine the signal comes late, but never after this
            return result

        return call if attribute == self.name else function

def save(path, name, moment):
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    soundfile._snd = Library(name, moment)
    with writing_audio(path, 24000) as file:
        file.write(samples)

for argument in sys.argv[1:]:
    path, name, moment = argument.split(",")
    child = os.fork()
    if child == 0:
        save(path, name, moment)
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def noise(seconds: float) -> np.ndarray:
    return (0.1 * np.random.default_rng(0).standard_normal(round(seconds * RATE))).astype(np.float32)


def test_a_signal_in_the_library_ends_the_writing(run_python, tmp_path):
    moments = [
        ("sf_open_fd", "after"),
        ("sf_writef_float", "during"),
        ("sf_writef_float", "after"),
        ("sf_write_sync", "after"),
        ("sf_close", "after"),
    ]
    paths = [tmp_path / f"{function}_{moment}{suffix}" for function, moment in moments for suffix in SUFFIXES]
    arguments = [
        f"{path},{function},{moment}"
        for path, (function, moment) in zip(paths, (pair for pair in moments for _ in SUFFIXES), strict=True)
    ]
    for path in paths:
        path.write_bytes(b"old")
    process = run_python(SAVE_AND_SIGNAL, *arguments)
    assert process.stderr == ""
    statuses = process.stdout.split()
    assert dict(zip(arguments, statuses, strict=True)) == dict.fromkeys(arguments, str(128 + signal.SIGTERM))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {path.name: b"old" for path in paths}


@pytest.mark.parametrize("exception", [KeyboardInterrupt, MemoryError, OSError])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_exception_of_the_caller_ends_the_writing(suffix, exception, tmp_path):
    path = tmp_path / f"out{suffix}"
    path.write_bytes(b"old")

    def save() -> None:
        with writing_audio(path, RATE) as file:
            file.write(noise(1))
            raise exception

    with pytest.raises(exception):
        save()
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("seconds", [0.01, 1, 60])
def test_the_file_is_what_libsndfile_writes(suffix, seconds, tmp_path):
    """It is moved from memory block by block. A minute gives blocks that are longer than the header."""
    samples = noise(seconds)
    name, encoding = {
        ".wav": ("WAV", "PCM_16"),
        ".flac": ("FLAC", "PCM_16"),
        ".ogg": ("OGG", "VORBIS"),
        ".mp3": ("MP3", "MPEG_LAYER_III"),
    }[suffix]
    pieces = np.array_split(samples, 7)
    with soundfile.SoundFile(tmp_path / "expected", "w", RATE, 1, encoding, format=name) as file:
        for piece in pieces:
            file.write(piece)
    with writing_audio(tmp_path / f"out{suffix}", RATE) as file:
        for piece in pieces:
            file.write(piece)
    written, expected = (tmp_path / f"out{suffix}").read_bytes(), (tmp_path / "expected").read_bytes()
    if suffix != ".ogg":  # Ogg streams have random serial numbers, and checksums of them
        assert written == expected
    assert len(written) == len(expected)
    np.testing.assert_array_equal(*(soundfile.read(tmp_path / file)[0] for file in (f"out{suffix}", "expected")))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_full_disk_leaves_no_incomplete_file(suffix, tmp_path):
    """Even if a single byte is missing, which libsndfile does not report when it closes the file."""

    def save(name: str) -> None:
        with writing_audio(tmp_path / f"{name}{suffix}", RATE) as file:
            for piece in np.array_split(noise(5), 3):
                file.write(piece)

    save("complete")
    size = (tmp_path / f"complete{suffix}").stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (0, 10, size // 2, size - 1):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(ParameterError, match=rf"out\{suffix} can't be written: File too large"):
                save("out")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert [file.name for file in tmp_path.iterdir()] == [f"complete{suffix}"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("out.m4a", r"path must end in \.wav, \.flac, \.ogg, \.mp3, got .*out\.m4a"),
        ("out", "path must end in"),
        ("missing/out.wav", "can't be written: No such file or directory"),
        ("file/out.wav", "can't be written: Not a directory"),
        ("folder.wav", "is a folder"),
        ("x" * 300 + ".wav", "can't be written: File name too long"),
    ],
)
def test_output_paths_that_cannot_be_written(path, message, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder.wav").mkdir()
    with pytest.raises(ParameterError, match=message):
        check_output_path(tmp_path / path)


def test_what_is_no_path():
    with pytest.raises(ParameterError, match="path must be a string or a path, got None"):
        check_output_path(None)
    with pytest.raises(ParameterError, match="must be a path without zero bytes"):
        check_output_path("a\0.wav")


def test_checking_an_output_path_leaves_nothing_behind(tmp_path):
    (tmp_path / "old.wav").write_bytes(b"old")
    check_output_path(tmp_path / "new.wav")
    check_output_path(tmp_path / "old.wav")
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("old.wav", b"old")]
