"""Stopping criteria, time limits, stop strings and ids of EOS in the accelerated `generate`."""

import itertools
from types import SimpleNamespace

import pytest
import torch

from higgs_native.testing.byte_tokenizer import build_tokenizer
from tests.helpers import transformers_reference as reference
from tests.helpers.accelerated import EVERYTHING, Streamer, batch, both, compat
from tests.helpers.transformers_reference import transformers


accelerate = compat.accelerate
stopping_criteria = transformers.generation.stopping_criteria

GREEDY = {"max_new_tokens": 30, "do_sample": False}


class AtLength(transformers.StoppingCriteria):
    """Ends each row at a length of its own. A row is known by its first id, since rows come one at a time."""

    def __init__(self, *lengths: int) -> None:
        self.lengths = lengths

    def __call__(self, input_ids, scores, **options):
        lengths = torch.tensor([self.lengths[row[0] % len(self.lengths)] for row in input_ids])
        return input_ids.shape[1] >= lengths


def inputs_of_rows(config, rows: int) -> dict[str, torch.Tensor]:
    """Prompts of 12 positions, of which row i begins with the id i."""
    ids = torch.randint(0, 256, (rows, 12), generator=torch.Generator().manual_seed(3))
    ids[:, 0], ids[:, -1] = torch.arange(rows), config.audio_bos_token_id
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.mark.parametrize("lengths", [(17,), (17, 22), (22, 17), (13, 30, 21)])
@pytest.mark.parametrize("wanted", [{}, EVERYTHING])
def test_a_criterion_ends_each_row(lengths, wanted):
    model = reference.tiny_model(2, endless=True)
    criterion = AtLength(*lengths)
    options = {**GREEDY, **wanted, "stopping_criteria": transformers.StoppingCriteriaList([criterion])}
    expected, output = both(model, inputs_of_rows(model.config, len(lengths)), **options)
    if not wanted:
        assert torch.equal(output, expected)
        assert output.shape[1] == max(lengths) - 12
        return
    assert torch.equal(output.audio_sequences, expected.audio_sequences)
    assert torch.equal(output.sequences, expected.sequences)
    assert len(output.scores) == len(output.logits) == max(lengths) - 12
    for row, length in enumerate(lengths):
        for step in range(length - 12):
            for name in ("scores", "logits"):
                ours, theirs = getattr(output, name)[step][row], getattr(expected, name)[step][row]
                torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def test_a_criterion_is_asked_after_each_frame():
    """A stop button has an effect within a frame, and no frame is drawn that no row needs."""
    model = accelerate(reference.tiny_model(2, endless=True))
    drawn = []

    class Button(transformers.StoppingCriteria):
        def __call__(self, input_ids, scores, **options):
            drawn.append(input_ids.shape[1])
            return len(drawn) == 5

    options = {"do_sample": False, "max_new_tokens": 4000, "stopping_criteria": [Button()]}
    output = model.generate(**inputs_of_rows(model.config, 1), **options)
    assert output.shape[1] == 5
    assert drawn == [13, 14, 15, 16, 17]


def test_rows_without_an_id_of_eos_go_on_with_the_others():
    model = reference.tiny_model(2, endless=True)
    criteria = transformers.StoppingCriteriaList([AtLength(17, 22)])
    expected, output = both(
        model, inputs_of_rows(model.config, 2), **GREEDY, eos_token_id=None, stopping_criteria=criteria
    )
    assert torch.equal(output, expected)
    assert (output[0, -1] != model.config.audio_stream_eos_id).any()


def test_a_time_limit(monkeypatch):
    model = accelerate(reference.tiny_model(2, endless=True))
    inputs = inputs_of_rows(model.config, 1)
    clock = itertools.count()  # a second passes each time that it is read: once at the start, and after each frame
    monkeypatch.setattr(stopping_criteria, "time", SimpleNamespace(time=lambda: next(clock)))
    output = model.generate(**inputs, do_sample=False, max_new_tokens=8000, max_time=9.5)
    assert output.shape[1] == 10
    assert torch.equal(output, model.generate(**inputs, do_sample=False, max_new_tokens=output.shape[1]))


def test_stop_strings():
    model = reference.tiny_model(2, endless=True)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=build_tokenizer(reference.native_config(model.config)), pad_token="<|end_of_text|>"
    )
    inputs = inputs_of_rows(model.config, 1)
    for stop, steps in (("<|AUDIO_OUT|>" * 3, 3), ("never", 30)):
        expected, output = both(model, inputs, **GREEDY, stop_strings=[stop], tokenizer=tokenizer)
        assert torch.equal(output, expected)
        assert output.shape[1] == steps


def ends_in_eos(frames: torch.Tensor, config) -> list[int]:
    """The first frame of EOS in all codebooks, by row."""
    return [int(row.nonzero()[0]) for row in (frames == config.audio_stream_eos_id).all(dim=2)]


@pytest.mark.parametrize("eos", [None, -1, [300, 301]])
def test_a_fixed_length(eos):
    """Without the model's id of EOS, rows have as many frames as asked: their own, and frames of EOS."""
    model = accelerate(reference.tiny_model(1))
    inputs = batch(model.config, 3)
    ended = model.generate(**inputs, max_new_tokens=120, do_sample=False)
    before = 0 if "audio_input_ids" not in inputs else inputs["audio_input_ids"].shape[1]
    ends = ends_in_eos(ended[:, before:], model.config)
    count = max(ends) + 20
    fixed = model.generate(**inputs, max_new_tokens=count, do_sample=False, eos_token_id=eos)[:, before:]
    assert fixed.shape[1] == count
    for row, end in enumerate(ends):
        assert torch.equal(fixed[row, :end], ended[row, before : before + end])
        assert (fixed[row, end:] == model.config.audio_stream_eos_id).all()


def test_a_fixed_length_is_that_of_transformers():
    """After the delay pattern has closed by itself, transformers draws nothing but EOS either."""
    equal = 0
    for seed in range(6):
        model = reference.tiny_model(seed)
        model.config.eos_token_id = model.generation_config.eos_token_id = None
        inputs = inputs_of_rows(model.config, 1)
        expected, output = both(model, inputs, max_new_tokens=60, do_sample=False, **EVERYTHING)
        assert output.sequences.shape == expected.sequences.shape
        if model.config.audio_stream_eos_id in expected.audio_sequences:
            end = ends_in_eos(expected.audio_sequences, model.config)[0]
            assert torch.equal(output.sequences[:, : 12 + end], expected.sequences[:, : 12 + end])
            equal += torch.equal(output.audio_sequences, expected.audio_sequences)
    assert equal


def test_ids_of_eos_in_a_list():
    model = reference.tiny_model(1)
    inputs = inputs_of_rows(model.config, 2)
    config = model.config
    for eos in ([config.eos_token_id], [300, config.eos_token_id], [config.audio_delay_token_id, config.eos_token_id]):
        expected, output = both(model, inputs, max_new_tokens=120, do_sample=False, eos_token_id=eos)
        assert torch.equal(output, expected)
    expected, output = both(model, inputs, max_new_tokens=30, do_sample=False, eos_token_id=[config.audio_token_id])
    assert torch.equal(output, expected)
    assert output.shape[1] == 1


def test_a_streamer_gets_the_ids_up_to_the_stop():
    model = reference.tiny_model(2, endless=True)
    streamers = [Streamer(), Streamer()]
    inputs = inputs_of_rows(model.config, 1)
    for streamer, prepare in zip(streamers, (compat.restore, accelerate), strict=True):
        prepare(model)
        model.generate(**inputs, **GREEDY, streamer=streamer, stopping_criteria=[AtLength(20)])
    assert streamers[0].values == streamers[1].values
    assert len(streamers[1].values) == 1 + 8 + 1


def test_an_error_of_a_criterion_is_raised():
    class Broken(transformers.StoppingCriteria):
        def __call__(self, input_ids, scores, **options):
            raise ZeroDivisionError("broken")

    model = accelerate(reference.tiny_model(2, endless=True))
    with pytest.raises(ZeroDivisionError, match="broken"):
        model.generate(**inputs_of_rows(model.config, 2), **GREEDY, stopping_criteria=[Broken()])
    assert model.generate(**inputs_of_rows(model.config, 2), **GREEDY).shape[1] == 30
