"""Measure a training step beside transformers' model with its own loss: time and memory.

    python -m benchmarks.bench_training --json benchmarks/results/training.json

Both models have the published width, 2 layers and the same random weights in bfloat16. Both get the same four samples,
with 30 % of text. transformers gets them padded to one length, as its processor pads them. Once the layers, the
audio table and the audio head are trained, once LoRA of rank 16 on attention and the audio networks, if PEFT is there.
A step is the forward and the backward pass. The optimizer is left out: it is the same for both. The sides take turns.
"""

import argparse
import dataclasses
import gc
import importlib.util
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import machine, seconds, summary, write_json
from benchmarks.tools.transformers_baseline import import_transformers
from higgs_native.checkpoint.config import HiggsAudioConfig
from higgs_native.testing.configs import REAL_SIZE_CONFIG
from higgs_native.testing.random_checkpoint import write_language_model
from higgs_native.training.data.rows import IGNORED, PackedRows, Sample
from higgs_native.training.loss import LossWeights, TargetCounts
from higgs_native.training.model import TrainableModel
from higgs_native.utils.memory import release_freed


LENGTHS = {"mixed lengths": (160, 240, 320, 400), "equal lengths": (280, 280, 280, 280)}
"""Rows of the samples. The mixed ones are clips of 4.5 to 11 seconds with their prompts."""
TEXT_SHARE = 0.3
TARGETS = tuple(f"self_attn.{name}_proj" for name in "qkvo") + tuple(
    f"audio_mlp.{name}_proj" for name in ("gate", "up", "down")
)


def main() -> None:
    parser = argparse.ArgumentParser(prog=f"python -m {__spec__.name}", description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    report = run(config_of(False), LENGTHS, args.repeats)
    if args.json:
        write_json(args.json, {"machine": machine(), **report})


def config_of(quick: bool) -> HiggsAudioConfig:
    """Return the published shapes with 2 layers, or toy ones."""
    small = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2,
             "head_dim": 16}  # fmt: skip
    two_layers = {"num_hidden_layers": 2, "audio_dual_ffn_layers": (0, 1)}
    return dataclasses.replace(REAL_SIZE_CONFIG, **two_layers, **(small if quick else {}))


def run(config: HiggsAudioConfig, lengths: dict[str, Sequence[int]], repeats: int) -> dict[str, Any]:
    """Time both sides for each way of training and each set of lengths; print and return the figures."""
    transformers = import_transformers()
    report: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_language_model(folder, config, endless=True)
        for method in ("layers", *(["lora"] if importlib.util.find_spec("peft") else [])):
            ours = TrainableModel.from_pretrained(Path(folder), torch.bfloat16, torch.device("cpu"))
            ours.text_lm_head = None
            theirs = transformers.HiggsAudioV2ForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16)
            models = [prepare(model, method).train() for model in (ours, theirs)]
            for name, rows in lengths.items():
                report[f"{method}, {name}"] = compare(*models, config, rows, repeats)
                print(f"{method}, {name}: {describe(report[f'{method}, {name}'])}")
            del ours, theirs, models
    return report


def prepare(model: torch.nn.Module, method: str) -> torch.nn.Module:
    """Choose what is trained: the layers, the audio table and the audio head, or LoRA."""
    if method == "lora":
        import peft

        return peft.get_peft_model(model, peft.LoraConfig(r=16, lora_alpha=32, target_modules=list(TARGETS)))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(re.search(r"\.layers\.|audio_tokens|audio_lm_head", name) is not None)
    return model


def samples_of(config: HiggsAudioConfig, lengths: Sequence[int]) -> list[Sample]:
    """Return samples of text, then audio, all of which is learned."""
    generator = torch.Generator().manual_seed(0)
    samples = []
    for length in lengths:
        num_text = round(TEXT_SHARE * length)
        codes = torch.randint(0, 1024, (length - num_text, config.num_codebooks), generator=generator)
        targets = torch.full((length, config.num_codebooks), IGNORED)
        targets[num_text - 1 : -1] = codes
        samples.append(
            Sample(
                token_ids=torch.randint(0, config.vocab_size - 300, (num_text,), generator=generator),
                codes=codes,
                is_audio=torch.arange(length) >= num_text,
                text_targets=torch.full((length,), IGNORED),
                audio_targets=targets,
            )
        )
    return samples


def padded(config: HiggsAudioConfig, samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
    """Return samples as transformers takes them, padded on the right."""
    length, frames = max(map(len, samples)), max(len(sample.codes) for sample in samples)
    count = len(samples)
    inputs = {
        "input_ids": torch.full((count, length), config.pad_token_id),
        "attention_mask": torch.zeros(count, length, dtype=torch.int64),
        "audio_input_ids": torch.zeros(count, frames, config.num_codebooks, dtype=torch.int64),
        "audio_input_ids_mask": torch.zeros(count, frames, dtype=torch.bool),
        "audio_labels": torch.full((count, frames, config.num_codebooks), IGNORED),
    }
    for index, sample in enumerate(samples):
        num_audio = len(sample.codes)
        inputs["input_ids"][index, : len(sample)] = config.audio_out_token_id
        inputs["input_ids"][index, : len(sample.token_ids)] = sample.token_ids
        inputs["attention_mask"][index, : len(sample)] = 1
        inputs["audio_input_ids"][index, :num_audio] = sample.codes
        inputs["audio_input_ids_mask"][index, :num_audio] = True
        inputs["audio_labels"][index, :num_audio] = sample.codes
    return inputs


def compare(
    ours: torch.nn.Module,
    theirs: torch.nn.Module,
    config: HiggsAudioConfig,
    lengths: Sequence[int],
    repeats: int,
) -> dict[str, Any]:
    """Time and weigh a step of both sides, which take turns."""
    samples = samples_of(config, lengths)
    rows, inputs = PackedRows.pack(samples), padded(config, samples)
    weights, counts = LossWeights((1.0,) * config.num_codebooks), TargetCounts.of(rows)
    steps = {
        "ours": step_of(ours, lambda: ours(rows, weights, counts).total),
        "transformers": step_of(theirs, lambda: theirs(**inputs).loss),
    }
    losses = {name: step() for name, step in steps.items()}
    measured: dict[str, dict[str, list[float]]] = {
        figure: {name: [] for name in steps} for figure in ("step_s", "processor_s", "peak_gb_above_weights")
    }
    for _ in range(repeats):
        for name, step in steps.items():
            wall, processor, peak = measure(step)
            measured["step_s"][name].append(wall)
            measured["processor_s"][name].append(processor)
            measured["peak_gb_above_weights"][name].append(peak / 1e9)
    return {
        "rows": sum(lengths),
        "padded_rows": len(lengths) * max(lengths),
        "loss": losses,
        **{figure: {name: summary(values) for name, values in sides.items()} for figure, sides in measured.items()},
        "times_as_fast": summary(ratios(measured["step_s"])),
        "times_as_little_processor_time": summary(ratios(measured["processor_s"])),
    }


def ratios(sides: dict[str, list[float]]) -> list[float]:
    """Return how many times as much transformers takes, in each turn."""
    return [theirs / ours for ours, theirs in zip(sides["ours"], sides["transformers"], strict=True)]


def step_of(model: torch.nn.Module, loss: Callable[[], torch.Tensor]) -> Callable[[], float]:
    """Return a function that computes a loss and its gradients, drops them, and returns the loss."""

    def step() -> float:
        value = loss()
        value.backward()
        model.zero_grad()
        return value.item()

    return step


def measure(step: Callable[[], object]) -> tuple[float, float, float]:
    """Return the wall time and the processor time of a step, and its most memory above that before it (Linux).

    Processor time says more on a busy machine, with OMP_WAIT_POLICY=passive.
    """
    gc.collect()
    release_freed()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak to what is resident now
    before, processor = status("VmRSS"), time.process_time()
    wall = seconds(step)
    return wall, time.process_time() - processor, status("VmHWM") - before


def status(name: str) -> float:
    """Return a size of this process in bytes."""
    text = Path("/proc/self/status").read_text()
    return 1024 * float(re.search(rf"{name}:\s+(\d+) kB", text).group(1))


def describe(report: dict[str, Any]) -> str:
    """Return the figures in a line."""
    ours, theirs = (report["step_s"][name]["median"] for name in ("ours", "transformers"))
    memory, other = (report["peak_gb_above_weights"][name]["median"] for name in ("ours", "transformers"))
    return (
        f"{ours:.2f} s against {theirs:.2f} s, {report['times_as_fast']['median']:.2f} times as fast; "
        f"{memory:.2f} GB against {other:.2f} GB above the weights"
    )


if __name__ == "__main__":
    main()
