"""Norms over the last axes, with all that they give: g is the gradient at the output y.

Of n values x, with mean μ and r = 1 / sqrt(variance + ε): x̂ = (x - μ) r, y = x̂ w + b. μ and r may
be outputs, with gradients m and q:

    dx = r (ĝ - mean(ĝ) - x̂ mean(ĝ x̂)) + (m - q r² x̂) / n   with ĝ = g w
    dw = Σ g x̂, db = Σ g                                      over the rows

RMS norms take μ for 0, and have no mean(ĝ) and m.
"""

from __future__ import annotations

from qcompiler.autodiff.call import Call
from qcompiler.autodiff.reduction import sum_to
from qcompiler.autodiff.rules.registry import Gradients, rule
from qcompiler.autodiff.terms import FLOAT, Term


@rule("LayerNormalization")
def layer_norm(call: Call) -> Gradients:
    """As above; the outputs are y, μ and r."""
    return _norm(call, centred=True, inverse=2)


@rule("RMSNormalization", "SimplifiedLayerNormalization")
def rms_norm(call: Call) -> Gradients:
    """As above without μ; the second output, where there is one, is r."""
    return _norm(call, centred=False, inverse=1)


def _norm(call: Call, *, centred: bool, inverse: int) -> Gradients:
    x, w, g = call.x(), call.x(1), call.g()
    axes = _axes(call)
    if centred:
        x = x - x.mean(*axes)
    r = 1.0 / ((x * x).mean(*axes) + call.attr("epsilon", 1e-5)).op("Sqrt")
    unit, gw = x * r, g * w
    inner = gw - unit * (gw * unit).mean(*axes)
    if centred:
        inner = inner - gw.mean(*axes)
    dx = r * inner
    extra = _of_statistics(call, unit, r, centred, inverse)
    if extra is not None:
        count = x.op("Size").cast(FLOAT) / r.op("Size").cast(FLOAT)
        dx = dx + extra / count
    sizes = call.kinds.sizes(call.node.output[0])
    dw = sum_to(g * unit, sizes, call, 1)
    return dx, dw, sum_to(g, sizes, call, 2) if call.has(2) else None


def _of_statistics(call: Call, unit: Term, r: Term, centred: bool, inverse: int) -> Term | None:
    """n times what comes from gradients at the mean and at r."""
    found = [*call.gradients, None, None][: inverse + 1]
    mean, of_r = found[1] if centred else None, found[inverse]
    total = None if of_r is None else -(of_r * r * r * unit)
    if mean is None:
        return total
    return mean + unit.zeros() if total is None else total + mean


def _axes(call: Call) -> list[int]:
    """The axes of the norm: from `axis` to the last."""
    axis = int(call.attr("axis", -1))
    return list(range(axis if axis < 0 else axis - len(call.sizes(0)), 0))
