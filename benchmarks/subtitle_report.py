"""How exact the estimated times of words are: words of the embedded voice, spoken one by one and joined.

python -m benchmarks.subtitle_report [--json benchmarks/results/subtitles.json] [--sentences 100]

Each word of a held-out sentence is spoken alone, cut to its sound, and joined to the next one: without a pause, or
with one of 0.15 to 0.4 seconds after a comma. So the times of all words are known. Words that are spoken alone are
longer and more alike in length than words of a sentence, so this is no measure of other speech. Printed are errors of
the words' begins in seconds, with and without the pauses that the signal shows.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from benchmarks.measure import write_json
from higgs_native.pipeline import HiggsAudio
from higgs_native.subtitles import MIN_PAUSE_SECONDS, word_cues


sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples" / "train_voice"))
from sentences import held_out_sentences


AUDIBLE = 0.03
COMMA_SHARE = 0.2


def cut(audio: np.ndarray) -> np.ndarray:
    """The sound of a word."""
    audible = np.flatnonzero(np.abs(audio) > AUDIBLE * np.abs(audio).max())
    return audio[audible[0] : audible[-1] + 1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--sentences", type=int, default=100)
    args = parser.parse_args()
    engine, generator = HiggsAudio.from_pretrained(), np.random.default_rng(0)
    rate, spoken = engine.audio_tokenizer.sampling_rate, {}
    errors: dict[str, list[float]] = {"letters_and_pauses": [], "letters_alone": []}
    for sentence in held_out_sentences(args.sentences):
        words, pieces, begins, position = sentence.split(), [], [], 0
        for index, word in enumerate(words):
            if word not in spoken:
                spoken[word] = cut(engine.speak(word, voice="feminine", seed=1).audio)
            begins.append(position / rate)
            pieces.append(spoken[word])
            if index + 1 < len(words) and generator.random() < COMMA_SHARE:
                words[index] = word.rstrip(",") + ","
                pieces.append(np.zeros(round(generator.uniform(0.15, 0.4) * rate), dtype=np.float32))
            position = sum(map(len, pieces))
        audio = np.concatenate(pieces)
        for name, pause in (("letters_and_pauses", MIN_PAUSE_SECONDS), ("letters_alone", np.inf)):
            cues = word_cues(" ".join(words), audio, rate, min_pause=pause)
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
        write_json(args.json, {"sentences": args.sentences, "errors": result})


if __name__ == "__main__":
    main()
