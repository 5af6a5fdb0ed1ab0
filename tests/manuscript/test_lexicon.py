"""A lexicon replaces whole words."""

import pytest

from higgs_native.errors import ParameterError, PromptError
from higgs_native.manuscript.lexicon import Lexicon
from higgs_native.manuscript.preparation import prepare_text


@pytest.mark.parametrize(
    ("entries", "text", "expected"),
    [
        ({"nginx": "engine x"}, "Nginx, NGINX; nginx's nginxes", "engine x, engine x; engine x's nginxes"),
        ({"IT": "I T"}, "IT is it. It!", "I T is it. It!"),
        ({"it": "a", "IT": "b"}, "it It IT", "a a b"),
        ({"new york": "a", "new": "b"}, "New  York, new", "a, b"),
        ({"c++": "c plus plus", "c": "sea"}, "c++ c", "c plus plus sea"),
        ({"a": "b", "b": "c"}, "a b", "b c"),
        ({"重庆": "chóng qìng"}, "我在重庆住", "我在chóng qìng住"),
        ({"café": "caff"}, "cafés café", "cafés caff"),
        ({}, "a", "a"),
    ],
)
def test_words(entries, text, expected):
    assert Lexicon(entries).apply(text) == expected


def test_a_file(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("\ufeff# comment\n\nnginx = engine x\n SQL=sequel \n x = y = z\n", encoding="utf-8")
    assert prepare_text("nginx SQL sql x", lexicon=path) == "engine x sequel sql y = z"
    assert prepare_text("nginx", lexicon=str(path)) == "engine x"


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ("a = b\nnginx engine x", "line 2: an entry must be WORD = SPELLING, got 'nginx engine x'"),
        ("= b", "line 1: word must be text without brackets, got ''"),
        ("a =", "line 1: spelling must be text without brackets, got ''"),
        ("a = [SPEAKER0]", r"line 1: spelling must be text without brackets, got ' \[SPEAKER0\]'"),
        ("a = b\n#\n a =c", "line 3: word must be given once, got 'a' again"),
    ],
)
def test_a_bad_line_is_named(contents, message, tmp_path):
    path = tmp_path / "words.txt"
    path.write_text(contents)
    with pytest.raises(PromptError, match=rf"words\.txt, {message}"):
        Lexicon.of(path)


def test_a_spelling_may_hold_phonemes_a_word_none():
    assert Lexicon({"a": "b [[kˈæt]]"}).phonemes == "b [[kˈæt]]"
    assert Lexicon({"a": "b"}).phonemes is None
    for entry in ({"a": "[[b]"}, {"a": "[b]"}, {"[[a]]": "b"}):
        with pytest.raises(PromptError, match="must be text without brackets"):
            Lexicon(entry)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(PromptError, match="which can't be read: No such file"):
        Lexicon.of(tmp_path / "none.txt")
    (tmp_path / "latin.txt").write_bytes(b"a = \xff")
    with pytest.raises(PromptError, match=r"lexicon must be UTF-8, got .*latin\.txt, which is not at byte 4"):
        Lexicon.of(tmp_path / "latin.txt")
    with pytest.raises(ParameterError, match="lexicon must be a string or a path, got 1"):
        prepare_text("a", lexicon=1)
    with pytest.raises(PromptError, match="lexicon: spelling must be a string, got 1"):
        prepare_text("a", lexicon={"a": 1})


def test_tags_stay_and_normalization_comes_after():
    lexicon = {"pause": "x", "laugh": "x", "speaker0": "x", "route": "road 66"}
    text = "[SPEAKER0] pause [pause:1s] [laugh] route"
    assert prepare_text(text, lexicon=lexicon) == "[SPEAKER0] x [pause:1s] [laugh] road 66"
    assert prepare_text(text, True, lexicon=lexicon) == "[SPEAKER0] x [pause:1s] [laugh] road sixty-six"
