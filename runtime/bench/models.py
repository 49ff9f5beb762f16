"""Speed of whole models: ours against the float model, ONNX Runtime's int4 and llama.cpp's Q4_0.

Ours runs a second time as stock ONNX Runtime would run it, by its function bodies.

    python runtime/bench/models.py MODEL... OURS [--gguf FILE] [--threads 1 2] [--out FILE]

All take turns, as in `qc bench`. llama.cpp needs the package llama-cpp-python and a GGUF file of
the same model.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import command
import contest
import llama
from machine import Machine, cores

from qcompiler import console
from qcompiler.evaluation.benchmark import Setting, load, result, take_turns

FIGURES = ("prefill", "decode", "sentences_per_second")
"""Of these, more is better; ratios are made of them."""


QUICK = Setting(prompt_length=4, context=2, steps=2, rounds=1)


def report(
    models: Sequence[Path], gguf: Path | None, threads: Sequence[int], setting: Setting
) -> dict[str, Any]:
    """Measure `models`, ours the last one, for JSON. `gguf`: a file for llama.cpp, if any."""
    with tempfile.TemporaryDirectory() as folder:
        q4_0 = llama.quantize(gguf, Path(folder)) if gguf and llama.available() else None
        runs = [_run(models, q4_0, count, setting) for count in threads]
    return {"machine": Machine.here().to_dict(), "setting": asdict(setting), "runs": runs}


def _run(
    models: Sequence[Path], q4_0: Path | None, threads: int, setting: Setting
) -> dict[str, Any]:
    subjects = [load(model, setting, threads=threads) for model in models]
    subjects.insert(-1, load(models[-1], setting, threads=threads, library=False))
    contenders = [subject.actions for subject in subjects]
    if q4_0 is None:
        medians = take_turns(contenders, setting.rounds)
    else:
        known, actions = llama.load(q4_0, setting, threads)
        medians = take_turns([*contenders, actions], setting.rounds)
    results = [result(*pair, setting).to_dict() for pair in zip(subjects, medians, strict=False)]
    ours, by_bodies = results[-1], results[-2]
    by_bodies["model"] += ", no library"
    if q4_0 is not None:
        results.append(llama.figures(known, medians[-1], setting))
    return {
        "threads": threads,
        "ours": ours["model"],
        "ratios": {r["model"]: _ratios(ours, r) for r in results if r is not ours},
        "models": results,
    }


def _ratios(ours: dict[str, Any], other: dict[str, Any]) -> dict[str, float]:
    """How many times as fast ours is, by figure."""
    return {f: ours[f] / other[f] for f in FIGURES if ours.get(f) and other.get(f)}


def show(result: dict[str, Any]) -> None:
    """Print a result, ratios first."""
    for run in result["runs"]:
        rows = [
            [
                model["model"],
                *(_ratio(run, model["model"], figure) for figure in FIGURES),
                *(console.number(model.get(figure), 0) for figure in FIGURES),
            ]
            for model in run["models"]
        ]
        heads = ["prefill", "decode", "sentences"]
        columns = ["model", *(f"ours: {h}" for h in heads), *(f"{h}/s" for h in heads)]
        console.print_table(columns, rows, title=f"{run['ours']}, threads: {run['threads']}")


def _ratio(run: dict[str, Any], model: str, figure: str) -> str:
    return contest.ratio(run["ratios"].get(model, {}).get(figure))


def main() -> None:
    """Entry point."""
    parser = command.parser(__doc__)
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL", help="ours the last one")
    parser.add_argument("--gguf", type=Path, help="the model's GGUF file, for llama.cpp")
    parser.add_argument("--threads", nargs="+", type=int, default=sorted({1, cores()}))
    command.add_out(parser)
    arguments = parser.parse_args()
    if arguments.gguf and not llama.available():
        print(llama.MISSING, file=sys.stderr)
    setting = QUICK if arguments.quick else Setting()
    files, threads = (arguments.models, arguments.gguf), arguments.threads
    contest.finish(lambda: report(*files, threads, setting), show, arguments.out)


if __name__ == "__main__":
    main()
