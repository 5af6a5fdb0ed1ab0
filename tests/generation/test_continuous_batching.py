"""Requests that join and leave at each step: each gets what it gets alone, to the bit."""

import gc
import os
import random
from dataclasses import replace

import pytest
import torch

from higgs_native.convention import Convention
from higgs_native.errors import ParameterError
from higgs_native.generation import engine as engine_module
from higgs_native.generation.engine import Engine
from higgs_native.generation.model import HiggsAudioModel, generate_batch
from higgs_native.generation.requests import Playback
from higgs_native.generation.sampling_params import SamplingParams
from higgs_native.generation.steps.model_runner import ModelRunner
from higgs_native.model.kv_cache import PAGE_SIZE, pages_for
from higgs_native.ops._library import EMULATES_CUDA
from higgs_native.testing.configs import DEMO_TTS_3_CONFIG
from higgs_native.testing.random_checkpoint import write_language_model
from tests.generation.random_requests import MAX_LENGTH, NUM_SLOTS, assert_equal, load, random_request
from tests.helpers.memory import least_growth, resident_bytes
from tests.model.test_low_rank import ATTENTION, EVERY, write_factors


# The emulation is slow.
REQUESTS = int(os.environ.get("HIGGS_NATIVE_REQUESTS", "3" if EMULATES_CUDA else "100"))


@pytest.fixture(scope="module")
def folders(folder, tmp_path_factory):
    tts_3 = tmp_path_factory.mktemp("model")
    cfg = replace(DEMO_TTS_3_CONFIG, hidden_size=128, codebook_size=12, audio_stream_bos_id=10, audio_stream_eos_id=11)
    write_language_model(tts_3, cfg, "higgs_tts_3", torch.float32)
    return {"higgs_audio_v2": folder, "higgs_tts_3": tts_3}


def small_engine(model: HiggsAudioModel) -> Engine:
    """An engine whose pages hold one of the longest sequences: requests lose their slots."""
    page = model.engine._page_bytes
    return Engine(model, NUM_SLOTS, cache_bytes=pages_for(MAX_LENGTH) * page)


def run_randomly(model: HiggsAudioModel, engine: Engine, count: int, seed: int):
    """Add `count` requests at random steps, and abort some; return all handles with what each has received."""
    rng = random.Random(seed)
    waiting = [random_request(model, index) for index in range(count)]
    aborted = set(rng.sample(range(count), count // 5))
    handles, received, until = [], [], {}
    while waiting or not all(handle.future.done() for handle in handles):
        while waiting and rng.random() < 0.4:
            index = len(handles)
            request = replace(
                waiting.pop(0), priority=rng.randrange(3), playback=Playback() if rng.random() < 0.3 else None
            )
            handles.append(engine.add(request))
            received.append([])
            if index in aborted:
                until[index] = rng.randrange(0, 40)
        engine.step()
        for index, handle in enumerate(handles):
            received[index] += handle.take()
            if index in until and len(received[index]) >= until[index]:
                handle.abort()
    return handles, received, aborted


class AheadRunner(ModelRunner):
    """Launches steps ahead of the host, as on a GPU: a sequence that has ended is drawn on until the host knows."""

    max_ahead = 4

    def launch(self) -> None:
        super().launch()
        drawn, event = self._in_flight.pop()
        self._in_flight.append((drawn.clone(), event))


@pytest.mark.parametrize("runner", [AheadRunner] if EMULATES_CUDA else [ModelRunner, AheadRunner])
@pytest.mark.parametrize("format", ["float32"] if EMULATES_CUDA else ["float32", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize("kind", ["higgs_audio_v2", "higgs_tts_3"])
def test_each_request_gets_what_it_gets_alone(folders, kind, format, runner, monkeypatch):
    """With random arrivals, lengths, sampling, conventions, priorities, aborts, preemptions and shared prefixes."""
    model = load(folders[kind], format)
    monkeypatch.setattr(engine_module, "ModelRunner", runner)
    engine = small_engine(model)
    if runner is AheadRunner:
        engine.prepare()
        engine._frames_ahead = 64
    check_each_gets_what_it_gets_alone(model, engine, REQUESTS)


def check_each_gets_what_it_gets_alone(model: HiggsAudioModel, engine: Engine, count: int) -> None:
    handles, received, aborted = run_randomly(model, engine, count, seed=0)
    metrics = engine.metrics
    if count >= 100:  # enough for all that happens
        assert metrics.preempted > 0
        assert metrics.aborted > 0
        assert any(handle.sequence.cached_tokens for handle in handles)
    assert metrics.finished + metrics.aborted == count
    assert metrics.failed == metrics.waiting == metrics.running == metrics.pages_held == 0
    for index, handle in enumerate(handles):
        (alone,) = generate_batch(model, [random_request(model, index)])
        output = handle.future.result()
        items = [torch.stack(list(segment.T)) for segment in output.audio_segments]
        frames = [item for item in received[index] if not isinstance(item, int)]
        if items:
            assert torch.equal(torch.stack(frames), torch.cat(items))
        if output.finish_reason != "aborted":
            assert_equal(output, alone)
            continue
        assert index in aborted
        for ours, theirs in zip(output.audio_segments, alone.audio_segments, strict=False):
            assert torch.equal(ours, theirs[:, : ours.shape[1]])


@pytest.mark.parametrize("format", ["float32"] if EMULATES_CUDA else ["float32", "bfloat16", "int8", "int4", "fp8"])
@pytest.mark.parametrize("kind", ["higgs_audio_v2", "higgs_tts_3"])
def test_requests_with_adapters_get_what_they_get_alone(folders, kind, format, tmp_path):
    """Two adapters of different parts, and none, in the same steps, over weights of each format."""
    model = load(folders[kind], format)
    for seed, (name, parts) in enumerate({"every": EVERY, "attention": ATTENTION}.items()):
        model.load_adapter(name, write_factors(tmp_path / name, model.config, parts, seed))
    check_each_gets_what_it_gets_alone(model, small_engine(model), min(REQUESTS, 30))


def test_a_prefix_is_not_shared_between_adapters(model, tmp_path):
    request = random_request(model, 1)
    engine = Engine(model, NUM_SLOTS)
    for seed, name in enumerate("ab"):
        model.load_adapter(name, write_factors(tmp_path / name, model.config, ATTENTION, seed))
    try:
        cached = [engine.add(replace(request, adapter=name)).result().cached_tokens for name in ("a", None, "b", "a")]
    finally:
        for name in "ab":
            model.unload_adapter(name)
    assert cached[:3] == [0, 0, 0]
    assert cached[3] >= PAGE_SIZE


def test_a_request_keeps_an_adapter_that_is_unloaded(model, tmp_path):
    model.load_adapter("a", write_factors(tmp_path / "a", model.config))
    request = replace(random_request(model, 4), adapter="a")
    (alone,) = generate_batch(model, [request])
    engine = Engine(model, NUM_SLOTS)
    handle = engine.add(request)
    engine.step()
    model.unload_adapter("a")
    assert_equal(handle.result(), alone)
    with pytest.raises(ParameterError, match=r"adapter must be one that is loaded \(none\), got 'a'"):
        engine.add(request)


@pytest.mark.skipif(EMULATES_CUDA, reason="the emulation is slow")
def test_requests_leave_nothing_behind(model):
    """No page, no object and no memory: after many requests, a third of them aborted, all is as before."""
    rng = random.Random(0)

    def run(count: int) -> None:
        for _ in range(count // 20):
            handles = [engine.add(random_request(model, rng.randrange(1000))) for _ in range(20)]
            for handle in rng.sample(handles, 6):
                handle.abort()
            while engine.step():
                pass
        engine.forget_prefixes()
        gc.collect()

    engine = small_engine(model)
    run(REQUESTS)
    assert least_growth(lambda: run(REQUESTS), lambda: len(gc.get_objects()), rounds=2) < REQUESTS
    assert least_growth(lambda: run(REQUESTS), resident_bytes, rounds=3) < 1 << 20
    metrics = engine.metrics
    assert metrics.pages_held == metrics.running == metrics.waiting == 0
    assert metrics.aborted == 6 * REQUESTS // 20 * 6


def test_a_prefix_is_held_once(model):
    """By all sequences of one voice, although their requests come at the same time."""
    engine = Engine(model, 64)
    request = random_request(model, 1)
    prefix = model.tokenizer.encode("<|begin_of_text|>Voice.<|AUDIO_OUT|>", add_special_tokens=False).ids
    end = model.tokenizer.encode("<|audio_out_bos|>", add_special_tokens=False).ids
    codes = torch.randint(0, 10, (model.config.num_codebooks, 150), generator=torch.Generator().manual_seed(0))
    handles = [
        engine.add(
            replace(
                request,
                input_ids=torch.tensor([[*prefix, 97 + index % 26, *end]]),
                reference_codes=[codes],
                convention=Convention.BOSON,
                sampling=SamplingParams(seed=index, max_new_tokens=40),
            )
        )
        for index in range(64)
    ]
    while engine.metrics.running < 64:
        assert engine.step()
    whole = (handles[0].sequence.prompt_tokens - 1) // PAGE_SIZE
    shared = set(handles[0].sequence.pages[:whole])
    assert all(set(handle.sequence.pages[:whole]) == shared for handle in handles)
    assert engine.metrics.pages_held == whole + sum(len(handle.sequence.pages) - whole for handle in handles)
    while engine.step():
        pass
    assert engine.metrics.pages_held == 0


def test_a_long_prompt_is_computed_in_pieces_between_frames(model):
    """While a stream has no audio to spare, a step takes the smallest piece."""
    engine = Engine(model, NUM_SLOTS, clock=lambda: 0.0)
    stream = engine.add(replace(random_request(model, 4), playback=Playback()))
    while not stream.take():
        engine.step()
    long = random_request(model, 3)
    ids = torch.cat([long.input_ids[:, :1], torch.full((1, 150), 97), long.input_ids[:, 1:]], dim=1)
    joining = engine.add(replace(long, input_ids=ids))
    while joining.sequence.num_pending > 1:
        before = joining.sequence.computed
        engine.step()
        assert joining.sequence.computed - before <= 16
        assert stream.future.done() or stream.take()
    assert_equal(joining.result(), generate_batch(model, [replace(long, input_ids=ids)])[0])


def test_a_step_reads_the_clock_as_often_for_many_requests_as_for_one(model):
    """Frames of a step are drawn at the same time, and reading the clock for each would cost a crowded step."""
    counts = {}
    request = random_request(model, 4)
    request = replace(request, sampling=replace(request.sampling, max_new_tokens=12))
    for num_requests in (1, 4):
        reads = []
        engine = Engine(model, NUM_SLOTS, clock=lambda reads=reads: float(len(reads.append(None) or reads)))
        handles = [engine.add(request) for _ in range(num_requests)]
        while not all(handle.sequence.decodes for handle in handles):
            engine.step()
        engine.step()
        before = len(reads)
        engine.step()
        counts[num_requests] = len(reads) - before
        assert engine.metrics.running == num_requests
    assert counts[4] == counts[1]
