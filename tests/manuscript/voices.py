"""A small checkpoint whose voices read phonemes."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from higgs_native.english.guess import Guesser
from higgs_native.english.reader import DICTIONARY_FILE, GUESSER_FILE, write_dictionary
from higgs_native.manuscript.phonemes import VOICES_FILE
from higgs_native.pipeline import VOICES_KEY
from higgs_native.testing.random_checkpoint import write_demo_checkpoint


ENTRIES = {
    "us": {"cat": "kˈæt", "five": "fˈIv", "bath": "bˈæθ"},
    "gb": {"cat": "kˈat", "five": "fˈIv", "bath": "bˈɑːθ"},
}
ACCENTS = {"heart": "us", "emma": "gb"}


def write_phoneme_voice(folder: Path) -> Path:
    """Write a checkpoint of random weights with a dictionary and two voices."""
    write_demo_checkpoint(folder)
    write_dictionary(folder / DICTIONARY_FILE, ENTRIES)
    torch.manual_seed(0)
    guesser = Guesser(width=32, inner=64, layers=1)
    save_file(guesser.state_dict(), folder / GUESSER_FILE, {name: str(value) for name, value in guesser.shape.items()})
    voices = {name: {"accent": accent} for name, accent in ACCENTS.items()}
    (folder / VOICES_FILE).write_text(json.dumps(voices))
    config = json.loads((folder / "config.json").read_text()) | {VOICES_KEY: list(ACCENTS)}
    (folder / "config.json").write_text(json.dumps(config))
    return folder
