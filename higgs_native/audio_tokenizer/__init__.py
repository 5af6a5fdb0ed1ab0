"""The audio tokenizer: recordings to codes, and codes to audio."""
