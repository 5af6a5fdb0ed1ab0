"""Each face hands sampling parameters on whole, built once, and opens a recording once, from the call to the kernels.

The server's faces are tested in tests/server.
"""

import asyncio

import pytest
import soundfile

from higgs_native.cli import main
from higgs_native.compat.boson import HiggsAudioServeEngine
from higgs_native.long_form.long_speech import LongSpeech
from higgs_native.pipeline import HiggsAudio
from higgs_native.prompt.messages import AudioContent, ChatMLSample, Message
from higgs_native.testing.random_checkpoint import write_demo_checkpoint
from tests.audio.test_quality import WORDS, syllables
from tests.helpers.counts import counting_opens, recorded_sampling


RATE = 24000
TEXT = "The sun rises in the east."
OPTIONS = {"temperature": 0.7, "top_k": 9, "seed": 3, "max_new_tokens": 12}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    write_demo_checkpoint(folder)
    return folder


@pytest.fixture(scope="module")
def engine(folder):
    return HiggsAudio.from_pretrained(folder)


@pytest.fixture
def path(tmp_path):
    soundfile.write(tmp_path / "anna.wav", syllables(5), RATE, subtype="FLOAT")
    return tmp_path / "anna.wav"


def conversation(path) -> list[Message]:
    shown = [Message("user", "Hello."), Message("assistant", AudioContent(str(path)))]
    return [Message("system", "Speak."), *shown, Message("user", TEXT)]


def speak(engine, folder, path):
    engine.speak(TEXT, reference_audio=path, reference_text=WORDS, **OPTIONS)


def stream(engine, folder, path):
    list(engine.stream(TEXT, reference_audio=path, reference_text=WORDS, **OPTIONS))


def stream_in_an_event_loop(engine, folder, path):
    async def read():
        return [chunk async for chunk in engine.stream(TEXT, reference_audio=path, reference_text=WORDS, **OPTIONS)]

    asyncio.run(read())


def generate(engine, folder, path):
    engine.generate(conversation(path), True, **OPTIONS)


def boson(engine, folder, path):
    serve_engine = HiggsAudioServeEngine(str(folder), str(folder / "audio_tokenizer"), device="cpu")
    serve_engine.generate(ChatMLSample(conversation(path)), force_audio_gen=True, **OPTIONS)


def long_form(engine, folder, path):
    speech = LongSpeech(
        engine, f"{TEXT} {TEXT}", reference_audio=path, reference_text=WORDS, chunk_seconds=2, max_retries=0
    )
    assert len(list(speech)) == 2


def command(*arguments):
    def run(engine, folder, path):
        reference = ("--reference-audio", path, "--reference-text", WORDS, "--model", folder)
        with pytest.raises(SystemExit) as exit:
            main([str(argument) for argument in (*arguments, *reference)])
        assert exit.value.code == 0

    return run


def voices_command(engine, folder, path):
    with pytest.raises(SystemExit) as exit:
        main(["voices", str(path.parent)])
    assert exit.value.code == 0


CLI_OPTIONS = ("--temperature", 0.7, "--top-k", 9, "--seed", 3, "--max-new-tokens", 12)
SPEAKING = {
    "speak": speak,
    "stream": stream,
    "stream_in_an_event_loop": stream_in_an_event_loop,
    "generate": generate,
    "boson": boson,
    "cli_speak": command("speak", TEXT, *CLI_OPTIONS),
    "cli_stream": command("speak", TEXT, *CLI_OPTIONS, "--stream", "out.pcm"),
}
READING = {
    **SPEAKING,
    "long_form": long_form,
    "cli_read": command("read", TEXT, "--max-retries", 0),
    "cli_voices": voices_command,
}


@pytest.mark.parametrize("use", READING.values(), ids=READING)
def test_a_recording_is_opened_once(use, engine, folder, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with counting_opens(path) as count:
        use(engine, folder, path)
        assert count() == 1


@pytest.mark.parametrize("use", SPEAKING.values(), ids=SPEAKING)
def test_sampling_params_are_built_once_and_unpacked_once(use, engine, folder, path, tmp_path, monkeypatch):
    """One object, handed on whole to the device tensors."""
    monkeypatch.chdir(tmp_path)
    built, unpacked = recorded_sampling(monkeypatch)
    use(engine, folder, path)
    assert built == unpacked
    assert built[0] is unpacked[0]
    (params,) = built
    assert (params.temperature, params.top_k, params.seed, params.max_new_tokens) == (0.7, 9, 3, 12)


def test_each_chunk_of_a_long_text_has_its_own_parameters(engine, monkeypatch):
    """With a seed and a limit of its own, derived from those of the text, and unpacked once."""
    built, unpacked = recorded_sampling(monkeypatch)
    speech = LongSpeech(engine, f"{TEXT} {TEXT}", chunk_seconds=2, max_retries=0, seed=3)
    assert [params.seed for params in built] == [3]
    assert len(list(speech)) == len(unpacked) == 2
    assert all(any(params is one for one in built) for params in unpacked)
    assert len({params.seed for params in unpacked}) == 2


def test_opens_are_counted(path):
    with counting_opens(path) as count:
        assert count() == 0
        path.read_bytes()
        soundfile.read(path)
        assert count() == 2
