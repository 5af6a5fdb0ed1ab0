"""Models of transformers beside the same models accelerated, and inputs for both."""

import importlib

from tests.helpers import transformers_reference as reference


# Where transformers is missing, the import above has skipped the importing file.
compat = importlib.import_module("higgs_native.compat.transformers")

REFERENCES = [(), (7,), (5, 11)]
EVERYTHING = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}


def both(model, inputs, **options):
    """What transformers gives, and what the engine gives."""
    compat.restore(model)
    expected = model.generate(**inputs, **options)
    compat.accelerate(model)
    return expected, model.generate(**inputs, **options)


def batch(config, rows: int, first: int = 0):
    """Inputs of so many rows, of different lengths, with none, one and two references."""
    prompts = [
        reference.random_prompt(config, row, 20 + 7 * row, REFERENCES[row % 3]) for row in range(first, first + rows)
    ]
    return reference.model_inputs(config, prompts)


class Streamer:
    """Keeps what it gets."""

    def __init__(self):
        self.values = []

    def put(self, value):
        self.values.append(value.tolist())

    def end(self):
        self.values.append("end")
