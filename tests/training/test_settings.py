"""The settings of a run: every value is of its kind and in its range."""

import pytest
import yaml

from higgs_native.errors import HiggsNativeError
from higgs_native.training.settings import TrainingSettings


@pytest.fixture
def read(tmp_path):
    """Reads settings from YAML; keywords are added to the required ones."""

    def read(**values) -> TrainingSettings:
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump({"data": "train.jsonl", "output": "run", **values}))
        return TrainingSettings.read(path)

    return read


def test_values_are_read(read):
    settings = read(parts=["heads"], rank=8, dropout=0, codebook_weights=[1, 0.5], model=None, compile=True)
    assert (settings.parts, settings.rank, settings.dropout) == (("heads",), 8, 0.0)
    assert (settings.codebook_weights, settings.model, settings.compile) == ((1, 0.5), None, True)
    assert read() == TrainingSettings("train.jsonl", "run")


def test_numbers_without_a_point_are_numbers(tmp_path):
    (tmp_path / "run.yaml").write_text("data: a\noutput: b\nlearning_rate: 2e-4\n")
    assert TrainingSettings.read(tmp_path / "run.yaml").learning_rate == 2e-4


WRONG = {
    "unknown": ({"rnak": 4}, "a setting must be one of .*, got rnak"),
    "text for a number": ({"learning_rate": "fast"}, "learning_rate must be a number, got 'fast'"),
    "infinite": ({"learning_rate": float("inf")}, "learning_rate must be a finite number"),
    "number for a text": ({"model": 5}, "model must be a string, got 5"),
    "fraction": ({"rank": 1.5}, "rank must be an integer, got 1.5"),
    "zero": ({"rank": 0}, "rank must be at least 1, got 0"),
    "null": ({"rank": None}, "rank must be given, got None"),
    "flag": ({"compile": 1}, "compile must be true or false, got 1"),
    "part": ({"parts": ["tail"]}, "parts must be some of"),
    "no list": ({"parts": "heads"}, "parts must be a list of names, got 'heads'"),
    "norms": ({"parts": ["norms"]}, "parts must be some of"),
    "method": ({"method": "dora"}, "method must be lora or full, got 'dora'"),
    "convention": ({"convention": "other"}, "convention must be 'boson', 'transformers' or 'higgs_tts_3'"),
    "share": ({"held_out_share": 1}, "held_out_share must be at least 0 and below 1, got 1"),
    "cuts": ({"cuts": 41}, "cuts must be 1 to 40, got 41"),
    "rate": ({"learning_rate": 3}, "learning_rate must be at most 1, got 3"),
    "weights": ({"codebook_weights": [-1]}, "codebook_weights must be at least 0 each"),
    "int8": ({"int8_base": True, "method": "full"}, "int8_base must be false unless method is lora, got True"),
    "int4": ({"int4_base": True, "method": "full"}, "int4_base must be false unless method is lora, got True"),
    "both": ({"int4_base": True, "int8_base": True}, "int4_base must be false with int8_base, got True"),
    "shard": ({"shard": True, "int8_base": True}, "shard must be false with int8_base, int4_base or compile"),
    "adapter": ({"adapter": "a", "method": "full"}, "adapter must be left out unless method is lora, got 'a'"),
}


@pytest.mark.parametrize(("values", "message"), WRONG.values(), ids=WRONG.keys())
def test_wrong_values_are_refused(read, values, message):
    with pytest.raises(HiggsNativeError, match=message):
        read(**values)


@pytest.mark.parametrize(
    ("contents", "message"),
    [(b"data: [", "can't be read as YAML"), (b"\xff", "can't be read as YAML"), (b"- a", "must be a JSON object"),
     (b"output: b", "has no 'data'")],
)  # fmt: skip
def test_files_that_hold_no_settings_are_refused(tmp_path, contents, message):
    (tmp_path / "run.yaml").write_bytes(contents)
    with pytest.raises(HiggsNativeError, match=message):
        TrainingSettings.read(tmp_path / "run.yaml")
    with pytest.raises(HiggsNativeError, match="can't be read: No such file"):
        TrainingSettings.read(tmp_path / "none.yaml")
