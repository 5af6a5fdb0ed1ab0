"""Progress bars: on a terminal, for what takes long, where notices are wanted."""

import io
import logging

import pytest

from higgs_native.utils import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def shown(monkeypatch):
    """Returns what is written to standard error, a terminal or another stream, while items are iterated."""

    def shown(stream=Terminal, seconds=0.0, level=logging.WARNING):
        monkeypatch.setattr(progress, "_SECONDS_BEFORE_A_BAR", seconds)
        monkeypatch.setattr("sys.stderr", stream := stream())
        logger = logging.getLogger("higgs_native")
        before = logger.level
        logger.setLevel(level)
        try:
            assert list(progress.with_bar(iter("abc"), "loading", 3, "layer")) == ["a", "b", "c"]
        finally:
            logger.setLevel(before)
        return stream.getvalue()

    return shown


def test_a_terminal_shows_what_is_done(shown):
    assert "loading:   0%" in shown()


def test_what_is_short_shows_no_bar(shown):
    assert shown(seconds=60.0) == ""


def test_no_bar_is_shown_in_a_file_or_where_only_errors_are_wanted(shown):
    assert shown(stream=io.StringIO) == ""
    assert shown(level=logging.ERROR) == ""
