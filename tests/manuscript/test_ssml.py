"""A part of SSML becomes text with pauses; the rest is refused by name."""

import pytest

from higgs_native.errors import PromptError
from higgs_native.manuscript.preparation import prepare_text
from higgs_native.manuscript.ssml import read_ssml


@pytest.mark.parametrize(
    ("ssml", "expected"),
    [
        ("<speak>Hello.</speak>", "Hello."),
        ("\ufeff <speak version='1.1' xml:lang='en-US'>\n  R&amp;D\n  team </speak>\n", "R&D team"),
        ('<?xml version="1.0"?><speak xmlns="http://www.w3.org/2001/10/synthesis">Hi</speak>', "Hi"),
        ('<speak>a<break time="500ms"/>b <break time="1.5s"/></speak>', "a[pause:500ms]b [pause:1.5s]"),
        ("<speak>a<break/>b</speak>", "a[pause]b"),
        ('<speak>Use <sub alias="engine x">nginx</sub>, please.</speak>', "Use engine x, please."),
        ("<speak><p>One</p>two<p><s>Three</s> <s>Four?</s></p></speak>", "One\n\ntwo\n\nThree. Four?"),
        ("<speak><s>[SPEAKER0] Hi</s><s>there</s></speak>", "[SPEAKER0] Hi. there."),
        ("<speak>" + "<p>" * 5000 + "deep" + "</p>" * 5000 + "</speak>", "deep"),
    ],
)
def test_texts(ssml, expected):
    assert prepare_text(ssml) == expected


@pytest.mark.parametrize(
    ("ssml", "message"),
    [
        ("<speak><audio src='a'/></speak>", "SSML must hold speak, break, sub, p, s only, got the element <audio>"),
        ("<speak><p rate='1'>a</p></speak>", "<p> must have no attributes only, got the attribute 'rate'"),
        ("<speak><break strength='weak'/></speak>", "<break> must have time only, got the attribute 'strength'"),
        ("<speak><sub>a</sub></speak>", "<sub> must have the attribute alias, got none"),
        ("<speak>a<break time='5'/></speak>", r"a pause must be written as .*, got '\[pause:5\]'"),
        ("<speak>a", "SSML must be well-formed XML, got an error: no element found"),
        ("<speak>a & b</speak>", "SSML must be well-formed XML, got an error: not well-formed"),
        ("<!DOCTYPE speak [<!ENTITY a 'b'>]><speak>&a;</speak>", "SSML must have no document type, got <!DOCTYPE"),
    ],
)
def test_what_is_refused(ssml, message):
    with pytest.raises(PromptError, match=message):
        prepare_text(ssml)


def test_other_markup_is_text():
    text = "<speaker> 1 < 2 & <b>"
    assert prepare_text(text) == text


def test_long_ssml_takes_linear_time():
    text = read_ssml("<speak>" + "<s>It is <sub alias='a'>b</sub></s>" * 50_000 + "</speak>")
    assert text == " ".join(["It is a."] * 50_000)
