"""Chunks that are spoken side by side: the same bits and prompts as one after the other, in the order of the text."""

import threading

import numpy as np
import pytest
import torch

from higgs_native.errors import GenerationError, ParameterError
from higgs_native.long_form.long_speech import LongSpeech
from higgs_native.prompt.voices import Voice
from tests.long_form.conftest import RATE, TEXT, FakeHandle


# The references here are tones.
pytestmark = pytest.mark.filterwarnings("ignore::higgs_native.VoiceWarning")

TONE = (np.sin(np.arange(RATE) / 20).astype(np.float32), RATE)
FIVE = "One.\n\nTwo.\n\nThree.\n\nFour.\n\nFive."


def files(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


class WaitingHandle(FakeHandle):
    """A request that ends when the test lets it."""

    def __init__(self, speech):
        super().__init__(speech)
        self.speech, self.future = speech, type(self.future)()
        self.is_aborted = False

    @property
    def is_ready(self):
        return self.future.done()

    def end(self):
        self.future.set_result(self.speech)

    def abort(self):
        self.is_aborted = True


@pytest.fixture
def last_first(engine, fake, monkeypatch):
    """A fake model whose requests end one by one, the last one that was added first; and all requests."""

    def install(script=lambda seed: "good"):
        model = fake(script)
        model.handles, model.most = [], 0

        def add(speech):
            model.handles.append(WaitingHandle(speech))
            return model.handles[-1]

        def drive(ready):
            while not ready():
                waiting = [handle for handle in model.handles if not handle.future.done()]
                model.most = max(model.most, len(waiting))
                waiting[-1].end()

        monkeypatch.setattr(engine.model.engine, "add", add)
        monkeypatch.setattr(engine.model.engine, "drive", drive)
        return model

    return install


@pytest.mark.parametrize("options", [{}, {"reference_audio": TONE, "max_retries": 1}])
def test_the_bits_are_those_of_one_after_the_other(engine, tmp_path, options):
    added = []
    for parallel in (1, 3, None):
        before = engine.model.engine.metrics
        list(LongSpeech(engine, TEXT, tmp_path / str(parallel), seed=1, parallel=parallel, **options))
        after = engine.model.engine.metrics
        added.append((after.finished - before.finished, after.rows - before.rows, after.steps - before.steps))
    assert files(tmp_path / "1") == files(tmp_path / "3") == files(tmp_path / "None")
    assert len(files(tmp_path / "1")) == 1 + 2 * 7
    # The same requests in fewer steps.
    assert added[0][0] == added[1][0] == added[2][0]
    assert added[0][2] > added[1][2] > added[2][2]


def test_bits_of_a_dialogue(engine, tmp_path):
    text = "[SPEAKER0] The sun rises. [SPEAKER1] It is cold. [SPEAKER0] We walk. [SPEAKER1] They drink tea."
    for parallel in (1, 4):
        list(LongSpeech(engine, text, tmp_path / str(parallel), seed=3, voice=[Voice(TONE)], parallel=parallel))
    assert files(tmp_path / "1") == files(tmp_path / "4")


def test_chunks_come_in_order_whichever_ends_first(engine, last_first):
    model = last_first()
    speech = LongSpeech(engine, FIVE, reference_audio=TONE, seed=0, parallel=3)
    assert [(chunk.index, chunk.seed) for chunk in speech] == [(index, 1000 * index) for index in range(5)]
    assert [seed for _, seed, _ in model.calls] == [0, 1000, 2000, 3000, 4000]
    assert model.most == 3
    assert [handle.is_aborted for handle in model.handles] == [False] * 5


def test_retries_join_the_others(engine, last_first):
    model = last_first(lambda seed: "short" if seed in (1000, 1001) else "good")
    chunks = list(LongSpeech(engine, FIVE, reference_audio=TONE, seed=0, parallel=2))
    assert [chunk.seed for chunk in chunks] == [0, 1002, 2000, 3000, 4000]
    assert [attempt.seed for attempt in chunks[1].attempts] == [1000, 1001, 1002]
    assert sorted(seed for _, seed, _ in model.calls) == [0, 1000, 1001, 1002, 2000, 3000, 4000]
    assert model.most == 2


def test_first_chunk_of_a_speaker_is_spoken_before_the_others(engine, last_first):
    """Even if it fails: then the next one has to show the voice."""
    text = "[SPEAKER0] One. [SPEAKER1] Two. [SPEAKER0] Three. [SPEAKER1] Four. [SPEAKER0] Five. [SPEAKER1] Six."
    prompts = []
    for parallel in (1, 4):
        model = last_first(lambda seed: "short" if seed == 1000 else "good")
        list(LongSpeech(engine, text, seed=0, max_retries=0, parallel=parallel))
        prompts.append(
            {
                call[1]: conversation[len(model.conversations[0]) - 1 :]
                for call, conversation in zip(model.calls, model.conversations, strict=True)
            }
        )
        order = [seed // 1000 for _, seed, _ in model.calls]
    assert prompts[0] == prompts[1]
    assert prompts[1] == {
        0: ["[SPEAKER0] One."],
        1000: ["[SPEAKER1] Two."],
        2000: ["[SPEAKER0] One.", "<sound>", "[SPEAKER0] Three."],
        3000: ["[SPEAKER1] Four."],
        4000: ["[SPEAKER0] One.", "<sound>", "[SPEAKER0] Five."],
        5000: ["[SPEAKER1] Four.", "<sound>", "[SPEAKER1] Six."],
    }
    assert order == [0, 1, 2, 3, 4, 5]


def test_what_is_spoken_ahead_is_kept(engine, last_first, tmp_path):
    model = last_first()
    options = {"reference_audio": TONE, "seed": 0, "parallel": 3}
    chunks = iter(LongSpeech(engine, FIVE, tmp_path, **options))
    assert next(chunks).index == 0
    chunks.close()
    finished = [handle.future.done() for handle in model.handles]
    assert [handle.is_aborted for handle in model.handles] == [not is_done for is_done in finished]
    unfinished = sorted({1000 * index for index in range(5)} - {1000 * index for index in np.flatnonzero(finished)})
    model.calls.clear()
    speech = LongSpeech(engine, FIVE, tmp_path, **options)
    assert speech.num_finished == sum(finished) > 1
    list(speech)
    assert sorted(seed for _, seed, _ in model.calls) == unfinished


def test_strict_yields_the_chunks_before_the_failed_one(engine, last_first):
    model = last_first(lambda seed: "short" if seed // 1000 == 2 else "good")
    chunks = iter(LongSpeech(engine, FIVE, reference_audio=TONE, seed=0, max_retries=1, strict=True, context_chunks=0))
    assert [next(chunks).index, next(chunks).index] == [0, 1]
    with pytest.raises(GenerationError, match=r"chunk 2 failed with every seed: too short \(seed 2000\); too short"):
        next(chunks)
    assert all(handle.future.done() or handle.is_aborted for handle in model.handles)


def test_an_interrupted_run_ends_its_requests_and_goes_on(engine, whole, tmp_path, monkeypatch):
    folder, _ = whole
    step = engine.model.engine.step
    steps = 0

    def interrupted():
        nonlocal steps
        steps += 1
        if steps == 100:
            raise KeyboardInterrupt
        return step()

    monkeypatch.setattr(engine.model.engine, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(LongSpeech(engine, TEXT, tmp_path / "parts", seed=1))
    metrics = engine.model.engine.metrics
    assert (metrics.running, metrics.waiting, metrics.pages_held) == (0, 0, 0)
    assert not any(thread.name.startswith("higgs-native") for thread in threading.enumerate())
    assert 0 < len(files(tmp_path / "parts")) < len(files(folder))
    list(LongSpeech(engine, TEXT, tmp_path / "parts", seed=1))
    assert files(tmp_path / "parts") == files(folder)


def test_progress_counts_each_attempt_in_the_iterating_thread(engine, whole):
    _, chunks = whole
    reported, threads = [], set()

    def on_progress(seconds):
        reported.append(seconds)
        threads.add(threading.current_thread())

    list(LongSpeech(engine, TEXT, seed=1, on_progress=on_progress))
    durations = [attempt.duration for chunk in chunks for attempt in chunk.attempts]
    # Each attempt reports every frame from 0 seconds on, and one of EOS.
    assert reported.count(0.04) == len(durations)
    assert max(reported) == pytest.approx(max(durations), abs=0.05)
    assert threads == {threading.current_thread()}


def test_an_error_beside_the_steps_ends_the_iteration(engine, fake, monkeypatch):
    def fail(speech, text):
        raise ParameterError("the folder is gone")

    monkeypatch.setattr(engine, "failures", fail)
    fake()
    with pytest.raises(ParameterError, match="the folder is gone"):
        list(LongSpeech(engine, FIVE, reference_audio=TONE))


def test_chunk_that_vanishes_is_spoken_again(engine, last_first, tmp_path):
    model = last_first()
    chunks = iter(LongSpeech(engine, FIVE, tmp_path, reference_audio=TONE, seed=0, parallel=3))
    next(chunks)
    stored = [index for index in range(1, 5) if (tmp_path / f"0000{index}.json").exists()]
    assert stored
    (tmp_path / f"0000{stored[0]}.json").unlink()
    assert [chunk.index for chunk in chunks] == [1, 2, 3, 4]
    assert [seed for _, seed, _ in model.calls].count(1000 * stored[0]) == 2


def test_context_is_the_default_only_one_after_the_other(engine, fake, monkeypatch):
    monkeypatch.setattr(engine, "is_embedded_voice", False)
    held = {}
    for parallel in (None, 1, 2):
        model = fake()
        list(LongSpeech(engine, FIVE, reference_audio=TONE, parallel=parallel))
        held[parallel] = [conversation.count("<sound>") - 1 for conversation in model.conversations]
    assert held == {None: [0, 1, 2, 2, 2], 1: [0, 1, 2, 2, 2], 2: [0] * 5}


def test_another_context_is_another_run(engine, fake, monkeypatch, tmp_path):
    monkeypatch.setattr(engine, "is_embedded_voice", False)
    fake()
    LongSpeech(engine, FIVE, tmp_path, seed=0)
    with pytest.raises(ParameterError, match="the same inputs, got one that differs in context_chunks"):
        LongSpeech(engine, FIVE, tmp_path, parallel=8)


def test_codes_are_ordinary_tensors(whole):
    _, chunks = whole
    assert all(chunk.codes.dtype == torch.int64 and not chunk.codes.is_inference() for chunk in chunks)
