"""Train the language model: phonemes to codes.

    python -m recipe.train_language_model

What the teacher says when is known, so a layer beside that of the codes learns the phoneme of each frame. Beside the
loss on held-out utterances stands the same with the texts swapped: the gap between them is what the model takes from
the text, and not from the sound before.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import nn
from torch.nn import functional as F

from higgs_native.checkpoint.config import HiggsAudioConfig
from higgs_native.training.data.rows import IGNORED
from higgs_native.training.loss import Losses, LossWeights, TargetCounts, losses_of
from higgs_native.training.model import TrainableModel
from recipe.codes import codes_folder, finished_codes
from recipe.folder import add_folder_option, only_one, use_packages
from recipe.initial_weights import initialise
from recipe.packed_pass import packed_losses, packed_states
from recipe.phoneme_tokenizer import build_tokenizer
from recipe.row_kernels import can_compile
from recipe.sequences import Corpus, SequenceMaker, SpokenRows
from recipe.snake import multiplies_bfloat16
from recipe.spectral_quantizer import CODEBOOKS, CODES
from recipe.speech_quantizer import PHASE_LEVEL, PITCH_LEVEL, Quantizer
from recipe.steps import Steps, choose_device


EVALUATED = 96
LAYERS = 6
# Of each codebook: the first says which sound it is, the second the pitch; the third, the phase, follows from it.
_WEIGHTS = LossWeights(tuple(weight / 10.8 for weight in (3.0, 2.0, 1.0, 1.3, 1.1, 0.9, 0.8, 0.7)))
# Short utterances first: from this step on, up to so many frames.
_CURRICULUM = ((0, 140), (600, 260), (1500, 640))
_DROPOUT = 0.1
_ORTHOGONALIZATIONS = 3
"""Newton-Schulz iterations of Muon: five, its default, take a third of a step on a CPU."""
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


def losses_of_pass(
    model: TrainableModel, spoken: nn.Linear | None, made: SpokenRows, states_of: Callable
) -> tuple[Losses, torch.Tensor]:
    """Return the losses of the codes, and the mean cross-entropy of the phonemes spoken; without `spoken`, 0.

    Args:
        model: the language model.
        spoken: tells the phoneme of each row.
        made: the rows.
        states_of: `packed_states`, or `TrainableModel.states`, compiled or not.
    """
    head = model.audio_lm_head
    device = head.weight.device
    rows, said = made.rows.to(device), made.spoken.to(device)
    if states_of is packed_states:
        states = packed_states(model, rows)
        losses = packed_losses(states, rows, head, _WEIGHTS)
    else:
        with torch.autocast(device.type, torch.bfloat16):
            states = states_of(model, rows)
            losses = losses_of(states, rows, head, None, _WEIGHTS, TargetCounts.of(rows))
    if spoken is None:
        return losses, torch.zeros(())
    with torch.autocast(device.type, torch.bfloat16):
        guessed = spoken(states)
    return losses, F.cross_entropy(guessed.float(), said, ignore_index=IGNORED)


@torch.no_grad()
def evaluate(model: TrainableModel, maker: SequenceMaker, states_of: Callable) -> tuple[torch.Tensor, torch.Tensor]:
    """The codebooks' losses on held-out utterances, with their own texts, and with those of others as long."""
    order = maker.utterances.frames.argsort()[: EVALUATED * 2 : 2].tolist()
    true, swapped = [], []
    for first in range(0, len(order), 16):
        indices = order[first : first + 16]
        for found, texts in ((true, None), (swapped, [*indices[1:], indices[0]])):
            made = maker.make(indices, augmented=False, texts=texts)
            found.append(losses_of_pass(model, None, made, states_of)[0].codebooks)
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
        config = model_config(build_tokenizer(), options.hidden, layers=options.layers)
        model = TrainableModel(config, text_head=False, dropout=_DROPOUT)
        if options.init_from:
            model.load_state_dict(load_file(options.init_from / "model.safetensors"))  # bfloat16
        else:
            initialise(model, quantizer)
        model.to(device)
        matrices = [p for name, p in model.named_parameters() if p.dim() == 2 and "layers" in name]
        others = [p for name, p in model.named_parameters() if p.dim() != 2 or "layers" not in name]
        optimizers = {
            "matrices": torch.optim.Muon(
                matrices,
                options.learning_rate,
                weight_decay=0.02,
                ns_steps=_ORTHOGONALIZATIONS,
                adjust_lr_fn="match_rms_adamw",
            ),
            "others": torch.optim.AdamW(others, options.learning_rate, betas=(0.9, 0.98), weight_decay=0.01),
        }
        spoken = nn.Linear(config.hidden_size, config.vocab_size).to(device)
        optimizers["spoken"] = torch.optim.AdamW(spoken.parameters(), options.learning_rate, betas=(0.9, 0.98))
        models = {"model": model, "spoken": spoken}
        training = Steps(models, optimizers, folder, "language_model", options.steps, averaged="model")
        print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters", flush=True)
        packed = device.type == "cpu" and multiplies_bfloat16() and can_compile()
        states_of = packed_states if packed else TrainableModel.states
        # Fuses what lies between the products: it takes half of the time.
        fused = states_of if packed or options.eager else torch.compile(states_of, dynamic=True)
        corpus = Corpus(folder, held_out=False)
        maker, evaluator = SequenceMaker(corpus, training.step), SequenceMaker(Corpus(folder, held_out=True), 0)
        queue: list[tuple[list[int], str]] = []
        stage = 0
        while not training.done:
            longest = [frames for start, frames in _CURRICULUM if training.step >= start][-1]
            if not queue or stage != longest:
                stage = longest
                if len(finished_codes(codes_folder(folder, pitch=True), every_cut=True)) > len(corpus.shards):
                    corpus = Corpus(folder, held_out=False)  # more was rendered meanwhile
                    maker = SequenceMaker(corpus, training.step)
                queue = maker.batches(options.rows, longest)
            indices, kind = queue.pop()
            losses, aligned = losses_of_pass(model, spoken, maker.make(indices, True, kind), fused)
            training.update(losses.total + _SPOKEN_WEIGHT * aligned, *optimizers)
            training.advance()
            first, pitch, phase = losses.codebooks[[0, PITCH_LEVEL, PHASE_LEVEL]]
            training.note(loss=losses.total, spoken=aligned, first=first, pitch=pitch, phase=phase)
            if training.step % (5 * options.log_every) == 0:
                true, swapped = evaluate(training.averaged, evaluator, states_of)
                training.note(held_out=true.mean(), held_out_first=true[0], swapped_first=swapped[0])
                training.note(held_out_pitch=true[PITCH_LEVEL], held_out_phase=true[PHASE_LEVEL])
            training.log(options.log_every)
            training.save(every=180)
        training.save()


if __name__ == "__main__":
    main()
