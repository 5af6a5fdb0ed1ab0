"""Decoding audio files, whole ones and what a pipe left: by libsndfile, formats that it lacks by FFmpeg."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import soundfile

from higgs_native.audio.files.ffmpeg import decode_with_ffmpeg
from higgs_native.audio.files.libsndfile import SequentialReader, memory_file, read_at, write_at
from higgs_native.audio.samples import (
    MAX_CHANNELS,
    MAX_SECONDS,
    check_duration,
    checked_rate,
    mono_samples,
    part_range,
)
from higgs_native.errors import AudioError
from higgs_native.utils.files import READING


MAX_FILE_BYTES = 128 << 20
"""Maximum size of an audio file. libsndfile looks through a damaged one, at about 30 MB per second."""
MAX_PCM_FILE_BYTES = 4 << 30
"""Maximum size of a WAV or AIFF file, hours of audio, of which a part can be read: their chunks state their sizes."""
MAX_MEMORY_BYTES = 1 << 30
"""Maximum size of an audio file in memory, of any format."""

_COPY_BYTES = 1 << 20
_UNKNOWN_LENGTH = 2**62  # libsndfile reports 2**63 - 1 frames if the header of a FLAC file leaves the length open
_MAX_CHUNKS = 100  # before the samples of a WAV file
_UNKNOWN_SIZE = b"\xff\xff\xff\xff"  # libsndfile then takes the rest of the file for samples


def decode_file(path: str | os.PathLike, offset: float, duration: float | None, name: str) -> tuple[np.ndarray, int]:
    """Decode an audio file, or a part of it, and average its channels.

    Args:
        path: a regular file of at most `MAX_FILE_BYTES`, or a WAV or AIFF file of at most `MAX_PCM_FILE_BYTES`.
        offset: begin of the part in seconds, at least 0.
        duration: maximum length of the part in seconds, at least 0; None for the rest.
        name: what errors call the file.

    Returns:
        The samples [samples], float32, full scale 1, and the sampling rate in Hz.

    Raises:
        AudioError: the file does not exist or is no audio, or the part is empty, too short, too long, or not finite.
    """
    with _opened(path, name) as descriptor:
        if _open_size(descriptor) is None:
            return _decode(descriptor, offset, duration, name, os.path.expanduser(path))
        with memory_file() as copy:
            _copy(descriptor, copy)
            return _decode_memory(copy, offset, duration, name)


def decode_bytes(contents: bytes, offset: float, duration: float | None, name: str) -> tuple[np.ndarray, int]:
    """Decode the contents of an audio file, at most `MAX_MEMORY_BYTES`; otherwise as for `decode_file`."""
    if len(contents) > MAX_MEMORY_BYTES:
        raise AudioError(f"{name} must hold at most {MAX_MEMORY_BYTES} bytes, got more")
    # libsndfile would call back into Python for the bytes of a file object.
    with memory_file(contents) as descriptor:
        return _decode_memory(descriptor, offset, duration, name)


@contextmanager
def _opened(path: str | os.PathLike, name: str) -> Iterator[int]:
    """Yield the descriptor of a regular file. A pipe or a device, which may never end, is refused."""
    try:
        descriptor = os.open(os.path.expanduser(path), READING)
    except PermissionError as error:
        raise AudioError(f"{name} can't be read as audio: {error.strerror}") from None
    except (OSError, ValueError):  # ValueError: a zero byte, or a letter that is in no file name
        raise AudioError(f"audio must be an existing file (wav, flac, ogg, mp3), got {name}") from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise AudioError(f"audio must be an existing file (wav, flac, ogg, mp3), got {name}")
        yield descriptor
    except OSError as error:
        raise AudioError(f"{name} can't be read as audio: {error.strerror}") from None
    finally:
        os.close(descriptor)


def _decode_memory(descriptor: int, offset: float, duration: float | None, name: str) -> tuple[np.ndarray, int]:
    """Decode a file in memory, which can be changed."""
    position = _open_size(descriptor)
    if position is not None:
        write_at(descriptor, _UNKNOWN_SIZE, position)
    return _decode(descriptor, offset, duration, name)


def _decode(
    descriptor: int, offset: float, duration: float | None, name: str, path: str | None = None
) -> tuple[np.ndarray, int]:
    """Decode an open file; `path` names it, if it has a name."""
    is_pcm = read_at(descriptor, 4, 0) in (b"RIFF", b"RF64", b"FORM")
    max_bytes, num_bytes = MAX_PCM_FILE_BYTES if is_pcm else MAX_FILE_BYTES, os.fstat(descriptor).st_size
    if num_bytes > max_bytes:
        raise AudioError(f"{name} must hold at most {max_bytes} bytes, got {num_bytes}")
    try:
        file = _reader(descriptor, path)
    except soundfile.SoundFileError as error:
        samples, rate = decode_with_ffmpeg(descriptor, offset, duration, name, _reason(error))
    else:
        try:
            with file:
                samples, rate = _read_part(file, offset, duration, name)
        except soundfile.SoundFileError as error:
            raise AudioError(f"{name} can't be read as audio: {_reason(error)}") from None
    if len(samples) > MAX_SECONDS * rate:  # of an unknown length, since a known one is checked before reading
        raise AudioError(f"{name} must last at most {MAX_SECONDS:g} s, got more")
    return mono_samples(samples, rate, name=name)  # checks the length again: a header may promise more


def _reader(descriptor: int, path: str | None) -> SequentialReader:
    os.lseek(descriptor, 0, os.SEEK_SET)
    try:
        return SequentialReader(descriptor, closefd=False)
    except soundfile.SoundFileError:
        # A cut MP3 stream begins within a frame. Only by its name libsndfile then knows to look for the next one.
        if path is None or not path.lower().endswith(".mp3"):
            raise
        return SequentialReader(os.fsencode(path))


def _read_part(file: SequentialReader, offset: float, duration: float | None, name: str) -> tuple[np.ndarray, int]:
    """Return the samples of a part and their rate. Of a file of unknown length, no more than can be used is read."""
    rate = checked_rate(file.samplerate)
    if file.channels > MAX_CHANNELS:
        raise AudioError(f"{name} must have at most {MAX_CHANNELS} channels, got {file.channels}")
    begin, count = part_range(file.frames, rate, offset, duration, name)
    if file.frames < _UNKNOWN_LENGTH:
        check_duration(count, rate, name)  # before reading, since hours of audio would fill the memory
        file.seek(begin)
        return _joined(file.mono_blocks(count)), rate
    num_skipped = sum(map(len, file.mono_blocks(begin)))  # libsndfile can't seek in such a file
    samples = _joined(file.mono_blocks(min(count, int(MAX_SECONDS * rate) + 1)))
    if not len(samples):
        part_range(num_skipped, rate, offset, duration, name)  # refuses an offset beyond the end
    return samples, rate


def _joined(blocks: Iterator[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype=np.float32), *blocks])


def _open_size(descriptor: int) -> int | None:
    """Return where a WAV file states a size of 0 for its samples although some follow; None for any other file.

    So does a writer that can't return to the header, since it writes to a pipe. The size of such a file is wrong, too.
    """
    header = read_at(descriptor, 12, 0)
    num_bytes = os.fstat(descriptor).st_size
    if header[:4] != b"RIFF" or header[8:] != b"WAVE" or header[4:8] == (num_bytes - 8).to_bytes(8, "little")[:4]:
        return None
    position = 12
    for _ in range(_MAX_CHUNKS):
        chunk = read_at(descriptor, 8, position)
        size = int.from_bytes(chunk[4:], "little")
        if len(chunk) < 8 or chunk[:4] == b"data":
            return position + 4 if chunk[:4] == b"data" and not size else None
        position += 8 + size + size % 2
    return None


def _copy(source: int, target: int) -> None:
    """Copy a file, at most `MAX_MEMORY_BYTES`."""
    position = 0
    while position < MAX_MEMORY_BYTES and (block := read_at(source, _COPY_BYTES, position)):
        position += write_at(target, block, position)


def _reason(error: soundfile.SoundFileError) -> str:
    """Return libsndfile's words, without the file's name, which is a descriptor."""
    return getattr(error, "error_string", str(error)).strip()
