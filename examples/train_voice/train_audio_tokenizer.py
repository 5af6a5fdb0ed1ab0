"""Train the audio tokenizer's encoder or its decoder, for a quantizer that is fitted already.

    python train_audio_tokenizer.py decoder FOLDER --minutes 82
    python train_audio_tokenizer.py encoder FOLDER --minutes 25

The decoder learns sound from codes: its loss compares magnitudes of short-time spectra at several resolutions, and mel
spectra. The encoder learns the latents that the quantizer was fitted to. Neither needs the other.
"""

import argparse
from pathlib import Path

import torch
from audio_tokenizer_networks import AcousticDecoder, AcousticEncoder
from make_corpus import load_quantizer
from quantizer import CODEBOOKS, CODES, DIMENSION, LATENT
from safetensors.torch import load_file
from spectra import HOP_LENGTH, frame_spectra, mel_filters
from torch.nn import functional as F
from training import Training

from higgs_native.audio_tokenizer.config import HiggsAudioTokenizerConfig, HubertConfig


CONFIG = HiggsAudioTokenizerConfig(
    num_codebooks=CODEBOOKS,
    codebook_size=CODES,
    codebook_dim=DIMENSION,
    encoder_hidden_size=8,
    decoder_hidden_size=256,
    acoustic_hidden_size=LATENT,
    hubert=HubertConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(16,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
    ),
)

_RESOLUTIONS = (2048, 1024, 512, 256, 128)


class SpectralLoss(torch.nn.Module):
    """Log-magnitudes and spectral convergence (arXiv 1910.11480) at five resolutions, and log-mel spectra at two."""

    def __init__(self) -> None:
        super().__init__()
        for fft in _RESOLUTIONS:
            self.register_buffer(f"window{fft}", torch.hann_window(fft))
        for fft in (2048, 512):
            self.register_buffer(f"filters{fft}", mel_filters(fft, 80 if fft == 2048 else 40, 0.0))

    def forward(self, made: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
        """Both [batch, samples], float32."""
        total = made.new_zeros(())
        for fft in _RESOLUTIONS:
            window = getattr(self, f"window{fft}")
            a, b = (
                torch.stft(x, fft, fft // 4, window=window, return_complex=True).abs().div(window.sum() / 2)
                for x in (made, true)
            )
            total = total + (a - b).norm() / b.norm().clamp(min=1e-4)
            total = total + (torch.log(a + 1e-4) - torch.log(b + 1e-4)).abs().mean()
            if hasattr(self, f"filters{fft}"):
                filters = getattr(self, f"filters{fft}")
                mels = [torch.log(filters @ x.square() + 1e-7) for x in (a, b)]
                total = total + 0.5 * (mels[0] - mels[1]).abs().mean()
        return total / len(_RESOLUTIONS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("encoder", "decoder"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--init-from", type=Path, help="an audio tokenizer to begin with: its folder")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--frames", type=int, default=20)
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = torch.device(options.device)

    quantizer = load_quantizer(options.folder)
    corpus = torch.load(options.folder / "audio.pt")
    audio, table = corpus["audio"], quantizer.table()
    codes = corpus["codes"].long()
    network = (AcousticEncoder if options.part == "encoder" else AcousticDecoder)(CONFIG).to(device)
    if options.init_from:
        prefix = f"acoustic_{options.part}."
        stored = load_file(options.init_from / "model.safetensors").items()
        network.load_state_dict({name.removeprefix(prefix): t for name, t in stored if name.startswith(prefix)})
    optimizer = torch.optim.AdamW(network.parameters(), options.learning_rate, betas=(0.8, 0.99), weight_decay=0.01)
    training = Training(network, [optimizer], options.folder / f"{options.part}.pt", options.minutes)
    compiled = torch.compile(network)
    loss_of_spectra = SpectralLoss().to(device)
    generator = torch.Generator().manual_seed(training.step)
    samples = options.frames * HOP_LENGTH
    frames = torch.arange(options.frames)
    running = []
    while not training.done:
        if options.part == "decoder":
            starts = torch.randint(codes.shape[1] - options.frames, (options.batch,), generator=generator)
            chosen = codes[:, starts[:, None] + frames]  # [codebooks, batch, frames]
            latents = sum(table[level][chosen[level]] for level in range(CODEBOOKS))
            true = torch.stack([audio[s * HOP_LENGTH : s * HOP_LENGTH + samples] for s in starts.tolist()])
            made = compiled(latents.mT.contiguous().to(device))[:, 0]
            loss = loss_of_spectra(made, true.to(device).float() / 32767)
        else:
            # Any start and any level: a user's recording need not be aligned as the corpus is.
            starts = torch.randint(len(audio) - samples, (options.batch,), generator=generator)
            gains = 10 ** (0.15 * torch.randn(options.batch, 1, generator=generator))
            true = gains * torch.stack([audio[s : s + samples] for s in starts.tolist()]).float() / 32767
            target = quantizer.latents(frame_spectra(true)).to(device)
            loss = F.mse_loss(compiled(true[:, None].to(device)).mT, target)
        running.append(float(loss.detach()))
        training.update(loss)
        if training.step % 100 == 0:
            training.log(loss=sum(running) / len(running))
            running.clear()
        training.save(every=180)
    training.save()


if __name__ == "__main__":
    main()
