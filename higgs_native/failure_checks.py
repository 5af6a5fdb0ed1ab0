"""Detection of failed speech by its codes, its samples and its duration.

A text-to-speech model sometimes loses its text: it does not stop, falls silent, repeats itself, or stops much too
early. All bounds are far from real speech, so that an unusual pace or a long pause is no failure.
"""

from typing import Literal

import numpy as np
import regex
import torch

from higgs_native.prompt.markup import SPEAKER_TAG
from higgs_native.prompt.pace import spoken_seconds


Failure = Literal["no end", "too short", "silence", "repetition"]

MAX_PACE = 2.5
GRACE_SECONDS = 2.0
"""Speech may last `MAX_PACE` times the `spoken_seconds` of its text, and `GRACE_SECONDS` more. Slow speakers take 1.6
times as long, and a short text may be spoken between pauses."""

MIN_PACE = 0.5
"""Speech shorter than this share of the `spoken_seconds` of its text lacks words. The fastest speakers take 0.6."""

MAX_SILENCE_SECONDS = 2.0
SILENT_LEVEL = 1e-3
SILENT_RATIO = 1e-2
"""A frame of 40 ms is silent if its RMS level is below -60 dB of full scale, or 40 dB below the loudest frame. Pauses
in speech, also between sentences, are shorter than 1.5 seconds."""

REPETITION_FRAMES = 50
MAX_PERIOD = 50
MIN_AGREEMENT = 0.8
"""Speech repeats itself if, for a period of up to 2 seconds, four in five of 50 frames (2 seconds) have the first two
codes of the frame one period before. A voice that speaks on one note reaches 0.22. Not all frames must
agree, since repetition-aware sampling varies loops without ending them."""

_UNSPOKEN = regex.compile(r"[^\p{L}\p{M}\p{N}]")


def max_seconds(text: str) -> float:
    """Return the maximum duration of a text's speech, in seconds; longer speech has no end."""
    return MAX_PACE * spoken_seconds(text) + GRACE_SECONDS


def detect_failures(
    text: str, levels: np.ndarray, codes: torch.Tensor, frame_rate: float, finish_reason: str
) -> tuple[Failure, ...]:
    """Return the failures of a text's speech; none if it is good.

    - `no end`: it was stopped at `max_new_tokens`, or lasts longer than `max_seconds`.
    - `too short`: it has no audio, or lasts less than `MIN_PACE` times the `spoken_seconds` of the text's letters and
      digits. Punctuation and emoji need no time: a row of dots may be skipped.
    - `silence`: it is silent for more than `MAX_SILENCE_SECONDS` without a break.
    - `repetition`: its codes repeat; see `REPETITION_FRAMES`.

    Args:
        text: the spoken text; speaker tags take no time.
        levels: [frames], of the speech as generated, its ends not trimmed; see `frame_levels`.
        codes: [codebooks, frames].
        frame_rate: frames per second.
        finish_reason: as in `Speech`.
    """
    text = SPEAKER_TAG.sub("", text)
    duration = len(levels) / frame_rate
    found: dict[Failure, bool] = {
        "no end": finish_reason == "length" or duration > max_seconds(text),
        "too short": not len(levels) or duration < MIN_PACE * spoken_seconds(_UNSPOKEN.sub("", text)),
        "silence": longest_silence(levels) / frame_rate > MAX_SILENCE_SECONDS,
        "repetition": is_repeating(codes),
    }
    return tuple(failure for failure, is_found in found.items() if is_found)


def frame_levels(audio: np.ndarray, hop_length: int) -> np.ndarray:
    """Return the RMS levels [frames] of audio [frames * hop_length], float32."""
    return np.sqrt(np.square(audio.reshape(-1, hop_length), dtype=np.float64).mean(axis=1))


def longest_silence(levels: np.ndarray) -> int:
    """Return the number of frames of the longest silence, given the levels [frames] of all frames."""
    loud = levels >= max(SILENT_LEVEL, SILENT_RATIO * levels.max(initial=0))
    edges = np.concatenate([[-1], np.flatnonzero(loud), [len(levels)]])
    return int(np.diff(edges).max()) - 1


def is_repeating(codes: torch.Tensor) -> bool:
    """Return whether codes [codebooks, frames] repeat with any period; see `REPETITION_FRAMES`."""
    codes = codes[:2]
    for period in range(1, min(MAX_PERIOD, codes.shape[1] - REPETITION_FRAMES) + 1):
        agree = (codes[:, period:] == codes[:, :-period]).all(dim=0)
        if int(agree.unfold(0, REPETITION_FRAMES, 1).sum(dim=1).max()) >= MIN_AGREEMENT * REPETITION_FRAMES:
            return True
    return False
