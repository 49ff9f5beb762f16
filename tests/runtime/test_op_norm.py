"""The norms in ONNX Runtime: with the library, without it, and numpy agree."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from op_checks import BOTH, run_into
from single_node import with_function

from qcompiler import ops
from qcompiler.numerics import reference

CENTERS = pytest.mark.parametrize("centers", [True, False], ids=["layer", "rms"])


def norm_model(centers, *, outputs=("Y", "sum"), leading=("a", "b"), **attributes):
    op_type = "AddLayerNormalization" if centers else "AddRMSNormalization"
    inputs = ["X", "skip", "weight", *(["bias"] if centers else [])]
    node = helper.make_node(
        op_type,
        inputs,
        list(outputs),
        name="norm",
        domain=ops.DOMAIN,
        **({"epsilon": 1e-5} | attributes),
    )
    shapes = {name: [*leading, "n"] if name in ("X", "skip") else [f"{name}_n"] for name in inputs}
    shapes["skip"] = [f"skip_{each}" for each in shapes["skip"]]

    def infos(forms):
        return [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in forms.items()]

    graph = helper.make_graph(
        [node], "norm", infos(shapes), infos({name: shapes["X"] for name in outputs if name})
    )
    return with_function(graph, op_type)


def feeds(centers, shape):
    rng = np.random.default_rng(0)
    names = {"X": shape, "skip": shape, "weight": shape[-1:]}
    names |= {"bias": shape[-1:]} if centers else {}
    return {name: rng.normal(size=each).astype(np.float32) for name, each in names.items()}


@BOTH
@CENTERS
@pytest.mark.parametrize("outputs", [("Y", "sum"), ("Y", "")], ids=str)
def test_agrees_with_reference(session, centers, outputs, library):
    model = norm_model(centers, outputs=outputs)
    onnx.checker.check_model(model, full_check=True)
    runner = session(model, library=library)
    for shape in ((1, 1, 576), (3, 50, 33), (2, 1, 384)):
        fed = feeds(centers, shape)
        wanted = reference.add_norm(fed["X"], fed["skip"], fed["weight"], fed.get("bias"), 1e-5)
        for found, value in zip(runner.run(None, fed), wanted, strict=False):
            np.testing.assert_allclose(found, value, rtol=2e-5, atol=1e-5)


@CENTERS
def test_no_rows(session, centers):
    y, total = session(norm_model(centers)).run(None, feeds(centers, (0, 3, 32)))
    assert y.shape == total.shape == (0, 3, 32)


@CENTERS
def test_rows_that_are_not_finite(session, centers):
    fed = feeds(centers, (1, 3, 40))
    clean = session(norm_model(centers)).run(["Y"], fed)[0]
    fed["X"][0, 1, 39] = np.nan
    y = session(norm_model(centers)).run(["Y"], fed)[0]
    assert np.isnan(y[0, 1]).all()
    np.testing.assert_array_equal(y[0, [0, 2]], clean[0, [0, 2]])


@CENTERS
def test_bits_do_not_depend_on_where_tensors_lie(session, centers):
    """Compilers make several loops of one, for memory that may overlap and that may not."""
    runner = session(norm_model(centers, outputs=("Y", ""), leading=()), threads=1)
    rng = np.random.default_rng(0)
    for n in (*range(4, 16), 23, 31):
        for _ in range(20):
            fed = {name: rng.normal(size=n) for name in feeds(centers, (n,))}
            fed = {name: value.astype(np.float32) for name, value in fed.items()}
            results = set()
            for gap in (0, 100):
                memory = np.zeros(3 * n + 2 * gap, np.float32)
                x, skip, y = (memory[at * (n + gap) :][:n] for at in range(3))
                x[:], skip[:] = fed["X"], fed["skip"]
                results.add(run_into(runner, fed | {"X": x, "skip": skip}, [y])[0].tobytes())
            assert len(results) == 1, n


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"skip": np.zeros((1, 2, 31), np.float32)}, "X has shape [1, 2, 32] and skip [1, 2, 31]"),
        ({"weight": np.zeros(31, np.float32)}, "weight has shape [31], expected [32]"),
        ({"bias": np.zeros(33, np.float32)}, "bias has shape [33], expected [32]"),
    ],
)
def test_malformed_inputs_are_refused(session, change, message):
    runner = session(norm_model(True))
    with pytest.raises(Exception, match="AddLayerNormalization node 'norm': ") as caught:
        runner.run(None, feeds(True, (1, 2, 32)) | change)
    assert message in str(caught.value)


@pytest.mark.parametrize("epsilon", [-1.0, float("nan"), float("inf")])
def test_malformed_attributes_are_refused(session, epsilon):
    with pytest.raises(Exception, match="epsilon="):
        session(norm_model(False, epsilon=epsilon))
