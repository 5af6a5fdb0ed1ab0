"""The golden cases of `boson_multimodal` (tests/golden/boson_lm)."""

import json
from pathlib import Path

import numpy as np
import torch

from higgs_native.compat.boson import AudioContent, ChatMLSample, HiggsAudioStreamerDelta, Message, TextContent


FOLDER = Path(__file__).parents[2] / "golden" / "boson_lm"
CASES = json.loads((FOLDER / "cases.json").read_text())["cases"]
RATE = 24000
GREEDY = {"temperature": 0.0, "ras_win_len": None}


def references(tensors, case: str = "") -> list[torch.Tensor]:
    return [tensors[key] for key in sorted(tensors) if ".reference_codes." in key and key.startswith(case)]


def sample(tensors, name: str) -> ChatMLSample:
    """A golden case's conversation."""
    first = sum("reference_codes" in key and key < name for key in tensors)
    messages = []
    for message in CASES[name]["messages"]:
        contents = []
        for item in message["content"]:
            if isinstance(item, str):
                contents.append(item)
            elif item["type"] == "text":
                contents.append(TextContent(item["text"]))
            else:
                contents.append(AudioContent(audio_url="placeholder", raw_audio=(np.full(RATE, float(first)), RATE)))
                first += 1
        messages.append(Message(message["role"], contents if len(contents) > 1 else contents[0]))
    return ChatMLSample(messages)


def noise(seconds: float) -> np.ndarray:
    return (0.1 * np.random.default_rng(0).standard_normal(round(seconds * RATE))).astype(np.float32)


async def collect(stream) -> list[HiggsAudioStreamerDelta]:
    return [delta async for delta in stream]
