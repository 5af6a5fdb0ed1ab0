import pickle
import random
import tracemalloc

import pytest

from higgs_native import errors
from higgs_native.errors import MAX_MESSAGE, ParameterError, exit_on_bad_input, one_line, short_repr


def fail_with(error, *others):
    @exit_on_bad_input(*others)
    def program():
        raise error

    return program


@pytest.mark.parametrize(
    ("error", "others"), [(ParameterError("one\ntwo"), ()), (FileNotFoundError("one two"), (OSError, KeyError))]
)
def test_a_program_tells_bad_input_in_one_line(error, others, capsys):
    program = fail_with(error, *others)
    for _ in range(2):
        with pytest.raises(SystemExit) as exit:
            program()
        assert exit.value.code == 2
        assert capsys.readouterr() == ("", "error: one two\n")


def test_other_errors_are_the_program_s_own():
    with pytest.raises(OSError, match="broken"):
        fail_with(OSError("broken"), KeyError)()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("plain: Änne, 你好, 🎉", "plain: Änne, 你好, 🎉"),
        ("one\r\ntwo\n", "one two"),
        ("\x1b[31mred\x1b[0m\0\t\x7f", r"\x1b[31mred\x1b[0m\x00\t\x7f"),
        ("a\u202eb\ufeff\udcff", r"a\u202eb\ufeff\udcff"),
        ("b" * 300 + "e" * 300, "b" * 248 + "..." + "e" * 248),
        ("b" * 250 + "\0" * 250, "b" * 248 + "..." + r"\x00" * 62),
    ],
)
def test_messages_are_one_printable_line(text, line):
    assert one_line(text) == line
    assert str(ParameterError(text)) == line
    assert len(line) <= MAX_MESSAGE


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("anna", "'anna'"),
        (-5, "-5"),
        (10**5000, hex(10**5000)[:12] + "..."),
        ([10**5000], f"[{hex(10**5000)[:12]}...]"),
        (b"RIFF", "b'RIFF'"),
        (b"RIFF" * 100, "400 bytes"),
        (["a"] * 10**6, "['a', 'a', 'a', 'a', 'a', 'a', ...]"),
        ([[[["deep"]]]], "[[[...]]]"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_value_in_a_message_is_short(value, expected):
    assert short_repr(value) == expected
    assert len(short_repr("x" * 10**6)) < 60


ALPHABETS = (
    range(0x20),  # control characters
    range(0x7F, 0xA0),  # and those of C1
    (0x200B, 0x200E, 0x2028, 0x2029, 0x202E, 0x2066, 0x2069, 0xFEFF, 0xAD, 0x85),  # marks that show nothing
    range(0xD800, 0xE000),  # surrogates
    range(0x110000),
    range(0x20, 0x7F),
)


def test_every_error_of_any_text_is_one_short_printable_line():
    """The same again after pickling, which crosses processes, and as the message of another error."""
    generator = random.Random(0)
    kinds = [errors.HiggsNativeError, *errors.HiggsNativeError.__subclasses__()]
    assert len(kinds) > 6
    for number in range(3000):
        alphabet = generator.choice(ALPHABETS)
        length = generator.choice((0, 1, 10, 499, 500, 501, 2000))
        text = "".join(map(chr, generator.choices(alphabet, k=length)))
        error = kinds[number % len(kinds)](text)
        line = str(error)
        assert line.isprintable()
        assert len(line) <= MAX_MESSAGE
        assert (line == text) == (text.isprintable() and length <= MAX_MESSAGE)
        assert str(pickle.loads(pickle.dumps(error))) == str(ParameterError(error)) == line


def test_a_long_message_takes_no_longer():
    """Its middle is not escaped, which would take memory."""
    error = ParameterError("got " + "\x1b" * 50_000_000 + "; way out")
    tracemalloc.start()
    try:
        line = str(error)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert line.startswith("got \\x1b")
    assert line.endswith("; way out")
