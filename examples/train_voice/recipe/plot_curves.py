"""Plot the curves of the trainings.

    python -m recipe.plot_curves curves.png

Needs matplotlib.
"""

import argparse
import json
from pathlib import Path

from matplotlib import pyplot

from recipe.folder import add_folder_option


_PANELS = {
    "language_model": (
        "language model: first codebook, nats",
        {
            "first": "training, audio corrupted",
            "held_out_first": "held out",
            "swapped_first": "held out, texts swapped",
        },
    ),
    "decoder": (
        "decoder",
        {
            "spectral": "spectra",
            "held_out": "spectra, held out",
            "waveform": "waveform below 1.5 kHz",
            "held_out_waveform": "waveform, held out",
        },
    ),
    "encoder": ("encoder: squared error of latents", {"loss": "training"}),
    "guesser": ("guesser: nats", {"loss": "training"}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_folder_option(parser)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    figure, axes = pyplot.subplots(1, len(_PANELS), figsize=(14, 3), layout="constrained")
    for axis, (name, (title, curves)) in zip(axes, _PANELS.items(), strict=True):
        lines = (options.folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        records = [json.loads(line) for line in lines]
        for key, label in curves.items():
            points = [(record["step"], record[key]) for record in records if key in record]
            axis.plot(*zip(*points, strict=True), label=label)
        axis.set(title=title, xlabel="steps", yscale="log")
        axis.legend(fontsize="small")
    figure.savefig(options.out, dpi=80)


if __name__ == "__main__":
    main()
