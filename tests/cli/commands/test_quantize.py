"""The command `quantize`."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

import higgs_native
from higgs_native import HiggsAudio, HiggsAudioModel, LongSpeech
from higgs_native.checkpoint.packed import PACKED_FILE
from higgs_native.checkpoint.quantization import Quantization
from higgs_native.cli import main
from higgs_native.cli.commands.quantize import size_text
from higgs_native.pipeline import EMBEDDED_VOICE
from higgs_native.testing.random_checkpoint import write_language_model
from tests.helpers.waiting import PATIENCE
from tests.model.test_transformer import config


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source") / "model"
    write_language_model(folder, config(hidden_size=144, intermediate_size=200, audio_delay_token_id=270))
    return folder


def run_command(capsys, *arguments) -> tuple[int, str, str]:
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as error:
        code = error.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_command(source, tmp_path, capsys):
    code, out, _ = run_command(capsys, "quantize", source, tmp_path / "packed", "--format", "int4,heads=int8")
    assert code == 0
    loaded = HiggsAudioModel.from_pretrained(tmp_path / "packed")
    assert out == f"{tmp_path / 'packed'}: {loaded.nbytes / 1e3:.2f} kB of weights\n"
    assert loaded.quantization == Quantization("int4", "int4", "int4", "int8")


def test_the_command_makes_missing_parents(source, tmp_path, capsys):
    target = tmp_path / "new" / "folder" / "packed"
    assert run_command(capsys, "quantize", source, target)[0] == 0
    assert sorted(path.name for path in target.iterdir()) == [
        "config.json",
        PACKED_FILE,
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert list(target.parent.iterdir()) == [target]


def test_a_quantized_copy_of_the_embedded_voice_is_one(tmp_path, capsys):
    assert run_command(capsys, "quantize", EMBEDDED_VOICE, tmp_path / "q4", "--format", "int4")[0] == 0
    engine = HiggsAudio.from_pretrained(tmp_path / "q4")
    assert engine.is_embedded_voice
    assert engine.trained_voices == HiggsAudio.from_pretrained().trained_voices
    sentences = "The sun rises in the east. The water is cold and clear."
    assert len(LongSpeech(engine, sentences)) == 2  # one sentence per chunk, as in training


WRITE_SLOWLY = f"""
import sys, time
from higgs_native.checkpoint import packed
from higgs_native.cli import main

def write_half(tensors, metadata, path):
    path.write_bytes(b"half")
    print("writing", flush=True)
    for _ in range({round(PATIENCE * 20)}):  # a signal just before a sleep is handled after it
        time.sleep(0.05)

packed.write_tensors = write_half
main(sys.argv[1:])
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_what_a_killed_command_wrote_is_removed(source, tmp_path, capsys, monkeypatch, number):
    monkeypatch.setenv("PYTHONPATH", str(Path(higgs_native.__file__).parent.parent))
    arguments = ["quantize", str(source), str(tmp_path / "packed")]
    program = [sys.executable, "-c", WRITE_SLOWLY, *arguments]
    with subprocess.Popen(program, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "writing\n"
        process.send_signal(number)
        code = process.wait(PATIENCE)
    left = [path.name for path in tmp_path.iterdir()]
    if number == signal.SIGTERM:
        assert (code, left) == (128 + number, [])
    else:  # SIGKILL: no process can clean up
        assert left == [f".packed.{process.pid}.tmp"]
    assert run_command(capsys, *arguments)[0] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["packed"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["{source}", "{new}", "--format", "int3"],
            "attention must be one of float32, bfloat16, float16, fp8, int8, int4, got 'int3'",
        ),
        (["{source}", "{source}"], "target must not exist, got"),
        (["{new}", "{new}"], "must be a folder or a Hub name"),
        (["{new}", "{new}/inside/packed"], "must be a folder or a Hub name"),
        (["{source}", "{new}/inside/packed", "--format", "int3"], "attention must be one of"),
        (["{source}", "/proc/new/packed"], "can't be written"),
        (["{source}", "{source}/config.json/inside"], "can't be written"),
    ],
)
def test_the_command_refuses_bad_input(source, tmp_path, capsys, arguments, message):
    folders = {"source": source, "new": tmp_path / "new"}
    code, _, err = run_command(capsys, "quantize", *(argument.format(**folders) for argument in arguments))
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_sizes_have_fitting_units():
    sizes = (12_340, 999_999, 1_000_000, 4_700_000_000)
    assert [size_text(size) for size in sizes] == ["12.34 kB", "1000.00 kB", "1.00 MB", "4.70 GB"]
