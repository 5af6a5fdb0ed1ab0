"""Long texts that are heard while they are generated."""

import numpy as np
import pytest

from higgs_native.audio.silence import SilenceTrimmer
from higgs_native.long_form.long_speech import LongSpeech
from tests.long_form.conftest import RATE, TEXT


HOP = 960
SENTENCES = "[pause:0.5s] The sun rises in the east. The water is cold. [pause:1s] It is a good day."
CASES = {
    "chunks": (TEXT, {"seed": 1}),
    "pauses": (SENTENCES, {"seed": 2, "voice": "fenrir"}),
    "context": (SENTENCES, {"seed": 3, "context_chunks": 1}),
    "speakers": ("[SPEAKER0] Good morning. [SPEAKER1] The sun rises in the east.", {"seed": 4}),
}


def expected_samples(engine, chunks, pauses):
    """The speech of all chunks, cut at its inner ends, with the pauses before them."""
    sounds = []
    for index, (chunk, pause) in enumerate(zip(chunks, pauses, strict=True)):
        trimmer = SilenceTrimmer(HOP, index > 0 or pause > 0, index + 1 < len(chunks))
        sounds += [
            np.zeros(round(pause * RATE), np.float32),
            trimmer.trim(engine.audio_tokenizer.decode(chunk.codes).numpy()),
        ]
    return np.concatenate(sounds)


@pytest.mark.parametrize("case", CASES)
def test_a_listener_hears_the_first_attempt_at_each_chunk(engine, case):
    text, options = CASES[case]
    speech = LongSpeech(engine, text, max_retries=0, **options)
    stream = speech.stream()
    heard = list(stream)
    assert speech.num_finished == 0
    chunks = list(speech)
    assert len(chunks) > 1
    pauses = [speech._pause(index) for index in range(len(chunks))]
    np.testing.assert_array_equal(
        np.concatenate([chunk.samples for chunk in heard]), expected_samples(engine, chunks, pauses)
    )
    assert [chunk.is_last for chunk in heard] == [False] * (len(heard) - 1) + [True]
    assert stream.seed == speech.seed == options["seed"]
    assert stream.failures == tuple(dict.fromkeys(failure for chunk in chunks for failure in chunk.failures))


def test_the_first_sound_comes_before_the_first_chunk_is_complete(engine):
    speech = LongSpeech(engine, TEXT, seed=1)
    stream = iter(speech.stream())
    first = next(stream)
    assert 0 < len(first.samples) <= 5 * HOP
    stream.close()
    assert len(next(iter(speech)).pcm) > 3 * len(first.samples)


def test_a_failed_chunk_is_heard_and_is_no_context(engine, monkeypatch):
    """Endless speech fails; a retry would have another seed."""
    monkeypatch.setattr(LongSpeech, "_max_new_tokens", lambda self, text: 20)
    speech = LongSpeech(engine, SENTENCES, seed=3, context_chunks=2)
    prompts = []
    prepare = engine.prepare

    def recorded(messages, force_audio_gen, sampling, **options):
        prompts.append((len(messages), sampling.seed))
        return prepare(messages, force_audio_gen, sampling, **options)

    monkeypatch.setattr(engine, "prepare", recorded)
    stream = speech.stream()
    assert sum(len(chunk.samples) for chunk in stream) > 0
    assert "no end" in stream.failures
    lengths, seeds = zip(*prompts, strict=True)
    assert len(set(lengths)) == 1
    assert seeds == (3, 1003, 2003)
