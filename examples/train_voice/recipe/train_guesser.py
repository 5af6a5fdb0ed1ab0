"""Train the network that pronounces words which the dictionary lacks.

    python -m recipe.train_guesser

One word in fifty, told by a checksum, is held out.
"""

import argparse
import random
import zlib
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from higgs_native.english.guess import LETTERS, PHONEMES, Guesser, decode_outputs, encode_letters
from recipe.dictionary import ACCENTS, read_entries
from recipe.folder import add_folder_option, only_one
from recipe.matrix_optimizer import muon
from recipe.steps import Steps, choose_device, weights_of


Pair = tuple[list[int], list[int], int]
"""Letters, phonemes, accent."""


def is_held_out(word: str) -> bool:
    return zlib.crc32(word.encode()) % 50 == 0


def read_pairs(materials: Path, held_out: bool) -> list[Pair]:
    """Words in lower case with their phonemes, in both accents."""
    pairs = []
    for number, accent in enumerate(ACCENTS):
        for written, entry in read_entries(materials, accent).items():
            phonemes = entry["DEFAULT"] if isinstance(entry, dict) else entry
            word = written.lower()
            # An acronym is no word, and a name is said as it is written.
            plain = set(word) <= set(LETTERS) and (written == word or written == word.capitalize())
            if not plain or len(word) < 2 or not phonemes or set(phonemes) - set(PHONEMES):
                continue
            letters = encode_letters(word)
            if is_held_out(word) == held_out and len(phonemes) < 2.5 * len(letters):
                pairs.append((letters, [PHONEMES.index(sign) + 1 for sign in phonemes], number))
    return pairs


def batch_of(pairs: list[Pair]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Letters [batch, length], accents [batch], all phonemes in a row, and how many each word has."""
    longest = max(len(letters) for letters, _, _ in pairs)
    letters = torch.tensor([letters + [0] * (longest - len(letters)) for letters, _, _ in pairs])
    phonemes = torch.tensor([sign for _, signs, _ in pairs for sign in signs])
    counts = torch.tensor([len(signs) for _, signs, _ in pairs])
    return letters, torch.tensor([accent for _, _, accent in pairs]), phonemes, counts


def loss_of(model: Guesser, pairs: list[Pair], device: torch.device) -> torch.Tensor:
    letters, accents, phonemes, counts = batch_of(pairs)
    logs = model(letters.to(device), accents.to(device)).float().log_softmax(-1).transpose(0, 1)
    outputs = (letters > 0).sum(1) * (logs.shape[0] // letters.shape[1])
    return F.ctc_loss(logs.cpu(), phonemes, outputs, counts, zero_infinity=True)


@torch.no_grad()
def share_right(model: Guesser, pairs: list[Pair], device: torch.device) -> float:
    """The share of words whose phonemes, stress included, are all right."""
    right = 0
    for first in range(0, len(pairs), 512):
        chosen = pairs[first : first + 512]
        letters, accents, _, _ = batch_of(chosen)
        best = model(letters.to(device), accents.to(device)).argmax(-1).cpu()
        widest = best.shape[1] // letters.shape[1]
        for row, (ids, signs, _) in enumerate(chosen):
            expected = "".join(PHONEMES[sign - 1] for sign in signs)
            right += decode_outputs(best[row, : widest * len(ids)].tolist()) == expected
    return right / len(pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_folder_option(parser)
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--log-every", type=int, default=100, help="steps")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", help="default: a GPU where there is one")
    options = parser.parse_args()
    folder = options.folder
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = choose_device(options.device)
    with only_one(folder, "guesser"):
        model = Guesser(options.width, 3 * options.width).to(device)
        matrices = [weight for weight in model.encoder.parameters() if weight.dim() == 2]
        chosen = set(map(id, matrices))
        others = [weight for weight in model.parameters() if id(weight) not in chosen]
        optimizers = {
            "matrices": muon(matrices, options.learning_rate, weight_decay=0.01),
            "others": torch.optim.AdamW(others, options.learning_rate, weight_decay=0.01),
        }
        training = Steps({"guesser": model}, optimizers, folder, "guesser", options.steps, "guesser")
        pairs, judged = (read_pairs(folder / "materials", held_out) for held_out in (False, True))
        print(f"{len(pairs)} words, {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters", flush=True)
        # Words of one length make batches without padding.
        pairs.sort(key=lambda pair: len(pair[0]))
        rng = random.Random(training.step)
        while not training.done:
            start = rng.randrange(max(1, len(pairs) - options.batch + 1))
            loss = loss_of(model, pairs[start : start + options.batch], device)
            training.update(loss, "matrices", "others")
            training.advance()
            training.note(loss=loss)
            if training.step % (10 * options.log_every) == 0:
                sample = random.Random(0).sample(judged, min(2000, len(judged)))
                training.note(held_out_right=share_right(training.averaged, sample, device))
            training.log(options.log_every)
            training.save(every=180)
            if training.step % 1000 == 0:
                # Otherwise the same words would share a batch each time.
                rng.shuffle(pairs)
                pairs.sort(key=lambda pair: len(pair[0]))
        training.save()
        shape = {name: str(value) for name, value in model.shape.items()}
        tensors = {name: t.half().contiguous() for name, t in weights_of(training.path).items()}
        save_file(tensors, folder / "guesser.safetensors", metadata=shape)


if __name__ == "__main__":
    main()
