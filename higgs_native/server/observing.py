"""Metrics for Prometheus, and logs as lines of JSON."""

import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from higgs_native.generation.metrics import EngineMetrics


LOGGER = logging.getLogger("higgs_native.server")

_LATENCIES = (0.025, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 30, 60)
_RATIOS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1, 1.2, 1.5, 2, 4, 8)


class Metrics:
    """The metrics of one server, in their own registry.

    Args:
        running, queued: return the number of requests that run, and that wait.
        engine: returns the metrics of the engine.
        loaded: returns whether the model is in memory.
    """

    def __init__(
        self,
        running: Callable[[], int],
        queued: Callable[[], int],
        engine: Callable[[], EngineMetrics],
        loaded: Callable[[], bool],
    ) -> None:
        self._registry = registry = CollectorRegistry()

        def histogram(name: str, documentation: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"higgs_native_{name}", documentation, buckets=buckets, registry=registry)

        def counter(name: str, documentation: str, *labels: str) -> Counter:
            return Counter(f"higgs_native_{name}", documentation, labels, registry=registry)

        def gauge(name: str, documentation: str, value: Callable[[], int]) -> None:
            Gauge(f"higgs_native_{name}", documentation, registry=registry).set_function(value)

        gauge("requests_running", "Requests that are spoken now.", running)
        gauge("requests_queued", "Requests that wait for a slot.", queued)
        gauge("model_loaded", "Whether the model is in memory.", loaded)
        gauge("sequences_running", "Sequences that share the steps of the engine.", lambda: engine().running)
        gauge("cache_pages_held", "Pages of the KV cache in use.", lambda: engine().pages_held)
        gauge("cache_pages", "Pages of the KV cache.", lambda: engine().pages)
        gauge("preempted", "Sequences that lost their slot for want of pages, so far.", lambda: engine().preempted)
        self.first_audio = histogram(
            "time_to_first_audio_seconds", "From a request's arrival to its first encoded audio.", _LATENCIES
        )
        self.queue_time = histogram("queue_time_seconds", "From a request's arrival to its slot.", _LATENCIES)
        self.real_time_factor = histogram(
            "real_time_factor", "Seconds of work per second of audio, per request.", _RATIOS
        )
        self.requests = counter("requests", "Finished requests.", "route", "status")
        self.errors = counter("errors", "Requests that ended with an error, by its code.", "code")
        self.left = counter("clients_left", "Clients that left before the end of their speech.")
        self.underruns = counter("underruns", "Pieces of audio that came after the sound before them had been played.")
        self.failures = counter("speech_failures", "Failures of speech: no end, silence, ...", "kind")
        self.audio_seconds = counter("audio_seconds", "Seconds of audio, before a change of speed.")
        self.tokens = counter("tokens", "Tokens of prompts, and frames and tokens of replies.", "kind")

    def text(self) -> bytes:
        """Return all metrics as Prometheus reads them."""
        return generate_latest(self._registry)


def merged_metrics(texts: Sequence[str | None], devices: Sequence[str]) -> bytes:
    """Return the metrics of several processes as one text, each with the label `worker`.

    Args:
        texts: what `Metrics.text` returned in each process; None for a process that is down.
        devices: the device of each process.
    """
    up = Metric("higgs_native_worker_up", "Whether a process of the server answers.", "gauge")
    families = {up.name: up}
    for index, (text, device) in enumerate(zip(texts, devices, strict=True)):
        up.add_sample(up.name, {"worker": str(index), "device": device}, float(text is not None))
        for family in text_string_to_metric_families(text or ""):
            merged = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                merged.add_sample(sample.name, {"worker": str(index), **sample.labels}, sample.value)
    registry = CollectorRegistry()
    registry.register(_Families(list(families.values())))
    return generate_latest(registry)


class _Families(Collector):
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


def log(event: str, **fields: Any) -> None:
    """Log an event with its fields; those that are None are left out."""
    LOGGER.info(event, extra={"fields": {name: value for name, value in fields.items() if value is not None}})


class _JsonFormatter(logging.Formatter):
    def __init__(self, fields: Mapping[str, Any]) -> None:
        super().__init__()
        self._fields = fields

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **self._fields,
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def log_as_json(**fields: Any) -> None:
    """Write the logs of this server and of uvicorn to standard error, a JSON object per line.

    Args:
        fields: added to each line.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter(fields))
    for name in (LOGGER.name, "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)
