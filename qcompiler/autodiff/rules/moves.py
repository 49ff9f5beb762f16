"""Values moved, chosen or repeated: each gradient goes back to where its value came from."""

from __future__ import annotations

import numpy as np

from qcompiler.autodiff.call import Call
from qcompiler.autodiff.rules.registry import Gradients, rule
from qcompiler.autodiff.terms import Term, concat


@rule("Reshape", "Squeeze", "Unsqueeze", "Flatten")
def reshaped(call: Call) -> Gradients:
    """The same values in the same order: g under the sizes of x."""
    return (call.g().like(call.raw(0)),)


@rule("Transpose")
def transpose(call: Call) -> Gradients:
    """The axes in another order: g in the inverse order. Without one, all axes turned round."""
    perm = call.attr("perm")
    if perm is None:
        return (call.g().op("Transpose"),)
    return (call.g().transpose(*(int(at) for at in np.argsort(perm))),)


@rule("Expand", broadcasts=True)
def expand(call: Call) -> Gradients:
    """Broadcast: summed over what was repeated."""
    return (call.g(),)


@rule("Concat")
def joined(call: Call) -> Gradients:
    """Joined along an axis: g cut into the same pieces."""
    axis, count = call.attr("axis"), len(call.node.input)
    if count == 1:
        return (call.g(),)
    lengths = [_length(call.raw(index), axis) for index in range(count)]
    return call.to.node("Split", [call.g(), concat(lengths, 0)], outputs=count, axis=axis)


@rule("Split")
def cut(call: Call) -> Gradients:
    """Cut along an axis: the gradients of the pieces joined, zeros for those without."""
    pieces = [call.g(index) for index, name in enumerate(call.node.output) if name]
    return (concat(pieces, call.attr("axis", 0)),)


@rule("Slice", "Gather", "GatherElements", "GatherND", "Tile")
def chosen(call: Call) -> Gradients:
    """The operator, over the positions in x, tells where each value came from: g is added there."""
    return (_added(call, call.again(_positions(call.raw(0)))),)


@rule("TopK")
def largest(call: Call) -> Gradients:
    """The largest values along an axis, or the smallest: g where the indices say."""
    inputs = [call.raw(0), call.raw(1)]
    places = call.to.node("TopK", inputs, outputs=2, **call.attrs)[1]
    attrs = {"axis": call.attr("axis", -1), "reduction": "add"}
    return (call.raw(0).zeros().op("ScatterElements", places, call.g(), **attrs),)


@rule("MaxPool")
def largest_nearby(call: Call) -> Gradients:
    """The largest value of each window: g where it lies."""
    if call.attr("storage_order", 0):
        raise call.refusal("its storage_order is by columns")
    return (_added(call, call.to.node("MaxPool", [call.x()], outputs=2, **call.attrs)[1]),)


@rule("ScatterElements", "ScatterND")
def put(call: Call) -> Gradients:
    """Values put into x, or added to it: what lies there of g; of x, g, without what was replaced.

    No place is written twice unless values are added: ONNX leaves open which would count.
    """
    attrs = {key: value for key, value in call.attrs.items() if key == "axis"}
    places = call.raw(1)
    take = "GatherND" if call.node.op_type == "ScatterND" else "GatherElements"
    of_values = call.g().op(take, places, **attrs)
    reduction = call.attr("reduction", b"none")
    if reduction == b"add":
        return call.g(), None, of_values
    if reduction != b"none":
        raise call.refusal(f"there is no rule for its reduction {reduction.decode()}")
    kept = call.g().op(call.node.op_type, places, call.x(2).zeros(), **attrs)
    return kept, None, of_values


@rule("Trilu")
def triangle(call: Call) -> Gradients:
    """The upper or lower triangle: that of g."""
    return (call.again(call.g()),)


@rule("CumSum")
def cumulative(call: Call) -> Gradients:
    """Sums of what lies before: the sums of g from the other end."""
    attrs = {**call.attrs, "reverse": 1 - call.attr("reverse", 0)}
    return (call.g().op("CumSum", call.raw(1), **attrs),)


@rule("Pad")
def padded(call: Call) -> Gradients:
    """Like other choices; a constant comes from behind the end, where its gradient is dropped."""
    positions = _positions(call.raw(0))
    if call.attr("mode", b"constant") != b"constant":
        return (_added(call, call.again(positions)),)
    others = [call.raw(i) if call.has(i) else None for i in (1, 3) if i < len(call.node.input)]
    inputs = [positions, others[0], call.raw(0).op("Size"), *others[1:]]
    return (_added(call, call.to.node("Pad", inputs)[0]),)


def _positions(x: Term) -> Term:
    """The position of each element in the order in which they lie."""
    start, step = (x.to.constant(value, np.int64) for value in (0, 1))
    return start.op("Range", x.op("Size"), step).like(x)


def _added(call: Call, positions: Term) -> Term:
    """Zeros of the sizes of x, with g added at the positions; one behind the end takes the rest.

    ScatterElements adds one after the other, so that equal positions add up in a fixed order.
    """
    x, flat = call.raw(0), call.to.ints(-1)
    count = x.op("Size").op("Unsqueeze", call.to.ints(0))
    room = count.op("Add", call.to.ints(1)).op("ConstantOfShape")
    places, values = (each.op("Reshape", flat) for each in (positions, call.g()))
    added = room.op("ScatterElements", places, values, axis=0, reduction="add")
    return added.op("Slice", call.to.ints(0), call.to.ints(-1)).like(x)


def _length(term: Term, axis: int) -> Term:
    """The size along an axis, as a vector of one."""
    return term.shape().op("Gather", term.to.ints(axis))
