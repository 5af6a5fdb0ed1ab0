"""The Wyoming protocol, spoken by its own client."""

import asyncio
import socket
from contextlib import asynccontextmanager

import pytest

from higgs_native.cli import main
from higgs_native.pipeline import HiggsAudio
from higgs_native.server.http.app import create_app
from higgs_native.server.settings import ServerSettings
from tests.helpers.waiting import PATIENCE
from tests.server.conftest import LONG_TEXT, TEXT


pytest.importorskip("wyoming", reason="needs the extra wyoming")

from wyoming.audio import AudioChunk, AudioStart
from wyoming.client import AsyncTcpClient
from wyoming.event import Event
from wyoming.info import Describe, Info
from wyoming.tts import Synthesize, SynthesizeVoice

from higgs_native.server.wyoming import serving_wyoming


@asynccontextmanager
async def connected(engine, **settings):
    """A client of a server in this event loop; gives the service, too."""
    service = create_app(engine, ServerSettings(**settings)).state.service
    bound = socket.create_server(("127.0.0.1", 0))
    async with serving_wyoming(service, bound), AsyncTcpClient(*bound.getsockname(), read_timeout=PATIENCE) as client:
        yield client, service


async def heard(client) -> tuple[list[str], bytes]:
    """The types of the events of a speech, and its audio."""
    types, audio = [], b""
    while True:
        event = await client.read_event()
        types.append(event.type)
        if AudioChunk.is_type(event.type):
            chunk = AudioChunk.from_event(event)
            assert (chunk.rate, chunk.width, chunk.channels) == (24_000, 2, 1)
            audio += chunk.audio
        elif not AudioStart.is_type(event.type):
            return types, audio


async def error(client) -> tuple[str, str]:
    event = await client.read_event()
    assert event.type == "error"
    return event.data["code"], event.data["text"]


def test_a_client_hears_what_a_stream_holds(engine, streamed):
    async def scenario():
        async with connected(engine) as (client, _):
            spoken = []
            for voice, text in (("masculine", TEXT), ("feminine", "Hello.")):
                await client.write_event(Synthesize(text, SynthesizeVoice(voice)).event())
                spoken.append(await heard(client))
            return spoken

    for (types, audio), (voice, text) in zip(
        asyncio.run(scenario()), (("masculine", TEXT), ("feminine", "Hello.")), strict=True
    ):
        assert types[0] == "audio-start"
        assert types[-1] == "audio-stop"
        assert len(audio) == pytest.approx(streamed(text, voice, seed=1).nbytes, rel=0.5)
    assert len(asyncio.run(scenario())[0][0]) > 3  # it came in chunks


def test_a_text_has_its_speed(engine):
    async def scenario():
        async with connected(engine) as (client, _):
            lengths = []
            for text in (f"[speed:0.25] {TEXT}", f"[speed:4] {TEXT}"):
                await client.write_event(Synthesize(text).event())
                lengths.append(len((await heard(client))[1]))
            await client.write_event(Synthesize("[speed:9] Hello.").event())
            return lengths, await error(client)

    (slow, fast), told = asyncio.run(scenario())
    assert slow / fast == pytest.approx(16, rel=0.5)  # their seeds differ
    assert told == ("invalid_value", "a speed must be between 0.25 and 4, got '[speed:9]'")


def test_voices_are_described(engine):
    async def scenario():
        async with connected(engine) as (client, _):
            await client.write_event(Describe().event())
            return Info.from_event(await client.read_event())

    (program,) = asyncio.run(scenario()).tts
    assert program.installed
    assert {"feminine", "masculine", "alloy"} <= {voice.name for voice in program.voices}
    assert all(voice.languages == ["en"] for voice in program.voices)  # the demonstration voice knows no other


def test_wrong_requests_are_told_and_the_connection_goes_on(engine):
    async def scenario():
        async with connected(engine, max_characters=40) as (client, service):
            told = []
            for data in (
                {"text": ""},
                {},
                {"text": 3},
                {"text": "a" * 41},
                {"text": "Hello.", "voice": {"name": "../../etc/passwd"}},
                {"text": "Hello.", "voice": 3},
                {"text": "<|AUDIO|>"},
            ):
                await client.write_event(Event("synthesize", data))
                told.append((await error(client))[0])
            service.admission.is_draining = True
            await client.write_event(Synthesize("Hello.").event())
            told.append((await error(client))[0])
            return told

    assert asyncio.run(scenario()) == [
        "invalid_value",
        "invalid_value",
        "invalid_value",
        "string_above_max_length",
        "voice_not_found",
        "invalid_value",
        "invalid_value",
        "server_shutting_down",
    ]


@pytest.mark.parametrize(
    "sent",
    [
        b"{\n",
        b"[]\n",
        b"{}\n",
        b"[" * 50_000 + b"\n",
        b"a" * 100_000,
        b"\xff\n",
        b'{"type": "describe", "data_length": 99999999999}\n',
        b'{"type": "describe", "data_length": "a"}\n',
        b'{"type": "describe", "payload_length": 10}\n123',
        b'{"type": "synthesize", "data": 3}\n',
        b"",
    ],
)
def test_what_is_no_event_ends_the_connection_only(engine, sent):
    async def scenario():
        async with connected(engine, idle_seconds=0.5) as (client, service):
            client._writer.write(sent)
            assert await client.read_event() is None
            assert service.sessions == 0
            async with AsyncTcpClient(*client._writer.get_extra_info("peername"), read_timeout=PATIENCE) as other:
                await other.write_event(Describe().event())
                assert Info.is_type((await other.read_event()).type)

    asyncio.run(scenario())


def test_connections_have_a_limit(engine):
    async def scenario():
        async with connected(engine, max_running=1, max_queued=0) as (client, _):
            await client.write_event(Describe().event())
            assert Info.is_type((await client.read_event()).type)
            async with AsyncTcpClient(*client._writer.get_extra_info("peername"), read_timeout=PATIENCE) as other:
                assert (await error(other))[0] == "rate_limit_exceeded"
                assert await other.read_event() is None

    asyncio.run(scenario())


def test_a_client_that_leaves_frees_its_slot(engine):
    async def scenario():
        async with connected(engine, max_running=1) as (client, service):
            await client.write_event(Synthesize(LONG_TEXT * 20).event())
            while not AudioChunk.is_type((await client.read_event()).type):
                pass
            await client.disconnect()
            while service.sessions or service.admission.running:
                await asyncio.sleep(0.01)
            return service.metrics.text().decode()

    assert "higgs_native_clients_left_total 1.0" in asyncio.run(scenario())


def test_the_command_serves_both(serve):
    process, _, log = serve("--wyoming-port", "0", "--devices", "cpu,cpu")
    (line,) = [line for line in log.read_text().splitlines() if line.startswith("Wyoming at tcp://")]
    host, port = line.removeprefix("Wyoming at tcp://").split(":")

    async def scenario():
        async with AsyncTcpClient(host, int(port), read_timeout=PATIENCE) as client:
            await client.write_event(Synthesize("Hello.").event())
            return await heard(client)

    types, audio = asyncio.run(scenario())
    assert types[-1] == "audio-stop"
    assert len(audio) > 10_000
    process.terminate()
    assert process.wait(PATIENCE) == 0


def test_keys_and_the_protocol_exclude_each_other(monkeypatch, capsys):
    monkeypatch.setenv("HIGGS_NATIVE_API_KEYS", "secret")
    monkeypatch.setattr(HiggsAudio, "from_pretrained", None)
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--port", "0", "--wyoming-port", "0"])
    assert ended.value.code == 2
    told = "error: --wyoming-port must be left out if there are keys, which its clients can't send\n"
    assert capsys.readouterr().err == told
