"""English text for speech: normalization to words, and words to phonemes."""
