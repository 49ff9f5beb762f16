"""Read what the benchmark of the kernels wrote, a file of google-benchmark."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Kernel:
    """One line of kernels_bench.cc, where its fields are explained."""

    bits: str
    isa: str
    shape: str
    group: str
    rows: int
    place: str
    figures: dict[str, float]


def read(result: dict[str, Any]) -> list[Kernel]:
    """Every measurement once: the median where there were repetitions."""
    return [
        _kernel(entry)
        for entry in result["benchmarks"]
        if entry.get("aggregate_name", "median") == "median"
    ]


def isas(kernels: list[Kernel]) -> list[str]:
    """The ISAs measured, best first, each once."""
    return list(dict.fromkeys(kernel.isa for kernel in kernels))


def _kernel(entry: dict[str, Any]) -> Kernel:
    bits, isa, shape, group, rows, place = entry["run_name"].split("/")[:6]
    names = ("GOPS", "GB/s", "%peak", "%bandwidth")
    figures = {name: float(entry[name]) for name in names if name in entry}
    figures["microseconds"] = float(entry["real_time"])
    return Kernel(bits, isa, shape, group, int(rows.removeprefix("M")), place, figures)
