"""The recipe of the voice that reads any text: what is said, and shards that survive a kill. Needs no download."""

import json
import random
import signal
import string
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest


sys.path.append(str(Path(__file__).resolve().parents[1] / "examples" / "train_voice"))
from recipe import dictionary, folder, sentences, shards, teacher, texts
from recipe.composed import Composer


RECIPE = sys.path[-1]
_WORDS = ["the", "a", "cat", "dog", "sees", "hears", "and", "but", "with", "old", "red", "house", "one", "two", "six"]


@pytest.fixture(scope="module")
def materials(tmp_path_factory):
    """A dictionary of a few words, and texts of them."""
    path = tmp_path_factory.mktemp("materials")
    entries = {word: f"{word[0]}ˈæ{word[-1]}" for word in _WORDS}
    entries |= {letter: f"{letter.lower()}ˈi" for letter in string.ascii_uppercase}
    entries |= {"Rex": "ɹˈɛks", "Tom": "tˈɑm"}
    (path / "dictionary").mkdir()
    for accent in ("us", "gb"):
        (path / "dictionary" / f"{accent}_gold.json").write_text(json.dumps(entries))
        (path / "dictionary" / f"{accent}_silver.json").write_text(json.dumps({"cat": "wrong"}))
    (path / "texts").mkdir()
    rng = random.Random(0)
    for source in sentences.SOURCES:
        lines = [" ".join(rng.choices(_WORDS, k=rng.randint(4, 30))).capitalize() + "." for _ in range(60)]
        lines.append("The cat sees a xylophone.")
        (path / "texts" / f"{source}.txt").write_text("\n".join(lines))
    (path / "texts" / "frequent_words.txt").write_text("\n".join([*_WORDS, "xylophone"]))
    return path


@pytest.fixture(scope="module")
def writer(materials):
    return texts.make_writer(materials, seed=0)


def test_an_utterance_depends_on_its_number_alone(writer, materials):
    forward = [writer.utterance(index) for index in range(100)]
    again = texts.make_writer(materials, seed=0)
    assert [again.utterance(index) for index in reversed(range(100))] == forward[::-1]
    assert texts.make_writer(materials, seed=1).utterance(3) != forward[3]
    assert json.loads(json.dumps(forward)) == forward


def test_any_beginning_of_the_utterances_is_a_sample_of_all(writer):
    made = [writer.utterance(index) for index in range(600)]
    heart = sum(utterance["voice"] == "af_heart" for utterance in made)
    assert {utterance["voice"] for utterance in made[:60]} == set(texts.VOICES)
    assert 0.33 < heart / 600 < 0.47
    assert sum(utterance["kind"] in sentences.SOURCES for utterance in made) == 300
    assert all(0.9 <= utterance["speed"] <= 1.1 for utterance in made)
    assert {utterance["text"][-1] for utterance in made} >= set(".?!")
    assert 4 < sum(utterance["held_out"] for utterance in made) < 40


def test_real_sentences_come_once_before_any_comes_twice(writer):
    count = len(writer.sentences["bible"])
    rounds = count // sentences.SOURCES["bible"]
    seen = [writer._real(turn, random.Random("long"))[1] for turn in range(20 * rounds)]
    first = [text.split(". ")[0].rstrip(".") for text in seen]
    per_source = {source: set() for source in sentences.SOURCES}
    for text in first:
        for source, known in per_source.items():
            if any(sentence.startswith(text) for sentence in writer.sentences[source]):
                known.add(text)
    assert len(per_source["bible"]) == rounds * sentences.SOURCES["bible"]


def test_a_held_out_text_is_held_out_in_any_voice_and_punctuation(writer):
    assert texts.is_held_out("The cat, the dog!") == texts.is_held_out("the cat the dog")
    verdicts = {}
    for index in range(2000):
        utterance = writer.utterance(index)
        words = " ".join(word.strip(string.punctuation + "—") for word in utterance["normalized"].lower().split())
        assert verdicts.setdefault(" ".join(words.split()), utterance["held_out"]) == utterance["held_out"]


def test_no_utterance_is_too_long_or_has_unknown_words(writer, materials):
    pronouncers = dictionary.read_pronouncers(materials)
    for index in range(300):
        utterance = writer.utterance(index)
        assert 2 <= len(utterance["phonemes"]) <= texts.LONGEST
        spoken, missing = pronouncers[dictionary.accent_of(utterance["voice"])].phonemes(utterance["normalized"])
        assert (spoken, missing) == (utterance["phonemes"], [])
        assert "wrong" not in spoken
    assert not any("xylophone" in sentence for known in writer.sentences.values() for sentence in known)
    long = "The cat sees the dog, " * 40 + "and the dog hears the cat."
    cut = writer._shortened(long, pronouncers["us"])
    assert len(pronouncers["us"].phonemes(cut)[0]) <= texts.LONGEST
    assert long.startswith(cut.rstrip("."))


def test_sentences_of_a_paragraph():
    paragraph = 'Mr. Dog came at 5 p.m. to see. "Is it you?" he said. J. Cat--who else?--ran! The end'
    assert sentences.split_sentences(paragraph) == [
        "Mr. Dog came at 5 p.m. to see.",
        '"Is it you?"',
        "he said.",
        "J. Cat — who else?",
        "— ran!",
        "The end",
    ]
    assert sentences.clean('"is it you?') == "Is it you?"
    assert sentences.clean("a list of things;") == "A list of things."
    for no_sentence in ("Too short.", "12 34 56 (7) 8", "WHY IS THIS SO LOUD?", "für alle Tage", "Births 5.2 7.1 9 3"):
        assert sentences.clean(no_sentence) is None


def test_every_template_can_be_filled(materials):
    known = list(dictionary.read_pronouncers(materials).values())
    composer = Composer(_WORDS, known)
    rng = random.Random(0)
    filled = [composer.sentence(rng) for _ in range(3000)]
    assert not any("{" in sentence or "  " in sentence for sentence in filled)
    assert all(sentence[-1] in ".?!" for sentence in filled)


def _speech(seed: int) -> teacher.Rendered:
    rng = np.random.default_rng(seed)
    frames = int(rng.integers(20, 60))
    return teacher.Rendered(
        audio=rng.normal(0, 0.2, 300 * frames).astype(np.float32),
        f0=rng.uniform(5, 400, frames).astype(np.float32),
        phase=rng.uniform(0, 900, frames).astype(np.float32),
        ends=np.arange(int(rng.integers(4, 12))),
    )


def test_a_shard_gives_back_what_was_written(tmp_path):
    rendered = [_speech(seed) for seed in range(5)]
    path = shards.shard_path(tmp_path, 12)
    seconds = shards.write_shard(path, [{"id": index} for index in range(5)], rendered)
    assert shards.finished_shards(tmp_path) == [12]
    assert shards.seconds_of(path) == seconds == sum(len(speech.audio) for speech in rendered) / 24000
    audio = shards.read_audio(path)
    for line, features, speech in zip(shards.read_utterances(path), shards.read_features(path), rendered, strict=True):
        stored = audio[line["start"] : line["start"] + line["samples"]] / 32767
        np.testing.assert_allclose(stored, speech.audio.clip(-1, 1), atol=1e-4)
        np.testing.assert_allclose(features["f0"], speech.f0, rtol=1e-3)
        np.testing.assert_array_equal(features["phase"], speech.phase)
        np.testing.assert_array_equal(features["ends"], speech.ends)


_WRITE_SHARDS = """
import sys
import numpy as np
from pathlib import Path
from recipe.shards import finished_shards, shard_path, write_shard
from recipe.teacher import Rendered
folder = Path(sys.argv[1])
for number in range(30):
    if number not in finished_shards(folder):
        values = np.full(30000, number / 100, np.float32)
        speech = [Rendered(values, values[:100], values[:100], np.full(9, number))] * 4
        write_shard(shard_path(folder, number), [{"id": number}] * 4, speech)
        print(number, flush=True)
"""


def test_shards_are_whole_or_absent_after_a_kill(tmp_path):
    delays = random.Random(0)
    for _ in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", _WRITE_SHARDS, str(tmp_path)], cwd=RECIPE, stdout=subprocess.PIPE
        )
        process.stdout.readline()  # so that the kill comes while it writes
        time.sleep(delays.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        process.wait()
        for number in shards.finished_shards(tmp_path):
            path = shards.shard_path(tmp_path, number)
            assert len(shards.read_audio(path)) == 120000
            assert [int(features["ends"][0]) for features in shards.read_features(path)] == [number] * 4
    finished = shards.finished_shards(tmp_path)
    assert finished
    done = subprocess.run(
        [sys.executable, "-c", _WRITE_SHARDS, str(tmp_path)], cwd=RECIPE, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [str(number) for number in range(30) if number not in finished]
    assert sorted(path.name for path in (tmp_path / "shards").iterdir()) == [f"{number:05}" for number in range(30)]


def test_a_step_runs_once_in_a_folder(tmp_path):
    with folder.only_one(tmp_path, "render"):
        with pytest.raises(SystemExit, match="render runs already"), folder.only_one(tmp_path, "render"):
            pass
        with folder.only_one(tmp_path, "screen"):
            pass
    with folder.only_one(tmp_path, "render"):
        pass
