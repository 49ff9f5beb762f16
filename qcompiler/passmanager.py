"""Passes and the manager that runs them.

A pass is a frozen dataclass whose fields are its recipe options; the manager knows only
instruments (verify, dump, hold plans against a target) and checks facts when the pipeline is built,
not halfway through.
"""

from __future__ import annotations

import enum
import time
from abc import ABC, abstractmethod
from collections.abc import (
    Callable,
    Collection,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from qcompiler.errors import CalibrationError, FaultError, QcError, RecipeError
from qcompiler.formats import LayerPlan
from qcompiler.ir.bodies import bodies_of, holds_matrices
from qcompiler.ir.structures import copied
from qcompiler.ir.walk import graphs
from qcompiler.numerics.parallel import one_blas_thread
from qcompiler.patterns import matches, require_pattern
from qcompiler.remarks import Remark

if TYPE_CHECKING:
    from qcompiler.analysis.inventory import Inventory
    from qcompiler.calibration.statistics import Statistics
    from qcompiler.targets import Target


class Numerics(enum.Enum):
    """What a pass may do to the outputs: EXACT passes keep them to 1e-5 relative."""

    EXACT = "exact"
    LOSSY = "lossy"


class Fact(enum.Enum):
    """What is known about a graph between passes."""

    IMPORTED = "imported"
    CANONICAL = "canonical"
    WEIGHTS_PLANNED = "weights-planned"
    CALIBRATED = "calibrated"
    PLANNED = "planned"
    WEIGHTS_QUANTIZED = "weights-quantized"
    QDQ = "qdq"
    LOWERED = "lowered"


Array = np.ndarray[Any, Any]


class Data(Protocol):
    """Calibration data as passes ask for it."""

    def observe(self, graph: gs.Graph, names: Sequence[str]) -> Statistics:
        """Statistics of tensors: `calibration.observe`."""
        ...

    def stream(
        self, graph: gs.Graph, names: Sequence[str], share: float = 1.0
    ) -> Iterator[Sequence[Array]]:
        """Values of tensors in turn, over a share of the data: `calibration.stream`."""
        ...

    def gradients(
        self, graph: gs.Graph, names: Sequence[str], output: str, most: int | None = None
    ) -> Iterator[tuple[str, Sequence[Array]]]:
        """Gradients at tensors of a probe of the divergence at an output: `autodiff`."""
        ...

    def probe(
        self,
        graph: gs.Graph,
        output: str,
        names: Sequence[str],
        variants: Iterable[Mapping[str, Array]],
    ) -> Iterator[list[Array]]:
        """An output over a little of the data, for other values of constants:
        `calibration.probe`."""
        ...


class NoData:
    """Where there is none: CalibrationError for whoever asks."""

    def observe(self, graph: gs.Graph, names: Sequence[str]) -> Statistics:
        """Never returns."""
        raise self._missing()

    def stream(
        self, graph: gs.Graph, names: Sequence[str], share: float = 1.0
    ) -> Iterator[Sequence[Array]]:
        """Never returns."""
        raise self._missing()

    def gradients(
        self, graph: gs.Graph, names: Sequence[str], output: str, most: int | None = None
    ) -> Iterator[tuple[str, Sequence[Array]]]:
        """Never returns."""
        raise self._missing()

    def probe(
        self,
        graph: gs.Graph,
        output: str,
        names: Sequence[str],
        variants: Iterable[Mapping[str, Array]],
    ) -> Iterator[list[Array]]:
        """Never returns."""
        raise self._missing()

    def _missing(self) -> CalibrationError:
        return CalibrationError("it needs calibration data; give --calib SRC")


@dataclass(frozen=True, kw_only=True)
class PassContext:
    """What a pass may look at beside the graph; a pass returns changes, it never writes here."""

    exclude: tuple[str, ...] = ()
    statistics: Statistics | None = None
    plan: Mapping[str, LayerPlan] = field(default_factory=dict)
    data: Data = field(default_factory=NoData)
    reference: gs.Graph | None = None
    """The graph before the first LOSSY pass, for passes that ask for it (`Pass.reads_reference`).
    Constants are shared: what it adds to the memory is what later passes would have freed."""
    borrowed: frozenset[str] = frozenset()
    """Operators in ONNX's own domain that ONNX lacks and the source has: only these may be left."""
    progress: Callable[[str, int, int], None] | None = None

    def __post_init__(self) -> None:
        """RecipeError for a pattern that is no regular expression."""
        for pattern in self.exclude:
            require_pattern(pattern)

    def tick(self, what: str, done: int, total: int) -> None:
        """Report progress of long work inside a pass."""
        if self.progress is not None:
            self.progress(what, done, total)


def excluding_pattern(ctx: PassContext, layer: str) -> str | None:
    """The first of the user's patterns that keeps a layer in float, None if there is none."""
    return next((pattern for pattern in ctx.exclude if matches(pattern, layer)), None)


def require_matches(ctx: PassContext, names: Collection[str]) -> None:
    """RecipeError for a pattern of the user's that matches no name: a slip, surely."""
    for pattern in ctx.exclude:
        if not any(matches(pattern, name) for name in names):
            raise RecipeError(
                f"no layer has a name that matches '{pattern}'; `qc inspect -a` lists the names"
            )


@dataclass(frozen=True, kw_only=True)
class PassResult:
    """The graph after a pass, and what the pass learned."""

    graph: gs.Graph
    changed: bool
    remarks: tuple[Remark, ...] = ()
    statistics: Statistics | None = None
    plan: Mapping[str, LayerPlan] | None = None
    inventory: Inventory | None = None
    """What the source stores; of the pass that reads it as it is."""


@dataclass(frozen=True, kw_only=True)
class Pass(ABC):
    """One rewrite of the graph. Fields of a subclass are its recipe options."""

    name: ClassVar[str]
    numerics: ClassVar[Numerics]
    requires: ClassVar[frozenset[Fact]] = frozenset()
    provides: ClassVar[frozenset[Fact]] = frozenset()
    forbids: ClassVar[frozenset[Fact]] = frozenset()
    """What must not hold yet: it would no longer be true, or it makes the pass useless."""
    revokes: ClassVar[frozenset[Fact]] = frozenset()
    """What no longer holds afterwards."""
    reads_reference: ClassVar[bool] = False
    """Whether it compares with the graph before the first LOSSY pass, `PassContext.reference`."""
    runs_in_bodies: ClassVar[bool] = True
    """Whether it does to the bodies of If, Loop and Scan what it does to a graph."""

    @abstractmethod
    def run(self, graph: gs.Graph, ctx: PassContext) -> PassResult:
        """Rewrite `graph` in place and return it with remarks."""

    def without_data(self) -> Pass | None:
        """What takes its place where there is no calibration data; None for nothing."""
        return self

    def suited(self, target: Target) -> Pass:
        """The pass, which plans nothing that a target has no kernels for where something else will
        do: no smaller groups, and no grids that only make the most of the same bytes."""
        return self

    def may_plan(self) -> Sequence[LayerPlan]:
        """Plans it may make whatever the graph is, for a target to refuse before anything runs."""
        return ()


class Instrument(Protocol):
    """Something that watches every pass."""

    watches_bodies: ClassVar[bool]
    """Whether it is called for each pass over the body of an If, Loop or Scan, too; where not, it
    is called once more when all of them are in their places."""

    def after(self, index: int, step: Pass, result: PassResult, seconds: float) -> None:
        """Called when a pass has run."""
        ...


@dataclass(frozen=True, kw_only=True)
class Record:
    """One line of a pipeline's history."""

    name: str
    changed: bool
    seconds: float
    remarks: tuple[Remark, ...]
    inventory: Inventory | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        remarks = [remark.to_dict() for remark in self.remarks]
        inventory = None if self.inventory is None else self.inventory.to_dict()
        return {**vars(self), "remarks": remarks, "inventory": inventory}


class PassManager:
    """Runs passes in order; errors name the pass and what had run before it."""

    def __init__(
        self,
        passes: Sequence[Pass],
        instruments: Sequence[Instrument] = (),
        *,
        given: frozenset[Fact] = frozenset(),
    ) -> None:
        """`given`: facts that already hold. RecipeError if a pass would miss a fact it requires, or
        meet one it forbids."""
        self._passes = tuple(passes)
        self._given = given
        imports = [index for index, step in enumerate(passes) if Fact.IMPORTED in step.provides]
        self._imported = imports[-1] + 1 if imports else 0
        self._instruments = tuple(instruments)
        known = set(given)
        for step in self._passes:
            _check_facts(step, known)
            known = (known - step.revokes) | step.provides
        self._referred = _referred(self._passes)
        self.history: list[Record] = []

    def run(self, graph: gs.Graph, ctx: PassContext) -> tuple[gs.Graph, PassContext]:
        """Run every pass; returns the final graph and the context with what the passes learned."""
        with one_blas_thread():
            learned = replace(ctx, borrowed=_borrowed(graph))
            graph, learned = self._run(graph, learned, range(self._imported))
            rest = range(self._imported, len(self._passes))
            source = copied(graph) if rest and _has_layers_below(graph) else None
            graph, learned = self._run(graph, learned, rest)
            if source is not None:
                self._run_over_bodies(graph, source, ctx)
            return graph, learned

    def _run_over_bodies(self, graph: gs.Graph, source: gs.Graph, ctx: PassContext) -> None:
        """Compile what If, Loop and Scan hold; `source` is the graph before it was rewritten."""
        from qcompiler.bodies import run_over_bodies  # noqa: PLC0415  (it runs a manager)

        passes = self._passes[self._imported :]
        start = time.perf_counter()
        inner = [each for each in self._instruments if each.watches_bodies]
        with self._faults_named("compiling what If, Loop and Scan hold"):
            found = run_over_bodies(
                graph, source, passes, ctx, instruments=inner, given=self._given | {Fact.IMPORTED}
            )
        for records in found:
            _add(self.history, records)
        if found:
            remarks = tuple(each for records in found for r in records for each in r.remarks)
            result = PassResult(graph=graph, changed=True, remarks=remarks)
            seconds = time.perf_counter() - start
            for instrument in self._instruments:
                if not instrument.watches_bodies:
                    instrument.after(len(self._passes), passes[-1], result, seconds)

    @contextmanager
    def _faults_named(self, what: str) -> Generator[None, None, None]:
        """FaultError, naming the culprit, for what nobody raised on purpose."""
        try:
            yield
        except (QcError, MemoryError, OSError):  # the caller explains these
            raise
        except Exception as error:  # graphsurgeon, onnx and numpy share no base class
            ran = ", ".join(record.name for record in self.history) or "none"
            raise FaultError(
                f"{what} failed on this model ({type(error).__name__}: {error}); passes already "
                f"run: {ran}. Leave it out of the recipe or report the model"
            ) from error

    def _run(
        self, graph: gs.Graph, ctx: PassContext, indices: range
    ) -> tuple[gs.Graph, PassContext]:
        for index in indices:
            step = self._passes[index]
            start = time.perf_counter()
            if index == self._referred.start:
                ctx = replace(ctx, reference=copied(graph))
            try:
                with self._faults_named(f"pass '{step.name}'"):
                    result = step.run(graph, ctx)
                    seconds = time.perf_counter() - start
                    for instrument in self._instruments:
                        instrument.after(index, step, result, seconds)
            except FaultError:
                raise
            except QcError as error:
                raise type(error)(f"pass '{step.name}': {error}") from error
            graph = result.graph
            if result.statistics is not None:
                ctx = replace(ctx, statistics=result.statistics)
            if result.plan is not None:
                ctx = replace(ctx, plan=result.plan)
            if index + 1 == self._referred.stop:  # nobody needs its weights any more
                ctx = replace(ctx, reference=None)
            self.history.append(
                Record(
                    name=step.name,
                    changed=result.changed,
                    seconds=seconds,
                    remarks=result.remarks,
                    inventory=result.inventory,
                )
            )
        return graph, ctx


def _has_layers_below(graph: gs.Graph) -> bool:
    """Whether a body has anything to quantize."""
    return any(holds_matrices(node.attrs[name]) for node, name in bodies_of(graph))


def _add(history: list[Record], records: Sequence[Record]) -> None:
    """Add what passes said of a body to what the same passes said before."""
    at = 0
    for record in records:
        at = next(i for i in range(at, len(history)) if history[i].name == record.name)
        old = history[at]
        history[at] = replace(
            old,
            changed=old.changed or record.changed,
            seconds=old.seconds + record.seconds,
            remarks=old.remarks + record.remarks,
        )
        at += 1


def _borrowed(graph: gs.Graph) -> frozenset[str]:
    """The operators of a graph in ONNX's own domain that ONNX does not know."""
    ours = {str(node.op) for each in graphs(graph) for node in each.nodes if not node.domain}
    return frozenset(op for op in ours if not onnx.defs.has(op))


def _check_facts(step: Pass, known: Collection[Fact]) -> None:
    """RecipeError where a pass can't stand behind those that gave the facts `known`."""
    missing = [fact for fact in step.requires if fact not in known]
    if missing:
        raise RecipeError(
            f"pass '{step.name}' needs a graph that is {_listed(missing)}; "
            f"put {_providers(missing)} before it"
        )
    early = [fact for fact in step.forbids if fact in known]
    if early:
        raise RecipeError(
            f"pass '{step.name}' can't run on a graph that is {_listed(early)}; "
            f"put it before {_providers(early)}"
        )


def _listed(facts: Iterable[Fact]) -> str:
    return ", ".join(sorted(fact.value for fact in facts))


def _referred(passes: Sequence[Pass]) -> range:
    """The passes during which the float graph is kept: from the first LOSSY one to its last reader.

    RecipeError if a reader comes before there is anything to compare.
    """
    exact = [step.numerics is Numerics.EXACT for step in passes]
    first = exact.index(False) if False in exact else len(passes)
    readers = [index for index, step in enumerate(passes) if step.reads_reference]
    if not readers:
        return range(-1, -1)
    if readers[0] <= first:
        raise RecipeError(
            f"pass '{passes[readers[0]].name}' compares with the float graph, and no pass before "
            "it rounds; run it in one pipeline with those that do, from the float model on"
        )
    return range(first, readers[-1] + 1)


def _providers(facts: Iterable[Fact]) -> str:
    from qcompiler.passes import registry  # noqa: PLC0415  (the registry imports this module)

    known = registry()
    groups = [
        " or ".join(f"'{name}'" for name, cls in known.items() if fact in cls.provides)
        for fact in sorted(facts, key=list(Fact).index)
    ]
    return ", ".join(group or "a pass that provides it" for group in groups)
