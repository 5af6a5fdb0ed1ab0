"""Train the encoder of the audio tokenizer: recordings to the latents that were quantized.

    python -m recipe.train_encoder

Clips begin at any sample and have any level, since a user's recording is not aligned as the corpus is.
"""

import argparse
from functools import partial
from pathlib import Path

import torch
from torch.nn import functional as F

from recipe.acoustic_networks import AcousticEncoder
from recipe.codes import codes_folder
from recipe.folder import add_folder_option, only_one, use_packages
from recipe.frames import HOP_LENGTH, PHASE_HOP, SAMPLING_RATE
from recipe.matrix_networks import encode
from recipe.pool import Clips, Pool
from recipe.snake import multiplies_bfloat16
from recipe.spectra import frame_spectra
from recipe.speech_quantizer import Quantizer
from recipe.steps import Steps, choose_device
from recipe.tokenizer_networks import begin_from, tokenizer_config


def shifted(clips: Clips, quantizer: Quantizer, offset: int, gains: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Clips that begin later and are louder, and their latents.

    Args:
        offset: in samples, a multiple of 6 and less than a frame; the last frame is lost.
        gains: [batch].
    """
    audio = clips.audio[:, offset : offset + clips.audio.shape[1] - HOP_LENGTH] * gains[:, None]
    frames = audio.shape[1] // HOP_LENGTH
    fine = HOP_LENGTH // PHASE_HOP
    phase = clips.fine_phase[:, offset // PHASE_HOP + fine // 2 + fine * torch.arange(frames)]
    before, after = clips.f0[:, :frames], clips.f0[:, 1 : frames + 1]
    share = offset / HOP_LENGTH
    between = torch.where((before > 0) & (after > 0), before.lerp(after, share), torch.maximum(before, after))
    voiced = ~phase.isnan() & (between > 0)
    # The turn since the frame before, whole cycles by the pitch that is nearly known.
    turns = phase[:, 1:] - phase[:, :-1]
    seconds = HOP_LENGTH / SAMPLING_RATE
    exact = (turns + (between[:, 1:] * seconds - turns).round()) / seconds
    f0 = torch.cat([between[:, :1], torch.where(exact.isnan(), between[:, 1:], exact)], 1) * voiced
    phase = phase.nan_to_num() * voiced
    return audio, quantizer.latents(frame_spectra(audio), f0, phase)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_folder_option(parser)
    parser.add_argument("--steps", type=int, default=20000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--frames", type=int, default=21)
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--shards", type=int, default=20, help="in memory at a time")
    parser.add_argument("--init-from", type=Path, help="a folder that recipe.export wrote: begin with its weights")
    parser.add_argument("--log-every", type=int, default=100, help="steps")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", help="default: a GPU where there is one")
    options = parser.parse_args()
    folder = options.folder
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    use_packages(folder)
    device = choose_device(options.device)
    with only_one(folder, "encoder"):
        quantizer = Quantizer.load(codes_folder(folder, pitch=True) / "quantizer.safetensors")
        network = AcousticEncoder(tokenizer_config(quantizer.latent)).to(device)
        if options.init_from:
            begin_from(network, options.init_from, "acoustic_encoder")
        optimizer = torch.optim.AdamW(
            network.parameters(), options.learning_rate, betas=(0.8, 0.99), weight_decay=0.01
        )
        training = Steps({"encoder": network}, {"encoder": optimizer}, folder, "encoder", options.steps, "encoder")
        pool = Pool(folder, pitch=True, held_out=False, size=options.shards, seed=training.step)
        judged = Pool(folder, pitch=True, held_out=True, size=options.shards, seed=0).draw(16, options.frames)
        judged_audio, judged_latents = shifted(judged, quantizer, 0, torch.ones(16))
        generator = torch.Generator().manual_seed(training.step)
        if device.type == "cuda":
            run = torch.compile(network)
        else:
            run = partial(encode, network) if multiplies_bfloat16() else network
        while not training.done:
            offset = PHASE_HOP * int(torch.randint(HOP_LENGTH // PHASE_HOP, (), generator=generator))
            gains = 10 ** (0.15 * torch.randn(options.batch, generator=generator))
            audio, target = shifted(pool.draw(options.batch, options.frames), quantizer, offset, gains)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                found = run(audio[:, None].to(device)).mT
            loss = F.mse_loss(found.float(), target.to(device))
            training.update(loss, "encoder")
            training.advance()
            training.note(loss=loss.detach())
            if training.step % 500 == 0:
                with torch.no_grad():
                    found = training.averaged(judged_audio[:, None].to(device)).mT.cpu()
                agreed = (
                    quantizer.encode(found.flatten(0, 1)) == quantizer.encode(judged_latents.flatten(0, 1))
                ).float()
                training.note(held_out=F.mse_loss(found, judged_latents), codes_agree=agreed.mean())
            training.log(options.log_every)
            training.save(every=180)
            if training.step % 200 == 0:
                pool.exchange()
        training.save()


if __name__ == "__main__":
    main()
