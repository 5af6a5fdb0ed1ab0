"""Torch's functions with their full accuracy."""

import pytest
import torch

from higgs_native.audio.resample import resample_sinc
from higgs_native.model.rope import rope_table
from higgs_native.testing.configs import DEMO_CONFIG


@pytest.mark.parametrize(
    ("compute", "functions"),
    [
        (lambda: rope_table(DEMO_CONFIG, 100), ("cos", "sin")),
        (lambda: resample_sinc(torch.zeros(1, 100), 24_000, 16_000), ("cos",)),
    ],
)
def test_one_thread_makes_the_first_call(monkeypatch, compute, functions):
    """Threads that make the first call of a function of oneMKL 2024.2 at once may get results of low accuracy."""
    sizes: dict[str, list[int]] = {name: [] for name in functions}

    def recorded(name, function):
        def call(x, *arguments):
            sizes[name].append(x.numel())
            return function(x, *arguments)

        return call

    for name in functions:
        for owner in (torch, torch.Tensor):
            monkeypatch.setattr(owner, name, recorded(name, getattr(owner, name)))
    compute()
    for name in functions:
        assert sizes[name][0] == 1
        assert max(sizes[name]) > 1
