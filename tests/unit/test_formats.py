"""Formats of weights: what they say of themselves is what the rest of the house does."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from qcompiler.formats import GROUP_SIZES, WIDTHS, WeightFormat, storage_of
from qcompiler.numerics.integer_form import planes_of
from qcompiler.numerics.rounding import QuantizedWeight, quantize_weight

FORMS = [
    *(
        WeightFormat(bits=bits, group_size=size, symmetric=symmetric)
        for bits in WIDTHS[:-1]
        for size in GROUP_SIZES
        for symmetric in (True, False)
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
    ],
)
def test_impossible_formats_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WeightFormat(**fields)


def test_types_that_hold_no_codes() -> None:
    assert storage_of(onnx.TensorProto.FLOAT) is None
    assert storage_of(onnx.TensorProto.INT32) is None
