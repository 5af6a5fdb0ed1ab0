"""Measure what requests gain side by side: they share each pass over the weights.

    python -m benchmarks.tools.make_checkpoint --out /data/higgs-random --layers 8
    python -m benchmarks.bench_engine --model /data/higgs-random --json benchmarks/results/bench_engine.json

The same requests are generated one after the other and side by side, in turns, from texts of several lengths to the
same number of frames, prompts included. transformers generates the requests of a batch, padded on the left. A step's
bytes are the weights once, and keys and values of each request. transformers can't read a checkpoint in the original
layout, which is then timed without it.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import pad

from benchmarks.bench_frame import frame_bytes, transformers_model
from benchmarks.measure import ReadBandwidth, in_format, seconds, share_of_reading, summary, write_json
from higgs_native import HiggsAudio, HiggsAudioModel
from higgs_native.checkpoint.files import resolve_folder
from higgs_native.convention import Convention
from higgs_native.generation.requests import GenerationRequest
from higgs_native.generation.sampling_params import SamplingParams
from higgs_native.prompt.chat import build_prompt, speech_messages


FORMATS = ("bfloat16", "int8", "int4")
COUNTS = (1, 8, 16)
TRANSFORMERS_COUNT = 8
# The embedded voice speaks each for longer than the default of --frames.
TEXTS = (
    "The sun rises in the east and sets in the west, and the water of the river is cold.",
    "My mother and my father live in a small house near the river, and they drink tea every day.",
    "Twenty people walk along the road to the mountains, and nobody is tired or hungry.",
    "It is a good day for a long walk in the garden, and the children play in the morning light.",
)


@dataclass(frozen=True)
class Turn:
    """The figures of one turn.

    Attributes:
        seconds: of all steps.
        scheduling_seconds: in which they did not compute.
        frames: drawn.
        full_steps: seconds of each step that drew a frame of every request and computed no prompt.
    """

    seconds: float
    scheduling_seconds: float
    frames: int
    full_steps: list[float]


def main() -> None:
    parser = argparse.ArgumentParser(prog=f"python -m {__spec__.name}", description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="a folder or a Hub name")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--counts", type=int, nargs="+", default=list(COUNTS), help="requests side by side")
    parser.add_argument("--frames", type=int, default=60, help="frames of each request")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-transformers", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    report = run(
        resolve_folder(args.model), args.formats, args.counts, args.frames, args.repeats, not args.no_transformers
    )
    if args.json:
        write_json(args.json, report)


def run(
    folder: Path,
    formats: Sequence[str],
    counts: Sequence[int],
    frames: int,
    repeats: int,
    with_transformers: bool,
) -> dict[str, Any]:
    """Time the checkpoint in each format and the embedded voice; print and return the figures."""
    report: dict[str, Any] = {"frames": frames}
    for format in formats:
        model = HiggsAudioModel.from_pretrained(folder, **in_format(format))
        report["model"] = {"layers": model.config.num_hidden_layers, "hidden_size": model.config.hidden_size}
        report[format] = bench(model, format, counts, frames, repeats)
        # transformers can't read the original layout, whose convention is Boson's.
        if format == "bfloat16" and with_transformers and model.config.convention is Convention.TRANSFORMERS:
            report["transformers"] = bench_transformers(model, folder, frames, repeats)
    report["embedded_voice"] = bench(HiggsAudio.from_pretrained().model, "embedded", counts, frames, repeats)
    return report


def bench(model: HiggsAudioModel, name: str, counts: Sequence[int], frames: int, repeats: int) -> dict[str, Any]:
    """Time requests one after the other and side by side, in turns."""
    bandwidth = ReadBandwidth(64 << 20)
    result = {}
    for count in counts:
        requests = make_requests(model, count, frames)
        alone: list[list[Turn]] = []
        together: list[Turn] = []
        read: list[float] = []
        for _ in range(repeats + 1):
            model.engine.forget_prefixes()
            alone.append([run_turn(model, [request]) for request in requests])
            model.engine.forget_prefixes()
            together.append(run_turn(model, requests))
            read.append(bandwidth.measure())
        result[str(count)] = figures(model, requests, alone[1:], together[1:], read[1:])  # the first turns warm up
        step, ratio, share = (result[str(count)][key] for key in ("step_ms", "times_as_fast", "scheduling_share"))
        print(
            f"{name:9} {count:3} requests: {ratio:5.2f} times as fast side by side, {step['median']:8.3f} ms per "
            f"step, {share:.1%} of it scheduling"
        )
    return result


def figures(
    model: HiggsAudioModel,
    requests: Sequence[GenerationRequest],
    alone: Sequence[Sequence[Turn]],
    together: Sequence[Turn],
    read: list[float],
) -> dict[str, Any]:
    """Return the figures of all turns with the same requests."""
    one_by_one = [sum(turn.seconds for turn in turns) for turns in alone]
    side_by_side = [turn.seconds for turn in together]
    steps = [step for turn in together for step in turn.full_steps]
    # The mean position of a step's rows: that of the middle frame.
    position = sum(request.input_ids.numel() for request in requests) // len(requests) + together[0].frames // (
        2 * len(requests)
    )
    weights = frame_bytes(model, 0)
    num_bytes = weights + len(requests) * (frame_bytes(model, position) - weights)
    medians = [statistics.median(turn.full_steps) for turn in together]
    return {
        "one_after_the_other_s": summary(one_by_one),
        "side_by_side_s": summary(side_by_side),
        "times_as_fast": median_ratio(one_by_one, side_by_side),
        "frames_per_s": summary([turn.frames / turn.seconds for turn in together], digits=1),
        "step_ms": summary([1e3 * step for step in steps]),
        "step_gb": round(num_bytes / 1e9, 3),
        "share_of_read_bandwidth": share_of_reading(num_bytes, medians, read),
        "read_gb_per_s": summary(read, digits=1),
        "scheduling_share": round(sum(turn.scheduling_seconds for turn in together) / sum(side_by_side), 4),
    }


def bench_transformers(model: HiggsAudioModel, folder: Path, frames: int, repeats: int) -> dict[str, Any]:
    """Time a batch of transformers' `generate` and the same requests side by side, in turns."""
    requests = make_requests(model, TRANSFORMERS_COUNT, frames)
    reference = transformers_model(model, folder)
    prompts = [request.input_ids[0] for request in requests]
    sampling = requests[0].sampling
    padding = [max(map(len, prompts)) - len(ids) for ids in prompts]
    padded = [pad(ids, (n, 0), value=reference.config.pad_token_id) for ids, n in zip(prompts, padding, strict=True)]
    inputs = {
        "input_ids": torch.stack(padded),
        "attention_mask": torch.stack(
            [pad(torch.ones_like(ids), (n, 0)) for ids, n in zip(prompts, padding, strict=True)]
        ),
        "max_new_tokens": frames,
        "do_sample": True,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
    }
    theirs, ours = [], []
    for _ in range(repeats + 1):
        theirs.append(seconds(lambda: reference.generate(**inputs)))
        model.engine.forget_prefixes()
        ours.append(run_turn(model, requests).seconds)
    ratio = median_ratio(theirs[1:], ours[1:])
    print(f"{TRANSFORMERS_COUNT} requests side by side: {ratio:.2f} times as fast as a batch of transformers")
    return {
        "requests": TRANSFORMERS_COUNT,
        "batch_s": summary(theirs[1:]),
        "side_by_side_s": summary(ours[1:]),
        "times_as_fast": ratio,
    }


def make_requests(model: HiggsAudioModel, count: int, frames: int) -> list[GenerationRequest]:
    """Make requests of equal lengths with different texts and seeds."""
    convention = model.config.convention
    requests = []
    for seed in range(count):
        messages = speech_messages(TEXTS[seed % len(TEXTS)], [], None, convention)
        prompt = build_prompt(messages, model.tokenizer, convention, force_audio_gen=True)
        sampling = SamplingParams(seed=seed, max_new_tokens=frames)
        requests.append(GenerationRequest(prompt.input_ids, convention=convention, sampling=sampling))
    return requests


def run_turn(model: HiggsAudioModel, requests: Sequence[GenerationRequest]) -> Turn:
    """Generate requests side by side, and time each step."""
    engine = model.engine
    first = engine.metrics
    handles = [engine.add(request) for request in requests]
    times, full_steps = [], []
    is_left = True
    while is_left:
        before = engine.metrics
        start = time.perf_counter()
        is_left = engine.step()
        times.append(time.perf_counter() - start)
        after = engine.metrics
        if after.rows - before.rows == len(requests) and after.prompt_rows == before.prompt_rows:
            full_steps.append(times[-1])
    for handle in handles:
        handle.result()  # raises the error of a request that failed
    return Turn(
        sum(times),
        engine.metrics.scheduling_seconds - first.scheduling_seconds,
        engine.metrics.frames - first.frames,
        full_steps,
    )


def median_ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """The ratio of two measurements: the median over the turns."""
    return round(statistics.median(one / other for one, other in zip(slow, fast, strict=True)), 2)


if __name__ == "__main__":
    main()
