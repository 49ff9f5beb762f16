"""Element by element, with broadcasting: g is the gradient at the output y."""

from __future__ import annotations

import math

from qcompiler.autodiff.call import Call
from qcompiler.autodiff.rules.registry import Gradients, rule
from qcompiler.autodiff.terms import FLOAT, Term


@rule("Add", "Sum", broadcasts=True)
def add(call: Call) -> Gradients:
    """y = a + b + ...: g for each."""
    return [call.g()] * len(call.node.input)


@rule("Sub", broadcasts=True)
def sub(call: Call) -> Gradients:
    """y = a - b: g, -g."""
    return call.g(), -call.g()


@rule("Mul", broadcasts=True)
def mul(call: Call) -> Gradients:
    """y = a b: g b, g a."""
    return call.g() * call.x(1), call.g() * call.x(0)


@rule("Div", broadcasts=True)
def div(call: Call) -> Gradients:
    """y = a / b: g / b, -g y / b."""
    over = call.g() / call.x(1)
    return over, -(over * call.y())


@rule("Mean", broadcasts=True)
def mean(call: Call) -> Gradients:
    """y = (a + b + ...) / n: g / n for each."""
    count = len(call.node.input)
    return [call.g() / count] * count


@rule("Neg")
def neg(call: Call) -> Gradients:
    """y = -x: -g."""
    return (-call.g(),)


@rule("Pow", broadcasts=True)
def power(call: Call) -> Gradients:
    """y = a^b: g b a^(b-1), and g y log(a) (0 where a = 0, as y is beside it)."""
    a, b, g = call.x(0), call.x(1), call.g()
    logarithm = a.op("Equal", _zero(call)).where(0.0, a.op("Log"))
    return g * b * a.power(b - 1.0), g * call.y() * logarithm


@rule("Sqrt")
def sqrt(call: Call) -> Gradients:
    """y = sqrt(x): g / (2 y)."""
    return (call.g() * 0.5 / call.y(),)


@rule("Reciprocal")
def reciprocal(call: Call) -> Gradients:
    """y = 1 / x: -g y²."""
    return (-(call.g() * call.y() * call.y()),)


@rule("Exp")
def exp(call: Call) -> Gradients:
    """y = e^x: g y."""
    return (call.g() * call.y(),)


@rule("Log")
def log(call: Call) -> Gradients:
    """y = log(x): g / x."""
    return (call.g() / call.x(),)


@rule("Erf")
def erf(call: Call) -> Gradients:
    """y = erf(x): g 2 / sqrt(π) e^(-x²)."""
    x = call.x()
    return (call.g() * (-(x * x)).op("Exp") * (2 / math.sqrt(math.pi)),)


@rule("Tanh")
def tanh(call: Call) -> Gradients:
    """y = tanh(x): g (1 - y²)."""
    return (call.g() * (1.0 - call.y() * call.y()),)


@rule("Sigmoid")
def sigmoid(call: Call) -> Gradients:
    """y = 1 / (1 + e^-x): g y (1 - y)."""
    return (call.g() * call.y() * (1.0 - call.y()),)


@rule("HardSigmoid")
def hard_sigmoid(call: Call) -> Gradients:
    """y = max(0, min(1, α x + β)): α g where 0 < y < 1."""
    y, alpha = call.y(), call.attr("alpha", 0.2)
    inside = y.op("Greater", _zero(call)).op("And", y.op("Less", y._term(1.0)))
    return (inside.where(call.g() * alpha, 0.0),)


@rule("Softplus")
def softplus(call: Call) -> Gradients:
    """y = log(1 + e^x): g sigmoid(x)."""
    return (call.g() * call.x().op("Sigmoid"),)


@rule("Sin")
def sin(call: Call) -> Gradients:
    """y = sin(x): g cos(x)."""
    return (call.g() * call.x().op("Cos"),)


@rule("Cos")
def cos(call: Call) -> Gradients:
    """y = cos(x): -g sin(x)."""
    return (-(call.g() * call.x().op("Sin")),)


@rule("Abs")
def absolute(call: Call) -> Gradients:
    """y = |x|: g sign(x)."""
    return (call.g() * call.x().op("Sign"),)


@rule("Relu")
def relu(call: Call) -> Gradients:
    """y = max(x, 0): g where x > 0."""
    return (_positive(call).where(call.g(), 0.0),)


@rule("LeakyRelu")
def leaky_relu(call: Call) -> Gradients:
    """y = x where x > 0, else α x: g, else α g."""
    return (_positive(call).where(call.g(), call.g() * call.attr("alpha", 0.01)),)


@rule("Elu")
def elu(call: Call) -> Gradients:
    """y = x where x > 0, else α (e^x - 1): g, else g (y + α)."""
    return (_positive(call).where(call.g(), call.g() * (call.y() + call.attr("alpha", 1.0))),)


@rule("PRelu", broadcasts=True)
def prelu(call: Call) -> Gradients:
    """y = x where x > 0, else s x: g, else s g; of s: 0, else g x."""
    g = call.g()
    return _positive(call).where(g, g * call.x(1)), _positive(call).where(0.0, g * call.x(0))


@rule("Max", "Min", broadcasts=True)
def extremum(call: Call) -> Gradients:
    """y = max(a, b, ...) or min: g, divided among those that reach it."""
    reach = [call.x(i).op("Equal", call.y()).cast(FLOAT) for i in range(len(call.node.input))]
    total = reach[0]
    for each in reach[1:]:
        total = total + each
    return [call.g() * each / total for each in reach]


@rule("Clip", broadcasts=True)
def clip(call: Call) -> Gradients:
    """y = min(max(x, low), high): g where low <= x <= high; of a bound: g where x is beyond."""
    g, x, inside = call.g(), call.x(), call.g()
    bounds: list[Term | None] = []
    for index, beyond in ((1, "Less"), (2, "Greater")):
        if not call.has(index):
            bounds.append(None)
            continue
        outside = x.op(beyond, call.x(index))
        inside = outside.where(0.0, inside)
        bounds.append(outside.where(g, 0.0))
    return inside, *bounds


@rule("Where", broadcasts=True)
def where(call: Call) -> Gradients:
    """y = a where c, else b: g where c, else 0; of b the other way round."""
    chosen = call.raw(0)
    return None, chosen.where(call.g(), 0.0), chosen.where(0.0, call.g())


@rule("CastLike")
def cast_like(call: Call) -> Gradients:
    """y = x in the type of another, whose values do not matter: g, 0."""
    return call.g(), call.raw(1).zeros()


@rule("Cast", "Identity", "Dropout")
def same(call: Call) -> Gradients:
    """y = x, in another type or not: g. Of a Dropout that drops nothing, too."""
    if call.node.op_type == "Dropout" and call.has(2):
        raise call.refusal("it may drop values; export the model for inference")
    return (call.g(),)


@rule("Sign", "Floor", "Ceil", "Round", "RandomNormalLike", "RandomUniformLike", "EyeLike")
def step(call: Call) -> Gradients:
    """Steps, and what depends on the sizes of x alone: 0."""
    return (call.g() * 0.0,)


def _zero(call: Call) -> Term:
    return call.x()._term(0.0)


def _positive(call: Call) -> Term:
    """Where the first input is positive."""
    return call.x().op("Greater", _zero(call))
