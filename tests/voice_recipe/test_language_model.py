"""What turns letters to phonemes, and phonemes to codes."""

import json
import shutil

import numpy as np
import pytest
import torch
from recipe import (
    export,
    initial_weights,
    phoneme_tokenizer,
    sequences,
    speech_quantizer,
    steps,
    texts,
    train_guesser,
    train_language_model,
)
from recipe.spectral_quantizer import CODEBOOKS, CODES

from higgs_native.english.guess import Guesser, encode_letters
from higgs_native.prompt.chat import build_prompt, speech_messages
from higgs_native.prompt.voices import Voice
from higgs_native.training.data.rows import IGNORED
from higgs_native.training.model import TrainableModel
from tests.voice_recipe.helpers import run_step


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


def test_the_first_weights_turn_the_phase_by_the_pitch():
    """The row in which a phase is predicted holds the pitch of its frame, and the phase of the frame before."""
    quantizer = speech_quantizer.fit(torch.randn(600, 80, generator=torch.Generator().manual_seed(0)), pitch=True)
    config = train_language_model.model_config(phoneme_tokenizer.build_tokenizer(), layers=1)
    model = TrainableModel(config, text_head=False)
    initial_weights.initialise(model, quantizer)
    rows, levels, phases = 400, (speech_quantizer.PITCH_LEVEL, speech_quantizer.PHASE_LEVEL), speech_quantizer.PHASES
    codes = torch.randint(0, CODES, (rows, CODEBOOKS))
    f0, phase = 70 + 300 * torch.rand(rows), torch.rand(rows)
    latents = quantizer.latents(torch.randn(rows, 80), f0, phase)
    for level in levels:
        codes[:, level] = quantizer.encode(latents)[level]
    with torch.no_grad():
        x = model.model.embed_audio_tokens(codes)
        layer = model.model.layers[0]
        hidden = model.model.norm(x + layer.audio_mlp(layer.audio_post_attention_layernorm(x)))
        logits = model.audio_lm_head(hidden).unflatten(1, (CODEBOOKS, -1))[:, levels[1]]
    drawn = (logits.argmax(1) - 1) / phases
    differences = phases * ((drawn - phase - f0 * 0.04 + 0.5) % 1 - 0.5)
    # The pitch is rounded, by up to 0.5 % of 3 to 15 turns.
    assert (differences.abs() < 5).float().mean() > 0.9
    assert differences.abs().median() < 2


def test_sequences_are_the_prompts_that_the_engine_builds(rendered):
    corpus = sequences.Corpus(rendered, held_out=False)
    # Twelve utterances of the two shards, in eight cuts of other codes.
    assert len(corpus.phonemes) == 96
    shard = len(corpus.phonemes) // 16
    first, second = (corpus.codes_of(index) for index in (0, shard))
    assert corpus.phonemes[0] == corpus.phonemes[shard]
    assert abs(first.shape[1] - second.shape[1]) <= 1
    assert not np.array_equal(first[:, :8], second[:, :8])
    assert corpus.codes.shape == (8, corpus.starts[-1])
    maker = sequences.SequenceMaker(corpus, seed=0)
    tokenizer = maker.tokenizer
    names = list(phoneme_tokenizer.VOICES)

    def parts_of(rows, row):
        """The token ids of a sample, and the number of its audio rows."""
        texts = np.cumsum((0, *rows.text_lengths))
        first, last = texts[row : row + 2]
        return rows.token_ids[first:last].tolist(), rows.lengths[row] - rows.text_lengths[row]

    def tokens_of(made, row):
        """What the frames of a sample speak."""
        frames = [length - texts for length, texts in zip(made.rows.lengths, made.rows.text_lengths, strict=True)]
        return made.spoken.split(frames)[row]

    for kind in ("single", "joined", "dialogue"):
        rows = maker.make(list(range(12)), augmented=False, kind=kind).rows
        assert len(rows.kept_audio) == len(rows.codes)
        assert len(rows.kept_text) == 0
        for row in range(12):
            ids, audio_rows = parts_of(rows, row)
            voice, text = names[corpus.voices[row]], corpus.phonemes[row]
            described = {"heart": ["feminine"], "fenrir": ["masculine"]}.get(voice, [])
            candidates = [*([Voice(profile=name)] for name in (voice, *described)), []]
            if kind == "joined":
                text = f"{text} {text}"
            if kind == "dialogue":
                text = f"[SPEAKER0] {text}\n[SPEAKER1] {text}"
                candidates = [[], *([Voice(profile=voice), Voice(profile=other)] for other in names)]
            built = [
                build_prompt(speech_messages(text, voices, None, "transformers"), tokenizer, "transformers", True)
                for voices in candidates
            ]
            assert ids in [prompt.input_ids[0].tolist() for prompt in built]
            assert (audio_rows - 8 > corpus.frames[row]) == (kind != "single")
    kinds = ("single", "joined", "dialogue")
    spoken = {kind: maker.make([1, 2], augmented=True, kind=kind) for kind in kinds}
    for row, index in enumerate((1, 2)):
        said = tokens_of(spoken["single"], row)
        frames = corpus.frames[index]
        indices = corpus.spoken[corpus.starts[index] : corpus.starts[index + 1]]
        known = [(frame, index_of_phoneme) for frame, index_of_phoneme in enumerate(indices) if index_of_phoneme >= 0]
        assert known
        for frame, index_of_phoneme in known:
            # A stress mark is one token with its vowel.
            assert corpus.phonemes[index][index_of_phoneme] in tokenizer.decode([said[frame]])
        assert (said[: known[0][0]] == IGNORED).all()
        assert (said[frames:] == IGNORED).all()
        for kind in ("joined", "dialogue"):
            both = tokens_of(spoken[kind], row)
            assert torch.equal(both[:frames], said[:frames])
            assert (both[frames + 4 :] != IGNORED).any()
    rows = maker.make([1, 2], augmented=False, kind="reference").rows
    ids, audio_rows = parts_of(rows, 0)
    shown = Voice(reference_audio=(np.zeros(1), 1), reference_text=corpus.phonemes[0])
    messages = speech_messages(corpus.phonemes[1], [shown], None, "transformers")
    prompt = build_prompt(messages, tokenizer, "transformers", True).input_ids[0].tolist()
    recording = prompt.index(tokenizer.token_to_id("<|AUDIO_OUT|>"))
    assert ids == prompt[:recording] + prompt[recording + 1 :]
    # The recording lies where its placeholder is, and is not learned.
    order = rows.by_sample[: rows.lengths[0]]
    is_audio = (order >= len(rows.token_ids)).tolist()
    first = is_audio.index(True)
    assert first == recording
    assert False in is_audio[first:]
    assert (rows.kept_audio < audio_rows).sum() == corpus.frames[1] + 8 < audio_rows


def test_the_end_of_speech_is_learned(rendered):
    corpus = sequences.Corpus(rendered, held_out=False)
    rows = sequences.SequenceMaker(corpus, seed=0).make([3], augmented=False).rows
    codes = torch.from_numpy(corpus.codes_of(3).astype(np.int64))
    frames = codes.shape[1]
    for book in range(CODEBOOKS):
        expected = [*[IGNORED] * book, *codes[book].tolist(), CODES + 1, *[IGNORED] * (CODEBOOKS - 1 - book)]
        assert rows.audio_targets[:, book].tolist() == expected
        # Each row is what the row before it should predict, and BOS before the first.
        assert rows.codes[: book + 1, book].tolist() == [CODES] * (book + 1)
        assert torch.equal(rows.codes[book + 1 : book + 1 + frames, book], codes[book, : len(rows.codes) - book - 1])


def test_batches_of_a_length_are_alike(rendered):
    corpus = sequences.Corpus(rendered, held_out=False)
    maker = sequences.SequenceMaker(corpus, seed=0)
    seen = set()
    for _ in range(20):
        found = maker.batches(rows=400, longest=100)
        seen.update(index for indices, _ in found for index in indices)
        for indices, kind in found:
            (length,) = {sequences.padded_length(corpus.frames[index] + 8) for index in indices}
            assert len(indices) == max(1, 400 // (length + (0 if kind == "single" else 128)))
    assert seen == set(range(96))
    assert not maker.batches(rows=400, longest=10)


@pytest.mark.parametrize("packed", [True, False])
def test_the_language_model_s_training_goes_on_where_it_was(rendered, tmp_path, monkeypatch, packed):
    path = tmp_path / "copy"
    shutil.copytree(rendered, path, ignore=shutil.ignore_patterns("language_model.*"))
    if not packed:
        monkeypatch.setattr(train_language_model, "can_compile", lambda: False)
    small = ["--hidden", "128", "--layers", "1", "--rows", "300", "--log-every", "2", "--device", "cpu", "--eager"]
    assert "step 2 of 2" in run_step(train_language_model, path, *small, "--steps", "2")
    again = run_step(train_language_model, path, *small, "--steps", "12")
    assert "goes on at step 2 of 12" in again
    assert "swapped_first" in again
    tokenizer = phoneme_tokenizer.build_tokenizer()
    network = TrainableModel(train_language_model.model_config(tokenizer, 128, layers=1), text_head=False)
    network.load_state_dict(steps.weights_of(path / "language_model.pt"))
    whole = TrainableModel(train_language_model.model_config(tokenizer), text_head=False)
    assert 9e6 < sum(parameter.numel() for parameter in whole.parameters()) < 12e6


def test_the_language_model_s_training_begins_with_the_weights_of_a_checkpoint(rendered, tmp_path):
    torch.manual_seed(1)
    config = train_language_model.model_config(phoneme_tokenizer.build_tokenizer(), 128, layers=1)
    model = TrainableModel(config, text_head=False)
    export.write_language_model(model.state_dict(), tmp_path)
    path = tmp_path / "copy"
    shutil.copytree(rendered, path, ignore=shutil.ignore_patterns("language_model.*"))
    small = ["--hidden", "128", "--layers", "1", "--steps", "0", "--device", "cpu", "--eager"]
    run_step(train_language_model, path, *small, "--init-from", str(tmp_path))
    found = steps.weights_of(path / "language_model.pt")
    assert all(torch.equal(found[name], weight.bfloat16().float()) for name, weight in model.state_dict().items())


def test_the_guesser_learns_the_dictionary_s_words(materials, tmp_path):
    (tmp_path / "materials").symlink_to(materials)
    pairs = [train_guesser.read_pairs(materials, held_out) for held_out in (False, True)]
    assert {accent for _, _, accent in pairs[0]} == {0, 1}
    # "cat" has a phoneme here that is none.
    assert encode_letters("and") in [letters for letters, _, _ in pairs[0]]
    assert encode_letters("cat") not in [letters for letters, _, _ in pairs[0]]
    small = ["--width", "64", "--batch", "16", "--log-every", "60", "--learning-rate", "0.003", "--device", "cpu"]
    printed = run_step(train_guesser, tmp_path, *small, "--steps", "60")
    again = run_step(train_guesser, tmp_path, *small, "--steps", "180")
    assert "step 60 of 60" in printed
    assert "goes on at step 60 of 180" in again
    losses = [json.loads(line)["loss"] for line in (tmp_path / "guesser.jsonl").read_text().splitlines()]
    assert losses[1] < 0.5 * losses[0]
    assert Guesser.load(tmp_path / "guesser.safetensors").guess("and")
