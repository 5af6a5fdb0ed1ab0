"""What is wrong with a recording as the reference of a voice: its clone takes over noise, clipping and pauses, too.

The thresholds let ordinary recordings of one speaker pass: they stand apart from what read speech in quiet rooms and
the embedded voice were measured to have.
"""

import re
from dataclasses import dataclass

import numpy as np


MIN_SPEECH_SECONDS = 3.0
"""Of speech: some ten syllables. With fewer, the model has not heard most sounds of the voice."""
MAX_SECONDS = 30.0
"""A second takes 25 positions of the cache and of every prompt; beyond these a voice hardly gains."""
MAX_CLIPPED_SHARE = 1e-4
"""Of all samples: more than two a second crackle."""
MIN_SIGNAL_TO_NOISE = 20.0
"""In dB. With less, noise is heard behind the words. Read speech in quiet rooms was measured to have 32 to 47."""
MIN_LEVEL = -35.0
"""In dB of full scale, of speech: 15 below what is usual. A clone is as loud as its reference."""
MAX_SILENCE_AT_ENDS = 1.0
"""In seconds: more teaches the clone to begin late, or to go on in silence."""
MAX_PAUSE = 2.0
"""In seconds: longer than between two sentences."""
MAX_SILENT_SHARE = 0.5
"""Of the recording: silence costs as many positions as speech, and says nothing of the voice."""
LETTERS_PER_SECOND = (4.0, 30.0)
"""Of speech. Slow readers say 8, fast ones 20; more or fewer are not the words of this recording."""

_FRAME_SECONDS = 0.02
_SILENCE_SECONDS = 0.5  # shorter ones belong to speech
_INAUDIBLE = -70.0  # dB of full scale
_DIGITAL_SILENCE = 60.0  # dB below speech: such silence, put in between, says nothing of the noise in the rest
_CLIPPED_FROM = 0.1  # of full scale: below, a few steps of 16 bits make a flat top
# Letters are counted as those of an alphabet: so many stand for one sign.
_LETTERS_OF = (
    (re.compile(r"\d"), 4),
    (re.compile("[\u3040-\u30ff]"), 2),  # Japanese syllables
    (re.compile("[\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff]"), 3),  # Chinese and Korean ones
)
_EFFECT = re.compile(r"\[[^\]]*\]|<[^>]*>")


class VoiceWarning(UserWarning):
    """A recording can be the reference of a voice, but not a good one."""


def check_recording(samples: np.ndarray, sampling_rate: int, reference_text: str | None = None) -> list[str]:
    """Return advice on a recording that a voice is cloned from, a phrase each; none where all is well.

    Args:
        samples: [samples], float32, at least one, full scale at 1.
        sampling_rate: in Hz.
        reference_text: the words spoken in it; None where they are not known.
    """
    parts = _measure(samples, sampling_rate)
    if parts is None:
        return ["nothing is heard in it"]
    advice = []
    seconds = len(samples) / sampling_rate
    if parts.speech < MIN_SPEECH_SECONDS:
        advice.append(f"it is short, with {parts.speech:.2f} s of speech; expected at least {MIN_SPEECH_SECONDS:g} s")
    if seconds > MAX_SECONDS:
        advice.append(f"it is long, with {seconds:.0f} s; up to {MAX_SECONDS:g} s are enough")
    clipped = _clipped_share(samples)
    if clipped > MAX_CLIPPED_SHARE:
        advice.append(f"it is clipped, in {clipped:.2%} of its samples; record it at a lower level")
    if parts.signal_to_noise < MIN_SIGNAL_TO_NOISE:
        advice.append(
            f"it is noisy: speech is {parts.signal_to_noise:.0f} dB above the background; "
            f"expected at least {MIN_SIGNAL_TO_NOISE:g} dB"
        )
    if parts.level < MIN_LEVEL:
        advice.append(f"it is soft, at {parts.level:.0f} dB of full scale; expected at least {MIN_LEVEL:g} dB")
    for silence, where in ((parts.leading, "begins"), (parts.trailing, "ends")):
        if silence > MAX_SILENCE_AT_ENDS:
            advice.append(f"it {where} with {silence:.1f} s of silence; cut it off")
    if parts.pause > MAX_PAUSE:
        advice.append(f"it has a pause of {parts.pause:.1f} s; expected at most {MAX_PAUSE:g} s")
    if parts.silent > MAX_SILENT_SHARE * seconds:
        advice.append(f"{parts.silent / seconds:.0%} of it are silent; expected at most {MAX_SILENT_SHARE:.0%}")
    if reference_text is None:
        advice.append("its words are not given; with them a clone is closer")
    else:
        rate = _letters(reference_text) / parts.speech
        low, high = LETTERS_PER_SECOND
        if not low <= rate <= high:
            advice.append(f"its words are too {'few' if rate < low else 'many'} for {parts.speech:.1f} s of speech")
    return advice


@dataclass(frozen=True)
class _Parts:
    """The parts of a recording, in seconds, and the level of its speech, in dB.

    Attributes:
        leading, trailing: silence before the speech, and after it.
        pause: the longest silence in between.
        silent: all silences of at least 0.5 s.
        speech: the rest.
        level: of speech, full scale at 0.
        signal_to_noise: by how much that is above the background.
    """

    leading: float
    trailing: float
    pause: float
    silent: float
    speech: float
    level: float
    signal_to_noise: float


def _measure(samples: np.ndarray, sampling_rate: int) -> _Parts | None:
    """Tell speech from silence by the level of frames of 20 ms; None where nothing is heard."""
    size = max(round(_FRAME_SECONDS * sampling_rate), 1)
    whole = samples[: max(len(samples) // size, 1) * size]
    frames = np.resize(whole, (-(-len(whole) // size), size))
    power = frames.var(axis=1, dtype=np.float64)  # a constant offset, which some recorders have, is not heard
    with np.errstate(divide="ignore"):
        levels = 10 * np.log10(power)
        loud = 10 * np.log10(power[power >= power.mean()].mean())
    if loud < _INAUDIBLE:
        return None
    soft = np.percentile(levels[levels > loud - _DIGITAL_SILENCE], 2)

    speech = np.flatnonzero(levels >= (loud + soft) / 2)
    gaps = np.diff(speech) - 1
    frame = size / sampling_rate
    leading, trailing = speech[0] * frame, (len(levels) - 1 - speech[-1]) * frame
    silences = np.array([leading, *(gaps * frame), trailing])
    silent = float(silences[silences >= _SILENCE_SECONDS].sum())
    return _Parts(
        leading=float(leading),
        trailing=float(trailing),
        pause=float(gaps.max(initial=0) * frame),
        silent=silent,
        speech=len(levels) * frame - silent,
        level=float(loud),
        signal_to_noise=float(loud - soft),
    )


def _clipped_share(samples: np.ndarray) -> float:
    """The share of samples that stand at the peak with both of their neighbours."""
    magnitudes = np.abs(samples)
    peak = magnitudes.max()
    if peak < _CLIPPED_FROM:
        return 0.0
    flat = magnitudes >= peak * (1 - 1e-4)
    return float((flat[:-2] & flat[1:-1] & flat[2:]).sum() / len(samples))


def _letters(text: str) -> int:
    """How many letters of an alphabet would stand for what is spoken."""
    text = _EFFECT.sub("", text)
    letters = 0
    for signs, count in _LETTERS_OF:
        text, found = signs.subn("", text)
        letters += found * count
    return letters + sum(character.isalpha() for character in text)
