"""The trainings of the audio tokenizer, and what they write."""

import json
import shutil

import pytest
import torch
from recipe import export, pool, speech_quantizer, steps, tokenizer_networks, train_decoder, train_encoder
from recipe.acoustic_networks import AcousticDecoder, AcousticEncoder

from higgs_native.audio_tokenizer.tokenizer import HiggsAudioTokenizer
from tests.voice_recipe.helpers import run_step


@pytest.mark.parametrize("options", [[], ["--plain"], ["--adversarial"]], ids=["pitch", "plain", "adversarial"])
def test_the_decoder_s_training_goes_on_where_it_was(rendered, options):
    small = ["--batch", "2", "--frames", "8", "--channels", "32", "--device", "cpu", "--log-every", "4"]
    name = train_decoder.training_name("--plain" not in options, "--adversarial" in options)
    first = run_step(train_decoder, rendered, *small, *options, "--steps", "4")
    assert "step 4 of 4" in first
    again = run_step(train_decoder, rendered, *small, *options, "--steps", "8")
    assert "goes on at step 4 of 8" in again
    curves = [json.loads(line) for line in (rendered / f"{name}.jsonl").read_text().splitlines()]
    assert [line["step"] for line in curves] == [4, 8]
    network = tokenizer_networks.TaughtDecoder(
        tokenizer_networks.tokenizer_config(96 if "--plain" not in options else 64, 32)
    )
    network.load_state_dict(steps.weights_of(rendered / f"{name}.pt"))


def test_the_decoder_learns_the_phase_before_the_sound(rendered, tmp_path):
    path = tmp_path / "copy"
    shutil.copytree(rendered, path, ignore=shutil.ignore_patterns("*decoder*"))
    small = ["--batch", "1", "--frames", "4", "--channels", "32", "--device", "cpu", "--log-every", "1"]
    for options in ([], ["--plain"]):
        run_step(train_decoder, path, *small, *options, "--steps", "2")
    curves = {name: (path / f"{name}.jsonl").read_text().splitlines() for name in ("decoder", "plain_decoder")}
    learned = {name: [set(json.loads(line)) - {"step", "seconds"} for line in lines] for name, lines in curves.items()}
    assert learned["decoder"] == [{"phase"}, {"phase", "spectral", "waveform"}]
    assert learned["plain_decoder"] == [{"spectral"}, {"spectral"}]


def test_the_encoder_learns_latents_of_shifted_clips(rendered):
    clips = pool.Pool(rendered, pitch=True, held_out=False, size=2, seed=0).draw(3, 10)
    fitted = speech_quantizer.Quantizer.load(rendered / "codes" / "quantizer.safetensors")
    audio, latents = train_encoder.shifted(clips, fitted, 480, torch.full((3,), 0.5))
    torch.testing.assert_close(audio, clips.audio[:, 480:-480] * 0.5)
    assert latents.shape == (3, 9, fitted.latent)
    found = fitted.encode(latents.flatten(0, 1)).unflatten(1, (3, 9))
    pitches, phases = found[speech_quantizer.PITCH_LEVEL], found[speech_quantizer.PHASE_LEVEL]
    assert torch.equal(pitches > 0, phases > 0)
    # Half a frame later the phase has gone on by half of the frame's turn.
    whole = fitted.encode(train_encoder.shifted(clips, fitted, 0, torch.ones(3))[1].flatten(0, 1)).unflatten(1, (3, 9))
    both = (phases > 0) & (whole[speech_quantizer.PHASE_LEVEL] > 0) & (clips.f0[:, :9] > 0) & (clips.f0[:, 1:] > 0)
    turn = (phases - whole[speech_quantizer.PHASE_LEVEL]) / speech_quantizer.PHASES - 0.02 * clips.f0[:, :9]
    assert (turn - turn.round())[both].abs().max() < 0.1
    small = ["--steps", "4", "--batch", "2", "--frames", "6", "--log-every", "4", "--device", "cpu"]
    assert "step 4 of 4" in run_step(train_encoder, rendered, *small)


def test_trainings_begin_with_the_weights_of_a_checkpoint(rendered, tmp_path):
    fitted = speech_quantizer.Quantizer.load(rendered / "codes" / "quantizer.safetensors")
    torch.manual_seed(0)
    config = tokenizer_networks.tokenizer_config(fitted.latent, 32)
    networks = {"encoder": AcousticEncoder(config), "decoder": AcousticDecoder(config)}
    parts = [network.state_dict() for network in networks.values()]
    export.write_audio_tokenizer(*parts, fitted, tmp_path / "audio_tokenizer")
    path = tmp_path / "copy"
    shutil.copytree(rendered, path, ignore=shutil.ignore_patterns("*coder.*"))
    given = ["--steps", "0", "--device", "cpu", "--init-from", str(tmp_path)]
    run_step(train_encoder, path, *given)
    run_step(train_decoder, path, *given, "--channels", "32")
    for (name, network), prefix in zip(networks.items(), ("", "decoder."), strict=True):
        found = steps.weights_of(path / f"{name}.pt")
        for key, weight in network.state_dict().items():
            assert torch.equal(found[prefix + key], weight.half().float())


@torch.no_grad()
def test_the_written_audio_tokenizer_is_what_was_trained(spectral_noise, tmp_path):
    torch.manual_seed(0)
    fitted = speech_quantizer.fit(spectral_noise, pitch=True)
    config = tokenizer_networks.tokenizer_config(fitted.latent, 64)
    encoder, decoder = AcousticEncoder(config), AcousticDecoder(config)
    export.write_audio_tokenizer(encoder.state_dict(), decoder.state_dict(), fitted, tmp_path)
    written = HiggsAudioTokenizer.from_pretrained(tmp_path)
    audio = 0.1 * torch.randn(9600)
    latents = encoder(audio[None, None])[0].T
    assert (written.encode(audio, 24000) == fitted.encode(latents)).float().mean() > 0.95  # weights are rounded
    frames_of_codes = torch.randint(0, speech_quantizer.PHASES, (8, 8))
    sound = decoder(fitted.decode(frames_of_codes).T[None])[0, 0]
    found = written.decode(frames_of_codes)
    torch.testing.assert_close(found, sound, rtol=0.02, atol=0.02 * float(sound.abs().max()))
