"""Manifests are read whole, or refused in one line that names the row."""

import json

import pytest

from higgs_native import PromptError
from higgs_native.manuscript import manifest
from higgs_native.manuscript.manifest import ManifestRow, read_manifest


VOICES = ("anna", "berta")


def test_a_table_and_json_lines_hold_the_same(tmp_path):
    table, lines = tmp_path / "m.csv", tmp_path / "m.jsonl"
    table.write_text('\ufeffid,text,voice,seed\na,"Hello, you.",anna,-1\nb,Good morning.,,\n', encoding="utf-8")
    rows = [{"id": "a", "text": "Hello, you.", "voice": "anna", "seed": -1}, {"id": "b", "text": "Good morning."}]
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert list(read_manifest(table, VOICES)) == [
        ManifestRow(f"{table}, line 2", "a", "Hello, you.", "anna", -1),
        ManifestRow(f"{table}, line 3", "b", "Good morning.", None, 0),
    ]
    read = list(read_manifest(lines, VOICES))
    assert [(row.id, row.text, row.voice, row.seed) for row in read] == [
        ("a", "Hello, you.", "anna", -1),
        ("b", "Good morning.", None, 0),
    ]
    assert read[1].location == f"{lines}, line 2"


@pytest.mark.parametrize(
    ("name", "contents", "message"),
    [
        ("m.csv", "id,text\na,\n", "line 2: id and text must be given, got no text"),
        ("m.csv", "name\na\n", "line 2: id and text must be given, got no id and no text"),
        ("m.csv", "id,text\na,b\na,c\n", "line 3: id must be a file name that no other row has, got 'a'"),
        ("m.csv", "id,text\n../a,b\n", "line 2: id must be a file name that no other row has, got '../a'"),
        ("m.csv", "id,text,voice\na,b,zoe\n", "line 2: voice must be one of anna, berta, got 'zoe'"),
        ("m.csv", "id,text,seed\na,b,0.5\n", "line 2: seed must be an integer from -2**63 to 2**64 - 1, got '0.5'"),
        ("m.csv", f"id,text,seed\na,b,{2**64}\n", "line 2: seed must be an integer from -2**63 to 2**64 - 1, got '1"),
        ("m.csv", f"id,text,seed\na,b,{'9' * 5000}\n", "line 2: seed must be an integer from -2**63 to 2**64 - 1"),
        ("m.jsonl", '{"id": "a", "text": "b", "seed": true}', "line 1: seed must be an integer from -2**63 to"),
        ("m.jsonl", '{"id": "a", "text": "b", "voice": ["anna"]}', "line 1: voice must be one of anna, berta, got ["),
        ("m.csv", "id,text\na," + "b" * 200_000 + "\n", "line 1: row must be CSV, got: field larger than field limit"),
        ("m.jsonl", '{"id": "a", "text": "b"}\n{', "line 2: row must be JSON, got: "),
        ("m.jsonl", "[1]\n", "line 1: row must be a JSON object, got a list"),
        ("m.jsonl", "[" * 100_000, "line 1: row must be JSON, got: "),
        ("m.jsonl", '{"seed": ' + "9" * 5000 + "}", "line 1: row must be JSON, got: "),
    ],
)
def test_an_invalid_row_is_told_by_its_line(tmp_path, name, contents, message):
    path = tmp_path / name
    path.write_text(contents)
    with pytest.raises(PromptError) as told:
        list(read_manifest(path, VOICES))
    assert f"{path}, {message}" in str(told.value)


@pytest.mark.parametrize("name", ["m.csv", "m.jsonl"])
def test_a_file_that_is_no_manifest(tmp_path, name, monkeypatch):
    (tmp_path / name).write_bytes(b"id,text\na,\xff\n")
    with pytest.raises(PromptError, match=f"{name} must be UTF-8, got another encoding at byte 10"):
        list(read_manifest(tmp_path / name, VOICES))
    monkeypatch.setattr(manifest, "_MAX_BYTES", 1 << 20)
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises(PromptError, match=f"{name} must have at most 1048576 bytes, got more"):
        list(read_manifest(tmp_path / name, VOICES))
