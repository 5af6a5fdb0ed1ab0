"""Let a recognizer hear the rendered speech, and mark the utterances in which it misses too much.

    python -m recipe.screen

Works on the shards that are finished, behind the renderer or after it; with `--follow` it waits for more. What is
heard is compared as phonemes, since nobody spells rare words right. Several utterances share one window of 30
seconds; those that fail are heard once more, each by itself.
"""

import argparse
import json
import re
import time
from pathlib import Path

import numpy as np

from higgs_native.english.normalize import normalize
from recipe.dictionary import accent_of, read_pronouncers
from recipe.folder import add_folder_option, only_one, use_packages, write_json, yield_to_others
from recipe.shards import finished_shards, read_audio, read_utterances, shard_path


LARGEST_ERROR = 0.3
"""Phoneme errors per phoneme beyond which an utterance is rejected; rare words alone make 0.2."""

_RATE = 16000
_WINDOW, _GAP = 28.0, 0.5
_SPEECH_RATE = 24000


def bare(phonemes: str) -> str:
    """Phonemes without stress, punctuation, spaces and length."""
    return re.sub(r"[^\w]|[ˈˌː]", "", phonemes)


def errors_by_part(parts: list[str], heard: str) -> list[int]:
    """The smallest number of edits that turn the parts, joined, into what was heard; for each part its own."""
    from rapidfuzz.distance import Levenshtein

    ends = np.cumsum([len(part) for part in parts])
    counts = [0] * len(parts)
    for edit in Levenshtein.editops("".join(parts), heard):
        counts[min(int(np.searchsorted(ends, edit.src_pos, side="right")), len(parts) - 1)] += 1
    return counts


def windows(lengths: list[float]) -> list[list[int]]:
    """Group utterances of these lengths in seconds so that each group fits a window."""
    groups: list[list[int]] = []
    filled = np.inf
    for index, length in enumerate(lengths):
        if filled + length > _WINDOW:
            groups.append([])
            filled = 0.0
        groups[-1].append(index)
        filled += length + _GAP
    return groups


class Screener:
    """Hears utterances with Whisper tiny.en in one thread."""

    def __init__(self, materials: Path) -> None:
        from faster_whisper import WhisperModel

        self._model = WhisperModel(
            str(materials / "judges" / "tiny.en"), device="cpu", compute_type="int8", cpu_threads=1
        )
        self._pronouncers = read_pronouncers(materials)

    def hear(self, audio: np.ndarray) -> str:
        """The text of float32 audio at 16 kHz."""
        segments, _ = self._model.transcribe(
            audio,
            language="en",
            beam_size=1,
            temperature=0.0,
            condition_on_previous_text=False,
            without_timestamps=True,
        )
        return " ".join(segment.text.strip() for segment in segments)

    def errors(self, utterances: list[dict[str, object]], heard: str) -> list[float]:
        """Phoneme errors per phoneme of utterances that were heard together."""
        accents = [accent_of(str(utterance["voice"])) for utterance in utterances]
        # The recognizer writes no accent: the majority's pronunciation is taken for all.
        accent = max(set(accents), key=accents.count)
        pronouncer = self._pronouncers[accent]
        parts = [bare(pronouncer.phonemes(str(utterance["normalized"]))[0]) for utterance in utterances]
        counts = errors_by_part(parts, bare(pronouncer.phonemes(normalize(heard))[0]))
        return [count / max(len(part), 1) for count, part in zip(counts, parts, strict=True)]

    def screen(self, path: Path) -> list[dict[str, object]]:
        """Errors, and what was heard where they are many, for each utterance of a shard."""
        import soxr

        utterances, speech = read_utterances(path), read_audio(path)
        audio = [
            soxr.resample(
                speech[u["start"] : u["start"] + u["samples"]].astype(np.float32) / 32767, _SPEECH_RATE, _RATE
            )
            for u in utterances
        ]
        gap = np.zeros(int(_GAP * _RATE), np.float32)
        results: list[dict[str, object]] = [{} for _ in utterances]
        for group in windows([len(samples) / _RATE for samples in audio]):
            heard = self.hear(np.concatenate([part for index in group for part in (audio[index], gap)]))
            for index, error in zip(group, self.errors([utterances[i] for i in group], heard), strict=True):
                if error > LARGEST_ERROR and len(group) > 1:
                    heard = self.hear(np.concatenate([gap, audio[index], gap]))
                    (error,) = self.errors([utterances[index]], heard)
                results[index] = {"id": utterances[index]["id"], "error": round(error, 3)}
                if error > LARGEST_ERROR:
                    results[index] |= {"rejected": True, "heard": heard}
        return results


def screened_path(folder: Path, number: int) -> Path:
    return folder / "screened" / f"{number:05}.json"


def rejected(folder: Path) -> set[int]:
    """The ids of the rejected utterances of all shards that were screened."""
    found = (json.loads(path.read_text(encoding="utf-8")) for path in (folder / "screened").glob("*.json"))
    return {int(result["id"]) for results in found for result in results if result.get("rejected")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_folder_option(parser)
    parser.add_argument("--follow", action="store_true", help="wait for shards that are still being rendered")
    options = parser.parse_args()
    folder = options.folder
    with only_one(folder, "screen"):
        yield_to_others()
        use_packages(folder)
        screener = Screener(folder / "materials")
        count = bad = 0
        while True:
            pending = [n for n in finished_shards(folder) if not screened_path(folder, n).exists()]
            for number in pending:
                began = time.process_time()
                results = screener.screen(shard_path(folder, number))
                write_json(screened_path(folder, number), results)
                count, bad = count + len(results), bad + sum(bool(result.get("rejected")) for result in results)
                print(
                    f"{time.strftime('%H:%M:%S')} shard {number}: {100 * bad / count:.2f} % of {count} rejected, "
                    f"{(time.process_time() - began) / len(results):.2f} CPU s an utterance",
                    flush=True,
                )
            if not pending:
                if not options.follow:
                    break
                time.sleep(60)


if __name__ == "__main__":
    main()
