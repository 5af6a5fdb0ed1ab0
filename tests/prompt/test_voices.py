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


def test_all_layouts_stand_side_by_side(folder):
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


def test_an_unknown_voice_is_named_with_those_available(folder):
    with pytest.raises(PromptError) as error:
        find_voice("zoe", folder)
    assert str(error.value) == (
        "unknown voice 'zoe'; available: anna, bare, carl, dora, profile:male_en, profile:quoted"
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
def test_a_name_is_no_path(name, folder):
    with pytest.raises(PromptError, match="unknown voice"):
        find_voice(name, folder)


def test_an_empty_folder_has_no_voices(tmp_path):
    assert list_voices(tmp_path) == {}
    with pytest.raises(PromptError, match="available: none"):
        find_voice("anna", tmp_path)


def test_no_folder(tmp_path, monkeypatch):
    monkeypatch.delenv(VOICES_VARIABLE, raising=False)
    with pytest.raises(PromptError, match=f"set {VOICES_VARIABLE}"):
        list_voices()
    with pytest.raises(PromptError, match="does not exist"):
        list_voices(tmp_path / "missing")


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("config.json", b"[", "not readable as JSON"),
        ("config.json", b'{"a": "b"}', "expected an audio_file and a transcript for 'a'"),
        ("config.json", b'{"a": {"audio_file": "a.wav", "transcript": 3}}', "expected an audio_file"),
        ("profile.yaml", b"profiles: [1,2", "line 1: no YAML: expected ',' or ']'"),
        (
            "profile.yaml",
            b"profiles:\n  a: clear: very\n",
            "line 2: no YAML: .* expected quotes around a text with ': '",
        ),
        ("profile.yaml", b"profiles:\n\ta: b\n", "line 2: no YAML"),
        ("profile.yaml", b"profiles: {a: b}\x01", "no YAML: unacceptable character"),
        ("profile.yaml", b"profiles: " + b"[" * 5000, "no YAML: maximum recursion depth"),
        ("profile.yaml", b"profiles: [1, 2]", "expected a line `profiles:` and below it, indented, lines NAME: DESCR"),
        ("profile.yaml", b"profiles:\na: b\n", "expected a line `profiles:`"),
        ("profile.yaml", b"a: b\n", "expected a line `profiles:`"),
        ("profile.yaml", b"", "expected a line `profiles:`"),
        ("profile.yaml", b"profiles:\n  a: [b]\n", "expected a description in words for 'a'"),
        ("profile.yaml", b"profiles:\n  a:\n", "expected a description in words for 'a'"),
        ("profile.yaml", b"profiles:\n  '': b\n", "expected a description in words for ''"),
        ("a.txt", b"\xff", "not readable as UTF-8"),
    ],
)
def test_files_that_cannot_be_read(name, content, error, tmp_path):
    (tmp_path / "a.wav").write_bytes(b"")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PromptError, match=error) as raised:
        list_voices(tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "fields", [{}, {"reference_audio": "a.wav", "profile": "x"}, {"profile": "x", "reference_text": "y"}]
)
def test_a_voice_is_a_recording_or_a_description(fields):
    with pytest.raises(PromptError):
        Voice(**fields)


def test_a_voice_is_checked_without_a_model(tmp_path):
    soundfile.write(tmp_path / "anna.wav", syllables(5), RATE)
    assert check_voice(Voice(tmp_path / "anna.wav", "Words as many as fit into it.")) == []
    assert check_voice(Voice(str(tmp_path / "anna.wav"))) == ["its words are not given; with them a clone is closer"]
    assert check_voice(Voice(profile="old")) == []
    with pytest.raises(AudioError, match="is no file"):
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
    with pytest.raises(PromptError, match="both a voice and reference audio"):
        choose_voices("anna", "a.wav")
    with pytest.raises(PromptError, match="without reference audio"):
        choose_voices(reference_text="words")
    for voice in (5, [5], [old, 5]):
        with pytest.raises(ParameterError, match="voice must be a name, a Voice, or a list of these, got a int"):
            choose_voices(voice)
    with pytest.raises(ParameterError, match="reference_text must be a string or None, got 5"):
        choose_voices(reference_text=5)
