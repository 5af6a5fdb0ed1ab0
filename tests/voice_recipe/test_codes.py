"""Frames, codes and clips of rendered speech."""

import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from recipe import codes, frames, pool, spectra, spectral_quantizer, speech_quantizer

from tests.voice_recipe.helpers import run_step, voiced


def test_frames_tell_pitch_and_phase():
    audio, f0, phase = voiced(2.0, seed=0)
    cut = frames.cut(audio, f0, phase, gain=0.5)
    count = len(cut.f0)
    assert len(cut.audio) == 960 * count
    assert len(cut.fine_phase) == 160 * count
    begin = np.flatnonzero(np.abs(audio) > 300)[0] - frames.LEAD
    middles = begin + 960 * (np.arange(count) + 0.5)
    inner = np.arange(2, count - 4)
    expected = np.interp(middles / 300 - 0.5, np.arange(len(f0)), phase)
    turned = np.diff(expected, prepend=0) * 25
    np.testing.assert_allclose(cut.f0[inner], turned[inner], rtol=0.02)
    steps_of_phase = np.diff(cut.phase[inner]) - 0.04 * cut.f0[inner][1:]
    np.testing.assert_allclose(steps_of_phase, steps_of_phase.round(), atol=1e-3)
    turned = (cut.phase - expected)[inner]
    assert np.abs(turned - turned.round()).max() < 0.03
    assert np.abs(cut.audio[:900]).max() < 1e-3
    assert cut.f0[0] == cut.f0[-1] == 0
    assert np.isnan(cut.fine_phase[:100]).all()
    np.testing.assert_allclose(cut.audio[10 * 960 : 11 * 960], audio[begin + 9600 :][:960] / 32767 / 2, atol=1e-4)
    with pytest.raises(ValueError, match="audio must not be silent"):
        frames.cut(np.zeros(3000, np.int16), f0[:10], phase[:10], 1.0)


def test_a_frame_speaks_the_phoneme_at_its_middle():
    # Silence of 50 ms, phonemes of 75 and 25 ms, silence; frames of 40 ms begin 20 ms after the speech.
    found = frames.spoken_at(6, 480, np.array([2, 5, 6, 9]))
    # Middles at 40, 80, 120, 160, 200, 240 ms.
    assert found.tolist() == [-1, 0, 0, 2, 2, 3]


def test_codes_hold_pitch_and_phase(spectral_noise, tmp_path):
    fitted = speech_quantizer.fit(spectral_noise, pitch=True)
    fitted.save(tmp_path / "quantizer.safetensors")
    fitted = speech_quantizer.Quantizer.load(tmp_path / "quantizer.safetensors")
    f0 = torch.tensor([0.0, 60.0, 123.0, 200.0, 410.0, 590.0])
    phase = torch.tensor([0.0, 0.1, 0.33, 0.5, 0.77, 0.99])
    latents = fitted.latents(spectral_noise[:6], f0, phase)
    codes = fitted.encode(latents)
    assert (
        codes[speech_quantizer.PITCH_LEVEL, 0] == codes[speech_quantizer.PHASE_LEVEL, 0] == speech_quantizer.UNVOICED
    )
    found = fitted.decode(codes)
    height = found[1:, speech_quantizer.SPECTRAL]
    lowest, highest = speech_quantizer.LOWEST_F0, speech_quantizer.HIGHEST_F0
    pitch = lowest * (highest / lowest) ** ((height + 3) / 6)
    torch.testing.assert_close(pitch, f0[1:], rtol=0.006, atol=0)
    start = speech_quantizer.SPECTRAL + spectral_quantizer.DIMENSION
    turn = torch.atan2(found[1:, start + 1], found[1:, start]) / (2 * torch.pi)
    off = turn - phase[1:]
    assert (off - off.round()).abs().max() <= 0.5 / speech_quantizer.PHASES + 1e-4
    # The spectrum is quantized as it would be by itself, by the levels that are left.
    other = fitted.encode(fitted.latents(spectral_noise[:6], f0.flip(0), phase.flip(0)))
    spectral = [0, 3, 4, 5, 6, 7]
    assert torch.equal(other[spectral], codes[spectral])
    plain = speech_quantizer.fit(spectral_noise, pitch=False)
    assert plain.latent == speech_quantizer.SPECTRAL
    assert plain.decode(plain.encode(plain.latents(spectral_noise, *torch.zeros(2, 3000)))).shape == (3000, 64)


def test_codes_of_shards(rendered):
    for name in ("codes", "plain_codes"):
        found, starts = codes.read_codes(rendered / name / "00001.npz")
        assert found.shape == (8, starts[-1])
        assert len(starts) == 9
    assert "shard" not in run_step(codes, rendered, "--fit-shards", "2")  # they are there


def test_the_quantizer_is_the_recipe_s_unless_it_is_fitted(rendered, tmp_path):
    (tmp_path / "shards").symlink_to(rendered / "shards")
    with pytest.raises(SystemExit, match="--fit-shards must be at most 2, the finished shards, got 12"):
        run_step(codes, tmp_path, "--fit-shards", "12")
    with pytest.raises(SystemExit, match="--fit-shards must be given with --plain"):
        run_step(codes, tmp_path, "--plain")
    run_step(codes, tmp_path)
    for name in ("gains.json", "codes/quantizer.safetensors"):
        assert (tmp_path / name).read_bytes() == (codes.FITTED / Path(name).name).read_bytes()
    found, _ = codes.read_codes(tmp_path / "codes" / "00001.npz")
    fitted, _ = codes.read_codes(rendered / "codes" / "00001.npz")
    assert found.shape == fitted.shape
    # Pitch and phase are not fitted.
    assert (found[[1, 2]] == fitted[[1, 2]]).all()
    assert not (found[0] == fitted[0]).all()


def test_the_pool_keeps_held_out_speech_apart(rendered):
    train = pool.Pool(rendered, pitch=True, held_out=False, size=4, seed=0)
    judged = pool.Pool(rendered, pitch=True, held_out=True, size=4, seed=0)
    counts = [sum(len(shard["f0"]) for shard in one._shards) for one in (train, judged)]
    total = sum(codes.read_codes(rendered / "codes" / f"0000{number}.npz")[1][-1] for number in range(2))
    assert sum(counts) == total
    assert 0.15 < counts[1] / total < 0.35
    clips = train.draw(5, 12)
    assert clips.audio.shape == (5, 12 * 960)
    assert clips.codes.shape == (5, 8, 12)
    assert clips.fine_phase.shape == (5, 12 * 160)
    voiced = clips.codes[:, speech_quantizer.PITCH_LEVEL] > 0
    assert torch.equal(voiced, clips.f0 > 0)


def test_shards_that_come_later_are_drawn_from_first(rendered, tmp_path):
    path = tmp_path / "copy"
    shutil.copytree(rendered, path)
    for name in ("00001.npz", "00000.npz"):
        (path / "codes" / name).rename(path / name)
    (path / "00000.npz").rename(path / "codes" / "00000.npz")
    one = pool.Pool(path, pitch=True, held_out=False, size=1, seed=0)
    first = one._shards[0]["audio"]
    one.exchange()
    assert torch.equal(one._shards[0]["audio"], first)
    (path / "00001.npz").rename(path / "codes" / "00001.npz")
    one.exchange()
    assert not torch.equal(one._shards[0]["audio"], first)


def test_the_levels_of_a_spectrum_refine(spectral_noise):
    fitted = spectral_quantizer.fit(spectral_noise, rounds=5)
    latents = residual = (spectral_noise - fitted.mean) @ fitted.basis.T
    left = [latents.square().mean()]
    for directions, centres in zip(fitted.directions, fitted.centres, strict=True):
        residual = residual - centres[spectral_quantizer.nearest(residual @ directions.T, centres)] @ directions
        left.append(residual.square().mean())
    assert all(after < before for before, after in itertools.pairwise(left))


def test_spectra_are_of_their_own_frame():
    tone = torch.sin(2 * torch.pi * 440 / 24000 * torch.arange(960))
    found = spectra.frame_spectra(torch.cat([torch.zeros(1920), tone, torch.zeros(1920)]))
    assert found.shape == (5, spectra.SUBFRAMES * spectra.BANDS)
    assert found.mean(1).argmax() == 2
    assert float(found[0].abs().max()) == float(found[4].abs().max()) == 0
