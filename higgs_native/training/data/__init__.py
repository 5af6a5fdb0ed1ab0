"""The data of fine-tuning: from a manifest of recordings to the rows of each pass."""
