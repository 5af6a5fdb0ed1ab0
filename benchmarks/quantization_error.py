"""Measure what weight formats do to the next frame: divergence from float32, and how often the likeliest code stays.

    python benchmarks/quantization_error.py                              # the embedded voice
    python benchmarks/quantization_error.py --model /data/higgs-random

Teacher-forced: the float32 model speaks some sentences, then every format reads the same prompts and codes, and the
distributions of all codebooks are compared at every frame.
"""

import argparse
import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from measure import write_json

from higgs_native import HiggsAudio, HiggsAudioModel, build_prompt
from higgs_native.checkpoint import resolve_folder
from higgs_native.model import LanguageModel, Rows
from higgs_native.pipeline import EMBEDDED_VOICE
from higgs_native.prompt import speech_messages
from higgs_native.quantization import Quantization


FORMATS = ("float32", "bfloat16", "fp8", "int8", "int4", "int4,heads=int8", "int4,attention=int8,heads=int8")
SENTENCES = (
    "The sun rises in the east.",
    "Good morning, how are you today?",
    "We walk home along the river in the evening.",
    "Seven people are waiting for the train.",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a folder or a Hub name; by default the embedded voice")
    parser.add_argument("--frames", type=int, default=150, help="frames of a sentence at most")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    folder = resolve_folder(args.model) if args.model else EMBEDDED_VOICE
    engine = HiggsAudio.from_pretrained(folder, dtype="float32")
    prompts = [
        build_prompt(speech_messages(text, [], None, engine.layout), engine.model.tokenizer, engine.layout, True)
        for text in SENTENCES
    ]
    spoken = []
    for seed, prompt in enumerate(prompts):
        output = engine.model.generate(
            prompt.input_ids, rule=engine.layout, max_new_tokens=args.frames, temperature=1.0, seed=seed
        )
        spoken.append((prompt.input_ids[0].tolist(), output.audio_segments[0]))
    expected = [distributions(engine.model, ids, frames) for ids, frames in spoken]
    del engine
    gc.collect()

    report: dict[str, Any] = {"frames": sum(frames.shape[1] - 1 for _, frames in spoken), "formats": {}}
    for format in FORMATS:
        for clip in (True, False):
            whole = format in ("float32", "bfloat16")
            if not clip and (whole or format == "fp8"):
                continue  # nothing is ever clipped
            quantization = None if whole else replace(Quantization.parse(format), clip=clip)
            model = HiggsAudioModel.from_pretrained(
                folder, dtype=format if whole else "bfloat16", quantization=quantization
            )
            found = [distributions(model, ids, frames) for ids, frames in spoken]
            name = format if clip else f"{format}, not clipped"
            report["formats"][name] = compare(expected, found) | {"weights_gb": round(model.nbytes / 1e9, 4)}
            figures = report["formats"][name]
            print(
                f"{name:42} KL divergence {figures['kl_divergence']:.6f} nats, "
                f"likeliest code kept {figures['top1_agreement']:7.2%}, {figures['weights_gb']:.4f} GB"
            )
            del model
            gc.collect()
    if args.json:
        write_json(args.json, report)


@torch.inference_mode()
def distributions(model: LanguageModel, ids: list[int], frames: torch.Tensor) -> torch.Tensor:
    """Log-probabilities [N, codebooks, codes] after each of the delayed frames [codebooks, N] that follow `ids`."""
    text, audio = len(ids), frames.shape[1]
    rows = Rows(
        token_ids=torch.tensor(ids, dtype=torch.int32),
        codes=frames.T.to(torch.int32).contiguous(),
        slots=torch.zeros(text + audio, dtype=torch.int32),
        positions=torch.arange(text + audio, dtype=torch.int32),
        text_positions=torch.arange(text, dtype=torch.int32),
    )
    states = model.forward(rows, model.new_cache(1, text + audio))
    return model.audio_logits(states[text:].contiguous()).log_softmax(-1)


def compare(expected: list[torch.Tensor], found: list[torch.Tensor]) -> dict[str, float]:
    """The mean divergence in nats, and the share of codebooks and frames whose likeliest code is the same."""
    truth, ours = torch.cat(expected), torch.cat(found)
    divergence = (truth.exp() * (truth - ours)).sum(-1)
    agreement = truth.argmax(-1) == ours.argmax(-1)
    return {
        "kl_divergence": round(float(divergence.mean()), 7),
        "top1_agreement": round(float(agreement.float().mean()), 5),
    }


if __name__ == "__main__":
    main()
