"""Rendered speech as whole frames of 40 ms, with pitch and phase at the middle of each."""

from dataclasses import dataclass

import numpy as np


SAMPLING_RATE = 24000
HOP_LENGTH = 960
LEAD, TAIL = 960, 1920
"""Samples of silence before the first sound and after the last one."""

PHASE_HOP = 6
"""Samples between two values of the phase that the decoder's training looks at: 4 kHz."""

_TEACHER_HOP = 300
_ALIGNMENT_HOP = 600
_VOICED = 45.0
"""Hz; the teacher's F0 falls below 10 where nothing is voiced, and passes through all values on its way."""
_SILENCE = 0.003
_SMOOTHED = 400
"""Values of the phase, 100 ms: the turn from the teacher's phase is followed no faster than that."""
_SHORTEST = 40
"""Values of the phase, 10 ms, that make a frame voiced."""


@dataclass
class Frames:
    """An utterance in whole frames.

    Attributes:
        audio: float32 [960 * frames].
        f0: float32 [frames], in Hz; 0 where nothing is voiced. It is what the phase turns from the middle of the frame
            before to this one's, so that the next phase follows from the last and the pitch; at the beginning of a
            voiced stretch it is the teacher's.
        phase: float32 [frames], of the fundamental at the middle of the frame, in cycles from 0 to 1.
        fine_phase: float32 [160 * frames], the phase at every sixth sample, in cycles; NaN where nothing is voiced.
        begin: the sample of the uncut speech at which the first frame begins.
    """

    audio: np.ndarray
    f0: np.ndarray
    phase: np.ndarray
    fine_phase: np.ndarray
    begin: int


def cut(audio: np.ndarray, f0: np.ndarray, phase: np.ndarray, gain: float, lead: int = LEAD) -> Frames:
    """Trim silence and cut an utterance into frames.

    Args:
        audio: int16 [samples], as the teacher spoke it.
        f0, phase: [samples / 300], the teacher's.
        gain: what the audio is multiplied with.
        lead: samples of silence before the first sound.

    Raises:
        ValueError: it is silent.
    """
    audio = audio.astype(np.float32) * (gain / 32767)
    f0, phase = f0.astype(np.float32), phase.astype(np.float64)
    loud = np.flatnonzero(np.abs(audio) > _SILENCE)
    if not len(loud):
        raise ValueError("audio must not be silent")
    begin, end = loud[0] - lead, loud[-1] + 1 + TAIL
    end += -(end - begin) % HOP_LENGTH
    whole = np.zeros(end - begin, np.float32)
    inside = slice(max(begin, 0), min(end, len(audio)))
    whole[inside.start - begin : inside.stop - begin] = audio[inside]
    frames = len(whole) // HOP_LENGTH
    fine, fine_f0 = own_phase(audio, f0, phase), pitch_of(len(audio) // PHASE_HOP, f0)
    samples = (begin + PHASE_HOP * np.arange(len(whole) // PHASE_HOP)) // PHASE_HOP
    inside = (samples >= 0) & (samples < len(fine))
    samples = samples.clip(0, len(fine) - 1)
    fine = np.where(inside, fine[samples], np.nan)
    frame_f0, frame_phase = _at_frames(fine.reshape(frames, -1), fine_f0[samples].reshape(frames, -1))
    return Frames(whole.clip(-1, 1), frame_f0, frame_phase, fine.astype(np.float32), int(begin))


def spoken_at(frames: int, begin: int, ends: np.ndarray) -> np.ndarray:
    """Which phoneme is spoken at the middle of each frame: int16 [frames], -1 in the silence before the first.

    Args:
        frames: how many.
        begin: sample at which the first frame begins.
        ends: of the phonemes and of the silences around them, in steps of 25 ms.
    """
    middles = (begin + HOP_LENGTH * (np.arange(frames) + 0.5)) / _ALIGNMENT_HOP
    return (np.searchsorted(ends, middles, side="right") - 1).astype(np.int16)


def own_phase(audio: np.ndarray, f0: np.ndarray, phase: np.ndarray) -> np.ndarray:
    """The phase of the fundamental in the audio itself, at every sixth sample, in cycles; NaN where nothing is voiced.

    The teacher's network shifts the phase of the source that it starts from, by up to a quarter of a cycle a frame. So
    the audio is turned back by the source's phase, smoothed, and what turn is left is added.
    """
    positions = np.clip((np.arange(len(audio)) + 0.5) / _TEACHER_HOP - 0.5, 0, len(f0) - 1)
    source = np.interp(positions, np.arange(len(f0)), phase)
    count = len(audio) // PHASE_HOP
    voiced = pitch_of(count, f0) > 0
    turned = audio * np.exp(-2j * np.pi * source)
    coarse = turned[: count * PHASE_HOP].reshape(count, PHASE_HOP).mean(1) * voiced
    window = np.hanning(_SMOOTHED)
    left = np.angle(np.convolve(coarse, window / window.sum(), "same"))
    middle = PHASE_HOP // 2
    return np.where(voiced, source[middle::PHASE_HOP][:count] + np.unwrap(left) / (2 * np.pi), np.nan)


def pitch_of(count: int, f0: np.ndarray) -> np.ndarray:
    """The teacher's F0 at `count` times every sixth sample, in Hz; 0 where either neighbor is not voiced."""
    positions = np.clip(PHASE_HOP * (np.arange(count) + 0.5) / _TEACHER_HOP - 0.5, 0, len(f0) - 1)
    left = positions.astype(int)
    voiced = (f0[left] > _VOICED) & (f0[np.minimum(left + 1, len(f0) - 1)] > _VOICED)
    return np.where(voiced, np.interp(positions, np.arange(len(f0)), f0), 0.0)


def _at_frames(fine: np.ndarray, fine_f0: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """F0 and the phase at the middle of frames, from the phase and F0 at every sixth sample [frames, 160]."""
    steps = fine.shape[1]
    middle = steps // 2
    f0, phases = np.zeros(len(fine), np.float32), np.zeros(len(fine), np.float32)
    for index, frame in enumerate(fine):
        voiced = np.flatnonzero(~np.isnan(frame))
        if len(voiced) < _SHORTEST:
            continue
        f0[index] = fine_f0[index, voiced].mean()
        nearest = voiced[np.abs(voiced - middle).argmin()]
        cycles = f0[index] * (middle - nearest) * PHASE_HOP / SAMPLING_RATE
        phases[index] = (frame[nearest] + cycles) % 1.0
        between = np.concatenate([fine[index - 1, middle:], frame[: middle + 1]]) if index else frame[:1] * np.nan
        if not np.isnan(between).any():
            f0[index] = (between[-1] - between[0]) * SAMPLING_RATE / HOP_LENGTH
    return f0, phases
