"""The order of a step's rows, and the range of them that items are drawn from."""

from pathlib import Path

import pytest
import torch

from higgs_native.generation.conventions.behavior import GenerationMode
from higgs_native.generation.model import HiggsAudioModel
from higgs_native.generation.requests import GenerationRequest
from higgs_native.generation.sequence import Row, SequenceState
from higgs_native.generation.steps.pending_rows import pending_rows


FOLDER = Path(__file__).parents[2] / "golden" / "boson_lm"
TOKEN = 5


@pytest.fixture(scope="module")
def model() -> HiggsAudioModel:
    return HiggsAudioModel.from_pretrained(FOLDER)


def sequence(slot: int, rows: list[Row], computed: int = 0) -> SequenceState:
    return SequenceState(
        GenerationRequest(torch.tensor([[TOKEN]])),
        GenerationMode.TEXT,
        rows,
        len(rows),
        [],
        [],
        slot=slot,
        computed=computed,
        text_computed=sum(isinstance(row, int) for row in rows[:computed]),
    )


def frame(code: int) -> Row:
    return (code,) * 8


def test_drawn_rows_are_the_last_text_rows_and_the_first_audio_rows(model):
    text_end = sequence(0, [10, frame(1), 11, 12])
    audio_end = sequence(1, [20, frame(2), frame(3)])
    unfinished = sequence(2, [30, frame(4), 31, frame(5), 32])
    one_token = sequence(3, [40, 41, frame(6), 42], computed=3)
    one_frame = sequence(4, [50, 51, frame(7)], computed=2)
    pieces = [(text_end, 4), (audio_end, 3), (unfinished, 4), (one_token, 1), (one_frame, 1)]
    batch, last = pending_rows(model, pieces)
    assert batch.token_ids.tolist() == [10, 11, 20, 30, 31, 12, 42]
    assert batch.codes[:, 0].tolist() == [3, 7, 1, 2, 4, 5]
    assert batch.slots.tolist() == [0, 0, 1, 2, 2, 0, 3, 1, 4, 0, 1, 2, 2]
    assert batch.positions.tolist() == [0, 2, 0, 0, 2, 3, 3, 2, 2, 1, 1, 1, 3]
    assert batch.text_positions.tolist() == [0, 1, 0, 0, 1, 2, 2]
    assert last == [5, 7, -1, 6, 8]
    assert batch.kept_rows == range(5, 9)
    assert [s.text_computed for s, _ in pieces] == [3, 1, 2, 3, 2]


@pytest.mark.parametrize(
    ("rows", "count", "kept", "last"),
    [
        ([10, 11, 12], 3, range(2, 3), 2),
        ([10, 11, 12], 2, range(0), -1),
        ([10, frame(1), frame(2)], 3, range(1, 2), 1),
        ([10, frame(1), frame(2)], 2, range(0), -1),
    ],
)
def test_one_sequence(model, rows, count, kept, last):
    batch, indices = pending_rows(model, [(sequence(0, rows), count)])
    assert (batch.kept_rows, indices) == (kept, [last])


def test_kept_rows_have_the_states_of_a_pass_over_all_rows(model):
    rows = [10, 11, frame(1), frame(2), 12]
    pieces = [(sequence(0, rows), 5), (sequence(1, [*rows, frame(3)]), 6), (sequence(2, rows), 3)]
    batch, last = pending_rows(model, pieces)
    states = model.forward(batch, model.new_cache(3, 32))
    batch.kept_rows = None
    whole = model.forward(batch, model.new_cache(3, 32))
    drawn = [index for index in last if index >= 0]
    assert len(drawn) == 2
    assert torch.equal(states[drawn], whole[drawn])
