"""Words become phonemes: by a dictionary, its inflections, and what stands beside them."""

import pytest

from higgs_native.english.pronunciation import Pronouncer


ENTRIES = {
    "A": "ˈA",
    "I": "ˈI",
    "M": "ˈɛm",
    "P": "pˈi",
    "S": "ˈɛs",
    "U": "jˈu",
    "apple": "ˈæpᵊl",
    "cat": "kˈæt",
    "want": "wˈɑnt",
    "wish": "wˈɪʃ",
    "stop": "stˈɑp",
    "city": "sˈɪɾi",
    "Paris": "pˈɛɹəs",
    "NASA": "nˈæsə",
    "record": {"DEFAULT": "ɹəkˈɔɹd", "NOUN": "ɹˈɛkəɹd"},
    "read": {"DEFAULT": "ɹˈid", "VBD": "ɹˈɛd", "VBN": "ɹˈɛd"},
    "that": {"DEFAULT": "ðæt", "None": "ðˈæt"},
    "have": "hæv",
    "it": "ɪt",
    "is": "ɪz",
    "to": "tu",
    "am": "æm",
    "don't": "dˈOnt",
}


@pytest.fixture(scope="module")
def pronouncer():
    return Pronouncer(ENTRIES)


@pytest.mark.parametrize(
    ("text", "phonemes"),
    [
        ("The cat, the apple.", "ðə kˈæt, ði ˈæpᵊl."),
        ("A cat to stop; to it. To!", "ɐ kˈæt tə stˈɑp; tʊ ɪt. tu!"),
        ("I am; am I that? That cat.", "ˌI æm; ɐm ˌI ðˈæt? ðæt kˈæt."),
        ("cats wishes stopped wanted stopping cities", "kˈæts wˈɪʃᵻz stˈɑpt wˈɑntᵻd stˈɑpɪŋ sˈɪTiz"),
        ("The cat's apple is Paris's.", "ðə kˈæts ˈæpᵊl ɪz pˈɛɹəsᵻz."),
        ("the record; I record", "ðə ɹˈɛkəɹd; ˌI ɹəkˈɔɹd"),
        ("I read it. I have read it.", "ˌI ɹˈid ɪt. ˌI hæv ɹˈɛd ɪt."),
        ("at PM, U S A", "pˌiˈɛm, jˈu ˈɛs ˈA"),
        ("NASA is paris", "nˈæsə ɪz pˈɛɹəs"),
        ("used to used", "jˈust tə jˈuzd"),
        ("“Don’t stop”, (it is) …", "dˈOnt stˈɑp, ɪt ɪz…"),
        ("city-cat", "sˈɪTi kˈæt"),
    ],
)
def test_phonemes(pronouncer, text, phonemes):
    assert pronouncer.phonemes(text)[0] == phonemes


def test_words_that_nothing_is_known_of(pronouncer):
    assert pronouncer.phonemes("The zorb is Zorbing.") == ("ðə ɪz.", ["zorb", "Zorbing"])
    guessing = Pronouncer(ENTRIES, unknown=lambda word: f"<{word}>")
    assert guessing.phonemes("The Zorb is.") == ("ðə <zorb> ɪz.", [])
    assert guessing.phonemes("…") == ("", [])


def test_british_endings():
    british = Pronouncer({"want": "wˈɒnt", "wish": "wˈɪʃ", "bring": "bɹˈɪŋ"}, british=True)
    assert british.phonemes("wanted wishes bringing")[0] == "wˈɒntɪd wˈɪʃɪz bɹˈɪŋɪŋ"
