"""What every run of passes over a model begins with: its files, its data, and the pass manager.

Models of one folder begin together: what one hands to another is data for that one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_graphsurgeon as gs

from qcompiler import ir
from qcompiler.calibration.handed import Handed, linked, shares_caches
from qcompiler.calibration.sources import arrays_in, default_spec, require_source, suits
from qcompiler.calibration.supply import Progress, Supply
from qcompiler.errors import CalibrationError, FaultError, ModelError
from qcompiler.feeds import Signature
from qcompiler.instruments import DumpInstrument, TargetInstrument, VerifyInstrument
from qcompiler.models import ModelPackage
from qcompiler.passmanager import Fact, Instrument, Pass, PassContext, PassManager
from qcompiler.patterns import matches, require_pattern
from qcompiler.protos import all_nodes
from qcompiler.recipe import options_of
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
    handed: Handed | None = None
    """What other models of its folder give to this one."""
    others: frozenset[str] = frozenset()
    """Inputs of these, for which an .npz may hold arrays."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One model and the passes that are to run over it."""

    package: ModelPackage
    passes: tuple[Pass, ...]
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
        passes = [step.suited(target) for step in passes]
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
        handed=calibration.handed,
        others=calibration.others,
    )
    context = PassContext(exclude=tuple(exclude), data=supply, progress=progress)
    return Job(
        package=package, passes=tuple(passes), supply=supply, manager=manager, context=context
    )


def open_jobs(
    packages: Sequence[ModelPackage],
    passes: Sequence[Pass],
    *,
    target: Target | None,
    calibration: Calibration,
    preferred: str | None,
    exclude: Sequence[str] = (),
    dump_ir: str | Path | None = None,
    progress: Progress | None = None,
) -> list[Job]:
    """Jobs of models that belong together, those first that hand something to others.

    The calibration source is for the models that it suits; the others, and all without one, have
    what they have by default. `preferred` is the source that a recipe would have. Dumps go to a
    folder for each. Beside what `open_job` raises, CalibrationError for a source that suits none.
    """
    if len(packages) == 1:
        (package,) = packages
        usual = default_spec(package, preferred)
        source = usual if calibration.source is None else calibration.source
        data = replace(calibration, source=source, usual=usual)
        return [
            open_job(
                package,
                _for_one_of(packages, package, passes),
                target=target,
                calibration=data,
                exclude=exclude,
                dump_ir=dump_ir,
                progress=progress,
            )
        ]
    jobs: dict[str, Job] = {}
    for package, data in _shared(packages, calibration, preferred, jobs):
        name = package.onnx_path.name
        jobs[name] = open_job(
            package,
            _for_one_of(packages, package, passes),
            target=target,
            calibration=data,
            exclude=_patterns_for(package, packages, exclude),
            dump_ir=None if dump_ir is None else Path(dump_ir) / package.onnx_path.stem,
            progress=None if progress is None else _named(progress, name),
        )
    return list(jobs.values())


def _shared(
    packages: Sequence[ModelPackage],
    calibration: Calibration,
    preferred: str | None,
    jobs: Mapping[str, Job],
) -> Iterator[tuple[ModelPackage, Calibration]]:
    """The models in order with the data of each; `jobs` are those of the models before."""
    source = calibration.source
    if source is not None:
        require_source(source)
    brought = frozenset[str]() if source is None else arrays_in(source)
    others = frozenset(spec.name for each in packages for spec in Signature.of(each).inputs)
    ordered = [
        (package, {name: link for name, link in links.items() if name not in brought})
        for package, links in linked(packages)
    ]
    suited = [source is not None and suits(source, *each) for each in ordered]
    if source is not None and not any(suited):
        names = ", ".join(package.onnx_path.name for package, _ in ordered)
        raise CalibrationError(
            f"calibration data '{source}' suits none of {names}; without --calib each has its "
            "default"
        )
    for (package, links), suitable in zip(ordered, suited, strict=True):
        usual = default_spec(package, preferred, links)
        givers = {link.giver.onnx_path.name for link in links.values()}
        yield (
            package,
            replace(
                calibration,
                source=source if suitable else usual,
                usual=usual,
                handed=Handed(links, {n: jobs[n].supply for n in givers}) if links else None,
                others=others,
            ),
        )


def _patterns_for(
    package: ModelPackage, packages: Sequence[ModelPackage], exclude: Sequence[str]
) -> list[str]:
    """The patterns for names of a model's nodes, without those that are for other models alone."""
    for pattern in exclude:
        require_pattern(pattern)
    names = {each.onnx_path: [n.name for n in all_nodes(each.outline)] for each in packages}

    def meant(pattern: str, nodes: Sequence[str]) -> bool:
        return any(matches(pattern, name) for name in nodes)

    return [
        pattern
        for pattern in exclude
        if meant(pattern, names[package.onnx_path])
        or not any(meant(pattern, nodes) for nodes in names.values())
    ]


def _for_one_of(
    packages: Sequence[ModelPackage], package: ModelPackage, passes: Sequence[Pass]
) -> Sequence[Pass]:
    """The passes for a model among others, which may read what it caches; so may its branches."""
    return [_within(step) for step in passes] if shares_caches(package, packages) else passes


def _within(step: Pass) -> Pass:
    """A pass that leaves values alone that other models read."""
    if not options_of(step).get("through_cache"):
        return step
    return replace(step, through_cache=False)  # type: ignore[call-arg]


def _named(progress: Progress, name: str) -> Progress:
    return lambda phase, done, total: progress(f"{name}: {phase}", done, total)
