"""Golden tests: what each pass makes of a small graph, written out in full.

Add a case: write `options:` and `input:` to tests/golden/<pass>/<case>.qir, run
`pytest tests/golden --update-golden`, and read what it wrote.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from golden_case import Case, generate, read_case, same_text
from onnx import shape_inference

from qcompiler.analysis.layers import find_layers
from qcompiler.calibration.probe import probe
from qcompiler.calibration.statistics import Statistics, TensorStatistics
from qcompiler.calibration.supply import FeedData
from qcompiler.errors import QcError
from qcompiler.feeds import as_taken
from qcompiler.formats import Granularity, LayerPlan, WeightFormat
from qcompiler.instruments import VerifyInstrument
from qcompiler.ir import to_model
from qcompiler.ir.io import import_proto
from qcompiler.ir.printer import print_graph
from qcompiler.passes import registry
from qcompiler.passmanager import Fact, NoData, Numerics, Pass, PassContext, PassManager
from qcompiler.recipe import parse_pipeline

FOLDER = Path(__file__).parent
CASES = sorted(FOLDER.glob("*/*.qir"))
EXACT_TOLERANCE = 1e-5


def context_of(case: Case, graph) -> PassContext:
    """The pass context a case describes."""
    tensors = graph.tensors()
    plan = {}
    for line in case.context.get("plan", []):
        layer, granularity, *rest = line.split()
        names = [each.name for each in find_layers(graph)[0]] if layer == "*" else [layer]
        form = " ".join(word for word in rest if word != "equalize")
        chosen = LayerPlan(
            activation=Granularity(granularity),
            equalize="equalize" in rest,
            weight=WeightFormat.parse(form) if form else None,
        )
        plan |= dict.fromkeys(names, chosen)
    statistics = None
    if case.context.get("statistics"):
        found = {}
        for tensor, calls in case.statistics().items():
            shape = (int(tensors[tensor].shape[-1]),)
            made = {kind: generate(call, shape).astype(np.float32) for kind, call in calls.items()}
            peak = made.get("absmax", np.ones(shape, np.float32))
            found[tensor] = TensorStatistics(
                made.get("minimum", -peak),
                made.get("maximum", peak),
                made.get("mean_square", np.ones(shape, np.float32)),
                tokens=8,
            )
        statistics = Statistics(found, "golden")
    batches = int(case.context.get("calibrate", ["0"])[0])

    return PassContext(
        exclude=tuple(case.context.get("exclude", [])),
        statistics=statistics,
        plan=plan,
        data=Batches(case, batches) if batches else NoData(),
    )


class Batches:
    """Calibration data of a case: batches of random feeds."""

    def __init__(self, case: Case, count: int) -> None:
        self.case, self.count = case, count

    def feeds(self):
        model = self.case.model()
        return [self.case.feeds(model, seed) for seed in range(self.count)]

    def data(self):
        return FeedData(self.feeds(), "golden")

    def observe(self, graph, names):
        return self.data().observe(graph, names)

    def stream(self, graph, names, share=1.0):
        return self.data().stream(graph, names, share)

    def gradients(self, graph, names, output, most=None):
        return self.data().gradients(graph, names, output, most)

    def probe(self, graph, output, names, variants):
        return probe(graph, output, names, self.feeds(), variants)


def import_case(case: Case):
    """The graph of a case, with shapes as every pass but 'import' may expect them."""
    model = case.model()
    if not case.pipeline.startswith("import"):
        model = shape_inference.infer_shapes(model, data_prop=True)
    return import_proto(model)


def learned(before: PassContext, after: PassContext) -> str:
    """Plans and statistics the passes added or changed, one a line."""
    lines = [
        f"plan: {name} {plan.activation.value}{' equalize' if plan.equalize else ''}"
        f"{f' {plan.weight}' if plan.weight else ''}"
        for name, plan in after.plan.items()
        if before.plan.get(name) != plan
    ]
    if after.statistics is not None and after.statistics is not before.statistics:
        for name, item in after.statistics.tensors.items():
            ranges = {"minimum": item.minimum, "maximum": item.maximum}
            if np.array_equal(item.minimum, -item.maximum):
                ranges = {"absmax": item.absmax}
            said = [
                f"{kind}=[{', '.join(f'{value:.5g}' for value in values[:8])}]"
                for kind, values in {**ranges, "mean_square": item.mean_square}.items()
            ]
            lines.append(f"statistics: {name} tokens={item.tokens} {' '.join(said)}")
    return "\n".join(lines)


def run_model(
    model: onnx.ModelProto, feeds: dict[str, np.ndarray], *, narrowed: bool = False
) -> list[np.ndarray]:
    """Outputs of a model in stock ONNX Runtime, without the op library.

    `narrowed`: it may take float16 for float32.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    # By default ONNX Runtime fuses a 4-bit DequantizeLinear into a MatMul with int8 activations.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, as_taken(session, feeds) if narrowed else feeds)


def check(case: Case, name: str, actual: str) -> None:
    """Compare a section with what was got."""
    expected = case.sections.get(name, "").strip()
    actual = actual.strip()
    if not same_text(actual, expected):
        # Plain equality for pytest's diff; a difference within tolerance does not get here.
        assert actual == expected, f"section '{name}' differs; if right, use --update-golden"


@pytest.mark.parametrize("path", CASES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_golden(path: Path, request: pytest.FixtureRequest) -> None:
    case = read_case(path)
    update = request.config.getoption("--update-golden")
    if case.kind == "reject":
        with pytest.raises(QcError) as caught:
            transform(case)
        if update:
            case.write(expected=str(caught.value), remarks="", learned="")
        else:
            check(case, "expected", str(caught.value))
        return
    before, texts, changed, steps = transform(case)
    if case.kind == "nomatch":
        assert not changed, "a nomatch case must leave the graph as it is"
        assert texts["expected"] == before.text
        texts["expected"] = ""
    check_numerics(case, before.model, steps)
    if update:
        case.write(**texts)
        return
    for name, text in texts.items():
        check(case, name, text)


class Snapshot:
    """A graph as text and as a model."""

    def __init__(self, graph) -> None:
        self.text = print_graph(graph, float_digests=False)
        self.model = to_model(graph)


def known_facts(passes: Sequence[Pass], ctx: PassContext) -> frozenset[Fact]:
    """What the passes require of the graph of a case, and what its context says."""
    given = frozenset[Fact]().union(*(step.requires for step in passes))
    given -= frozenset[Fact]().union(*(step.provides for step in passes))
    return given | {Fact.CALIBRATED} if ctx.statistics is not None else given


@dataclass
class Recorder:
    """Keeps the model after every pass; one that says it changed nothing left it as it was.

    That is why the verifier does not look at such a one.
    """

    watches_bodies: ClassVar[bool] = False

    before: str
    steps: list[tuple[Pass, onnx.ModelProto]] = field(default_factory=list)

    def after(self, index, step, result, seconds) -> None:
        after = print_graph(result.graph)
        assert result.changed or after == self.before, f"'{step.name}' did change the graph"
        self.before = after
        self.steps.append((step, to_model(result.graph)))


def transform(case: Case):
    """Run the pipeline of a case: the graph before, the sections, whether it changed, the steps."""
    graph = import_case(case)
    before = Snapshot(graph)
    ctx = context_of(case, graph)
    recorder = Recorder(print_graph(graph))
    passes = parse_pipeline(case.pipeline)
    manager = PassManager(passes, [VerifyInstrument(), recorder], given=known_facts(passes, ctx))
    graph, after = manager.run(graph, ctx)
    remarks = [
        f"{'+' if remark.applied else '-'} {remark.layer}: {remark.message}"
        for record in manager.history
        for remark in record.remarks
    ]
    texts = {
        "expected": print_graph(graph, float_digests=False),
        "remarks": "\n".join(remarks),
        "learned": learned(ctx, after),
    }
    return before, texts, any(record.changed for record in manager.history), recorder.steps


def check_numerics(case: Case, model: onnx.ModelProto, steps) -> None:
    """Stock ONNX Runtime runs every graph, and exact passes keep the outputs."""
    feeds = case.feeds(model, seed=7)
    outputs = run_model(model, feeds)
    for step, changed in steps:
        narrowed = step.name == "half-precision"
        results = run_model(changed, feeds, narrowed=narrowed)
        assert len(outputs) == len(results)
        for before, after in zip(outputs, results, strict=True):
            kinds = (before.dtype, after.dtype)
            assert before.shape == after.shape
            assert before.dtype == after.dtype or (narrowed and kinds == (np.float32, np.float16))
            if np.issubdtype(after.dtype, np.floating):
                assert np.isfinite(after).all()
            if step.numerics is Numerics.EXACT:
                close(after.astype(np.float64), before.astype(np.float64))
        outputs = results


def close(actual: np.ndarray, expected: np.ndarray) -> None:
    """Equal to 1e-5 of the largest value."""
    scale = max(float(np.abs(expected).max(initial=0.0)), 1e-6)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=EXACT_TOLERANCE * scale)


def test_every_pass_has_a_rewrite_and_a_negative_case() -> None:
    kinds: dict[str, set[str]] = {}
    for path in CASES:
        kinds.setdefault(path.parent.name, set()).add(read_case(path).kind)
    assert set(kinds) == set(registry())
    lacking = [name for name, found in kinds.items() if "rewrite" not in found or len(found) < 2]
    assert not lacking, f"passes without a rewrite or a nomatch/reject case: {lacking}"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("min=0.5 max=2", "min=0.50001 max=2", True),
        ("min=0.5 max=2", "min=0.51 max=2", False),
        ("K=576", "K=577", False),
        ("K=100000", "K=100001", False),
        ("sha256:12ab34cd", "sha256:12ab34ce", False),
        ("%a_1 = Neg(%b)", "%a_2 = Neg(%b)", False),
        ("[1, 2]", "[1, 2, 3]", False),
    ],
)
def test_texts_agree_to_a_tolerance_in_fractions_only(one: str, other: str, same: bool) -> None:
    assert same_text(one, other) is same
