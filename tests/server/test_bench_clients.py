"""The load of several clients at once, and the plain server that it is compared with."""

import asyncio
import json

import httpx
import numpy as np
import pytest

from benchmarks.bench_clients import DELAY, main
from higgs_native.testing.configs import DEMO_AUDIO_TOKENIZER_CONFIG, DEMO_CONFIG
from higgs_native.testing.random_checkpoint import write_audio_tokenizer, write_language_model


def test_clients_are_counted_together(server, tmp_path):
    report = tmp_path / "report.json"
    main(["--url", server.url, "--clients", "1", "3", "--frames", "20", "--requests", "2", "--json", str(report)])
    one, three = json.loads(report.read_text())["runs"]
    assert (one["requests"], three["requests"]) == (2, 6)
    assert one["audio_seconds"] == pytest.approx(2 * 20 / 25)
    assert three["audio_seconds"] == pytest.approx(6 * 20 / 25)


def test_the_plain_server_speaks(tmp_path):
    pytest.importorskip("transformers", minversion="5.23")
    pytest.importorskip("torchaudio")
    from benchmarks.tools.transformers_server import TransformersSpeaker, create_app

    write_language_model(tmp_path, DEMO_CONFIG, endless=True)
    write_audio_tokenizer(tmp_path / "audio_tokenizer", DEMO_AUDIO_TOKENIZER_CONFIG)
    app = create_app(TransformersSpeaker(tmp_path))

    async def speak() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
            body = {"model": "tts-1", "voice": "alloy", "input": "Hello.", "max_new_tokens": 20 + DELAY}
            return await client.post("/v1/audio/speech", json=body)

    response = asyncio.run(speak())
    assert response.status_code == 200
    samples = np.frombuffer(response.content, dtype="<i2")
    assert len(samples) == 20 * 960
    assert np.abs(samples).max() > 0
