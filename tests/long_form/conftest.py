"""Fixtures of long form's tests: the embedded voice, an uninterrupted run, and a fake model."""

from concurrent.futures import Future

import pytest
import torch

from higgs_native.long_form.long_speech import LongSpeech
from higgs_native.pipeline import HiggsAudio
from higgs_native.prompt.messages import TextContent
from higgs_native.prompt.pace import spoken_seconds
from higgs_native.speech import Speech


RATE = 24000
TEXT = """The sun rises in the east. The water is cold and clear.

"Good morning," she said. My mother and my father live in a small house near the river, and they drink tea.

Twenty people walk along the road. It is a good day for a long walk in the mountains. Nobody is tired."""


@pytest.fixture(scope="package")
def engine():
    return HiggsAudio.from_pretrained()


@pytest.fixture(scope="package")
def whole(engine, tmp_path_factory):
    """An uninterrupted run: its folder and its chunks."""
    folder = tmp_path_factory.mktemp("whole") / "parts"
    return folder, list(LongSpeech(engine, TEXT, folder, seed=1))


class FakeHandle:
    """A request that has ended as soon as it was added."""

    is_ready = True

    def __init__(self, speech):
        self.future = Future()
        self.future.set_result(speech)

    def abort(self):
        pass


class FakeModel:
    """Replaces the model of an engine: records the requests, and answers by a script."""

    def __init__(self, engine, script=lambda seed: "good"):
        self.engine = engine
        self.script = script
        self.calls = []

    def prepare_request(self, messages, force_audio_gen, sampling, adapter):
        assert force_audio_gen
        self.calls.append((messages, sampling.seed, sampling))
        return lambda: self.speech(messages, sampling.seed)

    def speech(self, messages, seed):
        text = messages[-1].content.rpartition("] ")[2]
        seconds = spoken_seconds(text)
        kind = self.script(seed)
        frames = {"good": 25 * seconds, "endless": 25 * seconds, "short": 5 * seconds, "nothing": 0}[kind]
        generator = torch.Generator().manual_seed(seed)
        codes = torch.randint(0, 256, (8, round(frames)), generator=generator)
        audio = torch.randn(960 * codes.shape[1], generator=generator).numpy() * 0.1
        return Speech(audio, RATE, codes, "", "length" if kind == "endless" else "stop", {})

    @property
    def conversations(self):
        """The prompts: a string per text, `<sound>` for audio."""
        return [
            [item.text if isinstance(item, TextContent) else "<sound>" for m in messages for item in m.contents()]
            for messages, *_ in self.calls
        ]


@pytest.fixture
def fake(engine, monkeypatch):
    def install(script=lambda seed: "good"):
        model = FakeModel(engine, script)
        engine.fingerprint()  # is kept, and tells which words are read how
        monkeypatch.setattr(engine, "phonemes", None)  # prompts hold words
        monkeypatch.setattr(engine, "prepare_request", model.prepare_request)
        monkeypatch.setattr(engine.model.engine, "add", FakeHandle)
        monkeypatch.setattr(engine, "speech", lambda speech: speech)
        return model

    return install
