"""Graphs of any number of nodes, one function a shape: what grows in them is what the name says.

Each takes the number of nodes (of what the shape has many of) and gives a model with a few linear
layers, so that there is something to quantize.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WIDTH = 64
NESTED = 20
"""Bodies in one another; protobuf reads no more than a hundred messages in one another."""

_BATCH = ["batch", WIDTH]


class _Builder:
    """Nodes and constants of a graph that begins with the tensor `x` [batch, WIDTH]."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._random = np.random.default_rng(0)

    def add(self, op: str, inputs: Sequence[str], outputs: int = 1, **attrs) -> str:
        """Append a node; the name of its first output, which ends in 0 where there are several."""
        name = f"t{len(self.nodes)}"
        names = [name] if outputs == 1 else [f"{name}_{at}" for at in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, f"n{len(self.nodes)}", **attrs))
        return names[0]

    def constant(self, values: np.ndarray) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def linear(self, x: str, width: int = WIDTH) -> str:
        weight = self._random.standard_normal((width, WIDTH)).astype("f4") / np.sqrt(width)
        return self.add("MatMul", [x, self.constant(weight.astype("f4"))])

    def graph(self, y: str, shape: list | None = None) -> onnx.GraphProto:
        return helper.make_graph(
            self.nodes,
            "large",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, _BATCH)],
            [helper.make_tensor_value_info(y, TensorProto.FLOAT, shape or _BATCH)],
            self.constants,
        )


def _model(graph: onnx.GraphProto) -> onnx.ModelProto:
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def relu_chain(count: int) -> onnx.ModelProto:
    """Relu behind Relu, with four linear layers."""
    made, y = _Builder(), "x"
    for at in range(count):
        y = made.linear(y) if at % max(1, count // 4) == 0 else made.add("Relu", [y])
    return _model(made.graph(y))


def mixed_chain(count: int) -> onnx.ModelProto:
    """Arithmetic, moves, casts and shapes that are computed from shapes, one behind another."""
    made = _Builder()
    y = made.linear("x")
    bias, scale = made.constant(np.full(WIDTH, 0.01, "f4")), made.constant(np.float32(0.999))
    first, rest = made.constant(np.array([0])), made.constant(np.array([-1]))
    while len(made.nodes) < count:
        kept = y
        y = made.add("Mul", [made.add("Add", [y, bias]), scale])
        y = made.add("Transpose", [made.add("Transpose", [y], perm=[1, 0])], perm=[1, 0])
        y = made.add("Cast", [made.add("Cast", [y], to=TensorProto.DOUBLE)], to=TensorProto.FLOAT)
        value = numpy_helper.from_array(np.float32(1.0))
        y = made.add("Mul", [y, made.add("Constant", [], value=value)])
        rows = made.add("Gather", [made.add("Shape", [kept]), first], axis=0)
        y = made.add("Reshape", [y, made.add("Concat", [rows, rest], axis=0)])
    return _model(made.graph(made.linear(y)))


def fan_out(count: int) -> onnx.ModelProto:
    """One tensor that all nodes read, and a tree of sums behind them."""
    made = _Builder()
    y = made.linear("x")
    row = [made.add("Relu", [y]) for _ in range(count // 2)]
    return _model(made.graph(made.linear(_summed(made, row))))


def _summed(made: _Builder, row: list[str]) -> str:
    while len(row) > 1:
        pairs = zip(row[::2], row[1::2], strict=False)
        row = [made.add("Add", list(pair)) for pair in pairs] + row[len(row) // 2 * 2 :]
    return made.add("Mul", [row[0], made.constant(np.float32(1e-4))])


def fan_in(count: int) -> onnx.ModelProto:
    """One node with all others as its inputs."""
    made = _Builder()
    y = made.linear("x")
    row = [made.add("Relu", [y]) for _ in range(count)]
    joined = made.add("Unsqueeze", [made.add("Sum", row), made.constant(np.array([1]))])
    wide = made.add("Concat", [made.add("Unsqueeze", [t, "c1"]) for t in row], axis=1)
    means = [made.add("ReduceMean", [t], axes=[1], keepdims=0) for t in (joined, wide)]
    scaled = made.add("Mul", [made.add("Add", means), made.constant(np.float32(1 / count))])
    return _model(made.graph(made.linear(scaled)))


def one_tensor(count: int) -> onnx.ModelProto:
    """One node that reads the same tensor as often."""
    made = _Builder()
    y = made.linear("x")
    wide = made.add(
        "Concat", [made.add("Unsqueeze", [y, made.constant(np.array([1]))])] * count, axis=1
    )
    return _model(made.graph(made.linear(made.add("ReduceMean", [wide], axes=[1], keepdims=0))))


def initializers(count: int) -> onnx.ModelProto:
    """A chain of nodes with an initializer each."""
    made = _Builder()
    y = made.linear("x")
    for at in range(count):
        y = made.add("Add", [y, made.constant(np.full(WIDTH, 1e-4 * (at % 7 - 3), "f4"))])
    return _model(made.graph(made.linear(y)))


def constants(count: int) -> onnx.ModelProto:
    """Nodes that read a Constant node each."""
    made = _Builder()
    y = made.linear("x")
    for _ in range(count // 2):
        value = numpy_helper.from_array(np.full(WIDTH, 1e-4, "f4"))
        y = made.add("Sub", [y, made.add("Constant", [], value=value)])
    return _model(made.graph(made.linear(y)))


def expressions(count: int) -> onnx.ModelProto:
    """Constants that are computed from constants: one long expression, and many short ones."""
    made = _Builder()
    y, chain = made.linear("x"), made.constant(np.full(WIDTH, 0.5, "f4"))
    for _ in range(count // 2):
        chain = made.add("Abs", [chain])
    y = made.add("Add", [y, chain])
    for _ in range(count // 4):
        y = made.add("Add", [y, made.add("Neg", [made.constant(np.full(WIDTH, 1e-4, "f4"))])])
    return _model(made.graph(made.linear(y)))


def wide_split(count: int) -> onnx.ModelProto:
    """One node with as many outputs, that are used one by one."""
    made = _Builder()
    weight = np.random.default_rng(1).standard_normal((WIDTH, count)).astype("f4") / 8
    y = made.add("MatMul", ["x", made.constant(weight)])
    sizes = made.constant(np.ones(count, np.int64))
    head = made.add("Split", [y, sizes], outputs=count, axis=1)[:-2]
    row = [made.add("Relu", [f"{head}_{at}"]) for at in range(count)]
    wide = made.add("Expand", [_summed(made, row), made.constant(np.array([1, WIDTH]))])
    return _model(made.graph(made.linear(wide)))


def deep_if(count: int) -> onnx.ModelProto:
    """Branches in branches, each with nodes of its own."""
    made = _Builder()
    y = made.linear("x")
    flag = made.add(
        "Greater", [made.add("ReduceSum", [y], keepdims=0), made.constant(np.float32(-1e9))]
    )

    def body(depth: int, x: str) -> onnx.GraphProto:
        nodes: list[onnx.NodeProto] = []
        for at in range(max(1, count // NESTED)):
            nodes.append(helper.make_node("Relu", [x], [f"b{depth}_{at}"], f"b{depth}_{at}"))
            x = nodes[-1].output[0]
        if depth:
            nodes.append(_if(body(depth - 1, x), f"if{depth}"))
            x = nodes[-1].output[0]
        value = helper.make_tensor_value_info(x, TensorProto.FLOAT, _BATCH)
        return helper.make_graph(nodes, f"body{depth}", [], [value])

    def _if(then: onnx.GraphProto, name: str) -> onnx.NodeProto:
        node = helper.make_node("Neg", [y], [f"{name}_else"], f"{name}_neg")
        value = helper.make_tensor_value_info(f"{name}_else", TensorProto.FLOAT, _BATCH)
        other = helper.make_graph([node], f"{name}_else", [], [value])
        return helper.make_node(
            "If", [flag], [f"{name}_y"], name, then_branch=then, else_branch=other
        )

    made.nodes.append(_if(body(NESTED, y), "outer"))
    return _model(made.graph(made.linear("outer_y")))


def many_ifs(count: int) -> onnx.ModelProto:
    """Branches one behind another."""
    made = _Builder()
    y = made.linear("x")
    flag = made.add(
        "Greater", [made.add("ReduceSum", [y], keepdims=0), made.constant(np.float32(-1e9))]
    )
    for at in range(max(1, count // 10)):
        graphs: dict[str, onnx.GraphProto] = {}
        for branch in ("then_branch", "else_branch"):
            nodes, x = [], y
            for step in range(4):
                nodes.append(helper.make_node("Relu", [x], [f"{branch}{at}_{step}"]))
                x = nodes[-1].output[0]
            value = helper.make_tensor_value_info(x, TensorProto.FLOAT, _BATCH)
            graphs[branch] = helper.make_graph(nodes, f"{branch}{at}", [], [value])
        y = made.add("Relu", [made.add("If", [flag], **graphs)])
    return _model(made.graph(made.linear(y)))


def loop_body(count: int) -> onnx.ModelProto:
    """A Loop of three turns whose body has all the nodes, and a linear layer."""
    made, body = _Builder(), _Builder()
    y = made.linear("x")
    x = body.linear("state")
    for _ in range(count):
        x = body.add("Relu", [x])
    for node in body.nodes:
        node.name, node.output[0] = f"body_{node.name}", f"body_{node.output[0]}"
        node.input[0] = node.input[0] if node.input[0] == "state" else f"body_{node.input[0]}"
        if len(node.input) > 1:
            node.input[1] = f"body_{node.input[1]}"
    for tensor in body.constants:
        tensor.name = f"body_{tensor.name}"
    body.nodes.append(helper.make_node("Identity", ["going"], ["goes_on"], "body_again"))
    info = helper.make_tensor_value_info
    inner = helper.make_graph(
        body.nodes,
        "turn",
        [
            info("turn", TensorProto.INT64, []),
            info("going", TensorProto.BOOL, []),
            info("state", TensorProto.FLOAT, _BATCH),
        ],
        [info("goes_on", TensorProto.BOOL, []), info(f"body_{x}", TensorProto.FLOAT, _BATCH)],
        body.constants,
    )
    turns, on = made.constant(np.array(3)), made.constant(np.array(True))
    y = made.add("Loop", [turns, on, y], body=inner)
    return _model(made.graph(made.linear(y)))


def small_layers(count: int) -> onnx.ModelProto:
    """Nodes of which each tenth is a linear layer."""
    made, y = _Builder(), "x"
    for at in range(count):
        y = (
            made.linear(y)
            if at % 10 == 0
            else made.add("Tanh" if at % 10 == 5 else "Relu" if at % 10 == 1 else "Neg", [y])
        )
    return _model(made.graph(y))


def bare_layers(count: int) -> onnx.ModelProto:
    """Linear layers one behind another, a tenth as many, and nothing between them."""
    made, y = _Builder(), "x"
    for _ in range(max(1, count // 10)):
        y = made.linear(y)
    return _model(made.graph(y))


SHAPES: dict[str, Callable[[int], onnx.ModelProto]] = {
    each.__name__: each
    for each in (
        *(relu_chain, mixed_chain, fan_out, fan_in, one_tensor, initializers, constants),
        *(expressions, wide_split, deep_if, many_ifs, loop_body, small_layers, bare_layers),
    )
}
