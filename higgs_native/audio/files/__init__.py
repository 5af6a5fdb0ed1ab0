"""Audio in and out: files in all formats, decoded and encoded, and playback."""
