"""Times of words and segments: in the last event, in a batch's results, and at the end of a WebSocket's sentences."""

import base64
import itertools

import numpy as np
import pytest

from higgs_native.subtitles import phrase_cues, word_cues
from tests.server.conftest import TEXT, THREE_SENTENCES, events
from tests.server.http.test_websocket import connected, received, send


BOTH = ["word", "segment"]


def described(name: str, cues, speed: float = 1.0) -> list[dict]:
    return [{name: c.text, "start": round(c.start / speed, 3), "end": round(c.end / speed, 3)} for c in cues]


@pytest.mark.parametrize("speed", [1.0, 1.25])
def test_the_last_event_has_them(server, streamed, speed):
    fields = {"response_format": "pcm", "seed": 7, "stream_format": "sse", "speed": speed}
    *_, done = events(server.speak(timestamp_granularities=BOTH, **fields))
    words = word_cues(TEXT, streamed(seed=7).astype(np.float32), 24_000)
    assert [cue.text for cue in words] == TEXT.split()
    assert done["words"] == described("word", words, speed)
    assert done["segments"] == described("text", phrase_cues(words), speed)
    *_, one = events(server.speak(timestamp_granularities=["segment"], **fields))
    assert ("words" in one, one["segments"]) == (False, done["segments"])
    *_, none = events(server.speak(**fields))
    assert not {"words", "segments"} & none.keys()


def test_those_of_a_long_text_are_of_its_chunks(server):
    fields = {"input": THREE_SENTENCES, "response_format": "pcm", "seed": 2, "timestamp_granularities": BOTH}
    *deltas, done = events(server.speak(stream_format="sse", **fields))
    item = {**fields, "voice": "alloy"}
    (result,) = server.client.post("/v1/audio/speech/batch", json={"items": [item]}).json()["data"]
    for audio, told in (
        (b"".join(base64.b64decode(delta["audio"]) for delta in deltas), done),
        (base64.b64decode(result["audio"]), result),
    ):
        assert [word["word"] for word in told["words"]] == THREE_SENTENCES.split()
        assert " ".join(segment["text"] for segment in told["segments"]) == THREE_SENTENCES
        assert len(told["segments"]) == 3
        times = [word[name] for word in told["words"] for name in ("start", "end")]
        assert times == sorted(times)
        assert times[-1] <= len(audio) / 48_000
        # Between two chunks is silence, which belongs to no word.
        samples = np.frombuffer(audio, dtype=np.int16)
        for before, after in itertools.pairwise(told["segments"]):
            gap = samples[round(before["end"] * 24_000) : round(after["start"] * 24_000)]
            assert np.abs(gap.astype(np.int32)).max(initial=0) < 3000


@pytest.mark.parametrize("speed", [1.0, 2.0])
def test_they_are_those_of_the_audio_where_a_text_changes_its_speed(server, speed):
    """The pauses between chunks, a second long, lie between the words around them."""
    text = "[speed:0.5] The sun rises. [pause:1s][speed:3] We walk home. [pause:1s][speed] The water is cold."
    fields = {"input": text, "response_format": "pcm", "seed": 2, "stream_format": "sse", "speed": speed}
    *deltas, done = events(server.speak(timestamp_granularities=BOTH, **fields))
    samples = np.frombuffer(b"".join(base64.b64decode(delta["audio"]) for delta in deltas), dtype=np.int16)
    assert [segment["text"] for segment in done["segments"]] == [
        "The sun rises.",
        "We walk home.",
        "The water is cold.",
    ]
    assert done["segments"][-1]["end"] <= len(samples) / 24_000
    for before, after in itertools.pairwise(done["segments"]):
        assert after["start"] - before["end"] == pytest.approx(1 / speed, abs=0.2)
        gap = samples[round(before["end"] * 24_000) : round(after["start"] * 24_000)]
        assert np.abs(gap.astype(np.int32)).max() < 3000


def test_a_sentence_of_a_session_ends_with_them(server):
    with connected(server, voice="masculine", seed=5, timestamp_granularities=["word"]) as socket:
        send(socket, type="text", text=f"{TEXT} And it sets in the west.")
        send(socket, type="done")
        messages, audio = received(socket)
    ends = [message for message in messages if message["type"] == "sentence.end"]
    spoken = [" ".join(word["word"] for word in end["words"]) for end in ends]
    assert spoken == [TEXT, "And it sets in the west."]
    for end, samples in zip(ends, audio, strict=True):
        assert 0 <= end["words"][0]["start"] < end["words"][-1]["end"] <= len(samples) / 48_000


def test_audio_alone_has_no_room_for_them(server):
    response = server.speak(timestamp_granularities=["word"])
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "stream_format"
    response = server.speak(timestamp_granularities=["letter"], stream_format="sse")
    assert (response.status_code, response.json()["error"]["param"]) == (400, "timestamp_granularities")


def test_a_form_has_them_too(server):
    form = {"input": TEXT, "voice": "alloy", "stream_format": "sse", "timestamp_granularities": "word,segment"}
    files = {name: (None, value) for name, value in form.items()}
    *_, done = events(server.client.post("/v1/audio/speech", files=files))
    assert [word["word"] for word in done["words"]] == TEXT.split()
    assert done["segments"][0]["text"] == TEXT
