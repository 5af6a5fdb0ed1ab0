"""The engine of a server, which may be released while nothing is spoken."""

import gc
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence

import torch

from higgs_native.errors import HiggsNativeError, ParameterError
from higgs_native.generation.metrics import EngineMetrics
from higgs_native.pipeline import HiggsAudio
from higgs_native.server.observing import LOGGER, log
from higgs_native.server.speech.schema import ApiError


class EngineHolder:
    """Holds an engine, releases it, and loads it again. Thread-safe.

    Whoever speaks has a reference to the engine, so a release ends no speech: the memory is free when the last
    reference is gone.

    Args:
        engine: loaded.
        load: returns it again; None: it can't be released.

    Attributes:
        last_used: when it was last asked for or used, by the monotonic clock.
    """

    def __init__(self, engine: HiggsAudio, load: Callable[[], HiggsAudio] | None = None) -> None:
        self._engine: HiggsAudio | None = engine
        self._released: weakref.ref[HiggsAudio] | None = None
        self._load = load
        self._lock = threading.Lock()
        self._speakers: Mapping[str, Sequence[str]] = {}
        self.last_used = time.monotonic()

    @property
    def is_loaded(self) -> bool:
        return self._engine is not None

    def touch(self) -> None:
        """Note that the engine is used now."""
        self.last_used = time.monotonic()

    def get(self) -> HiggsAudio:
        """Return the engine, loaded again if it was released. It may block.

        Raises:
            ApiError: it can't be loaded again.
        """
        with self._lock:
            self.touch()
            if self._engine is None:
                self._engine = (self._released and self._released()) or self._loaded_again()
            return self._engine

    def release(self, idle_seconds: float) -> bool:
        """Release the engine if it has not been used for a time. Return whether it was. It may block.

        Raises:
            ParameterError: it could not be loaded again.
        """
        if self._load is None:
            raise ParameterError("the engine must be given with a function that loads it again, got none")
        with self._lock:
            if self._engine is None or time.monotonic() - self.last_used < idle_seconds:
                return False
            self._speakers = _speakers(self._engine)
            self._released = weakref.ref(self._engine)
            self._engine = None
            gc.collect()  # engines refer to themselves
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()
        return True

    def adapters(self) -> Mapping[str, Sequence[str]]:
        """Return the speakers of each adapter by its name."""
        engine = self._engine
        return self._speakers if engine is None else _speakers(engine)

    def metrics(self) -> EngineMetrics:
        """Return the metrics of the engine; those of a new one if it is released."""
        engine = self._engine
        return EngineMetrics() if engine is None else engine.model.engine.metrics

    def _loaded_again(self) -> HiggsAudio:
        assert self._load is not None  # else it was not released
        begin = time.monotonic()
        try:
            engine = self._load()
        except HiggsNativeError:
            LOGGER.exception("the model can't be loaded again")
            message = "the model must load again, got an error; the server's log says more"
            raise ApiError(503, message, "model_unavailable") from None
        log("loaded", seconds=round(time.monotonic() - begin, 3))
        return engine


def _speakers(engine: HiggsAudio) -> dict[str, tuple[str, ...]]:
    return {name: adapter.speakers for name, adapter in engine.model.adapters.items()}
