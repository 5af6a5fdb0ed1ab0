"""Speech that has gone wrong, told from its codes, its sound and its length.

A text-to-speech model now and then loses its text: it goes on without end, falls silent, says the same over and over,
or stops long before the text does. None of this takes listening to notice. The bounds are far from what speech is
like, so that an unusual pace or a long pause is no failure.
"""

import math
from typing import Literal

import numpy as np
import regex
import torch

from higgs_native.long_form.chunking import spoken_seconds
from higgs_native.speech import Speech


Failure = Literal["no end", "too short", "silence", "repetition"]

MAX_PACE = 2.5
GRACE_SECONDS = 2.0
"""Speech may last `MAX_PACE` times as long as its text should take, and so much more: a slow speaker takes 1.6 times
as long, and a short text may stand between pauses. What has not ended by then has no end."""

MIN_PACE = 0.5
"""Speech that takes less than this share of the time that its text should take has left words out. The fastest
speakers take 0.6."""

MAX_SILENCE_SECONDS = 2.0
SILENT_LEVEL = 1e-3
SILENT_RATIO = 1e-2
"""A frame of 40 ms is silent if its RMS level is below -60 dB of full scale, or 40 dB below the loudest frame. Pauses
in speech, those between sentences included, stay under 1.5 seconds."""

REPETITION_FRAMES = 50
MAX_PERIOD = 50
MIN_AGREEMENT = 0.8
"""Speech repeats itself if over 2 seconds (50 frames) four in five frames have the first two codes of the frame one
period before, for a period of up to 2 seconds. The embedded voice, which speaks on one note, reaches 0.22. Not all
frames must agree: repetition-aware sampling breaks up loops without ending them."""

_UNSPOKEN = regex.compile(r"[^\p{L}\p{M}\p{N}]")


def max_seconds(text: str) -> float:
    """How long the speech of a text may last before it counts as one without end."""
    return MAX_PACE * spoken_seconds(text) + GRACE_SECONDS


def detect_failures(speech: Speech, text: str) -> list[Failure]:
    """Return what is wrong with the speech of a text; an empty list where nothing is.

    - `no end`: it was cut off at `max_new_tokens` (see `max_seconds`), or lasts longer than `max_seconds`.
    - `too short`: it takes less than `MIN_PACE` of what the text's letters and digits should take, or there is no
      audio at all. Punctuation and emoji may take no time: a line of dots is passed over.
    - `silence`: it is silent for more than `MAX_SILENCE_SECONDS` at a stretch.
    - `repetition`: its codes repeat, see `REPETITION_FRAMES`.
    """
    found = {
        "no end": speech.finish_reason == "length" or speech.duration > max_seconds(text),
        "too short": not len(speech.audio) or speech.duration < MIN_PACE * spoken_seconds(_UNSPOKEN.sub("", text)),
        "silence": longest_silence(speech.audio, speech.sampling_rate) > MAX_SILENCE_SECONDS,
        "repetition": is_repeating(speech.codes),
    }
    return [failure for failure, is_found in found.items() if is_found]


def longest_silence(audio: np.ndarray, sampling_rate: int) -> float:
    """Return how long the longest silent stretch of `audio` [samples] lasts, in seconds."""
    window = math.ceil(0.04 * sampling_rate)
    frames = audio[: len(audio) // window * window].reshape(-1, window)
    levels = np.sqrt(np.square(frames, dtype=np.float64).mean(axis=1))
    loud = levels >= max(SILENT_LEVEL, SILENT_RATIO * levels.max(initial=0))
    edges = np.concatenate([[-1], np.flatnonzero(loud), [len(levels)]])
    return (int(np.diff(edges).max()) - 1) * window / sampling_rate


def is_repeating(codes: torch.Tensor) -> bool:
    """Return whether codes [codebooks, frames] repeat with some period for `REPETITION_FRAMES` frames."""
    codes = codes[:2]
    for period in range(1, min(MAX_PERIOD, codes.shape[1] - REPETITION_FRAMES) + 1):
        agree = (codes[:, period:] == codes[:, :-period]).all(dim=0)
        if int(agree.unfold(0, REPETITION_FRAMES, 1).sum(dim=1).max()) >= MIN_AGREEMENT * REPETITION_FRAMES:
            return True
    return False
