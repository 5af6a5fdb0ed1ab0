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
        ('<speak>a <prosody rate="150%">b</prosody> c</speak>', "a [speed:1.5]b[speed] c"),
        ('<speak><prosody rate=" 1.25 ">a</prosody></speak>', "[speed:1.25]a[speed]"),
        # Values without a sign multiply the default speed, changes with a sign that of the text around.
        (
            '<speak><prosody rate="200%">a<prosody rate="80%">b</prosody>c<prosody rate="-50%">d</prosody>'
            '<prosody rate="+20%">e</prosody></prosody></speak>',
            "[speed:2]a[speed:0.8]b[speed:2]c[speed]d[speed:2][speed:2.4]e[speed:2][speed]",
        ),
        ('<speak><prosody rate="default">a</prosody> <prosody rate="medium">b</prosody></speak>', "a b"),
        (
            "<speak>"
            + "".join(f'<prosody rate="{rate}">a</prosody>' for rate in ("x-slow", "slow", "fast", "x-fast"))
            + "</speak>",
            "[speed:0.5]a[speed][speed:0.707107]a[speed][speed:1.414214]a[speed][speed:2]a[speed]",
        ),
        (
            '<speak><s>It is <prosody rate="slow">so</prosody></s><s>Is it?</s></speak>',
            "It is [speed:0.707107]so. [speed]Is it?",
        ),
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
        (
            "<speak><audio src='a'/></speak>",
            "SSML must hold speak, break, sub, prosody, p, s only, got the element <audio>",
        ),
        ("<speak><p rate='1'>a</p></speak>", "<p> must have no attributes only, got the attribute 'rate'"),
        ("<speak><break strength='weak'/></speak>", "<break> must have time only, got the attribute 'strength'"),
        ("<speak><sub>a</sub></speak>", "<sub> must have the attribute alias, got none"),
        ("<speak>a<break time='5'/></speak>", r"a pause must be written as .*, got '\[pause:5\]'"),
        (
            "<speak><prosody pitch='high'>a</prosody></speak>",
            "<prosody> must have rate only, got the attribute 'pitch'",
        ),
        ("<speak><prosody>a</prosody></speak>", "<prosody> must have the attribute rate, got none"),
        (
            "<speak><prosody rate='quick'>a</prosody></speak>",
            r"rate must be a percentage such as 80% or \+20%, a number, or one of x-slow, .*, x-fast, got 'quick'",
        ),
        ("<speak><prosody rate='+0.5'>a</prosody></speak>", r"rate must be a percentage .*, got '\+0.5'"),
        ("<speak><prosody rate='5'>a</prosody></speak>", "rate must be a speed between 0.25 and 4, got '5'"),
        (
            "<speak><prosody rate='3'><prosody rate='+50%'>a</prosody></prosody></speak>",
            r"rate must be a speed between 0.25 and 4, got '\+50%'",
        ),
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
