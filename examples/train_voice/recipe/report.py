"""Judge the teacher, and its speech through the decoder as far as it was trained, on held-out utterances.

    python -m recipe.report

One utterance a window. Prints, and writes to report.json, the word error rate, DNSMOS and the spread of F0. What a
checkpoint speaks is judged by `python -m benchmarks.voice_report`.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from recipe.codes import codes_folder, finished_codes, read_codes, read_frames
from recipe.folder import add_folder_option, use_packages, write_json
from recipe.judge import Quality, Recognizer, pitch_spread
from recipe.shards import read_utterances, shard_path
from recipe.spectral_quantizer import CODEBOOKS
from recipe.speech_quantizer import Quantizer
from recipe.steps import weights_of
from recipe.tokenizer_networks import TaughtDecoder, tokenizer_config
from recipe.train_decoder import training_name


def held_out(folder: Path, count: int, pitch: bool) -> list[tuple[dict[str, object], np.ndarray, np.ndarray]]:
    """Held-out utterances with their audio and codes; words in random order are left out, which no one recognizes."""
    gains = json.loads((folder / "gains.json").read_text(encoding="utf-8"))
    found = []
    for path in finished_codes(codes_folder(folder, pitch), every_cut=False):
        codes, starts = read_codes(path)
        utterances = read_utterances(shard_path(folder, int(path.stem)))
        chosen = [
            i for i, utterance in enumerate(utterances) if utterance["held_out"] and utterance["kind"] != "words"
        ]
        for index, frames in zip(chosen, read_frames(folder, int(path.stem), gains, chosen), strict=True):
            found.append((utterances[index], frames.audio, codes[:, starts[index] : starts[index + 1]]))
        if len(found) >= count:
            break
    return found[:count]


@torch.no_grad()
def resynthesize(folder: Path, codes: list[np.ndarray], pitch: bool) -> list[np.ndarray]:
    """Audio of codes by the decoder as far as it was trained."""
    paths = [folder / f"{training_name(pitch, adversarial)}.pt" for adversarial in (True, False)]
    weights = weights_of(next(path for path in paths if path.exists()))
    quantizer = Quantizer.load(codes_folder(folder, pitch) / "quantizer.safetensors")
    channels = weights["decoder.conv1.weight"].shape[0]
    network = TaughtDecoder(tokenizer_config(quantizer.latent, channels))
    network.load_state_dict(weights)
    table = quantizer.table()
    made = []
    for part in codes:
        latents = sum(table[level][torch.from_numpy(part[level].astype(np.int64))] for level in range(CODEBOOKS))
        made.append(network(latents.T[None])[0][0].numpy())
    return made


def judge(audio: list[np.ndarray], texts: list[str], recognizer: Recognizer, quality: Quality) -> dict[str, float]:
    """The measures of all utterances together."""
    scores = np.array([quality.scores(part) for part in audio])
    heard = [recognizer.hear(part) for part in audio]
    return {
        "utterances": len(audio),
        "word_error_rate": recognizer.word_error_rate(texts, heard),
        "overall": float(scores[:, 0].mean()),
        "p808": float(scores[:, 1].mean()),
        "pitch_spread": float(np.mean([pitch_spread(part) for part in audio])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_folder_option(parser)
    parser.add_argument("--plain", action="store_true", help="the decoder of codes without pitch")
    parser.add_argument("--count", type=int, default=100)
    options = parser.parse_args()
    folder = options.folder
    use_packages(folder)
    recognizer, quality = Recognizer(folder / "materials"), Quality(folder / "materials")
    utterances, audio, codes = zip(*held_out(folder, options.count, not options.plain), strict=True)
    texts = [str(utterance["normalized"]) for utterance in utterances]
    made = {"teacher": list(audio), "resynthesis": resynthesize(folder, list(codes), not options.plain)}
    results = {}
    for name, parts in made.items():
        results[name] = judge(parts, texts, recognizer, quality)
        print(name, "  ".join(f"{key} {value:.4g}" for key, value in results[name].items()), flush=True)
    write_json(folder / "report.json", results)


if __name__ == "__main__":
    main()
