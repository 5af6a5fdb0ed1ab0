"""The command lines in the README of Boson's examples, with the options that docs/migration.md gives for theirs."""

import pytest
import soundfile
import yaml

from tests.cli.conftest import RATE, tone


ENGLISH = "The voyage took nine days. Nobody had slept."
DIALOGUE = "[SPEAKER0] You took my place.\n[SPEAKER1] Did I? I was here first.\n[SPEAKER0] You were not."
VOICES = {"anna": "Good evening, everyone.", "bert": "I sell brooms.", "chen": "今天天气很好。"}
PROFILES = {"deep": "Male, British accent, calm.", "bright": "Female, British accent, lively."}
IN_SYSTEM_MESSAGE = ("--reference-audio", "voices/anna.wav")
SPEAK, READ = ("speak", "--max-new-tokens", 24), ("read", "--max-retries", 0, "--context-chunks", 2)

COMMANDS = {
    "a cloned voice": (*SPEAK, ENGLISH, "--voice", "anna"),
    "a recording in the system message": (*SPEAK, ENGLISH, *IN_SYSTEM_MESSAGE),
    "a voice of another language": (*SPEAK, ENGLISH, "--voice", "chen"),
    "any voice": (*SPEAK, ENGLISH),
    "any voice, in Chinese": (*SPEAK, "大家好,今天我们谈谈大海。"),
    "a described man": (*SPEAK, ENGLISH, "--voice", "profile:deep"),
    "a described woman": (*SPEAK, ENGLISH, "--voice", "profile:bright"),
    "a page in chunks": (
        *READ,
        "page.md",
        "--voice",
        "anna",
        "--scene",
        "A reading.",
        "--chunk-seconds",
        3,
    ),
    "humming": (*SPEAK, "Listen. [humming start] la la [humming end]", "--voice", "anna"),
    "music": (*SPEAK, "[music start] Welcome back. [music end]", *IN_SYSTEM_MESSAGE),
    "a dialogue of any voices": (*SPEAK, DIALOGUE),
    "a dialogue of any voices, turn by turn": (*READ, DIALOGUE),
    "a dialogue of two voices": (*READ, DIALOGUE, "--voice", "anna,bert"),
    "a dialogue of the same voices": (*READ, DIALOGUE, "--voice", "bert,anna"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_speaks(run, model, name):
    folder = run.work / "voices"
    folder.mkdir()
    for voice, words in VOICES.items():
        soundfile.write(folder / f"{voice}.wav", tone(1), RATE)
        (folder / f"{voice}.txt").write_text(words, encoding="utf-8")
    (folder / "profile.yaml").write_text(yaml.safe_dump({"profiles": PROFILES}))
    (run.work / "page.md").write_text("It rained. We stayed inside.\n\nThen the sun came out.\n")
    code, out, err = run(*COMMANDS[name], "--model", model, "--voices", "voices", "--seed", 12345, "--out", "out.wav")
    assert (code, out) == (0, ""), err
    audio, rate = soundfile.read(run.work / "out.wav")
    assert rate == RATE
    assert 0.1 < len(audio) / rate < 60
