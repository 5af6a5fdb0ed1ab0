import json
import os

import pytest
import soundfile

from higgs_native.cli import main
from higgs_native.errors import MAX_MESSAGE, AudioError, ParameterError, PromptError
from higgs_native.prompt.voices import (
    Voice,
    check_voice,
    choose_voices,
    find_voice,
    list_voices,
    read_voice,
)
from higgs_native.utils.variables import VOICES_VARIABLE
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


def test_a_folder_in_the_folder_is_a_voice_with_several_recordings(tmp_path):
    for name in ("1", "2", ".3"):
        (tmp_path / "eva").mkdir(exist_ok=True)
        (tmp_path / "eva" / f"{name}.wav").write_bytes(b"")
        (tmp_path / "eva" / f"{name}.txt").write_text(f"Words {name}.", encoding="utf-8")
    (tmp_path / "empty").mkdir()
    (tmp_path / "anna").mkdir()
    (tmp_path / "anna" / "1.wav").write_bytes(b"")
    (tmp_path / "anna.wav").write_bytes(b"")
    second = Voice(tmp_path / "eva" / "2.wav", "Words 2.")
    eva = Voice(tmp_path / "eva" / "1.wav", "Words 1.", more_recordings=[second])
    assert list_voices(tmp_path) == {"anna": Voice(tmp_path / "anna.wav"), "eva": eva}
    assert eva.words == "Words 1. Words 2."
    assert [item.reference_text for item in eva.recordings] == ["Words 1.", "Words 2."]


@pytest.mark.parametrize(
    ("more", "error"),
    [
        ("b.wav", "each of more_recordings must be of the class Voice, got str"),
        ([Voice(profile="male")], "each of more_recordings must be a voice with one recording, got 0"),
        ([Voice("b.wav", more_recordings=[Voice("c.wav")])], "must be a voice with one recording, got 2"),
        (3, "more_recordings must be of the class Sequence, got int"),
    ],
)
def test_more_recordings_are_voices_with_one(more, error):
    with pytest.raises(ParameterError, match=error):
        Voice("a.wav", "Hello.", more_recordings=more)
    with pytest.raises(PromptError, match="more_recordings of a voice with a profile must be empty, got 1"):
        Voice(profile="male", more_recordings=[Voice("a.wav")])


def test_the_advice_on_several_recordings_names_each():
    words = "These are about as many words as one says in five seconds of speech."
    voice = Voice((syllables(5), RATE), words, more_recordings=[Voice((syllables(1), RATE), "Words.")])
    (advice,) = check_voice(voice.more_recordings[0])
    assert check_voice(voice) == [f"recording 2: {advice}"]


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


def test_hidden_files_are_no_voices(tmp_path):
    for name in ("anna.wav", "._anna.wav", ".wav", ".hidden.mp3", "carl.M4A", "dora.webm", "no.voice"):
        (tmp_path / name).touch()
    assert list(list_voices(tmp_path)) == ["anna", "carl", "dora"]


@pytest.mark.parametrize("order", [1, -1])
def test_of_several_files_of_one_name_the_first_suffix_is_the_voice(order, tmp_path):
    names = ["anna.wav", "anna.mp3", "anna.FLAC", "bob.ogg", "bob.mp3", "bob.wma"]
    for name in names[::order]:
        (tmp_path / name).touch()
    assert list_voices(tmp_path) == {"anna": Voice(tmp_path / "anna.wav"), "bob": Voice(tmp_path / "bob.ogg")}


def test_config_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "config.json").write_text('{"änne": {"audio_file": "a.wav"}}', encoding="utf-8-sig")
    assert list_voices(tmp_path) == {"änne": Voice(tmp_path / "a.wav")}


def test_a_file_name_that_is_no_utf_8(tmp_path, capsys):
    path = os.fsencode(tmp_path) + b"/an\xe9.wav"
    with open(path, "wb") as file:
        soundfile.write(file, syllables(5), RATE, format="WAV")
    with open(path[:-4] + b".txt", "w") as file:
        file.write("Words as many as fit into it.")
    assert list(list_voices(tmp_path)) == [r"an\xe9"]
    voice = find_voice(r"an\xe9", tmp_path)
    assert check_voice(voice) == []
    assert read_voice(voice).reference_audio.name == os.fsdecode(path)
    with pytest.raises(SystemExit) as exit:
        main(["voices", str(tmp_path)])
    assert exit.value.code == 0
    assert capsys.readouterr().out == "an\\xe9\tWords as many as fit into it.\n"


def make_sparse(path):
    with path.open("wb") as file:
        file.truncate(2**40)


@pytest.mark.parametrize("name", ["config.json", "profile.yaml", "anna.txt"])
@pytest.mark.parametrize(
    ("make", "error"),
    [
        (os.mkfifo, "can't be read: it is not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "can't be read: it is not a regular file"),
        (lambda path: path.mkdir(), "can't be read: it is not a regular file"),
        (make_sparse, "can't be read: it is larger than [0-9]+ bytes"),
    ],
    ids=["pipe", "device", "folder", "sparse"],
)
def test_texts_and_lists_are_small_regular_files(name, make, error, tmp_path):
    (tmp_path / "anna.wav").touch()
    make(tmp_path / name)
    with pytest.raises(PromptError, match=f"{name} {error}"):
        list_voices(tmp_path)


@pytest.mark.parametrize(
    ("name", "contents"),
    [
        ("config.json", json.dumps({"a\x1b[2J\n" * 1000: "b"})),
        ("config.json", json.dumps({"a": ["\x1b\u202e"] * 100_000})),
        ("config.json", '{"a": ' + "[" * 900 + "]" * 900 + "}"),
        ("config.json", '{"a": {"audio_file": "a.wav", "transcript": "\\ud800"}}'),
        ("config.json", "[" * 100_000),
        ("config.json", '{"a": ' + "9" * 5000 + "}"),
        ("profile.yaml", "profiles: {" + "a" * 100_000 + ": [b]}"),
        ("profile.yaml", 'profiles: {"a\\e[2J\\n": [b]}'),
        # Each line doubles the size of what is written out.
        ("profile.yaml", "a0: &a0 [b, b]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 99))),
        ("profile.yaml", "a: &a [*a]\n"),
        ("profile.yaml", 'profiles: {a: "\\ud800"}'),
        ("profile.yaml", 'profiles: {a: "\\Uffffffff"}'),
        ("profile.yaml", f"%YAML {'9' * 5000}.1\n---\na: b"),
    ],
    ids=range(13),
)
def test_refusals_are_one_short_line(name, contents, tmp_path):
    (tmp_path / name).write_text(contents, encoding="utf-8")
    with pytest.raises(PromptError, match=name) as raised:
        list_voices(tmp_path)
    message = str(raised.value)
    assert message.isprintable()
    assert len(message) <= MAX_MESSAGE


def test_listed_voices_are_lines(tmp_path, capsys):
    soundfile.write(tmp_path / "a\x1b[31m\nb.wav", syllables(5), RATE)
    (tmp_path / "a\x1b[31m\nb.txt").write_text("one\n\x1b[2Jtwo " + "three " * 10_000, encoding="utf-8")
    (tmp_path / "profile.yaml").write_text("profiles:\n  c: |\n    slow\n    and low\n", encoding="utf-8")
    with pytest.raises(SystemExit) as exit:
        main(["voices", str(tmp_path)])
    assert exit.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("a\\x1b[31m b\tone [2Jtwo three three")
    assert lines[1:] == ["    its words are too many for 5.0 s of speech", "profile:c\tslow and low"]
    assert all(line.replace("\t", "").isprintable() and len(line) < 2 * MAX_MESSAGE for line in lines)


def test_the_words_of_a_voice_are_visible():
    words = Voice("a.wav", "\ufeff Hel\u200blo\u00ad there.\u200e\n")
    assert words == Voice("a.wav", "Hello there.")
    assert Voice("a.wav", " \u200b") == Voice("a.wav")
    assert Voice("a.wav", "[pause] Hello [pause:1s] there. [pause:9]") == Voice("a.wav", "Hello there.")
    assert Voice("a.wav", "[speed:2] Hello [speed] there. [speed:9]") == Voice("a.wav", "Hello there.")
    assert Voice(profile="\ufeffold") == Voice(profile="old")
    for fields in ({"reference_audio": "a.wav", "reference_text": 5}, {"profile": 5}):
        with pytest.raises(PromptError, match="must be a string, got 5"):
            Voice(**fields)


def test_a_message_never_prints_a_recording():
    voice = Voice("data:audio/wav;base64," + "A" * 100_000)
    with pytest.raises(PromptError, match=r"voice must be None if reference_audio is given, got Voice$"):
        choose_voices(voice, "a.wav")


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
