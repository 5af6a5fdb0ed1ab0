"""Rendered speech survives a kill, and what a recognizer does not hear is marked."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from recipe import folder, screen, shards, teacher


RECIPE = Path(shards.__file__).parents[1]


def _speech(seed: int) -> teacher.Rendered:
    rng = np.random.default_rng(seed)
    frames = int(rng.integers(20, 60))
    return teacher.Rendered(
        audio=rng.normal(0, 0.2, 300 * frames).astype(np.float32),
        f0=rng.uniform(5, 400, frames).astype(np.float32),
        phase=rng.uniform(0, 900, frames).astype(np.float32),
        ends=np.arange(int(rng.integers(4, 12))),
    )


def test_a_shard_gives_back_what_was_written(tmp_path):
    rendered = [_speech(seed) for seed in range(5)]
    path = shards.shard_path(tmp_path, 12)
    seconds = shards.write_shard(path, [{"id": index} for index in range(5)], rendered)
    assert shards.finished_shards(tmp_path) == [12]
    assert shards.seconds_of(path) == seconds == sum(len(speech.audio) for speech in rendered) / 24000
    audio = shards.read_audio(path)
    for line, features, speech in zip(shards.read_utterances(path), shards.read_features(path), rendered, strict=True):
        stored = audio[line["start"] : line["start"] + line["samples"]] / 32767
        np.testing.assert_allclose(stored, speech.audio.clip(-1, 1), atol=1e-4)
        np.testing.assert_allclose(features["f0"], speech.f0, rtol=1e-3)
        np.testing.assert_array_equal(features["phase"], speech.phase)
        np.testing.assert_array_equal(features["ends"], speech.ends)


# Each writer is forked from a process that has imported torch, which takes seconds. Those that are killed write
# without end, so that the kill comes while they write, however fast the machine is.
_KILL_WRITERS = """
import itertools, os, random, signal, sys, time
import numpy as np
from pathlib import Path
from recipe import shards
from recipe.teacher import Rendered

folder, delays = Path(sys.argv[1]), random.Random(0)

def start(numbers):
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        finished = set(shards.finished_shards(folder))
        for number in (number for number in numbers if number not in finished):
            values = np.full(30000, number / 100, np.float32)
            speech = [Rendered(values, values[:100], values[:100], np.full(9, number))] * 4
            shards.write_shard(shards.shard_path(folder, number), [{"id": number}] * 4, speech)
            os.write(writer, b".")
        os._exit(0)
    os.close(writer)
    return process, reader

for _ in range(6):
    process, reader = start(itertools.count())
    os.read(reader, 1)  # it has begun
    time.sleep(delays.uniform(0, 0.05))
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    for number in shards.finished_shards(folder):
        path = shards.shard_path(folder, number)
        assert len(shards.read_audio(path)) == 120000
        assert [int(features["ends"][0]) for features in shards.read_features(path)] == [number] * 4
finished = shards.finished_shards(folder)
assert len(finished) >= 6, finished
wanted = range(finished[-1] + 3)
process, reader = start(wanted)
assert os.waitpid(process, 0)[1] == 0
assert shards.finished_shards(folder) == list(wanted)
assert [path.name for path in sorted((folder / "shards").iterdir())] == [f"{number:05}" for number in wanted]
"""


def test_shards_are_whole_or_absent_after_a_kill(tmp_path):
    program = [sys.executable, "-c", _KILL_WRITERS, str(tmp_path)]
    finished = subprocess.run(program, cwd=RECIPE, stderr=subprocess.PIPE, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


def test_a_step_runs_once_in_a_folder(tmp_path):
    with folder.only_one(tmp_path, "render"):
        with pytest.raises(SystemExit, match="render runs already"), folder.only_one(tmp_path, "render"):
            pass
        with folder.only_one(tmp_path, "screen"):
            pass
    with folder.only_one(tmp_path, "render"):
        pass


def test_the_first_of_two_that_fill_a_folder_wins(tmp_path):
    path = tmp_path / "shard"
    (tmp_path / "shard.1.partial").mkdir()
    with folder.whole_folder(path) as partial:
        (partial / "file").write_text("second")
        assert [left.name for left in tmp_path.iterdir()] == [partial.name]
        path.mkdir()
        (path / "file").write_text("first")
    assert (path / "file").read_text() == "first"
    assert [left.name for left in tmp_path.iterdir()] == ["shard"]


def test_errors_are_laid_to_the_utterance_where_they_are():
    pytest.importorskip("rapidfuzz")
    assert screen.errors_by_part(["abc", "def", "ghi"], "abcxefghi") == [0, 1, 0]
    assert screen.errors_by_part(["abc", "def"], "abcdefgg") == [0, 2]
    assert screen.errors_by_part(["abc", "def"], "") == [3, 3]


def test_windows_hold_what_fits():
    lengths = [10.0, 10.0, 10.0, 27.0, 1.0, 40.0]
    groups = screen.windows(lengths)
    assert groups == [[0, 1], [2], [3], [4], [5]]
    assert screen.bare("ðə kˈæt, wˌɒz hˈɪə: ɑː!") == "ðəkætwɒzhɪəɑ"
