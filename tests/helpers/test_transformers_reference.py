"""Helpers that other tests rely on: they must describe the same sequence to `transformers`."""

import pytest
import torch

from tests.helpers import transformers_reference as reference


@pytest.mark.parametrize("reference_frames", [(), (5,), (3, 9)])
def test_forced_logits_are_those_of_generation(reference_frames: tuple[int, ...]) -> None:
    model = reference.tiny_model(1, endless=True)
    prompt = reference.random_prompt(model.config, 2, reference_frames=reference_frames)
    generated = reference.generate(model, [prompt], 30)
    assert generated.codes.shape == (1, 8, 30)
    assert (generated.codes[0, :, 0] == model.config.audio_stream_bos_id).all()
    logits = reference.forced_logits(model, prompt, generated.codes[0, :, :-1])
    torch.testing.assert_close(logits, generated.logits[:, 0], atol=1e-5, rtol=0)


def test_left_padding_leaves_a_row_as_it_is_alone() -> None:
    model = reference.tiny_model(3, endless=True)
    prompts = [
        reference.random_prompt(model.config, 1, text=31, reference_frames=(4, 6)),
        reference.random_prompt(model.config, 2, text=7),
        reference.random_prompt(model.config, 3, text=12, reference_frames=(11,)),
    ]
    together = reference.generate(model, prompts, 25)
    for row, prompt in enumerate(prompts):
        alone = reference.generate(model, [prompt], 25)
        assert torch.equal(together.codes[row], alone.codes[0])


def test_greedy_codes_vary_and_depend_on_the_prompt() -> None:
    model = reference.tiny_model(5, endless=True)
    first, second = (reference.random_prompt(model.config, seed, reference_frames=(5,)) for seed in (1, 2))
    codes = [reference.generate(model, [prompt], 60).codes[0] for prompt in (first, second)]
    assert not torch.equal(*codes)
    assert all(len(torch.unique(one[:, 8:], dim=1)[0]) > 20 for one in codes)
