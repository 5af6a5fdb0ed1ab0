import pytest

from higgs_native.errors import PromptError
from higgs_native.prompt.normalize import normalize_text


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


@pytest.mark.parametrize("text", ["", " ", "\n\t \r\n", "()", "（\u3000）", "\u00a0"])
def test_nothing_to_say_is_refused(text):
    with pytest.raises(PromptError, match="text must hold something to say, got"):
        normalize_text(text)


def test_broken_unicode_is_refused():
    with pytest.raises(PromptError, match=r"text must be valid Unicode, got '\\udcff' at 1"):
        normalize_text("a\udcff")
