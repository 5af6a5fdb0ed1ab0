"""Load a speech server, any with OpenAI's speech API, and report what its users would feel.

    higgs-native serve &
    python -m benchmarks.bench_serving --url http://localhost:8000 --rates 1,2,4,8 --json report.json --plot report.png

Requests arrive as a Poisson process (open loop): they do not wait for each other, as users don't, and each is timed
from its scheduled arrival, so that a server that stalls can't hide it. A speech that is played while it is made
underruns if a piece of it comes after the sound before it has been played.

The report has, per rate: the time to the first audio and to the first audible sample, underruns, the seconds of audio
per second (the number of real-time streams that the server sustained), refused requests, and errors.
"""

import argparse
import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np


SAMPLING_RATE = 24_000
AUDIBLE = 0.01
"""The level above which a sample counts as sound: 1 % of full scale, or -40 dB."""
TEXTS = (
    "Good morning.",
    "The sun rises in the east.",
    "Where is the key? It is on the table.",
    "We walk home along the river. The water is cold and clear, and the wind is strong.",
    "My brother has a small house near the sea. In summer we sit in the garden and talk about the old days. "
    "The children play with the dog, and in the evening we eat bread and cheese.",
)
MALFORMED: tuple[dict[str, Any], ...] = ({}, {"input": ""}, {"input": "Hello.", "speed": 9}, {"input": 3})


@dataclass
class Load:
    """The requests of a run, and their clients.

    Attributes:
        url: of the server.
        texts, voices, formats: each request has one of each, drawn at random.
        model: that requests name.
        key: of the client; may be empty.
        aborts: share of requests whose client leaves at a random moment.
        malformed: share of requests that must be refused.
        timeout: seconds that a client waits for the next piece.
    """

    url: str
    texts: Sequence[str] = TEXTS
    voices: Sequence[str] = ("alloy", "onyx")
    formats: Sequence[str] = ("pcm",)
    model: str = "tts-1"
    key: str = ""
    aborts: float = 0.0
    malformed: float = 0.0
    timeout: float = 60.0


@dataclass
class Outcome:
    """The result of a request. Times are in seconds since its scheduled arrival.

    Attributes:
        kind: `complete`, `aborted`, `refused` (429 or 503), `malformed` (refused as it should be), or `failed`.
        first_audio: time of the first byte of audio.
        first_audible: time of the first piece of pcm that can be heard.
        end: time of the last byte.
        audio: seconds of audio, of pcm only.
        underruns: number of late pieces, of pcm only; None for other formats.
        error: what failed.
    """

    kind: str = "failed"
    first_audio: float | None = None
    first_audible: float | None = None
    end: float = 0.0
    audio: float = 0.0
    underruns: int | None = None
    error: str = ""


@dataclass
class Report:
    """The outcomes of one rate.

    Attributes:
        rate: requests per second.
        seconds: from the first arrival to the last end.
        outcomes: of all requests.
    """

    rate: float
    seconds: float = 0.0
    outcomes: list[Outcome] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        complete = [outcome for outcome in self.outcomes if outcome.kind == "complete"]
        heard = [outcome for outcome in complete if outcome.underruns is not None]
        return {
            "rate": self.rate,
            "requests": len(self.outcomes),
            "seconds": round(self.seconds, 3),
            "outcomes": dict(Counter(outcome.kind for outcome in self.outcomes)),
            "errors": dict(Counter(outcome.error for outcome in self.outcomes if outcome.error)),
            "first_audio_ms": percentiles([outcome.first_audio for outcome in complete]),
            "first_audible_ms": percentiles([outcome.first_audible for outcome in heard]),
            "streams_with_underruns": sum(outcome.underruns > 0 for outcome in heard),
            "underruns": sum(outcome.underruns for outcome in heard),
            "audio_seconds_per_second": round(sum(outcome.audio for outcome in self.outcomes) / self.seconds, 3),
            "requests_per_second": round(len(complete) / self.seconds, 3),
        }


def percentiles(times: Sequence[float | None]) -> dict[str, float] | None:
    """Return the median, the 95th and the 99th percentile of times in seconds, in milliseconds; None of none."""
    known = [1000 * seconds for seconds in times if seconds is not None]
    if not known:
        return None
    return {f"p{percent}": round(float(np.percentile(known, percent)), 1) for percent in (50, 95, 99)}


class Listener:
    """Plays pcm as it comes, in thought: when each piece must be there, and when the first sound is heard."""

    def __init__(self) -> None:
        self.first_audible: float | None = None
        self.underruns = 0
        self.num_samples = 0
        self._odd = b""
        self._played = 0.0  # when all so far has been played

    def add(self, data: bytes, now: float) -> None:
        data = self._odd + data
        whole = len(data) // 2 * 2
        self._odd = data[whole:]
        samples = np.frombuffer(data[:whole], dtype="<i2")
        if not len(samples):
            return
        if self.num_samples and now > self._played:
            self.underruns += 1
        begin = max(now, self._played)
        loud = np.flatnonzero(np.abs(samples.astype(np.int32)) > AUDIBLE * 32768)
        if self.first_audible is None and len(loud):
            self.first_audible = begin + loud[0] / SAMPLING_RATE
        self._played = begin + len(samples) / SAMPLING_RATE
        self.num_samples += len(samples)


async def request(client: httpx.AsyncClient, load: Load, draw: random.Random, scheduled: float) -> Outcome:
    """Send one request, and read its response as it comes."""
    outcome, listener = Outcome(), Listener()
    format = draw.choice(load.formats)
    leaves = draw.random() * 2 if draw.random() < load.aborts else None
    malformed = draw.random() < load.malformed
    body = {
        "model": load.model,
        "input": draw.choice(load.texts),
        "voice": draw.choice(load.voices),
        "response_format": format,
    }
    if malformed:
        body = draw.choice(MALFORMED)

    def now() -> float:
        return time.perf_counter() - scheduled

    async def read() -> None:
        async with client.stream("POST", "/v1/audio/speech", json=body) as response:
            if malformed and 400 <= response.status_code < 500 and response.status_code != 429:
                outcome.kind = "malformed"
                return
            if response.status_code in (429, 503):
                outcome.kind = "refused"
                return
            if response.status_code != 200:
                outcome.error = f"status {response.status_code}"
                return
            async for data in response.aiter_raw():
                if outcome.first_audio is None:
                    outcome.first_audio = now()
                if format == "pcm":
                    listener.add(data, now())
            outcome.kind = "complete"
            if format == "pcm":
                outcome.underruns, outcome.first_audible = listener.underruns, listener.first_audible

    try:
        await asyncio.wait_for(read(), leaves)
    except asyncio.TimeoutError:
        outcome.kind = "aborted"
    except httpx.HTTPError as error:
        outcome.error = type(error).__name__
    if outcome.kind == "complete" and outcome.first_audio is None:
        outcome.kind, outcome.error = "failed", "no audio"
    outcome.end, outcome.audio = now(), listener.num_samples / SAMPLING_RATE
    return outcome


async def run(load: Load, rate: float, seconds: float, seed: int) -> Report:
    """Send requests for some seconds at a rate, and wait for the last of them."""
    draw = random.Random(f"{seed} {rate}")
    arrivals = []
    at = draw.expovariate(rate)
    while at < seconds:
        arrivals.append(at)
        at += draw.expovariate(rate)
    headers = {"Authorization": f"Bearer {load.key}"} if load.key else {}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=100)
    report = Report(rate)
    async with httpx.AsyncClient(
        base_url=load.url, headers=headers, limits=limits, timeout=httpx.Timeout(load.timeout)
    ) as client:
        begin = time.perf_counter()

        async def later(at: float, own: random.Random) -> Outcome:
            await asyncio.sleep(max(0.0, begin + at - time.perf_counter()))
            return await request(client, load, own, begin + at)

        tasks = [asyncio.create_task(later(at, random.Random(draw.random()))) for at in arrivals]
        report.outcomes = list(await asyncio.gather(*tasks))
        report.seconds = time.perf_counter() - begin
    return report


def table(summaries: Sequence[dict[str, Any]]) -> str:
    """Return the summaries as a table in Markdown."""

    def times(summary: dict[str, Any], name: str) -> str:
        return " / ".join(f"{value:.0f}" for value in (summary[name] or {}).values()) or "-"

    rows = [
        (
            f"{summary['rate']:g}",
            times(summary, "first_audio_ms"),
            times(summary, "first_audible_ms"),
            f"{summary['streams_with_underruns']} of {summary['outcomes'].get('complete', 0)}",
            f"{summary['audio_seconds_per_second']:.2f}",
            f"{summary['requests_per_second']:.2f}",
            str(summary["outcomes"].get("refused", 0)),
            str(summary["outcomes"].get("failed", 0)),
        )
        for summary in summaries
    ]
    titles = (
        "requests/s",
        "first audio, ms, p50 / p95 / p99",
        "first audible, ms",
        "streams with underruns",
        "audio-s/s",
        "complete/s",
        "refused",
        "failed",
    )
    return "\n".join(f"| {' | '.join(row)} |" for row in (titles, ["---"] * len(titles), *rows))


def plot(summaries: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the time to first audio and the throughput over the rate."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    rates = [summary["rate"] for summary in summaries]
    for name in ("p50", "p95", "p99"):
        times = [(summary["first_audio_ms"] or {}).get(name, float("nan")) for summary in summaries]
        left.plot(rates, times, marker="o", label=name)
    left.set(xlabel="requests per second", ylabel="time to first audio, ms", ylim=(0, None))
    left.legend()
    right.plot(rates, [summary["audio_seconds_per_second"] for summary in summaries], marker="o")
    right.set(xlabel="requests per second", ylabel="seconds of audio per second", ylim=(0, None))
    figure.savefig(path, dpi=150)


def numbers(text: str) -> list[float]:
    values = [float(part) for part in text.split(",")]
    if not all(0 < value < float("inf") for value in values):
        raise argparse.ArgumentTypeError(f"rates must be above 0, got {text}")
    return values


def share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"a share must be between 0 and 1, got {text}")
    return value


def names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_serving", description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://localhost:8000")
    parser.add_argument("--rates", type=numbers, default=[1.0], help="requests per second, one run each: 1,2,4")
    parser.add_argument("--seconds", type=float, default=30.0, help="of arrivals per rate")
    parser.add_argument("--texts", type=Path, help="a file with a text per line")
    parser.add_argument("--voices", type=names, default=list(Load.voices))
    parser.add_argument("--formats", type=names, default=list(Load.formats), help="pcm is also listened to")
    parser.add_argument("--model", default=Load.model)
    parser.add_argument("--key", default="")
    parser.add_argument("--aborts", type=share, default=0.0, help="share of clients that leave within two seconds")
    parser.add_argument("--malformed", type=share, default=0.0, help="share of requests that must be refused")
    parser.add_argument("--timeout", type=float, default=Load.timeout)
    parser.add_argument("--seed", type=int, default=0, help="of arrivals and of what is sent")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args(arguments)
    texts = options.texts.read_text(encoding="utf-8").splitlines() if options.texts else TEXTS
    load = Load(
        options.url,
        [text for text in texts if text.strip()],
        options.voices,
        options.formats,
        options.model,
        options.key,
        options.aborts,
        options.malformed,
        options.timeout,
    )
    asyncio.run(run(load, 1.0, 2.0, options.seed))  # the first requests of a server take longer
    summaries = [asyncio.run(run(load, rate, options.seconds, options.seed)).summary() for rate in options.rates]
    print(table(summaries))
    for summary in summaries:
        if summary["errors"]:
            print(f"errors at {summary['rate']:g} requests/s: {summary['errors']}")
    if options.json:
        options.json.write_text(json.dumps(summaries, indent=2) + "\n", encoding="utf-8")
    if options.plot:
        plot(summaries, options.plot)


if __name__ == "__main__":
    main()
