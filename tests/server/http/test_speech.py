"""`POST /v1/audio/speech`: the audio, the events, and the errors."""

import base64
import io
import random
import re

import numpy as np
import pytest
import soundfile

from higgs_native.audio.samples import pcm_samples
from higgs_native.long_form.long_speech import LongSpeech
from higgs_native.pipeline import HiggsAudio
from higgs_native.server.speech.encoder import MEDIA_TYPES
from higgs_native.testing.configs import DEMO_AUDIO_TOKENIZER_CONFIG, DEMO_TTS_3_CONFIG
from higgs_native.testing.random_checkpoint import write_language_model
from tests.helpers.counts import recorded_sampling
from tests.server.conftest import THREE_SENTENCES, correlation, decoded, events, running


def wav_bytes(samples: np.ndarray, rate: int = 24_000) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV", subtype="PCM_16")
    return file.getvalue()


@pytest.fixture(scope="module")
def recording(streamed):
    return wav_bytes(streamed(THREE_SENTENCES.split(". ")[0] + ".", "masculine", seed=3))


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


@pytest.mark.parametrize("stream", [True, False])
def test_a_text_may_change_its_speed(server, streamed, engine, stream):
    text = "[speed:1.25] The sun rises in the east."
    response = server.speak(input=text, response_format="pcm", seed=7, stream=stream)
    assert response.content == streamed(text, seed=7).tobytes()
    assert len(response.content) == pytest.approx(streamed(seed=7).nbytes / 1.25, rel=0.03)

    text = '<speak>We walk home. <prosody rate="50%">The water is cold.</prosody></speak>'
    response = server.speak(input=text, response_format="pcm", seed=7, stream=stream)
    long = LongSpeech(engine, "We walk home. [speed:0.5] The water is cold.", voice="feminine", seed=7)
    pieces = [pcm_samples(chunk.samples) for chunk in long.stream()] if stream else [chunk.pcm for chunk in long]
    assert response.content == np.concatenate(pieces).tobytes()


@pytest.mark.parametrize("stream", [True, False])
def test_a_wrong_speed_is_refused(server, stream):
    response = server.speak(input="We [speed:fast] walk home.", stream=stream)
    assert response.status_code == 400
    message = "a speed must be written as [speed:1.2] or [speed], got '[speed:fast]'"
    assert response.json()["error"]["message"] == message


def test_the_seed_is_told_and_repeats_the_speech(server):
    first = server.speak(response_format="pcm", temperature=1.0)
    assert server.speak(response_format="pcm", temperature=1.0).content != first.content
    again = server.speak(response_format="pcm", temperature=1.0, seed=int(first.headers["x-seed"]))
    assert again.content == first.content


@pytest.mark.parametrize("fields", [{}, {"stream": False}, {"stream_format": "sse"}], ids=["stream", "whole", "sse"])
def test_sampling_params_are_built_once_and_unpacked_once(server, monkeypatch, fields):
    """From the request to the device tensors: one object, handed on whole."""
    built, unpacked = recorded_sampling(monkeypatch)
    assert server.speak(temperature=0.7, top_k=9, seed=3, max_new_tokens=20, **fields).status_code == 200
    (params,) = built
    assert (params.temperature, params.top_k, params.seed, params.max_new_tokens) == (0.7, 9, 3, 20)
    (reached,) = unpacked
    assert reached is params


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
        content = server.client.get("/openapi.json").json()["paths"]["/v1/audio/speech"]["post"]["requestBody"][
            "content"
        ]
        for described in content.values():
            properties = described["schema"]["properties"]
            shown = {name: properties[name].get("default") for name in ("temperature", "top_k", "ras_win_len")}
            assert shown == {"temperature": 0.8, "top_k": 30, "ras_win_len": None}
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
    expected = streamed(voice="feminine", seed=2).tobytes()
    assert server.speak(response_format="pcm", seed=2, voice=voice).content == expected


@pytest.mark.filterwarnings("ignore::higgs_native.VoiceWarning")
def test_voices_of_a_dialogue_are_listed(server, engine):
    text = "[SPEAKER0] Hello. [SPEAKER1] Good morning."
    for voice in ("masculine,puck", ["masculine", {"id": "puck"}]):
        response = server.speak(input=text, response_format="pcm", seed=2, voice=voice)
        speech = LongSpeech(engine, text, voice=["masculine", "puck"], seed=2)
        assert response.content == heard(speech).tobytes()


def heard(speech: LongSpeech) -> np.ndarray:
    """What a listener hears: [samples], int16."""
    return np.concatenate([pcm_samples(chunk.samples) for chunk in speech.stream()])


@pytest.mark.parametrize("stream_format", ["audio", "sse"])
def test_a_long_text_is_heard_while_it_is_made(server, engine, stream_format):
    response = server.speak(input=THREE_SENTENCES, response_format="pcm", seed=2, stream_format=stream_format)
    if stream_format == "sse":
        *deltas, done = events(response)
        audio = b"".join(base64.b64decode(delta["audio"]) for delta in deltas)
        assert done["usage"]["output_tokens"] > 100
    else:
        audio = response.content
    assert audio == heard(LongSpeech(engine, THREE_SENTENCES, voice="feminine", seed=2)).tobytes()


def test_a_long_text_that_is_not_heard_is_spoken_in_chunks(server, engine):
    response = server.speak(input=THREE_SENTENCES, response_format="pcm", seed=2, stream=False)
    chunks = list(LongSpeech(engine, THREE_SENTENCES, voice="feminine", seed=2))
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
    ({"input": "See [[Paris]]."}, 400, "input", "invalid_value"),
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
    ({"max_new_tokens": 1}, 422, None, "no_audio"),
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
