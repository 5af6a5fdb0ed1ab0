"""Encodes samples in an audio format, piece by piece while they are generated."""

import threading

import av
import numpy as np

from higgs_native.audio.files.formats import FORMATS
from higgs_native.audio.tempo import Tempo, audio_frame, check_speed
from higgs_native.errors import ParameterError


# Formats that files can have, too, share their media type.
MEDIA_TYPES = {
    "mp3": FORMATS["mp3"].media_type,
    "opus": FORMATS["opus"].media_type,
    "aac": "audio/aac",
    "flac": FORMATS["flac"].media_type,
    "wav": FORMATS["wav"].media_type,
    "pcm": "audio/pcm",
}

# FFmpeg's container, codec, options of the container, and bits per second. The options leave out headers that FFmpeg
# would rewrite at the end, which a stream can't, and keep pages of Ogg short: by default they hold a second.
_CODECS = {
    "mp3": ("mp3", "libmp3lame", {"write_xing": "0", "id3v2_version": "0"}, 128_000),
    "opus": ("ogg", "libopus", {"page_duration": "100000"}, 64_000),
    "aac": ("adts", "aac", {}, 96_000),
    "flac": ("flac", "flac", {}, None),
}
_UNKNOWN_LENGTH = 2**32 - 1


def wav_header(sampling_rate: int, num_bytes: int | None = None) -> bytes:
    """Return the header of a mono 16-bit WAV file. Without `num_bytes`, its length is unknown: 0xFFFFFFFF."""
    riff, data = (_UNKNOWN_LENGTH, _UNKNOWN_LENGTH) if num_bytes is None else (36 + num_bytes, num_bytes)
    numbers = [(16, 4), (1, 2), (1, 2), (sampling_rate, 4), (2 * sampling_rate, 4), (2, 2), (16, 2)]
    described = b"".join(value.to_bytes(size, "little") for value, size in numbers)
    return b"RIFF%bWAVEfmt %bdata%b" % (riff.to_bytes(4, "little"), described, data.to_bytes(4, "little"))


class AudioEncoder:
    """Encodes one speech. Each piece holds whole frames of the format.

        with closing(AudioEncoder("mp3", 24000)) as encoder:
            for chunk in stream:
                send(encoder.encode(pcm_samples(chunk.samples)))
            send(encoder.finish())

    Args:
        format: one of `MEDIA_TYPES`.
        sampling_rate: in Hz.
        speed: of the speech, 0.25 to 4; the pitch stays.

    Raises:
        ParameterError: there is no such format, or the speed is out of range.
    """

    def __init__(self, format: str, sampling_rate: int, speed: float = 1.0) -> None:
        if format not in MEDIA_TYPES:
            raise ParameterError(f"response_format must be one of {', '.join(MEDIA_TYPES)}, got {format!r:.50}")
        check_speed(speed)
        self._sampling_rate = sampling_rate
        self._tempo = None if speed == 1 else Tempo(sampling_rate, speed)
        self._encoded = _Sink()
        # A client may leave while a thread encodes: the codec must outlast that call.
        self._busy = threading.Lock()
        self._is_closed = False
        self._position = 0
        self._container = None
        if format in _CODECS:
            name, codec, options, bit_rate = _CODECS[format]
            self._container = av.open(self._encoded, "w", format=name, options={**options, "flush_packets": "1"})
            self._stream = self._container.add_stream(codec, rate=sampling_rate)
            self._stream.codec_context.layout = "mono"
            if bit_rate is not None:
                self._stream.bit_rate = bit_rate
        elif format == "wav":
            self._encoded.write(wav_header(sampling_rate))

    @property
    def num_samples(self) -> int:
        """The number of samples that were encoded, after the change of speed."""
        return self._position

    @property
    def is_copy(self) -> bool:
        """Whether encoding only copies the samples, so that it may run in the event loop."""
        return self._container is None and self._tempo is None

    def encode(self, samples: np.ndarray) -> bytes:
        """Encode samples [samples], int16, and return the bytes that are complete; nothing after `close`."""
        with self._busy:
            if self._is_closed:
                return b""
            if self._tempo is not None:
                samples = self._tempo.change(samples)
            self._encode(samples)
            return self._encoded.take()

    def finish(self) -> bytes:
        """Return the rest."""
        with self._busy:
            if self._tempo is not None:
                self._encode(self._tempo.finish())
            if self._container is not None:
                self._container.mux(self._stream.encode(None))
                self._container.close()
            return self._encoded.take()

    def close(self) -> None:
        """Free the codec. An abandoned one would keep its two threads until garbage collection."""
        with self._busy:
            self._is_closed = True
            if self._container is not None:
                self._container.close()

    def _encode(self, samples: np.ndarray) -> None:
        if not len(samples):
            return
        if self._container is None:
            self._encoded.write(samples.astype("<i2", copy=False).tobytes())
        else:
            self._container.mux(self._stream.encode(audio_frame(samples, self._sampling_rate, self._position)))
        self._position += len(samples)


class _Sink:
    """Collects the bytes that a container writes. Without `seek`, the container writes a stream."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def write(self, data: bytes) -> int:
        self._bytes += data
        return len(data)

    def take(self) -> bytes:
        taken = bytes(self._bytes)
        self._bytes.clear()
        return taken
