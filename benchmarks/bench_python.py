"""What of generating a frame is not spent in the native operators: Python, and torch's own small operators.

    python benchmarks/bench_python.py --json report.json

Without --model the embedded voice is timed, whose frames are so short that this shows.
"""

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from measure import summary, write_json

from higgs_native import HiggsAudio
from higgs_native.prompt.chat import build_prompt


TEXT = (
    "The sun rises in the east and sets in the west. It warms the land by day, and the sea keeps its warmth at night."
)
_OPERATORS = ("embed", "decoder_layers", "rms_norm_linear", "sample_audio_frame", "sample_text")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a folder or a Hub name")
    parser.add_argument("--quantization", help="a format of `higgs-native quantize`")
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    report = run(HiggsAudio.from_pretrained(args.model, quantization=args.quantization), args.frames, args.repeats)
    if args.json:
        write_json(args.json, report)


def run(engine: HiggsAudio, frames: int, repeats: int) -> dict[str, Any]:
    """Speak a text as far as `frames` frames, `repeats` times; return and print where the time of a frame went.

    What a request takes beside its frames, its prompt among it, is counted in.
    """
    model = engine.model
    prompt = build_prompt(engine.speech_messages(TEXT, [], None), model.tokenizer, engine.layout, True).input_ids
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
            continue  # warms up
        shares.append(1 - native[0] / wall)
        outside.append(1e6 * (wall - native[0]) / output.completion_tokens)
        whole.append(1e3 * wall / output.completion_tokens)
    result = {
        "frame_ms": summary(whole),
        "outside_of_operators_us": summary(outside, digits=1),
        "share_outside_of_operators": summary(shares),
    }
    print(
        f"{result['frame_ms']['median']} ms a frame, {result['outside_of_operators_us']['median']} us of them outside "
        f"of the native operators: {100 * result['share_outside_of_operators']['median']:.1f} %"
    )
    return result


@contextmanager
def native_seconds() -> Iterator[list[float]]:
    """Give a list of one number: the seconds spent so far in the native operators of a frame, until the block ends."""
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
