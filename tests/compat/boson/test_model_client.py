"""The client of Boson's example script."""

import numpy as np
import pytest
import torch

from higgs_native.compat.boson import (
    AudioContent,
    HiggsAudioModelClient,
    Message,
    load_higgs_audio_tokenizer,
    revert_delay_pattern,
)
from higgs_native.errors import ParameterError, PromptError
from higgs_native.generation.requests import GenerationOutput
from higgs_native.pipeline import EMBEDDED_VOICE
from tests.compat.boson.golden import FOLDER, RATE, references, sample


def test_the_client_forces_audio_where_there_is_no_text_head():
    client = HiggsAudioModelClient(str(EMBEDDED_VOICE), str(EMBEDDED_VOICE / "audio_tokenizer"), max_new_tokens=20)
    audio, rate, _ = client.generate(
        [Message("system", "Generate audio following instruction.")], [], ["a", "b"], None
    )
    assert rate == RATE
    assert len(audio) == 2 * (20 - 9) * 960


@pytest.fixture(scope="module")
def client(audio_tokenizer_folder):
    tokenizer = load_higgs_audio_tokenizer(str(audio_tokenizer_folder))
    return HiggsAudioModelClient(str(FOLDER), tokenizer, max_new_tokens=80)


def test_the_client_speaks_as_the_golden_case(client, tensors):
    """The one case that is not forced to speak, and does."""
    name = "clone_system.free"
    *messages, last = sample(tensors, name).messages
    audio, rate, text = client.generate(
        messages, references(tensors, name), [last.content], None, top_k=1, ras_win_len=None
    )
    codes = revert_delay_pattern(tensors[f"{name}.audio_tokens.0"])[:, 1:-1].clip(0, 29)
    assert rate == RATE
    assert np.array_equal(audio, client._audio_tokenizer.decode(codes)[0, 0])
    expected = tensors[f"{name}.sequences"][len(tensors[f"{name}.input_ids"]) :].tolist()
    assert text == client._model.tokenizer.decode(expected, skip_special_tokens=False)


@pytest.mark.parametrize("buffer", [None, 0, 1, 2])
def test_the_client_gives_the_last_chunks_as_context(client, tensors, monkeypatch, buffer):
    prompts, contexts = [], []

    def generate(input_ids, reference_codes, **options):
        prompts.append(client._model.tokenizer.decode(input_ids[0].tolist(), skip_special_tokens=False))
        contexts.append([codes.shape[1] for codes in reference_codes])
        frames = 10 + len(prompts)
        return GenerationOutput([torch.randint(30, (8, frames + 9))], [], "stop", 1, frames)

    monkeypatch.setattr(client._model, "generate", generate)
    messages = [Message("user", "one"), Message("assistant", AudioContent(audio_url=""))]
    audio, _, _ = client.generate(messages, [torch.zeros(8, 5, dtype=torch.int64)], ["a", "b", "c", "d"], buffer)
    assert len(audio) == (11 + 12 + 13 + 14) * 960
    earlier = [[], [11], [11, 12], [11, 12, 13]]
    kept = [frames if buffer is None else frames[max(len(frames) - buffer, 0) :] for frames in earlier]
    assert contexts == [[5, *frames] for frames in kept]
    assert [prompt.count("<|AUDIO_OUT|>") for prompt in prompts] == [1 + len(frames) for frames in kept]
    assert all(f"\n\n{letter}<|eot_id|>" in prompt for letter, prompt in zip("abcd", prompts, strict=True))


def test_the_client_tells_of_a_chunk_without_audio(client, monkeypatch):
    answers = iter([GenerationOutput([], [65], "stop", 1, 1)] * 2)
    monkeypatch.setattr(client._model, "generate", lambda *arguments, **options: next(answers))
    with pytest.warns(UserWarning, match="chunk [01] was answered without audio"):
        audio, _, _ = client.generate([], [], ["a", "b"], None)
    assert audio.shape == (0,)
    with pytest.raises(PromptError, match="chunked_text must hold at least one chunk, got none"):
        client.generate([], [], [], None)
    with pytest.raises(ParameterError, match="chunked_text must be a list of strings, got the string 'abc'"):
        client.generate([], [], "abc", None)
    for size, message in ((-1, "must be at least 0, or None for all chunks, got -1"), (1.5, "must be an integer")):
        with pytest.raises(ParameterError, match=f"generation_chunk_buffer_size {message}"):
            client.generate([], [], ["a"], size)
