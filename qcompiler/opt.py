"""Run any pipeline of passes over a model by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_graphsurgeon as gs

from qcompiler import targets
from qcompiler.calibration.supply import Progress
from qcompiler.driver import Calibration, open_job
from qcompiler.errors import RecipeError
from qcompiler.models import open_package
from qcompiler.passmanager import Fact, Record
from qcompiler.recipe import did_you_mean, parse_pipeline


@dataclass(frozen=True, kw_only=True)
class OptResult:
    """The graph after the last pass, and what every pass did."""

    graph: gs.Graph
    history: tuple[Record, ...]


def run_pipeline(
    model: str | Path,
    pipeline: str,
    *,
    calibration: Calibration = Calibration(),  # noqa: B008  (frozen)
    assume: Sequence[str] = (),
    target: str | None = None,
    exclude: Sequence[str] = (),
    dump_ir: Path | None = None,
    output: Path | None = None,
    progress: Progress | None = None,
) -> OptResult:
    """Run `pipeline` (`name{option=value,...},name,...`) over an ONNX file or model folder.

    `assume` names facts that already hold of the model, such as "qdq" for one that was compiled
    with that target. With a `target`, plans it can't run are refused, and its passes follow those
    of the pipeline. The graph is verified after every pass. `output` is where the caller will
    write it: never over the source.
    """
    passes = parse_pipeline(pipeline)
    wanted = None if target is None else targets.get(target)
    given = frozenset(map(_fact, assume))
    package = open_package(model)
    if output is not None:
        package.refuse_overwriting(output)
    job = open_job(
        package,
        passes if wanted is None else passes + wanted.passes(),
        target=wanted,
        calibration=calibration,
        exclude=exclude,
        dump_ir=dump_ir,
        given=given,
        progress=progress,
    )
    graph, _ = job.run()
    return OptResult(graph=graph, history=tuple(job.manager.history))


def _fact(name: str) -> Fact:
    known = [fact.value for fact in Fact]
    if name not in known:
        raise RecipeError(f"--assume {name}: no such fact; {did_you_mean(name, known)}")
    return Fact(name)
