"""Fixtures of the tests of models."""

from tests.checkpoint.conftest import source


__all__ = ["source"]
