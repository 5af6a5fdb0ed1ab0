"""Helpers that know nothing of speech."""
