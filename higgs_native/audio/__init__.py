"""Samples of audio: resampling, loudness, silence, speed, and the quality of recordings."""
