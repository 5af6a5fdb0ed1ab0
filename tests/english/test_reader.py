"""Text to phonemes, from the files that a voice comes with."""

import lzma

import pytest
import torch
from safetensors.torch import save_file

from higgs_native.english.guess import Guesser
from higgs_native.english.reader import DICTIONARY_FILE, GUESSER_FILE, Reader, read_dictionary, write_dictionary


ENTRIES = {
    "us": {"cat": "kˈæt", "five": "fˈIv", "record": {"DEFAULT": "ɹəkˈɔɹd", "NOUN": "ɹˈɛkəɹd"}, "only": "ˈOnli"},
    "gb": {"cat": "kˈat", "five": "fˈIv", "record": {"DEFAULT": "ɹɪkˈɔːd", "NOUN": "ɹˈɛkɔːd", "VERB": None}},
}


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    path = tmp_path_factory.mktemp("reader")
    write_dictionary(path / DICTIONARY_FILE, ENTRIES)
    torch.manual_seed(0)
    model = Guesser(width=32, inner=64, layers=1)
    save_file(model.state_dict(), path / GUESSER_FILE, {name: str(value) for name, value in model.shape.items()})
    return Reader(path)


def test_a_dictionary_is_read_as_it_was_written(tmp_path):
    write_dictionary(tmp_path / "words", ENTRIES)
    expected = {**ENTRIES, "gb": {**ENTRIES["gb"], "record": {"DEFAULT": "ɹɪkˈɔːd", "NOUN": "ɹˈɛkɔːd"}}}
    found = read_dictionary(tmp_path / "words")
    assert {accent: dict(entries) for accent, entries in found.items()} == expected
    for accent, entries in found.items():
        assert len(entries) == len(expected[accent])
        for word in ("", "aa", "cats", "zz", "é", *ENTRIES["us"]):
            assert entries.get(word) == expected[accent].get(word)


def test_a_damaged_line_is_no_error(tmp_path):
    (tmp_path / "words").write_bytes(lzma.compress("cat\tkˈæt\n".encode() + b"dog\t\xff\t\n"))
    found = read_dictionary(tmp_path / "words")
    assert (found["us"]["cat"], found["gb"].get("cat"), found["us"]["dog"]) == ("kˈæt", None, "\ufffd")


def test_both_accents(reader):
    assert reader.phonemes("5 cats; the record.") == ("fˈIv kˈæts; ðə ɹˈɛkəɹd.", [])
    assert reader.phonemes("5 cats; the record.", "gb") == ("fˈIv kˈats; ðə ɹˈɛkɔːd.", [])


def test_speakers_stay(reader):
    assert reader.phonemes("[SPEAKER0] The cat.\n[SPEAKER1] 5!")[0] == "[SPEAKER0] ðə kˈæt.\n[SPEAKER1] fˈIv!"


def test_words_that_are_guessed_and_words_that_cannot_be_read(reader):
    guessed = reader._guesser.guess("zorb")
    assert reader.phonemes("zorb the cat") == (
        " ".join(filter(None, [guessed, "ðə kˈæt"])),
        [] if guessed else ["zorb"],
    )
    assert reader.phonemes("The 猫 cat.") == ("ðə kˈæt.", ["猫"])


def test_a_name_is_guessed_once(reader, monkeypatch):
    guessed = []
    monkeypatch.setattr(reader._guesser, "guess", lambda word, british: guessed.append((word, british)) or "zˈɔɹb")
    assert reader.phonemes("Snorble! The cat Snorble, Snorble.")[0].count("zˈɔɹb") == 3
    reader.phonemes("Snorble.")
    reader.phonemes("Snorble.", "gb")
    assert guessed == [("snorble", False), ("snorble", True)]


def test_time_is_linear_in_white_space(reader):
    """With quadratic time this takes minutes."""
    assert reader.phonemes("The cat." + "\n" * 300_000 + "5!") == ("ðə kˈæt. fˈIv!", [])
