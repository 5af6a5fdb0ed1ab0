"""Books become a file, a file per chapter, or an audio book with marks of chapters."""

import numpy as np
import pytest
import soundfile

from higgs_native.errors import ParameterError
from higgs_native.long_form.long_speech import LongSpeech
from higgs_native.long_form.settings import Pauses
from higgs_native.manuscript.books.book import Book, Chapter
from tests.long_form.conftest import RATE


BOOK = Book("The Book", (Chapter("Sun", "The sun rises."), Chapter("Water", "The water is cold. It is clear.")))


@pytest.fixture(scope="module")
def speech(engine, tmp_path_factory):
    folder = tmp_path_factory.mktemp("book") / "parts"
    return LongSpeech(engine, BOOK, folder, seed=1, pauses=Pauses(chapter=1.25))


def test_a_book_is_its_chapters_and_the_pauses_before_them(speech):
    assert [chunk.boundary for chunk in speech.chunks] == ["paragraph", "chapter", "sentence"]
    chunks = list(speech)
    assert not chunks[1].pcm[: round(1.25 * RATE)].any()
    assert chunks[1].pcm[round(1.25 * RATE) :][:2000].any()


def test_a_file_per_chapter(speech, tmp_path):
    paths = speech.save_chapters(tmp_path / "out", "flac")
    assert [path.name for path in paths] == ["01 Sun.flac", "02 Water.flac"]
    first, second, third = (chunk.pcm for chunk in speech)
    for path, title, expected in zip(
        paths, ("Sun", "Water"), (first, np.concatenate([second[round(1.25 * RATE) :], third])), strict=True
    ):
        with soundfile.SoundFile(path) as file:
            assert file.title == title
            np.testing.assert_array_equal(file.read(dtype="int16"), expected)


def test_an_audio_book_has_marks(speech, tmp_path):
    av = pytest.importorskip("av")
    for speed in (1, 1.25):
        speech.save(tmp_path / "book.m4b", speed=speed)
        lengths = [len(chunk.pcm) / RATE / speed for chunk in speech]
        with av.open(str(tmp_path / "book.m4b")) as container:
            assert container.metadata["title"] == "The Book"
            assert container.metadata["comment"] == "model embedded_voice, seed 1"
            marks = container.chapters()
            duration = container.duration / 1e6
        assert [mark["metadata"]["title"] for mark in marks] == ["Sun", "Water"]
        begins = [float(mark["start"] * mark["time_base"]) for mark in marks]
        assert begins == pytest.approx([0, lengths[0]], abs=1e-3)
        assert duration == pytest.approx(sum(lengths), abs=0.1)


def test_wrong_outputs(speech, tmp_path):
    with pytest.raises(ParameterError, match=r"format must be left out for \.m4b, got 'flac'"):
        speech.save(tmp_path / "book.m4b", "flac")
    with pytest.raises(ParameterError, match="can't be written: No such file"):
        speech.save(tmp_path / "none" / "book.m4b")
    (tmp_path / "file").touch()
    with pytest.raises(ParameterError, match=r"the folder .*file can't be made: File exists"):
        speech.save_chapters(tmp_path / "file")


def test_subtitles_of_chunks_are_exact(speech, tmp_path):
    cues = list(speech.cues())
    assert [cue.text for cue in cues] == ["The sun rises.", "The water is cold.", "It is clear."]
    position = 0
    for cue, chunk, pause in zip(cues, speech, (0, 1.25, Pauses.sentence), strict=True):
        assert cue.start == pytest.approx((position + round(pause * RATE)) / RATE, abs=1e-9)
        position += len(chunk.pcm)
        assert cue.end == pytest.approx(position / RATE, abs=1e-9)
    words = list(speech.cues(words=True))
    assert [cue.text for cue in words] == ["The", "sun", "rises.", "The", "water", "is", "cold.", "It", "is", "clear."]
    assert (words[0].start, words[-1].end) == (cues[0].start, cues[-1].end)
    speech.save_subtitles(tmp_path / "book.srt")
    assert (tmp_path / "book.srt").read_text().startswith("1\n00:00:00,000 --> 00:00:0")
    with pytest.raises(ParameterError, match=r"subtitles must end in \.srt, \.vtt"):
        speech.save_subtitles(tmp_path / "book.txt")
