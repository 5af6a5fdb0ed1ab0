"""Write what was trained as a checkpoint: language model, audio tokenizer, and what turns text into phonemes.

    python -m recipe.export OUT

The averaged weights are written: the language model's in bfloat16, the audio tokenizer's in float16.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from higgs_native.audio_tokenizer.weights import tensor_shapes
from higgs_native.compat.processor_files import write_processor_files
from higgs_native.english.reader import DICTIONARY_FILE, GUESSER_FILE, write_dictionary
from higgs_native.pipeline import EMBEDDED_VOICE_KEY, VOICES_KEY
from higgs_native.testing.configs import config_json
from higgs_native.training.model import TrainableModel
from recipe.codes import codes_folder
from recipe.dictionary import ACCENTS, accent_of, read_entries
from recipe.folder import add_folder_option, write_json
from recipe.phoneme_tokenizer import DESCRIBED, VOICES, build_tokenizer
from recipe.spectral_quantizer import CODEBOOKS
from recipe.speech_quantizer import Quantizer
from recipe.steps import weights_of
from recipe.tokenizer_networks import tokenizer_config
from recipe.train_decoder import training_name
from recipe.train_language_model import model_config


VOICES_FILE = "voices.json"


def write_language_model(state: dict[str, torch.Tensor], folder: Path) -> None:
    """Write the language model: `state` is named as in the transformers layout already."""
    tokenizer = build_tokenizer()
    hidden = state["model.norm.weight"].shape[0]
    layers = sum(name.endswith("o_proj.weight") for name in state)
    config = model_config(tokenizer, hidden, layers=layers)
    TrainableModel(config, text_head=False).load_state_dict(state)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.bfloat16().contiguous() for name, tensor in state.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    voices = [*VOICES, *DESCRIBED.values()]
    described = config_json(config, "transformers", torch.bfloat16) | {EMBEDDED_VOICE_KEY: True, VOICES_KEY: voices}
    (folder / "config.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")


def write_audio_tokenizer(
    encoder: dict[str, torch.Tensor], decoder: dict[str, torch.Tensor], quantizer: Quantizer, folder: Path
) -> None:
    """Write the audio tokenizer.

    The encoder gives latents and the decoder takes them, so `fc` and `fc2` pass them through. HuBERT and what follows
    it hold small random weights: `fc` does not listen to them.
    """
    config = tokenizer_config(quantizer.latent, decoder["conv1.weight"].shape[0])
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.ones(shape)
        if name.endswith(("norm.weight", "original0"))
        else 0.1 * torch.randn(shape, generator=generator)
        for name, shape in tensor_shapes(config).items()
        if name.startswith(("semantic_model.", "encoder_semantic."))
    }
    tensors |= {f"acoustic_encoder.{name}": tensor for name, tensor in encoder.items()}
    tensors |= {f"acoustic_decoder.{name}": tensor for name, tensor in decoder.items()}
    hidden, latent = config.hidden_size, quantizer.latent
    passed = torch.zeros(hidden, hidden)
    passed[:latent, :latent] = torch.eye(latent)
    tensors |= {"fc.weight": passed, "fc.bias": torch.zeros(hidden)}
    tensors |= {"fc2.weight": passed[:latent].clone(), "fc2.bias": torch.zeros(latent)}
    wide = [torch.nn.functional.pad(part, (0, hidden - latent)) for part in (quantizer.search, quantizer.output)]
    for level in range(CODEBOOKS):
        name = f"quantizer.quantizers.{level}"
        tensors |= {
            f"{name}.project_in.weight": wide[0][level],
            f"{name}.project_in.bias": torch.zeros(wide[0].shape[1]),
            f"{name}.project_out.weight": wide[1][level].T,
            f"{name}.project_out.bias": torch.zeros(hidden),
            f"{name}.codebook.embed": quantizer.centres[level],
        }
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.half().contiguous() for name, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config.to_dict(), indent=2) + "\n", encoding="utf-8")


def write_reader(materials: Path, guesser: Path, folder: Path) -> None:
    """Write the dictionary, the guesser, and the accents of the voices."""
    write_dictionary(folder / DICTIONARY_FILE, {accent: read_entries(materials, accent) for accent in ACCENTS})
    shutil.copy(guesser, folder / GUESSER_FILE)
    write_json(folder / VOICES_FILE, {name: {"accent": accent_of(teacher)} for name, teacher in VOICES.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_folder_option(parser)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    folder = options.folder
    adversarial = folder / f"{training_name(True, True)}.pt"
    decoder = weights_of(adversarial if adversarial.exists() else folder / f"{training_name(True, False)}.pt")
    # The probes were for the training alone.
    decoder = {name.removeprefix("decoder."): t for name, t in decoder.items() if name.startswith("decoder.")}
    write_language_model(weights_of(folder / "language_model.pt"), options.out)
    quantizer = Quantizer.load(codes_folder(folder, pitch=True) / "quantizer.safetensors")
    write_audio_tokenizer(weights_of(folder / "encoder.pt"), decoder, quantizer, options.out / "audio_tokenizer")
    write_processor_files(options.out)
    write_reader(folder / "materials", folder / "guesser.safetensors", options.out)


if __name__ == "__main__":
    main()
