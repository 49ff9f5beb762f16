"""The gradient of broadcasting: summed over what was repeated."""

from __future__ import annotations

import numpy as np
from onnx import numpy_helper

from qcompiler.autodiff.call import Call
from qcompiler.autodiff.kinds import Sizes
from qcompiler.autodiff.terms import INT64, Term, concat


def sum_to(gradient: Term, sizes: Sizes | None, call: Call, index: int) -> Term:
    """A gradient of `sizes` summed to those of an input that was broadcast to them.

    Where sizes are known only at run time, so are the axes.
    """
    own = call.kinds.sizes(call.node.input[index])
    if own is None or sizes is None:
        return _at_run_time(gradient, call.raw(index))
    lead = len(sizes) - len(own)
    axes = list(range(lead))
    for axis, (size, whole) in enumerate(zip(own, sizes[lead:], strict=True), lead):
        if size == 1 and whole != 1:
            if whole is None or isinstance(whole, str):
                return _at_run_time(gradient, call.raw(index))
            axes.append(axis)
        elif size is None or (size != whole and not isinstance(size, int)):  # it may be 1
            return _at_run_time(gradient, call.raw(index))
    if not axes:
        return gradient
    summed = gradient.sum(*axes)
    return summed.like(call.raw(index)) if lead else summed


def _at_run_time(gradient: Term, x: Term) -> Term:
    """Summed over the axes where x, with sizes of 1 put before its own, has 1 and g has not."""
    build = gradient.to
    whole, own = gradient.shape(), x.shape()
    # Not Size: where ONNX Runtime knows the sizes, it takes their product for it.
    missing = whole.shape() - own.shape()
    ones = missing.op("ConstantOfShape", value=numpy_helper.from_array(np.ones(1, np.int64)))
    padded = concat([ones, own], 0)
    one = build.ints(1)
    repeated = padded.op("Equal", one).op("And", whole.op("Equal", one).op("Not"))
    axes = repeated.op("NonZero").op("Squeeze", build.ints(0)).cast(INT64)
    summed = gradient.op("ReduceSum", axes, keepdims=1, noop_with_empty_axes=1)
    return summed.like(x)
