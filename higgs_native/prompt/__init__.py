"""From texts, voices and recordings to the prompt that the model reads."""
