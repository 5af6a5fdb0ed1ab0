"""Spoken chunks of a long text, and the folder that keeps them until all are finished.

The folder holds `run.json`, which tells what is spoken and how, and two files per finished chunk: `00000.wav`, its
speech, and `00000.json`, its text, codes, seeds and failures. Each file appears whole, the .json last. A .json holds a
checksum of its contents, among which is the hash of the .wav. So a chunk is either finished or missing, at whatever
moment the work is interrupted, and a chunk whose files were changed is missing.
"""

import hashlib
import io
import json
import re
import sys
import wave
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from higgs_native.audio.tempo import steady_at_speed
from higgs_native.errors import ParameterError, short_repr
from higgs_native.failure_checks import Failure
from higgs_native.long_form.chunking import TextChunk
from higgs_native.utils.checks import expanded_path
from higgs_native.utils.files import read_small_file, replacing


_FORMAT = 2
_MAX_FILE = 64 << 20
"""Maximum size of a file, in bytes: a text of 60 million letters, or speech of 20 minutes in one chunk."""
_MAX_CODES = 1 << 15
"""Codes are below it in any audio tokenizer; the published ones are below 1,024."""
_RUN_FILE = "run.json"
# Files of chunks, and temporary files that killed processes left.
_CHUNK_FILE = re.compile(r"\d{5,}\.(json|wav)|\.(\d{5,}\.(json|wav)|run\.json)\.\d+\.tmp")


@dataclass(frozen=True)
class Attempt:
    """One attempt at speaking a chunk.

    Attributes:
        seed: of its generation.
        duration: of the speech in seconds, before its ends were trimmed.
        failures: found in it; see `higgs_native.failure_checks`.
    """

    seed: int
    duration: float
    failures: tuple[Failure, ...]


@dataclass(frozen=True, eq=False)
class SpokenChunk:
    """A chunk of a long text, spoken.

    Attributes:
        index: of the chunk in the text.
        text: the chunk's text, its speaker and its boundary.
        pcm: [samples], int16, mono: the pause before the speech, then the speech, its ends trimmed and faded, at the
            speed of its text. All chunks, concatenated, are the whole speech.
        sampling_rate: in Hz.
        codes: [codebooks, frames], int64: all that were generated; nothing is trimmed.
        kept: index of the attempt that this is.
        attempts: all attempts, in order.
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
        """Duration in seconds, with the pause before the speech."""
        return len(self.pcm) / self.sampling_rate

    @property
    def seed(self) -> int:
        """Seed of the kept attempt."""
        return self.attempts[self.kept].seed

    @property
    def failures(self) -> tuple[Failure, ...]:
        """Failures of the kept attempt; empty if the speech is good."""
        return self.attempts[self.kept].failures


class ChunkStore:
    """The folder of one run over a text.

    Attributes:
        folder: its path.
        run: the contents of `run.json`; None if there is none yet.

    Args:
        folder: its path; `claim` makes it if it is missing.

    Raises:
        ParameterError: `folder` is no path, or it can't be read or holds other files, a run of another format or a
            changed one.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(expanded_path("folder", folder))
        try:
            # Hidden files don't count: a run that was killed early may have left them.
            files = [file for file in self.folder.iterdir() if not file.name.startswith(".")]
        except FileNotFoundError:
            files = []
        except OSError as error:
            raise ParameterError(f"the folder {self.folder} can't be read: {error.strerror}") from None
        self.run: dict[str, Any] | None = self._read_run() if files else None

    def _read_run(self) -> dict[str, Any]:
        file = self.folder / _RUN_FILE
        if not file.exists():
            raise ParameterError(
                f"the folder {self.folder} must be empty or hold the chunks of an earlier run, got other files and no "
                f"{_RUN_FILE}"
            )
        try:
            run = json.loads(read_small_file(file, _MAX_FILE))
            checksum = _checksum(run) if isinstance(run, dict) else None
        except OSError as error:
            raise ParameterError(f"{file} can't be read: {error.strerror}") from None
        except (ValueError, RecursionError) as error:
            raise ParameterError(f"{file} must be a readable JSON file, got: {error}") from None
        number = run.get("format") if isinstance(run, dict) else None
        if number != _FORMAT:
            raise ParameterError(
                f"{file}: format must be {_FORMAT}, got {short_repr(number)}; finish the run with the version that "
                "began it, or delete the folder to begin anew"
            )
        if run.get("checksum") != checksum or not isinstance(run.get("inputs"), dict):
            raise ParameterError(
                f"{file}: checksum must be that of the contents, got changed contents; delete the folder to begin anew"
            )
        return run

    def claim(self, inputs: Mapping[str, Any]) -> None:
        """Begin a run in the folder, or continue the run that it holds.

        Args:
            inputs: everything that the chunks depend on, as JSON values or NumPy scalars.

        Raises:
            ParameterError: the folder holds a run with other inputs, or can't be written to.
        """
        inputs = json.loads(json.dumps(inputs, default=lambda scalar: scalar.item()))
        if self.run is None:
            self.run = {"format": _FORMAT, "inputs": inputs}
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise self._unwritable(error) from None
            self._write_json(self.folder / _RUN_FILE, self.run, indent=1)
            return
        held = self.run["inputs"]
        differing = [name for name in {**held, **inputs} if held.get(name) != inputs.get(name)]
        if differing:
            raise ParameterError(
                f"the folder {self.folder} must hold a run with the same inputs, got one that differs in "
                f"{', '.join(differing)}; give another folder, or delete this one to begin anew"
            )

    def remove(self) -> None:
        """Delete the run, and the folder, unless it holds other files.

        `run.json` goes last: if this is interrupted, the rest is still a run that can be continued.
        """
        chunks = [file for file in self.folder.iterdir() if _CHUNK_FILE.fullmatch(file.name)]
        for file in (*chunks, self.folder / _RUN_FILE):
            file.unlink(missing_ok=True)
        if not self.folder.is_symlink() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    @property
    def num_records(self) -> int:
        """Number of chunks in the folder. `load` finds out whether they are intact."""
        return sum(file.stem.isdecimal() for file in self.folder.glob("*.json"))

    def load(self, index: int, text: TextChunk, pause: float, sampling_rate: int) -> SpokenChunk | None:
        """Return a chunk, or None if it is missing or was changed.

        Args:
            index: of the chunk.
            text: of the chunk. Its speed is that of the result; files hold speech at the speed of the model.
            pause: the silence before the speech, in seconds.
            sampling_rate: of the speech, in Hz.

        Raises:
            ParameterError: the folder can't be read.
        """
        record_file, audio_file = self._files(index)
        try:
            record = json.loads(read_small_file(record_file, _MAX_FILE))
            wav = read_small_file(audio_file, _MAX_FILE)
            hash_of_wav = hashlib.sha256(wav).hexdigest()
            if record["checksum"] != _checksum(record) or record["sha256"] != hash_of_wav:
                return None
            if [record["index"], record["tag"], record["text"]] != [index, text.tag, text.text]:
                return None  # the files of another chunk
            attempts = tuple(_read_attempt(**attempt) for attempt in record["attempts"])
            codes = _read_codes(record["codes"])
            kept = record["kept"]
            speech, stored_rate = _decode_wav(wav)
            if type(kept) is not int or not 0 <= kept < len(attempts) or stored_rate != sampling_rate:
                return None
        except (FileNotFoundError, ValueError, TypeError, KeyError, wave.Error, EOFError, RuntimeError):
            return None  # RuntimeError: of wave for wrong sizes, of json for deep nesting
        except OSError as error:
            raise ParameterError(f"the folder {self.folder} can't be read: {error.strerror}") from None
        silence = np.zeros(round(pause * sampling_rate), dtype=np.int16)
        return SpokenChunk(
            index=index,
            text=text,
            pcm=np.concatenate([silence, steady_at_speed(speech, sampling_rate, text.speed)]),
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
        """Store a finished chunk.

        Args:
            index, text, sampling_rate, codes, kept, attempts: as in `SpokenChunk`.
            speech: [samples], float32, without a pause; clipped to full scale.

        Raises:
            ParameterError: the folder can't be written to.
        """
        record_file, audio_file = self._files(index)
        pcm = (speech.clip(-1, 1) * 32767).round().astype(np.int16)
        wav = _encode_wav(pcm, sampling_rate)
        record = {
            "index": index,
            "tag": text.tag,
            "text": text.text,
            "kept": kept,
            "attempts": [asdict(attempt) for attempt in attempts],
            "codes": codes.tolist(),
            "sha256": hashlib.sha256(wav).hexdigest(),
        }
        self._write(audio_file, wav)
        self._write_json(record_file, record)

    def _files(self, index: int) -> tuple[Path, Path]:
        return self.folder / f"{index:05}.json", self.folder / f"{index:05}.wav"

    def _write_json(self, file: Path, contents: Mapping[str, Any], indent: int | None = None) -> None:
        text = json.dumps({**contents, "checksum": _checksum(contents)}, ensure_ascii=False, indent=indent)
        self._write(file, text.encode())

    def _write(self, file: Path, data: bytes) -> None:
        try:
            with replacing(file) as temporary:
                temporary.write_bytes(data)
        except OSError as error:
            raise self._unwritable(error) from None

    def _unwritable(self, error: OSError) -> ParameterError:
        return ParameterError(f"the folder {self.folder} can't be written to: {error.strerror}")


def _read_attempt(seed: object, duration: object, failures: object) -> Attempt:
    """Return an attempt as a record holds it. Raises ValueError for values that no run writes."""
    if type(seed) is not int or not 0 <= seed < 2**64:
        raise ValueError
    if not isinstance(duration, int | float) or not 0 <= duration <= sys.float_info.max:
        raise ValueError
    if not isinstance(failures, list) or not all(failure in get_args(Failure) for failure in failures):
        raise ValueError
    return Attempt(seed, float(duration), tuple(failures))


def _read_codes(rows: object) -> torch.Tensor:
    """Return the codes of a record, [codebooks, frames]. Raises ValueError for values that no run writes."""
    if not isinstance(rows, list) or not rows or not all(isinstance(row, list) for row in rows):
        raise ValueError
    if not all(type(code) is int and 0 <= code < _MAX_CODES for row in rows for code in row):
        raise ValueError
    return torch.tensor(rows, dtype=torch.int64, device="cpu")


def _checksum(contents: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the contents of a .json file without its checksum; the format of the JSON is ignored."""
    contents = {name: value for name, value in contents.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()


# Python's own WAV module, since libsndfile drops a signal's exception while it writes to a file object.
def _encode_wav(pcm: np.ndarray, sampling_rate: int) -> bytes:
    """Return a WAV file of pcm [samples], int16."""
    file = io.BytesIO()
    with wave.open(file, "wb") as wav:
        wav.setnchannels(1)
        wav.setsampwidth(2)
        wav.setframerate(sampling_rate)
        wav.writeframes(pcm.astype("<i2").tobytes())
    return file.getvalue()


def _decode_wav(data: bytes) -> tuple[np.ndarray, int]:
    """Return the samples [samples], int16, and the sampling rate. Raises wave.Error or EOFError if that fails."""
    with wave.open(io.BytesIO(data)) as wav:
        if (wav.getnchannels(), wav.getsampwidth()) != (1, 2):
            raise wave.Error("the file must have one channel of 16 bits")
        frames = wav.readframes(wav.getnframes())
        if len(frames) != 2 * wav.getnframes():
            raise EOFError
        return np.frombuffer(frames, dtype="<i2").astype(np.int16), wav.getframerate()
