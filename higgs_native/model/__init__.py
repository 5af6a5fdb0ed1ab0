"""The language model: one transformer over packed weights, which knows neither prompts nor sampling."""
