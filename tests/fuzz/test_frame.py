"""The judge of generated cases: each bad end is a failure."""

import os
import time

import pytest

from higgs_native.errors import AudioError
from tests.fuzz import frame


def spin() -> None:
    while True:
        try:
            time.sleep(0)
        except Exception:
            return


OPENED = []
ENDS = {
    "crash": (lambda: [][0], "case 0 failed: IndexError at .*test_frame.py:[0-9]+: list index out of range"),
    "wrong": (lambda: pytest.fail("wrong"), "wrong"),
    "hang": (spin, "case 0 failed: Hang"),
    "memory": (lambda: bytes(2 * frame.MAX_BYTES), "case 0 failed: MemoryError"),
    "descriptor": (lambda: OPENED.append(os.open("/dev/null", os.O_RDONLY)), "descriptors stay open"),
}


def run(end, tmp_path, number: int = 1) -> dict[str, str]:
    lines = {}
    frame.run_cases("test", number / frame.CASES, lambda generator, folder: end(), tmp_path, lines.__setitem__)
    return lines


@pytest.mark.parametrize("kind", ENDS)
def test_bad_ends_fail(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(frame, "MAX_SECONDS", 0.1)
    end, message = ENDS[kind]
    with pytest.raises((AssertionError, pytest.fail.Exception), match=message):
        run(end, tmp_path)
    while OPENED:
        os.close(OPENED.pop())


def refuse() -> None:
    raise AudioError("no \x1b[31maudio\n" * 1000)


def test_good_ends_are_counted(tmp_path):
    assert run(lambda: None, tmp_path, 3)["fuzz"].startswith("test: 3 cases, 3 accepted, the slowest ")
    assert run(refuse, tmp_path, 3)["fuzz"].startswith("test: 3 cases, 3 refused, the slowest ")
    assert list(tmp_path.iterdir()) == []


def test_a_refusal_that_is_no_line_fails(tmp_path):
    class Unprintable(AudioError):
        def __str__(self) -> str:
            return "two\nlines"

    def end() -> None:
        raise Unprintable

    with pytest.raises(AssertionError, match="case 0 badly refused: 'two"):
        run(end, tmp_path)


def test_cases_depend_on_their_number_alone(tmp_path, monkeypatch):
    drawn = {}

    def case(generator, folder) -> None:
        drawn.setdefault(int(folder.name), []).append(generator.random())

    frame.run_cases("test", 3 / frame.CASES, case, tmp_path, {}.__setitem__)
    monkeypatch.setattr(frame, "ONLY", "1")
    frame.run_cases("test", 3 / frame.CASES, case, tmp_path, {}.__setitem__)
    assert len(set(drawn[1])) == 1
    assert len(drawn[1]) == 2
    assert len({first for first, *_ in drawn.values()}) == 3
