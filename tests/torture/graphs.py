"""Compile graphs of every shape at growing sizes: the curve, and whatever is over the bars.

    python tests/torture/graphs.py --rounds 4 --seed 0 [--minutes 30]

A round is a size: a thousand nodes, ten thousand, thirty thousand, a hundred thousand. Each compile
is a process of its own, so that its time and its peak of memory are its own.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

SIZES = (1_000, 10_000, 30_000, 100_000)
RECIPES = ("rtn", "w4a8")

SECONDS = {10_000: 20.0, 30_000: 40.0, 100_000: 80.0}
"""CPU time that a compile of so many nodes may take, without what ONNX Runtime takes to load: that
grows with the square where one node has them all as inputs or outputs.
"""

MEMORY = 2 << 30
"""Bytes at most, at any size."""

EXPONENT = 1.35
"""How the time may grow from one size to the next: 1 is linear, 2 the square."""


@dataclass(frozen=True)
class Cost:
    """What a compile took."""

    seconds: float
    """CPU time."""
    loading: float
    """CPU time of these in which ONNX Runtime makes its sessions."""
    memory: int
    """The peak, in bytes."""

    @property
    def own(self) -> float:
        return self.seconds - self.loading


def measure(shape: str, nodes: int, recipe: str, folder: Path) -> Cost:
    """Compile one model in this process."""
    import resource

    import onnx
    import onnxruntime as ort

    sys.path.insert(0, os.fspath(Path(__file__).resolve().parents[1] / "unit"))
    import large_graphs

    import qcompiler

    model = folder / "model.onnx"
    onnx.save(large_graphs.SHAPES[shape](nodes), model)
    loading = 0.0
    plain = ort.InferenceSession.__init__

    def timed(*args, **kwargs) -> None:
        nonlocal loading
        started = time.process_time()
        try:
            plain(*args, **kwargs)
        finally:
            loading += time.process_time() - started

    ort.InferenceSession.__init__ = timed
    started = time.process_time()
    # Noise adds up over thousands of layers; its limit is not the subject here.
    qcompiler.compile(model, recipe=recipe, output=folder / "out.onnx", force=True)
    seconds = time.process_time() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    return Cost(seconds, loading, peak)


def in_process(shape: str, nodes: int, recipe: str, limit: float) -> Cost | str:
    """The cost in a process of its own, or why there is none."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--one", shape, str(nodes), recipe, folder]
        try:
            done = subprocess.run(
                command, check=False, capture_output=True, text=True, timeout=limit
            )
        except subprocess.TimeoutExpired:
            return f"not done after {limit:.0f} s"
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
    return Cost(**json.loads(done.stdout.splitlines()[-1]))


def over(cost: Cost, nodes: int, before: tuple[int, Cost] | None) -> list[str]:
    """The bars that a compile is over."""
    found: list[str] = []
    if cost.own > SECONDS.get(nodes, math.inf):
        found.append(f"{cost.own:.0f} s, more than {SECONDS[nodes]:.0f} s")
    if cost.memory > MEMORY:
        found.append(f"{cost.memory / 2**30:.1f} GiB")
    if before is not None and exponent(cost, nodes, before) > EXPONENT:
        found.append(f"grows with the power {exponent(cost, nodes, before):.2f}")
    return found


def exponent(cost: Cost, nodes: int, before: tuple[int, Cost]) -> float:
    """The power of the number of nodes with which our own time grew since a smaller size."""
    return math.log(cost.own / max(before[1].own, 0.5)) / math.log(nodes / before[0])


def run(chosen: argparse.Namespace, costs: dict[tuple[str, str, int], Cost]) -> list[str]:
    """Compile everything; the findings, one a line."""
    sys.path.insert(0, os.fspath(Path(__file__).resolve().parents[1] / "unit"))
    from large_graphs import SHAPES

    shapes = chosen.shapes.split(",") if chosen.shapes else list(SHAPES)
    random.Random(chosen.seed).shuffle(shapes)
    until = time.monotonic() + 60 * chosen.minutes if chosen.minutes else math.inf
    findings: list[str] = []
    for shape in shapes:
        for recipe in chosen.recipes.split(","):
            before: tuple[int, Cost] | None = None
            for nodes in SIZES[: chosen.rounds]:
                if time.monotonic() > until:
                    return findings
                cost = in_process(shape, nodes, recipe, chosen.limit)
                again = f"--one {shape} {nodes} {recipe} FOLDER"
                if isinstance(cost, str):
                    print(f"{shape:13s} {recipe:5s} {nodes:7,d}  {cost}", flush=True)
                    findings.append(f"{shape} {recipe} {nodes}: {cost}   ({again})")
                    break
                power = "" if before is None else f"power {exponent(cost, nodes, before):.2f}"
                print(
                    f"{shape:13s} {recipe:5s} {nodes:7,d}  {cost.seconds:6.1f} s CPU, "
                    f"{cost.loading:5.1f} s of it ONNX Runtime loads, "
                    f"{cost.memory / 2**30:4.2f} GiB  {power}",
                    flush=True,
                )
                costs[shape, recipe, nodes] = cost
                found = over(cost, nodes, before)
                findings += [f"{shape} {recipe} {nodes}: {each}   ({again})" for each in found]
                before = (nodes, cost)
    return findings


def summary(costs: Mapping[tuple[str, str, int], Cost], findings: list[str]) -> str:
    """One line."""
    slowest = max(costs.items(), key=lambda item: item[1].own, default=None)
    memory = max((cost.memory for cost in costs.values()), default=0) / 2**30
    told = (
        "" if slowest is None else f"; slowest {slowest[0]} with {slowest[1].own:.1f} s of our own"
    )
    return (
        f"graphs: {len(costs)} compiles, {len(findings)} findings{told}; at most {memory:.2f} GiB"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=len(SIZES), help="sizes, the smallest first")
    parser.add_argument("--seed", type=int, default=0, help="order of the shapes")
    parser.add_argument("--minutes", type=float, default=0.0, help="stop after these; 0: never")
    parser.add_argument("--shapes", default="", help="names with commas between; all by default")
    parser.add_argument("--recipes", default=",".join(RECIPES))
    parser.add_argument("--limit", type=float, default=600.0, help="seconds for one compile")
    parser.add_argument("--one", nargs=4, metavar=("SHAPE", "NODES", "RECIPE", "FOLDER"))
    chosen = parser.parse_args()
    if chosen.one:
        shape, nodes, recipe, folder = chosen.one
        print(json.dumps(asdict(measure(shape, int(nodes), recipe, Path(folder)))))
        return 0
    costs: dict[tuple[str, str, int], Cost] = {}
    findings = run(chosen, costs)
    print(*findings, sep="\n")
    print(summary(costs, findings))
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
