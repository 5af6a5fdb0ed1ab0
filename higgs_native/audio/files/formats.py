"""The audio formats that files and responses are written in: one table."""

from dataclasses import dataclass
from pathlib import Path

from higgs_native.errors import ParameterError, short_repr
from higgs_native.utils.checks import check_string


@dataclass(frozen=True)
class AudioFormat:
    """A format that libsndfile writes.

    Attributes:
        suffix: of its files.
        media_type: as in HTTP.
        container, encoding: libsndfile's names.
        sample_bytes: size of a sample, if it is fixed and the file's header holds the size in 32 bits; else 0.
    """

    suffix: str
    media_type: str
    container: str
    encoding: str
    sample_bytes: int = 0


FORMATS = {
    "wav": AudioFormat(".wav", "audio/wav", "WAV", "PCM_16", 2),
    "wav24": AudioFormat(".wav", "audio/wav", "WAV", "PCM_24", 3),
    "wav_float": AudioFormat(".wav", "audio/wav", "WAV", "FLOAT", 4),
    "flac": AudioFormat(".flac", "audio/flac", "FLAC", "PCM_16"),
    "flac24": AudioFormat(".flac", "audio/flac", "FLAC", "PCM_24"),
    "mp3": AudioFormat(".mp3", "audio/mpeg", "MP3", "MPEG_LAYER_III"),
    "ogg": AudioFormat(".ogg", "audio/ogg", "OGG", "VORBIS"),
    "opus": AudioFormat(".opus", "audio/ogg", "OGG", "OPUS"),
}
"""The formats by name. The first one of a suffix is that of files which end in it."""

SUFFIXES = tuple(dict.fromkeys(format.suffix for format in FORMATS.values()))


def find_format(name: str) -> AudioFormat:
    """Return the format called `name`. Raises ParameterError if there is none."""
    check_string("format", name)
    if name not in FORMATS:
        raise ParameterError(f"format must be one of {', '.join(FORMATS)}, got {short_repr(name)}")
    return FORMATS[name]


def format_of(path: Path, name: str | None = None) -> AudioFormat:
    """Return the format of a file.

    Args:
        path: the file.
        name: of the format; None: the first one of the suffix.

    Raises:
        ParameterError: there is no such format, or its files end otherwise.
    """
    suffix = path.suffix.lower()
    if name is not None:
        format = find_format(name)
        if format.suffix != suffix:
            raise ParameterError(f"path must end in {format.suffix} for the format {name}, got {path}")
        return format
    for format in FORMATS.values():
        if format.suffix == suffix:
            return format
    raise ParameterError(f"path must end in {', '.join(SUFFIXES)}, got {path}")
