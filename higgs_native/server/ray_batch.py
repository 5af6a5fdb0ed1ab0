"""Speak a manifest, or a shelf of books, on a cluster, by a Ray Data job that resumes.

    python -m higgs_native.server.ray_batch manifest.csv --out speeches --actors 4 --gpus 1
    python -m higgs_native.server.ray_batch books/ --out audiobooks --actors 4 --gpus 1

Each actor of a pool speaks several texts side by side, with `--gpus 1` on a GPU. A text is done if its file exists:
files are written whole or not at all. A book keeps its finished chunks beside it until then. So the same command, run
again after an interruption, or while nodes come and go, speaks only what is missing, with the same bits.

All nodes must see the folder `--out`. Texts and recordings are read here and sent along.
"""

import argparse
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.data

from higgs_native.audio.files.writing import check_output_path
from higgs_native.errors import HiggsNativeError, ParameterError, exit_on_bad_input
from higgs_native.long_form.chunk_store import ChunkStore
from higgs_native.long_form.long_speech import LongSpeech
from higgs_native.manuscript.manifest import read_manifest
from higgs_native.pipeline import EMBEDDED_VOICE, HiggsAudio, read_trained_voices
from higgs_native.prompt.voices import Voice, list_voices, read_voice
from higgs_native.utils.files import locked
from higgs_native.utils.variables import VOICES_VARIABLE


class TextSpeaker:
    """An actor that speaks texts into files.

    Args:
        load: arguments of `HiggsAudio.from_pretrained`.
        voices: by their names, their recordings read.
        out: the folder of the files.
    """

    def __init__(self, load: Mapping[str, Any], voices: Mapping[str, Voice], out: Path) -> None:
        self._engine = HiggsAudio.from_pretrained(**load)
        self._voices = voices
        self._out = out

    def __call__(self, texts: dict[str, np.ndarray]) -> dict[str, list[str] | list[bool]]:
        """Speak a batch of texts side by side. Return for each its file or error (`message`), and if it failed."""
        rows = [dict(zip(texts, values, strict=True)) for values in zip(*texts.values(), strict=True)]
        with ThreadPoolExecutor(len(rows)) as pool:  # its calls share the passes over the weights
            told = list(pool.map(self._tell, rows))
        return {"message": [message for message, _ in told], "failed": [failed for _, failed in told]}

    def _tell(self, row: Mapping[str, Any]) -> tuple[str, bool]:
        path = self._out / f"{row['id']}.wav"
        try:
            if not path.exists():  # an earlier try of this batch may have spoken it
                speak = self._speak_book if row["is_book"] else self._speak_text
                speak(str(row["text"]), self._voices.get(row["voice"]), int(row["seed"]), path)
        except HiggsNativeError as error:
            return f"{row['location']}: {error}", True
        return str(path), False

    def _speak_text(self, text: str, voice: Voice | None, seed: int, path: Path) -> None:
        self._engine.speak(text, voice=voice, seed=seed).save(path)

    def _speak_book(self, text: str, voice: Voice | None, seed: int, path: Path) -> None:
        store = ChunkStore(path.with_name(f"{path.name}.parts"))
        speech = LongSpeech(self._engine, text, store.folder, voice=voice, seed=seed)
        with locked(store.folder, waits=True):  # an interrupted run may be about to end
            speech.save(path)
            store.remove()


@exit_on_bad_input(OSError, ValueError)  # an unreadable file
def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m higgs_native.server.ray_batch", description=__doc__.splitlines()[0]
    )
    parser.add_argument("texts", type=Path, help="a manifest (.csv, .jsonl), or a folder of books (.txt)")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write, which all nodes must see")
    parser.add_argument("--address", help="address of the cluster; default: RAY_ADDRESS, or else one on this machine")
    parser.add_argument("--actors", type=int, default=1, help="maximum size of the pool")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs per actor; 0: it runs on the CPU")
    parser.add_argument("--cpus", type=float, default=1, help="cores per actor")
    parser.add_argument("--parallel", type=int, default=8, help="texts of a manifest per actor, side by side")
    parser.add_argument("--voices", type=Path, help="the folder of voices")
    parser.add_argument("--voice", help="voice of the books")
    parser.add_argument("--seed", type=int, default=0, help="seed of the books")
    parser.add_argument("--model", help="a folder or a Hub name; default: the embedded voice")
    parser.add_argument("--audio-tokenizer")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--quantization")
    options = parser.parse_args(arguments)
    for name in ("actors", "parallel"):
        if getattr(options, name) < 1:
            raise ParameterError(f"--{name} must be at least 1, got {getattr(options, name)}")

    voices = _read_voices(options.voices, options.model)
    rows = list(_rows(options, voices))
    options.out.mkdir(parents=True, exist_ok=True)
    missing = [row for row in rows if not check_output_path(options.out / f"{row['id']}.wav").exists()]
    print(f"{options.out}: {len(rows) - len(missing)} of {len(rows)} are done", flush=True)
    sys.exit(1 if missing and _speak(missing, voices, options) else 0)


def _read_voices(folder: Path | None, model: str | None) -> dict[str, Voice]:
    """Return the voices of the checkpoint and of the folder, by name, their recordings read."""
    checkpoint = EMBEDDED_VOICE if model is None else Path(os.path.expanduser(model))
    trained = read_trained_voices(checkpoint) if checkpoint.is_dir() else ()
    has_folder = folder is not None or os.environ.get(VOICES_VARIABLE)
    in_folder = list_voices(folder) if has_folder else {}
    return {name: Voice(profile=name) for name in trained} | {
        name: read_voice(voice) for name, voice in in_folder.items()
    }


def _rows(options: argparse.Namespace, voices: Mapping[str, Voice]) -> Iterator[dict[str, Any]]:
    """Yield the texts to speak, each with its id, voice and seed."""
    if not os.path.isdir(options.texts):
        for row in read_manifest(options.texts, voices):
            yield {**vars(row), "voice": row.voice or "", "seed": str(row.seed), "is_book": False}
        return
    if options.voice is not None and options.voice not in voices:
        raise ParameterError(f"--voice must be one of {', '.join(voices)}, got {options.voice!r}")
    books = sorted(options.texts.glob("*.txt"))
    if not books:
        raise ParameterError(f"the folder of books must hold .txt files, got {options.texts}, which holds none")
    for path in books:
        text = path.read_text(encoding="utf-8-sig")
        described = {"location": str(path), "id": path.stem, "text": text}
        yield {**described, "voice": options.voice or "", "seed": str(options.seed), "is_book": True}


def _speak(rows: list[dict[str, Any]], voices: Mapping[str, Voice], options: argparse.Namespace) -> int:
    """Speak texts. Return how many failed."""
    # A book has enough chunks to speak side by side.
    batch = 1 if rows[0]["is_book"] else options.parallel
    blocks = math.ceil(len(rows) / batch)
    load = {
        "path_or_name": options.model,
        "audio_tokenizer": options.audio_tokenizer,
        "dtype": options.dtype,
        "quantization": options.quantization,
    }
    ray.init(options.address)
    told = ray.data.from_items(rows, override_num_blocks=blocks).map_batches(
        TextSpeaker,
        batch_size=batch,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(options.actors, blocks)),
        fn_constructor_args=(load, voices, options.out.resolve()),
        num_cpus=options.cpus,
        num_gpus=options.gpus,
    )
    failed = 0
    for row in told.iter_rows():
        failed += row["failed"]
        if row["failed"]:
            print(f"error: {row['message']}", file=sys.stderr)
        else:
            print(row["message"], flush=True)
    return failed


if __name__ == "__main__":
    main()
