"""Products of matrices: g is the gradient at the output."""

from __future__ import annotations

from qcompiler.autodiff.call import Call
from qcompiler.autodiff.reduction import sum_to
from qcompiler.autodiff.rules.registry import Gradients, rule
from qcompiler.autodiff.terms import Term


@rule("MatMul")
def matmul(call: Call) -> Gradients:
    """Y = A B, batched: g Bᵀ, Aᵀ g, summed over the batches a factor does not have.

    A vector A is a row, a vector B a column.
    """
    a, b, g = call.x(0), call.x(1), call.g()
    ranks = len(call.sizes(0)), len(call.sizes(1))
    if ranks[1] == 1:
        b, g = _unsqueezed(b, -1), _unsqueezed(g, -1)
    if ranks[0] == 1:
        a, g = _unsqueezed(a, 0), _unsqueezed(g, -2)
    of_a, of_b = g.matmul(b, right=True), a.matmul(g, left=True)
    if ranks[1] == 2 < ranks[0]:  # one product instead of one a batch, summed
        rows, columns = _rows(call, a, 0), _rows(call, g, 1)
        return of_a, rows.matmul(columns, left=True)
    if ranks[1] == 1:
        of_b = of_b.op("Squeeze", of_b.to.ints(-1))
    return _summed(call, of_a, 0), _summed(call, of_b, 1)


@rule("Gemm")
def gemm(call: Call) -> Gradients:
    """Y = α A B + β C, either factor transposed first: α g Bᵀ, α Aᵀ g, β g summed."""
    a, b, g = call.x(0), call.x(1), call.g()
    left, right = bool(call.attr("transA", 0)), bool(call.attr("transB", 0))
    of_a = b.matmul(g, left=right, right=True) if left else g.matmul(b, right=not right)
    of_b = g.matmul(a, left=True, right=left) if right else a.matmul(g, left=not left)
    alpha, beta = call.attr("alpha", 1.0), call.attr("beta", 1.0)
    if alpha != 1.0:
        of_a, of_b = of_a * alpha, of_b * alpha
    if not call.has(2):
        return of_a, of_b
    of_c = g if beta == 1.0 else g * beta
    return of_a, of_b, sum_to(of_c, call.kinds.sizes(call.node.output[0]), call, 2)


@rule("Einsum")
def einsum(call: Call) -> Gradients:
    """Y = Σ A B ... over letters: of a factor, Σ g and the others, over those it does not have."""
    equation = call.attr("equation").decode().replace(" ", "")
    left, arrow, output = equation.partition("->")
    factors = left.split(",")
    gradients: list[Term] = []
    for index, own in enumerate(factors):
        rest = [output, *factors[:index], *factors[index + 1 :]]
        known = set("".join(rest))
        if not arrow or "." in left or len(set(own)) < len(own) or not known.issuperset(own):
            raise call.refusal(f"there is no rule for '{equation}'")
        others = [call.x(at) for at in range(len(factors)) if at != index]
        back = f"{','.join(rest)}->{own}"
        gradients.append(call.g().op("Einsum", *others, equation=back))
    return gradients


def _unsqueezed(term: Term, axis: int) -> Term:
    return term.op("Unsqueeze", term.to.ints(axis))


def _rows(call: Call, term: Term, index: int) -> Term:
    """A tensor as a matrix whose columns are those of input 1 (its rows where `index` is 0)."""
    width = call.raw(1).op("Shape", start=index, end=index + 1)
    sizes = term.to.node("Concat", [term.to.ints(-1), width], axis=0)[0]
    return term.op("Reshape", sizes, allowzero=0)


def _summed(call: Call, gradient: Term, index: int) -> Term:
    """Summed over the batch axes along which a factor was broadcast."""
    own, whole = call.sizes(index), call.kinds.sizes(call.node.output[0])
    rank = len(own)
    if rank == 1 or whole is None or len(call.sizes(1 - index)) == 1:
        return sum_to(gradient, None, call, index)
    return sum_to(gradient, (*whole[:-2], *own[-2:]), call, index)
