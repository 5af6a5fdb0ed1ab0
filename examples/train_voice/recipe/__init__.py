"""The recipe of a voice that reads any English text. Each module is one step: `python -m recipe.STEP`."""
