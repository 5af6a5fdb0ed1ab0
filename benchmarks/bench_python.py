"""Time per frame outside the native operators: Python, and torch's own small operators.

    python -m benchmarks.bench_python --json report.json

By default the embedded voice is timed: its frames are short, so overhead shows.
"""

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import summary, write_json
from higgs_native import HiggsAudio
from higgs_native.prompt.chat import build_prompt


TEXT = (
    "The sun rises in the east and sets in the west. It warms the land by day, and the sea keeps its warmth at night."
)
_OPERATORS = ("embed", "decoder_layers", "rms_norm_linear", "sample_audio_frame", "sample_text")


def main() -> None:
    parser = argparse.ArgumentParser(prog=f"python -m {__spec__.name}", description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a folder or a Hub name; by default the embedded voice")
    parser.add_argument("--quantization", help="a weight format, as of `higgs-native quantize`")
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    report = run(HiggsAudio.from_pretrained(args.model, quantization=args.quantization), args.frames, args.repeats)
    if args.json:
        write_json(args.json, report)


def run(engine: HiggsAudio, frames: int, repeats: int) -> dict[str, Any]:
    """Generate `frames` frames `repeats` times; print and return the time per frame, and the part outside operators.

    The time of a request counts whole, its prompt included.
    """
    model = engine.model
    prompt = build_prompt(engine.speech_messages(TEXT, [], None), model.tokenizer, engine.convention, True).input_ids
    shares, outside, whole = [], [], []
    for seed in range(repeats + 1):
        with native_seconds() as native:
            start = time.perf_counter()
            output = model.generate(
                prompt,
                convention=engine.convention,
                max_new_tokens=frames,
                temperature=0.3,
                top_k=50,
                top_p=0.95,
                seed=seed,
            )
            wall = time.perf_counter() - start
        if seed == 0:
            continue  # warm-up
        shares.append(1 - native[0] / wall)
        outside.append(1e6 * (wall - native[0]) / output.completion_tokens)
        whole.append(1e3 * wall / output.completion_tokens)
    result = {
        "frame_ms": summary(whole),
        "outside_of_operators_us": summary(outside, digits=1),
        "share_outside_of_operators": summary(shares),
    }
    print(
        f"{result['frame_ms']['median']} ms per frame, of which {result['outside_of_operators_us']['median']} us "
        f"outside the native operators: {100 * result['share_outside_of_operators']['median']:.1f} %"
    )
    return result


@contextmanager
def native_seconds() -> Iterator[list[float]]:
    """Yield a list of one number: seconds spent in the native operators since the block began."""
    spent = [0.0]
    namespace = torch.ops.higgs_native
    plain = {name: getattr(namespace, name) for name in _OPERATORS}

    def timed(operator: Any) -> Any:
        def call(*arguments: Any) -> Any:
            start = time.perf_counter()
            result = operator(*arguments)
            spent[0] += time.perf_counter() - start
            return result

        return call

    try:
        for name, operator in plain.items():
            setattr(namespace, name, timed(operator))
        yield spent
    finally:
        for name, operator in plain.items():
            setattr(namespace, name, operator)


if __name__ == "__main__":
    main()
