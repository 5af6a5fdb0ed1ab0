"""The audio tokenizer: its shapes, and a decoder whose inner layers are taught the phase."""

import math
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from higgs_native.audio_tokenizer.config import HiggsAudioTokenizerConfig, HubertConfig
from recipe import matrix_networks
from recipe.acoustic_networks import AcousticDecoder
from recipe.frames import HOP_LENGTH, PHASE_HOP
from recipe.spectral_quantizer import CODEBOOKS, CODES, DIMENSION


DECODER_CHANNELS = 384
HARMONICS = 4


def tokenizer_config(latent: int, decoder_channels: int = DECODER_CHANNELS) -> HiggsAudioTokenizerConfig:
    """The shapes for latents of this width."""
    return HiggsAudioTokenizerConfig(
        num_codebooks=CODEBOOKS,
        codebook_size=CODES,
        codebook_dim=DIMENSION,
        encoder_hidden_size=12,
        decoder_hidden_size=decoder_channels,
        acoustic_hidden_size=latent,
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


class TaughtDecoder(nn.Module):
    """The acoustic decoder, with probes that read cosines and sines of the fundamental's multiples from its blocks.

    A network that must find the phase from spectra of its output alone seldom finds it. The probes say what each block
    should know; they are thrown away after the training.

    Args:
        config: its shapes.
        fast: compute in bfloat16, for a CPU that multiplies bfloat16.
    """

    def __init__(self, config: HiggsAudioTokenizerConfig, fast: bool = False) -> None:
        super().__init__()
        self.fast = fast
        self.decoder = AcousticDecoder(config)
        # Blocks at 200 Hz, 1 kHz and 4 kHz: what the phase is given at divides by these.
        self.hops = [HOP_LENGTH // math.prod(config.upsampling_ratios[: block + 1]) for block in range(3)]
        self.probes = nn.ModuleList(
            nn.Conv1d(config.decoder_hidden_size // 2 ** (block + 1), 2 * HARMONICS, 1) for block in range(3)
        )

    def forward(self, latents: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Latents [batch, latent, frames] -> audio [batch, samples], and what the probes read."""
        inner = self._inner(latents, len(self.decoder.block))
        if self.fast:
            return matrix_networks.ending(self.decoder, inner[-1]), self._read(inner)
        return self.decoder.conv2(self.decoder.snake1(inner[-1]))[:, 0], self._read(inner)

    def first_blocks(self, latents: torch.Tensor) -> list[torch.Tensor]:
        """Latents [batch, latent, frames] -> what the probes read."""
        return self._read(self._inner(latents, len(self.probes)))

    def _inner(self, latents: torch.Tensor, blocks: int) -> list[torch.Tensor]:
        """What each of the first blocks gives: [batch, channels, length]."""
        if self.fast:
            return matrix_networks.blocks(self.decoder, latents, blocks)
        inner = [self.decoder.conv1(latents)]
        for block in self.decoder.block[:blocks]:
            inner.append(block(inner[-1]))
        return inner[1:]

    def _read(self, inner: list[torch.Tensor]) -> list[torch.Tensor]:
        # The blocks after the last probe are not read.
        return [probe(part.to(probe.weight.dtype)) for probe, part in zip(self.probes, inner, strict=False)]

    def phase_loss(self, read: list[torch.Tensor], fine_phase: torch.Tensor) -> torch.Tensor:
        """Mean squared error of what the probes read, where something is voiced.

        Args:
            read: by each probe, [batch, 2 * HARMONICS, length].
            fine_phase: [batch, samples / 6], in cycles; NaN where nothing is voiced.
        """
        losses = []
        for hop, found in zip(self.hops, read, strict=True):
            step = hop // PHASE_HOP
            phase = fine_phase[:, step // 2 :: step]
            voiced = ~phase.isnan()
            turns = (
                2
                * math.pi
                * phase.nan_to_num()[:, None]
                * torch.arange(1, HARMONICS + 1, device=phase.device)[:, None]
            )
            target = torch.cat([turns.cos(), turns.sin()], 1)
            errors = (found.float() - target).square().mean(1)
            losses.append((errors * voiced).sum() / voiced.sum().clamp(min=1))
        return sum(losses) / len(losses)


def begin_from(network: nn.Module, folder: Path, part: str) -> None:
    """Load `acoustic_decoder` or `acoustic_encoder` of a checkpoint that `recipe.export` wrote."""
    stored = load_file(folder / "audio_tokenizer" / "model.safetensors")
    prefix = f"{part}."
    network.load_state_dict({n.removeprefix(prefix): t.float() for n, t in stored.items() if n.startswith(prefix)})
