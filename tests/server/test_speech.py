"""`POST /v1/audio/speech`: the audio, the events, the errors, and clients that leave, wait or read slowly."""

import base64
import concurrent.futures
import io
import json
import random
import re
import socket
import threading
import time

import httpx
import numpy as np
import pytest
import soundfile

from higgs_native.audio.samples import pcm_samples
from higgs_native.generation.delay_pattern import SegmentReader
from higgs_native.long_form.long_speech import LongSpeech
from higgs_native.pipeline import HiggsAudio
from higgs_native.server.encoder import MEDIA_TYPES
from higgs_native.testing.configs import DEMO_AUDIO_TOKENIZER_CONFIG, DEMO_TTS_3_CONFIG
from higgs_native.testing.random_checkpoint import write_language_model
from tests.server.conftest import TEXT, correlation, decoded, running, until


LONG_TEXT = "The sun rises in the east. We walk home. The water is cold and clear."


def wav_bytes(samples: np.ndarray, rate: int = 24_000) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV", subtype="PCM_16")
    return file.getvalue()


@pytest.fixture(scope="module")
def recording(streamed):
    return wav_bytes(streamed(LONG_TEXT.split(". ")[0] + ".", "masculine", seed=3))


def test_pcm_has_the_bytes_of_a_stream(server, streamed):
    response = server.speak(response_format="pcm", seed=7)
    assert response.status_code == 200
    assert response.headers["x-seed"] == "7"
    assert response.headers["content-type"] == "audio/pcm"
    assert response.content == streamed(seed=7).tobytes()


@pytest.mark.parametrize("format", MEDIA_TYPES)
def test_each_format_is_the_pcm(server, streamed, format):
    response = server.speak(response_format=format, seed=7)
    assert response.headers["content-type"] == MEDIA_TYPES[format]
    samples = streamed(seed=7)
    if format == "pcm":
        assert response.content == samples.tobytes()
        return
    read, rate = decoded(response.content)
    if format in ("wav", "flac"):
        np.testing.assert_array_equal(np.round(read * 32768), samples)
    else:
        assert correlation(read[:: rate // 24_000], samples.astype(np.float32)) > 0.99


def test_the_seed_is_told_and_repeats_the_speech(server):
    first = server.speak(response_format="pcm", temperature=1.0)
    assert server.speak(response_format="pcm", temperature=1.0).content != first.content
    again = server.speak(response_format="pcm", temperature=1.0, seed=int(first.headers["x-seed"]))
    assert again.content == first.content


def test_sampling_parameters_arrive(server, streamed):
    fields = {"temperature": 0.9, "top_k": 5, "top_p": 0.8, "ras_win_len": 9, "ras_win_max_num_repeat": 3}
    options = {"seed": 3, "max_new_tokens": 30, **fields}
    assert server.speak(response_format="pcm", **options).content == streamed(**options).tobytes()


def test_what_a_request_leaves_out_is_the_models_default(tmp_path):
    """With Higgs TTS 3 it is that of its convention, and null still turns top-k off."""
    folder = tmp_path / "model"
    tokenizer = DEMO_AUDIO_TOKENIZER_CONFIG
    write_language_model(folder, DEMO_TTS_3_CONFIG, "higgs_tts_3", endless=True, audio_tokenizer=tokenizer)
    tts_3 = HiggsAudio.from_pretrained(folder, "cpu", "float32")
    text = "<|emotion:amusement|>Hello."
    with running(tts_3) as server:
        for fields in ({}, {"top_k": None}, {"temperature": 0.5}):
            options = {"seed": 5, "max_new_tokens": 15, **fields}
            answer = server.client.post("/v1/audio/speech", json={"input": text, "response_format": "pcm", **options})
            assert answer.status_code == 200, answer.text
            expected = pcm_samples(np.concatenate([chunk.samples for chunk in tts_3.stream(text, **options)]))
            assert answer.content == expected.tobytes()
        for fields, param in (
            ({"input": "<|emotion:joy|>Hi."}, "input"),
            ({"instructions": "A room."}, "instructions"),
        ):
            answer = server.client.post("/v1/audio/speech", json={"input": text, **fields})
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_instructions_are_the_scene(server, streamed):
    scene = "Audio is recorded from a quiet room."
    response = server.speak(response_format="pcm", seed=2, instructions=scene)
    assert response.content == streamed(seed=2, scene=scene).tobytes() != streamed(seed=2).tobytes()


@pytest.mark.parametrize("voice", ["feminine", {"id": "feminine"}, ["feminine"], "alloy", "nova"])
def test_a_voice_is_a_name_or_an_id(server, streamed, voice):
    assert server.speak(response_format="pcm", seed=2, voice=voice).content == streamed(seed=2).tobytes()


@pytest.mark.filterwarnings("ignore::higgs_native.VoiceWarning")
def test_voices_of_a_dialogue_are_listed(server, engine):
    text = "[SPEAKER0] Hello. [SPEAKER1] Good morning."
    for voice in ("masculine,child", ["masculine", {"id": "child"}]):
        response = server.speak(input=text, response_format="pcm", seed=2, voice=voice)
        speech = LongSpeech(engine, text, voice=["masculine", "child"], seed=2)
        assert response.content == np.concatenate([chunk.pcm for chunk in speech]).tobytes()


def test_a_long_text_is_spoken_in_chunks(server, engine):
    response = server.speak(input=LONG_TEXT, response_format="pcm", seed=2, stream=False)
    chunks = list(LongSpeech(engine, LONG_TEXT, voice="feminine", seed=2))
    assert len(chunks) == 3
    assert response.content == np.concatenate([chunk.pcm for chunk in chunks]).tobytes()
    assert response.headers["x-output-tokens"] == str(sum(chunk.codes.shape[1] for chunk in chunks))
    assert int(response.headers["x-input-tokens"]) >= 12


@pytest.mark.parametrize("format", MEDIA_TYPES)
def test_a_response_that_is_not_streamed_has_headers(server, streamed, format):
    response = server.speak(response_format=format, seed=7, stream=False)
    samples = streamed(seed=7)
    assert int(response.headers["content-length"]) == len(response.content)
    assert float(response.headers["x-audio-seconds"]) == pytest.approx(len(samples) / 24_000, abs=1e-3)
    assert response.headers["x-failures"] == "none"
    assert int(response.headers["x-output-tokens"]) > 30
    if format == "wav":
        read, rate = soundfile.read(io.BytesIO(response.content), dtype="int16")
        assert rate == 24_000
        np.testing.assert_array_equal(read, samples)


def test_the_text_is_prepared(server):
    options = {"response_format": "pcm", "seed": 7}
    prepared = server.speak(input="**Take** 3 🎉.", normalize=True, strip_markup=True, **options)
    assert prepared.content == server.speak(input="Take three.", **options).content


def test_failures_are_told(server):
    """A speech that is cut off has no end."""
    response = server.speak(response_format="pcm", seed=7, stream=False, max_new_tokens=20)
    assert "no end" in response.headers["x-failures"]
    assert server.metric('higgs_native_speech_failures_total{kind="no end"}') >= 1


def events(response: httpx.Response) -> list[dict]:
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = response.text.split("\n\n")
    assert lines.pop() == ""
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def test_events_hold_the_audio_and_the_usage(server, streamed):
    *deltas, done = events(server.speak(response_format="pcm", seed=7, stream_format="sse"))
    assert {event["type"] for event in deltas} == {"speech.audio.delta"}
    assert len(deltas) > 1
    assert b"".join(base64.b64decode(event["audio"]) for event in deltas) == streamed(seed=7).tobytes()
    assert done["type"] == "speech.audio.done"
    usage = done["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert (done["seed"], done["failures"]) == (7, [])
    assert done["seconds"] == pytest.approx(len(streamed(seed=7)) / 24_000, abs=1e-3)


def test_speed_keeps_the_rest(server, streamed):
    fast = server.speak(response_format="pcm", seed=7, speed=2)
    assert len(fast.content) / streamed(seed=7).nbytes == pytest.approx(0.5, rel=0.05)


@pytest.mark.filterwarnings("ignore::higgs_native.VoiceWarning")
@pytest.mark.parametrize("form", ["base64", "data", "upload", "upload and base64 name"])
def test_a_recording_is_cloned(server, engine, streamed, recording, form):
    words = "The sun rises in the east."
    samples, rate = soundfile.read(io.BytesIO(recording), dtype="float32")
    options = {"reference_audio": (samples, rate), "reference_text": words, "seed": 4}
    expected = np.concatenate([chunk.samples for chunk in engine.stream("We walk home.", **options)])
    fields = {"input": "We walk home.", "voice": "alloy", "response_format": "pcm", "ref_text": words, "seed": 4}
    encoded = base64.b64encode(recording).decode()
    if form == "base64":
        response = server.client.post("/v1/audio/speech", json={**fields, "ref_audio": encoded})
    elif form == "data":
        reference = {"ref_audio": f"data:audio/wav;base64,{encoded}"}
        response = server.client.post("/v1/audio/speech", json={**fields, **reference})
    else:
        name = "ref_audio" if form == "upload" else "reference_audio"
        response = server.client.post("/v1/audio/speech", data=fields, files={name: ("v.wav", recording)})
    assert response.status_code == 200, response.text
    assert response.content == (expected.clip(-1, 1) * 32767).round().astype("<i2").tobytes()


WRONG = [
    ({"input": None}, 400, "input", "invalid_value"),
    ({"input": ""}, 400, "input", "invalid_value"),
    ({"input": " ... "}, 400, "input", "invalid_value"),
    ({"input": "a" * 50_001}, 400, "input", "string_above_max_length"),
    ({"input": "<|AUDIO|>"}, 400, "input", "invalid_value"),
    ({"model": "whisper-1"}, 404, "model", "model_not_found"),
    ({"voice": "zoe"}, 400, "voice", "voice_not_found"),
    ({"voice": "../../etc/passwd"}, 400, "voice", "voice_not_found"),
    ({"voice": {"name": "alloy"}}, 400, "voice", "invalid_value"),
    ({"voice": []}, 400, "voice", "invalid_value"),
    ({"instructions": "a" * 4097}, 400, "instructions", "invalid_value"),
    ({"instructions": "<|eot_id|>"}, 400, "instructions", "invalid_value"),
    ({"response_format": "ogg"}, 400, "response_format", "invalid_value"),
    ({"speed": 0.2}, 400, "speed", "invalid_value"),
    ({"speed": "fast"}, 400, "speed", "invalid_value"),
    ({"stream_format": "ws"}, 400, "stream_format", "invalid_value"),
    ({"seed": 2**64}, 400, "seed", "invalid_value"),
    ({"temperature": -1}, 400, "temperature", "invalid_value"),
    ({"top_p": 0}, 400, "top_p", "invalid_value"),
    ({"max_new_tokens": 0}, 400, "max_new_tokens", "invalid_value"),
    ({"ref_audio": "%%%"}, 400, "ref_audio", "invalid_value"),
    ({"ref_audio": "AAAA"}, 400, "ref_audio", "invalid_value"),
    ({"ref_audio": "data:audio/wav,abc"}, 400, "ref_audio", "invalid_value"),
    ({"ref_audio": "ftp://example.org/a.wav"}, 400, "ref_audio", "invalid_value"),
    ({"ref_audio": "/etc/passwd"}, 400, "ref_audio", "invalid_value"),
    ({"ref_audio": "file:///etc/passwd"}, 403, "ref_audio", "reference_not_allowed"),
    ({"ref_audio": "http://127.0.0.1:1/a.wav"}, 403, "ref_audio", "reference_not_allowed"),
    ({"ref_text": "Hello."}, 400, "ref_audio", "invalid_value"),
]


@pytest.mark.parametrize(("fields", "status", "param", "code"), WRONG)
def test_wrong_requests_are_told_what_would_be_right(server, fields, status, param, code):
    response = server.speak(**fields)
    assert response.status_code == status
    error = response.json()["error"]
    assert (error["param"], error["code"]) == (param, code)
    assert error["type"] in ("invalid_request_error", "permission_error")
    assert len(error["message"]) <= 500
    assert re.search("got|can't be read", error["message"])
    assert error["message"].isprintable()


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'"text"', b"\xff\xfe", b'{"input": "\\ud800"}', b"[" * 10_000, b'{"input": 1e999}',
     b'{"input": "a", "seed": ' + b"9" * 5000 + b"}", b'{"input": "a", "speed": NaN}'],
)  # fmt: skip
def test_a_body_that_is_no_request_is_refused(server, body):
    response = server.client.post("/v1/audio/speech", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert response.json()["error"]["message"].isprintable()


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data", b""),
        ("multipart/form-data; boundary=x", b"--x\r\nbroken"),
        ("multipart/form-data; boundary=x", b"--x\r\nContent-Disposition: form-data\r\n\r\na\r\n--x--\r\n"),
        ("Multipart/Form-Data; boundary=x", b'--x\r\nContent-Disposition: form-data; name="a"; filename="b"\r\n\r\n'
         b"a\r\n--x--\r\n"),
    ],
)  # fmt: skip
def test_a_broken_form_is_refused(server, content_type, body):
    response = server.client.post("/v1/audio/speech", content=body, headers={"content-type": content_type})
    assert response.status_code == 400
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_malformed_requests_are_answered_in_the_contracts_shape(server):
    """Random values in random fields, seeded: an answer in the shape of the contract, never a status of 500."""
    draw = random.Random(0)
    values = [
        None, True, 0, -1, 2**70, 1e300, "", "a", "\0", "\x1b[31m", "é" * 300, [], [[]], ["alloy"], {}, {"id": 3},
        {"id": "alloy"}, "tts-1", "[SPEAKER9]", "data:,", "data:;base64,AAAA", "file://", "http://[", "nan",
    ]  # fmt: skip
    names = [*WRONG_FIELDS, "unknown"]
    for _ in range(150):
        fields = {name: draw.choice(values) for name in draw.sample(names, draw.randrange(1, 5))}
        body = {"input": "...", **fields}  # never spoken: there is nothing to say
        if isinstance(body["input"], str) and any(char.isalnum() for char in body["input"]):
            body["input"] = "..."
        response = server.client.post("/v1/audio/speech", json=body)
        assert 400 <= response.status_code < 500, (body, response.text)
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}, body
        assert error["message"].isprintable(), body


WRONG_FIELDS = sorted({name for fields, *_ in WRONG for name in fields} | {"stream", "top_k", "ras_win_len"})


def test_clients_at_once_get_what_each_gets_alone(start, streamed):
    server = start(max_running=4, max_queued=64)
    voices = ("feminine", "masculine", "scottish", "child")
    expected = {voice: streamed(voice=voice, seed=5).tobytes() for voice in voices}
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        jobs = [(voice, pool.submit(server.speak, response_format="pcm", seed=5, voice=voice)) for voice in voices * 6]
        for voice, job in jobs:
            assert job.result().content == expected[voice]
    assert server.service.admission.running == 0


class Slow:
    """Lets a speech go on frame by frame: `steps` allows frames."""

    def __init__(self, monkeypatch):
        self.steps = threading.Semaphore(0)
        self.frames = 0
        read = SegmentReader.read

        def slow(reader, frame):
            self.steps.acquire()
            self.frames += 1
            return read(reader, frame)

        monkeypatch.setattr(SegmentReader, "read", slow)

    def go_on(self):
        self.steps.release(10**6)


@pytest.fixture
def slow(monkeypatch):
    held = Slow(monkeypatch)
    yield held
    held.go_on()


def in_background(function, *arguments, **fields):
    pool = concurrent.futures.ThreadPoolExecutor(1)
    job = pool.submit(function, *arguments, **fields)
    pool.shutdown(wait=False)
    return job


def test_a_full_queue_is_told_at_once(start, slow):
    server = start(max_running=1, max_queued=1)
    jobs = [in_background(server.speak, response_format="pcm", seed=1)]
    until(lambda: server.service.admission.running == 1)
    jobs.append(in_background(server.speak, response_format="pcm", seed=1))
    until(lambda: server.service.admission.queued == 1)
    begin = time.monotonic()
    refused = server.speak()
    assert time.monotonic() - begin < 2
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert server.client.get("/health").status_code == 200
    assert server.metric("higgs_native_requests_queued") == 1
    slow.go_on()
    assert jobs[0].result().content == jobs[1].result().content != b""


def test_a_client_that_leaves_frees_its_slot(start, slow, streamed):
    server = start(max_running=1, max_queued=4)
    slow.steps.release(30)  # some more than the first chunk takes
    with server.client.stream("POST", "/v1/audio/speech", json={"input": TEXT, "response_format": "pcm"}) as response:
        pieces = response.iter_raw()  # without the name it would be closed at once
        next(pieces)
        waiting = in_background(server.speak, response_format="pcm", seed=7)
        until(lambda: server.service.admission.queued == 1)
    slow.steps.release()  # the thread notices at its next frame
    until(lambda: server.service.admission.queued == 0)
    slow.go_on()
    assert waiting.result().content == streamed(seed=7).tobytes()
    until(lambda: server.metric("higgs_native_clients_left_total") == 1)


def test_a_client_that_leaves_a_long_text_frees_its_slot(start, engine, monkeypatch):
    server = start(max_running=1, max_queued=4)
    generated = []
    prepare_request = HiggsAudio.prepare_request

    def counted(self, *arguments, **options):
        generated.append(arguments)
        return prepare_request(self, *arguments, **options)

    monkeypatch.setattr(HiggsAudio, "prepare_request", counted)
    body = {"input": LONG_TEXT * 20, "response_format": "pcm"}
    with server.client.stream("POST", "/v1/audio/speech", json=body) as response:
        pieces = response.iter_raw()  # without the name it would be closed at once
        next(pieces)
    until(lambda: server.service.admission.running == 0)
    spoken = len(generated)
    assert 0 < spoken < 30
    time.sleep(0.2)
    assert len(generated) == spoken


def test_a_client_that_leaves_the_queue_takes_no_turn(start, slow):
    server = start(max_running=1, max_queued=4)
    first = in_background(server.speak, response_format="pcm", seed=1)
    until(lambda: server.service.admission.running == 1)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(server.url + "/v1/audio/speech", json={"input": TEXT}, timeout=0.5)
    until(lambda: server.service.admission.queued == 0)
    slow.go_on()
    assert first.result().status_code == 200
    until(lambda: server.service.admission.running == 0)


def test_a_request_ends_at_its_deadline(start, slow):
    server = start(max_running=1, max_queued=4, deadline_seconds=0.6)
    first = in_background(server.speak, response_format="pcm")
    until(lambda: server.service.admission.running == 1)
    second = server.speak()
    assert second.status_code == 504
    assert second.json()["error"]["code"] == "deadline_exceeded"
    slow.go_on()  # the thread notices at its next frame
    assert first.result().status_code == 504
    until(lambda: server.service.admission.running == 0)


def test_an_error_in_the_middle_breaks_the_connection(start, monkeypatch):
    """A client must not take the beginning for the whole. As events, the error has a shape."""
    server = start()
    read = SegmentReader.read
    frames = 0

    def broken(reader, frame):
        nonlocal frames
        frames += 1
        if frames % 25 == 0:
            raise RuntimeError("the device is gone")
        return read(reader, frame)

    monkeypatch.setattr(SegmentReader, "read", broken)
    with pytest.raises(httpx.RemoteProtocolError):
        server.speak(response_format="pcm", seed=7)
    frames = 0
    *deltas, last = events(server.speak(response_format="pcm", seed=7, stream_format="sse"))
    assert deltas
    assert last["type"] == "error"
    assert last["error"]["code"] == "internal_error"
    assert "device" not in last["error"]["message"]
    frames = 24
    response = server.speak(response_format="pcm", seed=7)
    assert response.status_code == 500
    assert response.json()["error"]["type"] == "server_error"
    assert server.metric('higgs_native_errors_total{code="internal_error"}') == 3


def test_a_slow_reader_keeps_no_slot(start, streamed):
    """The speech is made as fast as it can be; the client reads it later."""
    server = start(max_running=1, max_queued=4)
    host, port = server.url.removeprefix("http://").split(":")
    body = json.dumps({"input": TEXT, "response_format": "pcm", "seed": 7, "voice": "alloy"}).encode()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        client.connect((host, int(port)))
        client.sendall(
            b"POST /v1/audio/speech HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b"
            % (len(body), body)
        )
        until(lambda: server.metric("higgs_native_audio_seconds_total") > 1)
        assert server.speak(response_format="pcm", seed=7).content == streamed(seed=7).tobytes()
        received = b""
        while piece := client.recv(512):
            received += piece
    chunks = received.partition(b"\r\n\r\n")[2]
    audio = b""
    while chunks:
        size, _, chunks = chunks.partition(b"\r\n")
        audio, chunks = audio + chunks[: int(size, 16)], chunks[int(size, 16) + 2 :]
    assert audio == streamed(seed=7).tobytes()


def test_a_client_that_never_reads_is_dropped(start):
    server = start(max_running=1, max_queued=0, idle_seconds=0.5)
    host, port = server.url.removeprefix("http://").split(":")
    body = json.dumps({"input": LONG_TEXT * 8, "response_format": "pcm", "seed": 7, "speed": 0.25}).encode()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        client.connect((host, int(port)))
        client.sendall(
            b"POST /v1/audio/speech HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        until(lambda: server.metric("higgs_native_clients_left_total") == 1)
        until(lambda: server.service.admission.running == 0)


def test_the_event_loop_is_never_blocked(start):
    """While texts are spoken, other requests are answered in the time of a few frames."""
    server = start(max_running=4)
    done = threading.Event()
    longest = 0.0

    def ping():
        nonlocal longest
        with httpx.Client(base_url=server.url) as client:
            while not done.is_set():
                begin = time.monotonic()
                assert client.get("/health").status_code == 200
                longest = max(longest, time.monotonic() - begin)
                time.sleep(0.02)

    thread = threading.Thread(target=ping)
    thread.start()
    try:
        jobs = [in_background(server.speak, input=LONG_TEXT, speed=0.5) for _ in range(4)]
        assert {job.result().status_code for job in jobs} == {200}
    finally:
        done.set()
        thread.join()
    assert 0 < longest < 1.5
