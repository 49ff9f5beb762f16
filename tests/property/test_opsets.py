"""Models of old opsets compute the same at opset 21, alone, one behind the other, in a branch."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from old_operators import OPERATORS, Operator, X, Y
from onnx import TensorProto, helper, numpy_helper

from qcompiler.errors import PassError
from qcompiler.ir.opsets import OLDEST_OPSET, OPSET, converted

RANDOM = np.random.default_rng(0)


def session(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def feeds(model: onnx.ModelProto, branch: bool) -> dict[str, np.ndarray]:
    made: dict[str, np.ndarray] = {}
    for each in model.graph.input:
        kind = each.type.tensor_type
        shape = [dim.dim_value or 3 for dim in kind.shape.dim]
        if kind.elem_type == TensorProto.BOOL:
            made[each.name] = np.array(branch)
        elif each.name == "s":  # what X of unknown rank is brought to
            made[each.name] = np.array([9, 9])
        elif kind.elem_type == TensorProto.INT64:
            made[each.name] = RANDOM.integers(0, 4, shape)
        else:
            made[each.name] = RANDOM.standard_normal(shape).astype(np.float32)
    return made


def require_same(source: onnx.ModelProto) -> None:
    """The converted model is valid, has opset 21, and gives the outputs of its source."""
    result = converted(source)
    assert [entry.version for entry in result.opset_import if not entry.domain] == [OPSET]
    onnx.checker.check_model(result)
    before, after = session(source), session(result)
    for branch in (True, False):
        given = feeds(source, branch)
        for a, b in zip(before.run(None, given), after.run(None, given), strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", OPERATORS)
def test_every_operator_of_every_opset(name: str) -> None:
    operator = OPERATORS[name]
    for opset in range(operator.first, operator.last + 1):
        require_same(operator.model(opset))


def _keeps_shape(operator: Operator) -> bool:
    """Whether it gives what it takes, so that another may follow."""
    if (operator.inputs, operator.outputs) != (X, Y):
        return False
    model = onnx.shape_inference.infer_shapes(operator.model(operator.first))
    dims = model.graph.output[0].type.tensor_type.shape.dim
    return [dim.dim_value for dim in dims] == [2, 3, 4, 4]


CHAINABLE = [operator for operator in OPERATORS.values() if _keeps_shape(operator)]


def chain(operators: list[Operator], opset: int, *, in_branch: bool) -> onnx.ModelProto:
    """The operators one behind the other, in both branches of an If where asked."""
    nodes: list[onnx.NodeProto] = []
    constants: list[TensorProto] = []
    for step, operator in enumerate(operators):
        names = {"x": f"x{step}", "y": f"x{step + 1}"}
        for node in operator.model(opset).graph.node:
            for names_of in (node.input, node.output):
                names_of[:] = [each and names.get(each, f"{each}_{step}") for each in names_of]
            nodes.append(node)
        for name, values in operator.constants.items():
            constants.append(numpy_helper.from_array(np.asarray(values), f"{name}_{step}"))
    last = f"x{len(operators)}"
    inputs = [helper.make_tensor_value_info("x0", TensorProto.FLOAT, [2, 3, 4, 4])]
    if in_branch:
        output = helper.make_tensor_value_info(last, TensorProto.FLOAT, None)
        yes = helper.make_graph(nodes, "yes", [], [output])
        no = helper.make_graph(nodes[:], "no", [], [output], constants)
        nodes = [helper.make_node("If", ["c"], ["y"], then_branch=yes, else_branch=no)]
        inputs.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
        last = "y"
    outputs = [helper.make_tensor_value_info(last, TensorProto.FLOAT, [2, 3, 4, 4])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


@settings(deadline=None, max_examples=60)
@given(st.data(), st.integers(OLDEST_OPSET, OPSET - 1), st.booleans())
def test_operators_behind_each_other(data: st.DataObject, opset: int, in_branch: bool) -> None:
    known = [each for each in CHAINABLE if each.first <= opset <= each.last]
    drawn = data.draw(st.lists(st.sampled_from(known), min_size=1, max_size=5))
    source = chain(drawn, opset, in_branch=in_branch)
    outputs = session(source).run(None, feeds(source, True))
    assume(all(np.abs(np.nan_to_num(each)).max() < 1e6 for each in outputs))
    require_same(source)


@pytest.mark.parametrize("opset", [22, 23, 25])
def test_newer_opsets(opset: int) -> None:
    """They come down to 21 or stay; either way they compute the same."""
    ran = 0
    for operator in (each for each in OPERATORS.values() if each.last == 20):
        source = operator.model(opset)
        try:
            before = session(source)
        except Exception:  # ONNX Runtime lacks it
            continue
        given = feeds(source, True)
        after = session(converted(source)).run(None, given)
        for a, b in zip(before.run(None, given), after, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
        ran += 1
    assert ran > 100


@pytest.mark.parametrize(
    ("opset", "body", "message"),
    [
        (6, "y = Relu(x)", "opset 6, older than 7"),
        (10, "k = Relu(s) y = Resize(x, k)", "opset 10 to 21 .Resize .* scales that are computed"),
        (8, "y = BatchNormalization <spatial = 0> (x, s, s, s, s)", "spatial"),
    ],
)
def test_what_would_change_is_refused(opset: int, body: str, message: str) -> None:
    made = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : {opset}]>'
        f"g (float[1, 3, 4, 4] x, float[k] s) => (float[a, b, c, d] y) {{ {body} }}"
    )
    with pytest.raises(PassError, match=message):
        converted(made)


def test_a_newer_form_of_an_operator_stays() -> None:
    made = onnx.parser.parse_model(
        '<ir_version: 11, opset_import: ["" : 23]>'
        "g (float[4] x) => (float[4] y) {"
        " s = Constant <value_float = 0.5> () z = Constant <value = uint8 {128}> ()"
        " q = QuantizeLinear <precision = 1> (x, s, z) y = DequantizeLinear(q, s, z) }"
    )
    assert [entry.version for entry in converted(made).opset_import] == [23]
