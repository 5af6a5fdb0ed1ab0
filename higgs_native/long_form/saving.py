"""Spoken chunks into files: one of the whole, one per chapter, or an audio book."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from higgs_native.audio.files.formats import find_format, format_of
from higgs_native.audio.files.m4b import write_m4b
from higgs_native.audio.files.writing import check_output_path, writing_audio
from higgs_native.audio.loudness import block_powers, check_loudness, output_gain
from higgs_native.audio.samples import pcm_samples
from higgs_native.audio.tempo import Tempo, check_speed
from higgs_native.errors import ParameterError
from higgs_native.long_form.chunk_store import SpokenChunk
from higgs_native.speech import file_tags
from higgs_native.utils.checks import expanded_path


_MAX_WAV_BYTES = 2**32 - 2**16  # the header's sizes have 32 bits


@dataclass(frozen=True)
class ChapterStart:
    """A chapter's title, the index of its first chunk, and the pause before that chunk in samples."""

    title: str
    chunk: int
    pause: int


@dataclass(frozen=True)
class Saver:
    """Writes chunks, all of which are finished.

    Attributes:
        sampling_rate: in Hz.
        model, seed: for the tags.
        loudness, speed: as for `LongSpeech.save`.

    Raises:
        ParameterError: the loudness or the speed is out of range.
    """

    sampling_rate: int
    model: str | None
    seed: int
    loudness: float | None
    speed: float

    def __post_init__(self) -> None:
        check_loudness(self.loudness)
        check_speed(self.speed)

    def measure(self, chunks: Iterable[SpokenChunk]) -> tuple[list[int], np.float32]:
        """Return the number of samples of each chunk, and the factor that brings all to the loudness."""
        lengths, blocks, peak = [], [], 0.0
        for chunk in chunks:
            lengths.append(len(chunk.pcm))
            if self.loudness is not None and len(chunk.pcm):
                peak = max(peak, float(np.abs(chunk.audio).max()))
                blocks.append(block_powers(chunk.audio, self.sampling_rate))
        if self.loudness is None or not blocks:
            return lengths, np.float32(1)
        return lengths, output_gain(np.concatenate(blocks), peak, self.loudness)

    def save(self, chunks: Iterable[SpokenChunk], path: Path, format: str | None, title: str | None) -> None:
        """Write one file. `chunks` is iterated twice."""
        lengths, gain = self.measure(chunks)
        if sum(lengths) / self.speed * format_of(path, format).sample_bytes > _MAX_WAV_BYTES:
            raise ParameterError(
                f"{path} must be .flac, .mp3, .ogg or .opus for speech of over {_MAX_WAV_BYTES} bytes, got .wav"
            )
        self._write(chunks, path, format, title, gain)

    def save_chapters(
        self, chunks: Iterable[SpokenChunk], paths: Sequence[Path], format: str, starts: Sequence[ChapterStart]
    ) -> None:
        """Write one file per chapter, without the pause before it. `chunks` is iterated twice."""
        lengths, gain = self.measure(chunks)
        rest = iter(chunks)
        ends = [start.chunk for start in starts[1:]] + [len(lengths)]
        for path, start, end in zip(paths, starts, ends, strict=True):
            chapter = itertools.islice(rest, end - start.chunk)
            self._write(chapter, path, format, start.title, gain, start.pause)

    def save_m4b(
        self, chunks: Iterable[SpokenChunk], path: Path, title: str | None, starts: Sequence[ChapterStart]
    ) -> None:
        """Write an audio book. `chunks` is iterated twice."""
        lengths, gain = self.measure(chunks)
        seconds = np.cumsum([0, *lengths]) / self.sampling_rate / self.speed
        begins = [float(seconds[start.chunk]) for start in starts]
        ends = [*begins[1:], float(seconds[-1])]
        marks = [(start.title, begin, end) for start, begin, end in zip(starts, begins, ends, strict=True)]
        write_m4b(path, self._pcm(chunks, gain), self.sampling_rate, marks, self._tags(title))

    def _write(
        self,
        chunks: Iterable[SpokenChunk],
        path: Path,
        format: str | None,
        title: str | None,
        gain: np.float32,
        cut: int = 0,
    ) -> None:
        with writing_audio(path, self.sampling_rate, format, self._tags(title)) as file:
            for pcm in self._pcm(chunks, gain, cut):
                file.write(pcm)

    def _pcm(self, chunks: Iterable[SpokenChunk], gain: np.float32, cut: int = 0) -> Iterator[np.ndarray]:
        """Yield the samples [samples], int16; `cut` of them are left out at the beginning."""
        tempo = None if self.speed == 1 else Tempo(self.sampling_rate, self.speed)
        for chunk in chunks:
            pcm = chunk.pcm[cut:] if gain == 1 else pcm_samples(chunk.audio[cut:] * gain)
            yield pcm if tempo is None else tempo.change(pcm)
            cut = 0
        if tempo is not None:
            yield tempo.finish()

    def _tags(self, title: str | None) -> dict[str, str]:
        return file_tags(title, self.model, self.seed)


def chapter_paths(folder: str | Path, names: Sequence[str], format: str) -> list[Path]:
    """Return the paths of chapters' files in a folder, which is made if it is missing.

    Raises:
        ParameterError: there is no such format, or a file can't be written.
    """
    suffix = find_format(format).suffix
    folder = Path(expanded_path("folder", folder))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ParameterError(f"the folder {folder} can't be made: {error.strerror}") from None
    return [check_output_path(folder / f"{name}{suffix}", format) for name in names]
