"""A checkpoint with a dictionary gets its prompts in phonemes."""

import lzma
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save

from higgs_native.checkpoint.files import READER_FILES
from higgs_native.english import reader
from higgs_native.english.guess import Guesser
from higgs_native.english.reader import DICTIONARY_FILE, GUESSER_FILE
from higgs_native.errors import CheckpointError, ConfigError, PromptError
from higgs_native.long_form.chunking import TextChunk
from higgs_native.long_form.conversation import Conversation
from higgs_native.long_form.long_speech import LongSpeech
from higgs_native.manuscript.books.book import Book, Chapter
from higgs_native.manuscript.phonemes import VOICES_FILE, PhonemeReader
from higgs_native.pipeline import HiggsAudio
from higgs_native.prompt.messages import Message
from higgs_native.prompt.voices import Voice
from tests.manuscript.voices import write_phoneme_voice


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_phoneme_voice(tmp_path_factory.mktemp("phonemes"))


@pytest.fixture(scope="module")
def engine(folder):
    return HiggsAudio.from_pretrained(folder)


@pytest.fixture
def conversations(engine, monkeypatch):
    """The messages of every request."""
    found = []
    original = HiggsAudio.prepare_request

    def prepare_request(self, conversation, *arguments, **options):
        found.append(conversation)
        return original(self, conversation, *arguments, **options)

    monkeypatch.setattr(HiggsAudio, "prepare_request", prepare_request)
    return found


def test_each_speaker_has_the_accent_of_the_voice(engine):
    heart, emma = Voice(profile="heart"), Voice(profile="emma")
    text = "[SPEAKER0] The cat. [SPEAKER1] A bath, 5!"
    assert engine.phonemes.spell(text, [heart, emma]) == "[SPEAKER0] ðə kˈæt.\n[SPEAKER1] ɐ bˈɑːθ, fˈIv!"
    assert engine.phonemes.spell(text, [emma, heart]) == "[SPEAKER0] ðə kˈat.\n[SPEAKER1] ɐ bˈæθ, fˈIv!"
    assert engine.phonemes.spell(text) == "[SPEAKER0] ðə kˈæt.\n[SPEAKER1] ɐ bˈæθ, fˈIv!"
    assert engine.phonemes.spell("The bath.", [emma]) == "ðə bˈɑːθ."


def test_prompts_are_in_phonemes_and_results_in_words(engine, conversations):
    options = {"seed": 1, "max_new_tokens": 20}
    speech = engine.speak("The cat.", voice="emma", **options)
    assert conversations[-1][-1].content == "ðə kˈat."
    assert speech.script == "The cat."
    chunks = list(engine.stream("The cat.", voice="emma", **options))
    assert conversations[-1][-1].content == "ðə kˈat."
    np.testing.assert_array_equal(np.concatenate([chunk.samples for chunk in chunks]), speech.audio)
    engine.speak("The cat. [pause:1s] The bath.", voice="emma", **options)
    assert [conversation[-1].content for conversation in conversations[-2:]] == ["ðə kˈat.", "ðə bˈɑːθ."]


def test_books_are_in_phonemes(engine, conversations):
    text = "[SPEAKER0] The cat.\n\n[SPEAKER1] The bath."
    speech = LongSpeech(engine, text, voice="heart,emma", seed=1, max_retries=0)
    list(speech)
    assert [chunk.text for chunk in speech.chunks] == ["The cat.", "The bath."]
    first, second = conversations
    assert first[-1].content == "[SPEAKER0] ðə kˈæt."
    assert second[-1].content == "[SPEAKER1] ðə bˈɑːθ."


def test_the_context_of_a_book_is_in_phonemes(engine):
    chunk = next(iter(LongSpeech(engine, "The cat.", seed=1, max_retries=0)))
    opening = [Message("system", "Generate audio following instruction.")]
    conversation = Conversation(engine, opening, set(), 1, engine.spelling([Voice(profile="emma")]))
    conversation.add(chunk.text, chunk.codes)
    messages = conversation.messages(TextChunk("The bath.", "", "sentence"), 100)
    assert [messages[1].content, messages[-1].content] == ["ðə kˈat.", "ðə bˈɑːθ."]


def test_phonemes_in_a_text_are_read_as_they_are(engine, conversations):
    """Also beside words whose sound depends on the next one, and next to punctuation."""
    assert engine.prepare_text("The [[ˈæpəl, kˈæt.]] The [[gˈO]].") == "The [[ˈæpəl]], [[kˈæt]]. The [[ɡˈO]]."
    assert engine.phonemes.spell("The [[ˈæpəl]], the [[kˈæt]]!") == "ði ˈæpəl, ðə kˈæt!"
    assert engine.unreadable_words("The [[ˈæpəl]] 猫") == ["猫"]
    text, options = "[SPEAKER0] 5 [[ɹˈuts bˈæθ]]", {"seed": 1, "max_new_tokens": 20}
    speech = engine.speak(text, normalize=True, **options)
    assert conversations[-1][-1].content == "[SPEAKER0] fˈIv ɹˈuts bˈæθ."
    assert speech.script == "[SPEAKER0] five [[ɹˈuts]] [[bˈæθ]]."
    list(engine.stream(text, normalize=True, **options))
    assert conversations[-1][-1].content == "[SPEAKER0] fˈIv ɹˈuts bˈæθ."
    book = LongSpeech(engine, "[[kˈæt. bˈæθ]] five.\n\nThe cat.", seed=1, max_retries=0, chunk_seconds=2)
    assert [chunk.text for chunk in book.chunks] == ["[[kˈæt]]. [[bˈæθ]] five.", "The cat."]
    list(book)
    assert conversations[-2][-1].content == "kˈæt. bˈæθ fˈIv."


def test_a_lexicon_may_hold_phonemes(engine):
    lexicon = {"nginx": "[[ˈɛnʤən ˈɛks]]", "kitty": "cat [[bˈæθ]]"}
    prepared = engine.prepare_text("nginx, kitty 5", normalize=True, lexicon=lexicon)
    assert prepared == "[[ˈɛnʤən]] [[ˈɛks]], cat [[bˈæθ]] five"


@pytest.mark.parametrize(("text", "symbol"), [("See [[Paris]].", "P"), ("[[kˈæt5]]", "5"), ("[[kˈ猫]]", "猫")])
def test_unknown_phonemes_are_refused_before_work(engine, text, symbol):
    error = rf"text must hold phonemes that the voice knows in \[\[\.\.\.\]\] \(A.*\), got '{symbol}' in '\[\["
    for speak in (engine.speak, engine.stream, lambda text: LongSpeech(engine, text)):
        with pytest.raises(PromptError, match=error):
            speak(text)


def test_brackets_without_their_other_half_are_no_phonemes(engine):
    assert engine.phonemes.spell("The [[ cat ]").split() == ["ðə", "kˈæt"]


def test_the_words_of_a_recording_are_in_phonemes(engine, conversations):
    recording = (0.5 * np.sin(np.arange(24000) / 17)).astype(np.float32), 24000
    with pytest.warns(UserWarning, match="the reference audio"):
        engine.speak("The cat.", reference_audio=recording, reference_text="The bath.", seed=1, max_new_tokens=20)
    assert [message.content for message in conversations[-1] if isinstance(message.content, str)][-2:] == [
        "ðə bˈæθ.",
        "ðə kˈæt.",
    ]


def test_words_that_cannot_be_read_are_named(engine):
    assert engine.unreadable_words("The 猫 cat. [pause:1s] 犬 猫") == ["猫", "犬"]
    with pytest.raises(PromptError, match="text must hold words that the voice can read, got '猫"):
        engine.speak("猫")


def test_passages_without_a_word_that_can_be_read_are_left_out(engine, conversations):
    options = {"seed": 1, "max_new_tokens": 20}
    text = "The cat. [pause:1s] 猫。 [pause:0.5s] The bath. [pause:2s] 犬"
    speech = engine.speak(text, **options)
    assert [conversation[-1].content for conversation in conversations] == ["ðə kˈæt.", "ðə bˈæθ."]
    np.testing.assert_array_equal(speech.audio, engine.speak("The cat. [pause:1.5s] The bath.", **options).audio)
    chunks = list(engine.stream(text, **options))
    np.testing.assert_array_equal(np.concatenate([chunk.samples for chunk in chunks]), speech.audio)
    first = engine.speak("猫 [pause:1s] The cat.", **options)
    assert conversations[-1][-1].content == "ðə kˈæt."
    assert not first.audio[: first.sampling_rate].any()


def test_chunks_and_chapters_without_a_word_that_can_be_read_are_left_out(engine, conversations):
    text = "[SPEAKER0] The cat.\n\n猫。\n\n[SPEAKER1] 犬。 [pause:2s] 猫 [pause:1s] The bath."
    speech = LongSpeech(engine, text, voice="heart,emma", seed=1, max_retries=0)
    list(speech)
    assert [(chunk.text, chunk.tag, chunk.boundary, chunk.pause) for chunk in speech.chunks] == [
        ("The cat.", "[SPEAKER0]", "turn", None),
        ("The bath.", "[SPEAKER1]", "turn", 3.0),
    ]
    assert [conversation[-1].content for conversation in conversations] == [
        "[SPEAKER0] ðə kˈæt.",
        "[SPEAKER1] ðə bˈɑːθ.",
    ]
    chapters = (Chapter("One", "The cat."), Chapter("Two", "猫。"), Chapter("Three", "The bath."))
    book = LongSpeech(engine, Book("A book", chapters), seed=1, max_retries=0)
    assert [(chunk.text, chunk.boundary) for chunk in book.chunks] == [
        ("The cat.", "paragraph"),
        ("The bath.", "chapter"),
    ]
    with pytest.raises(PromptError, match="text must hold words that the voice can read, got '猫"):
        LongSpeech(engine, "猫。\n\n犬。")
    with pytest.raises(PromptError, match="must hold something to say"):
        LongSpeech(engine, "* * *")


def test_other_checkpoints_read_words(demo_folder):
    engine = HiggsAudio.from_pretrained(demo_folder)
    assert engine.phonemes is None
    assert engine.unreadable_words("猫") == []
    assert engine.spelling([])("The cat.") == "The cat."
    assert engine.prepare_text("See [[Paris]].") == "See [[Paris]]."
    assert engine.prepare_text("See [[cat]].", lexicon={"cat": "dog"}) == "See [[dog]]."
    with pytest.raises(PromptError, match=r"lexicon must hold spellings for a model that reads words, got \[\[kˈæt"):
        engine.speak("The cat.", lexicon={"cat": "[[kˈæt]]"})


def test_the_dictionary_is_part_of_the_fingerprint(folder, engine, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    assert HiggsAudio.from_pretrained(copy).fingerprint() == engine.fingerprint()
    (copy / VOICES_FILE).write_text('{"heart": {"accent": "gb"}}')
    assert HiggsAudio.from_pretrained(copy).fingerprint() != engine.fingerprint()


def test_copies_of_a_checkpoint_have_its_dictionary():
    assert READER_FILES == (DICTIONARY_FILE, GUESSER_FILE)


SHAPE = {"width": "32", "inner": "32", "layers": "1"}


def guesser(metadata: dict[str, str] | None, bias: float = 0.0) -> bytes:
    """A file as `Guesser.load` takes it if the metadata is `SHAPE` and the bias is finite."""
    model = Guesser(width=32, inner=32, layers=1)
    torch.nn.init.constant_(model.head.bias, bias)
    return save(model.state_dict(), metadata)


@pytest.mark.parametrize(
    ("name", "contents", "error", "message"),
    [
        (VOICES_FILE, b"{}", ConfigError, r"voices\.json must be \{NAME: .*, got \{\}"),
        (VOICES_FILE, b'{"a": {"accent": "fr"}}', ConfigError, r"voices\.json must be"),
        (VOICES_FILE, b'{"a": 1}', ConfigError, r"voices\.json must be"),
        (VOICES_FILE, None, ConfigError, r"has no voices\.json"),
        (DICTIONARY_FILE, b"no xz", CheckpointError, "must hold a readable dictionary, got: "),
        (
            DICTIONARY_FILE,
            lzma.compress(b"the")[:-9],
            CheckpointError,
            "must unpack to at most .* or a part of a file",
        ),
        (DICTIONARY_FILE, lzma.compress(b"the\ta\tb"), CheckpointError, "must end with a line break, got a cut line"),
        (GUESSER_FILE, b"no tensors", CheckpointError, "must hold a readable dictionary, got: "),
        (GUESSER_FILE, guesser(None), CheckpointError, r"Error\(s\) in loading state_dict for Guesser"),
        (GUESSER_FILE, guesser({"width": "33"}), CheckpointError, "a width of 32 times n, got {'width': 33}"),
        (GUESSER_FILE, guesser({"layers": "9" * 9}), CheckpointError, "must have sizes up to 4096"),
        (GUESSER_FILE, guesser({"layers": "9" * 5000}), CheckpointError, "must hold a readable dictionary, got: "),
        (GUESSER_FILE, guesser({"depth": "1"}), CheckpointError, "unexpected keyword argument 'depth'"),
        (GUESSER_FILE, guesser(SHAPE, torch.nan), CheckpointError, r"head\.bias must be finite, got NaN or infinity"),
        (GUESSER_FILE, None, CheckpointError, "must hold a readable dictionary, got: "),
    ],
)
def test_damaged_files(name, contents, error, message, folder, tmp_path):
    for file in (*READER_FILES, VOICES_FILE):
        shutil.copy(folder / file, tmp_path / file)
    (tmp_path / name).unlink()
    if contents is not None:
        (tmp_path / name).write_bytes(contents)
    with pytest.raises(error, match=message):
        PhonemeReader.from_folder(tmp_path)


def test_a_dictionary_is_not_unpacked_without_a_limit(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "_MAX_BYTES", 1 << 20)
    for file in (*READER_FILES, VOICES_FILE):
        shutil.copy(folder / file, tmp_path / file)
    (tmp_path / DICTIONARY_FILE).write_bytes(lzma.compress(bytes(10 << 20), preset=0))
    with pytest.raises(CheckpointError, match="must unpack to at most 1048576 bytes, got more"):
        PhonemeReader.from_folder(tmp_path)
    (tmp_path / DICTIONARY_FILE).write_bytes(lzma.compress(b"the", preset=9))
    with pytest.raises(CheckpointError, match="Memory usage limit exceeded"):
        PhonemeReader.from_folder(tmp_path)
