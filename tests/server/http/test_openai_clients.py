"""Clients that people already have: OpenAI's, and requests in the shapes that others send."""

import asyncio
import base64
import json
import shutil
import subprocess
from contextlib import closing

import av
import numpy as np
import openai
import pytest

from tests.helpers.waiting import PATIENCE
from tests.server.conftest import LONG_TEXT, TEXT, decoded


JAVASCRIPT = """
const OpenAI = require("openai");
const [baseURL, input] = process.argv.slice(1);
const client = new OpenAI({ baseURL, apiKey: "unused", maxRetries: 0 });
const speech = { model: "tts-1", voice: "alloy", input, response_format: "pcm", seed: 7 };

async function main() {
  const whole = Buffer.from(await (await client.audio.speech.create(speech)).arrayBuffer());

  const pieces = [];
  for await (const piece of (await client.audio.speech.create(speech)).body) pieces.push(piece);

  const events = await client.audio.speech.create({ ...speech, stream_format: "sse" });
  const parsed = (await events.text()).trim().split("\\n\\n").map(line => JSON.parse(line.replace("data: ", "")));

  const errors = [];
  for (const fields of [{ voice: "zoe" }, { model: "whisper-1" }]) {
    await client.audio.speech.create({ ...speech, ...fields }).catch(
      error => errors.push([error.constructor.name, error.status, error.param, error.code]));
  }
  const models = [];
  for await (const model of client.models.list()) models.push(model.id);

  console.log(JSON.stringify({
    whole: whole.toString("base64"),
    pieces: pieces.length,
    streamed: Buffer.concat(pieces).toString("base64"),
    events: parsed,
    errors,
    models,
  }));
}

main();
"""


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=server.url + "/v1", api_key="unused", max_retries=0) as client:
        yield client


def test_create_gives_an_mp3(client, tmp_path):
    speech = client.audio.speech.create(model="gpt-4o-mini-tts", voice="coral", input=TEXT)
    speech.write_to_file(tmp_path / "speech.mp3")
    samples, rate = decoded((tmp_path / "speech.mp3").read_bytes())
    assert rate == 24_000
    assert len(samples) > rate


def test_the_streaming_response_gives_pieces(client, streamed):
    create = client.audio.speech.with_streaming_response.create
    with create(model="tts-1", voice="alloy", input=TEXT, response_format="pcm", extra_body={"seed": 7}) as response:
        pieces = list(response.iter_bytes())
        assert response.headers["x-seed"] == "7"
    assert len(pieces) > 1
    assert b"".join(pieces) == streamed(seed=7).tobytes()


def test_events_are_read(client, streamed):
    create = client.audio.speech.with_streaming_response.create
    audio, kinds = b"", []
    with create(
        model="gpt-4o-mini-tts",
        voice={"id": "feminine"},
        input=TEXT,
        response_format="pcm",
        stream_format="sse",
        extra_body={"seed": 7},
    ) as response:
        for line in response.iter_lines():
            if line:
                event = json.loads(line.removeprefix("data: "))
                kinds.append(event["type"])
                audio += base64.b64decode(event.get("audio", ""))
    assert kinds[-1] == "speech.audio.done"
    assert audio == streamed(seed=7).tobytes()


def test_errors_are_the_clients_exceptions(client):
    with pytest.raises(openai.BadRequestError) as refused:
        client.audio.speech.create(model="tts-1", voice="zoe", input=TEXT)
    assert (refused.value.param, refused.value.code) == ("voice", "voice_not_found")
    assert refused.value.type == "invalid_request_error"
    assert refused.value.request_id
    with pytest.raises(openai.NotFoundError) as missing:
        client.audio.speech.create(model="whisper-1", voice="alloy", input=TEXT)
    assert missing.value.code == "model_not_found"


def test_models_are_listed(client):
    assert [model.id for model in client.models.list()] == ["embedded-voice", "tts-1", "tts-1-hd", "gpt-4o-mini-tts"]
    assert client.models.retrieve("tts-1").owned_by == "higgs-native"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("whisper-1")


def test_the_asynchronous_client_speaks_several_at_once(server, streamed):
    async def speak_all():
        async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="unused") as client:

            async def speak(seed):
                create = client.audio.speech.with_streaming_response.create
                async with create(
                    model="tts-1", voice="onyx", input=TEXT, response_format="pcm", extra_body={"seed": seed}
                ) as response:
                    return await response.read()

            return await asyncio.gather(*(speak(seed) for seed in range(4)))

    expected = [streamed(voice="masculine", seed=seed).tobytes() for seed in range(4)]
    assert asyncio.run(speak_all()) == expected


def test_the_javascript_client_speaks(server, streamed):
    node = shutil.which("node")
    has_client = node and not subprocess.run([node, "-e", "require('openai')"], capture_output=True).returncode
    if not has_client:
        pytest.skip("needs Node.js, and its package openai in a folder of NODE_PATH")
    command = [node, "-e", JAVASCRIPT, server.url + "/v1", TEXT]
    result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert (result.returncode, result.stderr) == (0, "")
    told = json.loads(result.stdout)
    expected = streamed(seed=7).tobytes()
    assert base64.b64decode(told["whole"]) == base64.b64decode(told["streamed"]) == expected
    assert told["pieces"] > 1
    *deltas, done = told["events"]
    assert b"".join(base64.b64decode(event["audio"]) for event in deltas) == expected
    assert done["type"] == "speech.audio.done"
    assert told["errors"] == [
        ["BadRequestError", 400, "voice", "voice_not_found"],
        ["NotFoundError", 404, "model", "model_not_found"],
    ]
    assert told["models"] == ["embedded-voice", "tts-1", "tts-1-hd", "gpt-4o-mini-tts"]


def test_a_key_is_needed_where_there_are_keys(start):
    server = start(api_keys=("secret-1", "secret-2"))
    with (
        openai.OpenAI(base_url=server.url + "/v1", api_key="secret", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError) as refused,
    ):
        client.audio.speech.create(model="tts-1", voice="alloy", input=TEXT)
    assert refused.value.code == "invalid_api_key"
    assert "secret-1" not in str(refused.value)
    with openai.OpenAI(base_url=server.url + "/v1", api_key="secret-2") as client:
        assert client.models.list().data
        assert client.audio.speech.create(model="tts-1", voice="alloy", input=TEXT).content
    assert server.client.get("/health").status_code == 200


def test_open_webui_finds_models_and_voices(server):
    """It reads `models[].id`, and `voices[].id` and `.name`: objects, not strings."""
    models = server.client.get("/v1/audio/models").json()["models"]
    assert "tts-1" in [model["id"] for model in models]
    voices = server.client.get("/v1/audio/voices").json()["voices"]
    assert {"alloy", "feminine"} <= {voice["id"] for voice in voices}
    assert all(isinstance(voice["name"], str) for voice in voices)
    body = {"model": "tts-1", "input": TEXT, "voice": "alloy"}
    headers = {"Authorization": "Bearer sk-unused", "X-OpenWebUI-User-Name": "anna"}
    response = server.client.post("/v1/audio/speech", json=body, headers=headers)
    assert response.headers["content-type"] == "audio/mpeg"
    assert len(decoded(response.content)[0]) > 24_000


def test_silly_tavern_speaks(server):
    body = {"model": "tts-1", "input": TEXT, "voice": "nova", "response_format": "mp3", "speed": 1}
    response = server.client.post("/v1/audio/speech", json=body)
    assert len(decoded(response.content)[0]) > 24_000


def test_pipecat_streams_pcm(server, streamed):
    """It asks for pcm without instructions, and reads pieces of 1,024 bytes."""
    body = {"input": TEXT, "model": "gpt-4o-mini-tts", "voice": "alloy", "response_format": "pcm", "seed": 7}
    with server.client.stream("POST", "/v1/audio/speech", json=body) as response:
        assert response.status_code == 200
        audio = b"".join(response.iter_bytes(chunk_size=1024))
    assert audio == streamed(seed=7).tobytes()


def test_litellm_sends_what_it_does_not_know(server):
    body = {"model": "tts-1", "input": TEXT, "voice": "alloy", "user": "anna", "metadata": {}, "optional_params": None}
    assert server.client.post("/v1/audio/speech", json=body).status_code == 200


def test_livekit_asks_for_events_of_mp3(server):
    body = {"input": TEXT, "model": "gpt-4o-mini-tts", "voice": "ash", "response_format": "mp3", "speed": 1.0}
    response = server.client.post("/v1/audio/speech", json={**body, "instructions": None, "stream_format": "sse"})
    lines = [line for line in response.text.splitlines() if line]
    assert all(line.startswith("data: {") for line in lines)


class Growing:
    """A file that is written while it is read, as by `tail -f speech.wav | ffmpeg -i -`."""

    def __init__(self, path, pieces):
        self.size = 0
        self._pieces = pieces
        self._written = path.open("wb", buffering=0)
        self._read = path.open("rb", buffering=0)

    def read(self, count: int) -> bytes:
        while not (data := self._read.read(count)) and (piece := next(self._pieces, b"")):
            self.size += self._written.write(piece)
        return data

    def close(self):
        self._written.close()
        self._read.close()


def test_a_wav_is_played_while_it_grows(server, tmp_path):
    """By FFmpeg's library."""
    speech = {"input": LONG_TEXT, "voice": "alloy", "seed": 7}
    expected = server.speak(**speech, response_format="pcm").content
    body = {**speech, "response_format": "wav"}
    with (
        server.client.stream("POST", "/v1/audio/speech", json=body) as response,
        closing(Growing(tmp_path / "speech.wav", response.iter_raw())) as file,
        av.open(file) as player,
    ):
        frames = (frame.to_ndarray()[0] for frame in player.decode(audio=0))
        played = [next(frames)]
        assert file.size < len(expected) / 2
        played.extend(frames)
    np.testing.assert_array_equal(np.concatenate(played), np.frombuffer(expected, dtype="<i2"))
