"""How each convention writes a prompt: a module per convention, with the same functions."""
