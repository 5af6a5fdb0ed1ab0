"""Frames drawn by the loop against those drawn one forward pass after the other, on each device."""

import gc
import weakref
from dataclasses import replace

import pytest
import torch

from higgs_native.generation.engine import Engine
from higgs_native.generation.model import HiggsAudioModel, generate_batch
from higgs_native.generation.requests import GenerationRequest
from higgs_native.generation.sampling_params import SamplingParams
from higgs_native.generation.steps import model_runner
from higgs_native.testing.configs import DEMO_CONFIG
from higgs_native.testing.random_checkpoint import write_language_model
from tests.helpers.devices import DEVICES


SAMPLING = SamplingParams(temperature=0.9, top_k=20, top_p=0.9, seed=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    write_language_model(folder, DEMO_CONFIG, seed=1)
    return folder


@pytest.fixture(scope="module", params=DEVICES)
def model(request, folder):
    return HiggsAudioModel.from_pretrained(folder, device=request.param)


def requests(model, count, references=(0, 5)):
    """Prompts of different lengths, with references of different lengths, that end before audio."""
    config = model.config
    generator = torch.Generator().manual_seed(count)
    made = []
    for index in range(count):
        codes = [
            torch.randint(config.codebook_size - 2, (config.num_codebooks, frames), generator=generator)
            for frames in references
            if frames
        ]
        # A reference whose delay tokens are among the last ids would end transformers' audio.
        ids = torch.randint(100, (config.num_codebooks + 3 * index,), generator=generator)
        placeholders = torch.full((len(codes),), config.audio_out_token_id)
        ids = torch.cat([placeholders, ids, torch.tensor([config.audio_out_bos_token_id])])
        made.append(GenerationRequest(ids[None], codes, sampling=replace(SAMPLING, seed=index)))
    return made


def outputs(model, made, convention, frames, output_logits=False, **sampling):
    made = [
        replace(
            request,
            convention=convention,
            sampling=replace(request.sampling, max_new_tokens=frames, **sampling),
        )
        for request in made
    ]
    results = generate_batch(model, made, output_logits)
    return [(result.audio_segments, result.text_ids, result.finish_reason) for result in results]


def assert_same(ours, theirs):
    for (segments, text_ids, reason), (other_segments, other_ids, other_reason) in zip(ours, theirs, strict=True):
        assert (text_ids, reason) == (other_ids, other_reason)
        assert len(segments) == len(other_segments)
        assert all(torch.equal(a, b) for a, b in zip(segments, other_segments, strict=True))


@pytest.mark.parametrize("convention", ["boson", "transformers"])
@pytest.mark.parametrize("count", [1, 3])
def test_the_loop_draws_what_single_passes_draw(model, convention, count):
    """To the bit: with `output_logits` each frame is a pass of its own."""
    made = requests(model, count)
    single = outputs(model, made, convention, 14, output_logits=True)
    assert_same(outputs(model, made, convention, 14), single)
    # Again, on a GPU with the graphs of the first time.
    assert_same(outputs(model, made, convention, 14), single)


def test_a_sequence_does_not_depend_on_its_batch(model):
    made = requests(model, 3)
    together = outputs(model, made, "transformers", 10)
    for request, result in zip(made, together, strict=True):
        assert_same(outputs(model, [request], "transformers", 10), [result])


def test_frames_are_heard_as_they_are_drawn(model):
    heard: list[torch.Tensor] = []
    (request,) = requests(model, 1)
    output = model.generate(
        request.input_ids, request.reference_codes, "transformers", heard.append, max_new_tokens=9, temperature=0
    )
    assert torch.equal(torch.stack(heard, dim=1), output.audio_segments[0])
    assert all(frame.device.type == "cpu" for frame in heard)


def test_the_listener_may_stop_the_loop(model):
    """The model can be used on, and the next request gets what it gets alone."""

    def refuse(frame: torch.Tensor) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise KeyboardInterrupt

    (request,) = requests(model, 1)
    expected = outputs(model, [request], "transformers", 9)
    for left in (1, 2, 5):  # noqa: B007 (counted down above)
        with pytest.raises(KeyboardInterrupt):
            model.generate(request.input_ids, request.reference_codes, "transformers", refuse, max_new_tokens=9)
        assert_same(outputs(model, [request], "transformers", 9), expected)


def test_a_full_cache_ends_the_loop(model, folder):
    (request,) = requests(model, 1, references=())
    length = request.input_ids.shape[1] + 6
    short = HiggsAudioModel.from_pretrained(folder, device=model.device, max_cache_length=length)
    output = short.generate(request.input_ids, convention="transformers", max_new_tokens=50, temperature=0)
    assert output.finish_reason == "length"
    assert output.audio_segments[0].shape[1] == 7


def test_padding_rows_change_nothing(model, monkeypatch):
    """A step of four rows draws for three sequences; the fourth is an inactive slot with a page of its own."""
    made = requests(model, 3)
    expected = outputs(model, made, "transformers", 6)
    runner = model_runner.ModelRunner(model, 8, 40)
    for tensor in (*runner.cache.keys, *runner.cache.values):
        tensor.fill_(torch.nan)  # what was left behind
    runner.cache.page_table[7, 0] = 39
    padded = model_runner.CapturedStep(model, runner.cache, runner.sampler, 4)
    begin = padded.begin
    padded.begin = lambda rows, padding: begin(rows, [(7, 3)])
    monkeypatch.setattr(model, "engine", Engine(model, 8))
    model.engine.prepare()
    runner._steps = {3: padded, 1: padded, 2: padded}
    model.engine._runner = runner
    for tensor in (*runner.cache.keys, *runner.cache.values):
        tensor[39] = 0
    assert_same(outputs(model, made, "transformers", 6), expected)


def test_a_model_on_the_cpu_is_freed_with_its_last_reference(tmp_path):
    write_language_model(tmp_path / "model", DEMO_CONFIG, seed=1)
    model = HiggsAudioModel.from_pretrained(tmp_path / "model")
    outputs(model, requests(model, 1), "boson", 3)
    reference = weakref.ref(model)
    gc.disable()
    try:
        del model
        assert reference() is None
    finally:
        gc.enable()


def test_a_prompt_runs_before_the_first_request(model, monkeypatch):
    """With text rows and audio rows, which have kernels of their own on a GPU; requests draw the same afterwards."""
    made = requests(model, 1)
    expected = outputs(model, made, "transformers", 6)
    shapes, forward = [], model.forward

    def recorded(batch, *arguments):
        shapes.append((len(batch.token_ids), len(batch.codes)))
        return forward(batch, *arguments)

    monkeypatch.setattr(model, "forward", recorded)
    monkeypatch.setattr(model, "engine", Engine(model))
    model.engine.prepare()
    with torch.inference_mode():
        model.engine._runner.warm_up()
    assert max(shapes) == (96, 96)
    assert_same(outputs(model, made, "transformers", 6), expected)
