"""The prompts of chunks: which spoken chunks are their context, and how many fit the cache."""

import numpy as np
import pytest
import torch

from higgs_native.audio.quality import VoiceWarning
from higgs_native.errors import PromptError
from higgs_native.long_form.long_speech import LongSpeech
from higgs_native.prompt.voices import Voice
from tests.long_form.conftest import RATE, TEXT


# The references here are tones.
pytestmark = pytest.mark.filterwarnings("ignore::higgs_native.VoiceWarning")


def test_first_chunk_shows_the_voice(engine, fake):
    model = fake()
    list(LongSpeech(engine, "One.\n\nTwo.\n\nThree.\n\nFour.", context_chunks=1))
    system = model.conversations[0][0]
    assert model.conversations == [
        [system, "One."],
        [system, "One.", "<sound>", "Two."],
        [system, "One.", "<sound>", "Two.", "<sound>", "Three."],
        [system, "One.", "<sound>", "Three.", "<sound>", "Four."],
    ]
    list(LongSpeech(engine, "One.\n\nTwo.\n\nThree.", context_chunks=0))
    assert model.conversations[-1] == [system, "One.", "<sound>", "Three."]


def test_recording_shows_the_voice(engine, fake):
    model = fake()
    tone = np.sin(np.arange(RATE) / 20).astype(np.float32)
    text = "One.\n\nTwo.\n\nThree.\n\nFour."
    with pytest.warns(VoiceWarning, match="it is short"):
        speech = LongSpeech(engine, text, reference_audio=(tone, RATE), reference_text="Words.", context_chunks=2)
    list(speech)
    system = model.conversations[0][0]
    assert model.conversations[0] == [system, "Words.", "<sound>", "One."]
    assert model.conversations[-1] == [system, "Words.", "<sound>", "Two.", "<sound>", "Three.", "<sound>", "Four."]
    recording = model.calls[0][0][2].contents()[0]
    assert torch.equal(recording.codes, engine.audio_tokenizer.encode(tone, RATE))


def test_every_speaker_keeps_a_voice(engine, fake):
    model = fake()
    text = "[SPEAKER0] One. [SPEAKER1] Two. [SPEAKER0] Three.\n\nFour. [SPEAKER1] Five."
    list(LongSpeech(engine, text, context_chunks=1))
    opening = model.conversations[0][:-1]
    assert "SPEAKER0: feminine" in " ".join(opening)
    assert "SPEAKER1: masculine" in " ".join(opening)
    assert [conversation[len(opening) :] for conversation in model.conversations] == [
        ["[SPEAKER0] One."],
        ["[SPEAKER0] One.", "<sound>", "[SPEAKER1] Two."],
        ["[SPEAKER0] One.", "<sound>", "[SPEAKER1] Two.", "<sound>", "[SPEAKER0] Three."],
        ["[SPEAKER0] One.", "<sound>", "[SPEAKER0] Three.", "<sound>", "[SPEAKER0] Four."],
        ["[SPEAKER1] Two.", "<sound>", "[SPEAKER0] Four.", "<sound>", "[SPEAKER1] Five."],
    ]


def test_speaker_without_a_recording_keeps_a_voice_too(engine, fake):
    """The other speaker has a recording; this one has a description or nothing."""
    tone = (np.sin(np.arange(RATE) / 20).astype(np.float32), RATE)
    text = "[SPEAKER0] One. [SPEAKER1] Two. [SPEAKER0] Three. [SPEAKER1] Four."
    for voices in ([Voice(tone), Voice(profile="masculine")], [Voice(tone, "Words.")]):
        model = fake()
        list(LongSpeech(engine, text, voice=voices, context_chunks=0))
        spoken = [conversation[len(model.conversations[0]) - 1 :] for conversation in model.conversations]
        assert spoken == [
            ["[SPEAKER0] One."],
            ["[SPEAKER1] Two."],
            ["[SPEAKER0] Three."],
            ["[SPEAKER1] Two.", "<sound>", "[SPEAKER1] Four."],
        ]


def test_chunk_that_shows_the_voice_is_left_out_last(engine, fake, monkeypatch):
    """Even if it is not the oldest chunk of the context."""
    model = fake()
    text = "[SPEAKER0] One. [SPEAKER0] Two and two. [SPEAKER1] Three. [SPEAKER0] Four. [SPEAKER1] Five and six."
    seen = {}
    for limit in range(100, 600, 20):
        monkeypatch.setattr(engine.model, "max_cache_length", limit)
        model.calls.clear()
        try:
            list(LongSpeech(engine, text, context_chunks=3))
        except PromptError:
            continue
        said = model.conversations[-1][len(model.conversations[0]) - 1 :: 2]
        seen[len(said)] = said
    assert seen == {
        1: ["[SPEAKER1] Five and six."],
        2: ["[SPEAKER1] Three.", "[SPEAKER1] Five and six."],
        3: ["[SPEAKER1] Three.", "[SPEAKER0] Four.", "[SPEAKER1] Five and six."],
        4: ["[SPEAKER0] Two and two.", "[SPEAKER1] Three.", "[SPEAKER0] Four.", "[SPEAKER1] Five and six."],
    }


def test_context_is_left_out_if_the_cache_is_full(engine, fake, monkeypatch):
    model = fake()
    text = "One and two and three.\n\nTwo and three.\n\nThree and four.\n\nFour and five."
    list(LongSpeech(engine, text, context_chunks=3))
    lengths = [len(conversation) for conversation in model.conversations]
    assert lengths == [2, 4, 6, 8]
    # The second chunk is left out first, then the third; the first one shows the voice.
    needed = {}
    for limit in range(160, 600, 20):
        monkeypatch.setattr(engine.model, "max_cache_length", limit)
        model.calls.clear()
        try:
            list(LongSpeech(engine, text, context_chunks=3))
        except PromptError:
            continue
        needed.setdefault(len(model.conversations[-1]), model.conversations[-1][1:])
    assert sorted(needed) == [2, 4, 6, 8]
    assert needed[4] == ["One and two and three.", "<sound>", "Four and five."]
    assert needed[6] == ["One and two and three.", "<sound>", "Three and four.", "<sound>", "Four and five."]


def test_prompt_length_is_that_of_the_model(engine, monkeypatch):
    """A cache of exactly the counted length is enough, a shorter one is not."""
    text = "The sun rises.\n\nIt is cold."
    outputs = []

    add, speech = engine.model.engine.add, engine.speech
    limits = []

    def recorded(request):
        limits.append(request.sampling.max_new_tokens)
        return add(request)

    def decoded(output):
        outputs.append((output, limits[len(outputs)]))
        return speech(output)

    monkeypatch.setattr(engine.model.engine, "add", recorded)
    monkeypatch.setattr(engine, "speech", decoded)
    list(LongSpeech(engine, text, seed=1))
    positions = max(output.prompt_tokens + limit for output, limit in outputs)
    for limit, turns in ((positions, 2), (positions - 1, 1)):
        monkeypatch.setattr(engine.model, "max_cache_length", limit)
        outputs.clear()
        limits.clear()
        list(LongSpeech(engine, text, seed=1))
        prompts = [output.prompt_tokens for output, _ in outputs]
        assert (prompts[1] > prompts[0] + 20) == (turns == 2)


def test_references_that_leave_no_room(engine, monkeypatch, tmp_path):
    monkeypatch.setattr(engine.model, "max_cache_length", 300)
    with pytest.raises(
        PromptError, match=r"max_cache_length must be at least \d+ for a chunk with its references, got 300"
    ):
        LongSpeech(engine, TEXT, tmp_path / "parts", reference_audio=(np.ones(RATE * 10, dtype=np.float32), RATE))
    assert not (tmp_path / "parts").exists()
