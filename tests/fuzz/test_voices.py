"""Folders of voices: names of all kinds, damaged lists, and files that are none."""

import json
import os
import random
from pathlib import Path

import yaml

from higgs_native.errors import AudioError
from higgs_native.prompt.voices import Voice, check_voice, choose_voices, find_voice, list_voices, read_voice
from tests.fuzz import mutations
from tests.fuzz.frame import run_cases
from tests.fuzz.test_recordings import FORMATS, encoded


NAMES = (
    *(
        b"anna",
        b"bob",
        b"profile:anna",
        b"._anna",
        b".hidden",
        b"an\xe9",
        b"\xff\xfe",
        b"a b",
        b"a,b",
        b"a\nb",
        b"a\x1b[2J",
    ),
    *("änne".encode(), "你好".encode(), b"a" * 250, b"-i", b"%d", b" ", b"config", b"a.b", "\u202eabc".encode()),
)
SUFFIXES = (b".wav", b".WAV", b".flac", b".mp3", b".m4a", b".txt", b".TXT", b".json", b"")
LISTS = (b"config.json", b"profile.yaml")


def configured(generator: random.Random) -> bytes:
    """Return the contents of a `config.json`, most of them as they should be."""
    entries = {
        mutations.text(generator): {
            "audio_file": generator.choice(
                (*(os.fsdecode(name) + ".wav" for name in NAMES), mutations.text(generator))
            ),
            **({"transcript": mutations.text(generator)} if generator.random() < 0.5 else {}),
        }
        for _ in range(generator.randrange(5))
    }
    if generator.random() < 0.3:
        entries[mutations.text(generator)] = mutations.value(generator)
    contents = json.dumps(entries if generator.random() < 0.9 else mutations.value(generator)).encode()
    contents = b"\xef\xbb\xbf" * generator.randrange(2) + contents
    return mutations.mutated(contents, generator) if generator.random() < 0.3 else contents


def described(generator: random.Random) -> bytes:
    """Return the contents of a `profile.yaml`."""
    if generator.random() < 0.1:
        unit = generator.choice(("[", "{", "- ", "a: ", "&a ", "? ", "'", "|\n", "a: &a [*a]\n", "!!python/none "))
        return (unit * generator.randint(1, 3000)).encode()
    names = [text for text in mutations.TEXTS if text.strip() and text.isprintable() and len(text) < 99]
    profiles = dict.fromkeys(generator.sample(names, 3), "male; old")
    if generator.random() < 0.3:
        profiles[mutations.text(generator)] = mutations.value(generator)
    contents = yaml.safe_dump({"profiles": profiles}).encode(errors="surrogatepass")
    return mutations.mutated(contents, generator) if generator.random() < 0.5 else contents


def make_file(generator: random.Random, folder: Path) -> None:
    is_list = generator.random() < 0.4
    name = generator.choice(LISTS) if is_list else generator.choice(NAMES) + generator.choice(SUFFIXES)
    path = os.path.join(os.fsencode(folder), name)
    if os.path.lexists(path):
        return
    match generator.randrange(60):
        case 0:
            os.mkfifo(path)
        case 1:
            os.symlink(generator.choice((b"/dev/zero", b"/dev/full", b"missing", name, b"/proc/self/mem", b".")), path)
        case 2:
            os.mkdir(path)
        case 3:
            with open(path, "wb") as file:
                file.truncate(2**40)
        case _:
            if is_list:
                contents = configured(generator) if name == b"config.json" else described(generator)
            elif name.lower().endswith(b".txt"):
                contents = mutations.mutated(mutations.text(generator).encode(errors="surrogatepass"), generator)
            else:
                contents = mutations.mutated(encoded(generator.randrange(len(FORMATS))), generator)
            Path(os.fsdecode(path)).write_bytes(contents)


def case(generator: random.Random, folder: Path) -> None:
    for _ in range(generator.randint(1, 8)):
        make_file(generator, folder)
    voices = list_voices(folder)
    assert list(voices) == sorted(voices)
    for name, voice in voices.items():
        assert find_voice(name, folder) == voice
        assert voice == Voice(voice.reference_audio, voice.reference_text, voice.profile)
        try:
            read = read_voice(voice)
            advice = check_voice(voice)
        except AudioError:
            continue
        assert all(line.isprintable() for line in advice)
        assert read.profile is not None or read.reference_audio.name == os.fspath(voice.reference_audio)
    if generator.random() < 0.3:
        choose_voices(generator.choice((*voices, *mutations.TEXTS)), voices_folder=folder)


def test_voices(tmp_path, record_property):
    run_cases("voices", 0.1, case, tmp_path, record_property)
