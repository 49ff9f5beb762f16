"""canonicalize: one form of a linear layer.

Gemm(X, W, b)  transB, alpha, beta    ->  MatMul(X, W') + Add(b')
MatMul(X, Transpose(W))               ->  MatMul(X, W')
MatMul(X, Transpose(E)), Gather(E, i) ->  MatMul(X, E'), Gather(Transpose(E'), i)    tied
MatMul(X, Cast(W))                    ->  MatMul(X, W')
MatMul(X2, W), MatMul(X1, W)          ->  one initializer, however often it is read
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from qcompiler import ir
from qcompiler.analysis.layers import FLOAT_TYPES, Layer, is_weight, layer_of
from qcompiler.passmanager import Fact, Numerics, Pass, PassContext, PassResult

_SHARED_MIN = 4096  # bytes from which equal initializers are worth finding


@dataclass(frozen=True, kw_only=True)
class Canonicalize(Pass):
    """Turn Gemm, transposed, cast, tied and duplicated weights into plain MatMuls by a constant."""

    name: ClassVar[str] = "canonicalize"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.IMPORTED})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.CANONICAL})

    def run(self, graph: gs.Graph, ctx: PassContext) -> PassResult:
        namer = ir.Namer(graph)
        changed = _share_duplicates(graph)
        weights: dict[tuple[Any, ...], tuple[Any, Any]] = {}
        for node in list(graph.nodes):
            if node.domain:
                continue
            if node.op == "Gemm":
                changed |= _gemm(graph, node, namer, weights)
            elif node.op == "MatMul":
                changed |= _fold_cast(node, namer)
                changed |= _fold_transpose(graph, node, namer)
        if changed:
            ir.remove_dead(graph)
        return PassResult(graph=graph, changed=changed)


def _share_duplicates(graph: gs.Graph) -> bool:
    """Point readers of byte-equal weights at one of them."""
    changed = False
    seen: dict[tuple[Any, ...], list[Any]] = {}
    by_size: dict[tuple[Any, ...], list[Any]] = {}
    for tensor in graph.tensors().values():
        if is_weight(tensor) and ir.nbytes(tensor) >= _SHARED_MIN:
            by_size.setdefault((ir.elem_type(tensor), tuple(tensor.shape)), []).append(tensor)
    for key, tensors in by_size.items():
        for tensor in tensors if len(tensors) > 1 else []:
            # A cheap probe first: most equal-shaped weights differ in their first row.
            values = ir.array(tensor)
            probe = (*key, values[:1].tobytes())
            alike = seen.setdefault(probe, [])
            twin = next((each for each in alike if _digest(each) == _digest(tensor)), None)
            if twin is None:
                alike.append(tensor)
                continue
            for node in ir.consumers(tensor):
                ir.rewire_input(node, tensor, twin)
            changed = True
    return changed


def _digest(tensor: Any) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(ir.array(tensor)).data).digest()


def _gemm(
    graph: gs.Graph,
    node: gs.Node,
    namer: ir.Namer,
    weights: dict[tuple[Any, ...], tuple[Any, Any]],
) -> bool:
    """Gemm -> MatMul + Add; False where the form does not allow it.

    `weights` holds the (source, [K, N]) weights made so far, so that shared ones stay shared.
    """
    layer = layer_of(graph, node)
    if layer is None or not is_weight(layer.weight):
        return False
    x, weight, bias, output = layer.x, layer.weight, layer.bias, node.outputs[0]
    key = (id(weight), layer.axes, float(node.attrs.get("alpha", 1.0)))
    if key not in weights:
        weights[key] = (weight, _plain_weight(layer, namer))
    shift = layer.shift()
    product = output
    node.outputs.clear()
    if shift is not None and bias is not None:
        product = gs.Variable(namer(f"{output.name}_product"), output.dtype, output.shape)
        ir.add_node(
            graph,
            "Add",
            namer(f"{node.name}_bias"),
            [product, ir.constant(namer(f"{bias.name}_n"), shift)],
            [output],
        )
    ir.add_node(graph, "MatMul", node.name, [x, weights[key][1]], [product])
    node.name = namer(f"{node.name}_gemm")
    node.inputs.clear()
    return True


def _plain_weight(layer: Layer, namer: ir.Namer) -> Any:
    """The weight as [K, N], not scaled; itself where that is what it is."""
    if layer.is_plain:
        return layer.weight
    return ir.constant(namer(f"{layer.weight.name}_kn"), layer.matrix())


def _fold_cast(node: gs.Node, namer: ir.Namer) -> bool:
    """A weight kept in another float type and cast on every run."""
    cast = ir.producer(node.inputs[1], "Cast")
    if cast is None or not is_weight(cast.inputs[0]):
        return False
    target = cast.attrs["to"]
    target = (
        int(target)
        if isinstance(target, int)
        else onnx.helper.np_dtype_to_tensor_dtype(np.dtype(target))
    )
    if target not in FLOAT_TYPES or len(ir.consumers(cast.outputs[0])) != 1:
        return False
    weight = cast.inputs[0]
    dtype = onnx.helper.tensor_dtype_to_np_dtype(target)
    node.inputs[1] = ir.constant(namer(f"{weight.name}_cast"), ir.array(weight).astype(dtype))
    return True


def _fold_transpose(graph: gs.Graph, node: gs.Node, namer: ir.Namer) -> bool:
    """MatMul by the transpose of a constant; other readers of the constant see it unchanged."""
    transpose = ir.producer(node.inputs[1], "Transpose")
    if transpose is None or not is_weight(transpose.inputs[0]):
        return False
    if list(transpose.attrs.get("perm", [1, 0])) != [1, 0]:
        return False
    source = transpose.inputs[0]
    weight = ir.constant(namer(f"{source.name}_kn"), np.ascontiguousarray(ir.array(source).T))
    for reader in ir.consumers(transpose.outputs[0]):
        ir.rewire_input(reader, transpose.outputs[0], weight)
    others = [reader for reader in ir.consumers(source) if reader is not transpose]
    if others:
        back = gs.Variable(namer(f"{source.name}_nk"), source.dtype, list(source.shape))
        ir.add_node(
            graph,
            "Transpose",
            namer(f"{transpose.name}_back"),
            [weight],
            [back],
            attrs={"perm": [1, 0]},
        )
        for reader in others:
            ir.rewire_input(reader, source, back)
    return True
