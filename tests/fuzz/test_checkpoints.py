"""Checkpoints of both networks: damaged tensors, headers, indices and pickles. What loads is finite."""

import random
from pathlib import Path

from higgs_native.audio_tokenizer.tokenizer import HiggsAudioTokenizer
from higgs_native.model.transformer import LanguageModel
from tests.fuzz import mutations
from tests.fuzz.checkpoint_files import KINDS, damaged, files, pickled, split, write
from tests.fuzz.frame import run_cases


QUANTIZATIONS = (None, None, "int8", "int4", "fp8", "heads=int8")
DTYPES = ("auto", "auto", "float32", "float16", "bfloat16")


def load(kind: str, folder: Path, generator: random.Random) -> None:
    """Load a checkpoint; its weights must be finite."""
    if kind == "audio tokenizer":
        weights = HiggsAudioTokenizer.from_pretrained(folder).named_weights()
    else:
        options = {"quantization": generator.choice(QUANTIZATIONS), "dtype": generator.choice(DTYPES)}
        weights = LanguageModel.from_pretrained(folder, **options).named_weights()
    assert all(tensor.float().isfinite().all() for tensor in weights.values())


def case(generator: random.Random, folder: Path) -> None:
    kind = generator.choice(KINDS)
    contents = dict(files(kind))
    chance = generator.random()
    if kind == "audio tokenizer" and chance < 0.3:
        del contents["model.safetensors"]
        contents["model.pth"] = mutations.mutated(pickled(generator.random() < 0.5), generator)
    elif chance < 0.5:
        contents |= split(contents.pop("model.safetensors"))
        for name in generator.sample(list(contents), generator.randrange(3)):
            change = damaged if name.endswith(".safetensors") else mutations.mutated
            contents[name] = change(contents[name], generator)
    else:
        contents["model.safetensors"] = damaged(contents["model.safetensors"], generator)
    if "tokenizer.json" in contents and generator.random() < 0.1:
        contents["tokenizer.json"] = mutations.mutated(contents["tokenizer.json"], generator)
    write(folder, contents)
    load(kind, folder, generator)


def test_checkpoints(tmp_path, record_property):
    run_cases("checkpoints", 0.3, case, tmp_path, record_property)
