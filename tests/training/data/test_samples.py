"""Samples: the rows are those of the prompt that generation reads, and EOS is learned."""

import dataclasses

import pytest
import torch

from higgs_native.checkpoint.files import load_tokenizer
from higgs_native.convention import Convention
from higgs_native.errors import PromptError
from higgs_native.generation.delay_pattern import build_delay_pattern
from higgs_native.prompt.chat import build_prompt
from higgs_native.prompt.messages import AudioContent, Message
from higgs_native.testing.byte_tokenizer import build_tokenizer
from higgs_native.testing.configs import DEMO_CONFIG
from higgs_native.training.data.manifest import Clip, Entry
from higgs_native.training.data.rows import IGNORED, PackedRows, Sample
from higgs_native.training.data.samples import build_sample
from higgs_native.training.loss import LossWeights, TargetCounts
from higgs_native.training.model import TrainableModel


CONFIG = dataclasses.replace(DEMO_CONFIG, codebook_size=18, audio_stream_bos_id=16, audio_stream_eos_id=17)
TOKENIZER = build_tokenizer(CONFIG)
CODES = torch.randint(0, 16, (8, 5), generator=torch.Generator().manual_seed(1))


class Cache:
    """Gives every recording the same codes."""

    def codes(self, clip: Clip, offset: float) -> torch.Tensor:
        return CODES


def entry(*roles: tuple[str, object], start_index: int = 0) -> Entry:
    messages = [
        Message(role, AudioContent(raw_audio=Clip(AudioContent("x.wav"))) if content is None else content)
        for role, content in roles
    ]
    return Entry("train.jsonl, line 1", messages, start_index)


def sample_of(entry: Entry, convention: Convention = Convention.BOSON, learns_text: bool = False) -> Sample:
    return build_sample(entry, Cache(), TOKENIZER, CONFIG, convention, learns_text)


TURN = ("system", "Speak."), ("user", "Hello."), ("assistant", None)


@pytest.mark.parametrize("convention", [Convention.BOSON, Convention.TRANSFORMERS])
def test_the_rows_are_the_prompt_and_the_reply(convention):
    sample = sample_of(entry(*TURN), convention)
    prompt = build_prompt(entry(*TURN).messages[:2], TOKENIZER, convention, force_audio_gen=True)
    ids = prompt.input_ids[0]
    assert torch.equal(sample.token_ids[: len(ids)], ids)
    assert not sample.is_audio[: len(ids)].any()
    frames = build_delay_pattern(CODES, CONFIG).long()
    assert torch.equal(sample.codes, frames)
    assert sample.is_audio[len(ids) : len(ids) + len(frames)].all()
    ends = [TOKENIZER.token_to_id(token) for token in ("<|audio_eos|>", "<|eot_id|>")]
    assert sample.token_ids[len(ids) :].tolist() == ends


@pytest.mark.parametrize("convention", [Convention.BOSON, Convention.TRANSFORMERS])
def test_each_codebook_learns_its_codes_and_one_eos(convention):
    sample = sample_of(entry(*TURN), convention)
    first = int(sample.is_audio.nonzero()[0])
    for codebook in range(8):
        targets = sample.audio_targets[:, codebook]
        learned = (targets != IGNORED).nonzero().flatten()
        assert targets[learned].tolist() == [*CODES[codebook].tolist(), 17]
        # Frame n of the delayed segment, which row first + n - 1 predicts, holds code n - 1 - codebook.
        assert learned.tolist() == [first + codebook + n for n in range(6)]


def test_text_is_learned_where_generation_draws_it():
    assert (sample_of(entry(*TURN)).text_targets == IGNORED).all()
    sample = sample_of(entry(*TURN), learns_text=True)
    names = [TOKENIZER.id_to_token(token) for token in sample.text_targets.tolist() if token != IGNORED]
    assert names == ["<|audio_out_bos|>", "<|eot_id|>"]
    before = int((sample.text_targets != IGNORED).nonzero()[0])
    assert sample.is_audio[before + 2]


@pytest.mark.parametrize("convention", [Convention.BOSON, Convention.TRANSFORMERS])
def test_replies_before_start_index_are_context(convention):
    turns = *TURN, ("user", "Again."), ("assistant", None)
    for start, segments in ((0, 2), (2, 2), (3, 1), (4, 1)):
        sample = sample_of(entry(*turns, start_index=start), convention)
        assert int((sample.audio_targets == 17).sum()) == 8 * segments
        assert len(sample.codes) == 2 * 14
        learned = (sample.audio_targets != IGNORED).any(dim=1).nonzero().flatten()
        runs = sample.is_audio.long().diff().nonzero().flatten()
        assert int(learned[0]) > int(runs[2 if segments == 1 else 0])


def test_audio_of_users_is_context():
    sample = sample_of(entry(("user", None), ("assistant", "Yes.")), learns_text=True)
    assert (sample.audio_targets == IGNORED).all()
    assert TOKENIZER.decode(sample.text_targets[sample.text_targets != IGNORED].tolist()) == "Yes."
    assert sample.codes.shape == (14, 8)


def test_a_conversation_without_anything_to_learn_is_refused():
    with pytest.raises(PromptError, match=r"^train.jsonl, line 1: messages must hold a recording"):
        sample_of(entry(("user", "Hello."), ("assistant", "Yes.")))


def train(sample: Sample, steps: int = 60) -> torch.Tensor:
    """Train a small model on a sample; return its probabilities [kept rows, codebooks, classes]."""
    torch.manual_seed(1)
    model = TrainableModel(CONFIG, text_head=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    rows = PackedRows.pack([sample])
    for _ in range(steps):
        optimizer.zero_grad()
        model(rows, LossWeights((1.0,) * 8), TargetCounts.of(rows)).total.backward()
        optimizer.step()
    with torch.no_grad():
        return model.audio_lm_head(model.states(rows)).unflatten(1, (8, -1)).softmax(dim=2)


def test_training_teaches_the_end_which_masked_eos_does_not():
    """transformers' processor leaves EOS out of the labels, so its models unlearn it."""
    sample = sample_of(entry(*TURN))
    learned = train(sample)
    without_eos = torch.where(sample.audio_targets == 17, IGNORED, sample.audio_targets)
    for codebook in range(8):
        assert learned[5 + codebook, codebook, 17] > 0.9
    masked = train(dataclasses.replace(sample, audio_targets=without_eos))
    assert masked[5, 0, 17] < 0.1


def test_the_demo_checkpoint_has_the_special_tokens(base):
    assert load_tokenizer(base).token_to_id("<|start_header_id|>") is not None
