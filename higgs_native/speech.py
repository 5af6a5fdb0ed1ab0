"""Speech: the audio of a reply, with its codes and text."""

import base64
import html
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import numpy as np
import torch

from higgs_native.audio.files.formats import FORMATS
from higgs_native.audio.files.playback import play
from higgs_native.audio.files.writing import check_output_path, encode_audio, writing_audio
from higgs_native.audio.loudness import block_powers, check_loudness, output_gain
from higgs_native.audio.tempo import at_speed, check_speed
from higgs_native.errors import AudioError, ParameterError
from higgs_native.failure_checks import Failure
from higgs_native.subtitles import check_subtitles_path, chunk_cues, write_subtitles
from higgs_native.utils.checks import check_flag, check_string
from higgs_native.utils.tensors import equal_fields


_NOTEBOOK_FORMAT = "mp3"  # every browser plays it, and it is a tenth of a .wav


class SpokenSpan(NamedTuple):
    """A passage of a text, and the samples in which it is spoken: `audio[begin:end]`."""

    text: str
    begin: int
    end: int


@dataclass(frozen=True, eq=False, repr=False)
class Speech:
    """A generated reply. `audio` is empty if the model wrote only text, or too little audio for one frame.

    Attributes:
        audio: [samples], float32, mono, full scale at 1.
        sampling_rate: in Hz.
        codes: [codebooks, frames], int64: the codes of `audio`, all segments joined. Where a text has pauses, `audio`
            also has their silence, and lacks silent frames beside them. Where it changes its speed, the codes are
            those of the speech before.
        text: the text that the model wrote, without special tokens.
        finish_reason: `stop`, or `length` if `max_new_tokens` or the cache ended it.
        usage: the number of tokens of the prompt (`prompt_tokens`) and of the reply (`completion_tokens`).
        seed: the given or drawn one, which gives the same speech again.
        failures: found in it (see `higgs_native.failure_checks`), none if it is good; None if the text that was to be
            spoken is unknown, as in `HiggsAudio.generate`.
        model: the name of the checkpoint, if it is known.
        script: the text that was to be spoken, as far as it is known, with speakers' tags and without pauses.
        spans: what is spoken where, if the text changes its speed; otherwise empty.
    """

    audio: np.ndarray
    sampling_rate: int
    codes: torch.Tensor
    text: str
    finish_reason: str
    usage: Mapping[str, int]
    seed: int | None = None
    failures: tuple[Failure, ...] | None = None
    model: str | None = None
    script: str | None = None
    spans: Sequence[SpokenSpan] = ()

    @property
    def duration(self) -> float:
        """The length of the audio in seconds."""
        return len(self.audio) / self.sampling_rate

    def save(
        self,
        path: str | Path | BinaryIO,
        format: str | None = None,
        title: str | None = None,
        loudness: float | None = None,
        speed: float = 1.0,
    ) -> None:
        """Write the audio to a file. Samples above full scale clip, except in the format `wav_float`.

        The file's tags hold the title, if one is given, and the names of the model and the seed.

        Args:
            path: of a .wav, .flac, .mp3, .ogg (Vorbis) or .opus file, or a binary file object.
            format: `wav`, `wav24`, `wav_float`, `flac`, `flac24`, `mp3`, `ogg` or `opus`. None: that of the suffix, 16
                bit if it has several; `wav` for a file object.
            title: for the file's tags.
            loudness: of the file in LUFS, by ITU-R BS.1770-4; -16 is common for speech. It stays lower if the peaks
                would clip. None: as the model made it.
            speed: 0.25 to 4; the pitch stays. Others than 1 need PyAV (`pip install av`).

        Raises:
            AudioError: there is no audio.
            ParameterError: a parameter is wrong, or the file can't be written.
        """
        write = getattr(path, "write", None)
        if write is None:
            file = check_output_path(cast("str | Path", path), format)
            samples, tags = self._output(loudness, speed), self._tags(title)
            with writing_audio(file, self.sampling_rate, format, tags) as writer:
                writer.write(samples)
            return
        samples, tags = self._output(loudness, speed), self._tags(title)
        contents = encode_audio(samples, self.sampling_rate, "wav" if format is None else format, tags)
        try:
            write(contents)
        except TypeError:
            raise ParameterError(f"path must be opened for writing bytes, got {type(path).__name__} of text") from None

    def to_bytes(
        self, format: str = "wav", title: str | None = None, loudness: float | None = None, speed: float = 1.0
    ) -> bytes:
        """Return the contents of the file that `save` writes; parameters and errors are its own."""
        samples = self._output(loudness, speed)
        return encode_audio(samples, self.sampling_rate, format, self._tags(title))

    def play(self, loudness: float | None = None, speed: float = 1.0) -> None:
        """Play the audio on this machine, by the package sounddevice or by a program such as aplay; wait for its end.

        Args:
            loudness, speed: as for `save`.

        Raises:
            AudioError: there is no audio or no player, or the player fails.
            ParameterError: a parameter is wrong.
        """
        play(self._output(loudness, speed), self.sampling_rate)

    def save_subtitles(self, path: str | Path, words: bool = False, speed: float = 1.0) -> None:
        """Write subtitles with estimated times (see `higgs_native.subtitles`).

        Args:
            path: of a .srt or .vtt file.
            words: a cue per word, instead of a cue per sentence or part of it.
            speed: of the audio file that they are for.

        Raises:
            AudioError: there is no audio, or its text is unknown.
            ParameterError: a parameter is wrong, or the file can't be written.
        """
        path = check_subtitles_path(path)
        check_flag("words", words)
        check_speed(speed)
        if not len(self.audio) or self.script is None:
            raise AudioError("subtitles need audio of a known text, as `speak` returns it")
        rate = self.sampling_rate
        # Letters tell how long words take at one speed alone.
        spans = self.spans or [SpokenSpan(self.script, 0, len(self.audio))]
        found = (chunk_cues(text, self.audio[begin:end], rate, begin / rate, words) for text, begin, end in spans)
        write_subtitles(path, itertools.chain.from_iterable(found), speed)

    def _output(self, loudness: float | None, speed: float) -> np.ndarray:
        """Return the audio with a loudness and a speed; parameters and errors as for `save`."""
        check_loudness(loudness)
        check_speed(speed)
        if not len(self.audio):
            raise AudioError(f"the model made no audio to save (it wrote the text {self.text!r})")
        samples = at_speed(self.audio, self.sampling_rate, speed)
        if loudness is None:
            return samples
        return samples * output_gain(block_powers(samples, self.sampling_rate), np.abs(samples).max(), loudness)

    def _tags(self, title: str | None) -> dict[str, str]:
        return file_tags(title, self.model, self.seed)

    def __eq__(self, other: object) -> bool:
        return equal_fields(self, other) if isinstance(other, Speech) else NotImplemented

    def __repr__(self) -> str:
        parts = [f"{self.duration:.2f} s", f"{self.sampling_rate} Hz"]
        if self.seed is not None:
            parts.append(f"seed {self.seed}")
        if self.failures is not None:
            parts.append(f"failures: {', '.join(self.failures) or 'none'}")
        return f"Speech({', '.join(parts)})"

    def _repr_html_(self) -> str:
        """Return a player for notebooks, which holds the audio."""
        caption = f"<div>{html.escape(repr(self))}</div>"
        if not len(self.audio):
            return caption
        contents = base64.b64encode(self.to_bytes(_NOTEBOOK_FORMAT)).decode()
        source = f"data:{FORMATS[_NOTEBOOK_FORMAT].media_type};base64,{contents}"
        return f'<audio controls src="{source}"></audio>{caption}'


def join_speeches(speeches: Sequence[Speech], audio: np.ndarray, spans: Sequence[SpokenSpan] = ()) -> Speech:
    """Return the speech of a text that was spoken in passages.

    Args:
        speeches: of the passages; the first one's seed is that of the whole.
        audio: of the whole.
        spans: of the passages, if the text changes its speed.
    """
    if len(speeches) == 1:
        return replace(speeches[0], audio=audio, spans=tuple(spans))
    scripts = [speech.script for speech in speeches if speech.script is not None]
    usage = {name: sum(speech.usage[name] for speech in speeches) for name in speeches[0].usage}
    found = [failure for speech in speeches for failure in speech.failures or ()]
    return replace(
        speeches[0],
        audio=audio,
        codes=torch.cat([speech.codes for speech in speeches], dim=1),
        text=" ".join(speech.text for speech in speeches if speech.text),
        finish_reason="length" if any(speech.finish_reason == "length" for speech in speeches) else "stop",
        usage=usage,
        failures=tuple(dict.fromkeys(found)),
        script=" ".join(scripts),
        spans=tuple(spans),
    )


def file_tags(title: str | None, model: str | None, seed: int | None) -> dict[str, str]:
    """Return the tags of an audio file: who made it, and with which model and seed, as far as they are known.

    Raises:
        ParameterError: the title is no str.
    """
    comment = [f"model {model}"] * (model is not None) + [f"seed {seed}"] * (seed is not None)
    check_string("title", title, optional=True)
    if title is not None:  # characters that no file can hold
        title = title.encode(errors="replace").decode().replace("\0", " ")
    tags = {"title": title, "software": "higgs_native", "comment": ", ".join(comment)}
    return {name: value for name, value in tags.items() if value}
