"""Audio files, written whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import soundfile

from higgs_native.audio.libsndfile import SoundFile, memory_file
from higgs_native.errors import ParameterError
from higgs_native.utils.checks import expanded_path
from higgs_native.utils.files import check_file_can_be_made, replacing


# The ending of an audio file, and libsndfile's names of its format and encoding.
_FORMATS = {
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".ogg": ("OGG", "VORBIS"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
}
# Encoders write the head of a file again when they close it: sizes, a checksum. All of them keep to far fewer bytes.
_HEAD_BYTES = 64 << 10
_COPIED_BYTES = 1 << 20


class AudioWriter:
    """Encodes samples into a file, a piece at a time.

    The encoder writes into memory, and what it wrote is moved to the file after each piece. So memory holds one piece
    only, and an exception between two calls of the library, such as a signal raises, ends the writing.

    Args:
        path: the file that errors name.
        target: the descriptor of the file that is written.
        memory: the descriptor of an empty file in memory.
        sampling_rate: in Hz.
        format_name, encoding: libsndfile's names.
    """

    def __init__(
        self, path: Path, target: int, memory: int, sampling_rate: int, format_name: str, encoding: str
    ) -> None:
        self._path = path
        self._target = target
        self._memory = memory
        self._num_moved = 0
        with self._reporting_errors():
            self._encoder = SoundFile(memory, "w", sampling_rate, 1, encoding, format=format_name, closefd=False)

    def write(self, samples: np.ndarray) -> None:
        """Encode samples [samples], float32 or int16. What exceeds full scale is clipped.

        Raises:
            ParameterError: the disk is full, or the file can't be written for another reason.
        """
        with self._reporting_errors():
            self._encoder.write(samples)
        self._move()

    def finish(self) -> None:
        """Write what the encoder held back, and the final head.

        Raises:
            ParameterError: as for `write`.
        """
        with self._reporting_errors():
            self._encoder.close()
        self._check_room()  # libsndfile says nothing where the last bytes fail to be written
        num_rewritten = min(self._num_moved, _HEAD_BYTES)
        self._move()
        self._copy(0, num_rewritten)

    def close(self) -> None:
        """Release the encoder. Without `finish` before it, the file is not whole."""
        with suppress(soundfile.SoundFileError):  # whatever ended the writing is reported
            self._encoder.close()

    def _move(self) -> None:
        size = os.fstat(self._memory).st_size
        self._copy(self._num_moved, size)
        self._num_moved = size
        if size > _HEAD_BYTES:
            os.ftruncate(self._memory, _HEAD_BYTES)
            os.ftruncate(self._memory, size)  # a hole, which takes no memory

    def _copy(self, begin: int, end: int) -> None:
        try:
            while begin < end:
                piece = os.pread(self._memory, min(end - begin, _COPIED_BYTES), begin)
                begin += os.pwrite(self._target, piece, begin)
        except OSError as error:
            raise self._error(error) from None

    def _check_room(self) -> None:
        """Raise ParameterError where a file of this size can't grow, not even in memory (RLIMIT_FSIZE)."""
        size = os.fstat(self._memory).st_size
        try:
            os.pwrite(self._memory, b"\0", size)
        except OSError as error:
            raise self._error(error) from None
        os.ftruncate(self._memory, size)

    @contextmanager
    def _reporting_errors(self) -> Iterator[None]:
        """Name the system's error, which libsndfile calls a "System error" or cuts the audio for."""
        try:
            yield
        except (soundfile.SoundFileError, AssertionError):
            self._check_room()
            raise

    def _error(self, error: OSError) -> ParameterError:
        return ParameterError(f"{self._path} can't be written: {error.strerror}")


@contextmanager
def writing_audio(path: str | Path, sampling_rate: int) -> Iterator[AudioWriter]:
    """Open an audio file for writing, mono, in the format that its ending names. It appears at the end, whole.

    Any exception keeps the file that was there before.

    Raises:
        ParameterError: as for `check_output_path`, or the disk is full.
    """
    path = check_output_path(path)
    format_name, encoding = _FORMATS[path.suffix.lower()]
    with replacing(path) as temporary, temporary.open("wb", buffering=0) as target, memory_file() as memory:
        writer = AudioWriter(path, target.fileno(), memory, sampling_rate, format_name, encoding)
        try:
            yield writer
            writer.finish()
        finally:
            writer.close()


def check_output_path(path: str | Path) -> Path:
    """Return `path` if an audio file can be written there; a file that stands there is left alone.

    Raises:
        ParameterError: it is no path, the ending is not .wav, .flac, .ogg or .mp3, or the folder can't be written to.
    """
    path = Path(expanded_path("path", path))
    if path.suffix.lower() not in _FORMATS:
        raise ParameterError(f"{path} does not end in one of {', '.join(_FORMATS)}")
    check_file_can_be_made(path)
    return path
