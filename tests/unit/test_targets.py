"""Targets: what they can't run is said before the long passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import pytest

import qcompiler
from qcompiler import targets
from qcompiler.errors import RecipeError
from qcompiler.formats import GridName, LayerPlan, WeightFormat
from qcompiler.numerics import planes
from qcompiler.passes import register
from qcompiler.passes.plan_weights import PlanWeights
from qcompiler.passmanager import Fact, Numerics, Pass, PassContext, PassResult
from qcompiler.targets import TARGETS

SEVEN = WeightFormat(bits=7, group_size=32)


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.name)
def test_every_target_says_what_it_is(target: targets.Target) -> None:
    assert target.summary and target.minimum_onnxruntime
    assert all(step.name for step in target.passes())
    for bits in (4, 8):
        plan = LayerPlan(weight=WeightFormat(bits=bits, group_size=128))
        assert target.accepts(plan) is None
    assert target.accepts(LayerPlan()) is None, "float runs anywhere"
    refused = target.accepts(LayerPlan(weight=SEVEN))
    assert (refused is None) == (target.widths is None)


def test_op_targets_take_the_widths_that_have_ops() -> None:
    odd = LayerPlan(weight=WeightFormat(bits=4, group_size=48))
    for name in ("ort-custom", "cuda"):
        assert TARGETS[name].widths == frozenset(planes.WIDTHS)
        assert "groups of 48" in str(TARGETS[name].accepts(odd))


@pytest.mark.parametrize(
    ("bits", "size", "taken_by"),
    [
        (2, 16, {"ort-custom", "cuda", "qdq"}),
        (2, 64, set(TARGETS)),
        (3, 64, {"ort-custom", "cuda", "qdq"}),
        (6, 16, {"ort-custom", "cuda", "qdq"}),
        (4, 16, set(TARGETS)),
        (4, 32, set(TARGETS)),
        (8, None, set(TARGETS)),
    ],
)
def test_which_formats_each_takes(bits: int, size: int | None, taken_by: set[str]) -> None:
    plan = LayerPlan(weight=WeightFormat(bits=bits, group_size=size))
    assert {name for name, target in TARGETS.items() if target.accepts(plan) is None} == taken_by


@pytest.mark.parametrize("name", ["gaussian", "learned", "fp4"])
def test_grids_need_the_op_library_or_qdq(name: GridName) -> None:
    form = WeightFormat.planned(4, 32, symmetric=False, grid=name)
    said = {key: target.accepts(LayerPlan(weight=form)) for key, target in TARGETS.items()}
    refused = said.pop("ort-contrib")
    assert refused == f"it has no kernels for the grid '{name}', only for 'even'"
    assert set(said.values()) == {None}


@pytest.mark.parametrize(
    ("grid", "target", "planned"),
    [
        ("gaussian", "ort-contrib", "int4 g32 asym"),
        ("gaussian", "ort-custom", "int4 g32 gaussian"),
        ("learned", "ort-contrib", "int4 g32 asym"),
        ("learned", "qdq", "int4 g32 learned"),
        ("fp4", "ort-contrib", "int4 g32 fp4"),  # asked for by name: refused, not replaced
    ],
)
def test_grids_that_only_gain_give_way(grid: GridName, target: str, planned: str) -> None:
    step = PlanWeights(grid=grid, group_size=32, symmetric=False).suited(TARGETS[target])
    assert str(step.linear) == planned


def test_candidates_are_the_best_of_their_bytes() -> None:
    for name, least in (("ort-custom", "int2 g32 gaussian"), ("ort-contrib", "int2 g32 asym")):
        forms = TARGETS[name].candidates()
        found = [str(form) for form in forms]
        assert found[0] == least and {"int4 g32 asym", "int8 sym"} <= set(found)
        sizes = [form.nbytes(512, 512) for form in forms]
        assert sizes == sorted(set(sizes))


def test_an_unknown_target_is_guessed() -> None:
    with pytest.raises(RecipeError, match="did you mean 'ort-custom'"):
        targets.get("ort-costum")


@dataclass(frozen=True, kw_only=True)
class Narrow(Pass):
    """Plans seven bits for every layer, and says so beforehand if asked."""

    name: ClassVar[str] = "narrow"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.WEIGHTS_PLANNED})

    says: bool = True

    def may_plan(self) -> list[LayerPlan]:
        return [LayerPlan(weight=SEVEN)] if self.says else []

    def run(self, graph, ctx: PassContext) -> PassResult:
        plan = {name: replace(each, weight=SEVEN) for name, each in ctx.plan.items()}
        return PassResult(graph=graph, changed=False, plan=plan)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    made = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 21]>\n'
        "g (float[N, 64] x) => (float[N, 32] y) { [fc] y = MatMul(x, w) }"
    )
    values = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)
    made.graph.initializer.append(onnx.numpy_helper.from_array(values, "w"))
    onnx.save(made, str(tmp_path / "m.onnx"))
    return tmp_path / "m.onnx"


def recipe_with(folder: Path, says: bool) -> Path:
    path = folder / "narrow.toml"
    path.write_text(
        'base = "rtn"\n[[pass]]\nname = "narrow"\nafter = "plan-weights"\n'
        f"says = {str(says).lower()}\n"
    )
    return path


@pytest.mark.parametrize(
    ("says", "message"),
    [
        (True, r"can't run layers that pass 'narrow' plans, planned as int7 g32 sym: .*7 bits"),
        (False, r"pass 'narrow': target 'ort-custom' can't run 'fc', planned as int7 g32 sym"),
    ],
)
def test_a_plan_is_refused_before_anything_is_rounded(
    model: Path, monkeypatch: pytest.MonkeyPatch, says: bool, message: str
) -> None:
    monkeypatch.setattr("qcompiler.passes._EXTRA", {})
    register(Narrow)
    read: list[Path] = []
    monkeypatch.setattr("qcompiler.ir.read_model", _noted(read))
    with pytest.raises(RecipeError, match=message):
        qcompiler.compile(model, recipe=recipe_with(model.parent, says))
    assert bool(read) is not says, "what a pass says is known before the model is read"
    assert {path.name for path in model.parent.iterdir()} == {"m.onnx", "narrow.toml"}


def _noted(read: list[Path]):
    from qcompiler.ir.io import read_model

    def noting(path: Path, files: Sequence[Path]):
        read.append(path)
        return read_model(path, files)

    return noting
