"""Speak a list of texts, several at a time, each into its own file. An interrupted run resumes.

    python examples/batch.py --manifest examples/manifest.csv --out speeches --parallel 8

The manifest (see `higgs_native.manuscript.manifest`) names a voice and a seed for each text. Rows whose file exists
are skipped: to repeat one, delete its file. Each file is the same however many texts are spoken at a time.
"""

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from higgs_native import HiggsAudio, HiggsNativeError, Voice, exit_on_bad_input, list_voices
from higgs_native.manuscript.manifest import ManifestRow, read_manifest


EXAMPLES = Path(__file__).parent


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
    voices = list_voices(args.voices_folder)
    rows = list(read_manifest(args.manifest, voices))
    args.out.mkdir(parents=True, exist_ok=True)
    engine = HiggsAudio.from_pretrained(args.model)
    failed = 0
    # Calls of several threads share the passes over the weights.
    pool = ThreadPoolExecutor(args.parallel)
    try:
        done = [pool.submit(speak, engine, row, voices.get(row.voice), args.out / f"{row.id}.wav") for row in rows]
        for row, message in zip(rows, done, strict=True):
            try:
                print(message.result())
            except HiggsNativeError as error:
                failed += 1
                print(f"error: {row.location}: {error}", file=sys.stderr)
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C finishes the texts that are being spoken
    sys.exit(1 if failed else 0)


def speak(engine: HiggsAudio, row: ManifestRow, voice: Voice | None, path: Path) -> str:
    """Speak a row into a file unless it exists; return what to tell."""
    if path.exists():
        return f"{path}: already done"
    speech = engine.speak(row.text, voice=voice, seed=row.seed)
    speech.save(path)  # written whole or not at all
    return f"{path}: {speech.duration:.2f} s"


if __name__ == "__main__":
    main()
