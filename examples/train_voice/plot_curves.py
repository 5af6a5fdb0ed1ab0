"""Plot the curves of the three trainings: python plot_curves.py CORPUS curves.png (needs matplotlib)."""

import argparse
from pathlib import Path

import torch
from matplotlib import pyplot


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    panels = {
        "language_model": (
            "language model: first codebook, nats",
            {
                "first": "training, audio corrupted",
                "held_out_first": "held out",
                "swapped_first": "held out, texts swapped",
            },
        ),
        "decoder": ("decoder: spectral loss", {"loss": "training"}),
        "encoder": ("encoder: squared error of latents", {"loss": "training"}),
    }
    figure, axes = pyplot.subplots(1, len(panels), figsize=(11, 3), layout="constrained")
    for axis, (name, (title, curves)) in zip(axes, panels.items(), strict=True):
        history = torch.load(options.corpus / f"{name}.pt", map_location="cpu")["history"]
        for key, label in curves.items():
            points = [(record["minutes"], record[key]) for record in history if key in record]
            axis.plot(*zip(*points, strict=True), label=label)
        axis.set(title=title, xlabel="minutes of training", yscale="log")
        axis.legend(fontsize="small", loc="lower left" if len(curves) > 1 else "upper right")
    figure.savefig(options.out, dpi=80)


if __name__ == "__main__":
    main()
