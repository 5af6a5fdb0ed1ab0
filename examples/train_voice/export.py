"""Write what was trained as a checkpoint of the transformers layout, the audio tokenizer within it.

    python export.py CORPUS OUT

The averaged weights are written: the language model's in bfloat16, the audio tokenizer's in float16.
"""

import argparse
import json
from pathlib import Path

import torch
from espeak import VOICES
from language_model import LanguageModel
from make_corpus import load_quantizer
from quantizer import CODEBOOKS, LATENT, Quantizer
from safetensors.torch import save_file
from text_tokenizer import build_tokenizer
from train_audio_tokenizer import CONFIG
from train_language_model import model_config

from higgs_native.audio_tokenizer.weights import tensor_shapes
from higgs_native.compat.processor_files import write_processor_files
from higgs_native.pipeline import EMBEDDED_VOICE_KEY, VOICES_KEY
from higgs_native.testing.configs import config_json


def write_language_model(state: dict[str, torch.Tensor], folder: Path) -> None:
    """Write the language model: `state` is named as in the transformers layout already."""
    tokenizer = build_tokenizer()
    config = model_config(tokenizer)
    LanguageModel(config).load_state_dict(state)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.bfloat16().contiguous() for name, tensor in state.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    names = [voice.profile for voice in VOICES]
    described = config_json(config, "transformers", torch.bfloat16) | {EMBEDDED_VOICE_KEY: True, VOICES_KEY: names}
    _write_json(folder / "config.json", described)


def write_audio_tokenizer(
    encoder: dict[str, torch.Tensor], decoder: dict[str, torch.Tensor], quantizer: Quantizer, folder: Path
) -> None:
    """Write the audio tokenizer.

    The encoder gives latents and the decoder takes them, so `fc` and `fc2` pass them through. HuBERT and what follows
    it hold small random weights: `fc` does not listen to them.
    """
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.ones(shape)
        if name.endswith(("norm.weight", "original0"))
        else 0.1 * torch.randn(shape, generator=generator)
        for name, shape in tensor_shapes(CONFIG).items()
        if name.startswith(("semantic_model.", "encoder_semantic."))
    }
    tensors |= {f"acoustic_encoder.{name}": tensor for name, tensor in encoder.items()}
    tensors |= {f"acoustic_decoder.{name}": tensor for name, tensor in decoder.items()}
    hidden = CONFIG.hidden_size
    passed = torch.zeros(hidden, hidden)
    passed[:LATENT, :LATENT] = torch.eye(LATENT)
    tensors |= {"fc.weight": passed, "fc.bias": torch.zeros(hidden)}
    tensors |= {"fc2.weight": passed[:LATENT].clone(), "fc2.bias": torch.zeros(LATENT)}
    for level in range(CODEBOOKS):
        name = f"quantizer.quantizers.{level}"
        directions = torch.nn.functional.pad(quantizer.directions[level], (0, hidden - LATENT))
        tensors |= {
            f"{name}.project_in.weight": directions,
            f"{name}.project_in.bias": torch.zeros(len(directions)),
            f"{name}.project_out.weight": directions.T,
            f"{name}.project_out.bias": torch.zeros(hidden),
            f"{name}.codebook.embed": quantizer.centres[level],
        }
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.half().contiguous() for name, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    _write_json(folder / "config.json", CONFIG.to_dict())


def _write_json(path: Path, contents: dict) -> None:
    path.write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path, help="the folder that was trained in")
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    encoder, decoder, model = (
        torch.load(options.corpus / f"{name}.pt", map_location="cpu")["averaged"]
        for name in ("encoder", "decoder", "language_model")
    )
    write_language_model(model, options.out)
    write_audio_tokenizer(encoder, decoder, load_quantizer(options.corpus), options.out / "audio_tokenizer")
    write_processor_files(options.out)


if __name__ == "__main__":
    main()
