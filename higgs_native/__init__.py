"""Higgs Audio V2 text-to-speech, fast and exact."""

__version__ = "0.1.0"
