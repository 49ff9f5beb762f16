"""Convolutions, whose weights are constants: g is the gradient at the output."""

from __future__ import annotations

from typing import Any

from qcompiler.autodiff.call import Call
from qcompiler.autodiff.rules.registry import Gradients, rule
from qcompiler.autodiff.terms import FLOAT


@rule("Conv")
def conv(call: Call) -> Gradients:
    """Each value of g goes back to the window it came from: a ConvTranspose by the same weights.

    That gives the padded x, as far as a window reached; the rest is zeros.
    """
    attrs = _attrs(call)
    axes = len(call.sizes(0)) - 2
    before = list(attrs.pop("pads", [0] * (2 * axes)))[:axes]
    strides = attrs.get("strides", [1] * axes)
    whole = call.to.node("ConvTranspose", [call.g(), call.x(1)], **attrs)[0]
    margin = [0] * (axes + 4) + [stride - 1 for stride in strides]
    if any(margin):
        whole = whole.op("Pad", call.to.ints(*margin))
    start = call.to.ints(*before)
    end = start.op("Add", call.raw(0).op("Shape", start=2))
    return (whole.op("Slice", start, end, call.to.ints(*range(2, axes + 2))),)


@rule("ConvTranspose")
def conv_transpose(call: Call) -> Gradients:
    """The transpose of a Conv: a Conv of g by the same weights."""
    attrs = _attrs(call)
    if attrs.pop("output_shape", None) is not None:
        raise call.refusal("its padding follows from output_shape")
    attrs.pop("output_padding", None)
    return (call.to.node("Conv", [call.g(), call.x(1)], **attrs)[0],)


@rule("GlobalAveragePool")
def global_mean(call: Call) -> Gradients:
    """y = Σ x / n over all positions: g / n for each."""
    x = call.raw(0)
    share = call.g() / x.op("Shape", start=2).op("ReduceProd", keepdims=0).cast(FLOAT)
    return (share.op("Expand", x.shape()),)


def _attrs(call: Call) -> dict[str, Any]:
    attrs = dict(call.attrs)
    if attrs.pop("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        raise call.refusal("its padding follows from auto_pad")
    return attrs
