"""Random operators draw the same numbers wherever a graph is evaluated."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from qcompiler.calibration.draws import draws, fix_seeds
from qcompiler.calibration.probe import probe
from qcompiler.calibration.stream import stream
from qcompiler.ir.io import import_proto

MODEL = """<ir_version: 10, opset_import: ["" : 21]>
g (float[n, 8] x) => (float[n, 8] y) {
    a = RandomNormalLike (x)
    b = RandomUniformLike (x)
    s = Add (a, b)
    t = Mul (s, w)
    y = Add (t, x)
}"""
FEEDS = [{"x": np.zeros((3, 8), np.float32)} for _ in range(2)]


@pytest.fixture
def model() -> onnx.ModelProto:
    made = onnx.parser.parse_model(MODEL)
    made.graph.initializer.append(numpy_helper.from_array(np.ones(8, np.float32), "w"))
    return made


def test_streams_agree_wherever_they_are_cut(model: onnx.ModelProto) -> None:
    (whole,) = stream(import_proto(model), ["y"], FEEDS)
    *_, cut = stream(import_proto(model), ["a", "t", "y"], FEEDS)
    np.testing.assert_array_equal(np.stack(list(whole)), np.stack(list(cut)))
    assert not np.array_equal(whole[0], whole[1]), "samples draw their own"


def test_variants_see_the_same_numbers(model: onnx.ModelProto) -> None:
    w = np.ones(8, np.float32)
    one, two, three = probe(
        import_proto(model), "y", ["w"], FEEDS, [{"w": w}, {"w": 2 * w}, {"w": w}]
    )
    for first, doubled, again in zip(one, two, three, strict=True):
        np.testing.assert_array_equal(first, again)
        np.testing.assert_allclose(2 * first, doubled, rtol=1e-6)


def test_seeds_differ_and_given_ones_stay(model: onnx.ModelProto) -> None:
    model.graph.node[0].attribute.append(onnx.helper.make_attribute("seed", 7.0))
    assert draws(import_proto(model)) and fix_seeds(model)
    seeds = [attribute.f for node in model.graph.node[:2] for attribute in node.attribute]
    assert seeds[0] == 7.0 and seeds[1] not in (0.0, 7.0)
