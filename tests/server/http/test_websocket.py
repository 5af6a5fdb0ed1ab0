"""Text in pieces, speech by sentence."""

import asyncio
import json
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from starlette.websockets import WebSocket
from websockets.exceptions import ConnectionClosed, InvalidStatus

from higgs_native.audio.samples import pcm_samples
from higgs_native.long_form.long_speech import LongSpeech
from higgs_native.server.http.websocket import SpeechSession
from higgs_native.server.speech.encoder import MEDIA_TYPES
from tests.helpers.waiting import PATIENCE, until
from tests.server.conftest import decoded, open_session


PIECES = ["The sun rises", " in the ea", "st. We walk home", ". The", " water is cold and clear."]
SENTENCES = ["The sun rises in the east.", "We walk home.", "The water is cold and clear."]


@contextmanager
def connected(server, headers=None, origin=None, **settings):
    with open_session(server, additional_headers=headers, origin=origin) as socket:
        if settings:
            send(socket, type="session", **settings)
        yield socket


def send(socket, **message):
    socket.send(json.dumps(message))


def received(socket, until_type="done"):
    """The messages until one of a type, and the audio of each sentence."""
    messages, audio = [], []
    while True:
        message = socket.recv(PATIENCE)
        if isinstance(message, bytes):
            if not audio:
                audio.append(b"")  # of a sentence whose start was received before
            audio[-1] += message
            continue
        messages.append(json.loads(message))
        if messages[-1]["type"] == "sentence.start":
            audio.append(b"")
        if messages[-1]["type"] in (until_type, "error"):
            return messages, audio


def test_sentences_are_spoken_as_their_text_comes(server, streamed):
    with connected(server, voice="masculine", seed=5) as socket:
        for piece in PIECES[:3]:
            send(socket, type="text", text=piece)
        first, audio = received(socket, "sentence.end")  # the text is not complete yet
        assert [message["type"] for message in first] == ["session.started", "sentence.start", "sentence.end"]
        for piece in PIECES[3:]:
            send(socket, type="text", text=piece)
        send(socket, type="done")
        rest, more = received(socket)
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(PATIENCE)
        assert closed.value.rcvd.code == 1000
    messages, audio = first + rest, audio + more
    assert messages[0] == {
        "type": "session.started",
        "seed": 5,
        "sampling_rate": 24_000,
        "response_format": "pcm",
    }
    assert [message["text"] for message in messages if message["type"] == "sentence.start"] == SENTENCES
    assert [message["index"] for message in messages if message["type"] == "sentence.end"] == [0, 1, 2]
    expected = [streamed(text, "masculine", seed=5 + index).tobytes() for index, text in enumerate(SENTENCES)]
    assert audio == expected
    seconds = sum(len(sentence) for sentence in expected) / 48_000
    assert messages[-1]["seconds"] == pytest.approx(seconds, abs=0.01)
    assert messages[-1]["usage"]["output_tokens"] > 100


@pytest.mark.parametrize("format", MEDIA_TYPES)
def test_each_sentence_is_a_file(server, streamed, format):
    with connected(server, voice="alloy", seed=5, response_format=format) as socket:
        send(socket, type="text", text="Hello. Good morning.")
        send(socket, type="done")
        _, audio = received(socket)
    assert len(audio) == 2
    for index, (text, data) in enumerate(zip(("Hello.", "Good morning."), audio, strict=True)):
        samples = streamed(text, seed=5 + index)
        length = len(data) // 2 if format == "pcm" else len(decoded(data)[0]) / (2 if format == "opus" else 1)
        assert len(samples) <= length <= len(samples) + 4000


def test_text_without_an_end_waits_for_a_flush(server):
    with connected(server, voice="alloy") as socket:
        send(socket, type="text", text="Hello")
        received(socket, "session.started")
        with pytest.raises(TimeoutError):
            socket.recv(0.3)
        send(socket, type="flush")
        messages, audio = received(socket, "sentence.end")
        assert messages[0]["text"] == "Hello"
        assert audio[0]
        send(socket, type="text", text=" ... ")
        send(socket, type="done")
        assert [message["type"] for message in received(socket)[0]] == ["done"]


def test_phonemes_that_come_in_pieces_stay_whole(server):
    with connected(server, seed=1, voice="heart") as socket:
        received(socket, "session.started")
        for piece in ("Say [[kˈæt", ". dˈɔɡ! bˈɜɹd]", "] now. We walk", " home."):
            send(socket, type="text", text=piece)
        send(socket, type="done")
        messages, _ = received(socket)
    assert [m["text"] for m in messages if m["type"] == "sentence.start"] == [
        "Say [[kˈæt. dˈɔɡ! bˈɜɹd]] now.",
        "We walk home.",
    ]


def test_a_pause_alone_is_before_the_next_sentence(server, streamed):
    """Whatever the pieces: a pause after the last sentence is left out, as in a whole text."""
    pieces = ["Hello", "[pause:1s]", " [pause:500ms]", "Good morning. [pause] ", "We walk home", "[pause:2s]"]
    with connected(server, voice="alloy", seed=5) as socket:
        for piece in pieces:
            send(socket, type="text", text=piece)
            send(socket, type="flush")
        send(socket, type="done")
        messages, audio = received(socket)
    texts = [message["text"] for message in messages if message["type"] == "sentence.start"]
    assert texts == ["Hello", "[pause:1s][pause:500ms]Good morning.", "[pause]We walk home"]
    assert audio == [streamed(text, seed=5 + index).tobytes() for index, text in enumerate(texts)]
    leading = [np.flatnonzero(np.frombuffer(samples, "<i2"))[0] / 24_000 for samples in audio]
    assert leading[0] < 0.7 <= leading[2] < 1.5 <= leading[1]


def test_a_speed_goes_on_to_the_next_sentences(server, engine, streamed):
    pieces = [
        "Hello. We",
        " walk home. [spe",
        "ed:2] Good morning. We sleep. It [speed:0.8] rains. We sing.",
        "[speed]",
    ]
    with connected(server, voice="alloy", seed=5) as socket:
        for piece in pieces:
            send(socket, type="text", text=piece)
        for text in ("Good night.", "[speed:4]", "Bye."):
            send(socket, type="flush")
            send(socket, type="text", text=text)
        send(socket, type="done")
        messages, audio = received(socket)
    # Sentences, and the tags that are in effect before them.
    spoken = {
        "Hello.": "",
        "We walk home. [speed:2] Good morning.": "",
        "We sleep.": "[speed:2]",
        "It [speed:0.8] rains.": "[speed:2]",
        "We sing.": "[speed:0.8]",
        "[speed]Good night.": "[speed:0.8]",
        "[speed:4]Bye.": "",
    }
    assert [message["text"] for message in messages if message["type"] == "sentence.start"] == list(spoken)
    for index, (text, tag) in enumerate(spoken.items()):
        if index in (1, 3):  # several chunks
            long = LongSpeech(engine, tag + text, voice="feminine", seed=5 + index)
            expected = pcm_samples(np.concatenate([chunk.samples for chunk in long.stream()]))
        else:
            expected = streamed(tag + text, seed=5 + index)
        assert audio[index] == expected.tobytes()


def test_cancel_ends_a_speed(server, streamed):
    with connected(server, voice="alloy", seed=5) as socket:
        send(socket, type="text", text="[speed:2] Hello.")
        send(socket, type="flush")
        received(socket, "sentence.end")
        send(socket, type="cancel")
        send(socket, type="text", text="Hello.")
        send(socket, type="done")
        _, audio = received(socket)
    assert audio == [streamed("Hello.", seed=6).tobytes()]


def test_a_wrong_speed_ends_the_session(server):
    with connected(server, voice="alloy", seed=5) as socket:
        send(socket, type="text", text="Hello [speed:9] there.")
        send(socket, type="done")
        messages, audio = received(socket)
    assert messages[-1]["error"]["message"] == "a speed must be between 0.25 and 4, got '[speed:9]'"
    assert audio == [b""]


def test_cancel_drops_pauses(server, streamed):
    with connected(server, voice="alloy", seed=5) as socket:
        send(socket, type="text", text="[pause:30s]")
        send(socket, type="flush")
        send(socket, type="cancel")
        send(socket, type="text", text="Hello.")
        send(socket, type="done")
        _, audio = received(socket)
    assert audio == [streamed("Hello.", seed=5).tobytes()]


def test_paragraphs_end_sentences(server):
    with connected(server, voice="alloy") as socket:
        send(socket, type="text", text="Hello\n\nGood morning")
        send(socket, type="done")
        messages, _ = received(socket)
    assert [message["text"] for message in messages if message["type"] == "sentence.start"] == [
        "Hello",
        "Good morning",
    ]


def test_cancel_counts_at_the_moment_when_a_message_is_sent(server, monkeypatch):
    sessions = []
    begin, send_json = SpeechSession._begin, WebSocket.send_json

    async def begun(session):
        sessions.append(session)
        await begin(session)

    async def sent(websocket, message):
        await send_json(websocket, message)
        if message["type"] == "sentence.start":
            asyncio.get_running_loop().call_soon(sessions[0]._cancel)

    monkeypatch.setattr(SpeechSession, "_begin", begun)
    monkeypatch.setattr(WebSocket, "send_json", sent)
    with connected(server, voice="alloy") as socket:
        send(socket, type="text", text="The sun rises in the east.")
        send(socket, type="flush")
        *_, end = received(socket, "sentence.end")[0]
        assert end == {"type": "sentence.end", "index": 0, "cancelled": True}


def test_cancel_drops_what_is_not_spoken(server, held):
    with connected(server, voice="alloy") as socket:
        send(socket, type="text", text="The sun rises in the east. " * 40)
        received(socket, "sentence.start")
        send(socket, type="cancel")
        messages, audio = received(socket, "sentence.end")
        assert (messages, audio) == ([{"type": "sentence.end", "index": 0, "cancelled": True}], [])
        held.go_on()
        send(socket, type="text", text="Hello. ")
        send(socket, type="done")
        rest, _ = received(socket)
    assert [message["text"] for message in rest if message["type"] == "sentence.start"] == ["Hello."]
    assert [message["index"] for message in rest if message["type"] == "sentence.end"] == [1]
    until(lambda: server.service.admission.running == 0)


@pytest.mark.parametrize(
    ("messages", "code"),
    [
        (["{"], "invalid_json"),
        (["[]"], "invalid_json"),
        (["[" * 100_000], "invalid_json"),
        ([b"\x00"], "invalid_json"),
        (['{"type": "text", "text": "a"}'], "invalid_value"),
        (['{"type": "session", "voice": "zoe"}'], "voice_not_found"),
        (['{"type": "session", "speed": 9}'], "invalid_value"),
        (['{"type": "session", "model": "none"}'], "model_not_found"),
        (['{"type": "session", "ref_audio": "file:///etc/passwd"}'], "reference_not_allowed"),
        (['{"type": "session"}', '{"type": "text", "text": 3}'], "invalid_value"),
        (['{"type": "session"}', '{"type": "speak"}'], "invalid_value"),
        (['{"type": "session"}', '{"text": "a"}'], "invalid_value"),
        (['{"type": "session"}', '{"type": "text", "text": "<|AUDIO|>"}', '{"type": "done"}'], "invalid_value"),
    ],
)
def test_wrong_messages_are_told_and_end_the_session(server, messages, code):
    with connected(server) as socket:
        for message in messages:
            socket.send(message)
        error = received(socket)[0][-1]
        assert error["type"] == "error"
        assert set(error["error"]) == {"message", "type", "param", "code"}
        assert error["error"]["code"] == code
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(PATIENCE)
        assert closed.value.rcvd.code == 1008
    until(lambda: server.service.sessions == 0)


def test_text_that_waits_has_a_limit(start):
    server = start(max_characters=100)
    with connected(server, voice="alloy") as socket:
        for _ in range(5):
            send(socket, type="text", text="a" * 30)
        assert received(socket)[0][-1]["error"]["code"] == "string_above_max_length"


def test_a_silent_client_is_sent_away(start):
    server = start(idle_seconds=0.5)
    for settings in ({}, {"voice": "alloy"}):
        with connected(server, **settings) as socket:
            assert received(socket)[0][-1]["error"]["code"] == "idle_timeout"
    until(lambda: server.service.sessions == 0)


def test_a_client_that_leaves_frees_its_slot(start):
    server = start(max_running=1)
    with connected(server, voice="alloy") as socket:
        send(socket, type="text", text="The sun rises in the east. " * 200)
        received(socket, "sentence.start")
    until(lambda: server.service.sessions == server.service.admission.running == 0)
    assert server.metric("higgs_native_clients_left_total") == 1
    assert server.speak().status_code == 200


def test_pings_are_answered_while_it_speaks(server):
    with connected(server, voice="alloy") as socket:
        send(socket, type="text", text="The sun rises in the east. " * 5)
        received(socket, "sentence.start")
        assert socket.ping().wait(PATIENCE)
        send(socket, type="cancel")
        send(socket, type="done")
        received(socket)


def test_keys_origins_and_numbers_are_checked(start, server):
    limited = start(api_keys=("secret",), max_running=1, max_queued=0, cors_origins=("https://app.example",))
    key = {"authorization": "Bearer secret"}
    with pytest.raises(InvalidStatus) as refused, connected(limited):
        pass
    assert refused.value.response.status_code == 401
    assert json.loads(refused.value.response.body)["error"]["code"] == "invalid_api_key"
    with pytest.raises(InvalidStatus) as refused, connected(limited, key, "https://evil.example"):
        pass
    assert refused.value.response.status_code == 403
    with connected(limited, key, "https://app.example", voice="alloy") as socket:
        received(socket, "session.started")
        with pytest.raises(InvalidStatus) as refused, connected(limited, key):
            pass
        assert refused.value.response.status_code == 429
    with connected(server, None, server.url, voice="alloy") as socket:
        received(socket, "session.started")
    until(lambda: limited.service.sessions == 0)
    limited.service.admission.is_draining = True
    with pytest.raises(InvalidStatus) as refused, connected(limited, key):
        pass
    assert refused.value.response.status_code == 503


@pytest.mark.filterwarnings("ignore::higgs_native.VoiceWarning")
def test_an_invented_voice_is_kept(start, engine, monkeypatch, streamed):
    """If only the seed chooses the voice, later sentences clone the first one."""
    monkeypatch.setattr(engine, "trained_voices", ())
    with connected(start(), seed=5) as socket:
        send(socket, type="text", text=" ".join(SENTENCES[:2]))
        send(socket, type="done")
        _, audio = received(socket)
    assert audio[0] == b"".join(
        (chunk.samples.clip(-1, 1) * 32767).round().astype("<i2").tobytes()
        for chunk in engine.stream(SENTENCES[0], seed=5)
    )
    reference = np.frombuffer(audio[0], dtype="<i2")
    cloned = streamed(SENTENCES[1], None, seed=6, reference_audio=(reference, 24_000), reference_text=SENTENCES[0])
    assert audio[1] == cloned.tobytes()


@pytest.mark.filterwarnings("ignore::higgs_native.VoiceWarning")
def test_an_invented_voice_is_kept_without_its_speed(start, engine, monkeypatch, streamed):
    monkeypatch.setattr(engine, "trained_voices", ())
    with connected(start(), seed=5) as socket:
        send(socket, type="text", text=f"[speed:2] {' '.join(SENTENCES[:2])}")
        send(socket, type="done")
        _, audio = received(socket)
    assert audio[0] == streamed(f"[speed:2] {SENTENCES[0]}", None, seed=5).tobytes()
    reference = pcm_samples(engine.speak(SENTENCES[0], seed=5).audio)
    assert len(audio[0]) == pytest.approx(reference.nbytes / 2, rel=0.05)
    options = {"seed": 6, "reference_audio": (reference, 24_000), "reference_text": SENTENCES[0]}
    assert audio[1] == streamed(f"[speed:2] {SENTENCES[1]}", None, **options).tobytes()


@pytest.mark.filterwarnings("ignore::higgs_native.VoiceWarning")
@pytest.mark.parametrize("stream", [True, False])
def test_an_invented_voice_of_several_speeds_is_kept_without_them(start, engine, monkeypatch, streamed, stream):
    monkeypatch.setattr(engine, "trained_voices", ())
    with connected(start(), seed=5, stream=stream) as socket:
        send(socket, type="text", text=f"The sun rises [speed:2] in the east. {SENTENCES[1]}")
        send(socket, type="done")
        _, audio = received(socket)
    long = LongSpeech(engine, "The sun rises [speed:2] in the east.", seed=5, max_retries=0)
    samples = engine.audio_tokenizer.decode(torch.cat([chunk.codes for chunk in long], dim=1)).numpy()
    options = {
        "seed": 6,
        "reference_audio": (pcm_samples(samples), 24_000),
        "reference_text": "The sun rises in the east.",
    }
    assert audio[1] == streamed(f"[speed:2] {SENTENCES[1]}", None, **options).tobytes()
