"""A speech server under thousands of requests, some of which no good client would send, and restarted in between.

By hand, from the root of the repository: python -m tests.helpers.soak --requests 20000

Each answer is compared, to the byte, with that of a quiet server. A fifth of the clients leave at a random moment.
Some read slowly, send half a request, or what is no request. Two restarts fall into the load. Memory, threads and
descriptors of the server are written down all the time.
"""

import argparse
import asyncio
import base64
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

import higgs_native
from tests.helpers.waiting import PATIENCE


TEXTS = ("Hello.", "Good morning.", "We walk home.", "The sun rises in the east.", "Hello. Good morning.")
VOICES = ("alloy", "masculine")
FORMATS = ("pcm", "wav", "mp3", "flac", "opus", "aac")
KINDS = {
    "whole": 0.66,
    "aborted": 0.20,
    "malformed": 0.05,
    "slow": 0.02,
    "half-open": 0.02,
    "batch": 0.02,
    "session": 0.03,
}
MALFORMED = (
    b"",
    b"{",
    b"[]",
    b'{"input": ""}',
    b'{"input": 3}',
    b'{"input": "a", "speed": 9}',
    b'{"input": "a", "voice": "../../etc/passwd"}',
    b'{"input": "a", "ref_audio": "file:///etc/passwd"}',
    b'{"input": "<|AUDIO|>"}',
    b"\xff" * 100,
)
HALVES = (
    b"POST /v1/audio/speech HT",
    b"POST /v1/audio/speech HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{",
    b"GET /v1/audio/speech/stream HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n",
    b"",
)


@dataclass
class Sample:
    """The state of a server at a moment, of all of its processes together."""

    seconds: float
    resident_mb: float
    threads: int
    descriptors: int


@dataclass
class Server:
    """The command, on a port that stays the same when it is started again."""

    options: Sequence[str]
    log: Path
    url: str = ""
    process: subprocess.Popen | None = None
    lives: list[list[Sample]] = field(default_factory=list)
    is_restarting: bool = False
    begin: float = field(default_factory=time.monotonic)

    async def start(self) -> None:
        port = self.url.rpartition(":")[2] or "0"
        package = str(Path(higgs_native.__file__).parent.parent)
        begin = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "higgs_native", "serve", "--port", port, *self.options],
                env={**os.environ, "PYTHONPATH": package},
                stdout=subprocess.DEVNULL,
                stderr=file,
            )
        self.lives.append([])
        end = time.monotonic() + PATIENCE
        while True:
            assert self.process.poll() is None, self.log.read_text()[begin:]
            assert time.monotonic() < end, "the server does not start"
            lines = self.log.read_bytes()[begin:].decode().splitlines()
            told = [line for line in lines if line.startswith("Speech at ")]
            if told:
                self.url = told[0].removeprefix("Speech at ").removesuffix("/v1/audio/speech")
                return
            await asyncio.sleep(0.1)

    async def restart(self) -> float:
        """Drain the server under load and start it again. Return the seconds of the drain."""
        self.sample()
        self.is_restarting = True
        begin = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        while self.process.poll() is None:
            await asyncio.sleep(0.05)
        drained = time.monotonic() - begin
        assert self.process.returncode == 0, f"the server must drain, got exit code {self.process.returncode}"
        await self.start()
        self.is_restarting = False
        return drained

    def sample(self) -> None:
        """Write down the state of the server."""
        try:
            processes = [self.process.pid, *_children(self.process.pid)]
            pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in processes)
            threads = sum(len(os.listdir(f"/proc/{pid}/task")) for pid in processes)
            descriptors = sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in processes)
        except (FileNotFoundError, ProcessLookupError):  # a process that ends
            return
        resident = round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)
        self.lives[-1].append(Sample(round(time.monotonic() - self.begin, 1), resident, threads, descriptors))


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


class Soak:
    """The load: its clients, what they expect, and what went wrong.

    Args:
        server: runs.
        requests: how many.
        clients: at a time.
        seed: of everything that is drawn.
    """

    def __init__(self, server: Server, requests: int, clients: int, seed: int) -> None:
        self._server = server
        self._requests = requests
        self._clients = clients
        self._draw = random.Random(seed)
        self._expected: dict[str, bytes] = {}
        self._done = 0
        self._begin = time.monotonic()
        self.ends: Counter[str] = Counter()
        self.problems: list[str] = []
        self.drains: list[float] = []
        self.pauses: list[tuple[float, float]] = []

    async def run(self) -> None:
        begin = self._begin
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=self._clients)
        async with httpx.AsyncClient(base_url=self._server.url, limits=limits, timeout=None) as self._client:
            await self._learn()
            sampling = asyncio.create_task(self._sample(begin))
            kinds = self._draw.choices(list(KINDS), list(KINDS.values()), k=self._requests)
            waiting = iter([(kind, random.Random(self._draw.random())) for kind in kinds])

            async def client() -> None:
                for kind, draw in waiting:
                    end = await self._request(kind, draw)
                    self._done += 1
                    if end == "refused":
                        await asyncio.sleep(1)  # as Retry-After says
                    while end == "no server" and self._server.is_restarting:
                        await asyncio.sleep(0.1)

            clients = [asyncio.create_task(client()) for _ in range(self._clients)]
            for share in (1 / 3, 2 / 3):
                while self._done < share * self._requests:
                    await asyncio.sleep(0.05)
                self.drains.append(round(await self._server.restart(), 2))
            await asyncio.gather(*clients)
            await self._check_idle()
            sampling.cancel()
            self._server.sample()

    async def _sample(self, begin: float) -> None:
        while True:
            if not self._server.is_restarting:
                self._server.sample()
            before = time.monotonic()
            await asyncio.sleep(2)
            if time.monotonic() - before > 10:  # the machine was elsewhere: time-outs may follow
                self.pauses.append((round(before - begin), round(time.monotonic() - begin)))

    async def _learn(self) -> None:
        """Hear each speech from the quiet server; in a batch, a text of several sentences sounds otherwise."""
        for text in TEXTS:
            for voice in VOICES:
                for format in FORMATS:
                    body = _body(text, voice, format)
                    response = await self._client.post("/v1/audio/speech", json=body)
                    assert response.status_code == 200, response.text
                    self._expected[json.dumps(body)] = _without_serial(response.content)
                    body["stream"] = False
                    response = await self._client.post("/v1/audio/speech/batch", json={"items": [body]})
                    audio = base64.b64decode(response.json()["data"][0]["audio"])
                    self._expected[json.dumps(body)] = _without_serial(audio)

    async def _check_idle(self) -> None:
        """When all clients are gone, nothing may be left of their requests."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            lines = (await self._client.get("/metrics")).text.splitlines()
            busy = [
                line
                for line in lines
                if line.startswith(("higgs_native_requests_running", "higgs_native_requests_queued"))
                and float(line.split()[-1])
            ]
            if not busy:
                return
            await asyncio.sleep(0.1)
        self._problem(f"an idle server must have no requests, got {busy}")

    async def _request(self, kind: str, draw: random.Random) -> str:
        """Send a request. Return how it ended."""
        body = _body(draw.choice(TEXTS), draw.choice(VOICES), draw.choice(FORMATS))
        was_restarting = self._server.is_restarting
        received = bytearray()
        try:
            end = await getattr(self, "_" + kind.replace("-", "_"))(body, draw, received)
        except (httpx.TransportError, OSError, EOFError, WebSocketException) as error:
            # While a server ends and the next one starts, connections may be refused; a speech that has begun is sent.
            end = "no server"
            if received or not (was_restarting or self._server.is_restarting):
                end = self._problem(f"{kind} {body}: {error!r} after {len(received)} bytes")
        self.ends[f"{kind}: {end}"] += 1
        return end

    async def _whole(self, body: dict[str, Any], draw: random.Random, received: bytearray) -> str:
        async with self._client.stream("POST", "/v1/audio/speech", json=body) as response:
            if response.status_code != 200:
                return self._refused(body, response, await response.aread())
            async for data in response.aiter_raw():
                received += data
        return self._compare(body, bytes(received))

    async def _aborted(self, body: dict[str, Any], draw: random.Random, received: bytearray) -> str:
        try:
            return await asyncio.wait_for(self._whole(body, draw, received), draw.random() ** 2 * 2)
        except asyncio.TimeoutError:
            if not self._expected[json.dumps(body)].startswith(_without_serial(bytes(received))):
                return self._problem(f"aborted {body}: wrong bytes among the first {len(received)}")
            return "left"

    async def _malformed(self, body: dict[str, Any], draw: random.Random, received: bytearray) -> str:
        headers = {"content-type": "application/json"}
        response = await self._client.post("/v1/audio/speech", content=draw.choice(MALFORMED), headers=headers)
        end = self._refused({}, response, response.content)
        return "told" if end == "refused" and response.status_code not in (429, 503) else end

    async def _slow(self, body: dict[str, Any], draw: random.Random, received: bytearray) -> str:
        """Read a little at a time, over a connection of its own."""
        content = json.dumps(body).encode()
        reader, writer = await self._connected()
        try:
            head = f"POST /v1/audio/speech HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(content)}"
            writer.write(head.encode() + b"\r\n\r\n" + content)
            status = int((await _line(reader)).split()[1])
            while (await _line(reader)).strip():
                pass
            if status != 200:
                return "refused" if status in (429, 503) else self._problem(f"slow {body}: status {status}")
            while size := int(await _line(reader), 16):
                for offset in range(0, size, 4096):
                    received += await reader.readexactly(min(4096, size - offset))
                    await asyncio.sleep(0.02)
                await reader.readline()
        finally:
            writer.close()
        return self._compare(body, bytes(received))

    async def _half_open(self, body: dict[str, Any], draw: random.Random, received: bytearray) -> str:
        _, writer = await self._connected()
        writer.write(draw.choice(HALVES))
        await asyncio.sleep(draw.random() * 5)
        writer.transport.abort()
        return "left"

    async def _batch(self, body: dict[str, Any], draw: random.Random, received: bytearray) -> str:
        items = [
            {**_body(draw.choice(TEXTS), draw.choice(VOICES), draw.choice(FORMATS)), "stream": False} for _ in range(3)
        ]
        response = await self._client.post("/v1/audio/speech/batch", json={"items": items})
        if response.status_code != 200:
            return self._refused({}, response, response.content)
        ends = set()
        for item, result in zip(items, response.json()["data"], strict=True):
            if result["status"] == 200:
                ends.add(self._compare(item, base64.b64decode(result["audio"])))
            elif result["status"] in (429, 503):
                ends.add("refused")
            else:
                ends.add(self._problem(f"batch {item}: {result}"))
        return " and ".join(sorted(ends))

    async def _session(self, body: dict[str, Any], draw: random.Random, received: bytearray) -> str:
        url = self._server.url.replace("http", "ws") + "/v1/audio/speech/stream"
        text = draw.choice([text for text in TEXTS if text.count(".") == 1])
        settings = {**_body(text, body["voice"], "pcm"), "type": "session"}
        expected = {name: value for name, value in settings.items() if name != "type"}
        del settings["input"]
        async with connect(url, proxy=None, open_timeout=PATIENCE, ping_interval=None) as socket:
            for message in (settings, {"type": "text", "text": text}, {"type": "done"}):
                await socket.send(json.dumps(message))
            async for message in socket:
                if isinstance(message, bytes):
                    received += message
                    continue
                told = json.loads(message)
                if told["type"] == "error":
                    code = told["error"]["code"]
                    refused = code in ("rate_limit_exceeded", "server_shutting_down")
                    return "refused" if refused else self._problem(f"session {text}: {told}")
                if told["type"] == "done":
                    break
        return self._compare(expected, bytes(received))

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, port = self._server.url.removeprefix("http://").split(":")
        return await asyncio.open_connection(host, int(port), limit=8192)

    def _compare(self, body: dict[str, Any], content: bytes) -> str:
        if _without_serial(content) != self._expected[json.dumps(body)]:
            return self._problem(f"{body}: wrong bytes, {len(content)} of {len(self._expected[json.dumps(body)])}")
        return "spoken"

    def _refused(self, body: dict[str, Any], response: httpx.Response, content: bytes) -> str:
        """Check an error: its shape, and that a good request is only refused for want of room, or of a server."""
        status = response.status_code
        try:
            has_shape = set(json.loads(content)["error"]) == {"message", "type", "param", "code"}
        except (ValueError, KeyError, TypeError):
            has_shape = False
        allowed = {429, 503} if body else {400, 403, 404, 429, 503}
        if not has_shape or status not in allowed or (status in (429, 503) and "retry-after" not in response.headers):
            return self._problem(f"{body}: status {status}, {content[:200]!r}")
        return "refused"

    def _problem(self, text: str) -> str:
        self.problems.append(f"after {time.monotonic() - self._begin:.1f} s: {text}")
        return "wrong"


def _without_serial(content: bytes) -> bytes:
    """Return Ogg without the serial number of its stream, which is random, and the checksums of its pages."""
    pages = bytearray(content)
    at = 0
    while content[at : at + 4] == b"OggS":
        for begin, end in ((14, 18), (22, 26)):
            present = len(pages[at + begin : at + end])
            pages[at + begin : at + begin + present] = bytes(present)
        if at + 27 > len(content):
            break
        lengths = content[at + 27 : at + 27 + content[at + 26]]
        at += 27 + content[at + 26] + sum(lengths)
    return bytes(pages)


async def _line(reader: asyncio.StreamReader) -> bytes:
    line = await reader.readline()
    if not line:
        raise EOFError("the server has closed the connection")
    return line


def _body(text: str, voice: str, format: str) -> dict[str, Any]:
    return {"input": text, "voice": voice, "response_format": format, "seed": 7}


def growth(life: Sequence[Sample]) -> dict[str, list[float]]:
    """Return the state of a server after a tenth of its life, in the middle of it, and at its end."""
    moments = [life[len(life) // 10], life[len(life) // 2], life[-1]]
    return {name: [getattr(sample, name) for sample in moments] for name in Sample.__annotations__}


async def soak(options: argparse.Namespace, log: Path) -> dict[str, Any]:
    """Run the load. Return what happened."""
    server = Server(options.serve.split(), log)
    await server.start()
    load = Soak(server, options.requests, options.clients, options.seed)
    begin = time.monotonic()
    try:
        await load.run()
        server.process.send_signal(signal.SIGTERM)
        exit_code = await asyncio.to_thread(server.process.wait, PATIENCE)
    finally:
        server.process.kill()
        server.process.wait()
    logged = log.read_text()
    problems = load.problems + [f"exit code {exit_code}"] * (exit_code != 0)
    problems += [line[:500] for line in logged.splitlines() if "Traceback" in line or '"status": 500' in line]
    return {
        "requests": options.requests,
        "seconds": round(time.monotonic() - begin, 1),
        "ends": dict(sorted(load.ends.items())),
        "seconds_of_drains": load.drains,
        "pauses_of_the_machine": load.pauses,
        "lives": [growth(life) for life in server.lives],
        "problems": len(problems),
        "first_problems": problems[:20],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.helpers.soak", description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--clients", type=int, default=24, help="at a time")
    parser.add_argument("--serve", default="--max-running 16 --max-queued 64", help="options of the server")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path, default=Path("soak.log"), help="of the server")
    options = parser.parse_args(arguments)
    options.log.unlink(missing_ok=True)
    result = asyncio.run(soak(options, options.log))
    print(json.dumps(result, indent=2))
    sys.exit(1 if result["problems"] else 0)


if __name__ == "__main__":
    main()
