"""Make the training corpus: the quantizer, audio for the audio tokenizer, and codes for the language model.

    python make_corpus.py FOLDER

Writes `quantizer.safetensors`, `audio.pt` (some hours of it, for the audio tokenizer) and `codes-N.pt`, shard by
shard. It keeps what is there already, so an interrupted run goes on. No GPU is used.
"""

import argparse
import itertools
import multiprocessing
import shutil
from pathlib import Path

import torch
from espeak import VOICES, render
from quantizer import Quantizer, fit
from sentences import read_words, sentences
from spectra import frame_spectra


QUANTIZER = "quantizer.safetensors"
QUANTIZER_SENTENCES = 6000
AUDIO_SENTENCES = 4800
SHARD_SENTENCES = 6000
# Short sentences are where a model first learns which word sounds how; long ones are what is asked of it.
_LENGTHS = [1, 2, 2, 3, 3, 3, 4, 4, 5, 5, 6, 6, 7, 8, 9]
SHARDS = 29
# Of all words in any order; the next ones are of longer sentences, and the last ones of sentences that repeat words.
_PLAIN_SHARDS, _LONG_SHARDS = 22, 2
_LONG_LENGTHS, _REPEATING_LENGTHS = list(range(10, 17)), list(range(3, 13))


def load_quantizer(folder: Path) -> Quantizer:
    """The quantizer that was fitted for this corpus."""
    return Quantizer.load(folder / QUANTIZER)


def make_quantizer(folder: Path) -> None:
    """Fit the quantizer to sentences in all voices."""
    texts = itertools.islice(sentences(seed=0, lengths=_LENGTHS), QUANTIZER_SENTENCES)
    spectra = [frame_spectra(torch.from_numpy(render(text, VOICES[i % len(VOICES)]))) for i, text in enumerate(texts)]
    fit(torch.cat(spectra)).save(folder / QUANTIZER)


def make_audio(folder: Path) -> None:
    """Audio and codes of the same sentences: `audio` int16 [samples], `codes` uint8 [codebooks, frames]."""
    quantizer = load_quantizer(folder)
    texts = itertools.islice(sentences(seed=1, lengths=_LENGTHS), AUDIO_SENTENCES)
    audio, codes = [], []
    for i, text in enumerate(texts):
        rendered = torch.from_numpy(render(text, VOICES[i % len(VOICES)]))
        audio.append((rendered * 32767).round().short())
        codes.append(quantizer.encode(quantizer.latents(frame_spectra(rendered))).byte())
    _save({"audio": torch.cat(audio), "codes": torch.cat(codes, dim=1)}, folder / "audio.pt")


def make_shard(folder: Path, number: int) -> None:
    """Codes of `SHARD_SENTENCES` sentences, or, in shard 0, of every single word in every voice.

    `texts`, `voices` uint8 [sentences], `starts` int64 [sentences + 1], and `codes` uint8 [codebooks, frames].
    """
    torch.set_num_threads(1)
    path = folder / f"codes-{number:03}.pt"
    if path.exists():
        return
    quantizer = load_quantizer(folder)
    if number == 0:
        texts = [word + "." for word in read_words() for _ in VOICES]
    else:
        lengths, repeating = _LENGTHS, number >= _PLAIN_SHARDS + _LONG_SHARDS
        if number >= _PLAIN_SHARDS:
            lengths = _REPEATING_LENGTHS if repeating else _LONG_LENGTHS
        composed = sentences(seed=100 + number, lengths=lengths, repeating=repeating)
        texts = list(itertools.islice(composed, SHARD_SENTENCES))
    codes = [
        quantizer.encode(
            quantizer.latents(frame_spectra(torch.from_numpy(render(text, VOICES[i % len(VOICES)]))))
        ).byte()
        for i, text in enumerate(texts)
    ]
    starts = torch.tensor([0] + [part.shape[1] for part in codes]).cumsum(0)
    voices = (torch.arange(len(texts)) % len(VOICES)).byte()
    _save({"texts": texts, "voices": voices, "starts": starts, "codes": torch.cat(codes, dim=1)}, path)
    print(f"{path.name}: {len(texts)} sentences, {starts[-1] / 25 / 3600:.2f} hours", flush=True)


def _save(contents: dict, path: Path) -> None:
    torch.save(contents, path.with_suffix(".partial"))
    path.with_suffix(".partial").rename(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shards", type=int, default=SHARDS, help=f"of {SHARD_SENTENCES} sentences each")
    parser.add_argument(
        "--fit",
        action="store_true",
        help="fit a quantizer, instead of taking the embedded voice's",
    )
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if not (options.folder / QUANTIZER).exists():
        if options.fit:
            make_quantizer(options.folder)
        else:
            shutil.copy(Path(__file__).with_name(QUANTIZER), options.folder)
    if not (options.folder / "audio.pt").exists():
        make_audio(options.folder)
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        pool.starmap(make_shard, [(options.folder, number) for number in range(options.shards)], chunksize=1)


if __name__ == "__main__":
    main()
