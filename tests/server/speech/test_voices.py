"""Voices: listed, uploaded, deleted, and what a client must not reach."""

import base64
import io
import os
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
import soundfile

from higgs_native.checkpoint.adapter import SPEAKERS_KEY
from higgs_native.prompt.voices import list_voices
from higgs_native.server.speech.voices import OPENAI_VOICES
from tests.helpers.counts import counting_opens
from tests.helpers.waiting import join, until
from tests.model.test_low_rank import ATTENTION, write_factors
from tests.server.conftest import TEXT


RATE = 24_000
WORDS = "The sun rises in the east."
NAMES = [
    "../evil",
    "..",
    ".",
    ".hidden",
    "a/b",
    "a\\b",
    "/etc/passwd",
    "a\0b",
    "",
    " a",
    "a ",
    "a.",
    "a,b",
    "ä",
    "a" * 65,
]


def audio(samples, rate=RATE, format="WAV", subtype="PCM_16") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=format, subtype=subtype)
    return file.getvalue()


@pytest.fixture(scope="module")
def sample(streamed):
    return audio(np.concatenate([streamed(WORDS, "masculine", seed=seed) for seed in range(3)]))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "voices").mkdir()
    (tmp_path / "secret.wav").write_bytes(audio(np.zeros(RATE, dtype=np.int16)))
    return tmp_path / "voices"


@pytest.fixture
def server(start, folder):
    return start(voices_folder=folder)


def upload(server, name="anna", sample=b"", **fields):
    fields = {"name": name, "consent": "cons_1", "type": "audio/wav", **fields}
    return server.client.post("/v1/audio/voices", data=fields, files={"audio_sample": ("a.wav", sample)})


def ids(server):
    return [voice["id"] for voice in server.client.get("/v1/audio/voices").json()["voices"]]


def test_an_uploaded_voice_speaks_until_it_is_deleted(server, folder, sample, engine):
    response = upload(server, sample=sample, ref_text=f" {WORDS} \n {WORDS} {WORDS}")
    assert response.status_code == 200, response.text
    voice = response.json()
    assert (voice["id"], voice["name"], voice["kind"]) == ("anna", "anna", "recording")
    assert voice["advice"] == []
    assert list_voices(folder)["anna"].reference_text == " ".join([WORDS] * 3)
    assert ids(server)[0] == "anna"
    spoken = server.speak(voice="anna", response_format="pcm", seed=1)
    expected = [chunk.samples for chunk in engine.stream(TEXT, voice="anna", voices_folder=folder, seed=1)]
    assert spoken.content == (np.concatenate(expected).clip(-1, 1) * 32767).round().astype("<i2").tobytes()
    assert server.client.delete("/v1/audio/voices/anna").json() == {
        "id": "anna",
        "object": "audio.voice",
        "deleted": True,
    }
    assert list(folder.iterdir()) == []
    assert server.speak(voice="anna").status_code == 400
    assert server.client.delete("/v1/audio/voices/anna").status_code == 404


def several(*samples):
    return [("audio_sample", ("a.wav", sample)) for sample in samples]


def test_several_recordings_are_one_voice(server, folder, sample, engine):
    """Kept, or sent with a request as files or in base64."""
    half = audio(soundfile.read(io.BytesIO(sample), dtype="int16")[0][: 3 * RATE])
    files, texts = [sample, half], [f"{WORDS} One.", f"{WORDS} Two."]
    post = server.client.post
    checked = post("/v1/audio/voices/check", data={"ref_text": texts}, files=several(*files)).json()
    response = post("/v1/audio/voices", data={"name": "anna", "ref_text": texts}, files=several(*files))
    assert response.status_code == 200, response.text
    assert response.json()["description"] == " ".join(texts)
    assert response.json()["advice"] == checked["advice"]
    assert sorted(path.name for path in (folder / "anna").iterdir()) == ["1.txt", "1.wav", "2.txt", "2.wav"]
    assert post("/v1/audio/voices", data={"name": "anna"}, files=several(sample)).status_code == 409
    spoken = server.speak(voice="anna", response_format="pcm", seed=1)
    expected = [chunk.samples for chunk in engine.stream(TEXT, voice="anna", voices_folder=folder, seed=1)]
    assert spoken.content == (np.concatenate(expected).clip(-1, 1) * 32767).round().astype("<i2").tobytes()
    fields = {"input": TEXT, "response_format": "pcm", "seed": 1, "ref_text": texts}
    sent = post("/v1/audio/speech", data=fields, files=[("ref_audio", ("a.wav", file)) for file in files])
    assert sent.content == spoken.content
    encoded = [base64.b64encode(file).decode() for file in files]
    assert server.speak(**fields, ref_audio=encoded).content == spoken.content
    refused = server.speak(**{**fields, "ref_text": texts[:1]}, ref_audio=encoded)
    assert refused.json()["error"]["param"] == "ref_text"
    assert server.client.delete("/v1/audio/voices/anna").status_code == 200
    assert list(folder.iterdir()) == []


def test_a_folder_with_other_files_is_not_deleted(server, folder, sample):
    (folder / "anna").mkdir()
    (folder / "anna" / "1.wav").write_bytes(sample)
    (folder / "anna" / "notes.md").touch()
    assert server.client.delete("/v1/audio/voices/anna").json()["error"]["code"] == "voice_is_fixed"
    assert (folder / "anna" / "1.wav").is_file()


def test_a_recording_is_opened_once_for_all_its_requests(server, folder, sample):
    assert upload(server, sample=sample, ref_text=WORDS).status_code == 200
    with counting_opens(folder / "anna.wav") as count:
        for seed in range(2):
            assert server.speak(voice="anna", seed=seed, max_new_tokens=20).status_code == 200
        assert count() == 1


def test_a_poor_recording_gets_advice(server, sample):
    short = audio(soundfile.read(io.BytesIO(sample), dtype="int16")[0][:RATE])
    advice = upload(server, sample=short).json()["advice"]
    assert any("it is short" in line for line in advice)
    assert any("its words are not given" in line for line in advice)


def test_a_voice_may_take_the_name_of_openais(server, sample):
    assert upload(server, "alloy", sample, ref_text=WORDS).status_code == 200
    assert ids(server).count("alloy") == 1
    (alloy,) = [v for v in server.client.get("/v1/audio/voices").json()["voices"] if v["id"] == "alloy"]
    assert alloy["kind"] == "recording"


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_no_path(server, folder, sample, name):
    before = sorted(folder.parent.rglob("*"))
    response = upload(server, name, sample)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "name"
    assert sorted(folder.parent.rglob("*")) == before


@pytest.mark.parametrize(
    "name", ["..%2Fsecret", "../secret", "%2e%2e%2fsecret.wav", "..", "feminine", "alloy", "a%00b"]
)
def test_only_uploaded_voices_are_deleted(server, folder, name):
    assert server.client.delete(f"/v1/audio/voices/{name}").status_code in (403, 404, 405)
    assert (folder.parent / "secret.wav").is_file()


def test_a_name_is_taken_once(server, sample):
    assert upload(server, sample=sample).status_code == 200
    for name in ("anna", "feminine"):
        refused = upload(server, name, sample)
        assert refused.status_code == 409
        assert refused.json()["error"]["code"] == "voice_exists"


def test_uploads_have_limits(start, folder, server, sample):
    limited = start(voices_folder=folder, max_uploaded_voices=1)
    assert upload(limited, "first", sample).status_code == 200
    assert upload(limited, "second", sample).json()["error"]["code"] == "too_many_voices"
    without = start()
    assert upload(without, "first", sample).json()["error"]["code"] == "uploads_disabled"
    missing = server.client.post("/v1/audio/voices", data={"name": "a"})
    assert missing.json()["error"]["code"] == "missing_required_parameter"
    assert missing.json()["error"]["param"] == "audio_sample"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"RIFF",
        b"\x80\x04\x95pickle",
        audio(np.zeros(100, dtype=np.int16)),
        audio(np.zeros(10_000 * 1000), 1000, "FLAC"),
    ],
    ids=["nothing", "beginning", "pickle", "short", "long"],
)
def test_a_file_that_is_no_voice_is_refused(server, folder, data):
    response = upload(server, sample=data)
    assert response.status_code == 400
    assert "audio_sample" in response.json()["error"]["message"]
    assert list(folder.iterdir()) == []


def test_openais_names_are_mapped(server, streamed):
    assert len(OPENAI_VOICES) == 13
    assert set(OPENAI_VOICES) <= set(ids(server))
    for name, description in list(OPENAI_VOICES.items())[:3]:
        expected = streamed("Hello.", description, seed=1).tobytes()
        assert server.speak(input="Hello.", voice=name, response_format="pcm", seed=1).content == expected


def test_a_damaged_folder_is_told(start, tmp_path):
    (tmp_path / "gone.wav").write_bytes(b"no audio")
    server = start(voices_folder=tmp_path)
    refused = server.speak(voice="gone")
    assert refused.status_code == 400
    assert "can't be read as audio" in refused.json()["error"]["message"]


@pytest.fixture(scope="module")
def elsewhere(sample):
    """A host with recordings. It counts what is asked for."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            if self.path.startswith("/voices/away"):
                self.send_response(302)
                self.send_header("Location", "/voices/anna.wav")
                self.end_headers()
                return
            self.send_response(200 if self.path.endswith(".wav") else 404)
            self.end_headers()
            self.wfile.write(sample if self.path != "/voices/large.wav" else sample * 100)

        def log_message(self, *arguments):
            """Say nothing."""

    asked: list[str] = []
    with HTTPServer(("127.0.0.1", 0), Handler) as host:
        thread = threading.Thread(target=host.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{host.server_port}", asked
        host.shutdown()
        join(thread)


@pytest.mark.filterwarnings("ignore::higgs_native.VoiceWarning")
def test_urls_only_where_the_operator_allows_them(start, elsewhere):
    host, asked = elsewhere
    server = start(reference_urls=(f"{host}/voices/",), max_body_bytes=2_000_000)

    def speak(path):
        return server.speak(input="Hello.", ref_audio=f"{host}{path}")

    assert speak("/voices/anna.wav").status_code == 200
    for path in ("/other/anna.wav", "/voices/../other/anna.wav", "/voices/%2e%2e/other.wav", "@evil/voices/a.wav"):
        assert speak(path).status_code == 403
    assert asked == ["/voices/anna.wav"]
    for path in ("/voices/none", "/voices/away.wav", "/voices/large.wav"):
        refused = speak(path)
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "ref_audio"
    assert asked.count("/voices/anna.wav") == 1  # no redirection was followed


def test_files_only_where_the_operator_allows_them(start, tmp_path, sample):
    allowed, other = tmp_path / "allowed", tmp_path / "other"
    for folder in (allowed, other):
        folder.mkdir()
        (folder / "a voice.wav").write_bytes(sample)
    (allowed / "link.wav").symlink_to(other / "a voice.wav")
    os.mkfifo(allowed / "pipe.wav")
    server = start(reference_folders=(allowed,))

    def speak(path):
        return server.speak(input="Hello.", ref_audio=f"file://{path}", ref_text=WORDS)

    assert speak(f"{allowed}/a%20voice.wav").status_code == 200
    for path in (f"{other}/a%20voice.wav", f"{allowed}/../other/a%20voice.wav", f"{allowed}/link.wav", "/etc/passwd"):
        assert speak(path).status_code == 403
    for path in (f"{allowed}/none.wav", f"{allowed}", f"{allowed}/a%00b", f"{allowed}/pipe.wav"):
        assert speak(path).status_code in (400, 403)


def test_a_changed_recording_is_read_again(start, tmp_path, sample, streamed):
    (tmp_path / "anna.wav").write_bytes(sample)
    server = start(voices_folder=tmp_path)
    first = server.service.voices.find("anna").reference_audio
    assert server.service.voices.find("anna").reference_audio is first
    (tmp_path / "anna.wav").write_bytes(audio(streamed(seed=1)))
    assert server.service.voices.find("anna").reference_audio.sha256 != first.sha256


def test_base64_may_have_line_breaks(server, sample):
    reference = base64.encodebytes(sample).decode()
    assert server.speak(input="Hello.", ref_audio=reference, ref_text=WORDS).status_code == 200
    until(lambda: server.service.admission.running == 0)


@pytest.fixture
def adapted(engine, start, tmp_path):
    """A server whose engine has adapters: `anna` of two speakers, `plain` of none."""
    config = engine.model.config
    engine.load_adapter("anna", write_factors(tmp_path / "anna", config, ATTENTION, **{SPEAKERS_KEY: "anna\nben"}))
    engine.load_adapter("plain", write_factors(tmp_path / "plain", config, ATTENTION, seed=1))
    yield start()
    for name in ("anna", "plain"):
        engine.unload_adapter(name)


def test_an_adapter_is_a_voice(adapted, engine, streamed):
    described = {"anna": "anna, ben", "plain": ""}
    listed = {voice["id"]: voice for voice in adapted.client.get("/v1/audio/voices").json()["voices"]}
    assert {name: listed[name]["description"] for name in described} == described
    assert {listed[name]["kind"] for name in described} == {"adapter"}

    def spoken(**fields) -> bytes:
        response = adapted.speak(response_format="pcm", seed=1, **fields)
        assert response.status_code == 200, response.text
        return response.content

    expected = streamed(TEXT, None, adapter="anna", seed=1).tobytes()
    assert spoken(voice="anna") == spoken(voice=None, adapter="anna") == expected
    assert spoken(voice="ben", adapter="anna") == streamed(TEXT, "ben", adapter="anna", seed=1).tobytes()
    assert spoken(voice="alloy", adapter="plain") != spoken(voice="alloy")


def test_wrong_adapters_are_refused(adapted):
    for fields, param, message in (
        ({"adapter": "none"}, "adapter", "adapter must be one that is loaded (anna, plain), got 'none'"),
        ({"voice": "anna,plain"}, "voice", "voice must be one alone if it is an adapter, got anna, plain"),
    ):
        response = adapted.speak(**fields)
        assert response.status_code == 400
        error = response.json()["error"]
        assert (error["param"], error["message"]) == (param, message)
