"""Speak a list of texts, several at a time, each into its own file. An interrupted run resumes.

    python examples/batch.py --manifest examples/manifest.csv --out speeches --parallel 8

The manifest is a CSV file with a header, or JSON lines (.jsonl). A row has an `id`, the name of its file, and a
`text`. It may have a `voice` of the folder of voices, and a `seed` (default 0). Rows whose file exists are skipped:
to repeat one, delete its file. Each file is the same however many texts are spoken at a time.
"""

import argparse
import csv
import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from higgs_native import HiggsAudio, HiggsNativeError, Voice, exit_on_bad_input, list_voices


EXAMPLES = Path(__file__).parent


@dataclass
class Row:
    location: str  # file and line, for messages
    id: str
    text: str
    voice: Voice | None
    seed: int


@exit_on_bad_input(OSError, ValueError)  # an unreadable file, an invalid row
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a folder or a Hub name; default: the embedded voice")
    parser.add_argument("--manifest", type=Path, default=EXAMPLES / "manifest.csv")
    parser.add_argument("--voices-folder", type=Path, default=EXAMPLES / "voices", help="recordings and descriptions")
    parser.add_argument("--out", type=Path, default=Path("speeches"), help="the folder to write")
    parser.add_argument("--parallel", type=int, default=8, help="maximum number of texts at a time")
    args = parser.parse_args()
    if args.parallel < 1:
        raise ValueError(f"--parallel must be at least 1, got {args.parallel}")

    # The whole manifest is checked before the first text is spoken.
    rows = list(read_manifest(args.manifest, list_voices(args.voices_folder)))
    args.out.mkdir(parents=True, exist_ok=True)
    engine = HiggsAudio.from_pretrained(args.model)
    failed = 0
    # Calls of several threads share the passes over the weights.
    pool = ThreadPoolExecutor(args.parallel)
    try:
        done = [pool.submit(speak, engine, row, args.out / f"{row.id}.wav") for row in rows]
        for row, message in zip(rows, done, strict=True):
            try:
                print(message.result())
            except HiggsNativeError as error:
                failed += 1
                print(f"error: {row.location}: {error}", file=sys.stderr)
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C finishes the texts that are being spoken
    sys.exit(1 if failed else 0)


def speak(engine: HiggsAudio, row: Row, path: Path) -> str:
    """Speak a row into a file unless it exists; return what to tell."""
    if path.exists():
        return f"{path}: already done"
    speech = engine.speak(row.text, voice=row.voice, seed=row.seed)
    speech.save(path)  # written whole or not at all
    return f"{path}: {speech.duration:.2f} s"


def read_manifest(path: Path, voices: dict[str, Voice]) -> Iterator[Row]:
    """Read the rows. Raise ValueError, which names the line, if one is invalid."""
    ids = set()
    for number, values in read_lines(path):
        location = f"{path}, line {number}"
        missing = [name for name in ("id", "text") if not str(values.get(name) or "").strip()]
        if missing:
            raise ValueError(f"{location}: id and text must be given, got no {' and no '.join(missing)}")
        row_id, voice, seed = str(values["id"]), values.get("voice") or None, str(values.get("seed") or 0)
        if row_id in ids or Path(row_id).name != row_id:
            raise ValueError(f"{location}: id must be a file name that no other row has, got {row_id!r}")
        if voice is not None and voice not in voices:
            raise ValueError(f"{location}: voice must be one of {', '.join(voices)}, got {voice!r}")
        if not seed.isdecimal():
            raise ValueError(f"{location}: seed must be an integer of at least 0, got {seed!r}")
        ids.add(row_id)
        yield Row(location, row_id, str(values["text"]), voices.get(voice), int(seed))


def read_lines(path: Path) -> Iterator[tuple[int, dict]]:
    """Yield the rows of a CSV or JSON lines file as dictionaries, with their line numbers."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        if path.suffix != ".jsonl":
            reader = csv.DictReader(file)
            for values in reader:
                yield reader.line_num, values
            return
        for number, line in enumerate(file, 1):
            try:
                values = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: row must be JSON, got: {error}") from None
            if not isinstance(values, dict):
                raise ValueError(f"{path}, line {number}: row must be a JSON object, got a {type(values).__name__}")
            yield number, values


if __name__ == "__main__":
    main()
