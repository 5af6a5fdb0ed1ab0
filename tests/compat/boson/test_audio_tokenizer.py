"""Boson's audio tokenizer, and the delay pattern of its codes."""

import numpy as np
import pytest
import soundfile
import torch

from higgs_native.compat.boson import load_higgs_audio_tokenizer, revert_delay_pattern
from higgs_native.errors import AudioError, ParameterError
from tests.compat.boson.golden import RATE, noise


def test_the_audio_tokenizer(audio_tokenizer_folder, tmp_path):
    tokenizer = load_higgs_audio_tokenizer(str(audio_tokenizer_folder), device="cpu")
    assert (tokenizer.tps, tokenizer.sampling_rate, tokenizer.num_codebooks) == (25, RATE, 8)
    soundfile.write(tmp_path / "a.wav", noise(1.0), RATE, subtype="FLOAT")
    codes = tokenizer.encode(str(tmp_path / "a.wav"))
    assert (codes.shape, codes.dtype) == ((8, 25), torch.int64)
    assert torch.equal(codes, tokenizer.encode(noise(1.0), sr=RATE))
    audio = tokenizer.decode(codes.unsqueeze(0))
    assert (audio.shape, audio.dtype) == ((1, 1, 24000), np.float32)
    assert np.array_equal(audio, tokenizer.decode(codes))
    # The same recording, however loud, is the same once its loudness is.
    loud = tokenizer.encode(noise(1.0) * np.float32(4), RATE, loudness_normalize=True)
    assert torch.equal(loud, tokenizer.encode(noise(1.0), RATE, loudness_normalize=True))
    assert torch.equal(loud, tokenizer.encode(str(tmp_path / "a.wav"), loudness_normalize=True))
    quiet = tokenizer.encode(noise(1.0), RATE, loudness_normalize=True, loudness_threshold=-60.0)
    assert not torch.equal(loud, quiet)
    for options in ({}, {"loudness_normalize": True}):
        with pytest.raises(AudioError, match="needs its sampl"):
            tokenizer.encode(noise(1.0), **options)
    # Channels and integers, as without it.
    stereo = tokenizer.encode(np.stack([noise(1.0), noise(1.0)]), RATE, loudness_normalize=True)
    assert torch.equal(loud, stereo)
    integers = (noise(1.0) * 2**15).round().astype(np.int16)
    scaled = integers / np.float32(2**15)
    expected = tokenizer.encode(scaled, RATE, loudness_normalize=True)
    assert torch.equal(tokenizer.encode(integers, RATE, loudness_normalize=True), expected)
    for samples, rate, message in (
        (noise(1.0), 0, "sampling_rate must be an integer from 1000 to 768000 Hz, got 0"),
        (noise(1.0), 16000.5, "got 16000.5"),
        (noise(1.0), "24000", "got '24000'"),
        (noise(1.0)[:0], RATE, "audio must hold samples, got"),
        (noise(0.05), RATE, "must last at least 0.1 s, got 0.05 s"),
        (noise(1.0) * np.float32("nan"), RATE, "must be finite, got NaN or infinity"),
        (["a"], RATE, r"\(samples, sampling rate\) .*, got list"),
    ):
        with pytest.raises(AudioError, match=message):
            tokenizer.encode(samples, rate, loudness_normalize=True)
    # The engine's `generated_audio_tokens` are an array.
    array = codes.numpy()
    for same in (array, array[None], array.astype(np.uint16), array[:, ::-1].copy()[:, ::-1]):
        assert np.array_equal(tokenizer.decode(same), audio)
    for wrong, message in (
        (torch.zeros(2, 8, 3, dtype=torch.int64), r"codes must be \[8, frames\], got \[2, 8, 3\]"),
        (np.zeros(8, dtype=np.int64), r"codes must be \[8, frames\], got \[8\]"),
        ("codes", "codes must be integers in a tensor or an array, got str"),
        (None, "codes must be integers in a tensor or an array, got NoneType"),
        (np.zeros((8, 2)), "codes must be integers in a tensor or an array, got float64"),
    ):
        with pytest.raises(AudioError, match=message):
            tokenizer.decode(wrong)


def test_reverting_the_delay_pattern():
    delayed = torch.arange(8 * 12).view(8, 12)
    reverted = revert_delay_pattern(delayed)
    assert torch.equal(reverted, torch.stack([delayed[row, row : row + 5] for row in range(8)]))
    assert torch.equal(revert_delay_pattern(delayed, start_idx=2), reverted[:, 2:])
    assert torch.equal(revert_delay_pattern(delayed.numpy()), reverted)
    assert revert_delay_pattern(delayed[:, :5]).shape == (8, 0)
    with pytest.raises(ParameterError, match=r"delayed codes must have shape \[codebooks, N\], got \[96\]"):
        revert_delay_pattern(delayed.flatten())
    for wrong, kind in ((delayed.float(), "torch.float32"), ("codes", "str"), (None, "NoneType")):
        with pytest.raises(
            ParameterError, match=f"delayed codes must be integers in a tensor or an array, got {kind}"
        ):
            revert_delay_pattern(wrong)
