"""Every matrix kernel of every ISA against the numpy reference."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from op_models import ACTIVATIONS, BITS, assert_close, extreme_problem, make_layer

from qcompiler.numerics import reference

# K, N, group size: below, at and above blocks, panels and groups.
SHAPES = [
    (1, 1, 32),
    (7, 5, 32),
    (8, 16, 32),
    (33, 17, 32),
    (64, 48, 64),
    (100, 35, 32),
    (129, 64, 128),
    (300, 70, 256),
    (520, 150, 128),
    (4200, 100, 64),  # panels so long that a row takes several at once, and some left over
]
# Bits, symmetric.
FORMS = [(4, True), (4, False), (8, True), (8, False)]
ROWS = (*range(1, 10), 11, 13)
# Whole tiles of 16, tiles that share rows, and more than a kernel takes at a time.
MANY_ROWS = (16, 17, 18, 22, 40, 150)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agrees_with_reference(kernels, isa, shape, activation, form):
    bits, symmetric = form
    layer = make_layer(*shape, bits=bits, symmetric=symmetric, bias=symmetric)
    bias = layer.bias if layer.bias.size == layer.w.N else None
    rng = np.random.default_rng(5)
    for m in (*ROWS, *(MANY_ROWS if layer.w.K <= 520 else ())):
        x = rng.normal(size=(m, layer.w.K)).astype(np.float32)
        x[0, 0] = np.nan
        a = layer.quantize(x, activation)
        y = kernels.matmul(isa, a.codes, a.scales, layer.w, bias)
        assert_close(y, layer.expected(x, activation), layer.tolerance(x, activation))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("zero_point", [None, "lowest", "highest", "mixed"])
def test_integer_part_is_exact_at_the_extremes(kernels, isa, zero_point, bits):
    """With all scales 1 the result is the integer sum itself: nothing saturates or rounds."""
    w, q = extreme_problem(bits, zero_point)
    y = kernels.matmul(isa, q, np.ones((8, 1), np.float32), w)
    expected = reference.integer_dots(q, w).sum(axis=1)
    assert np.abs(expected).max() < 2**24
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("rows", [3, 40])
@pytest.mark.parametrize("bits", BITS)
def test_zero_points_of_any_value(kernels, isa, bits, rows):
    """In 4 bits nothing is beyond 15, but nobody checks: the sums are those of the values."""
    w, q = extreme_problem(bits, "mixed")
    rng = np.random.default_rng(1)
    for zero_points in (
        rng.integers(0, 256, w.zero_points.shape, dtype=np.uint8),
        np.full((1, 1, 1), 255, np.uint8),
    ):
        hostile = replace(w, zero_points=zero_points)
        codes = np.resize(q, (rows, q.shape[1]))
        y = kernels.matmul(isa, codes, np.ones((rows, 1), np.float32), hostile)
        np.testing.assert_array_equal(y, reference.integer_dots(codes, hostile).sum(axis=1))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("activation", ["row", "group"])
def test_bits_do_not_depend_on_the_tile(kernels, isa, activation, bits):
    layer = make_layer(1100, 100, 64, bits=bits, symmetric=False)
    x = np.random.default_rng(2).normal(size=(45, 1100)).astype(np.float32)
    a = layer.quantize(x, activation)
    whole = kernels.matmul(isa, a.codes, a.scales, layer.w, layer.bias)
    for rows in ((0, 1), (1, 3), (3, 6), (6, 10), (8, 13), (8, 24), (0, 17), (5, 44)):
        for panels in ((0, 1), (1, 3), (3, 7), (6, 7)):
            part = kernels.matmul(
                isa, a.codes, a.scales, layer.w, layer.bias, rows=rows, panels=panels
            )
            np.testing.assert_array_equal(
                part, whole[slice(*rows), panels[0] * 16 : panels[1] * 16]
            )


def test_tiles_of_others_stay_configured(kernels):
    """Libraries that configure AMX once a thread must find it so after a product of ours."""
    theirs = np.zeros(64, np.uint8)
    theirs[0], theirs[16], theirs[48] = 1, 28, 7  # palette, and one tile of 7 rows of 28 bytes
    if kernels.tiles(theirs) is None:
        pytest.skip("this machine has no AMX")
    layer = make_layer(200, 40, 64)
    a = layer.quantize(np.ones((32, 200), np.float32), "row")
    try:
        kernels.matmul("amxint8", a.codes, a.scales, layer.w, layer.bias)
        np.testing.assert_array_equal(kernels.tiles(), theirs)
    finally:
        kernels.tiles(np.zeros(64, np.uint8))
    kernels.matmul("amxint8", a.codes, a.scales, layer.w, layer.bias)
    assert not kernels.tiles().any()


@pytest.mark.parametrize("shape", [(1, 1, 32), (33, 17, 32), (100, 35, 64)], ids=str)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", BITS)
def test_gather_is_exact(kernels, bits, shape, symmetric):
    w = make_layer(*shape, bits=bits, symmetric=symmetric).w
    dense = w.dequantized()
    for column in range(w.N):
        np.testing.assert_array_equal(kernels.gather(w, column), dense[:, column])
