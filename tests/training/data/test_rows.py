"""Noise in the codes of a pass. What packing gives is tested with the model."""

import pytest
import torch

from higgs_native.training.data.rows import IGNORED, PackedRows, Sample


BOS, EOS = 16, 17


def test_noise_replaces_a_share_of_the_codes_that_are_heard_alone():
    heard = torch.randint(BOS, (500, 8))
    heard[0], heard[-1] = BOS, EOS
    is_audio, no_text = torch.ones(500, dtype=torch.bool), torch.full((500,), IGNORED)
    rows = PackedRows.pack([Sample(torch.tensor([], dtype=torch.int64), heard, is_audio, no_text, heard.roll(-1, 0))])
    noisy = rows.with_noise(0.4, BOS)
    assert torch.equal(noisy.audio_targets, rows.audio_targets)
    assert (noisy.codes[0] == BOS).all()
    assert (noisy.codes[-1] == EOS).all()
    assert noisy.codes[1:-1].max() < BOS
    changed = (noisy.codes != heard).float().mean().item()
    assert changed == pytest.approx(0.4 * 15 / 16, abs=0.05)
    assert torch.equal(rows.codes, heard)
    assert torch.equal(rows.with_noise(0, BOS).codes, heard)
