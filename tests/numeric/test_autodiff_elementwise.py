"""Rules of elementwise operators, over random sizes that broadcast."""

from __future__ import annotations

from functools import reduce

import numpy as np
import pytest
from gradient_checks import Operator, check, computed
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
F = torch.nn.functional


def pairs(fold):
    return lambda *xs: reduce(fold, xs)


UNARY = {
    "Neg": Operator("Neg", torch.neg),
    "Exp": Operator("Exp", torch.exp),
    "Erf": Operator("Erf", torch.erf),
    "Tanh": Operator("Tanh", torch.tanh),
    "Sigmoid": Operator("Sigmoid", torch.sigmoid),
    "Softplus": Operator("Softplus", F.softplus),
    "Sin": Operator("Sin", torch.sin),
    "Cos": Operator("Cos", torch.cos),
    "Abs": Operator("Abs", torch.abs),
    "Relu": Operator("Relu", torch.relu),
    "LeakyRelu": Operator("LeakyRelu", lambda x: F.leaky_relu(x, 0.2), {"alpha": 0.2}),
    "Elu": Operator("Elu", lambda x: F.elu(x, 0.7), {"alpha": 0.7}),
    "Gelu": Operator("Gelu", F.gelu),
    "Gelu tanh": Operator("Gelu", lambda x: F.gelu(x, approximate="tanh"), {"approximate": "tanh"}),
    "HardSigmoid": Operator("HardSigmoid", F.hardsigmoid, {"alpha": 1 / 6}),
    "HardSwish": Operator("HardSwish", F.hardswish),
    "Mish": Operator("Mish", F.mish),
    "Selu": Operator("Selu", F.selu),
    "Softsign": Operator("Softsign", F.softsign),
    "Identity": Operator("Identity", lambda x: x * 1),
    "Floor": Operator("Floor", torch.floor),
}
POSITIVE = {
    "Sqrt": Operator("Sqrt", torch.sqrt),
    "Log": Operator("Log", torch.log),
    "Reciprocal": Operator("Reciprocal", torch.reciprocal),
}
BINARY = {
    "Add": Operator("Add", torch.add),
    "Sub": Operator("Sub", torch.sub),
    "Mul": Operator("Mul", torch.mul),
    "Max": Operator("Max", pairs(torch.maximum)),
    "Min": Operator("Min", pairs(torch.minimum)),
}
BINARY_POSITIVE = {"Div": Operator("Div", torch.div), "Pow": Operator("Pow", torch.pow)}
FEW = settings(max_examples=3)


@st.composite
def broadcast(draw, count: int) -> list[list[tuple[int, ...]]]:
    """Sizes of operands for two feeds: of the same ranks, broadcast in different places."""
    rank = draw(st.integers(1, 3))
    ranks = [rank, *(draw(st.integers(0, rank)) for _ in range(count - 1))]
    feeds = []
    for _ in range(2):
        whole = [draw(st.integers(1, 3)) for _ in range(rank)]
        feeds.append(
            [
                tuple(size if draw(st.booleans()) else 1 for size in whole[rank - own :])
                for own in ranks
            ]
        )
    return feeds


def values(sizes, seed: int, positive: bool) -> list[np.ndarray]:
    draws = np.random.default_rng(seed)
    made = [np.asarray(draws.standard_normal(each), np.float32) for each in sizes]
    return [np.asarray(abs(x) + 0.5, np.float32) for x in made] if positive else made


@pytest.mark.parametrize("name", [*UNARY, *POSITIVE])
def test_unary(name: str) -> None:
    operator = (UNARY | POSITIVE)[name]
    shapes = [[(2, 3)], [(4, 1)]]
    check(operator, [values(each, i, name in POSITIVE) for i, each in enumerate(shapes)])


@pytest.mark.parametrize("name", [*BINARY, *BINARY_POSITIVE])
@FEW
@given(feeds=broadcast(2), seed=st.integers(0, 1000))
def test_binary(name: str, feeds, seed: int) -> None:
    operator = (BINARY | BINARY_POSITIVE)[name]
    positive = name in BINARY_POSITIVE
    check(operator, [values(each, seed + i, positive) for i, each in enumerate(feeds)], seed)


@FEW
@given(feeds=broadcast(3), seed=st.integers(0, 1000))
def test_several_operands(feeds, seed: int) -> None:
    cases = [values(each, seed, False) for each in feeds]
    check(Operator("Sum", lambda *xs: sum(xs)), cases, seed)
    check(Operator("Max", pairs(torch.maximum)), cases, seed)


@FEW
@given(feeds=broadcast(3), seed=st.integers(0, 1000))
def test_where(feeds, seed: int) -> None:
    cases = [[mask > 0, *others] for mask, *others in (values(each, seed, False) for each in feeds)]
    check(Operator("Where", torch.where), cases, seed)


def test_clip_and_its_bounds() -> None:
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    low, high = np.float32(-0.5), np.float32(0.7)
    operator = Operator("Clip", torch.clamp)
    check(operator, [[x, np.asarray(low), np.asarray(high)]])
    check(Operator("Clip", lambda x, _, high: x.clamp(max=high)), [[x, None, np.asarray(high)]])


def test_mean() -> None:
    a, b = values([(3, 2), (3, 2)], 0, False)
    check(Operator("Mean", lambda *xs: sum(xs) / len(xs)), [[a, b]])


def test_prelu() -> None:
    x = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
    check(
        Operator("PRelu", lambda x, s: torch.where(x > 0, x, s * x)),
        [[x, np.asarray([0.1, 0.2, 0.3], np.float32)]],
    )


def test_ties_share() -> None:
    a = np.asarray([1.0, 2.0, 3.0], np.float32)
    b = np.asarray([1.0, 5.0, 3.0], np.float32)
    ones = np.ones(3, np.float32)
    (found,) = computed(Operator("Max"), [[a, b]], [ones])
    np.testing.assert_array_equal(found[0], [0.5, 0, 0.5])
    np.testing.assert_array_equal(found[1], [0.5, 1, 0.5])


def test_a_power_of_nothing_has_finite_gradients() -> None:
    x = np.asarray([0.0, 2.0, -3.0], np.float32)
    two = np.asarray(2, np.int64)
    check(Operator("Pow", torch.pow), [[x, two]])
