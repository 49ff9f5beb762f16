"""Formats of weights: what they say of themselves is what the rest of the house does."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from qcompiler.formats import GRIDS, GROUP_SIZES, WIDTHS, Grid, WeightFormat, storage_of
from qcompiler.numerics.integer_form import planes_of
from qcompiler.numerics.rounding import QuantizedWeight, quantize_weight

FORMS = [
    *(
        WeightFormat(bits=bits, group_size=size, symmetric=symmetric)
        for bits in WIDTHS[:-1]
        for size in GROUP_SIZES
        for symmetric in (True, False)
    ),
    *(
        WeightFormat(bits=bits, group_size=size, symmetric=False, grid=grid)
        for (_, bits), grid in GRIDS.items()
        for size in GROUP_SIZES
    ),
    WeightFormat(bits=8),
]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_the_text_is_read_back(form: WeightFormat) -> None:
    assert WeightFormat.parse(str(form)) == form


def quantized(form: WeightFormat) -> QuantizedWeight:
    """Of whole groups, blocks, strips and panels: no padding."""
    shape = (2 * max(form.group_size or 0, 32), 32)
    weight = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return quantize_weight(weight, form)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_bytes_are_those_of_the_planes(form: WeightFormat) -> None:
    q = quantized(form)
    planes = planes_of(q)
    assert planes is not None
    groups = 0 if planes.groups is None else planes.groups.nbytes
    stored = planes.W.nbytes + groups + planes.scales.nbytes
    assert form.nbytes(*q.codes.shape) == q.nbytes() == stored
    assert q.codes.max() <= form.top


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_onnx_holds_every_code_of_a_format(form: WeightFormat) -> None:
    storage = form.storage
    assert storage_of(storage.element_type) is storage
    codes = np.arange(form.top + 1) - (form.middle if storage.signed else 0)
    np.testing.assert_array_equal(codes.astype(storage.dtype).astype(np.int64), codes)
    assert onnx.helper.np_dtype_to_tensor_dtype(storage.dtype) == storage.element_type


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("int4", "is no weight format such as"),
        ("int4 g32", "is no weight format such as"),
        ("int04 g32 sym", "is no weight format such as"),
        ("int4 g32 symmetric", "is no weight format such as"),
        ("int4 g32 sym progressive", "is no weight format such as"),
        ("int7 g32 sym", "weights have 2, 3, 4, 5, 6 or 8 bits"),
        ("int4 g032 sym", "is no weight format such as"),
        ("int4 sym", "groups have"),
        ("int8 g128 sym", "of 8 bits are 'int8 sym', a scale a column"),
        ("int8 asym", "of 8 bits are 'int8 sym', a scale a column"),
        ("int8 gaussian", "of 8 bits are 'int8 sym', a scale a column"),
        ("int4 g32 learnt", "is no weight format such as"),
        ("int5 g32 gaussian", "weights of 5 bits have no grid 'gaussian'"),
        ("int2 g32 nf4", "weights of 2 bits have no grid 'nf4'"),
        ("int4 g48 sym", "groups have 16, 32, 64, 128 or 256 channels"),
    ],
)
def test_other_texts_are_explained(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WeightFormat.parse(text)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bits": 1, "group_size": 32}, "2 to 8 bits, not 1"),
        ({"bits": 16, "group_size": 32}, "2 to 8 bits, not 16"),
        ({"bits": 4, "group_size": 0}, "at least one channel"),
        (
            {"bits": 3, "group_size": 32, "symmetric": False, "grid": GRIDS["nf4", 4]},
            "weights of 3 bits have no grid 'nf4'",
        ),
        (
            {"bits": 4, "group_size": 32, "grid": GRIDS["nf4", 4]},
            "weights of 4 bits have no grid 'nf4'",
        ),
    ],
)
def test_impossible_formats_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WeightFormat(**fields)


def test_types_that_hold_no_codes() -> None:
    assert storage_of(onnx.TensorProto.FLOAT) is None
    assert storage_of(onnx.TensorProto.INT32) is None


@pytest.mark.parametrize("grid", GRIDS.values(), ids=lambda grid: f"{grid.name}{grid.bits}")
def test_grids_are_what_the_ops_hold(grid: Grid) -> None:
    """Up to 2^bits levels of 0 .. 32, ascending; zero points that follow one another."""
    assert grid.levels[0] == 0
    assert list(grid.levels) == sorted(set(grid.levels))
    assert grid.levels[-1] <= 32
    assert 1 << (grid.bits - 1) < len(grid.levels) <= 1 << grid.bits
    assert grid.zeros.step == 1
    assert 0 < len(grid.zeros) <= 1 << grid.bits
    assert grid.zeros[0] >= 0 and grid.zeros[-1] <= grid.levels[-1]


@pytest.mark.parametrize(
    ("name", "bits", "values"),
    [
        ("ternary", 2, [-1, 0, 1]),
        ("balanced", 3, [-2, -1, 0, 1, 2]),
        ("odd", 2, [-3, -1, 1, 3]),
        ("fp4", 4, [sign * x for sign in (1, -1) for x in (0, 0.5, 1, 1.5, 2, 3, 4, 6)]),
        ("dint4", 4, [sign * x for sign in (1, -1) for x in (0, 0.5, 1, 2, 3, 4, 5, 6)]),
    ],
)
def test_published_grids_have_the_published_values(
    name: str, bits: int, values: list[float]
) -> None:
    grid = GRIDS[name, bits]
    middle = grid.zeros[len(grid.zeros) // 2]
    unit = max(values) / (grid.levels[-1] - middle)
    assert [(level - middle) * unit for level in grid.levels] == sorted({x + 0.0 for x in values})


def test_nf4_has_the_published_values_to_a_sixteenth() -> None:
    """The quantiles as bitsandbytes has them."""
    values = (-1.0, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0.0, 0.0796, 0.1609)
    values += (0.2461, 0.3379, 0.4407, 0.5626, 0.7230, 1.0)
    grid = GRIDS["nf4", 4]
    assert [level - 16 for level in grid.levels] == [round(16 * value) for value in values]
