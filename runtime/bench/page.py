"""The page and the chart of what was measured.

    python runtime/bench/page.py RESULTS DOCS

Reads the JSON files that `make bench` leaves in RESULTS, writes benchmarks.md and benchmarks.svg to
DOCS.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import chart
import kernels
from chart import Panel
from kernels import Kernel

SHAPE = "4096x4096"
OURS, FLOAT = "Linear", "MatMul fp32"
INTRODUCTION = """\
# Benchmarks

Written by `make bench BENCH_DOCS=1`; the programs are in [`runtime/bench/`](../runtime/bench).
Ratios above 1 mean that ours is faster. Medians of rounds in which all contenders take turns.

"""
NODES = """\
## One layer in ONNX Runtime

K = {K}, N = {N}, weights of 4 bits. `LinearW4A8` against `MatMulNBits` with int8 activations
(`accuracy_level` 4) and the same group size, `DynamicQuantizeMatMul` (8-bit weights) and `MatMul`
in float32, which the chart leaves out. Weights are integers times a scale a column, which all of
them hold exactly. M is the number of rows. Weights stay in the caches as far as they fit.

"""
NODE_WIDTHS = """\
The same with weights of {widths} bits, in groups of 32. At 8 bits our op has none, and
`MatMulNBits` groups of 128. A dash: this ONNX Runtime has no kernels of it for such weights.

"""
ENCODER = """\
## A sentence encoder

MiniLM-L6, the default recipe against the float model and what `onnxruntime.quantization` makes of
it (dynamic int8).

"""
MODELS = """\
## A decoder

SmolLM2-135M, as `make demo` leaves it.

Prefill of {prompt_length} tokens, decoding {steps} tokens after {context}. Each ratio is the
compiled model's speed over the other's. "No library" is the same file in ONNX Runtime as it comes,
where each of our ops runs by its function body.

"""
KERNELS = """\
## Kernels alone

One thread, K = N = 4096, rows quantized beforehand. Percent of what a loop of the ISA's
multiply-add on registers reaches in the same process. W2 to W8 have weights of so many bits; those
of 8 have no groups. In T2 to T4 codes number levels.

What bounds it: integer dot products, and unpacking codes for them. Groups, however small, cost no
floating-point work; each result becomes a float once, at its end. From a few rows on, weights are
expanded to int8 once for all of them, which counts for less the more rows there are. Fewer rows
multiply codes as they are, and the sum of each group by its multiple.

"""
SMALL = """\
Layers of a small decoder, with weights of 4 bits, in percent of the same peak.

"""
MEMORY = """\
One row, with weights that come from memory: GB/s of weights, and percent of what a plain read
reaches, the best of 1, 2, 4 and 8 streams side by side ({bandwidth:.1f} GB/s). Decoding depends on
it: how the system has laid the file's pages out in memory changes its speed by up to a tenth, and a
freshly written file is the fastest.

"""
FEWER_BITS = """\
## What fewer bits buy

The time of one row with each width over that of 4 bits: below 1 is faster. What is read from
memory grows with the bits; in the caches the work of unpacking counts, which is more where codes
lie in two planes (3, 5 and 6 bits).

"""


def write(results: Path, docs: Path) -> None:
    """Write the page and the chart from the JSON files that are there; nodes.json has to be."""
    nodes = _load(results / "nodes.json")
    encoder = _load(results / "encoder.json") if (results / "encoder.json").is_file() else None
    models = _load(results / "models.json") if (results / "models.json").is_file() else None
    measured = _load(results / "kernels.json") if (results / "kernels.json").is_file() else None
    machine = _machine(nodes["machine"])
    parts = [INTRODUCTION, f"Machine: {machine}.\n\n", "![Ratios](benchmarks.svg)\n\n"]
    parts += _node_parts(nodes)
    panels = [_node_panel(nodes, threads) for threads in nodes["setting"]["threads"]]
    if encoder is not None:
        parts += [ENCODER, _encoder_table(encoder), "\n"]
        panels += [_encoder_panel(encoder)]
    if models is not None:
        parts += [MODELS.format(**models["setting"]), _model_table(models), "\n"]
        panels += [_model_panel(run) for run in models["runs"]]
    if measured is not None:
        parts += _kernel_parts(measured)
    docs.mkdir(parents=True, exist_ok=True)
    text = "".join(parts).rstrip("\n") + "\n"
    (docs / "benchmarks.md").write_text(text, encoding="utf-8")
    (docs / "benchmarks.svg").write_text(chart.draw(panels, machine), encoding="utf-8")


def _load(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def _machine(machine: dict[str, Any]) -> str:
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['os']}, "
        f"ONNX Runtime {machine['onnxruntime']}, kernels {machine['isa']}"
    )


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(columns) - 1)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (columns, rule, *rows))


def _ratio_table(
    rows: Sequence[dict[str, Any]], columns: dict[str, str], ours: str, digits: int
) -> str:
    """Rows of a race, the first with every ratio; `columns`: headings by key of a row."""
    others = list(rows[0]["ratios"])
    return _table(
        [*columns.values(), *(f"over {other}" for other in others), "ours, ms"],
        (
            [
                *(str(row[key]) for key in columns),
                *(_cell(row["ratios"].get(other), 2) for other in others),
                f"{row['milliseconds'][ours]:.{digits}f}",
            ]
            for row in rows
        ),
    )


def _node_parts(nodes: dict[str, Any]) -> list[str]:
    columns = {"threads": "threads", "rows": "M"}
    fours = [row for row in nodes["rows"] if row["bits"] == 4]
    widths = [row for row in nodes["rows"] if row["bits"] != 4]
    some = ", ".join(str(bits) for bits in dict.fromkeys(row["bits"] for row in widths))
    return [
        NODES.format(**nodes["setting"]),
        _ratio_table(fours, columns | {"group_size": "group"}, OURS, 3),
        "\n",
        NODE_WIDTHS.format(widths=some),
        _ratio_table(widths, columns | {"bits": "bits"}, OURS, 3),
        "\n",
    ]


def _node_panel(nodes: dict[str, Any], threads: int) -> Panel:
    setting = nodes["setting"]
    bars = {
        f"M={row['rows']}, groups of {row['group_size']}": {
            op: ratio for op, ratio in row["ratios"].items() if op != FLOAT
        }
        for row in nodes["rows"]
        if row["threads"] == threads and row["bits"] == 4
    }
    shape = f"K={setting['K']} N={setting['N']}"
    return Panel(f"LinearW4A8, {shape}, threads: {threads}: times as fast as", bars)


def _encoder_table(encoder: dict[str, Any]) -> str:
    columns = {"threads": "threads", "batch": "sentences", "tokens": "tokens"}
    return _ratio_table(encoder["rows"], columns, "w4a8", 2)


def _encoder_panel(encoder: dict[str, Any]) -> Panel:
    bars = {
        f"{row['batch']} x {row['tokens']}, threads: {row['threads']}": row["ratios"]
        for row in encoder["rows"]
    }
    return Panel("MiniLM-L6, w4a8: times as fast as", bars)


def _model_table(models: dict[str, Any]) -> str:
    rows: list[list[str]] = []
    for run in models["runs"]:
        for model in run["models"]:
            ratios = run["ratios"].get(model["model"], {})
            cells = [str(run["threads"]), model["model"]]
            cells += [_cell(ratios.get(figure), 2) for figure in ("prefill", "decode")]
            cells += [_cell(model.get(figure), 0) for figure in ("prefill", "decode")]
            rows.append(cells)
    columns = ["ours, prefill", "ours, decode", "prefill tok/s", "decode tok/s"]
    return _table(["threads", "model", *columns], rows)


def _model_panel(run: dict[str, Any]) -> Panel:
    bars: dict[str, dict[str, float]] = {}
    for model, ratios in run["ratios"].items():
        for figure, ratio in ratios.items():
            bars.setdefault(figure.replace("_", " "), {})[model] = ratio
    return Panel(f"{run['ours']}, threads: {run['threads']}: times as fast as", bars)


def _cell(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _kernel_parts(measured: dict[str, Any]) -> list[str]:
    lines = [kernel for kernel in kernels.read(measured) if "%peak" in kernel.figures]
    large = [kernel for kernel in lines if kernel.shape == SHAPE]
    if not large:
        return []
    bandwidth = float(measured["context"]["read_gb_per_s"])
    return [
        KERNELS,
        _peak_table(large, ("isa", "bits", "group")),
        "\n",
        SMALL,
        _peak_table(
            [kernel for kernel in lines if kernel.shape != SHAPE], ("isa", "shape", "group")
        ),
        "\n",
        MEMORY.format(bandwidth=bandwidth),
        _memory_table(large),
        "\n",
        FEWER_BITS,
        _width_table(large),
    ]


def _peak_table(lines: list[Kernel], keys: tuple[str, ...]) -> str:
    """Percent of the peak with weights in the caches; `keys` name what tells lines apart."""
    hot = [kernel for kernel in lines if kernel.place == "hot"]
    rows = sorted({kernel.rows for kernel in hot})
    cells: dict[tuple[str, ...], dict[int, str]] = {}
    for kernel in hot:
        line = cells.setdefault(tuple(getattr(kernel, key) for key in keys), {})
        line[kernel.rows] = f"{kernel.figures['%peak']:.0f}"
    headings = {"isa": "ISA", "bits": "weights", "shape": "K x N", "group": "group"}
    return _table(
        [*(headings[key] for key in keys), *(f"M={count}" for count in rows)],
        ([*key, *(line.get(count, "-") for count in rows)] for key, line in cells.items()),
    )


def _memory_table(lines: list[Kernel]) -> str:
    rows = (
        [
            *(kernel.isa, kernel.bits, kernel.group),
            f"{kernel.figures['GB/s']:.1f}",
            f"{kernel.figures['%bandwidth']:.0f}",
        ]
        for kernel in lines
        if kernel.place == "memory"
    )
    return _table(["ISA", "weights", "group", "GB/s", "% of read"], rows)


def _width_table(lines: list[Kernel]) -> str:
    """Of one row: the time of each width over that of 4 bits in the same groups and place."""
    single = [kernel for kernel in lines if kernel.rows == 1]
    times = {(k.isa, k.place, k.group, k.bits): k.figures["microseconds"] for k in single}
    widths = sorted({kernel.bits for kernel in single} - {"W4"})
    rows: list[list[str]] = []
    for (isa, place, group, bits), four in times.items():
        if bits != "W4":
            continue
        cells = [isa, group, {"hot": "caches", "memory": "memory"}[place]]
        for width in widths:
            alone = times.get((isa, place, "none", width))  # 8 bits have no groups
            time = times.get((isa, place, group, width), alone)
            cells.append(_cell(None if time is None else time / four, 2))
        rows.append([*cells, f"{four:.0f}"])
    return _table(["ISA", "group", "weights in", *widths, "W4, us"], rows)


if __name__ == "__main__":
    write(*map(Path, sys.argv[1:3]))
