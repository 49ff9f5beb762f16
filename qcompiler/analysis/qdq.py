"""The Q/DQ language between passes: how quantized weights are written and read.

Weight [K, N]:  DequantizeLinear(codes, scales [G, N][, zero_points], axis=0, block_size)
one scale each: DequantizeLinear(codes, scales [N][, zero_points], axis=1)
narrow table:   Gather of such a weight transposed, or of the same [N, K] along the other axis
8-bit table:    DequantizeLinear(Gather(codes), Unsqueeze(Gather(scales)), block_size=K)

`activation_qdq` is the same for activations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from qcompiler import ir
from qcompiler.analysis.layers import Layer, find_layers, layer_of
from qcompiler.analysis.tables import looked_up
from qcompiler.errors import RecipeError
from qcompiler.formats import WeightFormat, storage_of
from qcompiler.ir.matcher import Match, const, either, match, op, var
from qcompiler.ir.order import topological
from qcompiler.numerics.rounding import QuantizedWeight


@dataclass(frozen=True)
class WeightDq:
    """A quantized weight in the graph: codes [K, N] behind one DequantizeLinear."""

    node: gs.Node
    codes: gs.Constant
    scales: gs.Constant
    """[G, N], or [N]."""
    zero_points: gs.Constant | None
    """As the scales."""
    form: WeightFormat
    """As the graph tells it: a narrower width than its codes are stored in does not show."""

    @property
    def shape(self) -> tuple[int, int]:
        """(K, N)."""
        rows, columns = self.codes.shape
        return int(rows), int(columns)

    def load(self, form: WeightFormat | None = None) -> QuantizedWeight:
        """The weight as unsigned codes, scales and zero points.

        `form`: the format it was written in, where that is known better than the graph tells.
        """
        form = form or self.form
        zeros = None
        if self.zero_points is not None:
            zeros = np.atleast_2d(ir.array(self.zero_points).astype(np.uint8))
        codes = ir.array(self.codes).astype(np.int16)
        if form.storage.signed:
            codes += form.middle
        scales = np.atleast_2d(ir.array(self.scales).astype(np.float32))
        return QuantizedWeight(codes.astype(np.uint8), scales, zeros, form)


def weight_dq(tensor: Any, axis: int = 0) -> WeightDq | None:
    """The quantized weight a tensor is, if it is one in the form `insert_weight_dq` writes.

    With `axis` 1, one that is stored transposed.
    """
    node = ir.producer(tensor, "DequantizeLinear")
    if node is None:
        return None
    codes, scales = node.inputs[0], node.inputs[1]
    block = int(ir.attribute(node, "block_size", 0))
    along = axis if block else 1 - axis
    if block < 0 or int(ir.attribute(node, "axis", 1)) % 2 != along:
        return None
    zeros = ir.given(node.inputs, 2)
    given = [codes, scales] + ([] if zeros is None else [zeros])
    if not all(map(ir.is_constant, given)) or len(codes.shape) != 2:
        return None
    shape = list(codes.shape)[along : along + 1]
    if not block and any(list(each.shape) != shape for each in given[1:]):
        return None
    storage = storage_of(ir.elem_type(codes))
    # Unsigned codes without a zero point start at 0: not ours.
    if storage is None or storage.signed == (zeros is not None):
        return None
    form = WeightFormat(
        bits=storage.bits,
        group_size=block or None,
        symmetric=storage.signed,
    )
    return WeightDq(node, codes, scales, zeros, form)


@dataclass(frozen=True)
class TableDq:
    """A table of which a Gather looks up dequantized rows."""

    dequantized: WeightDq
    transposed: bool
    """Whether the Gather reads it behind a Transpose, as it does where a head has the same."""

    def load(self) -> QuantizedWeight:
        """The weight [K, N] whose columns are the table's rows."""
        stored = self.dequantized.load()
        if self.transposed:
            return stored
        if stored.form.group_size is None:  # a scale a row, whichever way they lie
            return replace(stored, codes=stored.codes.T)
        zeros = None if stored.zero_points is None else stored.zero_points.T
        return replace(stored, codes=stored.codes.T, scales=stored.scales.T, zero_points=zeros)


def table_dq(gather: gs.Node) -> TableDq | None:
    """The quantized table that a Gather of rows reads, if it is dequantized before the look-up."""
    source = looked_up(gather)
    if source is None:
        return None
    tensor, transposed = source
    found = weight_dq(tensor, axis=0 if transposed else 1)
    return None if found is None else TableDq(found, transposed)


_ROWS = {"axis": {0, None}}
_FLIPPED = op("Transpose", const("codes"), attrs={"perm": [1, 0]})
_TABLE_ROWS = op(
    "DequantizeLinear",
    op("Gather", either(_FLIPPED, const("codes")), var("ids"), attrs=_ROWS),
    op("Unsqueeze", op("Gather", const("scales"), var("ids"), attrs=_ROWS), const(value=-1)),
)


@dataclass(frozen=True)
class TableRows:
    """Rows of a table, dequantized after the look-up."""

    node: gs.Node
    """The DequantizeLinear."""
    codes: gs.Constant
    """int8 [N, K], or [K, N]."""
    scales: gs.Constant
    """[N]."""
    ids: Any
    transposed: bool
    """Whether codes are [K, N]."""

    def load(self) -> QuantizedWeight:
        """The weight [K, N] whose columns are the table's rows."""
        values = ir.array(self.codes)
        codes = ((values if self.transposed else values.T).astype(np.int16) + 128).astype(np.uint8)
        scales = np.atleast_2d(ir.array(self.scales).astype(np.float32))
        return QuantizedWeight(codes, scales, None, WeightFormat(bits=8))


def table_rows(node: gs.Node) -> TableRows | None:
    """The look-up whose rows a node dequantizes, None for any other node."""
    found = match(_TABLE_ROWS, node) if node.op == "DequantizeLinear" else None
    if not isinstance(found, Match):
        return None
    transposed = any(each.op == "Transpose" for each in found.nodes)
    codes, rows = found["codes"], [found["scales"].shape[0]]
    int8 = ir.elem_type(codes) == onnx.TensorProto.INT8
    if not int8 or len(codes.shape) != 2 or list(found["scales"].shape) != rows:
        return None
    channels, count = codes.shape if transposed else codes.shape[::-1]
    if [count] != rows or int(ir.attribute(node, "block_size", 0)) < channels:
        return None
    return TableRows(node, found["codes"], found["scales"], found["ids"], transposed)


@dataclass(frozen=True)
class QuantizedLayer:
    """A layer that reads a quantized weight."""

    layer: Layer
    weight: WeightDq

    @property
    def name(self) -> str:
        """The layer's name."""
        return self.layer.name


def quantized_layer(graph: gs.Graph, node: gs.Node) -> QuantizedLayer | None:
    """The quantized layer a node is, None for any other node, and for weights or biases in a form
    that no pass here writes."""
    layer = layer_of(graph, node)
    if layer is None or not layer.is_plain:
        return None
    weight, shift = weight_dq(layer.weight), layer.shift()
    if weight is None or (shift is not None and shift.shape != weight.shape[1:]):
        return None
    return QuantizedLayer(layer, weight)


def quantized_layers(graph: gs.Graph) -> list[QuantizedLayer]:
    """Every quantized layer, in graph order."""
    found = (quantized_layer(graph, node) for node in graph.nodes)
    return [each for each in found if each is not None]


@dataclass(frozen=True)
class Counterpart(QuantizedLayer):
    """A quantized layer, and what it was in the float graph."""

    source: Layer


def find_counterparts(graph: gs.Graph, reference: gs.Graph | None) -> list[Counterpart]:
    """The quantized layers in order that go by the name of a layer of the float graph `reference`.

    RecipeError where there is no float graph, or it knows none of them.
    """
    if reference is None:
        raise RecipeError("no float graph to compare with; run it in one pipeline with what rounds")
    floats = {layer.name: layer for layer in find_layers(reference)[0]}
    found = [each for node in topological(graph) if (each := quantized_layer(graph, node))]
    known = [
        Counterpart(each.layer, each.weight, floats[each.name])
        for each in found
        if each.name in floats
    ]
    if found and not known:
        raise RecipeError(
            f"'{found[0].name}' was quantized before this pipeline began; run all of it from "
            "the float model on"
        )
    return known


def insert_weight_dq(
    graph: gs.Graph, weight: QuantizedWeight, base: str, namer: ir.Namer
) -> gs.Variable:
    """Add a quantized weight to the graph; returns its dequantized tensor, float32 [K, N]."""
    return insert_dq(graph, weight_constants(weight, base, namer), weight.form, base, namer)


def insert_dq(
    graph: gs.Graph,
    constants: list[gs.Constant],
    form: WeightFormat,
    base: str,
    namer: ir.Namer,
    axis: int = 0,
) -> gs.Variable:
    """Add the DequantizeLinear of the constants of a weight; `axis` is that of K."""
    shape = list(constants[0].shape)
    attrs = {"axis": axis, "block_size": form.group_size}
    if form.group_size is None:
        attrs = {"axis": 1 - axis}
    output = gs.Variable(namer(f"{base}_dq"), np.dtype(np.float32), shape)
    ir.add_node(
        graph,
        "DequantizeLinear",
        namer(f"{base}_DequantizeLinear"),
        constants,
        [output],
        attrs=attrs,
    )
    return output


def weight_constants(
    weight: QuantizedWeight, base: str, namer: Callable[[str], str]
) -> list[gs.Constant]:
    """Codes, scales (float32) and, where asymmetric, zero points as Q/DQ initializers.

    [K, N] and [G, N]; [N] where a column has one scale.
    """
    storage = weight.form.storage
    at = 0 if weight.form.group_size is None else slice(None)

    def stored(values: NDArray[np.uint8]) -> NDArray[Any]:
        if not storage.signed:
            return values.astype(storage.dtype)
        return (values.astype(np.int16) - weight.form.middle).astype(np.int8).astype(storage.dtype)

    constants = [
        ir.constant(namer(f"{base}_q{weight.form.bits}"), stored(weight.codes)),
        ir.constant(namer(f"{base}_scale"), weight.scales[at].astype(np.float32)),
    ]
    if weight.zero_points is not None:
        constants.append(ir.constant(namer(f"{base}_zero"), stored(weight.zero_points[at])))
    return constants


def replace_weight(old: WeightDq, weight: QuantizedWeight) -> None:
    """Put other codes and scales of the same form behind the DequantizeLinear of a weight."""
    constants = weight_constants(weight, str(old.codes.name), str)
    for index, new in enumerate(constants):
        # Their old readers are this one node: the names are free again.
        old.node.inputs[index] = ir.constant(str(old.node.inputs[index].name), ir.array(new))
