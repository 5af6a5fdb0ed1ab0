"""The voices of a folder, and what is wrong with them."""

import soundfile

from tests.audio.test_quality import syllables
from tests.cli.conftest import RATE


def test_voices_are_listed_with_what_is_wrong_with_them(run):
    soundfile.write(run.work / "anna.wav", syllables(5), RATE)
    (run.work / "anna.txt").write_text("Hello there, this is how I speak.")
    soundfile.write(run.work / "bert.flac", syllables(2), RATE)
    (run.work / "profile.yaml").write_text("profiles:\n  old: An old man.\n")
    bert = (
        "bert\t\n"
        "    it is short, with 2.00 s of speech; expected at least 3 s\n"
        "    its words are not given; with them a clone is closer\n"
    )
    anna, old = "anna\tHello there, this is how I speak.\n", "profile:old\tAn old man.\n"
    assert run("voices", ".") == (0, anna + bert + old, "")
    (run.work / "carl.wav").touch()
    (run.work / "config.json").write_text('{"dora": {"audio_file": "d.wav", "transcript": "Hi."}}')
    code, out, err = run("voices", ".")
    assert code == 2
    assert out.startswith(anna + bert + "carl\t\n    it can't be used: carl.wav can't be read as audio")
    assert out.endswith(
        "dora\tHi.\n    it can't be used: audio must be an existing file (wav, flac, ogg, mp3), got d.wav\n" + old
    )
    assert err == "error: 2 of 5 voices can't be used: carl, dora\n"
    code, out, err = run("voices")
    assert (code, out) == (2, "")
    assert err.startswith("error: the folder of voices must be given")


def test_a_folder_without_voices_is_told(run):
    told = "holds no voices: neither recordings nor config.json nor profile.yaml\n"
    assert run("voices", ".") == (0, "", f". {told}")
