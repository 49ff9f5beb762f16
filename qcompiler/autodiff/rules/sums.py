"""Sums over axes and what is made of them: g is the gradient at the output y."""

from __future__ import annotations

from qcompiler.autodiff.call import Call
from qcompiler.autodiff.rules.registry import Gradients, rule
from qcompiler.autodiff.terms import FLOAT, Term


@rule("ReduceSum")
def total(call: Call) -> Gradients:
    """y = Σ x: g, repeated."""
    return (_repeated(call, call.g()),)


@rule("ReduceMean")
def mean(call: Call) -> Gradients:
    """y = Σ x / n: g / n, repeated."""
    x, y = (each.op("Size").cast(FLOAT) for each in (call.raw(0), call.y()))
    return (_repeated(call, call.g() * (y / x)),)


@rule("ReduceSumSquare")
def squares(call: Call) -> Gradients:
    """y = Σ x²: 2 g x."""
    return (_repeated(call, call.g() * 2.0) * call.x(),)


@rule("ReduceL2")
def length(call: Call) -> Gradients:
    """y = sqrt(Σ x²): g x / y."""
    return (_repeated(call, call.g() / call.y()) * call.x(),)


@rule("ReduceLogSumExp")
def log_sum_exp(call: Call) -> Gradients:
    """y = log Σ e^x: g e^(x - y)."""
    shares = (call.x() - _repeated(call, call.y())).op("Exp")
    return (_repeated(call, call.g()) * shares,)


@rule("ReduceMax", "ReduceMin")
def extremum(call: Call) -> Gradients:
    """y = max x or min: g, divided among those that reach it."""
    reach = call.x().op("Equal", _repeated(call, call.y())).cast(FLOAT)
    axes = call.raw(1) if call.has(1) else None
    attrs = {key: value for key, value in call.attrs.items() if key == "noop_with_empty_axes"}
    count = reach.op("ReduceSum", axes, keepdims=1, **attrs)
    return (_repeated(call, call.g()) * reach / count,)


@rule("Softmax")
def softmax(call: Call) -> Gradients:
    """y = e^x / Σ e^x: y (g - Σ g y)."""
    product = call.g() * call.y()
    return (product - call.y() * product.sum(call.attr("axis", -1)),)


@rule("LogSoftmax")
def log_softmax(call: Call) -> Gradients:
    """y = x - log Σ e^x: g - e^y Σ g."""
    return (call.g() - call.y().op("Exp") * call.g().sum(call.attr("axis", -1)),)


def _repeated(call: Call, term: Term) -> Term:
    """What the reduction left, along the axes it took, in the sizes of x."""
    x = call.raw(0)
    if not call.attr("keepdims", 1):
        axes = call.raw(1) if call.has(1) else None
        attrs = {**call.attrs, "keepdims": 1}
        term = term.like(call.x().op("ReduceSum", axes, **attrs))
    return term.op("Expand", x.shape())
