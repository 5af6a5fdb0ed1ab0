import hashlib
import io
import json
import re
import resource
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from higgs_native import pipeline
from higgs_native.audio.quality import VoiceWarning
from higgs_native.errors import GenerationError, ParameterError, PromptError
from higgs_native.generation.engine import generate_batch
from higgs_native.generation.sampling_params import SamplingParams
from higgs_native.long_form import long_speech
from higgs_native.long_form.chunk_store import ChunkStore
from higgs_native.long_form.chunking import spoken_seconds
from higgs_native.long_form.joining import EDGE_SECONDS, Pauses
from higgs_native.long_form.long_speech import LongSpeech
from higgs_native.pipeline import HiggsAudio
from higgs_native.prompt.messages import AudioContent, TextContent
from higgs_native.prompt.voices import Voice
from higgs_native.speech import Speech


# References here are tones.
pytestmark = pytest.mark.filterwarnings("ignore::higgs_native.VoiceWarning")

RATE = 24000
TEXT = """The sun rises in the east. The water is cold and clear.

"Good morning," she said. My mother and my father live in a small house near the river, and they drink tea.

Twenty people walk along the road. It is a good day for a long walk in the mountains, and nobody is tired."""


@pytest.fixture(scope="module")
def engine():
    return HiggsAudio.from_pretrained()


@pytest.fixture(scope="module")
def whole(engine, tmp_path_factory):
    """An undisturbed run: its folder and its chunks."""
    folder = tmp_path_factory.mktemp("whole") / "parts"
    return folder, list(LongSpeech(engine, TEXT, folder, seed=1))


class FakeModel:
    """Takes the place of `HiggsAudio.generate`: records what it is asked, and answers as a script says."""

    def __init__(self, engine, script=lambda seed: "good"):
        self.engine = engine
        self.script = script
        self.calls = []

    def __call__(self, messages, force_audio_gen, sampling):
        assert force_audio_gen
        seed = sampling.seed
        self.calls.append((messages, seed, sampling))
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
        """What was read: a line a text, `<sound>` a recording."""
        return [
            [item.text if isinstance(item, TextContent) else "<sound>" for m in messages for item in m.contents()]
            for messages, *_ in self.calls
        ]


@pytest.fixture
def fake(engine, monkeypatch):
    def install(script=lambda seed: "good"):
        model = FakeModel(engine, script)
        monkeypatch.setattr(engine, "generate", model)
        return model

    return install


def sealed(contents):
    """Contents of a .json file with the checksum that the store would give them."""
    contents = {name: value for name, value in contents.items() if name != "checksum"}
    checksum = hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()
    return contents | {"checksum": checksum}


def test_the_chunks_are_the_speech(engine, whole, tmp_path):
    _, chunks = whole
    speech = LongSpeech(engine, TEXT, seed=1, pauses=Pauses(paragraph=1, turn=0, sentence=0.5))
    assert len(speech) == len(speech.chunks) == len(chunks) == 7
    speech.save(tmp_path / "book.wav")
    with_pauses = list(speech)
    assert [chunk.index for chunk in with_pauses] == list(range(7))
    assert [chunk.text for chunk in with_pauses] == speech.chunks
    assert [chunk.text.boundary for chunk in with_pauses] == [
        "paragraph", "sentence", "paragraph", "sentence", "word", "paragraph", "sentence"
    ]  # fmt: skip
    read, rate = soundfile.read(tmp_path / "book.wav", dtype="int16")
    assert rate == RATE
    np.testing.assert_array_equal(read, np.concatenate([chunk.pcm for chunk in with_pauses]))
    for chunk, same, pause in zip(with_pauses, chunks, (0, 0.5, 1, 0.5, 0, 1, 0.5), strict=True):
        silence = round(pause * RATE)
        assert not chunk.pcm[:silence].any()
        voiced = np.flatnonzero(np.abs(chunk.audio) > 0.01 * np.abs(chunk.audio).max())
        assert silence <= voiced[0] <= silence + EDGE_SECONDS * RATE + 1
        assert len(chunk.pcm) - voiced[-1] <= EDGE_SECONDS * RATE + 2
        np.testing.assert_array_equal(chunk.pcm[-1000:], same.pcm[-1000:])
        assert chunk.audio.dtype == np.float32
        assert np.array_equal((chunk.audio * 32768).astype(np.int16), chunk.pcm)
        assert chunk.duration == len(chunk.pcm) / RATE
        assert torch.equal(chunk.codes, same.codes)
        assert chunk.codes.dtype == torch.int64


def test_the_embedded_voice_says_all_of_it(whole):
    _, chunks = whole
    for chunk in chunks:
        assert chunk.failures == ()
        assert chunk.seed == 1 + 1000 * chunk.index + chunk.kept
    paces = [chunk.attempts[chunk.kept].duration / spoken_seconds(chunk.text.text) for chunk in chunks]
    assert 0.75 < np.median(paces) < 1.15


def test_the_same_seed_gives_the_same_bytes(engine, whole, tmp_path):
    folder, _ = whole
    assert len(list(LongSpeech(engine, TEXT, tmp_path / "same", seed=1))) == 7
    assert {file.name for file in folder.iterdir()} == {file.name for file in (tmp_path / "same").iterdir()}
    for file in folder.iterdir():
        assert (tmp_path / "same" / file.name).read_bytes() == file.read_bytes()
    other = next(iter(LongSpeech(engine, TEXT, seed=2)))
    assert other.pcm.tobytes() != soundfile.read(folder / "00000.wav", dtype="int16")[0].tobytes()


def test_what_is_missing_or_torn_is_made_again(engine, whole, tmp_path, monkeypatch):
    folder, _ = whole
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    parts = tmp_path / "parts"
    parts.mkdir()
    for name, data in files.items():
        (parts / name).write_bytes(data)
    (parts / "00001.json").unlink()
    (parts / "00002.json").write_bytes(files["00002.json"][:-20])
    (parts / "00003.wav").write_bytes(files["00003.wav"][:-20])
    (parts / "00004.wav").unlink()
    (parts / ".00004.wav.tmp").touch()
    seeds = []
    generate = engine.generate

    def recorded(*arguments, sampling):
        seeds.append(sampling.seed)
        return generate(*arguments, sampling=sampling)

    monkeypatch.setattr(engine, "generate", recorded)
    speech = LongSpeech(engine, TEXT, parts)  # the seed is the run's
    assert speech.seed == 1
    assert speech.num_finished == 6
    assert len(list(speech)) == speech.num_finished == 7
    assert {seed // 1000 for seed in seeds} == {1, 2, 3, 4}
    assert {file.name: file.read_bytes() for file in parts.iterdir() if file.name[0] != "."} == files
    made = len(seeds)
    list(speech)
    assert len(seeds) == made


def test_records_of_another_kind_are_made_again(engine, fake, tmp_path):
    model = fake()
    list(LongSpeech(engine, "One.", tmp_path))
    record = json.loads((tmp_path / "00000.json").read_text())
    changes = [
        [],
        None,
        {},
        *(
            sealed(record | change)
            for change in (
                {"attempts": None},
                {"attempts": []},
                {"kept": 1},
                {"codes": "?"},
                {"codes": [1]},
                {"codes": [[2**70]]},
                {"index": 1},
                {"text": "Two."},
                {"tag": "[SPEAKER1]"},
            )
        ),
    ]
    for changed in changes:
        (tmp_path / "00000.json").write_text(json.dumps(changed))
        assert len(list(LongSpeech(engine, "One.", tmp_path))) == 1
    assert len(model.calls) == 1 + len(changes)
    (tmp_path / "00000.json").unlink()
    (tmp_path / "00000.json").mkdir()
    with pytest.raises(ParameterError, match=r"can't be read: .*Is a directory"):
        list(LongSpeech(engine, "One.", tmp_path))


def test_changed_codes_and_exchanged_chunks_are_made_again(engine, whole, tmp_path):
    """The JSON is valid, and the checksum of each file is that of a file of this run."""
    folder, _ = whole
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    record = json.loads(files["00000.json"])
    record["codes"][3][5] ^= 1
    (tmp_path / "00000.json").write_text(json.dumps(record, ensure_ascii=False))
    for ending in ("json", "wav"):
        (tmp_path / f"00001.{ending}").write_bytes(files[f"00002.{ending}"])
        (tmp_path / f"00002.{ending}").write_bytes(files[f"00001.{ending}"])
    chunks = list(LongSpeech(engine, TEXT, tmp_path))
    assert [chunk.index for chunk in chunks] == list(range(7))
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == files


def test_records_may_be_formatted_anew(engine, fake, tmp_path):
    model = fake()
    list(LongSpeech(engine, "One.", tmp_path))
    record = json.loads((tmp_path / "00000.json").read_text())
    (tmp_path / "00000.json").write_text(json.dumps(record, indent=4, sort_keys=True))
    list(LongSpeech(engine, "One.", tmp_path))
    assert len(model.calls) == 1


@pytest.mark.parametrize("kind", ["stereo", "truncated", "text"])
def test_wav_that_is_no_speech_is_made_again(engine, fake, tmp_path, kind):
    """Also if hash and checksum fit."""
    model = fake()
    list(LongSpeech(engine, "One.", tmp_path))
    files = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    wav = io.BytesIO()
    soundfile.write(wav, np.zeros((9600, 2)), RATE, format="WAV", subtype="PCM_16")
    data = {"stereo": wav.getvalue(), "truncated": files["00000.wav"][:30], "text": b"no sound"}[kind]
    (tmp_path / "00000.wav").write_bytes(data)
    record = json.loads(files["00000.json"]) | {"sha256": hashlib.sha256(data).hexdigest()}
    (tmp_path / "00000.json").write_text(json.dumps(sealed(record)))
    list(LongSpeech(engine, "One.", tmp_path, seed=model.calls[0][1]))
    assert len(model.calls) == 2
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == files


def test_changed_run_is_refused(engine, fake, tmp_path):
    fake()
    list(LongSpeech(engine, "One.", tmp_path, seed=1))
    text = (tmp_path / "run.json").read_text()
    (tmp_path / "run.json").write_text(text.replace('"seed": 1', '"seed": 2'))
    with pytest.raises(ParameterError, match=r"run\.json: checksum must be that of the contents.*; delete the folder"):
        LongSpeech(engine, "One.", tmp_path)


def test_a_run_that_is_cut_off_while_it_is_removed(engine, fake, tmp_path, monkeypatch):
    """Whatever file is the last to go, the rest is a run that goes on."""
    fake()
    folder = tmp_path / "parts"
    unlink = Path.unlink
    for count in range(6):
        list(LongSpeech(engine, "One.\n\nTwo.", folder, seed=1))
        left = count

        def cut_off(path, missing_ok):
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            unlink(path)

        monkeypatch.setattr(Path, "unlink", cut_off)
        try:
            ChunkStore(folder).remove()
        except KeyboardInterrupt:
            assert count < 5
        monkeypatch.setattr(Path, "unlink", unlink)
    assert not folder.exists()


def test_a_full_disk_is_told(engine, fake, tmp_path):
    fake()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    speech = LongSpeech(engine, "The first one.", tmp_path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(ParameterError, match="can't be written to: File too large"):
            list(speech)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [file.name for file in tmp_path.iterdir()] == ["run.json"]


def test_numbers_of_numpy_are_numbers(engine, fake, tmp_path):
    fake()
    options = {"seed": 1, "top_k": 20, "chunk_seconds": 4, "context_chunks": 1, "temperature": 0.5}
    of_numpy = {name: np.array(value)[()] for name, value in options.items()} | {"temperature": np.float32(0.5)}
    list(LongSpeech(engine, TEXT, tmp_path, **of_numpy))
    assert LongSpeech(engine, TEXT, tmp_path, **options).num_finished == len(
        LongSpeech(engine, TEXT, tmp_path, **of_numpy)
    )


def test_the_folder_tells_what_was_done(whole):
    folder, chunks = whole
    run = json.loads((folder / "run.json").read_text())
    assert run["inputs"]["seed"] == 1
    assert [chunk["text"] for chunk in run["inputs"]["text"]] == [chunk.text.text for chunk in chunks]
    record = json.loads((folder / "00001.json").read_text())
    assert record["text"] == chunks[1].text.text
    assert record["attempts"][record["kept"]]["seed"] == chunks[1].seed
    assert torch.equal(torch.tensor(record["codes"]), chunks[1].codes)


def test_without_a_folder_nothing_stays(engine, fake):
    fake()
    speech = LongSpeech(engine, TEXT)
    list(speech)
    folder = speech.folder
    assert folder.is_dir()
    del speech
    assert not folder.exists()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"text": "Another text."}, "text"),
        ({"seed": 2}, "seed"),
        ({"scene": "SPEAKER0: masculine"}, "scene"),
        ({"temperature": 0.5, "top_k": 20}, "temperature, top_k"),
        ({"chunk_seconds": 4.0, "text": "The sun rises."}, "text, chunk_seconds"),
        ({"context_chunks": 1}, "context_chunks"),
        ({"max_retries": 0}, "max_retries"),
        ({"reference_audio": (np.sin(np.arange(RATE) / 20).astype(np.float32), RATE)}, "recordings"),
    ],
)
def test_a_folder_of_another_run_is_refused(changes, named, engine, whole):
    folder, _ = whole
    before = {file: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(ParameterError, match=f"the same inputs, got one that differs in (voices, )?{named}; give"):
        LongSpeech(engine, **({"text": TEXT, "folder": folder, "seed": 1} | changes))
    assert {file: file.read_bytes() for file in folder.iterdir()} == before


def test_a_folder_of_another_model_is_refused(engine, whole):
    other = HiggsAudio.from_pretrained(quantization="int8")
    assert other.fingerprint() != engine.fingerprint()
    assert HiggsAudio.from_pretrained().fingerprint() == engine.fingerprint()
    with pytest.raises(ParameterError, match="differs in model; give"):
        LongSpeech(other, TEXT, whole[0], seed=1)


def test_a_folder_of_something_else_is_refused(engine, tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ParameterError, match=r"an earlier run, got other files and no run\.json"):
        LongSpeech(engine, TEXT, tmp_path)
    with pytest.raises(ParameterError, match=r"notes\.txt can't be read: Not a directory"):
        LongSpeech(engine, TEXT, tmp_path / "notes.txt")
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ParameterError, match=r"run\.json must be a readable JSON file, got: "):
        LongSpeech(engine, TEXT, tmp_path)


def test_a_folder_of_an_earlier_version_is_refused(engine, fake, tmp_path):
    fake()
    list(LongSpeech(engine, "One.", tmp_path))
    run = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(run | {"format": 1}))
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(ParameterError) as error:
        LongSpeech(engine, "One.", tmp_path)
    assert str(error.value) == (
        f"{tmp_path / 'run.json'}: format must be 2, got 1; finish the run with the version that began it, "
        "or delete the folder to begin anew"
    )
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_bad_input_makes_no_folder(engine, tmp_path):
    folder = tmp_path / "parts"
    for error, changes, message in (
        (PromptError, {"text": " "}, "something to say"),
        (PromptError, {"text": "Hi <|eot_id|>"}, "special token"),
        (PromptError, {"text": b"Hi"}, "text must be a string, got b'Hi'"),
        (PromptError, {"scene": 3}, "scene must be a string, got 3"),
        (PromptError, {"voice": "anna"}, "no folder of voices"),
        (ParameterError, {"chunk_seconds": 100}, "chunk_seconds must lie between 2 and 30, got 100"),
        (ParameterError, {"context_chunks": -1}, "context_chunks must be at least 0, got -1"),
        (ParameterError, {"max_retries": 1000}, "max_retries must lie between 0 and 999, got 1000"),
        (ParameterError, {"chunk_seconds": "9"}, "chunk_seconds must be a number, got '9'"),
        (ParameterError, {"context_chunks": 1.5}, "context_chunks must be an integer or None, got 1.5"),
        (ParameterError, {"max_retries": None}, "max_retries must be an integer, got None"),
        (ParameterError, {"temperature": -1}, "temperature"),
        (ParameterError, {"seed": -1}, "seed"),
        (ParameterError, {"folder": 3}, "folder must be a string or a path, got 3"),
        (ParameterError, {"folder": "a\0b"}, r"folder must be a path, got 'a\\x00b' with a zero byte"),
    ):
        with pytest.raises(error, match=message):
            LongSpeech(engine, **({"text": TEXT, "folder": folder} | changes))
    assert not folder.exists()


def test_the_first_chunk_shows_the_voice(engine, fake):
    model = fake()
    list(LongSpeech(engine, "One.\n\nTwo.\n\nThree.\n\nFour.", context_chunks=1))
    system = model.conversations[0][0]
    assert model.conversations == [
        [system, "One."],
        [system, "One.", "<sound>", "Two."],
        [system, "One.", "<sound>", "Two.", "<sound>", "Three."],
        [system, "One.", "<sound>", "Three.", "<sound>", "Four."],
    ]
    list(LongSpeech(engine, "One.\n\nTwo.\n\nThree.", context_chunks=0))
    assert model.conversations[-1] == [system, "One.", "<sound>", "Three."]


def test_a_recording_shows_the_voice(engine, fake):
    model = fake()
    tone = np.sin(np.arange(RATE) / 20).astype(np.float32)
    text = "One.\n\nTwo.\n\nThree.\n\nFour."
    with pytest.warns(VoiceWarning, match="it is short"):
        speech = LongSpeech(engine, text, reference_audio=(tone, RATE), reference_text="Words.", context_chunks=2)
    list(speech)
    system = model.conversations[0][0]
    assert model.conversations[0] == [system, "Words.", "<sound>", "One."]
    assert model.conversations[-1] == [system, "Words.", "<sound>", "Two.", "<sound>", "Three.", "<sound>", "Four."]
    recording = model.calls[0][0][2].contents()[0]
    assert torch.equal(recording.codes, engine.audio_tokenizer.encode(tone, RATE))


def test_every_speaker_keeps_a_voice(engine, fake):
    model = fake()
    text = "[SPEAKER0] One. [SPEAKER1] Two. [SPEAKER0] Three.\n\nFour. [SPEAKER1] Five."
    list(LongSpeech(engine, text, context_chunks=1))
    opening = model.conversations[0][:-1]
    assert "SPEAKER0: feminine" in " ".join(opening)
    assert "SPEAKER1: masculine" in " ".join(opening)
    assert [conversation[len(opening) :] for conversation in model.conversations] == [
        ["[SPEAKER0] One."],
        ["[SPEAKER0] One.", "<sound>", "[SPEAKER1] Two."],
        ["[SPEAKER0] One.", "<sound>", "[SPEAKER1] Two.", "<sound>", "[SPEAKER0] Three."],
        ["[SPEAKER0] One.", "<sound>", "[SPEAKER0] Three.", "<sound>", "[SPEAKER0] Four."],
        ["[SPEAKER1] Two.", "<sound>", "[SPEAKER0] Four.", "<sound>", "[SPEAKER1] Five."],
    ]


def test_who_has_no_recording_keeps_a_voice_too(engine, fake):
    """One speaker's recording shows that voice alone: the other's is described, or not even that."""
    tone = (np.sin(np.arange(RATE) / 20).astype(np.float32), RATE)
    text = "[SPEAKER0] One. [SPEAKER1] Two. [SPEAKER0] Three. [SPEAKER1] Four."
    for voices in ([Voice(tone), Voice(profile="masculine")], [Voice(tone, "Words.")]):
        model = fake()
        list(LongSpeech(engine, text, voice=voices, context_chunks=0))
        spoken = [conversation[len(model.conversations[0]) - 1 :] for conversation in model.conversations]
        assert spoken == [
            ["[SPEAKER0] One."],
            ["[SPEAKER1] Two."],
            ["[SPEAKER0] Three."],
            ["[SPEAKER1] Two.", "<sound>", "[SPEAKER1] Four."],
        ]


def test_what_shows_the_voice_gives_way_last(engine, fake, monkeypatch):
    """Also where it is not the oldest chunk of the context."""
    model = fake()
    text = "[SPEAKER0] One. [SPEAKER0] Two and two. [SPEAKER1] Three. [SPEAKER0] Four. [SPEAKER1] Five and six."
    seen = {}
    for limit in range(100, 600, 20):
        monkeypatch.setattr(engine.model, "max_cache_length", limit)
        model.calls.clear()
        try:
            list(LongSpeech(engine, text, context_chunks=3))
        except PromptError:
            continue
        said = model.conversations[-1][len(model.conversations[0]) - 1 :: 2]
        seen[len(said)] = said
    assert seen == {
        1: ["[SPEAKER1] Five and six."],
        2: ["[SPEAKER1] Three.", "[SPEAKER1] Five and six."],
        3: ["[SPEAKER1] Three.", "[SPEAKER0] Four.", "[SPEAKER1] Five and six."],
        4: ["[SPEAKER0] Two and two.", "[SPEAKER1] Three.", "[SPEAKER0] Four.", "[SPEAKER1] Five and six."],
    }


def test_context_gives_way_where_the_cache_is_full(engine, fake, monkeypatch):
    model = fake()
    text = "One and two and three.\n\nTwo and three.\n\nThree and four.\n\nFour and five."
    list(LongSpeech(engine, text, context_chunks=3))
    lengths = [len(conversation) for conversation in model.conversations]
    assert lengths == [2, 4, 6, 8]
    # The second chunk goes first, then the third; the first one shows the voice.
    needed = {}
    for limit in range(160, 600, 20):
        monkeypatch.setattr(engine.model, "max_cache_length", limit)
        model.calls.clear()
        try:
            list(LongSpeech(engine, text, context_chunks=3))
        except PromptError:
            continue
        needed.setdefault(len(model.conversations[-1]), model.conversations[-1][1:])
    assert sorted(needed) == [2, 4, 6, 8]
    assert needed[4] == ["One and two and three.", "<sound>", "Four and five."]
    assert needed[6] == ["One and two and three.", "<sound>", "Three and four.", "<sound>", "Four and five."]


def test_a_prompt_fits_the_cache_as_it_was_counted(engine, monkeypatch):
    """The count of positions is the model's own: it takes a cache of exactly that length, and none shorter."""
    text = "The sun rises.\n\nIt is cold."
    outputs = []

    def recorded(model, requests):
        (output,) = generate_batch(model, requests)
        outputs.append((output, requests[0].sampling.max_new_tokens))
        return [output]

    monkeypatch.setattr(pipeline, "generate_batch", recorded)
    list(LongSpeech(engine, text, seed=1))
    positions = max(output.prompt_tokens + limit for output, limit in outputs)
    for limit, turns in ((positions, 2), (positions - 1, 1)):
        monkeypatch.setattr(engine.model, "max_cache_length", limit)
        outputs.clear()
        list(LongSpeech(engine, text, seed=1))
        prompts = [output.prompt_tokens for output, _ in outputs]
        assert (prompts[1] > prompts[0] + 20) == (turns == 2)


def test_references_that_leave_no_room(engine, monkeypatch, tmp_path):
    monkeypatch.setattr(engine.model, "max_cache_length", 300)
    with pytest.raises(
        PromptError, match=r"max_cache_length must be at least \d+ for a chunk with its references, got 300"
    ):
        LongSpeech(engine, TEXT, tmp_path / "parts", reference_audio=(np.ones(RATE * 10, dtype=np.float32), RATE))
    assert not (tmp_path / "parts").exists()


def test_failed_chunk_is_spoken_again(engine, fake):
    # Chunk 1 is good at the third attempt, chunk 2 never, though its second attempt is the best.
    script = {1010: "short", 1011: "endless", 2010: "short", 2011: "endless", 2012: "nothing", 2013: "short"}
    model = fake(lambda seed: script.get(seed, "good"))
    text = "The first of four.\n\nThe second of four.\n\nThe third of four.\n\nThe fourth of four."
    speech = LongSpeech(engine, text, seed=10, context_chunks=1)
    chunks = list(speech)
    assert [len(chunk.attempts) for chunk in chunks] == [1, 3, 4, 1]
    assert [seed for _, seed, *_ in model.calls] == [10, 1010, 1011, 1012, 2010, 2011, 2012, 2013, 3010]
    assert [attempt.failures for attempt in chunks[1].attempts] == [("too short",), ("no end",), ()]
    assert chunks[1].seed == 1012
    assert chunks[1].failures == ()
    assert chunks[2].seed == 2011
    assert chunks[2].failures == ("no end",)
    # A failed chunk is no context.
    assert model.conversations[-1][1::2] == ["The first of four.", "The second of four.", "The fourth of four."]
    # The report lasts.
    assert [chunk.attempts for chunk in speech] == [chunk.attempts for chunk in chunks]


def test_the_attempt_with_the_fewest_failures_is_kept(engine, fake, monkeypatch):
    failures = iter([["silence", "no end"], ["silence"], ["no end", "too short"]])
    monkeypatch.setattr(long_speech, "detect_failures", lambda speech, text: next(failures))
    fake()
    (chunk,) = LongSpeech(engine, "One.", seed=0, max_retries=2)
    assert (chunk.kept, chunk.failures) == (1, ("silence",))


def test_strict(engine, fake, tmp_path):
    model = fake(lambda seed: "short" if seed // 1000 == 1 else "good")
    speech = LongSpeech(engine, "The first one.\n\nThe second one.", tmp_path, seed=0, max_retries=1, strict=True)
    expected = re.escape(
        "chunk 1 failed with every seed: too short (seed 1000); too short (seed 1001); its text is 'The second one.'"
    )
    with pytest.raises(GenerationError, match=expected):
        list(speech)
    # The chunk is there: it is not tried again, is still refused, and without `strict` the run goes on.
    calls = len(model.calls)
    with pytest.raises(GenerationError, match=expected):
        list(speech)
    assert len(list(LongSpeech(engine, "The first one.\n\nThe second one.", tmp_path, max_retries=1))) == 2
    assert len(model.calls) == calls == 3


def test_greedy_attempts_are_not_repeated(engine, fake, monkeypatch):
    model = fake(lambda seed: "short")
    monkeypatch.setattr(
        engine, "generate", lambda *arguments, sampling: model(*arguments, sampling=replace(sampling, seed=0))
    )
    (chunk,) = LongSpeech(engine, "The first one.", seed=0, temperature=0)
    assert len(chunk.attempts) == 2


def test_nothing_at_all_is_kept_as_nothing(engine, fake, tmp_path):
    fake(lambda seed: "nothing" if seed < 1000 else "good")
    speech = LongSpeech(engine, "The first one.\n\nThe second one.", seed=0, pauses=Pauses(paragraph=0))
    first, second = speech
    assert first.failures == ("too short",)
    assert len(first.pcm) == 0
    speech.save(tmp_path / "out.flac")
    assert soundfile.info(tmp_path / "out.flac").frames == len(second.pcm)


def test_a_seed_beside_the_largest_wraps(engine, fake):
    model = fake()
    list(LongSpeech(engine, "One.\n\nTwo.", seed=2**63 - 1))
    assert [seed for _, seed, *_ in model.calls] == [2**63 - 1, 999]


def test_what_generation_is_asked(engine, fake):
    model = fake()
    list(LongSpeech(engine, "The first one.", temperature=0.7, top_k=None, top_p=0.8, ras_win_len=None))
    _, seed, sampling = model.calls[0]
    max_new_tokens = sampling.max_new_tokens
    assert sampling == SamplingParams(0.7, None, 0.8, None, seed=seed, max_new_tokens=max_new_tokens)
    # The bound of a speech without end, and the frames that are no audio.
    assert 25 * long_speech.max_seconds("The first one.") + 10 <= max_new_tokens < 25 * 6


def test_a_wav_holds_four_gigabytes(engine, fake, tmp_path, monkeypatch):
    fake()
    monkeypatch.setattr(long_speech, "_LARGEST_WAV", 10_000)
    speech = LongSpeech(engine, TEXT)
    with pytest.raises(ParameterError, match=r"too long for \.wav; expected \.flac, \.ogg or \.mp3"):
        speech.save(tmp_path / "out.wav")
    speech.save(tmp_path / "out.flac")
    assert [file.name for file in tmp_path.iterdir()] == ["out.flac"]


def test_save_looks_at_the_path_first(engine, fake, tmp_path):
    model = fake()
    with pytest.raises(ParameterError, match=r"does not end in one of"):
        LongSpeech(engine, TEXT).save(tmp_path / "out.aac")
    assert not model.calls


def test_text_chunks_and_audio_contents_compare():
    """Codes in a content are left out of comparisons, which tensors have no one answer to."""
    one, two = (AudioContent(codes=torch.zeros(8, 3)) for _ in range(2))
    assert one == two
    assert replace(one, audio_url="a") != two


# Each run is a process forked from one that has loaded the model, so that a kill costs no second start. One thread:
# the threads of a parent do not live on in its children.
KILLS = """
import os, random, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from higgs_native import HiggsAudio, LongSpeech
from higgs_native.utils import files

engine = HiggsAudio.from_pretrained()

def start(text, name, before_run=lambda: None):
    process = os.fork()
    if process:
        return process
    try:
        before_run()
        LongSpeech(engine, text, name, seed=1).save(name + ".wav")
        os._exit(0)
    except BaseException as error:
        print(repr(error), file=sys.stderr)
        os._exit(1)

def finish(process):
    _, status = os.waitpid(process, 0)
    return "killed" if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)

def same(one, two):
    assert Path(one + ".wav").read_bytes() == Path(two + ".wav").read_bytes()
    parts = [{file.name: file.read_bytes() for file in Path(name).iterdir()} for name in (one, two)]
    assert parts[0] == parts[1], [sorted(names) for names in parts]
    assert not list(Path().glob(".*")), list(Path().glob(".*"))
"""

RANDOM_KILLS = (
    KILLS
    + """
text = sys.argv[1]
_, status, used = os.wait4(start(text, "whole"), 0)
assert status == 0
# A timer of the processor's seconds, which the machine's other load does not change. No Python runs at its end.
seconds = used.ru_utime + used.ru_stime
generator = random.Random(0)
progress = []
for _ in range(20):
    moment = generator.uniform(0.001, seconds / 20)
    assert finish(start(text, "cut", lambda: signal.setitimer(signal.ITIMER_PROF, moment))) == "killed"
    progress.append(len(list(Path("cut").glob("0*.json"))))
assert 0 < progress[-1] < len(list(Path("whole").glob("0*.json"))), progress
assert finish(start(text, "cut")) == 0
same("whole", "cut")
print(progress)
"""
)

KILLS_AT_RENAMES = (
    KILLS
    + """
text = sys.argv[1]
assert finish(start(text, "whole")) == 0
replace = os.replace
renames = len(list(Path("whole").iterdir())) + 1

def killed_at(number, after):
    def rename(*paths):
        nonlocal number
        number -= 1
        if number >= 0 or after:
            replace(*paths)
        if number < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    files.os.replace = rename

for number in range(renames):
    for after in (False, True):
        name = f"cut{number}{after}"
        assert finish(start(text, name, lambda: killed_at(number, after))) == "killed"
        assert finish(start(text, name)) == 0
        same("whole", name)
print(renames)
"""
)


def test_a_run_that_is_killed_at_20_random_moments(run_python):
    finished = run_python(RANDOM_KILLS, "\n\n".join([TEXT] * 8))
    assert finished.returncode == 0, finished.stderr


def test_a_run_that_is_killed_before_and_after_each_file(run_python):
    finished = run_python(KILLS_AT_RENAMES, "The sun rises.\n\nIt is cold.")
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout == "6\n"  # run.json, two files for each of two chunks, and the whole
