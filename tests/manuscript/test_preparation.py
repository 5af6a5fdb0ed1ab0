"""A text is prepared before it is spoken."""

import pytest

from higgs_native.errors import ParameterError, PromptError
from higgs_native.manuscript.preparation import prepare_text


def test_without_options_a_text_stays_as_it_is():
    text = " On 3/5/2021 [SPEAKER0]\r\n**it** cost $3.50 🎉 "
    assert prepare_text(text) is text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It cost $3.50.", "It cost three dollars and fifty cents."),
        ("At 5 km.\n\nDr. Smith", "At five kilometers.\n\nDoctor Smith"),
        ("[SPEAKER0] 20 kg. [laugh] [SPEAKER1]  21", "[SPEAKER0] twenty kilograms. [laugh] [SPEAKER1]  twenty-one"),
        ("10 % <SE>[Laughter]</SE> [humming start]", "ten percent <SE>[Laughter]</SE> [humming start]"),
    ],
)
def test_normalization_keeps_tags_and_lines(text, expected):
    assert prepare_text(text, normalize=True) == expected


def test_markup_goes_before_normalization():
    pytest.importorskip("markdown_it")
    assert prepare_text("## 2 *dogs*\n\n- 3 🐱 cats", True, True) == "two dogs\n\nthree cats"


@pytest.mark.parametrize("name", ["normalize", "strip_markup"])
def test_options_are_flags(name):
    with pytest.raises(ParameterError, match=f"{name} must be True or False, got 'yes'"):
        prepare_text("text", **{name: "yes"})
    with pytest.raises(PromptError, match="text must be a string, got None"):
        prepare_text(None)


def test_time_is_linear_in_white_space():
    """With quadratic time this takes hours."""
    assert prepare_text("One" + " " * 200_000 + "[laugh] 2", normalize=True) == "One" + " " * 200_000 + "[laugh] two"
