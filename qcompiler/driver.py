"""What every run of passes over a model begins with: its files, its data, and the pass manager."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_graphsurgeon as gs

from qcompiler import ir
from qcompiler.calibration.sources import default_spec
from qcompiler.calibration.supply import Progress, Supply
from qcompiler.errors import FaultError, ModelError
from qcompiler.instruments import DumpInstrument, TargetInstrument, VerifyInstrument
from qcompiler.models import ModelPackage
from qcompiler.passmanager import Fact, Instrument, Pass, PassContext, PassManager
from qcompiler.session import create_session
from qcompiler.targets import Target


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Which data a run may ask for."""

    source: str | Path | None = None
    """See `qcompiler.calibration.sources`; None: what suits the model."""
    samples: int = 16
    length: int = 512
    """Tokens of a sample."""
    seed: int = 0
    held_back: int = 0
    """Samples that are kept from the passes."""
    usual: str | None = None
    """The source that the model has by default, where the result is to be checked on it too."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One model and the passes that are to run over it."""

    package: ModelPackage
    supply: Supply
    manager: PassManager
    context: PassContext

    def run(self) -> tuple[gs.Graph, PassContext]:
        """Read the model and run the passes; the graph, and what the passes learned.

        Where something fails that should not, a model that ONNX Runtime refuses is the reason.
        """
        path = self.package.onnx_path
        try:
            graph = ir.read_model(path, self.package.data_files)
            return self.manager.run(graph, self.context)
        except FaultError as fault:
            try:
                create_session(path, threads=1)
            except ModelError as refused:
                raise refused from fault
            raise


def open_job(
    package: ModelPackage,
    passes: Sequence[Pass],
    *,
    target: Target | None,
    calibration: Calibration,
    exclude: Sequence[str] = (),
    dump_ir: str | Path | None = None,
    given: frozenset[Fact] = frozenset(),
    progress: Progress | None = None,
) -> Job:
    """Check everything that can be known before the model is read.

    `target`: what the plans are held against. `given`: facts that hold of the model already.
    RecipeError for passes in an order that can't work, formats that the target can't run, or a
    pattern that is no regular expression.
    """
    instruments: list[Instrument] = [VerifyInstrument()]
    if target is not None:
        passes = [step.with_groups(target.least_group) for step in passes]
        for step in passes:
            target.require(step.may_plan(), f"layers that pass '{step.name}' plans")
        instruments.append(TargetInstrument(target))
    if dump_ir is not None:
        instruments.append(DumpInstrument(Path(dump_ir)))
    manager = PassManager(passes, instruments, given=given)
    supply = Supply(
        package,
        default_spec(package) if calibration.source is None else calibration.source,
        samples=calibration.samples,
        length=calibration.length,
        seed=calibration.seed,
        held_back=calibration.held_back,
        usual=calibration.usual,
        progress=progress,
    )
    context = PassContext(exclude=tuple(exclude), data=supply, progress=progress)
    return Job(package=package, supply=supply, manager=manager, context=context)
