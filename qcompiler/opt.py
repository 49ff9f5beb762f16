"""Run any pipeline of passes over a model by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_graphsurgeon as gs

from qcompiler import ir
from qcompiler.calibration.sources import default_spec
from qcompiler.calibration.supply import Supply
from qcompiler.compiler import check_target
from qcompiler.errors import RecipeError
from qcompiler.instruments import DumpInstrument, VerifyInstrument
from qcompiler.models import open_package
from qcompiler.passmanager import Fact, Instrument, PassContext, PassManager, Record
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
    calib: str | None = None,
    calib_samples: int = 16,
    calib_length: int = 512,
    seed: int = 0,
    assume: Sequence[str] = (),
    target: str = "ort-custom",
    exclude: Sequence[str] = (),
    dump_ir: Path | None = None,
    output: Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> OptResult:
    """Run `pipeline` (`name{option=value,...},name,...`) over an ONNX file or model folder.

    `assume` names facts that already hold of the model, such as "qdq" for one that was compiled
    with that target. The graph is verified after every pass. `output` is where the caller will
    write it: never over the source.
    """
    check_target(target)
    given = frozenset(map(_fact, assume))
    instruments: list[Instrument] = [VerifyInstrument()]
    if dump_ir is not None:
        instruments.append(DumpInstrument(dump_ir))
    manager = PassManager(parse_pipeline(pipeline), instruments, given=given)
    package = open_package(model)
    if output is not None:
        package.refuse_overwriting(output)

    source = Supply(
        package,
        calib or default_spec(package),
        samples=calib_samples,
        length=calib_length,
        seed=seed,
        progress=progress,
    )
    context = PassContext(
        target=target,
        exclude=tuple(exclude),
        observe=source.observe,
        stream=source.stream,
        probe=source.probe,
        progress=progress,
    )
    graph, _ = manager.run(ir.read_model(package.onnx_path), context)
    return OptResult(graph=graph, history=tuple(manager.history))


def _fact(name: str) -> Fact:
    known = [fact.value for fact in Fact]
    if name not in known:
        raise RecipeError(f"--assume {name}: no such fact; {did_you_mean(name, known)}")
    return Fact(name)
