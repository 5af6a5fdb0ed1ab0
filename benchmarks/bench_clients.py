"""Measure the throughput of a speech server with several clients at once.

    python -m benchmarks.tools.make_checkpoint --out /data/higgs-random --layers 8
    higgs-native serve --model /data/higgs-random --quantization int8 &
    python -m benchmarks.bench_clients --url http://localhost:8000 --clients 1 8 --frames 50 250 --json report.json

Each client sends its requests one after the other (closed loop), all of the same number of frames: a random checkpoint
does not end by itself. The throughput is seconds of audio per second, from the first request to the last byte.
`benchmarks.tools.transformers_server` is a plain server to compare with.
"""

import argparse
import concurrent.futures
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from benchmarks.measure import write_json


SAMPLING_RATE = 24_000
TEXTS = (
    "The sun rises in the east and sets in the west.",
    "We walk home along the river in the evening.",
    "My brother has a small house near the sea.",
    "The children play with the dog in the garden.",
)
DELAY = 8
"""Steps beyond the frames of a speech: those of the delay pattern, and the first."""


def run(url: str, clients: int, frames: int, requests: int) -> dict[str, Any]:
    """Let clients speak at once, each some requests; return the figures."""

    def client(index: int) -> tuple[int, list[float]]:
        num_bytes, first_audio = 0, []
        with httpx.Client(base_url=url, timeout=None) as connection:
            for number in range(requests):
                seed = index * requests + number
                body = {
                    "model": "tts-1",
                    "voice": "alloy",
                    "input": TEXTS[seed % len(TEXTS)],
                    "response_format": "pcm",
                    "max_new_tokens": frames + DELAY,
                    "seed": seed,
                }
                begin = time.perf_counter()
                with connection.stream("POST", "/v1/audio/speech", json=body) as response:
                    response.raise_for_status()
                    for position, piece in enumerate(response.iter_raw()):
                        if not position:
                            first_audio.append(time.perf_counter() - begin)
                        num_bytes += len(piece)
        return num_bytes, first_audio

    begin = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        results = list(pool.map(client, range(clients)))
    seconds = time.perf_counter() - begin
    audio = sum(num_bytes for num_bytes, _ in results) / 2 / SAMPLING_RATE
    first = [time for _, times in results for time in times]
    return {
        "clients": clients,
        "frames": frames,
        "requests": clients * requests,
        "seconds": round(seconds, 2),
        "audio_seconds": round(audio, 2),
        "audio_seconds_per_second": round(audio / seconds, 3),
        "mean_first_audio_s": round(sum(first) / len(first), 2),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_clients", description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://localhost:8000")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8], help="at once, one run each")
    parser.add_argument("--frames", type=int, nargs="+", default=[50, 250], help="of each request: 25 per second")
    parser.add_argument("--requests", type=int, default=1, help="of each client")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(arguments)
    run(args.url, 1, 10, 1)  # the first request of a server takes longer
    report: dict[str, Any] = {"runs": []}
    for frames in args.frames:
        for clients in args.clients:
            report["runs"].append(run(args.url, clients, frames, args.requests))
            print(report["runs"][-1], flush=True)
    if args.json:
        write_json(args.json, report)


if __name__ == "__main__":
    main()
