"""Spoken chunks of a long text, and the folder that keeps them while the rest is made.

The folder holds `run.json`, which says what is spoken and how, and for each finished chunk `00000.wav`, its speech,
and `00000.json`, its text, codes, seeds and faults. Each file appears whole, the .json last; it names the hash of the
.wav. So a chunk is either finished or missing, at whatever moment the work is cut off.
"""

import hashlib
import io
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from higgs_native.errors import ParameterError
from higgs_native.long_form.chunking import TextChunk
from higgs_native.long_form.failure_checks import Failure
from higgs_native.utils.files import replacing


_FORMAT = 1
_RUN_FILE = "run.json"
# With what killed processes left of it and of `run.json`.
_CHUNK_FILE = re.compile(r"\d{5,}\.(json|wav)|\.(\d{5,}\.(json|wav)|run\.json)\.\d+\.tmp")


@dataclass(frozen=True)
class Attempt:
    """One try at speaking a chunk.

    Attributes:
        seed: it was generated with this one.
        duration: of the speech, in seconds, before its ends were trimmed.
        faults: what is wrong with it; see `higgs_native.long_form.failure_checks`.
    """

    seed: int
    duration: float
    faults: tuple[Failure, ...]


@dataclass(frozen=True, eq=False)
class SpokenChunk:
    """A chunk of a long text, spoken.

    Attributes:
        index: of the chunk in the text.
        text: what is said, and what begins with it.
        pcm: [samples], int16, mono: the pause before the speech, then the speech, its ends trimmed and faded. One
            chunk behind the other is the whole speech.
        sampling_rate: in Hz.
        codes: [codebooks, frames], int64: what was generated, nothing trimmed.
        kept: which of the attempts this is.
        attempts: all that were made, in order.
    """

    index: int
    text: TextChunk
    pcm: np.ndarray
    sampling_rate: int
    codes: torch.Tensor
    kept: int
    attempts: tuple[Attempt, ...]

    @property
    def audio(self) -> np.ndarray:
        """`pcm` as float32, full scale at 1."""
        return self.pcm.astype(np.float32) / 32768

    @property
    def duration(self) -> float:
        """In seconds, the pause before it included."""
        return len(self.pcm) / self.sampling_rate

    @property
    def seed(self) -> int:
        """The one that it was generated with."""
        return self.attempts[self.kept].seed

    @property
    def faults(self) -> tuple[Failure, ...]:
        """What is wrong with it; empty where nothing is."""
        return self.attempts[self.kept].faults


class ChunkStore:
    """The folder of one run over a text.

    Args:
        path: the folder; `claim` makes it if it is missing.

    Attributes:
        run: what `run.json` holds; None where there is none yet.

    Raises:
        ParameterError: the folder holds something else, or can't be read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        try:
            # A hidden file may be what a run left that was killed early.
            files = [file for file in self.path.iterdir() if not file.name.startswith(".")]
        except FileNotFoundError:
            files = []
        except OSError as error:
            raise ParameterError(f"the folder {self.path} can't be read: {error.strerror}") from None
        self.run: dict[str, Any] | None = self._read_run() if files else None

    def _read_run(self) -> dict[str, Any]:
        file = self.path / _RUN_FILE
        if not file.is_file():
            raise ParameterError(
                f"the folder {self.path} holds other files, and no {_RUN_FILE}; expected an empty folder, or one with "
                "the chunks of an earlier run"
            )
        try:
            run = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ParameterError(f"{file} is not readable as JSON: {error}") from None
        if not isinstance(run, dict) or run.get("format") != _FORMAT or not isinstance(run.get("inputs"), dict):
            raise ParameterError(f"{file} is not of format {_FORMAT}; expected another folder")
        return run

    def claim(self, inputs: Mapping[str, Any]) -> None:
        """Take the folder for a run, or go on with the run that it holds.

        Args:
            inputs: all that decides what the chunks are, as JSON knows it.

        Raises:
            ParameterError: the folder holds a run with other inputs, or can't be written to.
        """
        inputs = json.loads(json.dumps(inputs, default=lambda number: number.item()))  # NumPy's numbers, too
        if self.run is None:
            self.run = {"format": _FORMAT, "inputs": inputs}
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                with replacing(self.path / _RUN_FILE) as temporary:
                    temporary.write_text(json.dumps(self.run, ensure_ascii=False, indent=1), encoding="utf-8")
            except OSError as error:
                raise ParameterError(f"the folder {self.path} can't be written to: {error.strerror}") from None
            return
        held = self.run["inputs"]
        differing = [name for name in {**held, **inputs} if held.get(name) != inputs.get(name)]
        if differing:
            raise ParameterError(
                f"the folder {self.path} holds the chunks of another run, which differs in {', '.join(differing)}; "
                "expected the same, or another folder; to begin anew, delete it"
            )

    def remove(self) -> None:
        """Delete the run, and the folder, unless that holds something else.

        `run.json` goes after the chunks: where this is cut off, what is left is still a run that goes on.
        """
        chunks = [file for file in self.path.iterdir() if _CHUNK_FILE.fullmatch(file.name)]
        for file in (*chunks, self.path / _RUN_FILE):
            file.unlink(missing_ok=True)
        if not self.path.is_symlink() and not any(self.path.iterdir()):
            self.path.rmdir()

    @property
    def num_records(self) -> int:
        """How many chunks are there; whether they are whole, `load` finds."""
        return sum(file.stem.isdecimal() for file in self.path.glob("*.json"))

    def load(self, index: int, text: TextChunk, pause: float) -> SpokenChunk | None:
        """Return a chunk if it is finished.

        Args:
            index: of the chunk.
            text: its text.
            pause: the silence before it, in seconds.

        Raises:
            ParameterError: the folder can't be read.
        """
        record_file, audio_file = self._files(index)
        try:
            record = json.loads(record_file.read_text(encoding="utf-8"))
            data = audio_file.read_bytes()
            if record["sha256"] != hashlib.sha256(data).hexdigest():
                return None
            attempts = tuple(Attempt(a["seed"], a["duration"], tuple(a["faults"])) for a in record["attempts"])
            codes, kept = torch.tensor(record["codes"], dtype=torch.int64), record["kept"]
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return None  # missing, or torn
        except OSError as error:
            raise ParameterError(f"the folder {self.path} can't be read: {error}") from None
        speech, sampling_rate = soundfile.read(io.BytesIO(data), dtype="int16")
        return SpokenChunk(
            index=index,
            text=text,
            pcm=np.concatenate([np.zeros(round(pause * sampling_rate), dtype=np.int16), speech]),
            sampling_rate=sampling_rate,
            codes=codes,
            kept=kept,
            attempts=attempts,
        )

    def store(
        self,
        index: int,
        text: TextChunk,
        speech: np.ndarray,
        sampling_rate: int,
        codes: torch.Tensor,
        kept: int,
        attempts: list[Attempt],
    ) -> None:
        """Keep a finished chunk.

        Args:
            index, text, sampling_rate, codes, kept, attempts: as `SpokenChunk` has them.
            speech: [samples], float32, without a pause; what exceeds full scale is clipped.

        Raises:
            ParameterError: the folder can't be written to.
        """
        record_file, audio_file = self._files(index)
        record = {
            "tag": text.tag,
            "text": text.text,
            "kept": kept,
            "attempts": [asdict(attempt) for attempt in attempts],
            "codes": codes.tolist(),
        }
        pcm = (speech.clip(-1, 1) * 32767).round().astype(np.int16)
        wav = io.BytesIO()  # written by Python, which says why that fails
        soundfile.write(wav, pcm, sampling_rate, format="WAV", subtype="PCM_16")
        record["sha256"] = hashlib.sha256(wav.getbuffer()).hexdigest()
        try:
            with replacing(audio_file) as temporary:
                temporary.write_bytes(wav.getbuffer())
            with replacing(record_file) as temporary:
                temporary.write_text(json.dumps(record, ensure_ascii=False), encoding="utf-8")
        except OSError as error:
            raise ParameterError(f"the folder {self.path} can't be written to: {error.strerror}") from None

    def _files(self, index: int) -> tuple[Path, Path]:
        return self.path / f"{index:05}.json", self.path / f"{index:05}.wav"
