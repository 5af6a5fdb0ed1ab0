"""How exact the estimated times of words are: on speech of the embedded voice's teacher, whose alignment is known.

python -m benchmarks.subtitle_report [--json benchmarks/results/subtitles.json] [--utterances 300]

Needs what the steps `materials`, `texts` and `render` of examples/train_voice made. Printed are errors of the words'
begins in seconds, with and without the pauses that the signal shows; the first word of an utterance does not count.
"""

import argparse
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.measure import write_json
from higgs_native.subtitles import MIN_PAUSE_SECONDS, word_cues


sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples" / "train_voice"))
from recipe.folder import add_folder_option, use_packages
from recipe.frames import SAMPLING_RATE
from recipe.shards import finished_shards, read_audio, read_features, read_utterances, shard_path


ALIGNMENT_SECONDS = 0.025
"""The teacher's step: what its alignment can't tell."""


def aligned(folder: Path) -> Iterator[tuple[str, np.ndarray, list[float]]]:
    """Texts, audio, and when each word begins, in seconds; of utterances that have as many words in phonemes."""
    for number in finished_shards(folder):
        path = shard_path(folder, number)
        samples = read_audio(path)
        for utterance, features in zip(read_utterances(path), read_features(path), strict=True):
            text, phonemes = str(utterance["normalized"]), str(utterance["phonemes"])
            first = [0, *(index + 1 for index, sign in enumerate(phonemes) if sign == " ")]
            if len(first) == len(text.split()):
                start = int(utterance["start"])
                audio = samples[start : start + int(utterance["samples"])] / np.float32(32768)
                # Silence before the first phoneme comes first.
                yield text, audio, [features["ends"][index] * ALIGNMENT_SECONDS for index in first]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_folder_option(parser)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--utterances", type=int, default=300)
    args = parser.parse_args()
    use_packages(args.folder)
    errors: dict[str, list[float]] = {"letters_and_pauses": [], "letters_alone": []}
    for text, audio, begins in itertools.islice(aligned(args.folder), args.utterances):
        for name, pause in (("letters_and_pauses", MIN_PAUSE_SECONDS), ("letters_alone", np.inf)):
            cues = word_cues(text, audio, SAMPLING_RATE, min_pause=pause)
            errors[name] += [abs(cue.start - begin) for cue, begin in zip(cues, begins, strict=True)][1:]
    result = {
        name: {
            "words": len(values),
            "median": round(float(np.median(values)), 3),
            "mean": round(float(np.mean(values)), 3),
            "percentile_90": round(float(np.quantile(values, 0.9)), 3),
        }
        for name, values in errors.items()
    }
    for name, figures in result.items():
        print(name, figures)
    if args.json:
        write_json(args.json, {"utterances": args.utterances, "errors": result})


if __name__ == "__main__":
    main()
