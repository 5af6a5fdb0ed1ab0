"""Reports between the processes of one server, so that each process can answer for all."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any


_PATIENCE = 2.0
"""Seconds after which a process that does not answer counts as down: its event loop is never blocked for as long."""


@dataclass(frozen=True)
class Worker:
    """One of the processes that serve one port, each with a device.

    Attributes:
        index: of this process.
        devices: of all processes.
        folder: private to the server, for the sockets at which its processes answer each other.
    """

    index: int
    devices: tuple[str, ...]
    folder: Path

    @asynccontextmanager
    async def reporting(self, report: Callable[[], dict[str, Any]]) -> AsyncIterator[None]:
        """Answer the processes of the server, this one included, with a report in JSON."""

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with closing(writer):
                writer.write(json.dumps(report()).encode())
                await writer.drain()

        path = self._socket(self.index)
        path.unlink(missing_ok=True)  # of a process that this one replaces
        if sys.platform == "win32":  # a condition, since mypy does not follow an `assert` in a function
            raise AssertionError("a server is one process on Windows")
        server = await asyncio.start_unix_server(answer, path)
        try:
            yield
        finally:
            server.close()

    async def reports(self) -> list[dict[str, Any] | None]:
        """Return the reports of all processes; None for those that are down."""
        return await asyncio.gather(*(self._ask(index) for index in range(len(self.devices))))

    def _socket(self, index: int) -> Path:
        return self.folder / str(index)

    async def _ask(self, index: int) -> dict[str, Any] | None:
        try:
            return await asyncio.wait_for(self._read(index), _PATIENCE)
        except (OSError, ValueError, asyncio.TimeoutError):
            return None

    async def _read(self, index: int) -> dict[str, Any]:
        if sys.platform == "win32":  # a condition, since mypy does not follow an `assert` in a function
            raise AssertionError("a server is one process on Windows")
        reader, writer = await asyncio.open_unix_connection(self._socket(index))
        with closing(writer):
            return json.loads(await reader.read())
