"""Writing audio files, completely or not at all."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import soundfile

from higgs_native.audio.files.formats import AudioFormat, find_format, format_of
from higgs_native.audio.files.libsndfile import SoundFile, memory_file, read_at, write_at
from higgs_native.errors import ParameterError
from higgs_native.utils.checks import expanded_path
from higgs_native.utils.files import check_file_can_be_made, replacing


# Encoders rewrite the header (sizes, a checksum) when they close a file. All headers are far shorter than this.
_MAX_HEADER_BYTES = 64 << 10
_COPY_BYTES = 1 << 20


class AudioWriter:
    """Encodes samples into a file, block by block.

    The encoder writes into memory, and each encoded block is moved to the file. Memory holds one block, and an
    exception between two calls of the library, such as that of a signal handler, ends the writing.

    Args:
        path: the file's name in errors.
        target: descriptor of the file that is written.
        memory: descriptor of an empty file in memory.
        sampling_rate: in Hz.
        format: what to write.
        tags: texts about the audio by libsndfile's names: `title`, `comment`, `software`, ...

    Raises:
        ParameterError: the format can't hold audio of this sampling rate.
    """

    def __init__(
        self,
        path: str | Path,
        target: int,
        memory: int,
        sampling_rate: int,
        format: AudioFormat,
        tags: Mapping[str, str],
    ) -> None:
        self._path = path
        self._target = target
        self._memory = memory
        self._num_moved = 0
        with self._reporting_errors():
            try:
                self._encoder = SoundFile(
                    memory, "w", sampling_rate, 1, format.encoding, format=format.container, closefd=False
                )
            except soundfile.LibsndfileError as error:
                self._check_room()
                raise ParameterError(
                    f"{path} can't be written as {format.container} at {sampling_rate} Hz: {error.error_string}"
                ) from None
            for name, value in tags.items():
                setattr(self._encoder, name, value)

    def write(self, samples: np.ndarray) -> None:
        """Encode samples [samples], float32 or int16. Formats of integers clip them to full scale.

        Raises:
            ParameterError: the file can't be written, for example because the disk is full.
        """
        with self._reporting_errors():
            self._encoder.write(samples)
        self._move()

    def finish(self) -> None:
        """Write the encoder's remaining bytes and the final header.

        Raises:
            ParameterError: as for `write`.
        """
        with self._reporting_errors():
            self._encoder.close()
        self._check_room()  # libsndfile does not report a failure to write the last bytes
        num_rewritten = min(self._num_moved, _MAX_HEADER_BYTES)
        self._move()
        self._copy(0, num_rewritten)

    def close(self) -> None:
        """Release the encoder. Without an earlier `finish`, the file is incomplete."""
        with suppress(soundfile.SoundFileError):  # the exception that ended the writing is the one to report
            self._encoder.close()

    def _move(self) -> None:
        size = os.fstat(self._memory).st_size
        self._copy(self._num_moved, size)
        self._num_moved = size
        if size > _MAX_HEADER_BYTES:
            os.ftruncate(self._memory, _MAX_HEADER_BYTES)
            os.ftruncate(self._memory, size)  # leaves a hole, which takes no memory

    def _copy(self, begin: int, end: int) -> None:
        try:
            while begin < end:
                piece = read_at(self._memory, min(end - begin, _COPY_BYTES), begin)
                begin += write_at(self._target, piece, begin)
        except OSError as error:
            raise self._error(error) from None

    def _check_room(self) -> None:
        """Raise ParameterError if a file of this size can't grow, even in memory (RLIMIT_FSIZE)."""
        size = os.fstat(self._memory).st_size
        try:
            write_at(self._memory, b"\0", size)
        except OSError as error:
            raise self._error(error) from None
        os.ftruncate(self._memory, size)

    @contextmanager
    def _reporting_errors(self) -> Iterator[None]:
        """Report the system's error. libsndfile calls it a "System error", or silently cuts the audio."""
        try:
            yield
        except (soundfile.SoundFileError, AssertionError):
            self._check_room()
            raise

    def _error(self, error: OSError) -> ParameterError:
        return ParameterError(f"{self._path} can't be written: {error.strerror}")


@contextmanager
def writing_audio(
    path: str | Path, sampling_rate: int, format: str | None = None, tags: Mapping[str, str] | None = None
) -> Iterator[AudioWriter]:
    """Open a mono audio file for writing.

    The complete file replaces an old one at the end; after an exception the old file is kept.

    Args:
        path: of the file.
        sampling_rate: in Hz.
        format: one of `FORMATS`; None: that of the suffix.
        tags: see `AudioWriter`.

    Raises:
        ParameterError: as for `check_output_path`, or the disk is full.
    """
    path = check_output_path(path, format)
    with (
        replacing(path) as temporary,
        temporary.open("wb", buffering=0) as target,
        _encoding(path, target.fileno(), sampling_rate, format_of(path, format), tags) as writer,
    ):
        yield writer


def encode_audio(
    samples: np.ndarray, sampling_rate: int, format: str = "wav", tags: Mapping[str, str] | None = None
) -> bytes:
    """Return the contents of an audio file.

    Args:
        samples: [samples], float32 or int16.
        sampling_rate, tags: as for `writing_audio`.
        format: one of `FORMATS`.

    Raises:
        ParameterError: there is no such format, or it can't hold audio of this sampling rate.
    """
    with memory_file() as target:
        with _encoding("the audio", target, sampling_rate, find_format(format), tags) as writer:
            writer.write(samples)
        return read_at(target, os.fstat(target).st_size, 0)


@contextmanager
def _encoding(
    path: str | Path, target: int, sampling_rate: int, format: AudioFormat, tags: Mapping[str, str] | None
) -> Iterator[AudioWriter]:
    with memory_file() as memory:
        writer = AudioWriter(path, target, memory, sampling_rate, format, tags or {})
        try:
            yield writer
            writer.finish()
        finally:
            writer.close()


def check_output_path(path: str | Path, format: str | None = None) -> Path:
    """Return `path` if an audio file can be written there; an existing file is not changed.

    Raises:
        ParameterError: it is no path, there is no such format, the suffix is that of no or another format, or the
            folder is not writable.
    """
    path = Path(expanded_path("path", path))
    format_of(path, format)
    check_file_can_be_made(path)
    return path
