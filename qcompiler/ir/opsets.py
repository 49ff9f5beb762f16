"""Models of other opsets: ONNX's version converter, and what it leaves out or gets wrong.

Hardmax (below 13)              ->  Hardmax over all axes from `axis` on, flattened
Upsample, Resize (below 11)     ->  Resize with the coordinates that were meant then
Dropout with a mask (below 12)  ->  a mask of zeros, as ONNX Runtime gives it
GroupNormalization (below 21)   ->  scale and bias of each channel, not of each group
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper, version_converter

from qcompiler.errors import PassError
from qcompiler.protos import nodes_below

OPSET = 21
"""The first opset with blocked quantization; ONNX Runtime 1.20 runs it."""

OLDEST_OPSET = 7
"""The oldest that ONNX Runtime runs."""

IR_VERSION = 10
"""What ONNX Runtime 1.20 reads."""

_HIDDEN = "qcompiler.hidden"
"""Where nodes wait that the converter must not see: it does not know them, or they are done."""


def converted(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model at opset 21; other domains and undeclared default-domain ops stay as they are.

    A newer model that uses what opset 21 lacks stays at its own opset. PassError for one that is
    too old, or that uses an operator that can't be converted.
    """
    version = next((o.version for o in model.opset_import if not o.domain), None)
    if version is not None and version < OLDEST_OPSET:
        raise PassError(
            f"the model has opset {version}, older than {OLDEST_OPSET}; export it again with a "
            "newer opset"
        )
    if version is not None and version != OPSET:
        try:
            model = _at_opset(model, version)
        except (RuntimeError, ValueError) as error:  # ConvertError is a RuntimeError
            if version > OPSET:
                return model
            cause = " ".join(str(error).split()).rsplit("failed: ", 1)[-1]
            raise PassError(
                f"the model can't be brought from opset {version} to {OPSET} ({cause}); "
                f"export it with opset {OPSET}"
            ) from None
    model.ir_version = IR_VERSION
    return model


def _at_opset(source: onnx.ModelProto, version: int) -> onnx.ModelProto:
    """ONNX's version converter, with what it does not know or would break hidden from it."""
    model = onnx.ModelProto()
    model.CopyFrom(source)
    _mend(model.graph, version, {})
    for node in nodes_below(model.graph.node):
        # ORT puts ops such as SimplifiedLayerNormalization in ONNX's own domain.
        if not node.domain and not onnx.defs.has(node.op_type):
            node.domain = _HIDDEN
        # Newer exporters name inputs an older operator version doesn't have, but leave them empty.
        while node.input and not node.input[-1]:
            node.input.pop()
    model.opset_import.append(helper.make_opsetid(_HIDDEN, 1))
    result = version_converter.convert_version(model, OPSET)
    for node in nodes_below(result.graph.node):
        if node.domain == _HIDDEN:
            node.domain = ""
    kept = [o for o in result.opset_import if o.domain != _HIDDEN]
    del result.opset_import[:]
    result.opset_import.extend(kept)
    for found, declared in (
        (result.graph.input, source.graph.input),
        (result.graph.output, source.graph.output),
    ):
        del found[:]  # the converter drops what is said about dimensions
        found.extend(declared)
    _require_known(result.graph)
    return result


def _require_known(graph: onnx.GraphProto) -> None:
    """ValueError for a node that opset 21 does not have in this form."""
    for node in nodes_below(graph.node):
        if node.domain or not onnx.defs.has(node.op_type):
            continue
        try:
            schema = onnx.defs.get_schema(node.op_type, OPSET, "")
        except onnx.defs.SchemaError:
            raise ValueError(f"opset {OPSET} has no {node.op_type}") from None
        for attribute in node.attribute:
            if attribute.name not in schema.attributes:
                raise ValueError(
                    f"{node.op_type} of opset {OPSET} has no attribute '{attribute.name}'"
                )


Constants = Mapping[str, TensorProto]


@dataclass(frozen=True)
class _Old:
    """A node that the converter gets wrong."""

    node: onnx.NodeProto
    version: int
    """The opset it is of."""
    constants: Constants
    """Of the graph and those around it, by name."""

    def attribute(self, name: str, default: Any) -> Any:
        """An attribute's value, `default` where it is not set."""
        for each in self.node.attribute:
            if each.name == name:
                return helper.get_attribute_value(each)
        return default

    def fresh(self, what: str) -> str:
        """A tensor name that nothing else has."""
        return f"{self.node.output[0]}/converted/{what}"

    def make(self, op: str, inputs: Iterable[str], output: str, **attrs: Any) -> onnx.NodeProto:
        """A node of opset 21, hidden from the converter."""
        name = self.node.name if op == self.node.op_type and self.node.name else ""
        return helper.make_node(op, list(inputs), [output], name=name, domain=_HIDDEN, **attrs)

    def constant(self, what: str, values: np.ndarray) -> tuple[str, onnx.NodeProto]:
        """A Constant node, and the name of what it gives."""
        name = self.fresh(what)
        return name, self.make("Constant", [], name, value=numpy_helper.from_array(values))


def _mend(graph: onnx.GraphProto, version: int, outer: Constants) -> None:
    """Put nodes of opset 21 where the converter would go wrong, in a graph and its subgraphs."""
    constants = {**outer, **{each.name: each for each in graph.initializer}}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                _mend(attribute.g, version, constants)
        below, mended = _MENDED.get(node.op_type, (0, None))
        if mended is None or version >= below or node.domain:
            nodes.append(node)
        else:
            nodes += mended(_Old(node, version, constants))
    del graph.node[:]
    graph.node.extend(nodes)


def _hardmax(old: _Old) -> list[onnx.NodeProto]:
    x, y = old.node.input[0], old.node.output[0]
    shape, flat, hard = (old.fresh(what) for what in ("shape", "flat", "hard"))
    return [
        old.make("Shape", [x], shape),
        old.make("Flatten", [x], flat, axis=old.attribute("axis", 1)),
        old.make("Hardmax", [flat], hard, axis=-1),
        old.make("Reshape", [hard, shape], y),
    ]


def _resize(old: _Old) -> list[onnx.NodeProto]:
    """Upsample and the first Resize: asymmetric coordinates, and places that are cut off."""
    made: list[onnx.NodeProto] = []
    if len(old.node.input) > 1:
        scales = old.node.input[1]
    else:
        values = np.asarray(old.attribute("scales", []), np.float32)
        scales, constant = old.constant("scales", values)
        made.append(constant)
    mode = old.attribute("mode", b"nearest")
    attrs: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": "asymmetric"}
    if mode == b"nearest":
        attrs["nearest_mode"] = _rounding(old, scales)
    made.append(old.make("Resize", [old.node.input[0], "", scales], old.node.output[0], **attrs))
    made[-1].name = old.node.name
    return made


def _rounding(old: _Old, scales: str) -> str:
    """How the first Resize found the nearest place: down where it enlarges, else up."""
    if old.node.op_type == "Upsample":
        return "floor"
    if scales not in old.constants:
        raise ValueError("Resize of opset 10 rounds by scales that are computed")
    values = numpy_helper.to_array(old.constants[scales])
    if not (values < 1).any():
        return "floor"
    if (values > 1).any():
        raise ValueError("Resize of opset 10 enlarges one axis and shrinks another")
    return "ceil"


def _dropout(old: _Old) -> list[onnx.NodeProto]:
    """At inference it does nothing, but its mask may be read."""
    if len(old.node.output) < 2 or not old.node.output[1]:
        return [old.node]
    x, y, mask = old.node.input[0], old.node.output[0], old.node.output[1]
    shape, zeros = old.fresh("shape"), old.fresh("zeros")
    made = [
        old.make("Identity", [x], y),
        old.make("Shape", [x], shape),
        old.make("ConstantOfShape", [shape], zeros),
    ]
    if old.version < 10:  # the mask has the type of X
        return [*made, old.make("CastLike", [zeros, x], mask)]
    return [*made, old.make("Cast", [zeros], mask, to=TensorProto.BOOL)]


def _group_normalization(old: _Old) -> list[onnx.NodeProto]:
    x, y = old.node.input[0], old.node.output[0]
    channels, count, each = (old.fresh(what) for what in ("channels", "count", "each"))
    groups, groups_node = old.constant("groups", np.asarray([old.attribute("num_groups", 1)]))
    one, one_node = old.constant("one", np.asarray([1]))
    column, column_node = old.constant("column", np.asarray([-1, 1]))
    row, row_node = old.constant("row", np.asarray([-1]))
    made = [
        *(groups_node, one_node, column_node, row_node),
        old.make("Shape", [x], channels, start=1, end=2),
        old.make("Div", [channels, groups], count),
        old.make("Concat", [one, count], each, axis=0),
    ]
    spread: list[str] = []
    for what, given in zip(("scale", "bias"), old.node.input[1:], strict=True):
        names = [old.fresh(f"{what}_{step}") for step in ("column", "rows", "all")]
        made += [
            old.make("Reshape", [given, column], names[0]),
            old.make("Expand", [names[0], each], names[1]),
            old.make("Reshape", [names[1], row], names[2]),
        ]
        spread.append(names[2])
    kept = {each.name: helper.get_attribute_value(each) for each in old.node.attribute}
    return [*made, old.make("GroupNormalization", [x, *spread], y, **kept)]


_MENDED: dict[str, tuple[int, Callable[[_Old], list[onnx.NodeProto]]]] = {
    "Hardmax": (13, _hardmax),
    "Upsample": (10, _resize),
    "Resize": (11, _resize),
    "Dropout": (12, _dropout),
    "GroupNormalization": (21, _group_normalization),
}
"""Operators that the converter breaks, the opset from which it does not, and their new form."""
