"""Weights in the integer form: they dequantize to the same floats, or have no such form."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qcompiler.analysis.qdq import insert_weight_dq, weight_dq
from qcompiler.formats import GROUP_SIZES, WeightFormat
from qcompiler.ir import Namer
from qcompiler.numerics.integer_form import planes_form, planes_of
from qcompiler.numerics.planes import MOST_ROWS, Grid, most_multiple
from qcompiler.numerics.rounding import QuantizedWeight, joined, quantize_weight

FORM = WeightFormat(bits=4, group_size=32)
NARROW = (2, 3, 4, 5, 6)


def normal(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def of(scales, *, bits: int = 4, codes=None, zero=None) -> QuantizedWeight:
    """A weight of one column and groups of 32 with these scales."""
    form = WeightFormat(bits=bits, group_size=32, symmetric=zero is None)
    steps = np.array(scales, np.float32)[:, None]
    if codes is None:
        codes = np.full((32 * len(steps), 1), form.middle + 1, np.uint8)
    zeros = None if zero is None else np.full(steps.shape, zero, np.uint8)
    return QuantizedWeight(codes, steps, zeros, form)


def stored(weight: QuantizedWeight) -> QuantizedWeight:
    """As a graph tells it: codes of 2 and 3 bits in 4, those of 5 and 6 in 8."""
    form = weight.form
    graph = gs.Graph(opset=21)
    insert_weight_dq(graph, weight, "w", Namer(graph))
    found = weight_dq(graph.nodes[0].outputs[0])
    assert found is not None
    assert found.form == replace(form, bits=4 if form.bits <= 4 else 8)
    return found.load()


@pytest.mark.parametrize("search", ["none", "mse"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("bits", NARROW)
def test_narrow_weights_have_the_form(bits: int, group_size: int, symmetric: bool, search) -> None:
    form = WeightFormat(bits=bits, group_size=group_size, symmetric=symmetric)
    values = normal(3 * group_size + 5, 37) * np.exp(normal(1, 37, 1))
    values[:, 3] = 0.0
    weight = quantize_weight(values, form, search=search)
    for each in (weight, stored(weight)):
        planes = planes_of(each)
        assert planes is not None
        assert (planes.bits, planes.group_size, planes.grid) == (bits, group_size, None)
        assert planes_form(each) == (bits, False)
        assert planes.scales.shape == (37,)
        np.testing.assert_array_equal(planes.dequantized(), weight.dequantize())
    if search == "mse" and symmetric:
        assert (weight.scales < 0).any()  # mirrored codes were among them


@given(data=st.data(), bits=st.integers(2, 6), zeros=st.booleans())
def test_multiples_of_any_number_are_found(data: st.DataObject, bits: int, zeros: bool) -> None:
    groups, columns, size = 3, 5, 16
    top, most = (1 << bits) - 1, most_multiple(bits)
    shape = (groups, columns)

    def drawn(least: int, greatest: int, shape: tuple[int, ...]) -> np.ndarray:
        return data.draw(hnp.arrays(np.int64, shape, elements=st.integers(least, greatest)))

    steps = drawn(1, most, shape)
    # With 24 - log2(most) bits a unit leaves room for every multiple in a float32.
    units = drawn(1, 2**24 // most, (columns,)) * 2.0 ** drawn(-120, 90, (columns,))
    scales = (steps * units * (2 * drawn(0, 1, shape) - 1)).astype(np.float32)
    codes = drawn(0, top, (groups * size - 3, columns)).astype(np.uint8)
    form = WeightFormat(bits=bits, group_size=size, symmetric=not zeros)
    points = drawn(0, top, shape).astype(np.uint8) if zeros else None
    weight = QuantizedWeight(codes, scales, points, form)
    planes = planes_of(weight)
    point = np.int64(form.middle) if points is None else weight.spread(points.astype(np.int64))
    largest = np.abs((codes - point) * weight.spread(steps // np.gcd.reduce(steps, axis=0)))
    if largest.max() > 127:
        assert planes is None
    else:
        assert planes is not None and planes.bits <= bits
        np.testing.assert_array_equal(planes.weights() * planes.scales, weight.dequantize())


@given(
    scales=st.one_of(
        hnp.arrays(np.float32, (4, 1), elements=st.floats(width=32)),
        hnp.arrays(np.float32, (4, 1), elements=st.floats(-60000, 60000, width=16)),
        hnp.arrays(np.float32, (4, 1), elements=st.integers(1, 200).map(float)),
    ),
    bits=st.sampled_from([2, 4, 8]),
)
def test_the_form_is_exact_or_none(scales: np.ndarray, bits: int) -> None:
    weight = of(scales[:, 0], bits=bits)  # which codes of 2 bits hold
    planes = planes_of(weight)
    if not np.isfinite(scales).all():
        assert planes is None
        return
    sizes = np.abs(scales.astype(np.float64))
    least = float(sizes.min())
    # The unit divides the least scale: some part of it does for all, or none is found.
    exists = least > 0 and any(
        ((sizes * part % least) == 0).all() and (sizes * part <= least * most_multiple(2)).all()
        for part in range(1, most_multiple(2) + 1)
    )
    assert (planes is not None) == exists
    if planes is not None:
        np.testing.assert_array_equal(planes.dequantized(), weight.dequantize())


@pytest.mark.parametrize("bits", [*NARROW, 8])
def test_any_scales_have_none(bits: int) -> None:
    weight = quantize_weight(normal(256, 16), WeightFormat(bits=bits, group_size=32))
    anything = np.abs(normal(8, 16, 1)) + np.float32(0.1)
    assert planes_of(replace(weight, scales=anything)) is None
    assert planes_form(replace(weight, scales=anything)) is None


def test_codes_get_the_narrowest_form_that_leaves_room_for_multiples() -> None:
    codes = np.tile(np.arange(8, 12, dtype=np.uint8), 16)[:, None]  # 0 .. 3 above the middle
    for multiple, form in ((1, (2, False)), (42, (2, False)), (43, None)):  # 3 · 43 is beyond 127
        assert planes_form(of([1.0, multiple], codes=codes)) == form
    codes[-1] = 12
    for multiple, form in ((31, (3, False)), (32, None)):
        assert planes_form(of([1.0, multiple], codes=codes)) == form
    codes[:9, 0] = [8, 0, 1, 2, 3, 4, 13, 14, 15]
    for multiple, form in ((16, (4, False)), (17, None)):
        assert planes_form(of([1.0, multiple], codes=codes)) == form
    few = np.full((64, 1), 8, np.uint8)
    few[:5, 0] = [11, 12, 13, 14, 15]  # in the group whose multiple is 1
    for multiple, form in ((32, (3, False)), (33, None)):
        assert planes_form(of([1.0, multiple], codes=few)) == form


def with_levels(
    grid: Grid, bits: int, *, size: int = 16, stored: int = 8, seed: int = 0
) -> QuantizedWeight:
    """A weight whose codes are the levels of a grid, in three groups of 21 columns."""
    rng = np.random.default_rng(seed)
    zeros = grid.zero + rng.integers(0, 1 << bits, (3, 21))
    zeros[:2, 0] = grid.zero, grid.zero + (1 << bits) - 1
    reach = np.maximum(zeros - grid.levels[0], grid.levels[-1] - zeros)
    most = np.minimum(127 // np.maximum(reach, 1), 255 // max(grid.levels[-1], 1))
    multiples = rng.integers(1, np.minimum(most, most_multiple(bits)) + 1)
    multiples[0] = 1
    units = rng.uniform(0.5, 2.0, 21).astype(np.float32).view(np.int32) & -256
    codes = rng.choice(np.array(grid.levels, np.uint8), (3 * size - 5, 21))
    codes[: len(grid.levels), 0] = grid.levels
    return QuantizedWeight(
        codes,
        (multiples * units.view(np.float32)).astype(np.float32),
        zeros.astype(np.uint8),
        WeightFormat(bits=stored, group_size=size, symmetric=False),
    )


@pytest.mark.parametrize(
    ("bits", "grid"),
    [
        (2, Grid((0, 3, 6, 9), 3)),
        (2, Grid((0, 8, 9), 5)),
        (3, Grid((0, 4, 7, 10, 13, 16, 20, 32), 12)),
        (4, Grid((0, *range(2, 16), 17), 1)),
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [16, 64, 256])
def test_codes_that_are_levels_are_numbered(bits: int, grid: Grid, size: int) -> None:
    weight = with_levels(grid, bits, size=size)
    planes = planes_of(weight)
    assert planes is not None
    assert (planes.bits, planes.grid) == (bits, grid.filled(bits))
    assert planes_form(weight) == (bits, True)
    np.testing.assert_array_equal(planes.dequantized(), weight.dequantize())


def test_levels_in_four_bits_are_numbered() -> None:
    weight = with_levels(Grid((0, 3, 6, 9), 3), 2, stored=4)
    assert planes_form(weight) == (2, True)
    shifted = replace(weight, codes=weight.codes + 4, zero_points=weight.zero_points + np.uint8(4))
    for each in (weight, shifted):
        planes = planes_of(each)
        assert planes is not None and planes.grid == Grid((0, 3, 6, 9), 3)
        np.testing.assert_array_equal(planes.dequantized(), weight.dequantize())


@given(data=st.data(), bits=st.integers(2, 4))
def test_any_levels_are_numbered_or_numbers(data: st.DataObject, bits: int) -> None:
    """In a narrower form than their range asks for, where they are few; else as ever."""
    some = st.lists(st.integers(0, 32), min_size=1, max_size=1 << bits, unique=True)
    grid = Grid(tuple(sorted(data.draw(some))), data.draw(st.integers(0, 32)))
    weight = with_levels(grid, bits, seed=data.draw(st.integers(0, 99)))
    planes = planes_of(weight)
    assert planes is not None and planes.bits <= bits
    np.testing.assert_array_equal(planes.dequantized(), weight.dequantize())


def test_what_no_grid_holds() -> None:
    """Levels beyond 32, zero points too far apart, and levels whose multiples leave a byte."""
    zeros = np.array([[10], [10]], np.uint8)

    def made(codes: list[int], multiple: int, zeros: np.ndarray = zeros) -> QuantizedWeight:
        form = WeightFormat(bits=8, group_size=16, symmetric=False)
        tiled = np.resize(np.array(codes, np.uint8), (32, 1))
        return QuantizedWeight(tiled, np.array([[1.0], [multiple]], np.float32), zeros, form)

    assert planes_form(made([0, 10, 30, 32], 1)) == (2, True)
    assert planes_form(made([0, 10, 30, 33], 1)) == (6, False)
    assert planes_form(made([0, 10, 30, 32], 5)) == (2, True)
    assert planes_form(made([0, 10, 30, 33], 5)) is None  # codes of 6 bits have multiples up to 4
    assert planes_form(made([0, 1, 30, 32], 1, np.array([[9], [12]], np.uint8))) == (2, True)
    assert planes_form(made([0, 1, 30, 32], 1, np.array([[9], [13]], np.uint8))) == (3, True)
    assert planes_form(made([0, 1, 30, 32], 1, np.array([[9], [25]], np.uint8))) == (6, False)
    near = np.array([[20], [20]], np.uint8)
    assert planes_form(made([0, 20, 30, 31], 6, near)) == (2, True)
    far = np.array([[30], [31]], np.uint8)
    high = np.array([[0]] * 16 + [[30]] * 15 + [[32]], np.uint8)
    for multiple, form in ((7, (2, True)), (8, None)):  # 32 · 8 is beyond 255
        weight = replace(made([0], multiple, far), codes=high)
        assert planes_form(weight) == form


def test_joined_grids_are_one() -> None:
    parts = [
        with_levels(Grid(levels, 3), 2, seed=n) for n, levels in enumerate(((0, 3, 9), (0, 6)))
    ]
    whole = planes_of(joined(parts))
    assert whole is not None and whole.grid == Grid((0, 3, 6, 9), 3)
    np.testing.assert_array_equal(
        whole.dequantized(), np.hstack([part.dequantize() for part in parts])
    )


def test_columns_of_one_group() -> None:
    for bits, search in ((2, "mse"), (4, "none"), (4, "mse"), (6, "none"), (8, "none")):
        form = WeightFormat(bits=bits, group_size=64)
        weight = quantize_weight(normal(50, 20), form, search=search)
        planes = planes_of(weight)
        assert planes is not None
        assert planes.bits == bits
        assert (planes.groups is None) == (bits == 8)
        np.testing.assert_array_equal(planes.dequantized(), weight.dequantize())


def test_eight_bits_have_one_scale_a_column() -> None:
    assert planes_of(of([0.5, 0.5], bits=8)) is not None
    assert planes_of(of([0.5, -0.5], bits=8)) is not None
    wide = np.full((64, 1), 129, np.uint8)
    wide[0] = 255
    assert planes_of(of([0.5, 0.5], bits=8, codes=wide)) is not None
    assert planes_of(of([0.5, 1.0], bits=8, codes=wide)) is None
    assert planes_of(of([0.5], bits=8, codes=np.zeros((32, 1), np.uint8))) is None, "-128"
    assert planes_of(of([0.5], bits=8, codes=np.full((32, 1), 127, np.uint8), zero=0)) is not None
    assert planes_of(of([0.5], bits=8, codes=np.full((32, 1), 128, np.uint8), zero=0)) is None


@pytest.mark.parametrize("scales", [[0.0, 1.0], [np.inf, 1.0], [np.nan, 1.0], [1.0, 65.0]])
def test_scales_that_no_unit_has(scales: list[float]) -> None:
    assert planes_of(of(scales)) is None


def test_weights_beyond_int8_have_none() -> None:
    codes = np.full((64, 1), 8, np.uint8)
    codes[40] = 0
    assert planes_of(of([1.0, 15.0], codes=codes)) is not None
    assert planes_of(of([1.0, 16.0], codes=codes)) is None, "-8 · 16 is -128"


def test_sizes_that_the_layout_does_not_hold() -> None:
    assert planes_of(of([1.0] * (MOST_ROWS // 32))) is not None
    assert planes_of(of([1.0] * (MOST_ROWS // 32 + 1))) is None
    assert planes_of(replace(of([1.0]), form=replace(FORM, group_size=48))) is None


def test_joined_weights_keep_the_form() -> None:
    parts = [quantize_weight(normal(96, n, n), FORM, search="mse") for n in (5, 16, 3)]
    whole = planes_of(joined(parts))
    assert whole is not None
    np.testing.assert_array_equal(
        whole.weights(), np.hstack([planes_of(part).weights() for part in parts])
    )
