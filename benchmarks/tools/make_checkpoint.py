"""Write a checkpoint of the published size with random weights: 28 layers, 11.5 GB of sharded bfloat16 safetensors.

Its audio tokenizer goes to `audio_tokenizer/` in the same folder: 0.8 GB of float32 in the transformers layout.

python -m benchmarks.tools.make_checkpoint --out /data/higgs-random [--layout original] [--layers 4]
"""

import argparse
import dataclasses
import math
import resource
import shutil
import sys
import time
from pathlib import Path

import torch

from higgs_native.audio_tokenizer.config import HiggsAudioTokenizerConfig
from higgs_native.audio_tokenizer.weights import tensor_shapes
from higgs_native.checkpoint.language_model import expected_tensors
from higgs_native.errors import HiggsNativeError
from higgs_native.testing.configs import CHECKPOINT_LAYOUTS, REAL_SIZE_CONFIG, REAL_SIZE_TTS_3_CONFIG
from higgs_native.testing.random_checkpoint import write_audio_tokenizer, write_language_model


def main() -> None:
    parser = argparse.ArgumentParser(prog=f"python -m {__spec__.name}", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the folder to write; it must hold no model")
    parser.add_argument("--layout", choices=CHECKPOINT_LAYOUTS, default="transformers")
    parser.add_argument("--layers", type=int, help="default: those of the published model of the layout")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ending", action="store_true", help="let EOS be sampled; without it audio runs to the limit")
    args = parser.parse_args()

    config = REAL_SIZE_TTS_3_CONFIG if args.layout == "higgs_tts_3" else REAL_SIZE_CONFIG
    layers = args.layers or config.num_hidden_layers
    dual = tuple(layer for layer in config.audio_dual_ffn_layers if layer < layers)
    config = dataclasses.replace(config, num_hidden_layers=layers, audio_dual_ffn_layers=dual)
    dtype = getattr(torch, args.dtype)
    audio_tokenizer = HiggsAudioTokenizerConfig()
    size = dtype.itemsize * sum(math.prod(shape) for shape in expected_tensors(config).values())
    size += 4 * sum(math.prod(shape) for shape in tensor_shapes(audio_tokenizer).values())
    args.out.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(args.out).free
    if free < size + 1e9:
        sys.exit(f"{args.out} must have {size / 1e9 + 1:.1f} GB free, got {free / 1e9:.1f} GB")
    start = time.perf_counter()
    try:
        write_language_model(args.out, config, args.layout, dtype, args.seed, endless=not args.ending)
        write_audio_tokenizer(args.out / "audio_tokenizer", audio_tokenizer, args.seed)
    except HiggsNativeError as error:
        sys.exit(str(error))
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"{args.out}: {size / 1e9:.2f} GB in {seconds:.0f} s; peak memory {peak / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
