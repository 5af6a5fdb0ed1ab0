"""The recipe of the voice that reads any text: what is said, and shards that survive a kill. Needs no download."""

import contextlib
import hashlib
import io
import json
import random
import re
import shutil
import string
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from higgs_native.audio_tokenizer.tokenizer import HiggsAudioTokenizer
from higgs_native.english.guess import Guesser, encode_letters
from higgs_native.english.reader import Reader
from higgs_native.pipeline import HiggsAudio
from higgs_native.prompt.chat import build_prompt, speech_messages
from higgs_native.prompt.voices import Voice


sys.path.append(str(Path(__file__).resolve().parents[1] / "examples" / "train_voice"))
import quantizer
from codec_networks import AcousticDecoder, AcousticEncoder
from language_model import LanguageModel
from recipe import (
    codes,
    dictionary,
    export,
    folder,
    frames,
    judge,
    phoneme_tokenizer,
    pool,
    report,
    screen,
    sentences,
    sequences,
    shards,
    speech_quantizer,
    steps,
    teacher,
    texts,
    tokenizer_networks,
    train_decoder,
    train_encoder,
    train_guesser,
    train_language_model,
)
from recipe import materials as materials_step
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
        words = " ".join(re.sub(r"[^\w']", "", word) for word in utterance["normalized"].lower().split())
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


# Each writer is forked from a process that has imported torch, which takes seconds.
_KILL_WRITERS = """
import os, random, signal, sys, time
import numpy as np
from pathlib import Path
from recipe import shards
from recipe.teacher import Rendered

folder, delays = Path(sys.argv[1]), random.Random(0)

def start():
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        for number in set(range(30)) - set(shards.finished_shards(folder)):
            values = np.full(30000, number / 100, np.float32)
            speech = [Rendered(values, values[:100], values[:100], np.full(9, number))] * 4
            shards.write_shard(shards.shard_path(folder, number), [{"id": number}] * 4, speech)
            os.write(writer, bytes([number]))
        os._exit(0)
    os.close(writer)
    return process, reader

for _ in range(6):
    process, reader = start()
    os.read(reader, 1)  # so that the kill comes while it writes
    time.sleep(delays.uniform(0, 0.05))
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    for number in shards.finished_shards(folder):
        path = shards.shard_path(folder, number)
        assert len(shards.read_audio(path)) == 120000
        assert [int(features["ends"][0]) for features in shards.read_features(path)] == [number] * 4
finished = shards.finished_shards(folder)
assert 6 <= len(finished) < 30, finished
process, reader = start()
assert os.waitpid(process, 0)[1] == 0
assert sorted([*finished, *os.read(reader, 30)]) == list(range(30))
assert sorted(path.name for path in (folder / "shards").iterdir()) == [f"{number:05}" for number in range(30)]
"""


def test_shards_are_whole_or_absent_after_a_kill(tmp_path):
    program = [sys.executable, "-c", _KILL_WRITERS, str(tmp_path)]
    finished = subprocess.run(program, cwd=RECIPE, stderr=subprocess.PIPE, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


def test_a_step_runs_once_in_a_folder(tmp_path):
    with folder.only_one(tmp_path, "render"):
        with pytest.raises(SystemExit, match="render runs already"), folder.only_one(tmp_path, "render"):
            pass
        with folder.only_one(tmp_path, "screen"):
            pass
    with folder.only_one(tmp_path, "render"):
        pass


def test_errors_are_laid_to_the_utterance_where_they_are():
    pytest.importorskip("rapidfuzz")
    assert screen.errors_by_part(["abc", "def", "ghi"], "abcxefghi") == [0, 1, 0]
    assert screen.errors_by_part(["abc", "def"], "abcdefgg") == [0, 2]
    assert screen.errors_by_part(["abc", "def"], "") == [3, 3]


def test_windows_hold_what_fits():
    lengths = [10.0, 10.0, 10.0, 27.0, 1.0, 40.0]
    groups = screen.windows(lengths)
    assert groups == [[0, 1], [2], [3], [4], [5]]
    assert screen.bare("ðə kˈæt, wˌɒz hˈɪə: ɑː!") == "ðəkætwɒzhɪəɑ"


def _voiced(seconds: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A tone of three harmonics whose pitch glides, between silences: audio int16, F0 and phase as the teacher's."""
    rng = np.random.default_rng(seed)
    frames = int(seconds * 80)
    f0 = np.linspace(*rng.uniform(90, 260, 2), frames).astype(np.float32)
    f0[: frames // 5] = f0[-frames // 5 :] = 6
    phase = np.cumsum(f0 / 80)
    fine = np.interp((np.arange(300 * frames) + 0.5) / 300 - 0.5, np.arange(frames), phase)
    loud = np.repeat(f0 > 45, 300)
    # A cosine, so that its own phase is the source's.
    audio = loud * sum(0.2 / k * np.cos(2 * np.pi * k * fine) for k in (1, 2, 3))
    return (audio * 32767).astype(np.int16), f0, phase


def test_frames_tell_pitch_and_phase():
    audio, f0, phase = _voiced(2.0, seed=0)
    cut = frames.cut(audio, f0, phase, gain=0.5)
    count = len(cut.f0)
    assert len(cut.audio) == 960 * count
    assert len(cut.fine_phase) == 160 * count
    begin = np.flatnonzero(np.abs(audio) > 300)[0] - frames.LEAD
    middles = begin + 960 * (np.arange(count) + 0.5)
    inner = np.arange(2, count - 4)
    expected = np.interp(middles / 300 - 0.5, np.arange(len(f0)), phase)
    turned = np.diff(expected, prepend=0) * 25
    np.testing.assert_allclose(cut.f0[inner], turned[inner], rtol=0.02)
    steps_of_phase = np.diff(cut.phase[inner]) - 0.04 * cut.f0[inner][1:]
    np.testing.assert_allclose(steps_of_phase, steps_of_phase.round(), atol=1e-3)
    turned = (cut.phase - expected)[inner]
    assert np.abs(turned - turned.round()).max() < 0.03
    assert np.abs(cut.audio[:900]).max() < 1e-3
    assert cut.f0[0] == cut.f0[-1] == 0
    assert np.isnan(cut.fine_phase[:100]).all()
    np.testing.assert_allclose(cut.audio[10 * 960 : 11 * 960], audio[begin + 9600 :][:960] / 32767 / 2, atol=1e-4)
    with pytest.raises(ValueError, match="audio must not be silent"):
        frames.cut(np.zeros(3000, np.int16), f0[:10], phase[:10], 1.0)


@pytest.fixture(scope="module")
def spectral_noise():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3000, 96, generator=generator) @ torch.randn(96, 96, generator=generator)


def test_codes_hold_pitch_and_phase(spectral_noise, tmp_path):
    fitted = speech_quantizer.fit(spectral_noise, pitch=True)
    fitted.save(tmp_path / "quantizer.safetensors")
    fitted = speech_quantizer.Quantizer.load(tmp_path / "quantizer.safetensors")
    f0 = torch.tensor([0.0, 60.0, 123.0, 200.0, 410.0, 590.0])
    phase = torch.tensor([0.0, 0.1, 0.33, 0.5, 0.77, 0.99])
    latents = fitted.latents(spectral_noise[:6], f0, phase)
    codes = fitted.encode(latents)
    assert (
        codes[speech_quantizer.PITCH_LEVEL, 0] == codes[speech_quantizer.PHASE_LEVEL, 0] == speech_quantizer.UNVOICED
    )
    found = fitted.decode(codes)
    height = found[1:, speech_quantizer.SPECTRAL]
    lowest, highest = speech_quantizer.LOWEST_F0, speech_quantizer.HIGHEST_F0
    pitch = lowest * (highest / lowest) ** ((height + 3) / 6)
    torch.testing.assert_close(pitch, f0[1:], rtol=0.006, atol=0)
    start = speech_quantizer.SPECTRAL + quantizer.DIMENSION
    turn = torch.atan2(found[1:, start + 1], found[1:, start]) / (2 * torch.pi)
    off = turn - phase[1:]
    assert (off - off.round()).abs().max() <= 0.5 / speech_quantizer.PHASES + 1e-4
    # The spectrum is quantized as it would be by itself, by the levels that are left.
    other = fitted.encode(fitted.latents(spectral_noise[:6], f0.flip(0), phase.flip(0)))
    spectral = [0, 2, 3, 4, 5, 6]
    assert torch.equal(other[spectral], codes[spectral])
    plain = speech_quantizer.fit(spectral_noise, pitch=False)
    assert plain.latent == speech_quantizer.SPECTRAL
    assert plain.decode(plain.encode(plain.latents(spectral_noise, *torch.zeros(2, 3000)))).shape == (3000, 64)


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """A folder with two small shards of tones, and their codes."""
    path = tmp_path_factory.mktemp("rendered")
    for number in range(2):
        speech, lines = [], []
        for index in range(8):
            audio, f0, phase = _voiced(1.5, seed=8 * number + index)
            speech.append(teacher.Rendered(audio / 32767, f0, phase, np.arange(12)))
            text = "the cat sees a dog" if index % 2 else "the dog sees the cat"
            lines.append(
                {
                    "id": 8 * number + index,
                    "kind": "composed" if index else "words",
                    "text": text,
                    "normalized": text,
                    "phonemes": "ðə kˈæt sˈiz ɐ dˈɔɡ.",
                    "voice": list(texts.VOICES)[index % 6],
                    "held_out": index % 4 == 3,
                }
            )
        shards.write_shard(shards.shard_path(path, number), lines, speech)
    folder.write_json(path / "gains.json", dict.fromkeys(texts.VOICES, 0.9))
    for pitch in (True, False):
        _run_step(codes, path, "--fit-shards", "2", *([] if pitch else ["--plain"]))
    return path


def _run_step(step: ModuleType, path: Path, *options: str) -> str:
    """What a step prints, run in this process: torch takes seconds to import."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        patch.setattr(sys, "argv", [step.__name__, "--folder", str(path), *options])
        step.main()
    return printed.getvalue()


def test_codes_of_shards(rendered):
    for name in ("codes", "plain_codes"):
        found, starts = codes.read_codes(rendered / name / "00001.npz")
        assert found.shape == (8, starts[-1])
        assert len(starts) == 9
    assert "shard" not in _run_step(codes, rendered, "--fit-shards", "2")  # they are there
    with pytest.raises(SystemExit, match="shards must be 12 or more to fit to, got 2"):
        _run_step(codes, rendered)


def test_the_pool_keeps_held_out_speech_apart(rendered):
    train = pool.Pool(rendered, pitch=True, held_out=False, size=4, seed=0)
    judged = pool.Pool(rendered, pitch=True, held_out=True, size=4, seed=0)
    counts = [sum(len(shard["f0"]) for shard in one._shards) for one in (train, judged)]
    total = sum(codes.read_codes(rendered / "codes" / f"0000{number}.npz")[1][-1] for number in range(2))
    assert sum(counts) == total
    assert 0.15 < counts[1] / total < 0.35
    clips = train.draw(5, 12)
    assert clips.audio.shape == (5, 12 * 960)
    assert clips.codes.shape == (5, 8, 12)
    assert clips.fine_phase.shape == (5, 12 * 160)
    voiced = clips.codes[:, speech_quantizer.PITCH_LEVEL] > 0
    assert torch.equal(voiced, clips.f0 > 0)


@pytest.mark.parametrize("options", [[], ["--plain"], ["--adversarial"]], ids=["pitch", "plain", "adversarial"])
def test_the_decoder_s_training_goes_on_where_it_was(rendered, options):
    small = ["--batch", "2", "--frames", "8", "--channels", "32", "--device", "cpu", "--log-every", "4"]
    name = train_decoder.training_name("--plain" not in options, "--adversarial" in options)
    first = _run_step(train_decoder, rendered, *small, *options, "--steps", "4")
    assert "step 4 of 4" in first
    again = _run_step(train_decoder, rendered, *small, *options, "--steps", "8")
    assert "goes on at step 4 of 8" in again
    curves = [json.loads(line) for line in (rendered / f"{name}.jsonl").read_text().splitlines()]
    assert [line["step"] for line in curves] == [4, 8]
    network = tokenizer_networks.TaughtDecoder(
        tokenizer_networks.tokenizer_config(96 if "--plain" not in options else 64, 32)
    )
    network.load_state_dict(steps.weights_of(rendered / f"{name}.pt"))


def test_the_decoder_learns_the_phase_before_the_sound(rendered, tmp_path):
    path = tmp_path / "copy"
    shutil.copytree(rendered, path, ignore=shutil.ignore_patterns("*decoder*"))
    small = ["--batch", "1", "--frames", "4", "--channels", "32", "--device", "cpu", "--log-every", "1"]
    for options in ([], ["--plain"]):
        _run_step(train_decoder, path, *small, *options, "--steps", "2")
    curves = {name: (path / f"{name}.jsonl").read_text().splitlines() for name in ("decoder", "plain_decoder")}
    learned = {name: [set(json.loads(line)) - {"step", "seconds"} for line in lines] for name, lines in curves.items()}
    assert learned["decoder"] == [{"phase"}, {"phase", "spectral", "waveform"}]
    assert learned["plain_decoder"] == [{"spectral"}, {"spectral"}]


def test_the_encoder_learns_latents_of_shifted_clips(rendered):
    clips = pool.Pool(rendered, pitch=True, held_out=False, size=2, seed=0).draw(3, 10)
    fitted = speech_quantizer.Quantizer.load(rendered / "codes" / "quantizer.safetensors")
    audio, latents = train_encoder.shifted(clips, fitted, 480, torch.full((3,), 0.5))
    torch.testing.assert_close(audio, clips.audio[:, 480:-480] * 0.5)
    assert latents.shape == (3, 9, fitted.latent)
    found = fitted.encode(latents.flatten(0, 1)).unflatten(1, (3, 9))
    pitches, phases = found[speech_quantizer.PITCH_LEVEL], found[speech_quantizer.PHASE_LEVEL]
    assert torch.equal(pitches > 0, phases > 0)
    # Half a frame later the phase has gone on by half of the frame's turn.
    whole = fitted.encode(train_encoder.shifted(clips, fitted, 0, torch.ones(3))[1].flatten(0, 1)).unflatten(1, (3, 9))
    both = (phases > 0) & (whole[speech_quantizer.PHASE_LEVEL] > 0) & (clips.f0[:, :9] > 0) & (clips.f0[:, 1:] > 0)
    turn = (phases - whole[speech_quantizer.PHASE_LEVEL]) / speech_quantizer.PHASES - 0.02 * clips.f0[:, :9]
    assert (turn - turn.round())[both].abs().max() < 0.1
    small = ["--steps", "4", "--batch", "2", "--frames", "6", "--log-every", "4", "--device", "cpu"]
    assert "step 4 of 4" in _run_step(train_encoder, rendered, *small)


def test_phonemes_are_tokens():
    tokenizer = phoneme_tokenizer.build_tokenizer()
    encoded = tokenizer.encode("ðə kˈæt, wˌɒz… ɑː T—!")
    assert [tokenizer.decode([token]) for token in encoded.ids[:6]] == ["ð", "ə", " ", "k", "ˈæ", "t"]
    assert len(encoded.ids) == len("ðə kˈæt, wˌɒz… ɑː T—!") - 2
    assert tokenizer.decode(encoded.ids) == "ðə kˈæt, wˌɒz… ɑː T—!"
    for name in (*phoneme_tokenizer.VOICES, "SPEAKER0:", "[SPEAKER1]", "assistant"):
        assert len(tokenizer.encode(name).ids) == 1
    assert tokenizer.decode(tokenizer.encode("A quiet room, ünknown.").ids) == "A quiet room, ünknown."
    assert list(phoneme_tokenizer.VOICES.values()) == list(texts.VOICES)


def test_sequences_are_the_prompts_that_the_engine_builds(rendered):
    corpus = sequences.Corpus(rendered, held_out=False)
    assert len(corpus.phonemes) == 12
    assert corpus.codes.shape == (8, corpus.starts[-1])
    maker = sequences.SequenceMaker(corpus, seed=0)
    tokenizer = maker.tokenizer
    names = list(phoneme_tokenizer.VOICES)

    def row_of(segment, row):
        return segment.ids[row][segment.valid[row]].tolist()

    for kind in ("single", "dialogue"):
        batch = maker.make(list(range(12)), augmented=False, kind=kind)
        for row in range(12):
            prefix = batch.prefixes.segment
            ids = row_of(prefix, batch.prefixes.chosen[row]) + row_of(batch.segments[0], row)
            voice, text = names[corpus.voices[row]], corpus.phonemes[row]
            candidates = [[Voice(profile=voice)], []]
            if kind == "dialogue":
                text = f"[SPEAKER0] {text}\n[SPEAKER1] {text}"
                candidates = [[], *([Voice(profile=voice), Voice(profile=other)] for other in names)]
            built = [
                build_prompt(speech_messages(text, voices, None, "transformers"), tokenizer, "transformers", True)
                for voices in candidates
            ]
            assert ids in [prompt.input_ids[0].tolist() for prompt in built]
            said = row_of(batch.segments[-1], row)
            frames_of_it = len(said) - 8
            assert (frames_of_it > corpus.frames[row]) == (kind == "dialogue")
    batch = maker.make([1, 2], augmented=False, kind="reference")
    ids = row_of(batch.prefixes.segment, batch.prefixes.chosen[0]) + row_of(batch.segments[0], 0)
    ids += [tokenizer.token_to_id("<|AUDIO_OUT|>"), *row_of(batch.segments[2], 0)]
    shown = Voice(reference_audio=(np.zeros(1), 1), reference_text=corpus.phonemes[0])
    messages = speech_messages(corpus.phonemes[1], [shown], None, "transformers")
    assert ids == build_prompt(messages, tokenizer, "transformers", True).input_ids[0].tolist()


def test_the_language_model_s_training_goes_on_where_it_was(rendered):
    small = ["--hidden", "128", "--layers", "1", "--rows", "300", "--log-every", "2", "--device", "cpu"]
    assert "step 2 of 2" in _run_step(train_language_model, rendered, *small, "--steps", "2")
    again = _run_step(train_language_model, rendered, *small, "--steps", "12")
    assert "goes on at step 2 of 12" in again
    assert "swapped_first" in again
    tokenizer = phoneme_tokenizer.build_tokenizer()
    network = LanguageModel(train_language_model.model_config(tokenizer, 128, layers=1))
    network.load_state_dict(steps.weights_of(rendered / "language_model.pt"))
    whole = LanguageModel(train_language_model.model_config(tokenizer))
    assert 9e6 < sum(parameter.numel() for parameter in whole.parameters()) < 12e6


def test_the_guesser_learns_the_dictionary_s_words(materials, tmp_path):
    (tmp_path / "materials").symlink_to(materials)
    pairs = [train_guesser.read_pairs(materials, held_out) for held_out in (False, True)]
    assert {accent for _, _, accent in pairs[0]} == {0, 1}
    # "cat" has a phoneme here that is none.
    assert encode_letters("and") in [letters for letters, _, _ in pairs[0]]
    assert encode_letters("cat") not in [letters for letters, _, _ in pairs[0]]
    small = ["--width", "64", "--batch", "16", "--log-every", "60", "--learning-rate", "0.003", "--device", "cpu"]
    printed = _run_step(train_guesser, tmp_path, *small, "--steps", "60")
    again = _run_step(train_guesser, tmp_path, *small, "--steps", "120")
    assert "step 60 of 60" in printed
    assert "goes on at step 60 of 120" in again
    losses = [json.loads(line)["loss"] for line in (tmp_path / "guesser.jsonl").read_text().splitlines()]
    assert losses[1] < 0.5 * losses[0]
    assert Guesser.load(tmp_path / "guesser.safetensors").guess("and")


@torch.no_grad()
def test_the_written_audio_tokenizer_is_what_was_trained(spectral_noise, tmp_path):
    torch.manual_seed(0)
    fitted = speech_quantizer.fit(spectral_noise, pitch=True)
    config = tokenizer_networks.tokenizer_config(fitted.latent, 64)
    encoder, decoder = AcousticEncoder(config), AcousticDecoder(config)
    export.write_audio_tokenizer(encoder.state_dict(), decoder.state_dict(), fitted, tmp_path)
    written = HiggsAudioTokenizer.from_pretrained(tmp_path)
    audio = 0.1 * torch.randn(9600)
    latents = encoder(audio[None, None])[0].T
    assert (written.encode(audio, 24000) == fitted.encode(latents)).float().mean() > 0.95  # weights are rounded
    frames_of_codes = torch.randint(0, speech_quantizer.PHASES, (8, 8))
    sound = decoder(fitted.decode(frames_of_codes).T[None])[0, 0]
    found = written.decode(frames_of_codes)
    torch.testing.assert_close(found, sound, rtol=0.02, atol=0.02 * float(sound.abs().max()))


def test_what_was_trained_becomes_a_checkpoint_that_speaks(rendered, materials, tmp_path):
    tokenizer = phoneme_tokenizer.build_tokenizer()
    torch.manual_seed(0)
    language_model = LanguageModel(train_language_model.model_config(tokenizer, 128, layers=1))
    export.write_language_model(language_model.state_dict(), tmp_path)
    fitted = speech_quantizer.Quantizer.load(rendered / "codes" / "quantizer.safetensors")
    config = tokenizer_networks.tokenizer_config(fitted.latent, 32)
    parts = AcousticEncoder(config).state_dict(), AcousticDecoder(config).state_dict()
    export.write_audio_tokenizer(*parts, fitted, tmp_path / "audio_tokenizer")
    model = Guesser(width=32, inner=64, layers=1)
    save_file(model.state_dict(), tmp_path / "g", {name: str(value) for name, value in model.shape.items()})
    export.write_reader(materials, tmp_path / "g", tmp_path)
    voices = json.loads((tmp_path / export.VOICES_FILE).read_text())
    assert voices["emma"] == {"accent": "gb"}
    text, missing = Reader(tmp_path).phonemes("The cat sees two dogs.")
    assert (text[:2], missing) == ("ðə", [])
    speech = HiggsAudio.from_pretrained(tmp_path).speak(text, max_new_tokens=12, seed=1)
    assert speech.audio.shape[-1] > 0


def test_the_judges_measures():
    filters = judge.mel_filters()
    assert filters.shape == (120, 161)
    assert (filters >= 0).all()
    time_axis = np.arange(48000) / 24000
    tone = 0.3 * sum(np.sin(2 * np.pi * 200 * k * time_axis) / k for k in (1, 2, 3))
    np.testing.assert_allclose(judge.pitches(tone), 200, rtol=0.01)
    assert judge.pitch_spread(tone) < 0.1
    glide = np.sin(2 * np.pi * np.cumsum(np.geomspace(150, 300, 48000)) / 24000)
    assert 2.5 < judge.pitch_spread(glide) < 4.0  # an octave, evenly: 12 / sqrt(12)
    assert judge.pitch_spread(np.zeros(48000)) == 0.0
    mels = judge.log_mels(np.sin(2 * np.pi * 440 * np.arange(16000) / 16000))
    assert mels.shape == (100, 120)
    assert mels.max() == 1.0
    assert mels.min() >= -1.0
    assert mels[50].argmax() == filters[:, round(440 * 321 / 16000)].argmax()


def test_the_report_judges_held_out_speech(rendered, monkeypatch):
    class Deaf:
        def __init__(self, materials):
            pass

        def hear(self, audio):
            return "the cat sees"

        def scores(self, audio):
            return 3.0, float(len(audio) > 0)

        def word_error_rate(self, said, heard):
            return sum(a != b for a, b in zip(said, heard, strict=True)) / len(said)

    monkeypatch.setattr(report, "Recognizer", Deaf)
    monkeypatch.setattr(report, "Quality", Deaf)
    small = ["--batch", "1", "--frames", "4", "--channels", "32", "--device", "cpu", "--log-every", "1"]
    _run_step(train_decoder, rendered, *small, "--steps", "1")
    printed = _run_step(report, rendered, "--count", "3")
    results = json.loads((rendered / "report.json").read_text())
    assert set(results) == {"teacher", "resynthesis"}
    assert results["teacher"]["utterances"] == 3
    assert results["teacher"]["word_error_rate"] == 1.0
    assert "resynthesis" in printed


def test_materials_are_checked(tmp_path, monkeypatch):
    monkeypatch.setattr(materials_step, "CHECKSUMS", {"a/b": hashlib.sha256(b"right").hexdigest()})
    with pytest.raises(SystemExit, match="a/b must be in"):
        materials_step.check(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_bytes(b"wrong")
    with pytest.raises(SystemExit, match="a/b must have SHA-256"):
        materials_step.check(tmp_path)
    (tmp_path / "a" / "b").write_bytes(b"right")
    assert materials_step.check(tmp_path)["a/b"]["bytes"] == 5


def test_the_first_of_two_that_fill_a_folder_wins(tmp_path):
    path = tmp_path / "shard"
    (tmp_path / "shard.1.partial").mkdir()
    with folder.whole_folder(path) as partial:
        (partial / "file").write_text("second")
        assert [left.name for left in tmp_path.iterdir()] == [partial.name]
        path.mkdir()
        (path / "file").write_text("first")
    assert (path / "file").read_text() == "first"
    assert [left.name for left in tmp_path.iterdir()] == ["shard"]
