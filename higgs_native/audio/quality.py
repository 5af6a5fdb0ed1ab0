"""Quality of reference audio: a cloned voice takes over noise, clipping and pauses of its recording.

Ordinary recordings of one speaker pass the thresholds. They keep a distance to values measured on read speech in
quiet rooms and on the embedded voice.
"""

import re
from dataclasses import dataclass

import numpy as np

from higgs_native.audio.samples import checked_rate
from higgs_native.errors import AudioError
from higgs_native.utils.checks import check_string


MIN_SPEECH_SECONDS = 3.0
"""About ten syllables. With fewer, the model has not heard most sounds of the voice."""
MAX_USEFUL_SECONDS = 30.0
"""A second takes 25 positions of the cache and of every prompt. Longer recordings hardly improve a voice."""
MAX_CLIPPED_SHARE = 1e-4
"""Share of all samples; at 24 kHz more than two per second, which crackle."""
MIN_SIGNAL_TO_NOISE = 20.0
"""In dB. Below it, noise is audible behind the words. Read speech in quiet rooms measured 32 to 47."""
MIN_LEVEL = -35.0
"""Level of the speech in dB of full scale, 15 below the usual one. A clone is as loud as its reference."""
MAX_SILENCE_AT_ENDS = 1.0
"""In seconds. A longer silence teaches the clone to begin late, or to go on in silence."""
MAX_PAUSE = 2.0
"""In seconds, longer than the pause between two sentences."""
MAX_SILENT_SHARE = 0.5
"""Share of the recording. Silence takes as many positions as speech, but shows nothing of the voice."""
LETTERS_PER_SECOND = (4.0, 30.0)
"""Range of letters per second of speech. Slow readers speak 8, fast ones 20. Outside it, the words are wrong."""

_FRAME_SECONDS = 0.02
_MIN_SILENCE_SECONDS = 0.5  # shorter silences belong to speech
_INAUDIBLE = -70.0  # dB of full scale
_DIGITAL_SILENCE = 60.0  # dB below speech; frames this soft were inserted and tell nothing about the background
_MIN_CLIPPED_PEAK = 0.1  # of full scale; below it, 16-bit steps alone make flat peaks
# Letters of an alphabet that take as long to speak as one character of the pattern.
_LETTERS_PER_CHARACTER = (
    (re.compile(r"\d"), 4),
    (re.compile("[\u3040-\u30ff]"), 2),  # Japanese syllables
    (re.compile("[\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff]"), 3),  # Chinese and Korean
)
_SOUND_EFFECT = re.compile(r"\[[^\]]*\]|<[^>]*>")


class VoiceWarning(UserWarning):
    """Reference audio is usable, but poor."""


@dataclass(frozen=True)
class RecordingQuality:
    """Measurements of a recording. Times are in seconds.

    Attributes:
        duration: length of the recording.
        leading, trailing: silence before and after the speech.
        pause: longest silence within the speech.
        silent: sum of all silences of at least 0.5 s.
        speech: duration without these silences.
        level: of the speech, in dB of full scale.
        signal_to_noise: speech level above the background, in dB.
        clipped: share of clipped samples.
    """

    duration: float
    leading: float
    trailing: float
    pause: float
    silent: float
    speech: float
    level: float
    signal_to_noise: float
    clipped: float


def check_recording(samples: np.ndarray, sampling_rate: int, reference_text: str | None = None) -> list[str]:
    """Return advice on a recording that a voice is cloned from, one phrase per flaw.

    Args:
        samples: [samples], float32, at least one, full scale at 1.
        sampling_rate: in Hz.
        reference_text: the words spoken in it; None if they are unknown.

    Raises:
        AudioError: the samples or the sampling rate are something else.
        ParameterError: the reference text is no string.
    """
    check_string("reference_text", reference_text, optional=True)
    if not isinstance(samples, np.ndarray) or samples.ndim != 1 or samples.dtype.kind != "f" or not len(samples):
        got = f"{samples.dtype} {list(samples.shape)}" if isinstance(samples, np.ndarray) else type(samples).__name__
        raise AudioError(f"samples must be an array [samples], float32, of at least one, got {got}")
    if not np.isfinite(samples).all():
        raise AudioError("samples must be finite, got NaN or infinity")
    return advise(measure(samples, checked_rate(sampling_rate)), reference_text)


def advise(quality: RecordingQuality | None, reference_text: str | None, is_reference: bool = True) -> list[str]:
    """Return the advice of `check_recording`, given the result of `measure`.

    Without `is_reference`, the recording is one of many that are learned: its length and missing words are no flaws.
    """
    if quality is None:
        return ["nothing is heard in it"]
    advice = []
    if is_reference and quality.speech < MIN_SPEECH_SECONDS:
        advice.append(
            f"it is short, with {quality.speech:.2f} s of speech; expected at least {MIN_SPEECH_SECONDS:g} s"
        )
    if is_reference and quality.duration > MAX_USEFUL_SECONDS:
        advice.append(f"it is long, with {quality.duration:.0f} s; up to {MAX_USEFUL_SECONDS:g} s are enough")
    if quality.clipped > MAX_CLIPPED_SHARE:
        advice.append(f"it is clipped, in {quality.clipped:.2%} of its samples; record it at a lower level")
    if quality.signal_to_noise < MIN_SIGNAL_TO_NOISE:
        advice.append(
            f"it is noisy: speech is {quality.signal_to_noise:.0f} dB above the background; "
            f"expected at least {MIN_SIGNAL_TO_NOISE:g} dB"
        )
    if quality.level < MIN_LEVEL:
        advice.append(f"it is soft, at {quality.level:.0f} dB of full scale; expected at least {MIN_LEVEL:g} dB")
    for silence, verb in ((quality.leading, "begins"), (quality.trailing, "ends")):
        if silence > MAX_SILENCE_AT_ENDS:
            advice.append(f"it {verb} with {silence:.1f} s of silence; cut it off")
    if quality.pause > MAX_PAUSE:
        advice.append(f"it has a pause of {quality.pause:.1f} s; expected at most {MAX_PAUSE:g} s")
    if quality.silent > MAX_SILENT_SHARE * quality.duration:
        share = quality.silent / quality.duration
        advice.append(f"{share:.0%} of it are silent; expected at most {MAX_SILENT_SHARE:.0%}")
    if reference_text is None and is_reference:
        advice.append("its words are not given; with them a clone is closer")
    elif reference_text is not None:
        rate = _count_letters(reference_text) / quality.speech
        low, high = LETTERS_PER_SECOND
        if not low <= rate <= high:
            advice.append(f"its words are too {'few' if rate < low else 'many'} for {quality.speech:.1f} s of speech")
    return advice


def measure(samples: np.ndarray, sampling_rate: int) -> RecordingQuality | None:
    """Separate speech from silence by the level of 20 ms frames.

    Args:
        samples: [samples], float32, at least one, full scale at 1.
        sampling_rate: in Hz.

    Returns:
        None if nothing is audible.
    """
    size = max(round(_FRAME_SECONDS * sampling_rate), 1)
    whole = samples[: max(len(samples) // size, 1) * size]
    frames = np.resize(whole, (-(-len(whole) // size), size))
    power = frames.var(axis=1, dtype=np.float64)  # some recorders add a constant offset, which is inaudible
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
    silent = float(silences[silences >= _MIN_SILENCE_SECONDS].sum())
    return RecordingQuality(
        duration=len(samples) / sampling_rate,
        leading=float(leading),
        trailing=float(trailing),
        pause=float(gaps.max(initial=0) * frame),
        silent=silent,
        speech=len(levels) * frame - silent,
        level=float(loud),
        signal_to_noise=float(loud - soft),
        clipped=_clipped_share(samples),
    )


def _clipped_share(samples: np.ndarray) -> float:
    """Return the share of samples that lie at the peak together with both neighbors."""
    magnitudes = np.abs(samples)
    peak = magnitudes.max()
    if peak < _MIN_CLIPPED_PEAK:
        return 0.0
    flat = magnitudes >= peak * (1 - 1e-4)
    return float((flat[:-2] & flat[1:-1] & flat[2:]).sum() / len(samples))


def _count_letters(text: str) -> int:
    """Return how many letters of an alphabet take as long to speak as `text`."""
    text = _SOUND_EFFECT.sub("", text)
    letters = 0
    for characters, letters_each in _LETTERS_PER_CHARACTER:
        text, count = characters.subn("", text)
        letters += count * letters_each
    return letters + sum(character.isalpha() for character in text)
