"""Train the language model: phonemes to codes.

    python -m recipe.train_language_model

What the teacher says when is known, so a layer beside that of the codes learns the phoneme of each frame. Beside the
loss on held-out utterances stands the same with the texts swapped: the gap between them is what the model takes from
the text, and not from the sound before.
"""

import argparse
from pathlib import Path

import language_model
import torch
import train_language_model
from language_model import LanguageModel
from prompts import IGNORED
from quantizer import CODEBOOKS, CODES
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import nn
from torch.nn import functional as F
from train_language_model import code_losses, losses

from higgs_native.checkpoint.config import HiggsAudioConfig
from recipe.codes import codes_folder
from recipe.folder import add_folder_option, only_one, use_packages
from recipe.initial_weights import initialise
from recipe.packed_pass import Packing, hidden_states, packed_code_losses
from recipe.phoneme_tokenizer import build_tokenizer
from recipe.row_kernels import can_compile
from recipe.sequences import Corpus, SequenceMaker, SpokenBatch
from recipe.snake import multiplies_bfloat16
from recipe.speech_quantizer import PHASE_LEVEL, PITCH_LEVEL, Quantizer
from recipe.steps import Steps, choose_device


EVALUATED = 96
LAYERS = 6
# Of each codebook: the first says which sound it is, the second the pitch; the third, the phase, follows from it.
_WEIGHTS = (3.0, 2.0, 1.0, 1.3, 1.1, 0.9, 0.8, 0.7)
# Short utterances first: from this step on, up to so many frames.
_CURRICULUM = ((0, 140), (600, 260), (1500, 640))
_DROPOUT = 0.1
_SPOKEN_WEIGHT = 0.3
"""Of the cross-entropy of the phoneme that is spoken, which a layer of its own tells: so that text and sound are
aligned early."""


def model_config(tokenizer: Tokenizer, hidden: int = 320, inner: int = 512, layers: int = LAYERS) -> HiggsAudioConfig:
    """The shapes of the language model: 9.8 M parameters."""
    token = tokenizer.token_to_id
    return HiggsAudioConfig(
        vocab_size=-(-tokenizer.get_vocab_size() // 16) * 16,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        head_dim=64,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        rope_scaling=None,
        max_position_embeddings=4096,
        num_codebooks=CODEBOOKS,
        codebook_size=CODES + 2,
        audio_stream_bos_id=CODES,
        audio_stream_eos_id=CODES + 1,
        audio_adapter_type="dual_ffn",
        audio_dual_ffn_layers=tuple(range(layers)),
        audio_in_token_id=None,
        audio_out_token_id=token("<|AUDIO_OUT|>"),
        audio_out_bos_token_id=token("<|audio_out_bos|>"),
        audio_eos_token_id=None,
        audio_delay_token_id=token("<|reserved_special_token_6|>"),
        pad_token_id=token("<|end_of_text|>"),
        eos_token_id=token("<|eot_id|>"),
    )


def packed_losses(model: LanguageModel, spoken: nn.Linear, made: SpokenBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean cross-entropies of each codebook, and of the phonemes spoken, on a CPU that multiplies bfloat16."""
    packing = Packing(made)
    hidden = hidden_states(model, packing)
    by_codebook = packed_code_losses(model, hidden, made.targets[packing.chosen])
    return by_codebook, spoken_loss(spoken, hidden, made.spoken[packing.chosen])


def padded_losses(
    model: LanguageModel, spoken: nn.Linear, made: SpokenBatch, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same by torch's own layers, on any device."""
    batch, said = made.to(device), made.spoken.to(device)
    with torch.autocast(device.type, torch.bfloat16):
        hidden = model(batch.prefixes, batch.segments)
    return code_losses(model, hidden, batch.targets), spoken_loss(spoken, hidden.flatten(0, 1), said.flatten())


def spoken_loss(spoken: nn.Linear, hidden: torch.Tensor, said: torch.Tensor) -> torch.Tensor:
    with torch.autocast(hidden.device.type, torch.bfloat16):
        guessed = spoken(hidden)
    return F.cross_entropy(guessed.float(), said, ignore_index=IGNORED)


def compile_passes() -> None:
    """Fuse what lies between the products: it takes half of the time."""
    language_model.Layer.forward = torch.compile(language_model.Layer.forward, dynamic=True)
    train_language_model.cross_entropies = torch.compile(train_language_model.cross_entropies, dynamic=True)


@torch.no_grad()
@torch.compiler.set_stance("force_eager")
def evaluate(model: LanguageModel, maker: SequenceMaker, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The codebooks' losses on held-out utterances, with their own texts, and with those of others as long."""
    order = maker.utterances.frames.argsort()[: EVALUATED * 2 : 2].tolist()
    true, swapped = [], []
    for first in range(0, len(order), 16):
        indices = order[first : first + 16]
        true.append(losses(model, maker.make(indices, augmented=False), device))
        swapped.append(losses(model, maker.make(indices, False, texts=[*indices[1:], indices[0]]), device))
    return torch.stack(true).mean(0), torch.stack(swapped).mean(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_folder_option(parser)
    parser.add_argument("--steps", type=int, default=40000)
    parser.add_argument("--rows", type=int, default=2400, help="of audio in a batch; on a GPU 40000 is a good number")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--hidden", type=int, default=320)
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--init-from", type=Path, help="a folder that recipe.export wrote: begin with its weights")
    parser.add_argument("--log-every", type=int, default=100, help="steps")
    parser.add_argument("--eager", action="store_true", help="compile nothing: a minute less at the start")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", help="default: a GPU where there is one")
    options = parser.parse_args()
    folder = options.folder
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    use_packages(folder)
    device = choose_device(options.device)
    with only_one(folder, "language_model"):
        quantizer = Quantizer.load(codes_folder(folder, pitch=True) / "quantizer.safetensors")
        model = LanguageModel(model_config(build_tokenizer(), options.hidden, layers=options.layers), _DROPOUT)
        if options.init_from:
            model.load_state_dict(load_file(options.init_from / "model.safetensors"))  # bfloat16
        else:
            initialise(model, quantizer)
        model.to(device)
        matrices = [p for name, p in model.named_parameters() if p.dim() == 2 and "layers" in name]
        others = [p for name, p in model.named_parameters() if p.dim() != 2 or "layers" not in name]
        optimizers = {
            "matrices": torch.optim.Muon(
                matrices, options.learning_rate, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"
            ),
            "others": torch.optim.AdamW(others, options.learning_rate, betas=(0.9, 0.98), weight_decay=0.01),
        }
        spoken = nn.Linear(model.config.hidden_size, model.config.vocab_size).to(device)
        optimizers["spoken"] = torch.optim.AdamW(spoken.parameters(), options.learning_rate, betas=(0.9, 0.98))
        models = {"model": model, "spoken": spoken}
        training = Steps(models, optimizers, folder, "language_model", options.steps, averaged="model")
        print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters", flush=True)
        packed = device.type == "cpu" and multiplies_bfloat16() and can_compile()
        if not packed and not options.eager:
            compile_passes()
        corpus = Corpus(folder, held_out=False)
        maker, evaluator = SequenceMaker(corpus, training.step), SequenceMaker(Corpus(folder, held_out=True), 0)
        weights = torch.tensor(_WEIGHTS, device=device) / sum(_WEIGHTS)
        queue: list[tuple[list[int], str]] = []
        stage = 0
        while not training.done:
            longest = [frames for start, frames in _CURRICULUM if training.step >= start][-1]
            if not queue or stage != longest:
                stage = longest
                if len(list(codes_folder(folder, pitch=True).glob("*.npz"))) > len(corpus.shards):
                    corpus = Corpus(folder, held_out=False)  # more was rendered meanwhile
                    maker = SequenceMaker(corpus, training.step)
                queue = maker.batches(options.rows, longest)
            indices, kind = queue.pop()
            made = maker.make(indices, True, kind)
            losses_of = packed_losses(model, spoken, made) if packed else padded_losses(model, spoken, made, device)
            by_codebook, aligned = losses_of
            loss = (weights * by_codebook).sum()
            training.update(loss + _SPOKEN_WEIGHT * aligned, *optimizers)
            training.advance()
            first, pitch, phase = by_codebook.detach()[[0, PITCH_LEVEL, PHASE_LEVEL]]
            training.note(loss=loss, spoken=aligned, first=first, pitch=pitch, phase=phase)
            if training.step % (5 * options.log_every) == 0:
                true, swapped = evaluate(training.averaged, evaluator, device)
                training.note(held_out=true.mean(), held_out_first=true[0], swapped_first=swapped[0])
                training.note(held_out_pitch=true[PITCH_LEVEL], held_out_phase=true[PHASE_LEVEL])
            training.log(options.log_every)
            training.save(every=180)
        training.save()


if __name__ == "__main__":
    main()
