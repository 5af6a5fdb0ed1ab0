"""Configurations of both networks: fields of other kinds and sizes. What is accepted describes its tensors quickly."""

import copy
import json
import random
import time
from pathlib import Path

import numpy as np
import torch

from higgs_native.audio_tokenizer.checkpoint import folded_shapes
from higgs_native.audio_tokenizer.config import HiggsAudioTokenizerConfig
from higgs_native.audio_tokenizer.tokenizer import HiggsAudioTokenizer
from higgs_native.checkpoint.config import HiggsAudioConfig
from higgs_native.checkpoint.language_model import expected_tensors
from higgs_native.model.rope import rope_table
from higgs_native.model.transformer import LanguageModel
from tests.fuzz import mutations
from tests.fuzz.checkpoint_files import AUDIO_TOKENIZER, KINDS, files, write
from tests.fuzz.frame import run_cases


_VALUES = (
    *(0, -1, 1, 2, 3, 5, 7, 15, 1024, 1025, 65536, 2**31 - 1, 2**31, 2**63, 2**64, 10**30, 10**4299, -(10**4000)),
    *(0.0, 0.5, 1e-300, 1e30, 1e300, float("inf"), float("-inf"), float("nan"), True, False, None, "", "5", "llama3"),
    *([], [0], [1, 1], [2] * 20, [1] * 5000, ["1"], [[1]], {}, {"a": 1}, {"rope_type": "llama3", "factor": 0}),
)
_BOSON = {
    "sample_rate": 24000,
    "n_q": 8,
    "bins": 1024,
    "codebook_dim": 64,
    "D": 256,
    "ratios": [8, 5, 4, 2, 3],
}
_NAMES = ("rope_theta", "rope_scaling", "quantization_config", "text_config", "dtype", "n_q", "ratios", "eos_token_id")


def changed(raw: dict, generator: random.Random) -> dict:
    """Change, remove or add some fields at any depth."""
    raw = copy.deepcopy(raw)
    for _ in range(generator.choice((1, 1, 2, 4))):
        holder = raw
        while (inner := [value for value in holder.values() if isinstance(value, dict)]) and generator.random() < 0.5:
            holder = generator.choice(inner)
        name = generator.choice((*holder, *_NAMES)) if generator.random() < 0.9 else mutations.text(generator)
        if generator.random() < 0.1:
            holder.pop(name, None)
        elif isinstance(holder.get(name), list) and holder[name] and generator.random() < 0.5:
            values = [*holder[name]]
            values[generator.randrange(len(values))] = copy.deepcopy(generator.choice(_VALUES))
            holder[name] = values
        else:
            known = generator.random() < 0.8
            holder[name] = copy.deepcopy(generator.choice(_VALUES)) if known else mutations.value(generator)
    return raw


def case(generator: random.Random, folder: Path) -> None:
    kind = generator.choice((*KINDS, "boson audio tokenizer"))
    contents = files(kind.removeprefix("boson "))
    raw = _BOSON if kind.startswith("boson") else json.loads(contents["config.json"])
    text = json.dumps(changed(raw, generator)).encode(errors="surrogatepass")
    if generator.random() < 0.1:
        text = mutations.mutated(text, generator)
    write(folder, contents | {"config.json": text})
    begin = time.process_time()
    if kind.endswith("audio tokenizer"):
        described = HiggsAudioTokenizerConfig.from_pretrained(folder)
        tensors = folded_shapes(described)
        assert described.decoder_context >= 1
        assert described.frame_rate >= 1
    else:
        described = HiggsAudioConfig.from_pretrained(folder)
        tensors = expected_tensors(described)
        assert rope_table(described, 64).isfinite().all()
    assert len(tensors) < 50_000
    assert time.process_time() - begin < 2
    if not kind.endswith("audio tokenizer"):
        LanguageModel.from_pretrained(folder)
        return
    audio_tokenizer = HiggsAudioTokenizer.from_pretrained(folder)
    codes = torch.zeros(described.num_codebooks, 3, dtype=torch.int64)
    assert audio_tokenizer.decode(codes).isfinite().all()
    if described != AUDIO_TOKENIZER:
        audio_tokenizer.encode(np.full(described.sampling_rate, 0.1, dtype=np.float32), described.sampling_rate)


def test_configurations(tmp_path, record_property):
    run_cases("configurations", 0.2, case, tmp_path, record_property)
