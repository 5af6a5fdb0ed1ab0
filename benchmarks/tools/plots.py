"""Plots the frame section of a report: time by context length, and share of the read bandwidth by format."""

from pathlib import Path
from typing import Any


def draw_frame(report: dict[str, Any], folder: Path) -> list[Path]:
    """Write `frame_ms.png` and `frame_bandwidth.png` into `folder`; return their paths.

    Args:
        report: the result of `bench_frame.run`.
        folder: created if missing.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    frames = report["frame"]
    names = [name for name, value in frames[0].items() if isinstance(value, dict) and "ms" in value]
    positions = [frame["position"] for frame in frames]

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for name in names:
        ms = [frame[name]["ms"] for frame in frames]
        errors = [[m["median"] - m["min"] for m in ms], [m["max"] - m["median"] for m in ms]]
        label = name if name == "transformers" else f"higgs-native {name}"
        axes.errorbar(positions, [m["median"] for m in ms], yerr=errors, marker="o", capsize=3, label=label)
    axes.set(xscale="log", yscale="log", xlabel="positions in the cache", ylabel="ms per frame (median, min to max)")
    axes.set_xticks(positions, [str(position) for position in positions])
    axes.minorticks_off()
    axes.set_title(f"{report['model']['layers']} layers of width {report['model']['hidden_size']}")
    axes.legend()
    paths = [folder / "frame_ms.png", folder / "frame_bandwidth.png"]
    figure.savefig(paths[0], dpi=120)

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    width = 0.8 / len(frames)
    for index, frame in enumerate(frames):
        shares = [100 * frame[name]["share_of_read_bandwidth"] for name in names]
        centers = [center + (index - (len(frames) - 1) / 2) * width for center in range(len(names))]
        axes.bar(centers, shares, width, label=f"{frame['position']} positions")
    axes.set_xticks(range(len(names)), names)
    axes.set(ylabel="share of the measured read bandwidth, %", ylim=(0, 100))
    axes.legend()
    figure.savefig(paths[1], dpi=120)
    return paths
