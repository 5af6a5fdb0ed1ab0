"""Boson's samples, and the inputs that the collator makes of them."""

import pytest
import torch

from higgs_native.compat.boson import (
    AudioContent,
    ChatMLDatasetSample,
    ChatMLSample,
    HiggsAudioSampleCollator,
    Message,
    TextContent,
    build_delay_pattern_mask,
    prepare_chatml_sample,
    revert_delay_pattern,
)
from higgs_native.compat.boson.text_tokenizer import TextTokenizer
from higgs_native.errors import ParameterError, PromptError
from higgs_native.prompt.chat import build_prompt
from higgs_native.testing.byte_tokenizer import build_tokenizer
from higgs_native.testing.configs import DEMO_CONFIG


TOKENIZER = build_tokenizer(DEMO_CONFIG)
IN, OUT, PAD = DEMO_CONFIG.audio_in_token_id, DEMO_CONFIG.audio_out_token_id, DEMO_CONFIG.pad_token_id
CONVERSATION = [
    Message("system", ["Listen: ", AudioContent(audio_url="")]),
    Message("user", "Hi."),
    Message("assistant", AudioContent(audio_url=""), recipient="all"),
    Message("assistant", TextContent("Yes.")),
]


class ListTokenizer:
    """A tokenizer whose ids are a list, as those of transformers."""

    def encode(self, text, add_special_tokens):
        return TOKENIZER.encode(text, add_special_tokens=add_special_tokens).ids


@pytest.mark.parametrize("tokenizer", [TOKENIZER, TextTokenizer(TOKENIZER), ListTokenizer()])
def test_the_ids_are_those_of_the_prompt(tokenizer):
    ids, labels, recordings, speaker = prepare_chatml_sample(ChatMLSample(CONVERSATION), tokenizer)
    header = TOKENIZER.encode("<|start_header_id|>assistant<|end_header_id|>\n\n").ids
    assert [ids + header] == build_prompt(CONVERSATION, TOKENIZER, "boson").input_ids.tolist()
    assert recordings == [CONVERSATION[0].content[1], CONVERSATION[2].content]
    assert speaker is None
    labeled = TOKENIZER.decode([token for token in labels if token >= 0], skip_special_tokens=False)
    assert labeled == "all<|recipient|><|audio_out_bos|><|AUDIO_OUT|><|audio_eos|><|eom_id|>Yes.<|eot_id|>"
    assert all(label in (token, -100) for token, label in zip(ids, labels, strict=True))


def test_labels_from_a_turn_on_and_a_speaker():
    sample = ChatMLSample(CONVERSATION, start_index=3, misc={"speaker": "anna"})
    _, labels, _, speaker = prepare_chatml_sample(sample, TOKENIZER)
    assert TOKENIZER.decode([token for token in labels if token >= 0], skip_special_tokens=False) == "Yes.<|eot_id|>"
    assert speaker == "anna"
    assert prepare_chatml_sample(ChatMLSample(CONVERSATION, speaker="ben"), TOKENIZER)[3] == "ben"


def test_a_dictionary_of_a_data_set():
    raw = {
        "messages": [
            {"role": "system", "content": ["Listen: ", {"type": "audio", "audio_url": "", "unknown": 5}]},
            {"role": "user", "content": {"type": "text", "text": "Hi."}},
            {"role": "assistant", "content": [{"type": "audio", "audio_url": ""}], "recipient": "all"},
            {"role": "assistant", "content": "Yes."},
        ],
        "speaker": None,
        "misc": {"speaker": "anna"},
    }
    expected = prepare_chatml_sample(ChatMLSample(CONVERSATION, misc={"speaker": "anna"}), TOKENIZER)
    assert prepare_chatml_sample(raw, TOKENIZER) == expected
    for wrong in ({}, {"messages": 5}, {"messages": [{"role": "user"}]}, None):
        with pytest.raises(PromptError, match="sample must be a ChatMLSample or its dictionary, got "):
            prepare_chatml_sample(wrong, TOKENIZER)


def codes(frames: int, seed: int) -> torch.Tensor:
    return torch.randint(30, (4, frames), generator=torch.Generator().manual_seed(seed))


def collator(**options) -> HiggsAudioSampleCollator:
    return HiggsAudioSampleCollator(
        None, IN, OUT, PAD, 30, 31, **{"use_delay_pattern": True, "round_to": 1, **options}
    )


def sample(ids: list[int], *recordings: torch.Tensor) -> ChatMLDatasetSample:
    starts = torch.tensor([0, *(part.shape[1] for part in recordings)]).cumsum(0)
    return ChatMLDatasetSample(
        input_ids=torch.tensor(ids),
        label_ids=None,
        audio_ids_concat=torch.cat(recordings, dim=1) if recordings else None,
        audio_ids_start=starts if recordings else None,
    )


def test_recordings_by_the_kind_of_their_placeholder():
    first, second, third = codes(5, 0), codes(3, 1), codes(4, 2)
    batch = collator()([sample([1, OUT, 2, IN, OUT], first, second, third)])
    assert batch.input_ids.tolist() == [[1, OUT, 2, IN, OUT]]
    assert batch.attention_mask.tolist() == [[1] * 5]
    assert batch.audio_out_ids_start.tolist() == [0, 5 + 2 + 3]
    assert batch.audio_in_ids_start.tolist() == [0]
    segments = [batch.audio_out_ids[:, :10], batch.audio_out_ids[:, 10:], batch.audio_in_ids]
    for segment, expected in zip(segments, (first, third, second), strict=True):
        reverted = revert_delay_pattern(segment)
        assert torch.equal(reverted[:, 1:-1], expected)
        assert reverted[:, 0].tolist() == [30] * 4
        assert reverted[:, -1].tolist() == [31] * 4
    # Below the diagonal the codes of BOS, above the other one those of EOS.
    assert segments[0][:, 0].tolist() == [30] * 4
    assert segments[0][:, -1].tolist() == [31] * 4
    assert batch.label_ids is batch.label_audio_ids is batch.audio_features is None


def test_the_ways_to_write_codes():
    recording = codes(5, 0)
    plain = collator(disable_audio_codes_transform=True)([sample([OUT], recording)])
    assert torch.equal(plain.audio_out_ids, recording)
    closed = collator(use_delay_pattern=False)([sample([OUT], recording)]).audio_out_ids
    assert torch.equal(closed[:, 1:-1], recording)
    assert closed[:, [0, -1]].tolist() == [[30, 31]] * 4
    assert collator(audio_num_codebooks=2)([sample([OUT], recording)]).audio_out_ids.shape[0] == 2
    assert collator(return_audio_in_tokens=False)([sample([IN], recording)]).audio_in_ids is None


def test_rows_of_a_batch_are_padded():
    rows = [sample([1, 2, 3]), sample([4])]
    right, left = collator(round_to=4)(rows), collator(pad_left=True)(rows)
    assert right.input_ids.tolist() == [[1, 2, 3, PAD], [4, PAD, PAD, PAD]]
    assert right.attention_mask.tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]
    assert left.input_ids.tolist() == [[1, 2, 3], [PAD, PAD, 4]]
    assert left.audio_out_ids.shape == (0, 0)
    assert left.audio_out_ids_start.shape == (0,)


def test_what_is_not_for_generating_is_refused():
    with pytest.raises(ParameterError, match="encode_whisper_embed must be False"):
        collator(encode_whisper_embed=True)
    labeled = sample([1])
    labeled.label_ids = torch.tensor([1])
    with pytest.raises(ParameterError, match="label_ids must be None: the model only generates"):
        collator()([labeled])
    for missing in (sample([OUT, OUT], codes(3, 0)), sample([OUT])):
        missing.audio_ids_start = None if missing.audio_ids_start is None else missing.audio_ids_start[:1]
        with pytest.raises(
            PromptError, match=r"audio_ids_start must have an item per audio placeholder, got [01] items"
        ):
            collator()([missing])


def test_a_sample_knows_its_recordings():
    both = sample([OUT, IN], codes(5, 0), codes(3, 1))
    assert torch.equal(both.get_audio_codes(0), codes(5, 0))
    assert torch.equal(both.get_audio_codes(1), codes(3, 1))
    both.audio_ids_start = both.audio_ids_start[:-1]
    assert torch.equal(both.get_audio_codes(1), codes(3, 1))
    assert both.num_audios() == 2
    assert sample([1]).num_audios() == 0


def test_delaying_codes():
    plain = torch.arange(2 * 3 * 5).view(2, 3, 5)
    delayed, unknown = build_delay_pattern_mask(plain, bos_token_id=100, pad_token_id=101)
    assert delayed.shape == unknown.shape == (2, 3, 7)
    assert delayed[0].tolist() == [
        [0, 1, 2, 3, 4, 101, 101],
        [100, 5, 6, 7, 8, 9, 101],
        [100, 100, 10, 11, 12, 13, 14],
    ]
    assert torch.equal(unknown, torch.where(delayed == 101, -1, delayed))
    assert torch.equal(revert_delay_pattern(delayed[1]), plain[1])
    with pytest.raises(ParameterError, match=r"codes must have shape \[batch, codebooks, N\], got \[3, 5\]"):
        build_delay_pattern_mask(plain[0], 100, 101)
