"""Prompts: from texts, voices and recordings to the token ids that the model reads."""
