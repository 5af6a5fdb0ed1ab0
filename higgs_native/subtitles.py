"""Subtitles: what is spoken when, as SubRip (.srt) and WebVTT (.vtt) files.

Times of whole chunks are exact. Times of words within a chunk are estimated from two things: a word takes time in
proportion to its letters, and the pauses that the signal has lie between words, rather at punctuation than elsewhere.
No recognizer and no attention of the model is used.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import regex

from higgs_native.errors import ParameterError
from higgs_native.prompt.markup import CONTROL_TAG, SPEAKER_TAG
from higgs_native.prompt.pace import spoken_milliseconds
from higgs_native.utils.checks import expanded_path
from higgs_native.utils.files import check_file_can_be_made, replacing


MAX_CUE_CHARACTERS = 84
"""Two lines of 42 characters, as broadcasters have them."""
SUFFIXES = (".srt", ".vtt")
MIN_PAUSE_SECONDS = 0.09
"""The shortest pause in the signal that counts; the gap before a plosive is about as long."""

_FRAME_SECONDS = 0.01
_SILENT_RATIO = 0.03
"""A frame is silent if it is 30 dB below the loud ones (the 95th percentile)."""
_NO_MARK_COST = 0.2
"""Cost of a pause after a word without punctuation, in seconds of misfit. A gap within a word costs its length."""
_MAX_SOUNDS = 12
_MAX_DRIFT = 5.0
"""Bounds of the work for long speech: stretches of sound within a piece, and seconds by which letters may mislead."""
_MARKED = regex.compile(r"[\p{P}--['’\-]](?<!\.\w)$", regex.VERSION1)
_UNSPOKEN = regex.compile(r"[^\p{L}\p{M}\p{N}]")
_SENTENCE_END = regex.compile(r"[.!?。！？…][\"'”’)\]]*$")


@dataclass(frozen=True)
class Cue:
    """The text that is spoken in a span of time.

    Attributes:
        start, end: in seconds.
        text: in one line.
    """

    start: float
    end: float
    text: str


def word_cues(
    text: str, samples: np.ndarray, sampling_rate: int, start: float = 0.0, min_pause: float = MIN_PAUSE_SECONDS
) -> list[Cue]:
    """Return the estimated times of the words in a speech.

    Args:
        text: that is spoken; words are what white space separates.
        samples: [samples], floating, the speech.
        sampling_rate: in Hz.
        start: the time of the first sample, in seconds.
        min_pause: the shortest pause in the signal that counts, in seconds.
    """
    words = CONTROL_TAG.sub("", SPEAKER_TAG.sub(" ", text)).split()
    if not words:
        return []
    weights = np.array([max(1, spoken_milliseconds(_UNSPOKEN.sub("", word))) for word in words], dtype=np.float64)
    sounds = _sounds(samples, sampling_rate, min_pause)
    pieces = _assigned(sounds, weights, np.array([_MARKED.search(word) is not None for word in words]))
    cues = []
    for first, last, begin, end in pieces:
        times = begin + (end - begin) * np.cumsum([0.0, *weights[first:last]]) / weights[first:last].sum()
        for index, word in enumerate(words[first:last]):
            cues.append(Cue(start + float(times[index]), start + float(times[index + 1]), word))
    return cues


def _sounds(samples: np.ndarray, sampling_rate: int, min_pause: float) -> list[tuple[float, float]]:
    """Return the begin and the end of each stretch of sound between pauses, in seconds; the whole if all is silent."""
    hop = round(_FRAME_SECONDS * sampling_rate)
    count = len(samples) // hop
    levels = np.sqrt(np.square(samples[: count * hop].reshape(count, hop), dtype=np.float64).mean(axis=1))
    loud = np.flatnonzero(levels > _SILENT_RATIO * np.quantile(levels, 0.95)) if count else np.zeros(0, dtype=int)
    if not len(loud):
        return [(0.0, len(samples) / sampling_rate)]
    breaks = np.flatnonzero(np.diff(loud) > min_pause / _FRAME_SECONDS)
    begins, ends = loud[[0, *(breaks + 1)]], loud[[*breaks, -1]] + 1
    return [
        (float(begin * hop / sampling_rate), float(end * hop / sampling_rate))
        for begin, end in zip(begins, ends, strict=True)
    ]


def _assigned(
    sounds: Sequence[tuple[float, float]], weights: np.ndarray, marked: np.ndarray
) -> list[tuple[int, int, float, float]]:
    """Share words out to stretches of sound: the cheapest choice of pauses that lie between words.

    Returns:
        For each piece between chosen pauses: its first word, the word after its last, its begin and its end.
    """
    num_words, num_sounds = len(weights), len(sounds)
    lengths = np.array([end - begin for begin, end in sounds])
    gaps = np.array([after[0] - before[1] for before, after in itertools.pairwise(sounds)])
    seconds = np.concatenate([[0.0], np.cumsum(weights)]) * lengths.sum() / weights.sum()
    at_mark = np.concatenate([[0.0], np.where(marked, 0.0, _NO_MARK_COST)])
    at_mark[-1] = 0.0
    # The words that may end with each sound: those whose letters take about as long as the sounds so far.
    elapsed = np.concatenate([[0.0], np.cumsum(lengths)])
    lows = np.searchsorted(seconds, elapsed - _MAX_DRIFT)
    highs = np.searchsorted(seconds, elapsed + _MAX_DRIFT, side="right")
    # costs[s][w]: of the best pieces that end with sound s - 1 and word w - 1.
    costs = np.full((num_sounds + 1, num_words + 1), np.inf)
    costs[0, 0] = 0.0
    choices = np.zeros((num_sounds + 1, num_words + 1, 2), dtype=np.int64)
    for last in range(1, num_sounds + 1):
        ends = np.arange(lows[last], highs[last])
        for first in range(max(0, last - _MAX_SOUNDS), last):
            begins = np.arange(lows[first], highs[first])
            within = gaps[first : last - 1].sum()
            expected = seconds[None, ends] - seconds[begins, None]
            misfit = np.square(lengths[first:last].sum() + within - expected) / (np.abs(expected) + _NO_MARK_COST)
            total = np.where(expected > 0, costs[first][begins, None] + misfit + within + at_mark[None, ends], np.inf)
            if not total.size:
                continue
            best = total.argmin(axis=0)
            found = total[best, np.arange(len(ends))]
            better = found < costs[last][ends]
            costs[last][ends[better]] = found[better]
            choices[last][ends[better]] = np.stack([np.full(len(ends), first), begins[best]], axis=1)[better]
    if not np.isfinite(costs[-1, -1]):  # such as far more pauses than words
        return [(0, num_words, sounds[0][0], sounds[-1][1])]
    pieces = []
    sound, word = num_sounds, num_words
    while sound:
        first_sound, first_word = (int(value) for value in choices[sound, word])
        pieces.append((first_word, word, sounds[first_sound][0], sounds[sound - 1][1]))
        sound, word = first_sound, first_word
    return pieces[::-1]


def phrase_cues(words: Iterable[Cue]) -> list[Cue]:
    """Join words into cues of a sentence, or of a part of it that has at most `MAX_CUE_CHARACTERS`."""
    cues: list[Cue] = []
    held: list[Cue] = []
    for word in words:
        if held and sum(len(cue.text) + 1 for cue in held) + len(word.text) > MAX_CUE_CHARACTERS:
            cues.append(_joined(held))
            held = []
        held.append(word)
        if _SENTENCE_END.search(word.text):
            cues.append(_joined(held))
            held = []
    return cues + ([_joined(held)] if held else [])


def chunk_cues(text: str, samples: np.ndarray, sampling_rate: int, start: float, words: bool = False) -> list[Cue]:
    """Return the cues of a chunk of speech, whose begin and end are exact.

    Args:
        text, samples, sampling_rate, start: as for `word_cues`.
        words: a cue per word, instead of a cue per sentence or part of it.
    """
    found = word_cues(text, samples, sampling_rate, start)
    cues = found if words else phrase_cues(found)
    if cues:
        cues[0] = replace(cues[0], start=start)
        cues[-1] = replace(cues[-1], end=start + len(samples) / sampling_rate)
    return cues


def _joined(cues: Sequence[Cue]) -> Cue:
    return Cue(cues[0].start, cues[-1].end, " ".join(cue.text for cue in cues))


def check_subtitles_path(path: str | Path) -> Path:
    """Return `path` if subtitles can be written there.

    Raises:
        ParameterError: it ends in neither .srt nor .vtt, or can't be written.
    """
    path = Path(expanded_path("subtitles", path))
    if path.suffix.lower() not in SUFFIXES:
        raise ParameterError(f"subtitles must end in {', '.join(SUFFIXES)}, got {path}")
    check_file_can_be_made(path)
    return path


def write_subtitles(path: Path, cues: Iterable[Cue], speed: float = 1.0) -> None:
    """Write a .srt or .vtt file.

    Args:
        path: as returned by `check_subtitles_path`.
        cues: in order.
        speed: of the audio, by which the times are divided.

    Raises:
        ParameterError: the file can't be written.
    """
    is_vtt = path.suffix.lower() == ".vtt"
    blocks = ["WEBVTT\n"] if is_vtt else []
    for number, cue in enumerate(cues, start=1):
        times = f"{_timestamp(cue.start / speed, is_vtt)} --> {_timestamp(cue.end / speed, is_vtt)}"
        text = cue.text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;") if is_vtt else cue.text
        blocks.append(f"{times}\n{text}\n" if is_vtt else f"{number}\n{times}\n{text}\n")
    try:
        with replacing(path) as temporary:
            temporary.write_text("\n".join(blocks), encoding="utf-8")
    except OSError as error:
        raise ParameterError(f"{path} can't be written: {error.strerror}") from None


def _timestamp(seconds: float, is_vtt: bool) -> str:
    milliseconds = round(1000 * seconds)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    mark = "." if is_vtt else ","
    return f"{hours:02}:{minutes:02}:{milliseconds // 1000:02}{mark}{milliseconds % 1000:03}"
