"""Manifests: lists of texts to speak, each into its own file.

A manifest is a CSV file with a header, or JSON lines (.jsonl). A row has an `id`, the name of its file, and a `text`.
It may have a `voice`, and a `seed` (default 0).
"""

import csv
import io
import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from higgs_native.errors import PromptError, short_repr


_MAX_BYTES = 256 << 20
_INTEGER = re.compile(r"-?[0-9]{1,20}")


@dataclass(frozen=True)
class ManifestRow:
    """A text to speak.

    Attributes:
        location: file and line, for messages.
        id: the name of its file.
        text: to speak.
        voice: the name of its voice; None: the model chooses.
        seed: of its generation.
    """

    location: str
    id: str
    text: str
    voice: str | None
    seed: int


def read_manifest(path: Path, voices: Collection[str]) -> Iterator[ManifestRow]:
    """Yield the rows of a manifest.

    Args:
        path: of the file.
        voices: the names that rows may have.

    Raises:
        OSError: the file can't be read.
        PromptError: the file is too large or no UTF-8, or a row is invalid; the message names its line.
    """
    ids = set()
    for number, values in _read_lines(path):
        location = f"{path}, line {number}"
        missing = [name for name in ("id", "text") if not str(values.get(name) or "").strip()]
        if missing:
            raise PromptError(f"{location}: id and text must be given, got no {' and no '.join(missing)}")
        row_id, voice, seed = str(values["id"]), values.get("voice") or None, str(values.get("seed") or 0)
        if row_id in ids or Path(row_id).name != row_id:
            raise PromptError(f"{location}: id must be a file name that no other row has, got {row_id!r}")
        if voice is not None and not (isinstance(voice, str) and voice in voices):
            raise PromptError(f"{location}: voice must be one of {', '.join(voices)}, got {short_repr(voice)}")
        if not (_INTEGER.fullmatch(seed) and -(2**63) <= int(seed) < 2**64):
            raise PromptError(
                f"{location}: seed must be an integer from -2**63 to 2**64 - 1, got {short_repr(values['seed'])}"
            )
        ids.add(row_id)
        yield ManifestRow(location, row_id, str(values["text"]), voice, int(seed))


def _read_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows of a CSV or JSON lines file as dictionaries, with their line numbers."""
    with path.open("rb") as binary:
        contents = binary.read(_MAX_BYTES + 1)
    if len(contents) > _MAX_BYTES:
        raise PromptError(f"{path} must have at most {_MAX_BYTES} bytes, got more")
    try:
        file = io.StringIO(contents.decode("utf-8-sig"), newline="")
    except UnicodeDecodeError as error:
        raise PromptError(f"{path} must be UTF-8, got another encoding at byte {error.start}") from None
    if path.suffix != ".jsonl":
        reader = csv.DictReader(file)
        try:
            for values in reader:
                yield reader.line_num, values
        except csv.Error as error:
            raise PromptError(f"{path}, line {reader.line_num}: row must be CSV, got: {error}") from None
        return
    for number, line in enumerate(file, 1):
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise PromptError(f"{path}, line {number}: row must be JSON, got: {error}") from None
        if not isinstance(values, dict):
            raise PromptError(f"{path}, line {number}: row must be a JSON object, got a {type(values).__name__}")
        yield number, values
