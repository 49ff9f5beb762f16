"""What becomes of tiny random models of some forty families, as a table.

    python examples/families.py [NAME ...] [--out docs/models.md]

Each is exported, then compiled by `w4a8` twice: with 8 bits, where an error can only be one of
structure, and as it is. Outputs are compared with those of the exported float model in ONNX
Runtime, decoders also step by step. Random weights are harder to quantize than trained ones: the
last column is no promise. Of a page that is there, what is said of real models is kept.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from family_models import FAMILIES, WORDS, make

import qcompiler
from qcompiler.decoding import Decoder
from qcompiler.errors import QcError
from qcompiler.export import export_model
from qcompiler.feeds import Signature
from qcompiler.models import open_package
from qcompiler.numerics.rounding import sqnr_db
from qcompiler.session import create_session

EIGHT_BITS = ("plan-weights.bits=8", "plan-weights.table_bits=8")
ALL_TABLES = "plan-weights.min_rows=1"
LEAST_DB = 25.0
REAL = "## Real models"
"""Where the part of the page begins that is written by hand."""
LENGTH, READ = 48, 40  # tokens, and how many of them a decoder reads at once
_SIZE = {"batch": 2}
_OTHER_SIZES = 24


@dataclass(frozen=True)
class Row:
    """One graph of a family."""

    name: str
    route: str
    layers: str
    rotated: str
    left: str
    whole_db: float
    steps_db: float | None
    w4a8_db: float

    def cells(self) -> list[str]:
        """For the table."""
        steps = "-" if self.steps_db is None else f"{self.steps_db:.0f}"
        return [
            *(self.name, self.route, self.layers, self.rotated, self.left or "-"),
            *(f"{self.whole_db:.0f}", steps, f"{self.w4a8_db:.1f}"),
        ]


HEADER = (
    *("model", "export", "layers quantized", "rotated", "left in float"),
    *("8 bits, dB", "step by step", "w4a8, dB"),
)


def rows_of(name: str, work: Path) -> list[Row]:
    """Export, compile and compare one family."""
    source, exported = work / "hf", work / "onnx"
    make(name, source)
    made = export_model(source, exported)
    graphs = sorted(exported.glob("*.onnx"))
    rows = []
    for graph in graphs:
        alone = len(graphs) == 1
        rows.append(_row(name if alone else f"{name}, {graph.stem}", made.dialect, graph, work))
    return rows


def _row(name: str, route: str, graph: Path, work: Path) -> Row:
    source = graph.parent if graph.stem == "model" else graph
    compiled = {}
    for label, changes in (("8", EIGHT_BITS), ("4", ())):
        out = work / f"{graph.stem}-{label}{'' if source.is_dir() else '.onnx'}"
        compiled[label] = qcompiler.compile(
            source,
            recipe="w4a8",
            output=out,
            overrides=(*changes, ALL_TABLES),
            calib_samples=8,
            calib_length=128,
            force=True,
        )
    feeds = _feeds(source)
    wanted = _whole(source, feeds)
    eight, four = (compiled[label].output for label in ("8", "4"))
    report = compiled["4"].report
    layers = [each for each in report.layers if each.kind == "linear"]
    done = sum(each.quantized for each in layers)
    transforms = {text for each in layers for text in each.rotated}
    kinds = {
        "stream": any("residual stream" in text for text in transforms),
        "heads": any("value heads" in text for text in transforms),
    }
    left = sorted({each.reason or "?" for each in layers if not each.quantized})
    return Row(
        name=name,
        route=route,
        layers=f"{done} of {len(layers)}",
        rotated=", ".join(what for what, found in kinds.items() if found) or "-",
        left=", ".join(left),
        whole_db=sqnr_db(wanted, _whole(eight, feeds)),
        steps_db=_steps(source, eight),
        w4a8_db=sqnr_db(wanted, _whole(four, feeds)),
    )


def _feeds(model: Path) -> dict[str, Any]:
    """Random inputs of a graph: as a language model's, or by type and size."""
    rng = np.random.default_rng(0)
    signature = Signature.of(open_package(model))
    ids = rng.integers(4, WORDS, (2, LENGTH))
    if signature.kind != "other":
        return signature.feeds(ids)
    feeds: dict[str, Any] = {}
    caches = {cache.past: cache for cache in signature.caches}
    for spec in signature.inputs:
        if spec.name in caches:
            feeds[spec.name] = caches[spec.name].empty(2)
            continue
        assert spec.shape is not None and spec.dtype is not None
        shape = [s if isinstance(s, int) else _size(str(s), spec.name) for s in spec.shape]
        if "mask" in spec.name:
            feeds[spec.name] = np.ones(shape, spec.dtype)
        elif spec.dtype.kind == "f":
            feeds[spec.name] = rng.standard_normal(shape).astype(spec.dtype)
        else:
            feeds[spec.name] = rng.integers(4, WORDS, shape).astype(spec.dtype)
    return feeds


def _size(dimension: str, name: str) -> int:
    """A size for one that is open."""
    if "values" in name and "batch" not in dimension:
        return 1600  # of a wave
    return _SIZE["batch"] if "batch" in dimension else _OTHER_SIZES


def _whole(model: Path, feeds: dict[str, Any]) -> np.ndarray[Any, Any]:
    """The first output."""
    session = create_session(model)
    return np.asarray(session.run([session.get_outputs()[0].name], feeds)[0])


def _steps(source: Path, compiled: Path) -> float | None:
    """How close a decoder's last logits are, prompt first and then token by token."""
    signature = Signature.of(open_package(source))
    if signature.kind != "decoder" or not signature.caches:
        return None
    ids = np.random.default_rng(1).integers(4, WORDS, (1, LENGTH))
    found = []
    for model in (source, compiled):
        decoder = Decoder(create_session(model), Signature.of(open_package(model)), capacity=LENGTH)
        logits = [decoder.step(ids[:, :READ])]
        logits += [decoder.step(ids[:, t : t + 1]) for t in range(READ, LENGTH)]
        found.append(np.stack(logits))
    return sqnr_db(*found)


def page(rows: Sequence[Row], before: str) -> str:
    """The whole page; `before`: what it was, whose part on real models is kept."""
    lines = [
        "# Models",
        "",
        "Written by `python examples/families.py --out docs/models.md`: tiny models of random",
        "weights, exported by `qc export` and compiled. With 8 bits only an error of structure",
        f"leaves less than {LEAST_DB:.0f} dB. Random weights are harder to quantize than trained",
        "ones: the last column tells families apart, and says little of real models.",
        "",
        f"| {' | '.join(HEADER)} |",
        "| --- | --- | --- | --- | --- | ---: | ---: | ---: |",
    ]
    lines += [f"| {' | '.join(row.cells())} |" for row in rows]
    _, heading, real = before.partition(REAL)
    return "\n".join(lines) + "\n" + (f"\n{heading}{real}" if heading else "")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; 1 where a family fails or is off."""
    parser = argparse.ArgumentParser(description="What becomes of tiny models of many families.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(FAMILIES))
    parser.add_argument("--out", type=Path, help="the page to write")
    given = parser.parse_args(arguments)
    unknown = [name for name in given.names if name not in FAMILIES]
    if unknown:
        parser.error(f"no family '{unknown[0]}'; there are {', '.join(FAMILIES)}")
    rows: list[Row] = []
    failed: list[str] = []
    for name in given.names or FAMILIES:
        with tempfile.TemporaryDirectory() as work:
            try:
                found = rows_of(name, Path(work))
            except QcError as error:
                failed.append(name)
                print(f"{name}: {error}", file=sys.stderr, flush=True)
                continue
        for row in found:
            print(" | ".join(row.cells()), flush=True)
            if min(row.whole_db, row.steps_db or row.whole_db) < LEAST_DB:
                failed.append(row.name)
        rows += found
    if given.out:
        before = given.out.read_text("utf-8") if given.out.exists() else ""
        given.out.write_text(page(rows, before), "utf-8")
    if failed:
        print(f"failed, or below {LEAST_DB:.0f} dB: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
