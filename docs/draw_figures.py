"""Draw the figures of these pages from the package's operators and configuration, and from measured results.

    pip install '.[bench]'
    python docs/draw_figures.py

The same versions write the same bytes.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from higgs_native import Convention, HiggsAudioModel, SamplingParams, ops
from higgs_native.generation.engine import Engine
from higgs_native.generation.handle import RequestHandle
from higgs_native.generation.requests import GenerationRequest, Playback
from higgs_native.ops.formats import PANEL, QUANTIZATION_GROUP, WEIGHT_FORMATS
from higgs_native.testing.configs import DEMO_CONFIG, REAL_SIZE_CONFIG
from higgs_native.testing.random_checkpoint import write_language_model
from higgs_native.utils.files import replacing


DOCS = Path(__file__).resolve().parent
RESULTS = DOCS.parent / "benchmarks" / "results"
TEXT, AUDIO, SHARED, CACHE, PLAIN = "#9ecae1", "#fdae6b", "#c7c7c7", "#a1d99b", "#f2f2f2"
POSITIONS = 1024  # in the KV cache, when bytes are counted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=DOCS / "figures", help="the folder to write")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    mpl.use("Agg")
    mpl.rcParams.update({"svg.hashsalt": "higgs_native", "font.size": 9, "axes.spines.top": False})
    figures = {
        "dual_ffn": draw_dual_ffn,
        "delay_pattern": draw_delay_pattern,
        "frame_bytes": draw_frame_bytes,
        "packed_panel": draw_packed_panel,
        "quantization_error": draw_quantization_error,
        "time_of_bytes": draw_time_of_bytes,
        "shrinking_chunks": draw_shrinking_chunks,
        "order_of_sums": draw_order_of_sums,
        "joint_steps": draw_joint_steps,
    }
    for name, draw in figures.items():
        figure = draw()
        path = args.out / f"{name}.svg"
        with replacing(path) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None}, facecolor="white")
        plt.close(figure)
        print(path)


# ---- the model


def draw_dual_ffn() -> Figure:
    """One dual layer: the parts that text and audio positions share, and those that each has."""
    config = REAL_SIZE_CONFIG
    heads = config.num_attention_heads + config.num_key_value_heads
    attention = 2 * heads * config.head_dim * config.hidden_size
    ffn = 3 * config.hidden_size * config.intermediate_size
    figure, axes = blank(8.2, 4.6, width=100, height=56)
    left, right, middle, wide = 25, 75, 50, 36
    box(axes, left, 52, wide, 5, "text positions", PLAIN)
    box(axes, right, 52, wide, 5, "audio positions (one frame each)", PLAIN)
    box(axes, left, 43, wide, 5, "text norm 1", TEXT)
    box(axes, right, 43, wide, 5, "audio norm 1", AUDIO)
    box(
        axes,
        middle,
        34,
        86,
        5,
        f"attention over all positions: QKV, RoPE, KV cache, O     {millions(attention)}",
        SHARED,
    )
    box(axes, left, 25, wide, 5, "+", PLAIN)
    box(axes, right, 25, wide, 5, "+", PLAIN)
    box(axes, left, 16, wide, 5, f"text norm 2, text FFN     {millions(ffn)}", TEXT)
    box(axes, right, 16, wide, 5, f"audio norm 2, audio FFN     {millions(ffn)}", AUDIO)
    box(axes, left, 7, wide, 5, "+", PLAIN)
    box(axes, right, 7, wide, 5, "+", PLAIN)
    for x in (left, right):
        for above in (52, 43, 34, 25, 16):
            arrow(axes, x, above - 2.5, x, above - 6.5)
        outer = x + (wide / 2 + 3) * (-1 if x == left else 1)
        for top, bottom in ((47.5, 25), (20.5, 7)):
            edge = x + wide / 2 * (-1 if x == left else 1)
            axes.plot([x, outer, outer], [top, top, bottom], color="#666666", linewidth=0.9)
            arrow(axes, outer, bottom, edge, bottom)
        axes.text(x, 1.5, "to the next layer", ha="center", color="#444444")
        arrow(axes, x, 4.5, x, 2.8)
    return figure


def draw_delay_pattern() -> Figure:
    """The frames of a short audio, delayed by `ops.delay_pattern_build`."""
    config = REAL_SIZE_CONFIG
    codebooks, frames = config.num_codebooks, 6
    codes = torch.arange(frames, dtype=torch.int32).repeat(codebooks, 1)
    delayed = torch.empty(codebooks, frames + codebooks + 1, dtype=torch.int32)
    ops.delay_pattern_build(delayed, codes, config.audio_stream_bos_id, config.audio_stream_eos_id)
    figure, axes = blank(8.2, 4.4, width=delayed.shape[1] + 2.4, height=codebooks + 2.6)
    colors = plt.get_cmap("Set2").colors
    for k in range(codebooks):
        y = codebooks - k + 0.4
        axes.text(2.2, y + 0.45, f"codebook {k}", ha="right", va="center")
        for step, code in enumerate(delayed[k].tolist()):
            special = {config.audio_stream_bos_id: "B", config.audio_stream_eos_id: "E"}.get(code)
            color = PLAIN if special else colors[code % len(colors)]
            cell(axes, step + 2.4, y, 0.94, 0.9, special or f"{code}", color)
    for step in range(delayed.shape[1]):
        axes.text(step + 2.87, 0.9, str(step), ha="center", color="#444444")
    axes.text(2.2, 0.9, "step", ha="right", color="#444444")
    axes.text(
        2.4,
        codebooks + 1.8,
        "One step samples a column. Equal colors are one frame of audio: a diagonal.",
        va="center",
    )
    axes.text(2.4, 0.15, "B: BOS     E: EOS     0 ... 5: the code of that frame", color="#444444", va="center")
    return figure


# ---- bytes per frame


def layer_parts(format: str) -> dict[str, int]:
    """Bytes that a layer reads per frame, in order; matrices are packed in `format`, the cache is bfloat16."""
    config = REAL_SIZE_CONFIG
    query, key_value = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
    hidden, intermediate = config.hidden_size, config.intermediate_size
    return {
        "QKV": packed_bytes(query + 2 * key_value, hidden, format),
        "KV cache": POSITIONS * 2 * key_value * 2,
        "O": packed_bytes(hidden, query, format),
        "gate and up": packed_bytes(2 * intermediate, hidden, format),
        "down": packed_bytes(hidden, intermediate, format),
    }


def packed_bytes(n: int, k: int, format: str) -> int:
    """Bytes of a packed matrix [n, k] with its scales."""
    return WEIGHT_FORMATS[format].packed_nbytes(n, k)


def draw_frame_bytes() -> Figure:
    """Bytes that a frame reads in each format, and those of one layer in the order of reading."""
    config = REAL_SIZE_CONFIG
    colors = {"attention": SHARED, "KV cache": CACHE, "audio FFN": AUDIO, "audio head": TEXT}
    kinds = {"QKV": "attention", "KV cache": "KV cache", "O": "attention"}
    figure, (frame, layer) = plt.subplots(2, 1, figsize=(8.2, 4.4), layout="constrained", height_ratios=(3, 1))
    for row, format in enumerate(("bfloat16", "int8", "int4")):
        sizes = dict.fromkeys(colors, 0)
        for name, size in layer_parts(format).items():
            sizes[kinds.get(name, "audio FFN")] += config.num_hidden_layers * size
        sizes["audio head"] = packed_bytes(config.num_codebooks * config.codebook_size, config.hidden_size, format)
        begin = 0.0
        for name, size in sizes.items():
            label = name if row == 0 else None
            frame.barh(row, size / 1e9, left=begin, color=colors[name], edgecolor="white", label=label)
            begin += size / 1e9
        frame.text(begin + 0.05, row, f"{begin:.2f} GB", va="center")
    frame.set_yticks(range(3), ("bfloat16", "fp8, int8", "int4"))
    frame.invert_yaxis()
    frame.set(xlabel=f"GB read per frame, {POSITIONS:,} positions in the cache")
    frame.margins(x=0.14)
    frame.legend(ncols=4, loc="lower right", frameon=False)

    begin = 0.0
    for name, size in layer_parts("bfloat16").items():
        color = colors[kinds.get(name, "audio FFN")]
        layer.barh(0, size / 1e6, left=begin, color=color, edgecolor="white")
        turned = {"rotation": 90, "fontsize": 7} if size < 15e6 else {}
        layer.text(begin + size / 2e6, 0, name.replace("KV cache", "KV"), ha="center", va="center", **turned)
        begin += size / 1e6
    layer.set(yticks=[], xlim=(0, 1.14 * begin), xlabel="MB read by one layer, in order, bfloat16")
    layer.spines["left"].set_visible(False)
    for axes in (frame, layer):
        axes.spines["right"].set_visible(False)
    return figure


def draw_packed_panel() -> Figure:
    """The first unit of a packed panel in each format, as `ops.pack_linear` writes it."""
    figure, axes = blank(8.2, 5.6, width=100, height=60)
    axes.set_ylim(-11, 60)
    axes.text(
        1, 57.5, f"A matrix [n, k] is stored in panels of {PANEL} rows. A panel is a sequence of units of 128 bytes:"
    )
    for index in range(11):
        cell(
            axes, 14 + 7 * index, 49, 6.8, 5, "..." if index == 9 else f"unit {index}" if index < 9 else "last", SHARED
        )
    axes.text(13, 51.5, "one panel", ha="right", va="center")
    axes.annotate("", (92, 46.8), (14, 46.8), arrowprops={"arrowstyle": "->", "color": "#666666"})
    axes.text(53, 44.6, "read once, from end to end, in the order of k", ha="center", color="#444444")
    shown = (0, 1, 2, None, PANEL - 1)
    for row, (format, columns) in enumerate(unit_columns().items()):
        y = 31 - 7.5 * row
        axes.text(13, y + 3, format, ha="right", va="center")
        for column, lane in enumerate(shown):
            x = 14 + 16.4 * column
            if lane is None:
                axes.text(x + 8, y + 3, "...", ha="center", va="center")
                continue
            parts = columns[lane]
            for index, names in enumerate(parts):
                width = 16 / len(parts)
                cell(axes, x + index * width, y, width - 0.15, 6, names, AUDIO if lane % 2 else TEXT, size=7)
    for column, lane in enumerate(shown):
        if lane is not None:
            axes.text(14 + 16.4 * column + 8, 38.4, f"row {lane}: 4 bytes", ha="center", va="bottom", color="#444444")
    axes.text(14, -10, "The numbers are columns of the matrix. int4 has two per byte: low half | high half.")
    return figure


def unit_columns() -> dict[str, list[list[str]]]:
    """By format, for each row of a panel: the columns of the matrix that its 4 bytes of the first unit hold."""
    columns = QUANTIZATION_GROUP
    numbers = torch.arange(columns, dtype=torch.float32).repeat(PANEL, 1)
    found = {}
    for name, format in WEIGHT_FORMATS.items():
        if format.is_quantized:
            # e4m3 and integers of 4 bits can't number all columns: those of the first unit, and zeros.
            values = torch.where(numbers < 8, numbers - (8 if name == "int4" else 0), 0)
            scales = torch.ones(format.scales_shape(PANEL, columns), dtype=format.scale_dtype)
            data = ops.pack_quantized(values.to(format.value_dtype), scales).data
        else:
            data = ops.pack_linear(numbers, format=name).data
        unit = data[0, 0]
        if name == "int4":
            found[name] = [[f"{v & 15} | {v >> 4}" for v in row] for row in unit.tolist()]
        else:
            found[name] = [[f"{int(v)}" for v in row] for row in unit.tolist()]
    return found


# ---- cost of rounding


def draw_quantization_error() -> Figure:
    """Divergence from float32 against the bytes of the weights, from `benchmarks.bench_quantization_error`."""
    report = json.loads((RESULTS / "quantization_error.json").read_text(encoding="utf-8"))
    figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
    formats = report["embedded_voice"]["formats"]
    for name, measured in formats.items():
        if measured["kl_divergence"] < 1e-6 or "clipped" in name or "calibrated" in name:
            continue
        size, divergence = measured["weights_gb"] * 1000, measured["kl_divergence"]
        side = {"xytext": (-6, 0), "ha": "right"} if name == "int4" else {"xytext": (6, 0), "ha": "left"}
        label = f"{name} ({measured['top1_agreement']:.1%})"
        axes.annotate(label, (size, divergence), textcoords="offset points", va="center", fontsize=8, **side)
        if f"{name}, calibrated" in formats:
            less = formats[f"{name}, calibrated"]["kl_divergence"]
            axes.plot([size, size], [divergence, less], color="#3182bd", linewidth=1)
            calibrated = axes.scatter(size, less, color="white", edgecolor="#3182bd", zorder=3)
        axes.scatter(size, divergence, color="#3182bd", zorder=3)
    axes.legend([calibrated], ["calibrated"], fontsize=8, frameon=False)
    axes.set(yscale="log", xlim=(2.5, 11.5), xlabel="MB of weights", ylabel="KL divergence, nats per code")
    axes.set_title("the embedded voice; in parentheses: top code kept", fontsize=9)
    axes.spines["right"].set_visible(False)
    return figure


# ---- a frame at the memory's speed


def draw_time_of_bytes() -> Figure:
    """Milliseconds of a frame beside the time in which its bytes can be read, from `benchmarks.bench_frame`."""
    report = json.loads((RESULTS / "cpu.json").read_text(encoding="utf-8"))["frame"]
    (measured,) = (frame for frame in report["frame"] if frame["position"] == 512)
    bandwidth = measured["read_gb_per_s"]["median"]
    names = ("transformers", "transformers, compiled", "bfloat16", "int8", "int4")
    figure, axes = plt.subplots(figsize=(8.2, 2.6), layout="constrained")
    for row, name in enumerate(names):
        milliseconds, gigabytes = measured[name]["ms"]["median"], measured[name]["gb"]
        floor = 1000 * gigabytes / bandwidth
        begin = axes.barh(row, floor, color=TEXT, label="reading its bytes" if row == 0 else None)
        axes.barh(row, milliseconds - floor, left=floor, color=AUDIO, label="the rest" if row == 0 else None)
        share = measured[name]["share_of_read_bandwidth"]
        axes.bar_label(begin, [f"{gigabytes:.2f} GB"], label_type="center", fontsize=7 if floor > 20 else 6)
        axes.text(milliseconds + 1, row, f"{milliseconds:.0f} ms, {share:.0%} of the bandwidth", va="center")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    layers = report["model"]["layers"]
    axes.set(
        xlim=(0, 175), xlabel=f"ms per frame: {layers} layers, 512 positions, {bandwidth:.0f} GB/s of read bandwidth"
    )
    axes.legend(frameon=False, loc="lower right")
    axes.spines["right"].set_visible(False)
    return figure


def draw_shrinking_chunks() -> Figure:
    """Two threads share the panels of a matrix; one has half the speed, as beside another process."""
    config = REAL_SIZE_CONFIG
    panels = 2 * config.intermediate_size // PANEL
    speeds = (1.0, 0.5)  # panels per unit of time
    halves = [[(0.0, panels / 2 / speed)] for speed in speeds]
    best = panels / sum(speeds)
    figure, axes = plt.subplots(figsize=(8.2, 2.6), layout="constrained")
    shrinking = chunks_of_threads(panels, speeds)
    for first, (name, threads) in enumerate({"two halves": halves, "shrinking chunks": shrinking}.items()):
        for thread, spans in enumerate(threads):
            row = 2.5 * first + thread
            for begin, end in spans:
                axes.barh(row, (end - begin) / best, left=begin / best, color=(TEXT, AUDIO)[thread], edgecolor="white")
        end = max(spans[-1][1] for spans in threads)
        axes.text(end / best + 0.01, 2.5 * first + 0.5, f"{end / best:.2f}", va="center")
        axes.text(-0.01, 2.5 * first + 0.5, name, va="center", ha="right")
    axes.axvline(1, color="#666666", linewidth=0.8, linestyle=":")
    axes.invert_yaxis()
    axes.set(yticks=[], xlim=(0, 1.62), xlabel="time of the operator, over the time if both threads end at once")
    axes.set_title(f"{panels} panels, a fast thread (blue) and one with half its speed (orange)", fontsize=9)
    for side in ("left", "right"):
        axes.spines[side].set_visible(False)
    return figure


def chunks_of_threads(count: int, speeds: Sequence[float]) -> list[list[tuple[float, float]]]:
    """Return when each thread works on which chunk, by the rule of `csrc/cpu/threads/pool.cpp`.

    A chunk is the part 1 / (2 threads) of what is left. Chunks longer than 4 panels are multiples of 4.
    """
    clocks = [0.0] * len(speeds)
    spans: list[list[tuple[float, float]]] = [[] for _ in speeds]
    begin = 0
    while begin < count:
        thread = clocks.index(min(clocks))
        chunk = max(1, (count - begin) // (2 * len(speeds)))
        chunk -= chunk % 4 if chunk > 4 else 0
        end = clocks[thread] + min(chunk, count - begin) / speeds[thread]
        spans[thread].append((clocks[thread], end))
        clocks[thread] = end
        begin += chunk
    return spans


# ---- the bits of a stream


def draw_order_of_sums() -> Figure:
    """How many outputs of a linear operator change their bits if the sum of a row is split, or if rows join it."""
    config = REAL_SIZE_CONFIG
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(16, config.hidden_size, generator=generator)
    weight = torch.randn(1024, config.hidden_size, generator=generator)
    whole = chained_sums(x[0], weight, 1)
    splits, rows = (2, 4, 8, 16), (2, 4, 8, 16)
    changed = [(chained_sums(x[0], weight, count) != whole).double().mean().item() for count in splits]
    packed = ops.pack_linear(weight)
    out = torch.empty(16, len(weight))
    ops.linear(out[:1], x[:1], packed)
    alone = out[0].clone()
    beside = []
    for count in rows:
        ops.linear(out[:count], x[:count], packed)
        beside.append((out[0] != alone).double().mean().item())
    figure, both = plt.subplots(1, 2, figsize=(8.2, 2.6), layout="constrained", sharey=True)
    titles = ("parts that a sum is split into", "rows in the batch, with ops.linear")
    for axes, names, shares, title in zip(both, (splits, rows), (changed, beside), titles, strict=True):
        bars = axes.bar([str(name) for name in names], shares, color=AUDIO)
        axes.bar_label(bars, [f"{share:.0%}" for share in shares])
        axes.set(xlabel=title, ylim=(0, 1))
        axes.spines["right"].set_visible(False)
    both[0].set_ylabel("outputs whose bits change")
    return figure


def chained_sums(x: torch.Tensor, weight: torch.Tensor, parts: int) -> torch.Tensor:
    """Multiply weight [n, k] by x [k] in float32: add up each part of the columns in order, then the parts."""
    products = (weight * x).reshape(len(weight), parts, -1)
    sums = torch.zeros(len(weight), parts)
    for column in range(products.shape[2]):
        sums = sums + products[:, :, column]
    total = sums[:, 0]
    for part in range(1, parts):
        total = total + sums[:, part]
    return total


def draw_joint_steps() -> Figure:
    """The steps of an engine, with the rows that each computes: four streams that come one after the other."""
    arrivals, frames = {0: "A", 4: "B", 10: "C", 13: "D"}, 14
    with tempfile.TemporaryDirectory() as folder:
        write_language_model(Path(folder) / "model", DEMO_CONFIG, "original", torch.float32, endless=True)
        model = HiggsAudioModel.from_pretrained(Path(folder) / "model")
        engine = model.engine = Engine(
            model, num_slots=4, clock=lambda: 0.0
        )  # no time passes: pieces are the shortest
        voice = torch.arange(40, dtype=torch.int64).repeat(model.config.num_codebooks, 1)
        assert model.tokenizer is not None
        handles: dict[str, RequestHandle] = {}
        steps: list[dict[str, int]] = []
        while not steps or any(not handle.future.done() for handle in handles.values()):
            if name := arrivals.get(len(steps)):
                text = (
                    f"<|AUDIO_OUT|> Stream {name}.<|audio_out_bos|>" if name in "BC" else f"{name}.<|audio_out_bos|>"
                )
                ids = torch.tensor([model.tokenizer.encode(text, add_special_tokens=False).ids])
                sampling = SamplingParams(seed=1, max_new_tokens=frames)
                codes = [voice] if name in "BC" else []
                request = GenerationRequest(ids, codes, Convention.TRANSFORMERS, sampling, playback=Playback())
                handles[name] = engine.add(request)
            before = {name: handle.sequence.computed for name, handle in handles.items()}
            engine.step()
            rows = {name: handle.sequence.computed - before[name] for name, handle in handles.items()}
            begun = [name for name, count in before.items() if not count]
            # Shared rows count as computed from the first step on.
            steps.append(rows | {name: max(rows[name] - handles[name].sequence.cached_tokens, 0) for name in begun})
        shared = {name: handle.sequence.cached_tokens for name, handle in handles.items()}
    figure, axes = plt.subplots(figsize=(8.2, 2.4), layout="constrained")
    for step, rows in enumerate(steps):
        for name, count in rows.items():
            if count:
                y = list(arrivals.values()).index(name)
                cell(axes, step, y, 0.94, 0.9, str(count), AUDIO if count == 1 else TEXT, size=7)
    for step, name in arrivals.items():
        label = f"{name} " + (f"(shares {shared[name]} rows)" if shared[name] else "")
        axes.text(-0.3, list(arrivals.values()).index(name) + 0.45, label, ha="right", va="center")
        axes.plot([step, step], [list(arrivals.values()).index(name), len(arrivals)], color="#666666", linewidth=0.8)
    axes.set(xlim=(-5.5, len(steps)), ylim=(len(arrivals), -0.2), yticks=[], xlabel="step")
    axes.set_xticks(range(0, len(steps), 5))
    axes.set_title("rows of each step: pieces of a prompt (blue), one row per frame (orange)", fontsize=9)
    for side in ("left", "right"):
        axes.spines[side].set_visible(False)
    return figure


# ---- drawing


def blank(inches: float, high: float, width: float, height: float) -> tuple[Figure, Axes]:
    figure, axes = plt.subplots(figsize=(inches, high), layout="constrained")
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    return figure, axes


def box(axes: Axes, x: float, y: float, width: float, height: float, text: str, color: str) -> None:
    """A rounded box around (x, y)."""
    corner = (x - width / 2, y - height / 2)
    style = "round,pad=0,rounding_size=1"
    axes.add_patch(FancyBboxPatch(corner, width, height, boxstyle=style, facecolor=color, edgecolor="#666666"))
    axes.text(x, y, text, ha="center", va="center")


def cell(axes: Axes, x: float, y: float, width: float, height: float, text: str, color: str, size: float = 8) -> None:
    """A rectangle with its lower left corner at (x, y)."""
    axes.add_patch(Rectangle((x, y), width, height, facecolor=color, edgecolor="white"))
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=size)


def arrow(axes: Axes, x0: float, y0: float, x1: float, y1: float) -> None:
    axes.annotate(
        "", (x1, y1), (x0, y0), arrowprops={"arrowstyle": "->", "color": "#666666", "shrinkA": 0, "shrinkB": 0}
    )


def millions(parameters: int) -> str:
    return f"{parameters / 1e6:.1f} M weights"


if __name__ == "__main__":
    main()
