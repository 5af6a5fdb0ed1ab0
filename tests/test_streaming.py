import asyncio
import random
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from higgs_native import replies, streaming
from higgs_native.errors import ParameterError, PromptError
from higgs_native.generation.requests import GenerationOutput
from higgs_native.pipeline import HiggsAudio
from higgs_native.streaming import ChunkSizes
from higgs_native.testing.configs import DEMO_CONFIG
from higgs_native.testing.random_checkpoint import write_demo_checkpoint, write_language_model
from higgs_native.utils import background_iterator
from tests.helpers.descriptors import no_descriptor_stays
from tests.helpers.memory import least_growth, resident_bytes


TEXT = "The sun rises in the east."
HOP = 960


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    """An engine of each convention."""
    folder = tmp_path_factory.mktemp("demo")
    write_demo_checkpoint(folder)
    engines = {}
    for layout, name in (("original", "boson"), ("transformers", "transformers")):
        model = tmp_path_factory.mktemp(layout)
        write_language_model(model, DEMO_CONFIG, layout, torch.float32)
        engines[name] = HiggsAudio.from_pretrained(model, audio_tokenizer=folder / "audio_tokenizer")
        assert engines[name].convention == name
    return engines


@pytest.fixture
def engine(engines):
    return engines["boson"]


def running() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "higgs-native"]


@pytest.fixture(autouse=True)
def no_thread_stays():
    yield
    assert not running()


def joined(chunks):
    """The chunks' audio, after a look at what they say of themselves."""
    chunks = list(chunks)
    assert [chunk.is_last for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    start = 0
    for chunk in chunks:
        assert (chunk.samples.dtype, chunk.samples.ndim, chunk.sampling_rate) == (np.float32, 1, 24000)
        assert chunk.start_frame * HOP == start
        assert len(chunk.samples) or chunk.is_last
        start += len(chunk.samples)
    return np.concatenate([chunk.samples for chunk in chunks])


@pytest.mark.parametrize("convention", ["boson", "transformers"])
@pytest.mark.parametrize("max_new_tokens", [1, 8, 9, 10, 11, 20, 90])
def test_the_joined_stream_is_the_speech(engines, convention, max_new_tokens):
    engine = engines[convention]
    options = {"seed": max_new_tokens, "temperature": 1.0, "max_new_tokens": max_new_tokens}
    speech = engine.speak(TEXT, **options)
    for sizes in ({}, {"first_chunk_frames": 1, "chunk_growth": 1.0}, {"first_chunk_frames": 33}):
        stream = engine.stream(TEXT, **options, **sizes)
        assert np.array_equal(joined(stream), speech.audio)
        assert stream.finish_reason == speech.finish_reason
        assert stream.usage == speech.usage
        assert stream.failures == speech.failures
        assert stream.seed == speech.seed


def test_a_drawn_seed_is_known_from_the_start(engine):
    stream = engine.stream(TEXT, temperature=1.0, max_new_tokens=30)
    speech = engine.speak(TEXT, seed=stream.seed, temperature=1.0, max_new_tokens=30)
    assert np.array_equal(joined(stream), speech.audio)


@pytest.mark.parametrize("frames", [5, 400])
def test_failures_are_found_in_what_was_generated(engine, monkeypatch, frames):
    """A consumer may change the samples that it gets; 16 seconds of the same codes are two failures."""
    torch.manual_seed(0)
    frame = torch.randint(1024, (8,))

    def script(on_frame, on_token):
        for _ in range(frames + 9):
            on_frame(frame)

    scripted(monkeypatch, engine, script)
    stream = engine.stream(TEXT)
    assert stream.failures is None
    for chunk in stream:
        chunk.samples[:] = 0
    assert stream.failures == (("too short",) if frames == 5 else ("no end", "repetition"))


@pytest.mark.filterwarnings("ignore::higgs_native.VoiceWarning")
def test_the_joined_stream_of_a_clone_is_the_speech(engine):
    noise = 0.1 * np.random.default_rng(0).standard_normal(24000).astype(np.float32)
    options = {"reference_audio": (noise, 24000), "reference_text": "Hello.", "scene": "A room.", "seed": 3}
    speech = engine.speak(TEXT, **options, max_new_tokens=40)
    assert np.array_equal(joined(engine.stream(TEXT, **options, max_new_tokens=40)), speech.audio)


@pytest.mark.parametrize("low_latency", [0, 3, 10])
def test_the_first_chunk_comes_as_early_as_it_can(engine, monkeypatch, low_latency):
    """It needs its frames, the decoder's lookahead, the delay of the codebooks, BOS, and one that is not the last."""
    needed = 4 + (10 - low_latency) + 7 + 1 + 1
    drawn = []

    def script(on_frame, on_token):
        for frame in segment(60):
            drawn.append(frame)
            on_frame(frame)

    scripted(monkeypatch, engine, script)
    stream = engine.stream(TEXT, first_chunk_frames=4, low_latency=low_latency)
    put = stream.put
    monkeypatch.setattr(stream, "put", lambda chunk: put((len(drawn), chunk)))
    assert next(iter(stream))[0] == needed


@pytest.mark.parametrize("low_latency", [2, 10])
def test_low_latency_gives_as_many_samples_and_nearly_the_same(engine, low_latency):
    speech = engine.speak(TEXT, seed=1, max_new_tokens=80)
    audio = joined(engine.stream(TEXT, seed=1, max_new_tokens=80, low_latency=low_latency))
    error = np.sqrt(np.square(audio - speech.audio).mean() / np.square(speech.audio).mean())
    assert len(audio) == len(speech.audio)
    assert 0 < error < (0.02 if low_latency == 2 else 1)


def test_asynchronous_iteration(engine):
    async def collect():
        return [chunk async for chunk in engine.stream(TEXT, seed=1, max_new_tokens=60)]

    assert np.array_equal(joined(asyncio.run(collect())), engine.speak(TEXT, seed=1, max_new_tokens=60).audio)


def test_streams_side_by_side_are_what_each_is_alone(engine):
    alone = [engine.speak(TEXT, seed=seed, max_new_tokens=40).audio for seed in range(4)]

    async def one(seed):
        return joined([chunk async for chunk in engine.stream(TEXT, seed=seed, max_new_tokens=40)])

    async def together():
        return await asyncio.gather(*(one(seed) for seed in range(4)))

    for audio, expected in zip(asyncio.run(together()), alone, strict=True):
        assert np.array_equal(audio, expected)


def scripted(monkeypatch, engine, script):
    """Let generation call back as `script(on_frame, on_token)` does."""

    def generate_batch(model, requests):
        script(requests[0].on_frame, requests[0].on_token)
        return [GenerationOutput([], [], "stop", 1, 1)]

    monkeypatch.setattr(replies, "generate_batch", generate_batch)


def segment(frames: int) -> torch.Tensor:
    """Delayed frames [frames, codebooks], as no delay pattern would have them."""
    codes = torch.randint(1024, (frames, 8), generator=torch.Generator().manual_seed(frames))
    codes[0] = 1024
    return codes


def test_chunks_grow_as_they_are_told(engine, monkeypatch):
    scripted(monkeypatch, engine, lambda on_frame, on_token: [on_frame(frame) for frame in segment(121)])

    def frames(**sizes):
        chunks = list(engine.stream(TEXT, **sizes))
        assert sum(len(chunk.samples) for chunk in chunks) == 112 * HOP
        return [len(chunk.samples) // HOP for chunk in chunks[:-1]]

    assert frames(first_chunk_frames=4, chunk_growth=2, max_chunk_frames=20) == [4, 8, 16, 20, 20, 20]
    assert frames(first_chunk_frames=1, chunk_growth=1.5) == [1, 1, 2, 3, 5, 7, 11, 17, 25]
    assert frames(first_chunk_frames=20, chunk_growth=1) == [20] * 5


def test_segments_are_decoded_each_by_itself(engine, monkeypatch):
    parts = [segment(50), segment(5), segment(31)]

    def script(on_frame, on_token):
        for part in parts:
            on_token(7)
            for frame in part:
                on_frame(frame)
            on_token(7)

    scripted(monkeypatch, engine, script)
    expected = engine.speech(GenerationOutput([part.T for part in parts], [], "stop", 1, 1))
    chunks = list(engine.stream(TEXT))
    # The end of a segment is not kept until text, which may be long, is over.
    assert (chunks[-1].is_last, len(chunks[-1].samples)) == (True, 0)
    assert np.array_equal(joined(chunks), expected.audio)


def test_a_reply_without_audio_is_one_empty_chunk(engine, monkeypatch):
    scripted(monkeypatch, engine, lambda on_frame, on_token: on_token(7))
    (chunk,) = engine.stream(TEXT)
    assert (chunk.samples.shape, chunk.start_frame, chunk.is_last) == ((0,), 0, True)


def scripted_time(monkeypatch, engine, frames: int, seconds_per_frame: float) -> SimpleNamespace:
    """Let generation take `seconds_per_frame` of a clock that only the test advances; return the clock."""
    clock = SimpleNamespace(now=0.0)
    for module in (streaming, background_iterator):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: clock.now))

    def script(on_frame, on_token):
        for frame in segment(frames):
            clock.now += seconds_per_frame
            on_frame(frame)

    scripted(monkeypatch, engine, script)
    return clock


@pytest.mark.parametrize("waiting", [0.0, 0.1])
def test_what_is_reported_does_not_depend_on_a_slow_consumer(waiting, engine, monkeypatch):
    clock = scripted_time(monkeypatch, engine, 120, 0.002)
    stream = engine.stream(TEXT, first_chunk_frames=5, chunk_growth=1)
    assert stream.first_audio_seconds is None
    put = stream.put

    def put_and_wait(chunk):
        put(chunk)
        clock.now += waiting
        stream.waited += waiting

    monkeypatch.setattr(stream, "put", put_and_wait)
    monkeypatch.setattr(stream, "_capacity", 100)
    list(stream)
    # The first chunk needs 24 frames: BOS, 8 delays, 5 frames of sound and 10 of lookahead. Then sound lasts 40 ms per
    # frame, and the second chunk is complete 5 frames later.
    assert stream.first_audio_seconds == pytest.approx(24 * 0.002, abs=0.001)
    assert stream.underrun_margin_seconds == pytest.approx(5 * (0.04 - 0.002), abs=0.001)


def test_a_generation_slower_than_sound_shows(engine, monkeypatch):
    scripted_time(monkeypatch, engine, 40, 0.06)
    stream = engine.stream(TEXT, first_chunk_frames=2, chunk_growth=1)
    monkeypatch.setattr(stream, "_capacity", 100)
    list(stream)
    assert stream.underrun_margin_seconds < -0.1


def test_errors_in_the_thread_reach_the_consumer(engine, monkeypatch):
    def script(on_frame, on_token):
        for frame in segment(40):
            on_frame(frame)
        raise MemoryError("the cache")

    scripted(monkeypatch, engine, script)
    chunks = iter(engine.stream(TEXT))
    assert len(next(chunks).samples)
    with pytest.raises(MemoryError, match="the cache"):
        list(chunks)

    async def iterate():
        return [chunk async for chunk in engine.stream(TEXT)]

    with pytest.raises(MemoryError, match="the cache"):
        asyncio.run(iterate())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"text": ""}, PromptError, "something to say"),
        ({"temperature": -1}, ParameterError, "temperature"),
        ({"first_chunk_frames": 0}, ParameterError, "first_chunk_frames must be between 1 and max_chunk_frames"),
        ({"max_chunk_frames": 4}, ParameterError, "got 5 and 4"),
        ({"chunk_growth": 0.9}, ParameterError, "chunk_growth must be at least 1, got 0.9"),
        ({"chunk_growth": float("nan")}, ParameterError, "chunk_growth must be at least 1, got nan"),
        ({"low_latency": 2.5}, ParameterError, r"low_latency must be an integer, got 2.5"),
        ({"first_chunk_frames": 2.5}, ParameterError, "first_chunk_frames must be an integer, got 2.5"),
        ({"max_chunk_frames": None}, ParameterError, "max_chunk_frames must be an integer, got None"),
        ({"chunk_growth": "2"}, ParameterError, "chunk_growth must be a number, got '2'"),
        ({"low_latency": 11}, ParameterError, r"low_latency must be between 0 and 10 frames, got 11"),
        ({"reference_audio": "missing.wav"}, ValueError, "existing file .*missing.wav"),
    ],
)
def test_bad_input_is_refused_before_the_iteration(engine, arguments, error, message):
    with pytest.raises(error, match=message):
        engine.stream(**({"text": TEXT} | arguments))


def test_a_prompt_longer_than_the_cache_is_refused(engine):
    with pytest.raises(PromptError, match="max_cache_length"):
        list(engine.stream("a" * engine.model.max_cache_length))


def test_leaving_at_random_moments_leaves_nothing_behind(engine):
    generator = random.Random(0)
    expected = engine.speak(TEXT, seed=1, max_new_tokens=30).audio

    async def cancelled(moment):
        async def iterate():
            async for _ in engine.stream(TEXT, max_new_tokens=60, first_chunk_frames=1):
                pass

        task = asyncio.create_task(iterate())
        await asyncio.sleep(moment)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    with no_descriptor_stays():
        for _ in range(50):
            moment = generator.random() * 0.1
            asyncio.run(cancelled(moment))
            stream = engine.stream(TEXT, max_new_tokens=60, first_chunk_frames=1)
            chunks = iter(stream)
            next(chunks)
            timer = threading.Timer(moment, stream.close)
            timer.start()
            list(chunks)
            timer.join()
            assert not running()
    assert np.array_equal(joined(engine.stream(TEXT, seed=1, max_new_tokens=30)), expected)


def test_leaving_frees_the_cache(engine, monkeypatch):
    stream = engine.stream(TEXT, seed=1)
    for _ in stream:
        assert engine.model.engine.metrics.pages_held > 0
        break
    assert engine.model.engine.metrics.pages_held == 0

    failing = engine.stream(TEXT, seed=1)
    monkeypatch.setattr(failing, "put", lambda chunk: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(failing)
    assert engine.model.engine.metrics.pages_held == 0


def test_memory_stays_flat_for_ten_minutes(engine, monkeypatch):
    codes = segment(15_000)

    def script(on_frame, on_token):
        for frame in codes:
            on_frame(frame)

    scripted(monkeypatch, engine, script)
    chunks = iter(engine.stream(TEXT))

    def hear(until: int) -> None:
        while next(chunks).start_frame < until:
            continue

    hear(3000)
    ends = iter(range(6000, 15_000, 3000))
    # The audio alone takes 11 million bytes each time.
    assert least_growth(lambda: hear(next(ends)), resident_bytes, rounds=3) < 2 << 20
    assert list(chunks)[-1].start_frame > 14_900


def test_sizes_hold_their_limits():
    sizes, size, sequence = ChunkSizes(3, 1.4, 10), 3.0, []
    for _ in range(6):
        sequence.append(int(size))
        size = sizes.after(size)
    assert sequence == [3, 4, 5, 8, 10, 10]


def test_a_process_that_ends_inside_of_a_stream_ends_cleanly(tmp_path, run_python):
    write_demo_checkpoint(tmp_path / "model")
    program = (
        "import sys; from higgs_native import HiggsAudio; "
        "chunks = iter(HiggsAudio.from_pretrained(sys.argv[1]).stream('Hello there.', seed=1)); next(chunks)"
    )
    process = run_python(program, str(tmp_path / "model"))
    assert (process.returncode, process.stderr) == (0, "")
