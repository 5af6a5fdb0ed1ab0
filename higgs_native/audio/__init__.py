"""Recordings and audio files, without any network."""
