"""Speed of one layer in ONNX Runtime: our op against ONNX Runtime's own, side by side.

    python runtime/bench/nodes.py [--quick] [--out FILE]

All sessions are alive at once and take turns, round after round; medians are reported. The pool
threads of a session stop spinning when its run ends, or they would steal the next one's core.
Weights stay in the caches as far as they fit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import command
import contest
import node_models
import numpy as np
import onnxruntime as ort
from contest import open_session, race
from node_models import Layer

GROUPS = (32, 128)


@dataclass(frozen=True)
class Setting:
    """What to time. A turn is at least `turn_seconds` long and its first run does not count."""

    K: int = 4096
    N: int = 4096
    rows: tuple[int, ...] = (1, 4, 16, 128)
    threads: tuple[int, ...] = (1, 2)
    rounds: int = 11
    turn_seconds: float = 0.02


QUICK = Setting(K=256, N=256, rows=(1, 4), threads=(1,), rounds=3, turn_seconds=0.0005)


@dataclass(frozen=True)
class Row:
    """One line of the result. `milliseconds` are medians by op; `ratios` are theirs over ours."""

    threads: int
    rows: int
    group_size: int
    ratios: dict[str, float]
    milliseconds: dict[str, float]


def contenders(K: int, N: int) -> dict[str, bytes]:
    """Models by name; those that depend on the group size end in it."""
    layers = {group: Layer.random(K, N, group) for group in GROUPS}
    models: dict[str, bytes] = {}
    for group, layer in layers.items():
        models[f"MatMulW4A8 {group}"] = node_models.ours(layer)
        models[f"MatMulNBits {group}"] = node_models.matmul_nbits(layer)
    models["DynamicQuantizeMatMul"] = node_models.dynamic_quantize_matmul(layers[GROUPS[0]])
    models["MatMul fp32"] = node_models.float_model(layers[GROUPS[0]])
    return models


def measure(setting: Setting) -> list[Row]:
    """Time every op for all numbers of threads and rows."""
    models = contenders(setting.K, setting.N)
    results: list[Row] = []
    for threads in setting.threads:
        sessions = {name: open_session(model, threads) for name, model in models.items()}
        for rows in setting.rows:
            X = np.random.default_rng(rows).normal(size=(rows, setting.K)).astype(np.float32)
            actions = {name: _action(s, X, setting.N) for name, s in sessions.items()}
            times = race(actions, setting.rounds, setting.turn_seconds)
            results += [_row(threads, rows, group, times) for group in GROUPS]
    return results


def _action(session: ort.InferenceSession, X: np.ndarray, N: int) -> Callable[[], None]:
    """A run on buffers that are there already, so that the op is what is timed."""
    binding = session.io_binding()
    binding.bind_ortvalue_input("X", ort.OrtValue.ortvalue_from_numpy(X))
    Y = ort.OrtValue.ortvalue_from_numpy(np.zeros((X.shape[0], N), np.float32))
    binding.bind_ortvalue_output("Y", Y)
    return lambda: session.run_with_iobinding(binding)


def _row(threads: int, rows: int, group: int, times: dict[str, float]) -> Row:
    """The result for one group size: our op, and what it is compared with."""
    chosen: dict[str, float] = {}
    for name, value in times.items():
        op, _, suffix = name.partition(" ")
        if not suffix.isdigit():
            chosen[name] = value
        elif int(suffix) == group:
            chosen[op] = value
    ours = chosen["MatMulW4A8"]
    ratios = {op: value / ours for op, value in chosen.items() if op != "MatMulW4A8"}
    return Row(threads, rows, group, ratios, chosen)


def report(setting: Setting) -> dict[str, Any]:
    """Measure, for JSON."""
    return contest.report(setting, measure(setting))


def show(result: dict[str, Any]) -> None:
    """Print a result, ratios first."""
    columns = {"threads": "threads", "rows": "M", "group_size": "group"}
    title = f"MatMulW4A8, K={result['setting']['K']} N={result['setting']['N']}"
    contest.show(result["rows"], columns, "MatMulW4A8", 3, title)


def default_setting(quick: bool) -> Setting:
    """The full one asks for as many threads as there are cores, up to two."""
    return QUICK if quick else Setting(threads=contest.thread_counts())


def main() -> None:
    """Entry point."""
    parser = command.parser(__doc__)
    command.add_out(parser)
    arguments = parser.parse_args()
    setting = default_setting(arguments.quick)
    contest.finish(lambda: report(setting), show, arguments.out)


if __name__ == "__main__":
    main()
