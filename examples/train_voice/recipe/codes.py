"""Cut the rendered speech into frames, fit the quantizer, and write the codes of every shard.

    python -m recipe.codes

The quantizer, and the gains that bring all voices to one level, are those beside this file: codes are the same
wherever they are made, and trainings go on elsewhere. `--fit-shards` fits both anew, to the first shards, on the first
run. Shards that are rendered later are encoded by the same command.
"""

import argparse
import itertools
import json
import shutil
import time
from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch

from recipe.folder import add_folder_option, only_one, use_packages, write_json
from recipe.frames import HOP_LENGTH, LEAD, Frames, cut, spoken_at
from recipe.shards import finished_shards, read_audio, read_features, read_utterances, shard_path
from recipe.spectra import frame_spectra
from recipe.speech_quantizer import Quantizer, fit


FITTED = Path(__file__).with_name("fitted")
"""The quantizer and the gains, fitted to 12 shards: 1.2 hours."""
_CUTS = 8
"""Ways to cut an utterance into frames, 5 ms apart. Its codes are others each time, so that a language model learns
speech and not codes by heart."""
LEVEL = 0.08
"""Root mean square that each voice is brought to, where it speaks."""


def codes_folder(folder: Path, pitch: bool) -> Path:
    return folder / ("codes" if pitch else "plain_codes")


def measure_gains(folder: Path, numbers: list[int]) -> dict[str, float]:
    """The gain of each voice, over all that it says in these shards."""
    power: dict[str, list[float]] = {}
    for number in numbers:
        path = shard_path(folder, number)
        audio = read_audio(path).astype(np.float32) / 32767
        for utterance in read_utterances(path):
            samples = audio[utterance["start"] : utterance["start"] + utterance["samples"]]
            loud = samples[np.abs(samples) > 0.01]
            totals = power.setdefault(str(utterance["voice"]), [0.0, 0.0])
            totals[0] += float(np.square(loud).sum())
            totals[1] += len(loud)
    return {voice: LEVEL / (total / count) ** 0.5 for voice, (total, count) in sorted(power.items())}


def read_frames(
    folder: Path, number: int, gains: dict[str, float], chosen: Collection[int] | None = None, lead: int = LEAD
) -> list[Frames]:
    """The utterances of a shard, or those of the `chosen` indices, in frames; `lead` samples of silence come first."""
    path = shard_path(folder, number)
    audio = read_audio(path)
    return [
        cut(
            audio[utterance["start"] : utterance["start"] + utterance["samples"]],
            features["f0"],
            features["phase"],
            gains[str(utterance["voice"])],
            lead,
        )
        for index, (utterance, features) in enumerate(zip(read_utterances(path), read_features(path), strict=True))
        if chosen is None or index in chosen
    ]


def spectra_of(frames: Frames) -> torch.Tensor:
    return frame_spectra(torch.from_numpy(frames.audio))


def encode(quantizer: Quantizer, frames: Frames) -> torch.Tensor:
    """uint8 [codebooks, frames]."""
    latents = quantizer.latents(spectra_of(frames), torch.from_numpy(frames.f0), torch.from_numpy(frames.phase))
    return quantizer.encode(latents).byte()


def codes_path(out: Path, number: int, cut: int = 0) -> Path:
    """The codes of a shard in one of its cuts; those that are compared with audio, and held out, are of the first."""
    return out / (f"{number:05}.{cut}.npz" if cut else f"{number:05}.npz")


def finished_codes(out: Path, every_cut: bool) -> list[Path]:
    """The codes that are there, of all shards."""
    cuts = [""] + [f".{cut}" for cut in range(1, _CUTS)] * every_cut
    return sorted(path for cut in cuts for path in out.glob("[0-9]" * 5 + cut + ".npz"))


def write_codes(path: Path, codes: list[torch.Tensor], spoken: list[np.ndarray]) -> None:
    """Codes of a shard's utterances, one behind another, which phoneme is spoken meanwhile, and where each begins."""
    starts = np.cumsum([0] + [part.shape[1] for part in codes])
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, codes=torch.cat(codes, 1).numpy(), spoken=np.concatenate(spoken), starts=starts)
    partial.rename(path)


def read_codes(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Codes uint8 [codebooks, frames] and starts int64 [utterances + 1] of a shard."""
    with np.load(path) as stored:
        return stored["codes"], stored["starts"]


def read_spoken(path: Path) -> np.ndarray:
    """Which of its utterance's phonemes each frame of a shard speaks: int16 [frames] (see `frames.spoken_at`)."""
    with np.load(path) as stored:
        return stored["spoken"]


def _fit(folder: Path, numbers: list[int], count: int, path: Path, pitch: bool) -> None:
    """Fit the quantizer to the first shards, and the gains if there are none."""
    if len(numbers) < count:
        raise SystemExit(f"--fit-shards must be at most {len(numbers)}, the finished shards, got {count}")
    gains_path = folder / "gains.json"
    if not gains_path.exists():
        write_json(gains_path, measure_gains(folder, numbers[:count]))
    gains = json.loads(gains_path.read_text(encoding="utf-8"))
    parts = [spectra_of(frames) for number in numbers[:count] for frames in read_frames(folder, number, gains)]
    fit(torch.cat(parts), pitch=pitch).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_folder_option(parser)
    parser.add_argument("--plain", action="store_true", help="no pitch in the codes: for the comparison")
    parser.add_argument("--fit-shards", type=int, help="fit to so many shards; default: take what was fitted before")
    options = parser.parse_args()
    folder, out = options.folder, codes_folder(options.folder, not options.plain)
    torch.set_num_threads(1)
    with only_one(folder, out.name):
        use_packages(folder)
        out.mkdir(exist_ok=True)
        numbers = finished_shards(folder)
        gains_path, quantizer_path = folder / "gains.json", out / "quantizer.safetensors"
        if not quantizer_path.exists():
            if options.fit_shards is not None:
                _fit(folder, numbers, options.fit_shards, quantizer_path, pitch=not options.plain)
            elif options.plain:
                raise SystemExit("--fit-shards must be given with --plain, whose quantizer is not kept")
            else:
                for kept in (gains_path, quantizer_path):
                    shutil.copy(FITTED / kept.name, kept)
        gains = json.loads(gains_path.read_text(encoding="utf-8"))
        quantizer = Quantizer.load(quantizer_path)
        for number, index in itertools.product(numbers, range(_CUTS)):
            path = codes_path(out, number, index)
            if not path.exists():
                lead = LEAD + index * HOP_LENGTH // _CUTS
                speech = read_frames(folder, number, gains, lead=lead)
                codes = [encode(quantizer, frames) for frames in speech]
                ends = [features["ends"] for features in read_features(shard_path(folder, number))]
                spoken = [spoken_at(len(f.f0), f.begin, e) for f, e in zip(speech, ends, strict=True)]
                write_codes(path, codes, spoken)
                frames = sum(c.shape[1] for c in codes)
                print(f"{time.strftime('%H:%M:%S')} shard {number}, cut {index}: {frames} frames", flush=True)


if __name__ == "__main__":
    main()
