"""What turns letters to phonemes, and phonemes to codes."""

import json
import shutil

import numpy as np
import torch
from language_model import LanguageModel
from prompts import IGNORED, padded_length
from quantizer import CODEBOOKS, CODES
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

from higgs_native.english.guess import Guesser, encode_letters
from higgs_native.prompt.chat import build_prompt, speech_messages
from higgs_native.prompt.voices import Voice
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
    model = LanguageModel(train_language_model.model_config(phoneme_tokenizer.build_tokenizer(), layers=1))
    initial_weights.initialise(model, quantizer)
    rows, levels, phases = 400, (speech_quantizer.PITCH_LEVEL, speech_quantizer.PHASE_LEVEL), speech_quantizer.PHASES
    codes = torch.randint(0, CODES, (rows, CODEBOOKS))
    f0, phase = 70 + 300 * torch.rand(rows), torch.rand(rows)
    latents = quantizer.latents(torch.randn(rows, 80), f0, phase)
    for level in levels:
        codes[:, level] = quantizer.encode(latents)[level]
    with torch.no_grad():
        x = model.model.embed_audio_tokens(codes[None])
        layer = model.model.layers[0]
        hidden = model.model.norm(x + layer.audio_mlp(layer.audio_post_attention_layernorm(x)))
        logits = model.audio_lm_head(hidden).unflatten(2, (CODEBOOKS, -1))[0, :, levels[1]]
    drawn = (logits.argmax(1) - 1) / phases
    differences = phases * ((drawn - phase - f0 * 0.04 + 0.5) % 1 - 0.5)
    # The pitch is rounded, by up to 0.5 % of 3 to 15 turns.
    assert (differences.abs() < 5).float().mean() > 0.9
    assert differences.abs().median() < 2


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
    spoken = {kind: maker.make([1, 2], augmented=True, kind=kind) for kind in ("single", "dialogue")}
    for row, index in enumerate((1, 2)):
        said = spoken["single"].spoken[row]
        frames = corpus.frames[index]
        indices = corpus.spoken[corpus.starts[index] : corpus.starts[index + 1]]
        known = [(frame, index_of_phoneme) for frame, index_of_phoneme in enumerate(indices) if index_of_phoneme >= 0]
        assert known
        for frame, index_of_phoneme in known:
            # A stress mark is one token with its vowel.
            assert corpus.phonemes[index][index_of_phoneme] in tokenizer.decode([said[frame]])
        assert (said[: known[0][0]] == IGNORED).all()
        assert (said[frames:] == IGNORED).all()
        both = spoken["dialogue"].spoken[row]
        assert torch.equal(both[:frames], said[:frames])
        assert (both[frames + 4 :] != IGNORED).any()
    batch = maker.make([1, 2], augmented=False, kind="reference")
    ids = row_of(batch.prefixes.segment, batch.prefixes.chosen[0]) + row_of(batch.segments[0], 0)
    ids += [tokenizer.token_to_id("<|AUDIO_OUT|>"), *row_of(batch.segments[2], 0)]
    shown = Voice(reference_audio=(np.zeros(1), 1), reference_text=corpus.phonemes[0])
    messages = speech_messages(corpus.phonemes[1], [shown], None, "transformers")
    assert ids == build_prompt(messages, tokenizer, "transformers", True).input_ids[0].tolist()


def test_batches_of_a_length_are_alike(rendered):
    corpus = sequences.Corpus(rendered, held_out=False)
    maker = sequences.SequenceMaker(corpus, seed=0)
    seen = set()
    for _ in range(20):
        found = maker.batches(rows=400, longest=100)
        seen.update(index for indices, _ in found for index in indices)
        for indices, kind in found:
            (length,) = {padded_length(corpus.frames[index] + 8) for index in indices}
            assert len(indices) == max(1, 400 // (length + (0 if kind == "single" else 128)))
            rows = maker.make(indices, augmented=True, kind=kind).segments[-1].ids
            assert rows.shape[:2] == (len(indices), length) or kind == "dialogue"
    assert seen == set(range(12))
    assert not maker.batches(rows=400, longest=10)


def test_the_language_model_s_training_goes_on_where_it_was(rendered):
    small = ["--hidden", "128", "--layers", "1", "--rows", "300", "--log-every", "2", "--device", "cpu", "--eager"]
    assert "step 2 of 2" in run_step(train_language_model, rendered, *small, "--steps", "2")
    again = run_step(train_language_model, rendered, *small, "--steps", "12")
    assert "goes on at step 2 of 12" in again
    assert "swapped_first" in again
    tokenizer = phoneme_tokenizer.build_tokenizer()
    network = LanguageModel(train_language_model.model_config(tokenizer, 128, layers=1))
    network.load_state_dict(steps.weights_of(rendered / "language_model.pt"))
    whole = LanguageModel(train_language_model.model_config(tokenizer))
    assert 9e6 < sum(parameter.numel() for parameter in whole.parameters()) < 12e6


def test_the_language_model_s_training_begins_with_the_weights_of_a_checkpoint(rendered, tmp_path):
    torch.manual_seed(1)
    model = LanguageModel(train_language_model.model_config(phoneme_tokenizer.build_tokenizer(), 128, layers=1))
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
    again = run_step(train_guesser, tmp_path, *small, "--steps", "120")
    assert "step 60 of 60" in printed
    assert "goes on at step 60 of 120" in again
    losses = [json.loads(line)["loss"] for line in (tmp_path / "guesser.jsonl").read_text().splitlines()]
    assert losses[1] < 0.5 * losses[0]
    assert Guesser.load(tmp_path / "guesser.safetensors").guess("and")
