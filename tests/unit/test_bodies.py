"""Bodies of If, Loop and Scan: taken out and put back, fed, and compiled like any graph."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from command_line import qc
from odd_models import K, model_of, normal

import qcompiler
from qcompiler import ir, ops
from qcompiler.calibration.recorded import TURNS, recorded
from qcompiler.calibration.supply import FeedData
from qcompiler.ir.bodies import bodies_of, lift
from qcompiler.ir.printer import print_graph
from qcompiler.numerics.rounding import sqnr_db

W, V = normal(K, K), normal(K, K)

BRANCH = """
g (float[n, 64] x, bool c) => (float[n, 64] y) {
    h = Relu(x)
    [outer] p = MatMul(h, w)
    q = If (c) <
      then_branch = yes () => (float[n, 64] a) {
        w_q4 = Tanh(h)
        [same_weight] a0 = MatMul(w_q4, w)
        a = Add(a0, p)
      },
      else_branch = no () => (float[n, 64] b) { [other] b0 = MatMul(h, v) b = Neg(b0) }
    >
    y = Add(p, q)
}"""

LOOP = """
g (float[n, 64] x) => (float[n, 64] y, float[5, n, 64] all) {
    five = Constant <value = int64 {5}> ()
    go = Constant <value = bool {1}> ()
    [start] s = MatMul(x, w)
    y, all = Loop (five, go, s) <
      body = turn (int64 i, bool on, float[n, 64] state)
        => (bool more, float[n, 64] next, float[n, 64] seen) {
        more = Identity(on)
        [step] m = MatMul(state, v)
        r = Add(m, state)
        next = Tanh(r)
        seen = Add(next, x)
      }
    >
}"""

SCAN = """
g (float[n, 64] x) => (float[n, 64] y) {
    zero = ConstantOfShape <value = float[1] {0}> (size)
    last, y = Scan <num_scan_inputs = 1,
      body = turn (float[64] state, float[64] row) => (float[64] next, float[64] out) {
        two = Unsqueeze(row, axis)
        [cell] m = MatMul(two, v)
        one = Squeeze(m, axis)
        sum = Add(one, state)
        next = Tanh(sum)
        out = Identity(next)
      }> (zero, x)
}"""

NESTED = """
g (float[n, 64] x, bool c) => (float[n, 64] y) {
    two = Constant <value = int64 {2}> ()
    y = If (c) <
      then_branch = yes () => (float[n, 64] a) {
        a = Loop (two, , x) <
          body = turn (int64 i, bool on, float[n, 64] state) => (bool more, float[n, 64] next) {
            more = Identity(on)
            [inmost] m = MatMul(state, v)
            next = Tanh(m)
          }
        >
      },
      else_branch = no () => (float[n, 64] b) { b = Neg(x) }
    >
}"""

X = {"x": normal(128, K, std=1.0)}
MODELS = {
    "branch": (BRANCH, {"w": W, "v": V}, [X | {"c": np.array(c)} for c in (True, False)]),
    "loop": (LOOP, {"w": W, "v": V}, [X]),
    "scan": (SCAN, {"v": V, "size": np.array([64]), "axis": np.array([0])}, [X]),
    "nested": (NESTED, {"v": V}, [X | {"c": np.array(c)} for c in (True, False)]),
}
LAYERS = {
    "branch": {"outer", "same_weight", "other"},
    "loop": {"start", "step"},
    "scan": {"cell"},
    "nested": {"inmost"},
}


def saved(kind: str, folder: Path) -> Path:
    body, weights, feeds = MODELS[kind]
    path = folder / "m.onnx"
    onnx.save(model_of(body, **weights), str(path))
    for index, feed in enumerate(feeds):
        np.savez(folder / f"feed_{index}.npz", **feed)
    return path


def run(path: Path, feed: dict, *, library: bool = False) -> list[np.ndarray]:
    options = ort.SessionOptions()
    if library:
        options.register_custom_ops_library(str(qcompiler.library_path()))
    return ort.InferenceSession(str(path), options, ["CPUExecutionProvider"]).run(None, feed)


@pytest.mark.parametrize("kind", MODELS)
def test_out_and_back_changes_nothing(
    tmp_path: Path, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    graph = ir.read_model(saved(kind, tmp_path))
    before = print_graph(graph)
    fresh = ir.Namer(graph)
    for node, attribute in bodies_of(graph):
        body = lift(node.attrs[attribute], graph, fresh)
        body.put_back(body.graph)
    assert print_graph(graph) == before
    assert "same name" not in "".join(capfd.readouterr())


def test_names_around_bodies_are_looked_up_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = ir.read_model(saved("branch", tmp_path))
    walked: list[object] = []
    plain = qcompiler.ir.graph.names_below

    def noting(each: object) -> list[str]:
        walked.append(each)
        return plain(each)

    monkeypatch.setattr("qcompiler.ir.graph.names_below", noting)
    fresh = ir.Namer(graph)
    places = list(bodies_of(graph))
    for node, attribute in places:
        body = lift(node.attrs[attribute], graph, fresh)
        body.put_back(body.graph)
    assert len(places) > 1 and len(walked) == 1


def test_a_body_taken_out_shares_nothing(tmp_path: Path) -> None:
    graph = ir.read_model(saved("branch", tmp_path))
    node, attribute = next(iter(bodies_of(graph)))
    body = lift(node.attrs[attribute], graph, ir.Namer(graph))
    assert {tensor.name for tensor in body.graph.inputs} == {"h", "p"} == body.around.keys()
    assert body.shared.keys() == {"w"}
    outside = {id(each) for each in graph.tensors().values()}
    assert not outside & {id(each) for each in body.graph.tensors().values()}


def test_names_given_in_a_body_stay_free_outside(tmp_path: Path) -> None:
    graph = ir.read_model(saved("branch", tmp_path))
    node, attribute = next(iter(bodies_of(graph)))
    body = lift(node.attrs[attribute], graph, ir.Namer(graph))
    inner = next(each for each in body.graph.nodes if each.op == "Tanh")
    inner.name, inner.outputs[0].name = "outer", "y"
    body.put_back(body.graph)
    assert (inner.name, inner.outputs[0].name) == ("outer_1", "y_1")


def test_what_branches_are_given(tmp_path: Path) -> None:
    graph = ir.read_model(saved("branch", tmp_path))
    feeds = MODELS["branch"][2]
    for node, attribute in bodies_of(graph):
        found = recorded(graph, node, attribute, FeedData(feeds, "test"))
        assert len(found) == 1, "the sample that takes the branch"
        np.testing.assert_array_equal(found[0]["h"], np.maximum(X["x"], 0))
    assert recorded(graph, node, attribute, FeedData(feeds[:1], "test")) == []


def test_what_the_turns_of_loops_are_given(tmp_path: Path) -> None:
    graph = ir.read_model(saved("loop", tmp_path))
    ((node, attribute),) = bodies_of(graph)
    found = recorded(graph, node, attribute, FeedData([X], "test"))
    assert [int(feed["i"]) for feed in found] == list(range(5)) and TURNS >= 5
    state = X["x"] @ W
    for feed in found:
        np.testing.assert_allclose(feed["state"], state, atol=1e-5)
        np.testing.assert_array_equal(feed["x"], X["x"])
        state = np.tanh(state @ V + state)


def test_what_the_turns_of_scans_are_given(tmp_path: Path) -> None:
    graph = ir.read_model(saved("scan", tmp_path))
    ((node, attribute),) = bodies_of(graph)
    found = recorded(graph, node, attribute, FeedData([X], "test"))
    state = np.zeros(K, np.float32)
    assert len(found) == TURNS
    for row, feed in zip(X["x"], found, strict=False):
        np.testing.assert_array_equal(feed["row"], row)
        np.testing.assert_allclose(feed["state"], state, atol=1e-5)
        state = np.tanh(row @ V + state)


@pytest.mark.parametrize(
    ("kind", "recipe"), [*((kind, "rtn") for kind in MODELS), ("branch", "w4a8"), ("scan", "w4a8")]
)
def test_layers_in_bodies_become_ops(tmp_path: Path, kind: str, recipe: str) -> None:
    model, out = saved(kind, tmp_path), tmp_path / "out.onnx"
    told = qc("compile", model, "-r", recipe, "-o", out, "--calib", tmp_path, "--json")
    assert told.exit_code == 0, told.output
    rows = {row["name"]: row for row in json.loads(told.stdout)["layers"]}
    layers = {name for name, row in rows.items() if row["kind"] == "linear"}
    assert layers == LAYERS[kind]
    for name in layers:
        assert ops.width_of(rows[name]["op"]), rows[name]
    onnx.checker.check_model(str(out), full_check=True)
    floor = 10 if kind == "loop" else 14  # five turns add their noise up
    for feed in MODELS[kind][2]:
        wanted = run(model, feed)
        for library in (True, False):
            for one, other in zip(wanted, run(out, feed, library=library), strict=True):
                assert sqnr_db(one, other) > floor


def test_gptaq_in_a_body_loses_less_than_nearest(tmp_path: Path) -> None:
    model = saved("loop", tmp_path)
    feed = {"x": np.random.default_rng(1).standard_normal((256, K)).astype(np.float32)}
    np.savez(tmp_path / "feed_0.npz", **feed)
    noise = {}
    for rounding in ("nearest", "gptaq"):
        out = tmp_path / f"{rounding}.onnx"
        setting = f"quantize-weights.rounding={rounding}"
        told = qc("compile", model, "-o", out, "--calib", tmp_path, "--set", setting, "--json")
        assert told.exit_code == 0, told.output
        rows = {row["name"]: row for row in json.loads(told.stdout)["layers"]}
        assert ("gptaq" in rows["step"]["scheme"]) == (rounding == "gptaq")
        noise[rounding] = sqnr_db(run(model, feed)[0], run(out, feed, library=True)[0])
    assert noise["gptaq"] > noise["nearest"]


def test_a_branch_that_never_runs_is_rounded_to_nearest_and_says_so(tmp_path: Path) -> None:
    model = saved("branch", tmp_path)
    (tmp_path / "feed_1.npz").unlink()
    out = tmp_path / "out.onnx"
    calib = ("--calib", tmp_path / "feed_0.npz")
    told = qc("compile", model, "-o", out, *calib, "--json")
    assert told.exit_code == 0, told.output
    rows = {row["name"]: row for row in json.loads(told.stdout)["layers"]}
    assert "never runs on the calibration data" in rows["other"]["reason"]
    assert rows["same_weight"]["reason"] is None
    assert ops.width_of(rows["other"]["op"])


def test_layers_of_bodies_are_excluded_by_name(tmp_path: Path) -> None:
    model, out = saved("branch", tmp_path), tmp_path / "out.onnx"
    told = qc("compile", model, "-r", "rtn", "-o", out, "--nodes-to-exclude", "other", "--json")
    assert told.exit_code == 0, told.output
    rows = {row["name"]: row for row in json.loads(told.stdout)["layers"]}
    assert "excluded by pattern 'other'" in rows["other"]["reason"]
    assert rows["same_weight"]["quantized"]
    told = qc("compile", model, "-r", "rtn", "-o", out, "--nodes-to-exclude", "nothing")
    assert told.exit_code == 1 and "no layer has a name that matches 'nothing'" in told.output
