"""A folder of the voice's recipe, as small as its steps allow. Needs no download."""

import json
import random
import string
import sys
from pathlib import Path

import numpy as np
import pytest
import torch


sys.path.append(str(Path(__file__).resolve().parents[2] / "examples" / "train_voice"))
from recipe import codes, folder, sentences, shards, teacher, texts

from tests.voice_recipe.helpers import WORDS, run_step, voiced


@pytest.fixture(scope="module")
def materials(tmp_path_factory):
    """A dictionary of a few words, and texts of them."""
    path = tmp_path_factory.mktemp("materials")
    entries = {word: f"{word[0]}ˈæ{word[-1]}" for word in WORDS}
    entries |= {letter: f"{letter.lower()}ˈi" for letter in string.ascii_uppercase}
    entries |= {"Rex": "ɹˈɛks", "Tom": "tˈɑm"}
    (path / "dictionary").mkdir()
    for accent in ("us", "gb"):
        (path / "dictionary" / f"{accent}_gold.json").write_text(json.dumps(entries))
        (path / "dictionary" / f"{accent}_silver.json").write_text(json.dumps({"cat": "wrong"}))
    (path / "texts").mkdir()
    rng = random.Random(0)
    for source in sentences.SOURCES:
        lines = [" ".join(rng.choices(WORDS, k=rng.randint(4, 30))).capitalize() + "." for _ in range(60)]
        lines.append("The cat sees a xylophone.")
        (path / "texts" / f"{source}.txt").write_text("\n".join(lines))
    (path / "texts" / "frequent_words.txt").write_text("\n".join([*WORDS, "xylophone"]))
    return path


@pytest.fixture(scope="module")
def spectral_noise():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3000, 96, generator=generator) @ torch.randn(96, 96, generator=generator)


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """A folder with two small shards of tones, and their codes."""
    path = tmp_path_factory.mktemp("rendered")
    for number in range(2):
        speech, lines = [], []
        for index in range(8):
            audio, f0, phase = voiced(1.5, seed=8 * number + index)
            speech.append(teacher.Rendered(audio / 32767, f0, phase, np.arange(12)))
            text = "the cat sees a dog" if index % 2 else "the dog sees the cat"
            lines.append(
                {
                    "id": 8 * number + index,
                    "kind": "composed" if index else "words",
                    "text": text,
                    "normalized": text,
                    "phonemes": "ðə kˈæt sˈiz ɐ dˈɔɡ.",
                    "voice": list(texts.VOICES)[index % 6],
                    "held_out": index % 4 == 3,
                }
            )
        shards.write_shard(shards.shard_path(path, number), lines, speech)
    folder.write_json(path / "gains.json", dict.fromkeys(texts.VOICES, 0.9))
    for pitch in (True, False):
        run_step(codes, path, "--fit-shards", "2", *([] if pitch else ["--plain"]))
    return path
