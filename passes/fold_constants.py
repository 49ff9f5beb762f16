"""fold-constants: what is computed from initializers alone becomes an initializer.

Reshape, Slice, Concat, W + A·B, v / |v| · g, ...  of constants  ->  one constant
Cast(E16)                                   ->  a constant stored in 16 bits and read in 32
Gather(Cast(E16), i), MatMul(X, Cast(E16ᵀ)) ->  Gather(E, i), MatMul(X, Eᵀ)    tied, as they were

A weight is a weight then, however the exporter stored it. ONNX Runtime computes the values, as it
would when it loads the model. What would take more room than its sources stays as it is, and so
does what is quantized already.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import helper

from qcompiler import ir
from qcompiler.analysis.expressions import NARROW, Expression, find_expressions, is_widening
from qcompiler.analysis.tables import looked_up
from qcompiler.calibration.graph_session import graph_session
from qcompiler.errors import CalibrationError
from qcompiler.foreign import one_line
from qcompiler.ir.tensors import CastValues, Stored, stored_values
from qcompiler.passmanager import Fact, Numerics, Pass, PassContext, PassResult

_BATCH = 64 << 20
"""Bytes of values computed at a time."""


@dataclass(frozen=True, kw_only=True)
class FoldConstants(Pass):
    """Compute what depends on constants alone; weights kept in half precision stay so."""

    name: ClassVar[str] = "fold-constants"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.IMPORTED})

    def run(self, graph: gs.Graph, ctx: PassContext) -> PassResult:
        changed = False
        wide = _Wide(ir.Namer(graph))
        for each in ir.graphs(graph):
            stays = _keep_ties(each, wide)
            changed |= bool(wide.made)
            found = [x for x in find_expressions(each, but=stays) if not x.grows]
            rest = [x for x in found if not _widened(each, x, wide)]
            changed |= len(rest) < len(found)
            for batch in _batches(rest):
                changed |= _evaluate(each, batch)
        if changed:
            ir.remove_dead(graph)
        return PassResult(graph=graph, changed=changed)


class _Wide:
    """Constants that read others in float32, one for each however often it is cast."""

    def __init__(self, namer: ir.Namer) -> None:
        self._namer = namer
        self.made: dict[int, gs.Constant] = {}

    def __call__(self, source: gs.Constant) -> gs.Constant:
        if id(source) not in self.made:
            values = CastValues(stored_values(source), onnx.TensorProto.FLOAT)
            self.made[id(source)] = gs.Constant(self._namer(f"{source.name}_cast"), values)
        return self.made[id(source)]


def _keep_ties(graph: gs.Graph, wide: _Wide) -> set[int]:
    """Ids of the Transposes of constants that MatMul multiplies by or Gather looks up.

    A table and a head share such a constant: `canonicalize` and `quantize-embedding` know how.
    Casts move out of their way, to the constants.
    """
    stays: set[int] = set()
    for node in graph.nodes:
        if not _is_transposition(node) or not any(map(_ties, _readers(node))):
            continue
        source = node.inputs[0]
        cast = ir.producer(source)
        if cast is not None and is_widening(cast):
            source = cast.inputs[0]
        if not ir.is_constant(source):
            continue
        stays.add(id(node))
        if ir.elem_type(source) in NARROW:
            _widen(graph, source, wide)
    return stays


def _ties(reader: gs.Node) -> bool:
    """Whether a node that reads the transpose of a constant may share it with another."""
    return not reader.domain and reader.op in ("MatMul", "Gather")


def _readers(node: gs.Node) -> Iterator[gs.Node]:
    """Who reads a node's result, behind a cast too."""
    for reader in ir.consumers(node.outputs[0]):
        yield from ir.consumers(reader.outputs[0]) if is_widening(reader) else [reader]


def _is_transposition(node: gs.Node) -> bool:
    if node.op != "Transpose" or node.domain or len(node.inputs[0].shape or ()) != 2:
        return False
    return list(ir.attribute(node, "perm", [1, 0])) == [1, 0]


def _widen(graph: gs.Graph, source: gs.Constant, wide: _Wide) -> None:
    """Cast a constant before it is transposed and looked up, where it was cast behind that."""
    for node in ir.consumers(source):
        output = node.outputs[0]
        casts = ir.consumers(output)
        if is_widening(node) and not ir.is_graph_output(graph, output):
            ir.replace_uses(graph, output, wide(source))
        elif (
            (_is_transposition(node) or _looks_up(node, source))
            and casts
            and all(is_widening(cast) for cast in casts)
            and not any(ir.is_graph_output(graph, t) for c in (node, *casts) for t in c.outputs)
        ):
            ir.rewire_input(node, source, wide(source))
            output.dtype = np.dtype(np.float32)
            for cast in casts:
                ir.replace_uses(graph, cast.outputs[0], output)


def _looks_up(node: gs.Node, source: gs.Constant) -> bool:
    """Whether a node looks up rows of a constant."""
    found = looked_up(node)
    return found is not None and found[0] is source


def _widened(graph: gs.Graph, expression: Expression, wide: _Wide) -> bool:
    """Whether an expression was nothing but the Cast of a constant, which is one now."""
    if len(expression.nodes) > 1 or not is_widening(expression.nodes[0]):
        return False
    ir.replace_uses(graph, expression.root, wide(expression.leaves[0]))
    return True


def _batches(expressions: Sequence[Expression]) -> Iterator[list[Expression]]:
    """Expressions in order, so many at a time as keep memory small."""
    batch: list[Expression] = []
    size = 0
    for each in expressions:
        if batch and size + each.leaf_bytes > _BATCH:
            yield batch
            batch, size = [], 0
        batch.append(each)
        size += each.leaf_bytes
    if batch:
        yield batch


def _evaluate(graph: gs.Graph, batch: Sequence[Expression]) -> bool:
    """Put the values of expressions in their places; whether any could be computed."""
    try:
        found = _values(graph, batch)
    # ONNX Runtime has no kernel for some node, or no memory for its result: the others are fine.
    except (CalibrationError, MemoryError):
        if len(batch) == 1:
            return False
        return sum(_evaluate(graph, [each]) for each in batch) > 0
    return sum(_put(each, value) for each, value in zip(batch, found, strict=True)) > 0


def _values(graph: gs.Graph, batch: Sequence[Expression]) -> list[np.ndarray[Any, Any]]:
    nodes = {id(node): node for each in batch for node in each.nodes}
    part = gs.Graph(
        nodes=list(nodes.values()),
        opset=graph.opset,
        import_domains=graph.import_domains,
        ir_version=graph.ir_version,
    )
    names = [str(each.root.name) for each in batch]

    def give(model: onnx.ModelProto) -> onnx.ModelProto:
        del model.graph.output[:]
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
        return model

    with graph_session(part, give) as session:
        try:
            return [np.asarray(value) for value in session.run(names, {})]
        except Exception as error:  # ONNX Runtime's errors share no other base class
            raise CalibrationError(one_line(error)) from None


def _put(expression: Expression, value: np.ndarray[Any, Any]) -> bool:
    """Make an expression's root a constant, as narrow as its leaves were; False where it grew."""
    root = expression.root
    if value.dtype.kind in "OUS" or not expression.fits(value.nbytes):
        return False
    narrow = expression.narrow
    if narrow is None:
        made: Stored = ir.constant(root.name, value)._values
    else:
        stored = value.astype(helper.tensor_dtype_to_np_dtype(narrow))
        made = CastValues(ir.constant(root.name, stored)._values, onnx.TensorProto.FLOAT)
    root.inputs.clear()
    root.to_constant(made)
    return True
