"""A user's program that type-checks against the package, and mistakes in it that the types tell."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import higgs_native


pytest.importorskip("mypy")

PROGRAM = """
import asyncio
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

import higgs_native
from higgs_native import (
    AudioChunk,
    HiggsAudio,
    LongSpeech,
    Message,
    Pauses,
    PromptError,
    Recording,
    SamplingParams,
    Speech,
    Voice,
    chunk_text,
    exit_on_bad_input,
    list_voices,
)


def seconds(speech: Speech) -> float:
    samples: np.ndarray = speech.audio
    codes: torch.Tensor = speech.codes
    return len(samples) / speech.sampling_rate + codes.shape[1]


async def last(engine: HiggsAudio) -> AudioChunk | None:
    chunk = None
    async for chunk in engine.stream("Good morning.", low_latency=2, temperature=0.5):
        print(chunk.samples.mean())
    return chunk


@exit_on_bad_input()
def main(folder: Path) -> None:
    voices: dict[str, Voice] = list_voices(folder)
    engine = HiggsAudio.from_pretrained(quantization="int8")
    speech = engine.speak("Hello there.", voice=list(voices.values())[:1], seed=1, on_progress=print)
    cloned = SamplingParams(top_k=20)
    engine.speak("Hello there.", reference_audio=(speech.audio, speech.sampling_rate), sampling=cloned)
    speech.save(folder / "out.wav")
    reply = engine.generate([Message("user", "Hello there.")], force_audio_gen=True)
    recording = Recording.read(folder / "out.wav", duration=2.5)
    failures: Sequence[str] = reply.failures or ()
    print(seconds(reply), recording.sha256, failures, [chunk.text for chunk in chunk_text("One. Two.", 20)])
    book = LongSpeech(engine, "One. Two.", folder=folder / "parts", pauses=Pauses(turn=1.0), strict=True)
    for part in book:
        print(part.duration, part.failures)
    book.save(folder / "book.wav")
    try:
        asyncio.run(last(engine))
    except PromptError as error:
        print(higgs_native.__version__, error)
"""
MISTAKES = """
from higgs_native import HiggsAudio, Pause, Speech

engine = HiggsAudio.from_pretrained(12)
engine.speak("Hello there.", temprature=0.5)
speech: str = engine.speak("Hello there.")
speech.upper()
print(Speech.duration_seconds)
"""


def check(tmp_path: Path, **programs: str) -> list[str]:
    """Return the lines that mypy prints for programs."""
    for name, program in programs.items():
        (tmp_path / f"{name}.py").write_text(program)
    # mypy finds an installed package by itself.
    folder = Path(higgs_native.__file__).parent.parent
    search_path = {} if folder.name == "site-packages" else {"MYPYPATH": str(folder)}
    finished = subprocess.run(
        # silent: the package's own modules have their own check, .ci/run.
        [
            *(sys.executable, "-m", "mypy", "--strict", "--follow-imports", "silent", "--config-file", ""),
            *(f"{name}.py" for name in programs),
        ],
        cwd=tmp_path,
        env={**os.environ, **search_path},
        capture_output=True,
        text=True,
    )
    assert finished.stderr == ""
    return finished.stdout.splitlines()


def test_a_program_and_its_mistakes(tmp_path):
    *found, _ = check(tmp_path, program=PROGRAM, mistakes=MISTAKES)
    expected = [
        ("2", '"Pause"', "[attr-defined]"),
        ("4", '"int"', "[arg-type]"),
        ("5", '"temprature"', "[call-arg]"),
        ("6", '"Speech"', "[assignment]"),
        ("8", '"duration_seconds"', "[attr-defined]"),
    ]
    errors = [line for line in found if " error: " in line]
    assert len(errors) == len(expected)
    for line, (number, name, kind) in zip(errors, expected, strict=True):
        assert line.startswith(f"mistakes.py:{number}: error: ")
        assert name in line
        assert line.endswith(kind)


def test_the_package_says_that_it_has_types():
    assert Path(higgs_native.__file__).with_name("py.typed").is_file()
