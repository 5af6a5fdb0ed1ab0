"""The pronunciation dictionary of each accent, from the materials."""

import json
from pathlib import Path

from higgs_native.english.pronunciation import Entry, Pronouncer


ACCENTS = {"us": False, "gb": True}
"""Accent to whether it is British."""


def accent_of(voice: str) -> str:
    """Kokoro's voices are named by accent and sex: `bf_emma` is British and female."""
    return "gb" if voice.startswith("b") else "us"


def read_entries(materials: Path, accent: str) -> dict[str, Entry]:
    """All entries; those checked by hand go before the others."""
    entries: dict[str, Entry] = {}
    for grade in ("silver", "gold"):
        entries |= json.loads((materials / "dictionary" / f"{accent}_{grade}.json").read_text(encoding="utf-8"))
    return entries


def read_pronouncers(materials: Path) -> dict[str, Pronouncer]:
    """A pronouncer for each accent, which leaves out the words that it doesn't know."""
    return {
        accent: Pronouncer(read_entries(materials, accent), british=british) for accent, british in ACCENTS.items()
    }
