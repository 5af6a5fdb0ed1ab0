"""The steps of the engine: their sequences, their pages of the cache, and how they draw."""
