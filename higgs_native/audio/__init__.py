"""Audio files and samples: reading, writing, resampling, loudness and quality."""
