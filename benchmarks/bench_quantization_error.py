"""Measure how weight formats change the next frame: KL divergence from float32, and agreement of the top code.

    python -m benchmarks.bench_quantization_error --json benchmarks/results/quantization_error.json
    python -m benchmarks.bench_quantization_error --model /data/higgs-random

The float32 model speaks some sentences. Every format then reads the same prompts and codes (teacher forcing), and the
distributions of all codebooks are compared at every frame. This is done for the embedded voice and a small model with
random weights, or for --model. Last comes the error of single matrices, with and without outliers.
"""

import argparse
import gc
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import write_json
from higgs_native import HiggsAudio, build_prompt
from higgs_native.calibration import DEFAULT_TEXTS, calibrated_model
from higgs_native.checkpoint.config import HiggsAudioConfig
from higgs_native.checkpoint.files import resolve_folder
from higgs_native.checkpoint.language_model import expected_tensors
from higgs_native.checkpoint.quantization import Quantization
from higgs_native.model.batch import Batch
from higgs_native.model.transformer import LanguageModel
from higgs_native.model.weights import CheckpointWeights
from higgs_native.ops.formats import QUANTIZATION_GROUP, QUANTIZED_FORMATS
from higgs_native.ops.quantization import quantize_linear
from higgs_native.pipeline import EMBEDDED_VOICE
from higgs_native.testing.random_checkpoint import write_demo_checkpoint


FORMATS = (
    "float32",
    "bfloat16",
    "float16",
    "fp8",
    "int8",
    "int4",
    "int4,heads=int8",
    "int4,attention=int8,heads=int8",
)
WHOLE = ("float32", "bfloat16", "float16")
SENTENCES = (
    "The sun rises in the east.",
    "Good morning, how are you today?",
    "We walk home along the river in the evening.",
    "Seven people are waiting for the train.",
)


def main() -> None:
    parser = argparse.ArgumentParser(prog=f"python -m {__spec__.name}", description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a folder or a Hub name; by default the embedded voice")
    parser.add_argument("--frames", type=int, default=150, help="max frames per sentence")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    report: dict[str, Any] = {}
    if args.model:
        report["model"] = compare_formats(resolve_folder(args.model), args.frames)
    else:
        report["embedded_voice"] = compare_formats(EMBEDDED_VOICE, args.frames)
        with tempfile.TemporaryDirectory() as folder:
            write_demo_checkpoint(folder)
            report["random_weights"] = compare_formats(Path(folder), args.frames)
    report["matrices"] = compare_matrices()
    if args.json:
        write_json(args.json, report)


def compare_formats(folder: Path, max_frames: int) -> dict[str, Any]:
    """Compare each format of a checkpoint with float32; print and return the figures."""
    print(f"{folder}:")
    engine = HiggsAudio.from_pretrained(folder, dtype="float32")
    prompts = [
        build_prompt(engine.speech_messages(text, [], None), engine.model.tokenizer, engine.convention, True)
        for text in SENTENCES
    ]
    spoken = []
    for seed, prompt in enumerate(prompts):
        output = engine.model.generate(
            prompt.input_ids,
            convention=engine.convention,
            max_new_tokens=max_frames,
            temperature=1.0,
            top_k=None,
            top_p=None,
            seed=seed,
        )
        spoken.append((prompt.input_ids[0].tolist(), output.audio_segments[0]))
    expected = [distributions(engine.model, ids, frames) for ids, frames in spoken]
    del engine
    gc.collect()

    report: dict[str, Any] = {"frames": sum(frames.shape[1] - 1 for _, frames in spoken), "formats": {}}
    for name, load in ways_to_load(folder).items():
        model = load()
        found = [distributions(model, ids, frames) for ids, frames in spoken]
        figures = compare(expected, found) | {"weights_gb": round(model.nbytes / 1e9, 4)}
        report["formats"][name] = figures
        print(
            f"{name:42} KL divergence {figures['kl_divergence']:.6f} nats, "
            f"top code kept {figures['top1_agreement']:7.2%}, {figures['weights_gb']:.4f} GB"
        )
        del model
        gc.collect()
    return report


def ways_to_load(folder: Path) -> dict[str, Callable[[], LanguageModel]]:
    """Functions that load a checkpoint in each format: as `from_pretrained` does, without clipping, and calibrated."""
    ways: dict[str, Callable[[], LanguageModel]] = {}
    texts = DEFAULT_TEXTS.read_text(encoding="utf-8").splitlines()
    for format in FORMATS:
        if format in WHOLE:
            ways[format] = partial(LanguageModel.from_pretrained, folder, dtype=format)
            continue
        quantization = Quantization.parse(format)
        load = partial(LanguageModel.from_pretrained, folder, dtype="bfloat16")
        ways[format] = partial(load, quantization=quantization)
        if format != "fp8":  # which never clips
            ways[f"{format}, not clipped"] = partial(load, quantization=replace(quantization, clip=False))
        ways[f"{format}, calibrated"] = partial(calibrated_model, folder, quantization, texts, torch.device("cpu"))
    return ways


def compare_matrices(n: int = 1024, k: int = 3072) -> dict[str, dict[str, float]]:
    """Relative squared error of matrices in each format; print and return it.

    The matrices are normal random ones [n, k]; the same with one number in a thousand ten times as large, or one
    column in a thousand; and the embedded voice's layers, averaged over their matrices.
    """
    generator = torch.Generator().manual_seed(0)
    plain = torch.randn(n, k, generator=generator)
    matrices = {
        "normal": [plain],
        "outliers": [torch.where(torch.rand(n, k, generator=generator) < 1e-3, 10 * plain, plain)],
        "outlier columns": [torch.where(torch.rand(k, generator=generator) < 1e-3, 10 * plain, plain)],
        "embedded voice": layer_matrices(EMBEDDED_VOICE),
    }
    ways: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {}
    for format in QUANTIZED_FORMATS:
        ways[format] = lambda weight, format=format: rounded(weight, format, clip=True)
        if format != "fp8":
            ways[f"{format}, not clipped"] = lambda weight, format=format: rounded(weight, format, clip=False)
    ways["int4 with zero points"] = rounded_with_zero_points
    report = {}
    for name, weights in matrices.items():
        errors = {
            way: statistics.mean(
                float((round_(weight) - weight).square().sum() / weight.square().sum()) for weight in weights
            )
            for way, round_ in ways.items()
        }
        report[name] = {way: round(error, 7) for way, error in errors.items()}
        print(f"{name:15} " + ", ".join(f"{way} {error:.2e}" for way, error in errors.items()))
    return report


def layer_matrices(folder: Path) -> list[torch.Tensor]:
    """The matrices of a checkpoint's layers, in float32."""
    config = HiggsAudioConfig.from_pretrained(folder)
    weights = CheckpointWeights(folder, config, torch.float32, Quantization(), torch.device("cpu"))
    names = [name for name in expected_tensors(config) if name.endswith("proj.weight") and "layers" in name]
    return [weights.tensor(name) for name in names]


def rounded(weight: torch.Tensor, format: str, clip: bool) -> torch.Tensor:
    """The weight [n, k] after rounding to a format."""
    values, scales = quantize_linear(weight, format, clip)
    columns = scales.float().view(len(weight), -1)
    if columns.shape[1] > 1:  # the last group of a row may have fewer columns
        columns = columns.repeat_interleave(QUANTIZATION_GROUP, dim=1)[:, : weight.shape[1]]
    return values.float() * columns


def rounded_with_zero_points(weight: torch.Tensor) -> torch.Tensor:
    """The weight [n, k] after asymmetric rounding to 4 bits, with a zero point per group, which int4 lacks.

    Each group clips at the scale with the least squared error.
    """
    padded = torch.nn.functional.pad(weight, (0, -weight.shape[1] % QUANTIZATION_GROUP))
    groups = padded.unflatten(1, (-1, QUANTIZATION_GROUP))
    lowest, highest = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    best, smallest = groups, torch.full_like(lowest, torch.inf)
    for share in torch.linspace(1, 0.55, 10):
        scale = ((highest - lowest) * share / 15).half().float()
        zero = torch.round(-lowest * share / scale).clamp(0, 15)
        found = (torch.round(groups / scale + zero).clamp(0, 15) - zero) * scale
        error = (found - groups).square().sum(-1, keepdim=True)
        best = torch.where(error < smallest, found, best)
        smallest = torch.minimum(error, smallest)
    return best.flatten(1)[:, : weight.shape[1]]


@torch.inference_mode()
def distributions(model: LanguageModel, ids: list[int], frames: torch.Tensor) -> torch.Tensor:
    """Log-probabilities [N, codebooks, codes] after each of the delayed frames [codebooks, N] that follow `ids`."""
    rows = Batch.text_then_audio([(ids, frames)])
    states = model.forward(rows, model.new_cache(1, len(rows.slots)))
    return model.audio_logits(states[len(ids) :].contiguous()).log_softmax(-1)


def compare(expected: list[torch.Tensor], found: list[torch.Tensor]) -> dict[str, float]:
    """Mean KL divergence in nats, and the share of codebooks and frames whose top code is the same."""
    truth, ours = torch.cat(expected), torch.cat(found)
    divergence = (truth.exp() * (truth - ours)).sum(-1)
    agreement = truth.argmax(-1) == ours.argmax(-1)
    return {
        "kl_divergence": round(float(divergence.mean()), 7),
        "top1_agreement": round(float(agreement.float().mean()), 5),
    }


if __name__ == "__main__":
    main()
