"""An engine is released while nothing is spoken, and loaded again."""

import asyncio
import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

from higgs_native.errors import CheckpointError, ParameterError
from higgs_native.generation.metrics import EngineMetrics
from higgs_native.pipeline import HiggsAudio
from higgs_native.server.settings import ServerSettings
from higgs_native.server.speech.holder import EngineHolder
from higgs_native.server.speech.schema import ApiError, SpeechRequest
from higgs_native.server.speech.service import SpeechService
from tests.server.conftest import TEXT


@pytest.fixture
def loads():
    """Counts loads: a function that loads the embedded voice, with the list of its calls."""
    calls = []

    def load():
        calls.append(threading.get_ident())
        return HiggsAudio.from_pretrained()

    load.calls = calls
    return load


def test_a_released_engine_is_freed_and_loaded_once_by_all_who_need_it(loads):
    holder = EngineHolder(HiggsAudio.from_pretrained(), loads)
    spoken = holder.get().speak(TEXT, seed=1)
    freed = weakref.ref(holder.get())
    assert not holder.release(1000)
    assert holder.is_loaded
    assert holder.release(0)
    assert not holder.is_loaded
    assert freed() is None
    assert holder.metrics() == EngineMetrics()
    assert not holder.release(0)
    with ThreadPoolExecutor(4) as pool:
        engines = set(pool.map(lambda _: holder.get(), range(4)))
    assert len(engines) == len(loads.calls) == 1
    assert (engines.pop().speak(TEXT, seed=1).audio == spoken.audio).all()
    assert holder.is_loaded


def test_an_engine_that_still_speaks_is_taken_back(loads):
    engine = HiggsAudio.from_pretrained()
    holder = EngineHolder(engine, loads)
    assert holder.release(0)
    assert holder.get() is engine
    assert not loads.calls


def test_adapters_are_known_without_the_engine(engine, loads, monkeypatch):
    holder = EngineHolder(HiggsAudio.from_pretrained(), loads)
    monkeypatch.setattr("higgs_native.server.speech.holder._speakers", lambda engine: {"anna": ("anna",)})
    assert holder.release(0)
    monkeypatch.undo()
    assert holder.adapters() == {"anna": ("anna",)}
    assert not loads.calls


def test_a_model_that_does_not_load_again_is_told(engine):
    def fail():
        raise CheckpointError("/secret/model.safetensors must exist")

    holder = EngineHolder(HiggsAudio.from_pretrained(), fail)
    assert holder.release(0)
    gc.collect()
    with pytest.raises(ApiError, match="the model must load again, got an error; the server's log says more") as error:
        holder.get()
    assert (error.value.status, error.value.code) == (503, "model_unavailable")
    with pytest.raises(ParameterError, match="unload_seconds must be None if the model can't be loaded again, got 5"):
        SpeechService(engine, ServerSettings(unload_seconds=5))
    with pytest.raises(ParameterError, match="must be given with a function that loads it again, got none"):
        EngineHolder(engine).release(0)


def test_a_running_request_and_an_open_session_keep_the_model(loads):
    async def scenario():
        service = SpeechService(HiggsAudio.from_pretrained(), ServerSettings(unload_seconds=0.01), loads)
        releasing = asyncio.create_task(service.release_when_idle(0.01))
        async with service.admission.slot("key"):
            await asyncio.sleep(0.1)
            assert service.model_status == "loaded"
        with service.session():
            await asyncio.sleep(0.1)
            assert service.model_status == "loaded"
        while service.model_status == "loaded":
            await asyncio.sleep(0.01)
        # What is prepared while the model is away speaks with it, also if it is released in between.
        utterance = await asyncio.to_thread(service.speaker.utterance, SpeechRequest(input=TEXT, seed=1))
        assert len(loads.calls) == 1
        service.engines.last_used = 0
        while service.model_status == "loaded":
            await asyncio.sleep(0.01)
        pieces = [len(samples) async for samples in service.speaker.speak(utterance)]
        assert sum(pieces) > 0
        assert not releasing.done()
        releasing.cancel()
        return len(loads.calls)

    assert asyncio.run(scenario()) == 1


def test_wrong_seconds_are_refused():
    for seconds in (0, -1.0, float("inf")):
        with pytest.raises(ParameterError, match="unload_seconds must be above 0 and finite"):
            ServerSettings(unload_seconds=seconds)
