"""Audio books: AAC in .m4b files, with marks of chapters."""

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

from higgs_native.audio.tempo import audio_frame
from higgs_native.errors import ParameterError
from higgs_native.utils.checks import expanded_path
from higgs_native.utils.files import check_file_can_be_made, replacing


M4B_SUFFIX = ".m4b"
_BIT_RATE = 64_000
_TAGS = {"title": "title", "comment": "comment", "software": "encoding_tool"}


def is_m4b(path: str | Path) -> bool:
    """Return whether a path names an audio book."""
    return Path(expanded_path("path", path)).suffix.lower() == M4B_SUFFIX


def check_m4b_path(path: str | Path) -> Path:
    """Return `path` if an audio book can be written there. Raises ParameterError if not, or if PyAV is missing."""
    path = Path(expanded_path("path", path))
    try:
        import av  # noqa: F401
    except ImportError:
        raise ParameterError(
            f"path must not end in {M4B_SUFFIX} without PyAV, got {path}; pip install av writes such files"
        ) from None
    check_file_can_be_made(path)
    return path


def write_m4b(
    path: Path,
    pieces: Iterable[np.ndarray],
    sampling_rate: int,
    chapters: Sequence[tuple[str, float, float]],
    tags: Mapping[str, str],
) -> None:
    """Write an audio book, completely or not at all.

    Args:
        path: as returned by `check_m4b_path`.
        pieces: the samples [samples], int16, in order.
        sampling_rate: in Hz.
        chapters: the title, the begin and the end of each, in seconds.
        tags: as for `writing_audio`.

    Raises:
        ParameterError: the file can't be written.
    """
    import av

    unit = Fraction(1, 1000)
    marks = [
        {
            "id": index,
            "start": round(1000 * begin),
            "end": round(1000 * end),
            "time_base": unit,
            "metadata": {"title": title},
        }
        for index, (title, begin, end) in enumerate(chapters)
    ]
    try:
        with replacing(path) as temporary, av.open(str(temporary), "w", format="ipod") as container:
            stream = container.add_stream("aac", rate=sampling_rate)
            stream.codec_context.layout = "mono"
            stream.bit_rate = _BIT_RATE
            container.metadata.update({_TAGS[name]: value for name, value in tags.items()})
            container.set_chapters(marks)
            position = 0
            for piece in pieces:
                if len(piece):
                    container.mux(stream.encode(audio_frame(piece, sampling_rate, position)))
                position += len(piece)
            container.mux(stream.encode(None))
    except (av.FFmpegError, OSError) as error:
        raise ParameterError(f"{path} can't be written: {error.strerror or error}") from None
