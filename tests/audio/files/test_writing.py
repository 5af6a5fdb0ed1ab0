"""Audio files are written completely or not at all, whatever ends the writing."""

import resource
import signal

import numpy as np
import pytest
import soundfile

from higgs_native.audio.files.formats import FORMATS, SUFFIXES
from higgs_native.audio.files.writing import check_output_path, encode_audio, writing_audio
from higgs_native.errors import ParameterError


RATE = 24000

# Writes noise over a file of each suffix, each in its own process, which gets SIGTERM while the library is in a
# function, or as the function returns. Prints the exit codes.
SAVE_AND_SIGNAL = """
import os, signal, sys, threading
import numpy as np, soundfile
from higgs_native.audio.files.writing import writing_audio

library = soundfile._snd
noise = np.random.default_rng(0).standard_normal(20 * 24000).astype(np.float32) * 0.1

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
        # 20 s take the library long enough to be in its function when the signal comes.
        file.write(noise if moment == "during" else noise[:24000])

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


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("seconds", [0.01, 1, 60])
def test_the_file_is_what_libsndfile_writes(name, seconds, tmp_path):
    """It is moved from memory block by block. A minute gives blocks that are longer than the header."""
    samples, format = noise(seconds), FORMATS[name]
    pieces = np.array_split(samples, 7)
    with soundfile.SoundFile(tmp_path / "expected", "w", RATE, 1, format.encoding, format=format.container) as file:
        for piece in pieces:
            file.write(piece)
    with writing_audio(tmp_path / f"out{format.suffix}", RATE, name) as file:
        for piece in pieces:
            file.write(piece)
    written, expected = (tmp_path / f"out{format.suffix}").read_bytes(), (tmp_path / "expected").read_bytes()
    if name == "wav_float":  # its PEAK chunk holds the time
        written, expected = written[written.index(b"data") :], expected[expected.index(b"data") :]
    if format.container != "OGG":  # Ogg streams have random serial numbers, and checksums of them
        assert written == expected
    assert len(written) == len(expected)
    read = [soundfile.read(tmp_path / file)[0] for file in (f"out{format.suffix}", "expected")]
    np.testing.assert_array_equal(*read)


@pytest.mark.parametrize("name", FORMATS)
def test_contents_in_memory_are_those_of_the_file(name, tmp_path):
    format = FORMATS[name]
    path = tmp_path / f"out{format.suffix}"
    tags = {"title": "Grüße", "comment": "seed 1"}
    with writing_audio(path, RATE, name, tags) as file:
        file.write(noise(1))
    contents = encode_audio(noise(1), RATE, name, tags)
    (tmp_path / "memory").write_bytes(contents)
    assert len(contents) == path.stat().st_size
    np.testing.assert_array_equal(soundfile.read(tmp_path / "memory")[0], soundfile.read(path)[0])
    for written in (path, tmp_path / "memory"):
        with soundfile.SoundFile(written) as file:
            assert (file.title, file.comment) == ("Grüße", "seed 1")
            assert (file.format, file.subtype) == (format.container, format.encoding)


@pytest.mark.parametrize(
    ("name", "step"), [("wav", 2**-16), ("wav24", 2**-24), ("wav_float", 0), ("flac", 2**-16), ("flac24", 2**-24)]
)
def test_formats_without_loss_keep_the_bits_that_they_promise(name, step, tmp_path):
    samples = noise(1).clip(-1, 1)
    path = tmp_path / f"out{FORMATS[name].suffix}"
    path.write_bytes(encode_audio(samples, RATE, name))
    error = np.abs(soundfile.read(path, dtype="float64")[0] - samples).max()
    assert step / 2 <= error <= 2 * step


@pytest.mark.parametrize(
    ("path", "format", "message"),
    [
        ("out.wav", "m4a", "format must be one of wav, wav24, wav_float, flac, flac24, mp3, ogg, opus, got 'm4a'"),
        ("out.wav", "flac24", r"path must end in \.flac for the format flac24, got .*out\.wav"),
        ("out.wav", 1, "format must be a string, got 1"),
    ],
)
def test_wrong_formats(path, format, message, tmp_path):
    with pytest.raises(ParameterError, match=message):
        check_output_path(tmp_path / path, format)


def test_a_sampling_rate_that_a_format_lacks_is_told():
    with pytest.raises(ParameterError, match="the audio can't be written as OGG at 22050 Hz: "):
        encode_audio(noise(1), 22050, "opus")


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
        ("out.m4a", r"path must end in \.wav, \.flac, \.mp3, \.ogg, \.opus, got .*out\.m4a"),
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
