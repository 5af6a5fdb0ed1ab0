import itertools
import random
import sys
import time

import pytest
import regex

from higgs_native.errors import ParameterError, PromptError
from higgs_native.long_form import chunking
from higgs_native.long_form.chunking import TextChunk, chunk_text
from higgs_native.prompt.normalize import normalize_text
from higgs_native.prompt.pace import spoken_seconds


LIMIT = 12

# Words, and phrases with full stops, quotes and commas that are hard to cut at in the language.
LANGUAGES = {
    "english": (
        "the river house walked slowly mountain don't quick-witted yesterday it Anna light of wonderful",
        [
            "Dr. Brown",
            "3.5 miles",
            "J. R. R. Tolkien",
            "at 5 p.m. sharp",
            '"stop!" he said',
            "the U.S. coast",
            "1,000",
        ],
    ),
    "german": (
        "der Fluss Haus ging langsam Gebirge gestern ich es Anna Licht von ein wunderbarer Straßenbahnhaltestelle",
        ["Hr. Müller", "3,5 Meilen", "z.B. morgens", "am 3. Oktober", "„halt!“ rief er", "»ja«, sagte sie", "1.000"],
    ),
    "spanish": (
        "el río casa caminó despacio montaña ayer yo lo Ana luz de un maravilloso niño",
        ["el Sr. López", "3,5 millas", "¿verdad?, dijo", "«no», respondió", "a las 5 p.m. en punto", "1.000"],
    ),
    "arabic": (
        "النهر البيت مشى ببطء الجبل أمس أنا هو ضوء من رائع كتاب مدرسة",
        ["د. أحمد", "3.5 ميل", "«قف» قال", "نعم، طبعا", "كَتَبَ الوَلَدُ"],
    ),
    "korean": (
        "강은 집에서 천천히 걸었다 산을 어제 나는 그것을 빛의 아름다운 학교에 친구와",
        ["3.5킬로미터", "“멈춰!”라고 말했다", "김 박사는", "1,000명"],
    ),
    "chinese": (
        "我们 河流 房子 慢慢 走 山 昨天 他 光 的 美丽 图书馆 iPhone 一千 老师",
        ["3.5公里", "他说“停下”", "《红楼梦》", "访问example.com网站", "苹果、梨、香蕉", "等等……然后"],
    ),
    "japanese": (
        "川は 家で ゆっくり 歩いた 山を 昨日 私は 光の 美しい 図書館に コンピューターと ちょっと",
        ["3.5キロ", "「止まれ！」と言った", "『本』", "りんご、みかん", "「彼は『はい』と言った」そうだ"],
    ),
}
UNSPACED = ("chinese", "japanese")
ENDS = {"arabic": ".؟!", "chinese": "。？！", "japanese": "。？！"}
COMMAS = {"arabic": "، ", "chinese": "，", "japanese": "、"}


def compose(language, number_of_words=3000):
    """Compose a text of `language`: paragraphs of sentences, some far too long for a chunk."""
    generator = random.Random(language)
    words, phrases = LANGUAGES[language]
    words, space = words.split(), "" if language in UNSPACED else " "
    paragraphs, left = [], number_of_words
    while left > 0:
        sentences = []
        for _ in range(generator.choice([1, 2, 5, 12])):
            length = generator.choice([1, 4, 9, 16, 25] * 4 + [150])
            left -= length
            chosen = [generator.choice(phrases if generator.random() < 0.15 else words) for _ in range(length)]
            # No phrases at the ends: after "5 p.m." a full stop is no sure end, and a small letter continues.
            chosen = [generator.choice(words), *chosen, generator.choice(words)]
            rest = 0.0 if length > 100 and generator.random() < 0.5 else 0.12  # a long sentence may have no comma
            sentence = chosen[0]
            for word in chosen[1:]:
                sentence += (COMMAS.get(language, ", ") if generator.random() < rest else space) + word
            sentence = sentence[0].upper() + sentence[1:] + generator.choice(ENDS.get(language, ".?!"))
            sentences.append(f"“{sentence}”" if generator.random() < 0.1 else sentence)
        paragraphs.append(sentences)
    return paragraphs, space


def joined(text, chunks):
    """Return whether the chunks are the normalized text, except for white space between them."""
    # An Arabic question needs no stop.
    text, position = normalize_text(text).replace("؟.", "؟"), 0
    for chunk in chunks:
        while text[position].isspace():
            position += 1
        assert text.startswith(chunk.text, position), (chunk.text, text[position : position + 100])
        position += len(chunk.text)
    return position == len(text)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_text_of_3000_words(language):
    paragraphs, space = compose(language)
    text = "\n\n".join(space.join(sentences) for sentences in paragraphs)
    chunks = chunk_text(text, LIMIT)

    assert joined(text, chunks)
    assert all(0 < spoken_seconds(chunk.text) <= LIMIT for chunk in chunks)
    assert all(chunk.text == chunk.text.strip() and chunk.tag == "" for chunk in chunks)
    if space:
        assert [word for chunk in chunks for word in chunk.text.split()] == normalize_text(text).split()
    assert sum(chunk.boundary == "paragraph" for chunk in chunks) == len(paragraphs)
    # Chunks are few, so not needlessly short.
    assert len(chunks) < 2.5 * spoken_seconds(text) / LIMIT + len(paragraphs)

    # A sentence that fits is not cut. Positions count characters other than white space.
    boundaries = set(itertools.accumulate(len("".join(chunk.text.split())) for chunk in chunks))
    position = fitting = 0
    for sentence in itertools.chain.from_iterable(paragraphs):
        sentence = normalize_text(f"{sentence} x.")[:-3]
        inside = range(position + 1, position := position + len("".join(sentence.split())))
        if spoken_seconds(sentence) <= LIMIT:
            fitting += 1
            assert boundaries.isdisjoint(inside), sentence
    assert fitting > 50


@pytest.mark.parametrize(
    "text",
    [
        "abcdefghij" * 1500,
        "https://example.com/a/b?c=d&e." * 500,
        "他们走过河流看见山" * 1000,
        "ちょっとまってください" * 1000,
        "コンピューターを買いました" * 800,
        "สวัสดีครับผมชื่อสมชาย" * 700,
        "👩‍👩‍👧‍👦e\u0301가각" * 1000,
        "ᄀ" * 5000,  # one grapheme cluster
    ],
)
def test_text_without_spaces(text):
    chunks = chunk_text(text, 5)
    assert joined(text, chunks)
    assert all(spoken_seconds(chunk.text) <= 5 for chunk in chunks)
    assert len(chunks) <= 1.5 * spoken_seconds(text) / 5


def test_characters_stay_whole():
    for character in ("e\u0301", "각", "ちょ", "マー"):
        chunks = chunk_text("a" + character * 400, 2)
        assert len(chunks) > 2
        assert all(chunk.text.removeprefix("a").startswith(character) for chunk in chunks)
        assert min(spoken_seconds(chunk.text) for chunk in chunks) > 1


def test_a_long_sentence_is_cut_after_its_clauses_then_between_words():
    clauses = chunk_text("In the morning they went, and in the evening, when it was dark, they all came back home.", 4)
    assert [chunk.text for chunk in clauses] == [
        "In the morning they went, and in the evening,",
        "when it was dark, they all came back home.",
    ]
    assert [chunk.boundary for chunk in clauses] == ["paragraph", "word"]
    words = chunk_text("In the morning they went out and in the evening they all came back home again.", 4)
    assert [chunk.text for chunk in words] == [
        "In the morning they went out and in the",
        "evening they all came back home again.",
    ]


def test_sentences_one_by_one():
    chunks = chunk_text("One. Two!\n\n[SPEAKER0] Three, and then four, five, six. Seven?", 2, join_sentences=False)
    assert [(chunk.text, chunk.boundary) for chunk in chunks] == [
        ("One.", "paragraph"),
        ("Two!", "sentence"),
        ("Three, and then four,", "turn"),
        ("five, six.", "word"),
        ("Seven?", "sentence"),
    ]


def test_japanese_is_cut_where_a_word_begins():
    chunks = chunk_text("私は昨日東京タワーへ行きましたがとても高かったです" * 8, 3)
    words = ("私は", "昨日東京", "タワーへ", "行きましたがとても", "高かったです")
    assert len(chunks) > 5
    assert all(chunk.text.startswith(words) for chunk in chunks)


def test_chinese_is_cut_between_words_where_jieba_is_installed():
    pytest.importorskip("jieba")
    chunks = chunk_text("我们昨天去了北京大学看到了很多学生" * 8, 3)
    words = ("我们", "昨天", "去", "了", "北京大学", "看到", "很多", "学生")
    assert len(chunks) > 5
    assert all(chunk.text.startswith(words) for chunk in chunks)


def test_long_chinese_is_cut_as_a_whole_by_jieba():
    jieba = pytest.importorskip("jieba")
    text = "".join("今天天气很好我们一起去公园散步吧然后回家吃晚饭" for _ in range(40))
    assert len(text) < chunking._JIEBA_BLOCK
    assert chunking._unspaced_words(text) == list(jieba.cut(text))


@pytest.mark.parametrize(
    "letter", ["的", "🇩", "क्", "م", "あ", "a", "1", "\u1100", "👩\u200d", "的a", "[SPEAKER", '."', "…"]
)
def test_the_time_grows_with_the_length(letter):
    def seconds(length: int) -> float:
        text = "a" + letter * (length // len(letter))
        begin = time.process_time()
        chunks = chunk_text(text, 20)
        took = time.process_time() - begin
        assert normalize_text(text).startswith("".join(chunk.text for chunk in chunks).removesuffix("."))
        return took

    # With the square of the length it would be 100 each time. A processor is not as fast at all times.
    assert any(seconds(20_000) < 30 * max(seconds(2_000), 0.02) for _ in range(5))


def test_characters_are_grapheme_clusters():
    generator = random.Random(0)
    for _ in range(2000):
        text = "".join(generator.choices("🇩🇪🇫🇷\u200d\ufe0f\u0301👩🏽aक्ष각ᄀ\r\n", k=generator.randrange(12)))
        assert chunking._characters(text) == regex.findall(r"\X", text)


def test_chinese_without_jieba(monkeypatch):
    monkeypatch.setitem(sys.modules, "jieba", None)
    monkeypatch.setattr(chunking, "_jieba", chunking._jieba.__wrapped__)
    text = "我们昨天，3.14公里iPhone看到了很多学生" * 10
    chunks = chunk_text(text, 3)
    assert joined(text, chunks)
    assert all(spoken_seconds(chunk.text) <= 3 for chunk in chunks)
    assert not any(chunk.text.startswith((".", ",", "14", "Phone")) for chunk in chunks)


def test_pieces_are_about_equally_long():
    chunks = chunk_text(" ".join(["word"] * 99), 10)
    lengths = [spoken_seconds(chunk.text) for chunk in chunks]
    assert len(lengths) == 4
    assert max(lengths) - min(lengths) < 0.5


def test_a_turn_keeps_its_speaker_in_every_chunk():
    long = "This is one sentence of a long turn. " * 5
    chunks = chunk_text(f"Before.\n\n[SPEAKER0] {long}\n\nAnd more.\n【SPEAKER1】 Yes [SPEAKER0] No.", 6)
    assert chunks[0] == TextChunk("Before.", "", "paragraph")
    assert [(chunk.tag, chunk.boundary) for chunk in chunks[1:-3]] == [("[SPEAKER0]", "turn")] + [
        ("[SPEAKER0]", "sentence")
    ] * (len(chunks) - 5)
    assert " ".join(chunk.text for chunk in chunks[1:-3]) == long.strip()
    assert chunks[1].prompt.startswith("[SPEAKER0] This is")
    assert chunks[-3:] == [
        TextChunk("And more.", "[SPEAKER0]", "paragraph"),
        TextChunk("Yes.", "[SPEAKER1]", "turn"),
        TextChunk("No.", "[SPEAKER0]", "turn"),
    ]


def test_the_same_speaker_goes_on_in_a_new_paragraph():
    chunks = chunk_text("[SPEAKER0] One.\n\n[SPEAKER0] Two.\n[SPEAKER1]\nThree.", 6)
    assert [(chunk.tag, chunk.boundary) for chunk in chunks] == [
        ("[SPEAKER0]", "turn"),
        ("[SPEAKER0]", "paragraph"),
        ("[SPEAKER1]", "turn"),
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # A wrapped text: only blank lines separate paragraphs.
        (
            "This line is\nbroken. The next\nis too.\n\nA new one.",
            ["This line is broken. The next is too.", "A new one."],
        ),
        ("他们昨天走过\n河流。\n\n然后", ["他们昨天走过河流.", "然后."]),
        # A paragraph per line.
        ("One paragraph.\nAnother.\r\nA third.", ["One paragraph.", "Another.", "A third."]),
        ("　　你好。\n　　世界。", ["你好.", "世界."]),
        ("Chapter One\n\n* * *\n\nIt began.", ["Chapter One.", "It began."]),
    ],
)
def test_paragraphs(text, expected):
    chunks = chunk_text(text, 6)
    assert [chunk.text for chunk in chunks] == expected
    assert all(chunk.boundary == "paragraph" for chunk in chunks)


def test_sound_effects_and_degrees_are_normalized():
    chunks = chunk_text("20°C [laugh] here.\n\n[humming start] Yes. [humming end]", 10)
    assert [chunk.text for chunk in chunks] == [
        "20 degrees Celsius <SE>[Laughter]</SE> here.",
        "<SE_s>[Humming]</SE_s> Yes. <SE_e>[Humming]</SE_e>",
    ]
    tags = chunk_text("[humming start]" * 50, 2)
    assert {chunk.text.removesuffix(".") for chunk in tags} == {"<SE_s>[Humming]</SE_s>"}


@pytest.mark.parametrize("seconds", [1.9, 31, float("nan"), -1])
def test_limit_out_of_range_is_refused(seconds):
    with pytest.raises(ParameterError, match=f"chunk_seconds must be between 2 and 30, got {seconds}"):
        chunk_text("Hello.", seconds)


def test_what_decides_whether_a_chunk_can_be_read_must_be_a_function():
    with pytest.raises(ParameterError, match="can_read must be a function or None, got 0"):
        chunk_text("Hello.", 2, can_read=0)


@pytest.mark.parametrize("text", ["a line\n" * 40_000, "." * 40_000 + "a", "!" * 40_000 + "a", "," * 40_000 + "a"])
def test_time_is_linear_in_the_text(text):
    """With quadratic time each of these takes minutes."""
    chunks = chunk_text(text, 20)
    assert max(spoken_seconds(chunk.text) for chunk in chunks) <= 20


def test_a_chunk_has_one_speed():
    text = """It rains. We [speed:0.5] walk, slowly, [speed:2] home. Then

we sleep. [pause:1s] [speed] Hello. [speed] Again. [SPEAKER1] [speed:1.5] I am here.

[speed:3]
They are there."""
    assert [(chunk.text, chunk.tag, chunk.boundary, chunk.pause, chunk.speed) for chunk in chunk_text(text, 20)] == [
        ("It rains. We.", "", "paragraph", None, 1),
        ("walk, slowly,", "", "word", None, 0.5),
        ("home. Then.", "", "word", None, 2),
        ("we sleep.", "", "paragraph", None, 2),
        ("Hello. Again.", "", "sentence", 1, 1),
        ("I am here.", "[SPEAKER1]", "turn", None, 1.5),
        ("They are there.", "[SPEAKER1]", "paragraph", None, 3),
    ]
    with pytest.raises(PromptError, match="a speed must be written as"):
        chunk_text("It rains. [speed:high] We walk.", 20)


def test_a_sentence_that_ends_before_a_change_of_the_speed_keeps_its_pause():
    chunks = chunk_text('"It rains." [speed:2] We walk.', 20)
    assert [(chunk.text, chunk.boundary) for chunk in chunks] == [
        ('"It rains."', "paragraph"),
        ("We walk.", "sentence"),
    ]


def test_a_speed_in_a_line_of_its_own_joins_no_lines():
    text = "It rains.\n[speed:2]\nWe walk.\n[speed]\nWe sleep."
    assert [(chunk.text, chunk.boundary, chunk.speed) for chunk in chunk_text(text, 20)] == [
        ("It rains.", "paragraph", 1),
        ("We walk.", "paragraph", 2),
        ("We sleep.", "paragraph", 1),
    ]
