"""Train the decoder of the audio tokenizer: codes to sound.

    python -m recipe.train_decoder                    # spectra, waveform and phase
    python -m recipe.train_decoder --adversarial      # then, from its weights, against a discriminator
    python -m recipe.train_decoder --plain            # without pitch in the codes: for the comparison

The loss compares spectra at five resolutions. With pitch in the codes the phase of the voice is known, so the waveform
below 1.5 kHz is compared too, and the first blocks are taught the phase.
"""

import argparse
from pathlib import Path

import torch
from torch import nn

from recipe.codes import codes_folder
from recipe.discriminator import Discriminator, discriminator_loss, generator_losses
from recipe.folder import add_folder_option, only_one, use_packages
from recipe.matrix_optimizer import muon
from recipe.pool import Pool
from recipe.snake import multiplies_bfloat16
from recipe.spectral_loss import SpectralLoss
from recipe.spectral_quantizer import CODEBOOKS
from recipe.speech_quantizer import Quantizer
from recipe.steps import Steps, choose_device, weights_of
from recipe.tokenizer_networks import DECODER_CHANNELS, TaughtDecoder, begin_from, tokenizer_config


_PHASE_STEPS, _PHASE_SHARE = 300, 0.1
"""So many steps, and no larger share of all, the first blocks learn the phase alone: they don't find it beside the
spectra."""
_WAVEFORM_FFT, _WAVEFORM_BINS = 1024, 64
"""The waveform is compared up to 1.5 kHz, as complex spectra."""


def waveform_loss(made: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """Distance of the complex spectra below 1.5 kHz, as a share of the true one."""
    window = torch.hann_window(_WAVEFORM_FFT, device=made.device)
    a, b = (
        torch.view_as_real(
            torch.stft(x, _WAVEFORM_FFT, _WAVEFORM_FFT // 4, window=window, return_complex=True)[:, :_WAVEFORM_BINS]
        )
        for x in (made, true)
    )
    return (a - b).norm() / b.norm().clamp(min=1e-2)


def split_weights(network: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The weights that map many channels to many, and the others."""
    wide, narrow = [], []
    for weight in network.parameters():
        (wide if weight.dim() == 3 and min(weight.shape[:2]) > 1 else narrow).append(weight)
    return wide, narrow


def training_name(pitch: bool, adversarial: bool) -> str:
    return f"{'' if pitch else 'plain_'}decoder{'_adversarial' if adversarial else ''}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_folder_option(parser)
    parser.add_argument("--plain", action="store_true", help="without pitch in the codes")
    parser.add_argument("--adversarial", action="store_true", help="go on from the decoder, against a discriminator")
    parser.add_argument("--steps", type=int, default=40000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--frames", type=int, default=20)
    parser.add_argument("--channels", type=int, default=DECODER_CHANNELS)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--shards", type=int, default=20, help="in memory at a time")
    parser.add_argument("--init-from", type=Path, help="a folder that recipe.export wrote: begin with its weights")
    parser.add_argument("--log-every", type=int, default=100, help="steps")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", help="default: a GPU where there is one")
    options = parser.parse_args()
    folder, pitch = options.folder, not options.plain
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    use_packages(folder)
    device = choose_device(options.device)
    name = training_name(pitch, options.adversarial)
    with only_one(folder, name):
        quantizer = Quantizer.load(codes_folder(folder, pitch) / "quantizer.safetensors")
        fast = device.type == "cpu" and multiplies_bfloat16()
        network = TaughtDecoder(tokenizer_config(quantizer.latent, options.channels), fast).to(device)
        if options.init_from:
            begin_from(network.decoder, options.init_from, "acoustic_decoder")
        models, rate = {"decoder": network}, options.learning_rate * (0.2 if options.adversarial else 1.0)
        wide, narrow = split_weights(network.decoder)
        optimizers = {
            "matrices": muon(wide, rate, weight_decay=0.01),
            "others": torch.optim.AdamW([*narrow, *network.probes.parameters()], rate, betas=(0.8, 0.99)),
        }
        if options.adversarial:
            network.load_state_dict(weights_of(folder / f"{training_name(pitch, False)}.pt"))
            models["discriminator"] = Discriminator().to(device)
            parameters = models["discriminator"].parameters()
            optimizers["discriminator"] = torch.optim.AdamW(parameters, rate, betas=(0.8, 0.99), weight_decay=0.01)
        training = Steps(models, optimizers, folder, name, options.steps, averaged="decoder")
        run = torch.compile(network) if device.type == "cuda" else network
        pool = Pool(folder, pitch, held_out=False, size=options.shards, seed=training.step)
        judged = (
            Pool(folder, pitch, held_out=True, size=options.shards, seed=0).draw(16, 2 * options.frames).to(device)
        )
        knows_phase = not pitch or options.adversarial or options.init_from
        phase_alone = 0 if knows_phase else min(_PHASE_STEPS, _PHASE_SHARE * options.steps)
        table, spectral = quantizer.table().to(device), SpectralLoss().to(device)

        def latents(codes: torch.Tensor) -> torch.Tensor:
            return sum(table[level][codes[:, level]] for level in range(CODEBOOKS)).mT.contiguous()

        while not training.done:
            clips = pool.draw(options.batch, options.frames).to(device)
            if training.step < phase_alone:
                with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                    phase = network.phase_loss(network.first_blocks(latents(clips.codes)), clips.fine_phase)
                training.update(phase, "matrices", "others")
                training.advance()
                training.note(phase=phase)
                training.log(options.log_every)
                training.save(every=180)
                continue
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                made, read = run(latents(clips.codes))
            made = made.float()
            losses = {"spectral": spectral(made, clips.audio)}
            total = losses["spectral"]
            if pitch:
                losses["waveform"] = waveform_loss(made, clips.audio)
                losses["phase"] = network.phase_loss(read, clips.fine_phase)
                # The gradient of the spectra is some ten times as large in the first blocks.
                total = total + 0.5 * losses["waveform"] + (4.0 - 3.6 * training.progress) * losses["phase"]
            if options.adversarial:
                discriminator = models["discriminator"]
                against = discriminator_loss(discriminator(clips.audio), discriminator(made.detach()))
                training.update(against, "discriminator")
                verdict, features = generator_losses(discriminator(clips.audio), discriminator(made))
                total = total + 0.2 * verdict + 0.5 * features
                losses |= {"discriminator": against, "verdict": verdict, "features": features}
            training.update(total, "matrices", "others")
            training.advance()
            training.note(**losses)
            if training.step % 500 == 0:
                with torch.no_grad():
                    made, read = training.averaged(latents(judged.codes))
                    training.note(held_out=spectral(made, judged.audio))
                    if pitch:
                        training.note(held_out_waveform=waveform_loss(made, judged.audio))
                        training.note(held_out_phase=network.phase_loss(read, judged.fine_phase))
            training.log(options.log_every)
            training.save(every=180)
            if training.step % 200 == 0:
                pool.exchange()
        training.save()


if __name__ == "__main__":
    main()
