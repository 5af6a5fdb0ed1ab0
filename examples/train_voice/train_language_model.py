"""Train the language model on the codes of a corpus.

    python train_language_model.py FOLDER --minutes 62

The loss is the codes' cross-entropy. Beside the loss on held-out sentences stands the same with the texts swapped: the
gap between them is what the model takes from the text, and not from the sound before.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from espeak import VOICES, render
from language_model import LanguageModel
from make_corpus import load_quantizer
from prompts import IGNORED, Batch, BatchMaker, Utterances
from quantizer import CODEBOOKS, CODES, LATENT
from safetensors.torch import load_file
from sentences import held_out_sentences
from spectra import frame_spectra
from text_tokenizer import build_tokenizer
from tokenizers import Tokenizer
from torch.nn import functional as F
from training import Training

from higgs_native.checkpoint.config import HiggsAudioConfig


EVALUATED = 96
_WORD_FRAMES = 16
_WORD_SCALE = 0.15
# Of each codebook; the first one says which sound it is, the last ones are nearly noise.
_WEIGHTS = (3.0, 1.5, 1.2, 1.0, 0.8, 0.7, 0.6, 0.5)
# Short sentences first: from (progress) on, up to so many words.
_CURRICULUM = ((0.0, 3), (0.1, 5), (0.25, 9), (0.6, 16))
# Of the utterances, at first; from half of the training on it falls to a fifth of that.
_CORRUPTED_SHARE = 0.5
_LONGEST = 220
"""Frames."""


def model_config(tokenizer: Tokenizer) -> HiggsAudioConfig:
    """The shapes of the embedded voice."""
    token = tokenizer.token_to_id
    return HiggsAudioConfig(
        vocab_size=-(-tokenizer.get_vocab_size() // 16) * 16,
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        rope_scaling=None,
        max_position_embeddings=2048,
        num_codebooks=CODEBOOKS,
        codebook_size=CODES + 2,
        audio_stream_bos_id=CODES,
        audio_stream_eos_id=CODES + 1,
        audio_adapter_type="dual_ffn",
        audio_dual_ffn_layers=tuple(range(5)),
        audio_in_token_id=None,
        audio_out_token_id=token("<|AUDIO_OUT|>"),
        audio_out_bos_token_id=token("<|audio_out_bos|>"),
        audio_eos_token_id=None,
        audio_delay_token_id=token("<|reserved_special_token_6|>"),
        pad_token_id=token("<|end_of_text|>"),
        eos_token_id=token("<|eot_id|>"),
    )


def losses(model: LanguageModel, batch: Batch, device: torch.device) -> torch.Tensor:
    """The mean cross-entropy of each codebook, in nats: [codebooks]."""
    batch = batch.to(device)
    with torch.autocast(device.type, torch.bfloat16):
        hidden = model(batch.prefixes, batch.segments)
    return code_losses(model, hidden, batch.targets)


def code_losses(model: LanguageModel, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The same, from the hidden states [batch, rows, width] and targets [batch, rows, codebooks]."""
    with torch.autocast(hidden.device.type, torch.bfloat16):
        logits = model.audio_lm_head(hidden.flatten(0, 1))
    counted = (targets != IGNORED).sum((0, 1)).clamp(min=1)
    return cross_entropies(logits, targets.flatten(0, 1)) / counted


def cross_entropies(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The sum over rows of each codebook's cross-entropy: logits [rows, codebooks * codes] -> [codebooks]."""
    by_code = F.cross_entropy(
        logits.float().view(-1, CODES + 2),  # a number that is known, or compiled code divides at each logit
        targets.flatten(),
        ignore_index=IGNORED,
        reduction="none",
    )
    return by_code.view(-1, CODEBOOKS).sum(0)


def held_out(folder: Path) -> Utterances:
    """Held-out sentences, rendered."""
    quantizer = load_quantizer(folder)
    texts = held_out_sentences(EVALUATED, seed=7)
    codes = [
        quantizer.encode(quantizer.latents(frame_spectra(torch.from_numpy(render(text, VOICES[i % len(VOICES)])))))
        for i, text in enumerate(texts)
    ]
    starts = np.cumsum([0] + [part.shape[1] for part in codes])
    return Utterances(texts, np.arange(len(texts)) % len(VOICES), starts, torch.cat(codes, 1).numpy())


def initialise(model: LanguageModel, folder: Path, words: Utterances) -> None:
    """Begin with embeddings that say how things sound.

    A frame's embedding is a linear map of its latent, and the head scores codes by their likeness to a latent. A
    word's embedding is a linear map of how it sounds by itself in all voices, stretched to a common length: so what is
    learned of one word holds for all, instead of each word being learned by heart.

    Args:
        words: every word of the list, the voices in turn.
    """
    quantizer = load_quantizer(folder)
    table = quantizer.table()
    width = model.config.hidden_size
    generator = torch.Generator().manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(width, width, generator=generator)).Q
    audio = model.model.embed_audio_tokens.embed_audio_tokens.weight.data.view(CODEBOOKS, CODES + 2, width)
    audio[:, :CODES] = 0.15 * table @ rotation[:LATENT] + 0.2 * audio[:, :CODES]
    head = model.audio_lm_head.weight.data.view(CODEBOOKS, CODES + 2, width)
    head[:, :CODES] = 0.05 * table / table.std((1, 2), keepdim=True) @ rotation[:LATENT] + 0.5 * head[:, :CODES]

    sounds = []
    for index in range(len(words.texts)):
        latents = quantizer.decode(torch.from_numpy(words.codes_of(index).astype(np.int64)))[1:-2]
        stretched = F.interpolate(latents.T[None], size=_WORD_FRAMES, mode="linear", align_corners=True)[0]
        sounds.append(torch.cat([stretched.flatten(), torch.tensor([float(len(latents))])]))
    by_word = torch.stack(sounds).unflatten(0, (-1, len(VOICES))).mean(1)
    by_word = by_word - by_word.mean(0)
    u, s, _ = torch.linalg.svd(by_word, full_matrices=False)
    # Between the plain strongest directions and all of them made equally strong: fine differences count too.
    embedded = u[:, :width] * s[:width].sqrt()
    embedded = embedded / embedded.std() * _WORD_SCALE @ rotation
    tokenizer = build_tokenizer()
    for text, row in zip(words.texts[:: len(VOICES)], embedded, strict=True):
        model.model.embed_tokens.weight.data[tokenizer.encode(text).ids[0]] = row


@torch.no_grad()
def evaluate(model: LanguageModel, maker: BatchMaker, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The codebooks' losses on held-out sentences, with their own texts, and with those of others as long."""
    order = sorted(range(EVALUATED), key=lambda index: maker.words[index])
    true, swapped = [], []
    for first in range(0, EVALUATED, 32):
        indices = order[first : first + 32]
        true.append(losses(model, maker.make(indices, augmented=False), device))
        swapped.append(losses(model, maker.make(indices, False, texts=indices[1:] + indices[:1]), device))
    return torch.stack(true).mean(0), torch.stack(swapped).mean(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=62)
    parser.add_argument("--rows", type=int, default=2400, help="of audio in a batch")
    parser.add_argument("--learning-rate", type=float, default=2.5e-3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--init-from", type=Path, help="a folder that export.py wrote: begin with its weights")
    parser.add_argument("--name", default="language_model")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = torch.device(options.device)

    model = LanguageModel(model_config(build_tokenizer()))
    if options.init_from:
        model.load_state_dict(load_file(options.init_from / "model.safetensors"))
    else:
        initialise(model, options.folder, Utterances.load([options.folder / "codes-000.pt"]))
    model.to(device)
    matrices = [p for name, p in model.named_parameters() if p.dim() == 2 and "layers" in name]
    others = [p for name, p in model.named_parameters() if p.dim() != 2 or "layers" not in name]
    optimizers = [
        torch.optim.Muon(matrices, options.learning_rate, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, options.learning_rate, betas=(0.9, 0.98), weight_decay=0.01),
    ]
    training = Training(model, optimizers, options.folder / f"{options.name}.pt", options.minutes)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters", flush=True)
    shards = sorted(options.folder.glob("codes-*.pt"))
    maker = BatchMaker(Utterances.load(shards), seed=training.step)
    evaluator = BatchMaker(held_out(options.folder), seed=0)
    weights = torch.tensor(_WEIGHTS, device=device) / sum(_WEIGHTS)
    queue: list[tuple[list[int], bool]] = []
    stage, running, since = -1, [], time.monotonic()
    while not training.done:
        most_words = [words for start, words in _CURRICULUM if training.progress >= start][-1]
        if stage != most_words:
            stage, queue = most_words, []
        if not queue:
            present = sorted(options.folder.glob("codes-*.pt"))
            if len(present) > len(shards):  # the corpus is still being made
                shards = present
                maker = BatchMaker(Utterances.load(shards), seed=training.step)
            queue = maker.batches(options.rows, longest=_LONGEST, most_words=most_words)
        # Once it reads the text, it should learn to rely on the sound before too.
        maker.corrupted_share = _CORRUPTED_SHARE * min(1.0, 1.8 - 1.6 * training.progress)
        indices, references = queue.pop()
        by_codebook = losses(model, maker.make(indices, True, references), device)
        running.append(by_codebook.detach())
        training.update((weights * by_codebook).sum())
        if training.step % 50 == 0:
            mean = torch.stack(running).mean(0)
            took = (time.monotonic() - since) / len(running)
            training.log(loss=(weights * mean).sum(), first=mean[0], seconds=took)
            running.clear()
            since = time.monotonic()
        if training.step % 200 == 0:
            true, swapped = evaluate(training.averaged, evaluator, device)
            training.log(held_out=true.mean(), held_out_first=true[0], swapped_first=swapped[0])
            since = time.monotonic()
        training.save(every=180)
    training.save()


if __name__ == "__main__":
    main()
