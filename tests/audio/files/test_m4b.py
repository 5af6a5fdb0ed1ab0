"""Audio books are written completely or not at all."""

import resource
from collections.abc import Iterator

import numpy as np
import pytest

from higgs_native.audio.files.m4b import write_m4b
from higgs_native.errors import ParameterError


pytest.importorskip("av")

RATE = 24000


def pieces(exception: type[BaseException] | None = None) -> Iterator[np.ndarray]:
    generator = np.random.default_rng(0)
    for _ in range(5):
        yield (3000 * generator.standard_normal(RATE)).astype(np.int16)
    if exception is not None:
        raise exception


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "book.m4b"
    path.write_bytes(b"old")
    return path


@pytest.mark.parametrize("exception", [KeyboardInterrupt, MemoryError, SystemExit])
def test_an_exception_of_the_caller_ends_the_writing(path, exception):
    with pytest.raises(exception):
        write_m4b(path, pieces(exception), RATE, [("One", 0, 5)], {})
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == {path.name: b"old"}


def test_a_full_disk_leaves_no_incomplete_file(path):
    """Even if a single byte is missing."""
    write_m4b(path.with_name("complete.m4b"), pieces(), RATE, [("One", 0, 5)], {"title": "Two"})
    complete = path.with_name("complete.m4b").stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (0, 10, complete // 2, complete - 1):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(ParameterError, match=r"book\.m4b can't be written: File too large"):
                write_m4b(path, pieces(), RATE, [("One", 0, 5)], {"title": "Two"})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert path.read_bytes() == b"old"
        assert sorted(file.name for file in path.parent.iterdir()) == ["book.m4b", "complete.m4b"]
