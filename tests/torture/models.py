"""Compile changed ONNX files, thousands of them: each gives a model or one line, and soon.

    python tests/torture/models.py --rounds 20000 --seed 0
    python tests/torture/models.py --case 1234

A finding is a traceback, a crash, more than 20 s of CPU time or 2 GB of memory, a message of
several lines, something left behind, a pass that fails on what ONNX Runtime takes, or a result that
ONNX Runtime does not take where it takes the source. The case that shows it is printed. A model
that ends ONNX Runtime by itself, under the same limits, is counted apart: compiling has to run it.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[1] / "unit"))

import onnxruntime as ort
from apart import Ended, call
from mutations import case

import qcompiler
from qcompiler.calibration.sources import default_spec, load_source
from qcompiler.cli_compile import quiet
from qcompiler.compiler import compile as compile_model
from qcompiler.errors import QcError
from qcompiler.models import open_package
from qcompiler.passes import registry
from qcompiler.session import create_session

CPU_SECONDS = 20
BYTES = 2 << 30
SAMPLES, LENGTH = 2, 16

RECIPES = ("rtn", "w4a8-fast", "w4a8")
_UNMEANT = (" failed on this model (", " is not valid ONNX (")
_MEMORY = "too much memory"
_OUT_OF_TIME = (signal.SIGXCPU, signal.SIGKILL, signal.SIGALRM)
TARGETS = ("ort-custom", "qdq", "cuda", "ort-contrib")


@dataclass(frozen=True)
class Finding:
    """A fault, and the case that shows it."""

    number: int
    kind: str
    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.kind} at {self.where}: {self.message} (--case {self.number})"


def attempt(number: int, model: Path) -> dict[str, Any]:
    """Compile the model of a case; what came of it, as plain data."""
    folder = model.parent
    before = sorted(path.name for path in folder.iterdir())
    target = TARGETS[number // 3 % len(TARGETS)]
    told: dict[str, Any] = {"outcome": "compiled"}
    try:
        compile_model(
            model,
            recipe=RECIPES[number % len(RECIPES)],
            target=target,
            output=folder / "o.onnx",
            calib_samples=SAMPLES,
            calib_length=LENGTH,
            verify=number % 5 != 0,
        )
    except (QcError, OSError) as error:
        told = {"outcome": "refused", "message": str(error)}
        if "\n" in str(error):
            return told | {"finding": "several lines", "where": _where(error)}
        cause = error.__cause__
        if any(sign in str(error) for sign in _UNMEANT):
            return told | {"finding": "a pass fails", "where": _where(cause or error)}
    except Exception as error:
        kind = _MEMORY if isinstance(error, MemoryError) else "traceback"
        return {"finding": kind, "where": _where(error), "message": f"{error!r:.300}"}
    left = sorted(path.name for path in folder.iterdir() if path.name not in before)
    if told["outcome"] == "refused":
        return told | ({"finding": "left behind", "where": str(left)} if left else {})
    refusal = _refusal(folder / "o.onnx", target)
    if refusal and _runs(model):
        return told | {"finding": "a result that does not load", "where": refusal}
    return told


def _where(error: BaseException) -> str:
    """The innermost place, of ours before others'."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if "/qcompiler/" in f.filename or "/passes/" in f.filename]
    last = (ours or frames)[-1]
    return f"{type(error).__name__} in {Path(last.filename).name}:{last.lineno} {last.name}"


def _refusal(path: Path, target: str) -> str:
    """Why ONNX Runtime does not take a model, empty where it does."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if target == "ort-custom" and (library := qcompiler.library_path()) is not None:
        options.register_custom_ops_library(str(library))
    try:
        ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors share no other base class
        return f"{error!r:.300}"
    return ""


def _runs(path: Path) -> bool:
    """Whether ONNX Runtime runs a model on data like what it was compiled with."""
    try:
        package = open_package(path)
        feeds = load_source(default_spec(package), package, samples=SAMPLES, length=LENGTH).feeds
        session = create_session(path)
        for feed in feeds:
            session.run(None, dict(feed))
    except Exception:  # ONNX Runtime's errors share no other base class
        return False
    return True


def judge(number: int, scratch: Path) -> tuple[Finding | None, Ended]:
    """Run a case apart, in an empty folder."""
    folder = scratch / "case"
    folder.mkdir()
    model = case(number).write(folder)
    ended = call(
        lambda: attempt(number, model), scratch, cpu_seconds=CPU_SECONDS, extra_bytes=BYTES
    )
    told = ended.result
    if told is None or told.get("finding") == _MEMORY:
        alone = call(
            lambda: {"runs": _runs(model)}, scratch, cpu_seconds=CPU_SECONDS, extra_bytes=BYTES
        )
        if alone.result is None or not alone.result["runs"]:
            return None, replace(ended, result={"outcome": "ended by its source"})
    if told is None:
        kind = "hang" if ended.signal in _OUT_OF_TIME else "crash"
        return Finding(number, kind, _top(ended.trace), f"signal {ended.signal}"), ended
    if "finding" in told:
        return Finding(number, told["finding"], told["where"], told.get("message", "")), ended
    return None, ended


def _top(trace: str) -> str:
    """The first frame of ours in a trace of a process that died."""
    lines = [line.strip() for line in trace.splitlines() if line.strip().startswith("File")]
    ours = [line for line in lines if "/qcompiler/" in line or "/passes/" in line]
    places = [*lines[:1], *ours[:1]]
    return " <- ".join(place.rsplit("/", 1)[-1] for place in places) or "an unknown place"


def run(numbers: Iterator[int], seconds: float) -> Iterator[tuple[int, Finding | None, Ended]]:
    """Judge cases until there are no more, or the time is up."""
    registry()
    quiet()
    end = time.monotonic() + seconds
    for number in numbers:
        if time.monotonic() > end:
            return
        scratch = Path(tempfile.mkdtemp(prefix="torture-"))
        try:
            yield number, *judge(number, scratch)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=20_000, help="files")
    parser.add_argument("--seed", type=int, default=0, help="the number of the first case")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after these")
    parser.add_argument("--case", type=int, help="run this case alone, and say all of it")
    given = parser.parse_args()
    first, count = (given.seed, given.rounds) if given.case is None else (given.case, 1)
    found: dict[tuple[str, str], Finding] = {}
    times: Counter[tuple[str, str]] = Counter()
    outcomes: Counter[str] = Counter()
    cpu, worst = 0.0, 0.0
    started = time.monotonic()
    for number, finding, ended in run(iter(range(first, first + count)), 60 * given.minutes):
        outcomes[(ended.result or {}).get("outcome", "broken")] += 1
        cpu, worst = cpu + ended.cpu_seconds, max(worst, ended.cpu_seconds)
        if given.case is not None:
            made = case(number)
            print(f"{made.seed}: {'; '.join(made.changes)}\n{ended.result}\n{ended.trace}")
        if finding is not None:
            key = (finding.kind, finding.where)
            times[key] += 1
            if found.setdefault(key, finding) is finding:
                print(finding, flush=True)
    for key, amount in times.most_common():
        print(f"{amount} times: {found[key]}")
    files = sum(outcomes.values())
    rate = files / max(time.monotonic() - started, 1e-9)
    print(
        f"models: {files} files from case {first} on, {len(found)} findings "
        f"({', '.join(f'{n} {what}' for what, n in outcomes.most_common())}), "
        f"{rate:.1f} files/s, {cpu / max(files, 1):.2f} s of CPU a file, {worst:.1f} s at most"
    )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
