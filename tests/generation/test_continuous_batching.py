"""Requests that join and leave at each step: each gets what it gets alone, to the bit."""

import asyncio
import gc
import os
import random
import threading
from dataclasses import replace

import pytest
import torch

from higgs_native.convention import Convention
from higgs_native.errors import GenerationError, ParameterError
from higgs_native.generation import engine as engine_module
from higgs_native.generation.engine import Engine
from higgs_native.generation.handle import RequestHandle
from higgs_native.generation.model import HiggsAudioModel, generate_batch
from higgs_native.generation.requests import GenerationRequest
from higgs_native.generation.sampling_params import SamplingParams
from higgs_native.generation.steps.model_runner import ModelRunner
from higgs_native.model.kv_cache import PAGE_SIZE, pages_for
from higgs_native.ops._library import EMULATES_CUDA
from higgs_native.ops.formats import QUANTIZED_FORMATS
from higgs_native.prompt.chat import build_prompt
from higgs_native.prompt.messages import AudioContent, Message
from higgs_native.testing.configs import DEMO_TTS_3_CONFIG
from higgs_native.testing.random_checkpoint import write_language_model
from tests.helpers.memory import resident_bytes
from tests.model.test_low_rank import ATTENTION, EVERY, write_factors
from tests.model.test_transformer import config


MAX_LENGTH = 256
NUM_SLOTS = 8
# The emulation is slow.
REQUESTS = int(os.environ.get("HIGGS_NATIVE_REQUESTS", "4" if EMULATES_CUDA else "100"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    # Wide enough for a group of quantized weights.
    write_language_model(
        folder, config(hidden_size=128, intermediate_size=128), layout="original", dtype=torch.float32, endless=True
    )
    return folder


@pytest.fixture(scope="module")
def folders(folder, tmp_path_factory):
    tts_3 = tmp_path_factory.mktemp("model")
    cfg = replace(DEMO_TTS_3_CONFIG, hidden_size=128, codebook_size=12, audio_stream_bos_id=10, audio_stream_eos_id=11)
    write_language_model(tts_3, cfg, "higgs_tts_3", torch.float32)
    return {"higgs_audio_v2": folder, "higgs_tts_3": tts_3}


def load(folder, format: str = "float32") -> HiggsAudioModel:
    quantized = format in QUANTIZED_FORMATS
    return HiggsAudioModel.from_pretrained(
        folder,
        dtype="auto" if quantized else format,
        quantization=format if quantized else None,
        max_cache_length=MAX_LENGTH,
    )


@pytest.fixture(scope="module")
def model(folder):
    return load(folder)


def small_engine(model: HiggsAudioModel) -> Engine:
    """An engine whose pages hold one of the longest sequences: requests lose their slots."""
    page = model.engine._page_bytes
    return Engine(model, NUM_SLOTS, cache_bytes=pages_for(MAX_LENGTH) * page)


def random_request(model: HiggsAudioModel, index: int) -> GenerationRequest:
    """A request of its own length, convention and sampling; some begin alike, some write text."""
    rng = random.Random(index)
    convention = rng.choice([Convention.BOSON, Convention.TRANSFORMERS])
    voice = rng.randrange(3)
    generator = torch.Generator().manual_seed(voice)
    codes = [torch.randint(0, 10, (model.config.num_codebooks, 20 + 15 * voice), generator=generator)]
    ends_in_audio = convention == Convention.TRANSFORMERS or rng.random() < 0.8
    text = "".join(rng.choice("abcdefgh ") for _ in range(rng.randrange(1, 60)))
    prompt = f"<|begin_of_text|>Voice {voice}.<|AUDIO_OUT|> {text}" + "<|audio_out_bos|>" * ends_in_audio
    ids = torch.tensor([model.tokenizer.encode(prompt, add_special_tokens=False).ids])
    if model.config.convention is Convention.HIGGS_TTS_3:
        convention = Convention.HIGGS_TTS_3
        prompt = [Message("system", [f"Voice {voice}.", AudioContent(codes=codes[0])]), Message("user", text)]
        ids = build_prompt(prompt, model.tokenizer, convention).input_ids
    return GenerationRequest(
        ids,
        codes,
        convention,
        SamplingParams(
            temperature=rng.choice([0.0, 0.7, 1.0]),
            top_k=rng.choice([None, 5, 50]),
            top_p=rng.choice([None, 0.9]),
            ras_win_len=rng.choice([None, 7, 20]),
            seed=index,
            max_new_tokens=rng.randrange(4, 12) if EMULATES_CUDA else rng.randrange(1, 90),
        ),
        adapter=rng.choice([None, *model.adapters]),
    )


def assert_equal(ours, alone):
    assert (ours.text_ids, ours.finish_reason, ours.completion_tokens) == (
        alone.text_ids,
        alone.finish_reason,
        alone.completion_tokens,
    )
    assert len(ours.audio_segments) == len(alone.audio_segments)
    assert all(torch.equal(a, b) for a, b in zip(ours.audio_segments, alone.audio_segments, strict=True))


def run_randomly(model: HiggsAudioModel, engine: Engine, count: int, seed: int):
    """Add `count` requests at random steps, and abort some; return all handles with what each has received."""
    rng = random.Random(seed)
    waiting = [random_request(model, index) for index in range(count)]
    aborted = set(rng.sample(range(count), count // 5))
    handles, received, until = [], [], {}
    while waiting or not all(handle.future.done() for handle in handles):
        while waiting and rng.random() < 0.4:
            index = len(handles)
            request = replace(waiting.pop(0), priority=rng.randrange(3), real_time=rng.random() < 0.3)
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
    objects, before = len(gc.get_objects()), resident_bytes()
    run(5 * REQUESTS)
    assert len(gc.get_objects()) - objects < 100
    assert resident_bytes() - before < 32 << 20  # the system may fill up huge pages
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
    stream = engine.add(replace(random_request(model, 4), real_time=True))
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


def test_threads_share_the_steps(model):
    """Callers drive the engine in turn; nobody waits for a caller that has gone."""
    engine, outputs = model.engine, {}
    before = engine.metrics.steps

    def call(index: int) -> None:
        outputs[index] = generate_batch(model, [random_request(model, index)])[0]

    threads = [threading.Thread(target=call, args=(index,)) for index in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert engine.metrics.steps - before <= sum(output.completion_tokens for output in outputs.values())
    for index, output in outputs.items():
        assert_equal(output, generate_batch(model, [random_request(model, index)])[0])


def test_a_thread_of_the_engine(model):
    engine = Engine(model, NUM_SLOTS)
    engine.start()
    try:
        with pytest.raises(ParameterError, match="must be stopped"):
            engine.start()
        handles = [engine.add(random_request(model, index)) for index in range(20)]
        handles[3].abort()
        items = [list(handle) for handle in handles]
        assert [handle.sequence.request.sampling.seed for handle in handles] == list(range(20))
    finally:
        engine.stop()
    for index, handle in enumerate(handles):
        alone = generate_batch(model, [random_request(model, index)])[0]
        if index != 3:
            assert_equal(handle.result(), alone)
            assert sum(not isinstance(item, int) for item in items[index]) == sum(
                segment.shape[1] for segment in alone.audio_segments
            )


class HeldEngine(Engine):
    """Computes no more than 10 steps before `left` is set: the request that is left ends by itself after 18."""

    steps_before = 10

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.left = threading.Event()

    def step(self) -> bool:
        if self.steps_before == 0 and not self.left.wait(0.001):
            return True
        self.steps_before -= self.steps_before > 0
        return super().step()


def test_a_handle_in_an_event_loop(model):
    """Without a thread of the engine, and with one; leaving the loop aborts the request."""

    async def read(engine: HeldEngine, index: int) -> list:
        return [item async for item in engine.add(random_request(model, index))]

    async def leave(engine: HeldEngine) -> RequestHandle:
        handle = engine.add(replace(random_request(model, 0), sampling=SamplingParams(seed=0, max_new_tokens=80)))
        items = aiter(handle)
        await anext(items)
        await items.aclose()
        engine.left.set()
        return handle

    async def all_of_them(engine: HeldEngine) -> tuple:
        return await asyncio.gather(leave(engine), *(read(engine, index) for index in range(1, 8)))

    for starts in (False, True):
        engine = HeldEngine(model, NUM_SLOTS)
        if starts:
            engine.start()
        try:
            left, *items = asyncio.run(all_of_them(engine))
            left.result()
        finally:
            engine.stop()
        assert left.future.result().finish_reason == "aborted"
        for index, got in enumerate(items, 1):
            alone = generate_batch(model, [random_request(model, index)])[0]
            frames = [item for item in got if not isinstance(item, int)]
            drawn = [frame for segment in alone.audio_segments for frame in segment.T]
            assert len(frames) == len(drawn)
            assert all(torch.equal(ours, theirs) for ours, theirs in zip(frames, drawn, strict=True))


def test_a_failed_step_ends_its_requests_and_frees_their_pages(model, monkeypatch):
    """An interrupt is raised where it came; other callers get an error of their own."""
    engine = Engine(model, NUM_SLOTS)
    handles = [engine.add(random_request(model, index)) for index in range(3)]
    engine.step()
    monkeypatch.setattr(engine, "_advance", raising(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    monkeypatch.undo()
    for handle in handles:
        with pytest.raises(GenerationError, match="ended by KeyboardInterrupt"):
            handle.result()
    assert engine.metrics.pages_held == engine.metrics.running == 0
    assert_equal(engine.add(random_request(model, 1)).result(), generate_batch(model, [random_request(model, 1)])[0])


def raising(error: BaseException):
    def function():
        raise error

    return function


def test_bad_logits_end_their_request_alone(folder):
    """The others go on, and get what they get alone."""
    model = load(folder)
    expected = [generate_batch(model, [random_request(model, index)])[0] for index in range(6)]
    bad_token = 120  # no other prompt has it
    model.text_table[bad_token] = torch.inf
    request = random_request(model, 6)
    ids = torch.cat([torch.tensor([[bad_token]]), request.input_ids], dim=1)
    engine = Engine(model, NUM_SLOTS)
    handles = [engine.add(random_request(model, index)) for index in range(6)]
    failing = engine.add(replace(request, input_ids=ids))
    while engine.step():
        pass
    with pytest.raises(GenerationError, match="can't be drawn: its logits hold a NaN"):
        failing.result()
    for handle, alone in zip(handles, expected, strict=True):
        assert_equal(handle.result(), alone)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_slots": 3}, "num_slots must be a power of two up to 1024, got 3"),
        ({"cache_bytes": 1000}, r"cache_bytes must be at least \d+ for 256 positions"),
        ({"prefix_bytes": -1}, "prefix_bytes must be at least 0, got -1"),
    ],
)
def test_sizes_out_of_range_are_refused(model, options, message):
    with pytest.raises(ParameterError, match=message):
        Engine(model, **options)
