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
FLOAT = "MatMul fp32"
INTRODUCTION = """\
# Benchmarks

Written by `make bench BENCH_DOCS=1`; the programs are in [`runtime/bench/`](../runtime/bench).
Ratios above 1 mean that ours is faster. Medians of rounds in which all contenders take turns.

"""
NODES = """\
## One layer in ONNX Runtime

K = {K}, N = {N}. `MatMulW4A8` with one scale a row of activations, against `MatMulNBits` with int8
activations (`accuracy_level` 4) and the same group size, `DynamicQuantizeMatMul` (8-bit weights)
and `MatMul` in float32, which the chart leaves out. M is the number of rows. Weights stay in the
caches as far as they fit.

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
compiled model's speed over the other's.

"""
KERNELS = """\
## Kernels alone

One thread, K = N = 4096, one scale a row of activations, rows quantized beforehand. Percent of what
a loop of the ISA's multiply-add on registers reaches in the same process. W4 and W8 are the MatMul
ops, LinearW2 to LinearW8 those of the integer form.

100 can't be reached. With AVX-512 VNNI on Zen 4 the multiply-add of a group's float sum takes the
same ports as the integer dot products: 1 to 8 in groups of 32, so 89% is the most, 1 to 32 and 97%
in groups of 128. Sharing loads between panels, unrolling whole groups and software prefetch change
nothing there.

"""
MEMORY = """\
One row, with weights that come from memory: GB/s of weights, and percent of what a plain read
reaches ({bandwidth:.1f} GB/s). Decoding depends on it: how the system has laid the file's pages out
in memory changes its speed by up to a tenth, and a freshly written file is the fastest.

"""


def write(results: Path, docs: Path) -> None:
    """Write the page and the chart from the JSON files that are there; nodes.json has to be."""
    nodes = _load(results / "nodes.json")
    encoder = _load(results / "encoder.json") if (results / "encoder.json").is_file() else None
    models = _load(results / "models.json") if (results / "models.json").is_file() else None
    measured = _load(results / "kernels.json") if (results / "kernels.json").is_file() else None
    machine = _machine(nodes["machine"])
    parts = [INTRODUCTION, f"Machine: {machine}.\n\n", "![Ratios](benchmarks.svg)\n\n"]
    parts += [NODES.format(**nodes["setting"]), _node_table(nodes), "\n"]
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
    """Rows of a race; `columns`: headings by key of a row."""
    others = list(rows[0]["ratios"])
    return _table(
        [*columns.values(), *(f"over {other}" for other in others), "ours, ms"],
        (
            [
                *(str(row[key]) for key in columns),
                *(f"{row['ratios'][other]:.2f}" for other in others),
                f"{row['milliseconds'][ours]:.{digits}f}",
            ]
            for row in rows
        ),
    )


def _node_table(nodes: dict[str, Any]) -> str:
    columns = {"threads": "threads", "rows": "M", "group_size": "group"}
    return _ratio_table(nodes["rows"], columns, "MatMulW4A8", 3)


def _node_panel(nodes: dict[str, Any], threads: int) -> Panel:
    setting = nodes["setting"]
    bars = {
        f"M={row['rows']}, groups of {row['group_size']}": {
            op: ratio for op, ratio in row["ratios"].items() if op != FLOAT
        }
        for row in nodes["rows"]
        if row["threads"] == threads
    }
    shape = f"K={setting['K']} N={setting['N']}"
    return Panel(f"MatMulW4A8, {shape}, threads: {threads}: times as fast as", bars)


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
    lines = [
        kernel
        for kernel in kernels.read(measured)
        if kernel.shape == SHAPE and kernel.activations == "row" and "%peak" in kernel.figures
    ]
    if not lines:
        return []
    hot = [kernel for kernel in lines if kernel.place == "hot"]
    cold = [kernel for kernel in lines if kernel.place == "memory"]
    bandwidth = float(measured["context"]["read_gb_per_s"])
    memory_rows = (
        [
            *(kernel.isa, kernel.bits, kernel.group),
            f"{kernel.figures['GB/s']:.1f}",
            f"{kernel.figures['%bandwidth']:.0f}",
        ]
        for kernel in cold
    )
    return [
        KERNELS,
        _peak_table(hot),
        "\n",
        MEMORY.format(bandwidth=bandwidth),
        _table(["ISA", "weights", "group", "GB/s", "% of read"], memory_rows),
    ]


def _peak_table(hot: list[Kernel]) -> str:
    rows = sorted({kernel.rows for kernel in hot})
    cells: dict[tuple[str, str, str], dict[int, str]] = {}
    for kernel in hot:
        line = cells.setdefault((kernel.isa, kernel.bits, kernel.group), {})
        line[kernel.rows] = f"{kernel.figures['%peak']:.0f}"
    return _table(
        ["ISA", "weights", "group", *(f"M={count}" for count in rows)],
        ([*key, *(line.get(count, "-") for count in rows)] for key, line in cells.items()),
    )


if __name__ == "__main__":
    write(*map(Path, sys.argv[1:3]))
