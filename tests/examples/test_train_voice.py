"""The recipe of the embedded voice: its sentences, text tokenizer, prompts, and the networks that it trains."""

import itertools
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from higgs_native.audio_tokenizer.tokenizer import HiggsAudioTokenizer
from higgs_native.generation.delay_pattern import build_delay_pattern, revert_delay_pattern
from higgs_native.generation.model import HiggsAudioModel
from higgs_native.pipeline import EMBEDDED_VOICE
from higgs_native.prompt.chat import build_prompt, speech_messages
from higgs_native.prompt.voices import Voice


sys.path.append(str(Path(__file__).resolve().parents[2] / "examples" / "train_voice"))
import export
import prompts
import quantizer
import spectra
from audio_tokenizer_networks import AcousticDecoder, AcousticEncoder
from espeak import VOICES
from language_model import LanguageModel
from sentences import held_out_sentences, is_held_out, read_words, sentences
from text_tokenizer import build_tokenizer
from train_audio_tokenizer import CONFIG
from train_language_model import losses, model_config


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.fixture(scope="module")
def utterances():
    """Sentences with random codes, the voices in turn."""
    texts = ["hello.", "good morning, friend.", "seven.", "the quick brown fox jumps?"] * 3
    frames = np.random.default_rng(0).integers(26, 40, len(texts))
    codes = np.random.default_rng(1).integers(0, quantizer.CODES, (quantizer.CODEBOOKS, frames.sum()))
    return prompts.Utterances(
        texts, np.arange(len(texts)) % len(VOICES), np.concatenate([[0], frames.cumsum()]), codes
    )


def test_words_are_many_and_each_is_one_token(tokenizer):
    words = read_words()
    assert len(words) >= 1000
    assert {"hello", "seven", "monday", "april", "12"} <= set(words)
    for word in words:
        (token,) = tokenizer.encode(word).ids
        assert tokenizer.encode(f"the {word}.").ids[1:-1] == [token]
        assert tokenizer.encode(f"\n\n{word.upper()},").ids[1:-1] == [token]
    assert tokenizer.decode(tokenizer.encode("Hello, world of ünknown zebras.").ids).strip() == (
        "hello, world of ünknown zebras."
    )


def test_held_out_sentences_are_never_in_training():
    held_out = held_out_sentences(200)
    assert len(set(held_out)) == 200
    assert all(is_held_out(sentence) for sentence in held_out)
    # Punctuation makes no other sentence.
    assert all(is_held_out(sentence.replace(",", "").rstrip(".?!") + "!") for sentence in held_out)
    training = list(itertools.islice(sentences(seed=3, lengths=list(range(1, 10))), 3000))
    assert not any(is_held_out(sentence) for sentence in training)
    assert {len(sentence.split()) for sentence in training} == set(range(1, 10))
    repeating = itertools.islice(sentences(seed=3, lengths=[8], repeating=True), 500)
    assert sum(len(set(sentence.rstrip(".?!").split())) < 8 for sentence in repeating) > 150
    assert training == list(itertools.islice(sentences(seed=3, lengths=list(range(1, 10))), 3000))


def test_prompts_are_those_that_the_engine_builds(utterances, tokenizer):
    maker = prompts.BatchMaker(utterances, seed=0)
    batch = maker.make(list(range(len(utterances.texts))), augmented=False)
    named = set()
    for row, text in enumerate(utterances.texts):
        prefix = batch.prefixes.segment
        chosen = batch.prefixes.chosen[row]
        ids = [*prefix.ids[chosen][prefix.valid[chosen]].tolist()]
        ids += batch.segments[0].ids[row][batch.segments[0].valid[row]].tolist()
        profile = VOICES[row % len(VOICES)].profile
        by_voices = [
            build_prompt(speech_messages(text, voices, None, "transformers"), tokenizer, "transformers", True)
            for voices in ([Voice(profile=profile)], [])
        ]
        which = [prompt.input_ids[0].tolist() for prompt in by_voices].index(ids)
        assert which == 0 or row % len(VOICES) == 0
        named.add(which)
    assert named == {0, 1}


def test_prompts_with_a_reference_are_those_that_the_engine_builds(utterances, tokenizer):
    maker = prompts.BatchMaker(utterances, seed=0)
    batch = maker.make([1], augmented=False, references=True)
    parts = [part.ids[0][part.valid[0]].tolist() for part in (batch.prefixes.segment, *batch.segments[:1:])]
    after = batch.segments[2].ids[0][batch.segments[2].valid[0]].tolist()
    for shown in utterances.texts:
        voice = Voice(reference_audio=(np.zeros(1), 1), reference_text=shown)
        messages = speech_messages(utterances.texts[1], [voice], None, "transformers")
        ids = build_prompt(messages, tokenizer, "transformers", True).input_ids[0].tolist()
        place = ids.index(tokenizer.token_to_id("<|AUDIO_OUT|>"))
        if (parts[0] + parts[1], after) == (ids[:place], ids[place + 1 :]):
            break
    else:
        pytest.fail("no reference text gives this prompt")


def test_targets_follow_the_delay_pattern(utterances):
    codes = utterances.codes_of(0).astype(np.int64)
    delayed = prompts.delayed(codes)
    assert torch.equal(revert_delay_pattern(torch.from_numpy(delayed))[:, 1:-1], torch.from_numpy(codes))
    targets = prompts.delayed_targets(codes)
    drawn = targets != prompts.IGNORED
    assert (targets[drawn] == delayed[:, 1:][drawn]).all()
    assert (drawn.sum(1) == codes.shape[1] + 1).all()
    assert ((targets == prompts.EOS).sum(1) == 1).all()


@torch.no_grad()
def test_the_trained_network_is_the_engine_s(utterances, tokenizer, tmp_path):
    """The logits of the network that is trained, and of the checkpoint that is written from it."""
    torch.manual_seed(0)
    network = LanguageModel(model_config(tokenizer)).bfloat16().float()
    export.write_language_model(network.state_dict(), tmp_path)
    assert (tmp_path / "config.json").read_text() == (EMBEDDED_VOICE / "config.json").read_text()
    engine = HiggsAudioModel.from_pretrained(tmp_path, dtype="float32")
    batch = prompts.BatchMaker(utterances, seed=0).make([3], augmented=False, references=True)
    hidden = network(batch.prefixes, batch.segments)[0]
    expected = network.audio_lm_head(hidden).unflatten(1, (quantizer.CODEBOOKS, -1))
    ids = [part.ids[0][part.valid[0]].tolist() for part in (batch.prefixes.segment, *batch.segments[::2])]
    ids = [*ids[0], *ids[1], tokenizer.token_to_id("<|AUDIO_OUT|>"), *ids[2]]
    shown, said = (part.ids[0][part.valid[0]].T for part in batch.segments[1::2])
    output = engine.generate(
        torch.tensor([ids]),
        reference_codes=[revert_delay_pattern(shown)[:, 1:-1]],
        partial_audio=said[:, :20],
        convention="transformers",
        max_new_tokens=1,
        output_logits=True,
    )
    torch.testing.assert_close(output.audio_logits[0], expected[19], rtol=1e-3, atol=1e-3)
    assert torch.equal(build_delay_pattern(revert_delay_pattern(shown)[:, 1:-1], engine.config).T.long(), shown)


def test_the_loss_of_chance(utterances, tokenizer):
    network = LanguageModel(model_config(tokenizer))
    batch = prompts.BatchMaker(utterances, seed=0).make([0, 1, 2], augmented=True)
    by_codebook = losses(network, batch, torch.device("cpu"))
    assert by_codebook.shape == (quantizer.CODEBOOKS,)
    torch.testing.assert_close(by_codebook, torch.full_like(by_codebook, np.log(258)), rtol=0.1, atol=0)


@torch.no_grad()
def test_the_written_audio_tokenizer_is_what_was_trained(tmp_path):
    torch.manual_seed(0)
    noise = torch.randn(4000, spectra.SUBFRAMES * spectra.BANDS) @ torch.randn(96, 96)
    fitted = quantizer.fit(noise, rounds=3)
    encoder, decoder = AcousticEncoder(CONFIG), AcousticDecoder(CONFIG)
    export.write_audio_tokenizer(encoder.state_dict(), decoder.state_dict(), fitted, tmp_path)
    written = HiggsAudioTokenizer.from_pretrained(tmp_path)
    audio = 0.1 * torch.randn(9600)
    latents = encoder(audio[None, None])[0].T
    agreement = (written.encode(audio, 24000) == fitted.encode(latents)).float().mean()
    assert agreement > 0.95  # the stored weights are rounded
    codes = torch.randint(0, quantizer.CODES, (quantizer.CODEBOOKS, 8))
    sound = decoder(fitted.decode(codes).T[None])[0, 0]
    torch.testing.assert_close(written.decode(codes), sound, rtol=0.02, atol=0.02 * float(sound.abs().max()))


def test_a_quantizer_s_levels_refine(tmp_path):
    points = torch.randn(5000, 96, generator=torch.Generator().manual_seed(0)) * torch.linspace(2, 0.1, 96)
    fitted = quantizer.fit(points, rounds=5)
    latents = fitted.latents(points)
    codes = fitted.encode(latents)
    errors = [
        (latents - sum(fitted.table()[level][codes[level]] for level in range(count))).square().mean()
        for count in range(quantizer.CODEBOOKS + 1)
    ]
    assert all(after < before for before, after in itertools.pairwise(errors))


def test_spectra_are_of_their_own_frame():
    tone = torch.sin(2 * torch.pi * 440 / 24000 * torch.arange(960))
    found = spectra.frame_spectra(torch.cat([torch.zeros(1920), tone, torch.zeros(1920)]))
    assert found.shape == (5, spectra.SUBFRAMES * spectra.BANDS)
    assert found.mean(1).argmax() == 2
    assert float(found[0].abs().max()) == float(found[4].abs().max()) == 0


def test_the_embedded_voice_is_of_the_recipe_and_small(tokenizer):
    model = HiggsAudioModel.from_pretrained(EMBEDDED_VOICE)
    assert model.tokenizer.get_vocab() == tokenizer.get_vocab()
    quantized = load_file(EMBEDDED_VOICE / "audio_tokenizer" / "model.safetensors")
    shipped = quantizer.Quantizer.load(Path(quantizer.__file__).with_name("quantizer.safetensors"))
    for level, centres in enumerate(shipped.centres):
        assert torch.equal(quantized[f"quantizer.quantizers.{level}.codebook.embed"], centres.half())
    # As it lies in a wheel.
    files = [path.read_bytes() for path in EMBEDDED_VOICE.rglob("*") if path.is_file()]
    assert sum(len(zlib.compress(contents)) for contents in files) < 12e6
