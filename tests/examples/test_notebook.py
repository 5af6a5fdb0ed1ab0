"""The notebook in `examples/` runs, and is committed without outputs."""

import ast
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile


pytest.importorskip("markdown_it")  # its book is Markdown
NOTEBOOK = json.loads((Path(__file__).resolve().parents[2] / "examples" / "tour.ipynb").read_text(encoding="utf-8"))
CELLS = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def run(source: str, names: dict) -> object:
    """Run a cell as a notebook does, and return the value of its last line, if that is an expression."""
    module = ast.parse(source)
    last = module.body.pop() if isinstance(module.body[-1], ast.Expr) else None
    exec(compile(module, "<cell>", "exec"), names)
    return None if last is None else eval(compile(ast.Expression(last.value), "<cell>", "eval"), names)


def test_no_outputs_are_committed():
    assert CELLS
    assert [cell for cell in CELLS if cell["outputs"] or cell["execution_count"] is not None] == []
    assert len({cell["id"] for cell in NOTEBOOK["cells"]}) == len(NOTEBOOK["cells"])


def test_every_cell_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tempfile.mkdtemp", lambda: str(tmp_path))
    names: dict = {}
    values = [run("".join(cell["source"]), names) for cell in CELLS]
    players = [value for value in values if value is not None]
    assert len(players) == 3
    for speech in players:
        assert "<audio" in speech._repr_html_()
        assert 1 < speech.duration < 10
        assert speech.failures == ()
    assert np.array_equal(players[0].audio, names["speech"].audio)
    printed = capsys.readouterr().out
    assert "equal to speak: True" in printed
    assert "00:00:00,000 --> " in printed
    assert "They drink tea." in printed
    chapters = sorted(path.name for path in (tmp_path / "chapters").iterdir())
    assert chapters == ["01 The Morning.mp3", "02 The Evening.mp3"]
    assert soundfile.info(tmp_path / "chapters" / chapters[0]).duration > 2
    assert names["small"].model.nbytes < 0.8 * names["engine"].model.nbytes
