"""The pass manager: order, facts, context, history, and errors that name the pass."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from qcompiler import ir, passes
from qcompiler.calibration.statistics import Statistics
from qcompiler.errors import CalibrationError, PassError, RecipeError
from qcompiler.formats import Granularity, LayerPlan
from qcompiler.passes import register, registry
from qcompiler.passmanager import (
    Fact,
    Numerics,
    Pass,
    PassContext,
    PassManager,
    PassResult,
)
from qcompiler.recipe import parse_pipeline
from qcompiler.remarks import Remark

GRAPH = '<ir_version: 10, opset_import: ["" : 21]> g (float[2] x) => (float[2] y) { y = Relu(x) }'


def graph() -> gs.Graph:
    return gs.import_onnx(onnx.parser.parse_model(GRAPH))


@dataclass(frozen=True, kw_only=True)
class Planner(Pass):
    """Learns a plan and statistics."""

    name: ClassVar[str] = "planner"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.PLANNED})

    def run(self, graph: gs.Graph, ctx: PassContext) -> PassResult:
        plan = {"fc": LayerPlan(activation=Granularity.PER_TOKEN)}
        return PassResult(graph=graph, changed=False, plan=plan, statistics=Statistics({}, "here"))


@dataclass(frozen=True, kw_only=True)
class Worker(Pass):
    """Runs a function; needs a plan."""

    name: ClassVar[str] = "worker"
    numerics: ClassVar[Numerics] = Numerics.LOSSY
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.PLANNED})

    work: Callable[[gs.Graph, PassContext], None]

    def run(self, graph: gs.Graph, ctx: PassContext) -> PassResult:
        self.work(graph, ctx)
        remark = Remark(layer="fc", applied=True, message="done")
        return PassResult(graph=graph, changed=True, remarks=(remark,))


def test_context_travels_and_history_remembers() -> None:
    seen: list[PassContext] = []
    manager = PassManager([Planner(), Worker(work=lambda _, ctx: seen.append(ctx))])
    first = PassContext(exclude=("head",))
    _, last = manager.run(graph(), first)
    assert seen[0].plan["fc"].activation is Granularity.PER_TOKEN
    assert seen[0].statistics is not None and seen[0].statistics.source == "here"
    assert (last.exclude, first.plan) == (("head",), {}), "contexts are never changed in place"
    names = [(record.name, record.changed) for record in manager.history]
    assert names == [("planner", False), ("worker", True)]
    assert manager.history[1].remarks[0].layer == "fc"
    assert manager.history[1].seconds >= 0


def test_missing_facts_are_found_when_the_pipeline_is_built() -> None:
    with pytest.raises(RecipeError, match=r"'worker' needs a graph that is planned.*before it"):
        PassManager([Worker(work=print)])
    PassManager([Worker(work=print)], given=frozenset({Fact.PLANNED}))
    with pytest.raises(RecipeError, match="put 'plan-activations' before it"):
        PassManager(parse_pipeline("import,canonicalize,quantize-weights"))


@pytest.mark.parametrize(
    ("pipeline", "message"),
    [
        (
            "import,canonicalize,calibrate,rotate",
            "'rotate' can't run on a graph that is calibrated; put it before 'calibrate'",
        ),
        (
            "import,canonicalize,plan-weights,rotate",
            "'rotate' can't run on a graph that is weights-planned; put it before 'plan-weights'",
        ),
        (
            "import,canonicalize,plan-weights,plan-activations,quantize-weights,allocate-bits",
            "'allocate-bits' can't run on a graph that is weights-quantized",
        ),
        (
            "import,canonicalize,plan-weights,plan-activations,quantize-weights,insert-qdq,"
            "lower-ort-custom,correct-bias",
            "'correct-bias' needs a graph that is qdq; put 'insert-qdq' before it",
        ),
    ],
)
def test_passes_too_late_are_found_when_the_pipeline_is_built(pipeline: str, message: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)):
        PassManager(parse_pipeline(pipeline))


def test_a_pass_that_asks_for_data_where_there_is_none_says_what_to_do() -> None:
    asked = {
        "observe": lambda data, graph: data.observe(graph, ["x"]),
        "stream": lambda data, graph: data.stream(graph, ["x"]),
        "probe": lambda data, graph: data.probe(graph, "y", [], []),
    }
    for ask in asked.values():
        worker = Worker(work=lambda graph, ctx, ask=ask: ask(ctx.data, graph))
        with pytest.raises(CalibrationError, match=r"pass 'worker': .* data; give --calib SRC"):
            PassManager([Planner(), worker]).run(graph(), PassContext())


def reference_pipeline(seen: list[gs.Graph | None]) -> list[Pass]:
    """Two lossy passes, a reader of the float graph, and a pass behind it."""

    @dataclass(frozen=True, kw_only=True)
    class Reader(Worker):
        name: ClassVar[str] = "reader"
        reads_reference: ClassVar[bool] = True

    def rename(graph: gs.Graph, ctx: PassContext) -> None:
        seen.append(ctx.reference)
        graph.nodes[0].op = "Neg"

    return [Planner(), Worker(work=rename), Worker(work=rename), Reader(work=rename)]


def test_the_graph_before_the_first_lossy_pass_is_kept_for_its_readers_only() -> None:
    seen: list[gs.Graph | None] = []
    steps = reference_pipeline(seen)
    source = graph()
    weight = ir.constant("w", np.ones(2, np.float32))
    source.nodes[0].inputs.append(weight)
    result, last = PassManager([*steps, steps[1]]).run(source, PassContext())
    kept = seen[2]
    assert kept is not None and [node.op for node in kept.nodes] == ["Relu"]
    assert [node.op for node in result.nodes] == ["Neg"]
    assert np.shares_memory(ir.array(kept.nodes[0].inputs[1]), ir.array(weight))
    assert seen[0] is kept and seen[1] is kept
    assert seen[3] is None and last.reference is None
    seen.clear()
    PassManager(steps[:3]).run(graph(), PassContext())
    assert seen == [None, None], "nobody asks, nothing is kept"


def test_a_reference_needs_something_to_compare() -> None:
    steps = reference_pipeline([])
    with pytest.raises(RecipeError, match=r"'reader' compares with the float graph.*one pipeline"):
        PassManager([steps[0], steps[3]])


def test_errors_of_ours_gain_the_pass_and_keep_their_type() -> None:
    def refuse(graph: gs.Graph, ctx: PassContext) -> None:
        raise CalibrationError("too little data")

    with pytest.raises(CalibrationError, match=r"^pass 'worker': too little data$"):
        PassManager([Planner(), Worker(work=refuse)]).run(graph(), PassContext())


@pytest.mark.parametrize("error", [KeyError("weight"), ValueError("bad"), AttributeError("no")])
def test_surprises_name_the_pass_and_what_had_run(error: Exception) -> None:
    def stumble(graph: gs.Graph, ctx: PassContext) -> None:
        raise error

    with pytest.raises(PassError, match=r"'worker' failed.*already run: planner") as caught:
        PassManager([Planner(), Worker(work=stumble)]).run(graph(), PassContext())
    assert caught.value.__cause__ is error


def test_instruments_run_after_every_pass_in_order() -> None:
    calls: list[tuple[int, str, bool]] = []

    class Watch:
        watches_bodies = False

        def after(self, index: int, step: Pass, result: PassResult, seconds: float) -> None:
            calls.append((index, step.name, result.changed))

    PassManager([Planner(), Worker(work=lambda *_: None)], [Watch()]).run(graph(), PassContext())
    assert calls == [(0, "planner", False), (1, "worker", True)]


def test_passes_from_outside_can_be_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qcompiler.passes._EXTRA", {})
    assert register(Planner) is Planner
    assert registry()["planner"] is Planner
    assert isinstance(parse_pipeline("planner")[0], Planner)


def test_a_pass_is_frozen() -> None:
    with pytest.raises(AttributeError):
        Planner().work = None  # type: ignore[attr-defined]


def test_passes_know_nothing_of_each_other() -> None:
    """What two passes share lies in `analysis` or `numerics`."""
    folder = Path(passes.__file__).parent
    for path in folder.glob("[!_]*.py"):
        text = path.read_text("utf-8")
        assert "qcompiler.passes" not in text, f"{path.name} imports another pass"
