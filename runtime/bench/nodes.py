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

from qcompiler.formats import WeightFormat

OURS, NBITS, DYNAMIC, FLOAT = "Linear", "MatMulNBits", "DynamicQuantizeMatMul", "MatMul fp32"
FORMS = (
    *(WeightFormat(bits=4, group_size=size) for size in (16, 32, 128)),
    *(WeightFormat(bits=bits, group_size=32) for bits in (2, 3, 6)),
    WeightFormat(bits=8, group_size=128),
)


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
    bits: int
    group_size: int
    ratios: dict[str, float]
    milliseconds: dict[str, float]


def contenders(K: int, N: int) -> dict[str, bytes]:
    """Models by name; those that depend on the form of weights end in it."""
    models: dict[str, bytes] = {}
    for form in FORMS:
        layer = Layer.random(K, N, form)
        models[f"{OURS} {form}"] = node_models.ours(layer)
        if node_models.has_matmul_nbits(form):
            models[f"{NBITS} {form}"] = node_models.matmul_nbits(layer)
    first = Layer.random(K, N, FORMS[0])
    models[DYNAMIC] = node_models.dynamic_quantize_matmul(first)
    models[FLOAT] = node_models.float_model(first)
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
            results += [_row(threads, rows, form, times) for form in FORMS]
    return results


def _action(session: ort.InferenceSession, X: np.ndarray, N: int) -> Callable[[], None]:
    """A run on buffers that are there already, so that the op is what is timed."""
    binding = session.io_binding()
    binding.bind_ortvalue_input("X", ort.OrtValue.ortvalue_from_numpy(X))
    Y = ort.OrtValue.ortvalue_from_numpy(np.zeros((X.shape[0], N), np.float32))
    binding.bind_ortvalue_output("Y", Y)
    return lambda: session.run_with_iobinding(binding)


def _row(threads: int, rows: int, form: WeightFormat, times: dict[str, float]) -> Row:
    """The result for one form of weights: our op, and what it is compared with."""
    names = {OURS: f"{OURS} {form}", NBITS: f"{NBITS} {form}", DYNAMIC: DYNAMIC, FLOAT: FLOAT}
    chosen = {op: times[name] for op, name in names.items() if name in times}
    ratios = {op: value / chosen[OURS] for op, value in chosen.items() if op != OURS}
    return Row(threads, rows, form.bits, form.group_size, ratios, chosen)


def report(setting: Setting) -> dict[str, Any]:
    """Measure, for JSON."""
    return contest.report(setting, measure(setting))


def show(result: dict[str, Any]) -> None:
    """Print a result, ratios first."""
    columns = {"threads": "threads", "rows": "M", "bits": "bits", "group_size": "group"}
    title = f"{OURS}, K={result['setting']['K']} N={result['setting']['N']}"
    contest.show(result["rows"], columns, OURS, 3, title)


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
