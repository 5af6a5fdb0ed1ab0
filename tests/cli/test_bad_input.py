"""Bad input is one line on standard error and exit code 2, and changes nothing."""

import json
import shutil

import numpy as np
import pytest
import soundfile

from higgs_native import HiggsAudio
from higgs_native.cli import main
from higgs_native.errors import ParameterError
from higgs_native.prompt import voices
from tests.cli.conftest import RATE, tone


def change_json(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def copy_of(model, folder):
    shutil.copytree(model, folder)
    return folder


def missing_model(folder, model):
    return ["Hi.", "--model", folder / "missing"], "does not exist"


def unknown_hub_name_offline(folder, model):
    return ["Hi.", "--model", "nobody/nothing"], "nobody/nothing"


def folder_of_something_else(folder, model):
    (folder / "other").mkdir()
    return ["Hi.", "--model", folder / "other"], "has no config.json"


def model_that_is_a_file(folder, model):
    return ["Hi.", "--model", model / "config.json"], "model must be the folder that holds config.json, got the file"


def config_of_another_model(folder, model):
    change_json(copy_of(model, folder / "model") / "config.json", model_type="llama")
    return [
        "Hi.",
        "--model",
        folder / "model",
    ], "model_type must be 'higgs_audio', 'higgs_audio_v2' or 'higgs_multimodal_qwen3', got 'llama'"


def config_that_is_no_json(folder, model):
    (copy_of(model, folder / "model") / "config.json").write_text("{")
    return ["Hi.", "--model", folder / "model"], "not readable as JSON"


def truncated_weights(folder, model):
    path = copy_of(model, folder / "model") / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    return ["Hi.", "--model", folder / "model"], "model.safetensors is damaged"


def shapes_that_do_not_fit(folder, model):
    config = copy_of(model, folder / "model") / "config.json"
    raw = json.loads(config.read_text())
    raw.get("text_config", raw)["intermediate_size"] += 8
    config.write_text(json.dumps(raw))
    return ["Hi.", "--model", folder / "model"], "must have shape"


def missing_tokenizer(folder, model):
    (copy_of(model, folder / "model") / "tokenizer.json").unlink()
    return ["Hi.", "--model", folder / "model"], "no tokenizer.json"


def damaged_tokenizer(folder, model):
    (copy_of(model, folder / "model") / "tokenizer.json").write_text("{}")
    return ["Hi.", "--model", folder / "model"], "tokenizer.json is damaged"


def missing_audio_tokenizer(folder, model):
    return ["Hi.", "--model", model, "--audio-tokenizer", folder / "missing"], "does not exist"


def truncated_audio_tokenizer(folder, model):
    copied = copy_of(model, folder / "model") / "audio_tokenizer"
    for path in (*copied.glob("*.safetensors"), *copied.glob("*.pth")):
        path.write_bytes(path.read_bytes()[:-1000])
    return ["Hi.", "--model", folder / "model"], "audio_tokenizer"


def empty_text(folder, model):
    return ["", "--model", model], "text must hold something to say, got"


def white_space(folder, model):
    return [" \n\t", "--model", model], "text must hold something to say, got"


def empty_file(folder, model):
    (folder / "empty.txt").touch()
    return [folder / "empty.txt", "--model", model], "text must hold something to say, got"


def file_that_is_no_text(folder, model):
    (folder / "noise.txt").write_bytes(b"ab\xff")
    return [folder / "noise.txt", "--model", model], "which is not UTF-8 at byte 2"


def utf_16_file(folder, model):
    (folder / "wide.txt").write_text("Hello.", encoding="utf-16-le")
    return [folder / "wide.txt", "--model", model], "holds zero bytes, so it is UTF-16 or no text"


def mistyped_file(folder, model):
    return [
        "boook.txt",
        "--model",
        model,
    ], "text must be a text, an existing text file, or -, got the name of a missing file: boook.txt"


def mistyped_folder(folder, model):
    return ["./texts/book", "--model", model], "got the name of a missing file: ./texts/book"


def text_that_is_a_folder(folder, model):
    return [folder, "--model", model], "got the folder /"


def text_without_an_end(folder, model):
    return ["/dev/zero", "--model", model], "text must be at most 64 MiB, got more from /dev/zero"


def mistyped_option(folder, model):
    return ["Hi.", "--model", model, "--sed", "1"], "(--sed 1)"


def mistyped_option_first(folder, model):
    return ["--sed", "1", "Hi.", "--model", model], "text must not look like an option, got --sed"


def no_number(folder, model):
    return ["Hi.", "--model", model, "--top-k", "many"], "Invalid value for '--top-k'"


def number_of_many_digits(folder, model):
    return ["Hi.", "--model", model, "--seed", "1" * 5000], "Invalid value for '--seed'"


def option_without_value(folder, model):
    return ["Hi.", "--model"], "'--model' requires an argument"


def no_text(folder, model):
    return ["--model", model], "Missing argument"


def special_token(folder, model):
    return ["Hi. <|eot_id|>", "--model", model], "text must be plain text, got the special token <|eot_id|>"


def missing_reference(folder, model):
    return ["Hi.", "--model", model, "--reference-audio", folder / "missing.wav"], "missing.wav"


def reference(folder, model, samples, **options):
    soundfile.write(folder / "voice.wav", samples, RATE, **options)
    return ["Hi.", "--model", model, "--reference-audio", folder / "voice.wav"]


def unreadable_reference(folder, model):
    (folder / "voice.wav").write_bytes(b"RIFF but not audio")
    return ["Hi.", "--model", model, "--reference-audio", folder / "voice.wav"], "voice.wav"


def reference_of_zero_bytes(folder, model):
    (folder / "voice.wav").touch()
    return ["Hi.", "--model", model, "--reference-audio", folder / "voice.wav"], "voice.wav"


def empty_reference(folder, model):
    return reference(folder, model, tone(0)), "must last at least 0.1 s, got 0 s"


def short_reference(folder, model):
    return reference(folder, model, tone(0.05)), "must last at least 0.1 s, got 0.05 s"


def long_reference(folder, model):
    return reference(folder, model, tone(600)), "must last at most 120 s, got 600 s"


def reference_with_nan(folder, model):
    samples = tone(1)
    samples[100] = np.nan
    return reference(folder, model, samples, subtype="FLOAT"), "NaN"


def reference_text_alone(folder, model):
    return ["Hi.", "--model", model, "--reference-text", "Hello."], "must be None without reference_audio"


def unknown_voice(folder, model):
    (folder / "anna.wav").touch()
    return ["Hi.", "--model", model, "--voice", "zoe", "--voices", folder], "folder of voices (anna), got 'zoe'"


def missing_folder_of_voices(folder, model):
    return ["Hi.", "--model", model, "--voice", "zoe"], "the folder of voices must be given"


def unwritable_output(folder, model):
    return ["Hi.", "--model", model, "--out", folder / "missing" / "out.wav"], "can't be written"


def output_that_is_a_folder(folder, model):
    (folder / "out.wav").mkdir()
    return ["Hi.", "--model", model, "--out", folder / "out.wav"], "is a folder"


def output_and_stream(folder, model):
    paths = ["--out", folder / "out.wav", "--stream", folder / "out.pcm"]
    return ["Hi.", "--model", model, *paths], "--out must not be given with --stream, got"


def stream_to_nothing(folder, model):
    return ["Hi.", "--model", model, "--stream", ""], "--stream must be a file, a named pipe, or -, got"


def unwritable_stream(folder, model):
    return ["Hi.", "--model", model, "--stream", "/proc/out.pcm"], "/proc/out.pcm can't be written"


def stream_of_a_long_name(folder, model):
    return ["Hi.", "--model", model, "--stream", "a" * 300], "can't be written: File name too long"


def unknown_ending(folder, model):
    return ["Hi.", "--model", model, "--out", folder / "out.aac"], "path must end in"


def unknown_device(folder, model):
    return ["Hi.", "--model", model, "--device", "cuda:99"], "got cuda:99: "


def unknown_dtype(folder, model):
    return ["Hi.", "--model", model, "--dtype", "int8"], "dtype"


def more_than_the_cache_holds(folder, model):
    (folder / "long.txt").write_text("long " * 2000)
    return [folder / "long.txt", "--model", model], "input_ids must take fewer than"


def no_audio(folder, model):
    return ["Hi.", "--model", model, "--max-new-tokens", "3"], "no audio"


def parameter(name, value):
    def case(folder, model):
        return ["Hi.", "--model", model, name, value], name.removeprefix("--").replace("-", "_")

    case.__name__ = f"{name} {value}"
    return case


BAD_INPUTS = (
    missing_model,
    unknown_hub_name_offline,
    folder_of_something_else,
    model_that_is_a_file,
    config_of_another_model,
    config_that_is_no_json,
    truncated_weights,
    shapes_that_do_not_fit,
    missing_tokenizer,
    damaged_tokenizer,
    missing_audio_tokenizer,
    truncated_audio_tokenizer,
    empty_text,
    white_space,
    empty_file,
    file_that_is_no_text,
    utf_16_file,
    mistyped_file,
    mistyped_folder,
    text_that_is_a_folder,
    text_without_an_end,
    mistyped_option,
    mistyped_option_first,
    no_number,
    number_of_many_digits,
    option_without_value,
    no_text,
    special_token,
    missing_reference,
    unreadable_reference,
    reference_of_zero_bytes,
    empty_reference,
    short_reference,
    long_reference,
    reference_with_nan,
    reference_text_alone,
    unknown_voice,
    missing_folder_of_voices,
    unwritable_output,
    output_that_is_a_folder,
    output_and_stream,
    stream_to_nothing,
    unwritable_stream,
    stream_of_a_long_name,
    unknown_ending,
    unknown_device,
    unknown_dtype,
    more_than_the_cache_holds,
    no_audio,
    parameter("--top-p", 0),
    parameter("--top-p", 2),
    parameter("--top-k", -1),
    parameter("--temperature", -1),
    parameter("--temperature", "nan"),
    parameter("--max-new-tokens", 0),
    parameter("--seed", 2**64),
    parameter("--ras-win-max-num-repeat", 0),
)


@pytest.mark.parametrize("case", BAD_INPUTS, ids=lambda case: case.__name__)
def test_bad_input_gives_one_line_and_writes_nothing(case, run, model, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "input"
    folder.mkdir()
    arguments, message = case(folder, model)
    before = sorted(tmp_path.rglob("*"))
    code, out, err = run("speak", *arguments)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert err.startswith("error: ")
    assert len(err) < 510
    assert message in err
    assert sorted(tmp_path.rglob("*")) == before


# Facts that need no weights must not wait for them.
KNOWN_EARLY = (
    empty_text,
    unreadable_reference,
    empty_reference,
    short_reference,
    long_reference,
    reference_with_nan,
    unknown_voice,
    unwritable_output,
    output_and_stream,
    stream_to_nothing,
    unwritable_stream,
    unknown_ending,
    parameter("--top-p", 2),
    parameter("--max-new-tokens", 0),
)


@pytest.mark.parametrize("case", KNOWN_EARLY, ids=lambda case: case.__name__)
def test_what_is_wrong_is_told_before_weights_are_loaded(case, run, model, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(HiggsAudio, "from_pretrained", fail)
    arguments, message = case(tmp_path, model)
    code, _, err = run("speak", *arguments)
    assert code == 2
    assert message in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["speek", "Hi."], "No such command 'speek'"),
        (["quantize", "--bogus"], "No such option: --bogus"),
        (["quantize", "one"], "Missing argument"),
        (["voices", "one", "two"], "Got unexpected extra argument"),
        (["--versions"], "No such option: --versions"),
    ],
)
def test_a_mistyped_command_is_one_line(run, arguments, message):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1


def test_errors_of_several_lines_become_one(run, monkeypatch):
    def fail(folder):
        raise ParameterError("one\ntwo")

    monkeypatch.setattr(voices, "list_voices", fail)
    assert run("voices") == (2, "", "error: one two\n")


def test_an_unexpected_error_is_one_line_too(run, monkeypatch):
    def fail(folder):
        raise RuntimeError("broken")

    monkeypatch.setattr(voices, "list_voices", fail)
    code, out, err = run("voices")
    assert (code, out) == (1, "")
    assert err == "error: RuntimeError: broken (HIGGS_NATIVE_TRACEBACK=1 shows where)\n"


def test_a_traceback_on_demand(capsys, monkeypatch):
    def fail(folder):
        raise RuntimeError("broken")

    monkeypatch.setenv("HIGGS_NATIVE_TRACEBACK", "1")
    monkeypatch.setattr(voices, "list_voices", fail)
    with pytest.raises(RuntimeError, match="broken"):
        main(["voices"])
