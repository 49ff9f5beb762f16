"""Models that take turns in ONNX Runtime, and the table of who was how fast."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import command
import onnxruntime as ort
from machine import Machine, cores

from qcompiler import console, runtime
from qcompiler.errors import QcError

Action = Callable[[], object]


def open_session(model: bytes | str, threads: int) -> ort.InferenceSession:
    """A session on the CPU, its threads asleep between runs."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    runtime.register(options)
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def thread_counts() -> tuple[int, ...]:
    """As many threads as there are cores, up to two."""
    return (1, 2) if cores() > 1 else (1,)


def race(actions: dict[str, Action], rounds: int, turn_seconds: float) -> dict[str, float]:
    """Median milliseconds of each action, over rounds of turns."""
    turns: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(rounds):
        for name, action in actions.items():
            turns[name].append(_turn(action, turn_seconds))
    return {name: 1e3 * statistics.median(times) for name, times in turns.items()}


def _turn(action: Action, seconds: float) -> float:
    action()  # brings the weights back into the caches
    times: list[float] = []
    while not times or sum(times) < seconds:
        begin = time.perf_counter()
        action()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def report(setting: Any, rows: Sequence[Any]) -> dict[str, Any]:
    """What was measured, for JSON; setting and rows are dataclasses."""
    measured = [asdict(row) for row in rows]
    return {"machine": Machine.here().to_dict(), "setting": asdict(setting), "rows": measured}


def show(
    rows: Sequence[dict[str, Any]], columns: dict[str, str], ours: str, digits: int, title: str
) -> None:
    """Print rows of a report, ratios first. `columns`: headings by key of a row.

    The first row has every ratio; others may lack some.
    """
    others = list(rows[0]["ratios"])
    console.print_table(
        [*columns.values(), *(f"over {name}" for name in others), "ours ms"],
        [
            [
                *(str(row[key]) for key in columns),
                *(ratio(row["ratios"].get(name)) for name in others),
                f"{row['milliseconds'][ours]:.{digits}f}",
            ]
            for row in rows
        ],
        title=title,
    )


def ratio(value: float | None) -> str:
    """As it is printed."""
    return "-" if value is None else f"{value:.2f}x"


def finish(
    measured: Callable[[], dict[str, Any]],
    shown: Callable[[dict[str, Any]], None],
    out: Path | None,
) -> None:
    """What every program does: measure, show, write; an error of ours is one line."""
    try:
        result = measured()
    except QcError as error:
        sys.exit(f"error: {error}")
    shown(result)
    command.write_json(out, result)
