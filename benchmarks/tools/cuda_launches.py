"""Record which CUDA kernels a forward pass launches, and how, without a GPU and without computing anything.

    HIGGS_NATIVE_EMULATE_CUDA=1 HIGGS_NATIVE_MULTIPROCESSORS=132 HIGGS_NATIVE_RECORD_LAUNCHES=FILE \\
        python -m benchmarks.tools.cuda_launches '{"model": "v2", "format": "int4", "text": 83, "audio": 167}'

The emulated library chooses kernels as the one for GPUs does; with HIGGS_NATIVE_RECORD_LAUNCHES it writes its
launches instead of running them (csrc/cuda/emulation). So models of the published shapes cost nothing but memory.
`record` runs this module in a separate process.
"""

import argparse
import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

import higgs_native
from benchmarks.tools.sass import demangle
from higgs_native import _C, ops
from higgs_native.checkpoint.config import HiggsAudioConfig
from higgs_native.checkpoint.language_model import TEXT_LM_HEAD, expected_tensors
from higgs_native.checkpoint.quantization import Quantization
from higgs_native.generation.steps.model_runner import CapturedStep
from higgs_native.generation.steps.sampler import SamplerState
from higgs_native.model.batch import Batch
from higgs_native.model.kv_cache import KVCache, pages_for
from higgs_native.model.transformer import LanguageModel
from higgs_native.testing.configs import REAL_SIZE_CONFIG, REAL_SIZE_TTS_3_CONFIG


MODELS = {"v2": REAL_SIZE_CONFIG, "tts_3": REAL_SIZE_TTS_3_CONFIG}
EMULATION = Path(_C.__file__).with_name("libhiggs_native_cuda_emulation.so")
"""The emulated library of the package that is imported, if it was built."""
_RECORD = "HIGGS_NATIVE_RECORD_LAUNCHES"


@dataclasses.dataclass(frozen=True)
class Launch:
    """A launch of a kernel.

    Its operator, blocks along x, y and z, threads, bytes of dynamic shared memory, and bytes of weights that it loads
    into L2 for later launches.
    """

    op: str
    kernel: str
    x: int
    y: int
    z: int
    threads: int
    shared_bytes: int
    prefetched_bytes: int

    @property
    def blocks(self) -> int:
        return self.x * self.y * self.z


class _Weights:
    """Weights of zeros, the same for all layers; implements `higgs_native.model.weights.Weights`."""

    dtype = torch.bfloat16

    def __init__(self, config: HiggsAudioConfig, format: str) -> None:
        self.quantization = Quantization.parse(None if format == "bfloat16" else format)
        self._shapes = expected_tensors(config)
        self._packed: dict[tuple[str, ...], ops.PackedWeight] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._shapes and name != TEXT_LM_HEAD

    def tensor(self, name: str) -> torch.Tensor:
        """A table, or a norm's weight."""
        return torch.zeros(self._shapes[name], dtype=self.dtype)  # finite, as quantization asks

    def linear(self, part: str, name: str, *names: str) -> ops.PackedWeight:
        """Matrices, concatenated and packed."""
        key = self._in_any_layer(part, *(names or (name,)))
        if key not in self._packed:
            matrices = map(self.tensor, names or (name,))
            self._packed[key] = ops.pack_linear(*matrices, format=getattr(self.quantization, part))
        return self._packed[key]

    def gate_up(self, part: str, name: str, gate: str, up: str) -> ops.PackedWeight:
        """The gate and up projections, packed together."""
        key = self._in_any_layer(part, gate, up)
        if key not in self._packed:
            format = getattr(self.quantization, part)
            self._packed[key] = ops.pack_gate_up(self.tensor(gate), self.tensor(up), format=format)
        return self._packed[key]

    @staticmethod
    def _in_any_layer(*names: str) -> tuple[str, ...]:
        return tuple(re.sub(r"\blayers\.\d+\.", "layers.0.", name) for name in names)


def record(multiprocessors: int, case: dict[str, Any]) -> list[Launch]:
    """The launches of a pass over two layers and the head.

    The last layer has no other to prefetch weights for, and leaves out rows of a prompt.

    Args:
        multiprocessors: of the GPU.
        case: `model`, `format`, and either `batch` sequences that draw a frame, or the `text` and `audio` rows of a
            prompt.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "launches"
        variables = {
            "HIGGS_NATIVE_EMULATE_CUDA": "1",
            "HIGGS_NATIVE_MULTIPROCESSORS": str(multiprocessors),
            _RECORD: str(path),
            "PYTHONPATH": str(Path(higgs_native.__file__).parent.parent),
        }
        command = [sys.executable, "-m", __spec__.name, json.dumps(case)]
        root = Path(__file__).resolve().parents[2]
        subprocess.run(command, cwd=root, env={**os.environ, **variables}, check=True)
        lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    symbols = subprocess.run(["nm", str(EMULATION)], capture_output=True, text=True, check=True).stdout.split("\n")
    mangled = {int(symbol.split()[0], 16): symbol.split()[2] for symbol in symbols if len(symbol.split()) == 3}
    addresses = sorted({int(line[1], 16) for line in lines})
    names = dict(zip(addresses, demangle([mangled[address] for address in addresses]), strict=True))
    return [Launch(op, names[int(address, 16)], *map(int, numbers)) for op, address, *numbers in lines]


def main() -> None:
    parser = argparse.ArgumentParser(prog=f"python -m {__spec__.name}", description=__doc__.splitlines()[0])
    parser.add_argument("case", type=json.loads)
    case = parser.parse_args().case
    whole = MODELS[case["model"]]
    config = dataclasses.replace(whole, num_hidden_layers=2, audio_dual_ffn_layers=whole.audio_dual_ffn_layers[:2])
    model = LanguageModel(config, _Weights(config, case["format"]), None, torch.device("cpu"), 8192)
    Path(os.environ[_RECORD]).unlink()  # the launches that packed weights
    with torch.inference_mode():
        if "batch" in case:
            batch = case["batch"]
            cache = KVCache(config, batch, batch, model.max_cache_length, model.dtype, model.device)
            sampler = SamplerState(batch, config, 8, model.device)
            CapturedStep(model, cache, sampler, batch).compute()
        else:
            text, audio = case["text"], case["audio"]
            codes = torch.zeros(config.num_codebooks, audio, dtype=torch.int32)
            cache = KVCache(config, pages_for(text + audio), 1, model.max_cache_length, model.dtype, model.device)
            rows = Batch.text_then_audio([([1] * text, codes)])
            rows.kept_rows = range(text + audio - 1, text + audio)  # the engine keeps what it draws from
            states = model.forward(rows, cache)
            model.audio_logits(states[-1:])


if __name__ == "__main__":
    main()
