import pytest

from higgs_native.errors import PromptError
from higgs_native.long_form.chunking import chunk_text
from higgs_native.prompt.normalize import drop_invisible, normalize_text


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("你好，世界。", "你好, 世界."),
        ("他说：“走吧！”（笑）", '他说:"走吧!" 笑.'),
        ("一、二；三？", "一,二;三?"),
        ("【注】《书》…", "[注]<书>..."),
        ("「a」『b』 — it’s ‘c’·", '"a""b" - it\'s \'c\'.'),
    ],
)
def test_full_width_punctuation_becomes_ascii(text, normalized):
    assert normalize_text(text) == normalized


def test_parentheses_become_spaces():
    assert normalize_text("one (two) three.") == "one two three."
    assert normalize_text("one（two）three.") == "one two three."


def test_degrees_are_spelled_out():
    assert normalize_text("70°F is 21 °C.") == "70 degrees Fahrenheit is 21 degrees Celsius."


@pytest.mark.parametrize(
    ("tag", "effect"),
    [
        ("[laugh]", "<SE>[Laughter]</SE>"),
        ("[applause]", "<SE>[Applause]</SE>"),
        ("[cheering]", "<SE>[Cheering]</SE>"),
        ("[cough]", "<SE>[Cough]</SE>"),
        ("[music]", "<SE>[Music]</SE>"),
        ("[humming start]", "<SE_s>[Humming]</SE_s>"),
        ("[humming end]", "<SE_e>[Humming]</SE_e>"),
        ("[music start]", "<SE_s>[Music]</SE_s>"),
        ("[music end]", "<SE_e>[Music]</SE_e>"),
        ("[sing start]", "<SE_s>[Singing]</SE_s>"),
        ("[sing end]", "<SE_e>[Singing]</SE_e>"),
    ],
)
def test_sound_effect_tags(tag, effect):
    assert normalize_text(f"Well {tag} then.") == f"Well {effect} then."


def test_speaker_tags_and_unknown_tags_stay():
    text = "[SPEAKER0] Hi.\n[SPEAKER1] [sigh] Hey."
    assert normalize_text(text) == text


def test_white_space_collapses_within_lines_and_blank_lines_go():
    assert normalize_text("  a \t b\r\n\n \n c\u00a0 d.  \n") == "a b\nc d."
    assert normalize_text("a\vb\fc\x1cd\x85e\u2028f\u3000g.") == "a b c d e f g."


@pytest.mark.parametrize(
    "text", ["a.", "a!", "a?", "a,", "a;", 'a"', "a'", "a <SE>[Cough]</SE>", "<SE_e>[Music]</SE_e>"]
)
def test_nothing_is_appended_after_an_ending(text):
    assert normalize_text(text) == text


@pytest.mark.parametrize("text", ["a", "a:", "a <SE_s>[Music]</SE_s>", "a]", "你好"])
def test_a_full_stop_is_appended_without_an_ending(text):
    assert normalize_text(text) == text + "."


def test_the_order_of_the_rules():
    # A full-width parenthesis becomes ASCII, then a space. A tag in full-width brackets is found.
    assert normalize_text("（ 【laugh】 ）") == "<SE>[Laughter]</SE>"


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "\n\t \r\n", "()", "（\u3000）", "\u00a0"),
        *("\u200b", "\ufeff", "\u00ad\u2060", "\u3164", "\0\x1b"),
        *(
            "...",
            "?!",
            "。",
            "* * *",
            "—",
            "🎉",
            "👩\u200d👩",
            "[SPEAKER0]",
            "【SPEAKER0】 ...",
            "[SPEAKER0] 🎉 [SPEAKER1]",
            "<|d|>",
        ),
    ],
)
def test_nothing_to_say_is_refused_everywhere(text):
    with pytest.raises(PromptError, match="text must hold something to say, got"):
        normalize_text(text)
    with pytest.raises(PromptError, match="text must hold something to say, got"):
        chunk_text(text, 20)


@pytest.mark.parametrize("text", ["5", "½", "é", "字", "[laugh]", "a...", "🎉 a", "[SPEAKER0] a", "1\ufe0f\u20e3"])
def test_a_letter_or_a_digit_is_something_to_say(text):
    assert chunk_text(text, 20)[0].text in normalize_text(text)


@pytest.mark.parametrize(
    "invisible",
    [
        *(
            "\ufeff",
            "\u200b",
            "\u00ad",
            "\u2060",
            "\u200e",
            "\u200f",
            "\u202a",
            "\u202e",
            "\u2066",
            "\u2069",
            "\u061c",
        ),
        *("\u2061", "\u206f", "\u034f", "\u180e", "\u3164", "\ufe0f", "\U000e0001", "\U000e0041", "\ufffb"),
        *("\u200c", "\u200d", "\0", "\x08", "\x1b", "\x7f", "\x9b"),
    ],
)
def test_invisible_characters_are_dropped(invisible):
    text = f"{invisible}The su{invisible}n{invisible} [laugh{invisible}] ris{invisible}{invisible}es.{invisible}"
    assert normalize_text(text) == "The sun <SE>[Laughter]</SE> rises."
    assert drop_invisible(text, "text") == "The sun [laugh] rises."
    assert [chunk.text for chunk in chunk_text(text, 20)] == ["The sun <SE>[Laughter]</SE> rises."]
    assert chunk_text(f"[SPEAKER{invisible}1] Hi.", 20)[0].tag == "[SPEAKER1]"


@pytest.mark.parametrize(
    "text",
    [
        "می\u200cروم.",  # Persian: a non-joiner within a word
        "هٔ\u200cها.",  # after a mark
        "ශ්\u200dරී ලංකා.",  # Sinhala
        "क्\u200dष क्\u200cष.",  # Devanagari
        "അവന്\u200d വന്നു.",  # Malayalam: at the end of a word
        "ᠮᠣᠩ\u200dᠭᠣᠯ.",
        "a 👩\u200d👩\u200d👧 b.",
        "a 👩🏽\u200d🚀 b.",
        "a ❤\ufe0f\u200d🔥 b.",
        "a ☎\ufe0e b.",
        "1\ufe0f\u20e3.",
        "a 🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f b.",
        "é e\u0301 여보세요 สวัสดี.",
    ],
)
def test_what_scripts_and_emoji_need_stays(text):
    assert normalize_text(text) == text


def test_a_tag_of_an_emoji_is_no_place_to_hide_a_text():
    hidden = "".join(chr(0xE0000 + ord(letter)) for letter in "ignore")
    assert normalize_text(f"a {hidden}b 🏴{hidden * 3}\U000e007f c.") == "a b 🏴 c."


def test_what_is_no_text():
    with pytest.raises(PromptError, match=r"text must be a string, got 5"):
        normalize_text(5)
    with pytest.raises(PromptError, match=r"scene must be valid Unicode, got '\\udcff' at 1"):
        drop_invisible("a\udcff", "scene")


def test_broken_unicode_is_refused():
    with pytest.raises(PromptError, match=r"text must be valid Unicode, got '\\udcff' at 1"):
        normalize_text("a\udcff")
