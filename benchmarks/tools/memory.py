"""Count the memory of the published model in each weight format, from its shapes alone.

    python -m benchmarks.tools.memory --positions 2048 --json benchmarks/results/memory.json

Weights count as they are packed: in panels of 32 rows and whole quantization groups, with their scales. The audio
tokenizer in float32, its encoder included, and the KV cache of one sequence are added.
"""

import argparse
import math
from pathlib import Path
from typing import Any

from benchmarks.measure import write_json
from higgs_native.audio_tokenizer.config import HiggsAudioTokenizerConfig
from higgs_native.audio_tokenizer.weights import tensor_shapes
from higgs_native.checkpoint.config import HiggsAudioConfig
from higgs_native.checkpoint.language_model import expected_tensors
from higgs_native.ops.formats import WEIGHT_FORMATS
from higgs_native.testing.configs import REAL_SIZE_CONFIG


def main() -> None:
    parser = argparse.ArgumentParser(prog=f"python -m {__spec__.name}", description=__doc__.splitlines()[0])
    parser.add_argument("--positions", type=int, default=2048, help="positions in the KV cache")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    report = {"positions": args.positions, "bytes": count(REAL_SIZE_CONFIG, args.positions)}
    for format, parts in report["bytes"].items():
        print(f"{format:8} {parts['total'] / 1e9:6.2f} GB: " + ", ".join(
            f"{part} {size / 1e9:.2f}" for part, size in parts.items() if part != "total"
        ))  # fmt: skip
    if args.json:
        write_json(args.json, report)


def count(config: HiggsAudioConfig, positions: int) -> dict[str, dict[str, Any]]:
    """Bytes by weight format and by part."""
    audio_tokenizer = 4 * sum(math.prod(shape) for shape in tensor_shapes(HiggsAudioTokenizerConfig()).values())
    cache = 2 * 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * positions
    result = {}
    for format in ("bfloat16", "fp8", "int8", "int4"):
        parts = {"weights": weight_bytes(config, format), "audio tokenizer": audio_tokenizer, "KV cache": cache}
        result[format] = {**parts, "total": sum(parts.values())}
    return result


def weight_bytes(config: HiggsAudioConfig, format: str) -> int:
    """Bytes of a language model with its matrices in `format`, its embeddings and norms in bfloat16."""
    total = 0
    for name, shape in expected_tensors(config).items():
        if len(shape) == 1 or name.startswith(("embed_tokens", "audio_codebook_embeddings")):
            total += 2 * math.prod(shape)
            continue
        total += WEIGHT_FORMATS[format].packed_nbytes(*shape)
    return total


if __name__ == "__main__":
    main()
