import json

import pytest
import soundfile

from higgs_native.errors import AudioError, ParameterError, PromptError
from higgs_native.prompt.voices import VOICES_VARIABLE, Voice, check_voice, choose_voices, find_voice, list_voices
from tests.audio.test_quality import RATE, syllables


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "anna.wav").write_bytes(b"")
    (tmp_path / "anna.txt").write_text(" Hello there.\n", encoding="utf-8")
    (tmp_path / "bare.flac").write_bytes(b"")
    (tmp_path / "notes.md").write_text("no voice")
    (tmp_path / "config.json").write_text(
        json.dumps(
            {"carl": {"audio_file": "recordings/c.wav", "transcript": "你好"}, "dora": {"audio_file": "d.wav"}}
        ),
        encoding="utf-8",
    )
    (tmp_path / "profile.yaml").write_text(
        "# comment\n"
        "version: 1\n"
        "profiles:  # all\n"
        "  male_en: Male, American accent; it's clear.  # a comment\n"
        "\n"
        '  "quoted": "a #1 voice: mine"\n'
        "other:\n"
        "  ignored: x\n",
        encoding="utf-8",
    )
    return tmp_path


def test_a_folder_holds_recordings_configured_voices_and_profiles(folder):
    assert list_voices(folder) == {
        "anna": Voice(folder / "anna.wav", "Hello there."),
        "bare": Voice(folder / "bare.flac"),
        "carl": Voice(folder / "recordings" / "c.wav", "你好"),
        "dora": Voice(folder / "d.wav"),
        "profile:male_en": Voice(profile="Male, American accent; it's clear."),
        "profile:quoted": Voice(profile="a #1 voice: mine"),
    }
    assert list(list_voices(folder)) == sorted(list_voices(folder))
    assert find_voice("profile:male_en", folder).profile.startswith("Male")


def test_the_environment_names_the_folder(folder, monkeypatch):
    monkeypatch.setenv(VOICES_VARIABLE, str(folder))
    assert find_voice("anna").reference_text == "Hello there."


def test_voices_of_the_checkpoint_need_no_folder(folder, monkeypatch):
    monkeypatch.delenv(VOICES_VARIABLE, raising=False)
    child, feminine = Voice(profile="child"), Voice(profile="feminine")
    assert choose_voices("child,feminine", trained=("feminine", "child")) == [child, feminine]
    with pytest.raises(PromptError, match="the folder of voices must be given"):
        find_voice("anna", trained=("child",))
    assert find_voice("child", folder, ("child",)) == child
    assert find_voice("anna", folder, ("anna",)).reference_text == "Hello there."  # the folder comes first


def test_the_error_of_an_unknown_voice_lists_the_voices(folder):
    with pytest.raises(PromptError) as error:
        find_voice("zoe", folder)
    assert str(error.value) == (
        "voice must be in the folder of voices (anna, bare, carl, dora, profile:male_en, profile:quoted), got 'zoe'"
    )


@pytest.mark.parametrize(
    ("text", "profiles"),
    [
        ("profiles: {a: male, 'b c': female}", {"a": "male", "b c": "female"}),
        ('"profiles":\n  no: 1\n  2024-01-01: yes\n', {"no": "1", "2024-01-01": "yes"}),
        ("profiles:\n  a: |\n    slow\n    and low\n  b:\n    of two\n    lines\n",
         {"a": "slow\nand low", "b": "of two lines"}),
        ("\ufeffprofiles:\r\n  a: male\r\n", {"a": "male"}),
    ],
)  # fmt: skip
def test_profiles_are_yaml(text, profiles, tmp_path):
    (tmp_path / "profile.yaml").write_text(text, encoding="utf-8", newline="")
    assert {name: voice.profile for name, voice in list_voices(tmp_path).items()} == {
        f"profile:{name}": profile for name, profile in profiles.items()
    }


@pytest.mark.parametrize("name", ["../anna", "anna.wav", "", "."])
def test_a_name_is_not_a_path(name, folder):
    with pytest.raises(PromptError, match="voice must be in the folder of voices"):
        find_voice(name, folder)


def test_an_empty_folder_has_no_voices(tmp_path):
    assert list_voices(tmp_path) == {}
    with pytest.raises(PromptError, match=r"voice must be in the folder of voices \(empty\), got 'anna'"):
        find_voice("anna", tmp_path)


def test_no_folder(tmp_path, monkeypatch):
    monkeypatch.delenv(VOICES_VARIABLE, raising=False)
    with pytest.raises(PromptError, match=f"must be given, or named by {VOICES_VARIABLE}, got neither"):
        list_voices()
    with pytest.raises(PromptError, match=r"the folder of voices must exist, got .*missing"):
        list_voices(tmp_path / "missing")


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("config.json", b"[", "not readable as JSON"),
        ("config.json", b'{"a": "b"}', r"entry 'a' must be {.*}, got 'b'"),
        ("config.json", b'{"a": {"audio_file": "a.wav", "transcript": 3}}', "entry 'a' must be .*, got {'audio_file'"),
        ("profile.yaml", b"profiles: [1,2", "line 1 can't be read as YAML: expected ',' or ']'"),
        (
            "profile.yaml",
            b"profiles:\n  a: clear: very\n",
            "line 2 can't be read as YAML: .* texts with ': ' or ' #' need quotes",
        ),
        ("profile.yaml", b"profiles:\n\ta: b\n", "line 2 can't be read as YAML"),
        ("profile.yaml", b"profiles: {a: b}\x01", "can't be read as YAML: unacceptable character"),
        ("profile.yaml", b"profiles: " + b"[" * 5000, "can't be read as YAML: maximum recursion depth"),
        ("profile.yaml", b"profiles: [1, 2]", "must hold `profiles:` and below it, .*, got {'profiles'"),
        ("profile.yaml", b"profiles:\na: b\n", "must hold `profiles:`"),
        ("profile.yaml", b"a: b\n", "must hold `profiles:`"),
        ("profile.yaml", b"", "must hold `profiles:`"),
        ("profile.yaml", b"profiles:\n  a: [b]\n", "profiles must be NAME: DESCRIPTION, got 'a'"),
        ("profile.yaml", b"profiles:\n  a:\n", "profiles must be NAME: DESCRIPTION, got 'a'"),
        ("profile.yaml", b"profiles:\n  '': b\n", "profiles must be NAME: DESCRIPTION, got '': 'b'"),
        ("a.txt", b"\xff", "can't be read as UTF-8 text"),
    ],
)
def test_files_that_cannot_be_read(name, content, error, tmp_path):
    (tmp_path / "a.wav").write_bytes(b"")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PromptError, match=error) as raised:
        list_voices(tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({}, "a voice must have reference_audio or a profile, got neither"),
        ({"reference_audio": "a.wav", "profile": "x"}, "a voice must have reference_audio or a profile, got both"),
        ({"profile": "x", "reference_text": "y"}, "reference_text of a voice with a profile must be None, got 'y'"),
    ],
)
def test_a_voice_is_a_recording_or_a_description(fields, error):
    with pytest.raises(PromptError, match=error):
        Voice(**fields)


def test_a_voice_is_checked_without_a_model(tmp_path):
    soundfile.write(tmp_path / "anna.wav", syllables(5), RATE)
    assert check_voice(Voice(tmp_path / "anna.wav", "Words as many as fit into it.")) == []
    assert check_voice(Voice(str(tmp_path / "anna.wav"))) == ["its words are not given; with them a clone is closer"]
    assert check_voice(Voice(profile="old")) == []
    with pytest.raises(AudioError, match=r"audio must be an existing file .*missing\.wav"):
        check_voice(Voice(tmp_path / "missing.wav"))


def test_choosing_voices(tmp_path):
    (tmp_path / "anna.wav").touch()
    anna, old = Voice(tmp_path / "anna.wav"), Voice(profile="old")
    assert choose_voices() == []
    assert choose_voices("anna, anna", voices_folder=tmp_path) == [anna, anna]
    assert choose_voices(["anna", old], voices_folder=tmp_path) == [anna, old]
    assert choose_voices(old) == [old]
    assert choose_voices(reference_audio="a.wav", reference_text=" words ") == [Voice("a.wav", "words")]
    assert choose_voices(reference_audio="a.wav", reference_text=" ") == [Voice("a.wav")]
    with pytest.raises(PromptError, match="voice must be None if reference_audio is given, got 'anna'"):
        choose_voices("anna", "a.wav")
    with pytest.raises(PromptError, match="reference_text must be None without reference_audio, got 'words'"):
        choose_voices(reference_text="words")
    for voice in (5, [5], [old, 5]):
        with pytest.raises(ParameterError, match="voice must be a name, a Voice, or a list of these, got int"):
            choose_voices(voice)
    with pytest.raises(ParameterError, match="reference_text must be a string or None, got 5"):
        choose_voices(reference_text=5)
