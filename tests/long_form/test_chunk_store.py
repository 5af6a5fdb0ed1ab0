"""The folder of a run: missing and changed chunks are spoken again, other folders are refused."""

import hashlib
import io
import json
import math
import os
import resource
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from higgs_native.errors import ParameterError
from higgs_native.long_form.chunk_store import ChunkStore
from higgs_native.long_form.long_speech import LongSpeech
from higgs_native.pipeline import HiggsAudio
from tests.long_form.conftest import RATE, TEXT


# The references here are tones.
pytestmark = pytest.mark.filterwarnings("ignore::higgs_native.VoiceWarning")


def sealed(contents):
    """Return the contents of a .json file with the checksum that the store would write."""
    contents = {name: value for name, value in contents.items() if name != "checksum"}
    checksum = hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()
    return contents | {"checksum": checksum}


def test_missing_and_truncated_files_are_made_again(engine, whole, tmp_path, monkeypatch):
    folder, _ = whole
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    parts = tmp_path / "parts"
    parts.mkdir()
    for name, data in files.items():
        (parts / name).write_bytes(data)
    (parts / "00001.json").unlink()
    (parts / "00002.json").write_bytes(files["00002.json"][:-20])
    (parts / "00003.wav").write_bytes(files["00003.wav"][:-20])
    (parts / "00004.wav").unlink()
    (parts / ".00004.wav.tmp").touch()
    seeds = []
    add = engine.model.engine.add

    def recorded(request):
        seeds.append(request.sampling.seed)
        return add(request)

    monkeypatch.setattr(engine.model.engine, "add", recorded)
    speech = LongSpeech(engine, TEXT, parts)  # the seed is the run's
    assert speech.seed == 1
    assert speech.num_finished == 6
    assert len(list(speech)) == speech.num_finished == 7
    assert {seed // 1000 for seed in seeds} == {1, 2, 3, 4}
    assert {file.name: file.read_bytes() for file in parts.iterdir() if file.name[0] != "."} == files
    made = len(seeds)
    list(speech)
    assert len(seeds) == made


def test_invalid_records_are_made_again(engine, fake, tmp_path):
    model = fake()
    list(LongSpeech(engine, "One.", tmp_path))
    record = json.loads((tmp_path / "00000.json").read_text())
    attempt = record["attempts"][0]
    changes = [
        [],
        None,
        {},
        *(
            sealed(record | change)
            for change in (
                {"attempts": None},
                {"attempts": []},
                {"kept": 1},
                {"codes": "?"},
                {"codes": [1]},
                {"codes": [[2**70]]},
                {"codes": [[-1]]},
                {"codes": [[0.5]]},
                {"codes": [[True]]},
                {"codes": [[1, 2], [3]]},
                {"codes": []},
                {"kept": 0.0},
                {"kept": False},
                {"attempts": [attempt | {"duration": math.nan}]},
                {"attempts": [attempt | {"duration": "1"}]},
                {"attempts": [attempt | {"duration": 2**1024}]},
                {"attempts": [attempt | {"seed": -1}]},
                {"attempts": [attempt | {"seed": 1e3}]},
                {"attempts": [attempt | {"failures": "silence"}]},
                {"attempts": [attempt | {"failures": ["silence", ["no end"]]}]},
                {"attempts": [attempt | {"failures": ["\x1b[31m"]}]},
                {"attempts": [attempt | {"more": 1}]},
                {"index": 1},
                {"text": "Two."},
                {"tag": "[SPEAKER1]"},
            )
        ),
    ]
    for changed in changes:
        (tmp_path / "00000.json").write_text(json.dumps(changed))
        assert len(list(LongSpeech(engine, "One.", tmp_path))) == 1
    assert len(model.calls) == 1 + len(changes)


def make_large(path):
    with path.open("wb") as file:
        file.truncate(2**40)


@pytest.mark.parametrize("name", ["run.json", "00000.json", "00000.wav"])
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (Path.mkdir, "it is not a regular file"),
        (os.mkfifo, "it is not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "it is not a regular file"),
        (make_large, "it is larger than 67108864 bytes"),
    ],
    ids=["folder", "pipe", "device", "sparse"],
)
def test_what_may_never_end_is_not_read(engine, fake, tmp_path, name, make, reason):
    fake()
    list(LongSpeech(engine, "One.", tmp_path))
    (tmp_path / name).unlink()
    make(tmp_path / name)
    with pytest.raises(ParameterError, match=f"can't be read: {reason}$"):
        list(LongSpeech(engine, "One.", tmp_path))


@pytest.mark.parametrize(
    "contents", [b"[" * 100_000, b'{"format": ' + b"2" * 5000 + b"}", b"\xff", b"[]", b'{"format": Infinity}']
)
def test_a_run_that_is_no_run_is_refused(tmp_path, contents):
    (tmp_path / "run.json").write_bytes(contents)
    with pytest.raises(ParameterError, match=r"run\.json"):
        ChunkStore(tmp_path)


@pytest.mark.parametrize("inputs", [None, [], "text"])
def test_a_run_without_inputs_is_refused(tmp_path, inputs):
    (tmp_path / "run.json").write_text(json.dumps(sealed({"format": 2, "inputs": inputs})))
    with pytest.raises(ParameterError, match="got changed contents; delete the folder to begin anew"):
        ChunkStore(tmp_path)


def test_changed_codes_and_exchanged_chunks_are_made_again(engine, whole, tmp_path):
    """All files are valid, but not those that the run wrote there."""
    folder, _ = whole
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    record = json.loads(files["00000.json"])
    record["codes"][3][5] ^= 1
    (tmp_path / "00000.json").write_text(json.dumps(record, ensure_ascii=False))
    for ending in ("json", "wav"):
        (tmp_path / f"00001.{ending}").write_bytes(files[f"00002.{ending}"])
        (tmp_path / f"00002.{ending}").write_bytes(files[f"00001.{ending}"])
    chunks = list(LongSpeech(engine, TEXT, tmp_path))
    assert [chunk.index for chunk in chunks] == list(range(7))
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == files


def test_checksum_ignores_the_format_of_the_json(engine, fake, tmp_path):
    model = fake()
    list(LongSpeech(engine, "One.", tmp_path))
    record = json.loads((tmp_path / "00000.json").read_text())
    (tmp_path / "00000.json").write_text(json.dumps(record, indent=4, sort_keys=True))
    list(LongSpeech(engine, "One.", tmp_path))
    assert len(model.calls) == 1


@pytest.mark.parametrize("kind", ["stereo", "truncated", "text", "rate"])
def test_wav_that_is_not_mono_or_broken_is_made_again(engine, fake, tmp_path, kind):
    """Even if hash and checksum fit."""
    model = fake()
    list(LongSpeech(engine, "One.", tmp_path))
    files = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    wav = io.BytesIO()
    soundfile.write(wav, np.zeros((9600, 2)), RATE, format="WAV", subtype="PCM_16")
    other_rate = bytearray(files["00000.wav"])
    other_rate[24:28] = (2**32 - 1).to_bytes(4, "little")
    data = {
        "stereo": wav.getvalue(),
        "truncated": files["00000.wav"][:30],
        "text": b"no sound",
        "rate": bytes(other_rate),
    }[kind]
    (tmp_path / "00000.wav").write_bytes(data)
    record = json.loads(files["00000.json"]) | {"sha256": hashlib.sha256(data).hexdigest()}
    (tmp_path / "00000.json").write_text(json.dumps(sealed(record)))
    list(LongSpeech(engine, "One.", tmp_path, seed=model.calls[0][1]))
    assert len(model.calls) == 2
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == files


def test_changed_run_is_refused(engine, fake, tmp_path):
    fake()
    list(LongSpeech(engine, "One.", tmp_path, seed=1))
    text = (tmp_path / "run.json").read_text()
    (tmp_path / "run.json").write_text(text.replace('"seed": 1', '"seed": 2'))
    with pytest.raises(ParameterError, match=r"run\.json: checksum must be that of the contents.*; delete the folder"):
        LongSpeech(engine, "One.", tmp_path)


def test_run_can_be_continued_if_its_removal_is_interrupted(engine, fake, tmp_path, monkeypatch):
    """After any deleted file."""
    fake()
    folder = tmp_path / "parts"
    unlink = Path.unlink
    for count in range(6):
        list(LongSpeech(engine, "One.\n\nTwo.", folder, seed=1))
        left = count

        def interrupted_unlink(path, missing_ok):
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            unlink(path)

        monkeypatch.setattr(Path, "unlink", interrupted_unlink)
        try:
            ChunkStore(folder).remove()
        except KeyboardInterrupt:
            assert count < 5
        monkeypatch.setattr(Path, "unlink", unlink)
    assert not folder.exists()


def test_full_disk_is_reported(engine, fake, tmp_path):
    fake()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    speech = LongSpeech(engine, "The first one.", tmp_path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(ParameterError, match="can't be written to: File too large"):
            list(speech)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [file.name for file in tmp_path.iterdir()] == ["run.json"]


def test_numpy_scalars_are_inputs_like_numbers(engine, fake, tmp_path):
    fake()
    options = {"seed": 1, "top_k": 20, "chunk_seconds": 4, "context_chunks": 1, "temperature": 0.5}
    of_numpy = {name: np.array(value)[()] for name, value in options.items()} | {"temperature": np.float32(0.5)}
    list(LongSpeech(engine, TEXT, tmp_path, **of_numpy))
    assert LongSpeech(engine, TEXT, tmp_path, **options).num_finished == len(
        LongSpeech(engine, TEXT, tmp_path, **of_numpy)
    )


def test_contents_of_the_folder(whole):
    folder, chunks = whole
    run = json.loads((folder / "run.json").read_text())
    assert run["inputs"]["seed"] == 1
    assert [chunk["text"] for chunk in run["inputs"]["text"]] == [chunk.text.text for chunk in chunks]
    record = json.loads((folder / "00001.json").read_text())
    assert record["text"] == chunks[1].text.text
    assert record["attempts"][record["kept"]]["seed"] == chunks[1].seed
    assert torch.equal(torch.tensor(record["codes"]), chunks[1].codes)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"text": "Another text."}, "text"),
        ({"seed": 2}, "seed"),
        ({"scene": "SPEAKER0: masculine"}, "scene"),
        ({"temperature": 0.5, "top_k": 20}, "temperature, top_k"),
        ({"chunk_seconds": 4.0, "text": "The sun rises."}, "text, chunk_seconds"),
        ({"context_chunks": 1}, "context_chunks"),
        ({"max_retries": 0}, "max_retries"),
        ({"reference_audio": (np.sin(np.arange(RATE) / 20).astype(np.float32), RATE)}, "recordings"),
    ],
)
def test_folder_of_another_run_is_refused(changes, named, engine, whole):
    folder, _ = whole
    before = {file: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(ParameterError, match=f"the same inputs, got one that differs in (voices, )?{named}; give"):
        LongSpeech(engine, **({"text": TEXT, "folder": folder, "seed": 1} | changes))
    assert {file: file.read_bytes() for file in folder.iterdir()} == before


def test_folder_of_another_model_is_refused(engine, whole):
    other = HiggsAudio.from_pretrained(quantization="int8")
    assert other.fingerprint() != engine.fingerprint()
    assert HiggsAudio.from_pretrained().fingerprint() == engine.fingerprint()
    with pytest.raises(ParameterError, match="differs in model; give"):
        LongSpeech(other, TEXT, whole[0], seed=1)


def test_folder_of_other_files_is_refused(engine, tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ParameterError, match=r"an earlier run, got other files and no run\.json"):
        LongSpeech(engine, TEXT, tmp_path)
    with pytest.raises(ParameterError, match=r"notes\.txt can't be read: Not a directory"):
        LongSpeech(engine, TEXT, tmp_path / "notes.txt")
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ParameterError, match=r"run\.json must be a readable JSON file, got: "):
        LongSpeech(engine, TEXT, tmp_path)


def test_folder_of_an_earlier_version_is_refused(engine, fake, tmp_path):
    fake()
    list(LongSpeech(engine, "One.", tmp_path))
    run = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(run | {"format": 1}))
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(ParameterError) as error:
        LongSpeech(engine, "One.", tmp_path)
    assert str(error.value) == (
        f"{tmp_path / 'run.json'}: format must be 2, got 1; finish the run with the version that began it, "
        "or delete the folder to begin anew"
    )
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before
