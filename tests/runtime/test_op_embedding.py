"""The Embedding ops of the library: numpy's bits, from any bytes."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
from linear_models import assert_same_bits, embedding_model, matrix_tensors
from plane_cases import EVERY_FORM, make_planes

from qcompiler.numerics import reference
from qcompiler.numerics.planes import PlaneMatrix


def hostile(w: PlaneMatrix) -> PlaneMatrix:
    """Any bytes, of groups whose weights leave int8 too: they wrap."""
    rng = np.random.default_rng(1)
    changed = {
        name: rng.integers(0, 256, tensor.shape, dtype=np.uint8)
        for name, tensor in matrix_tensors(w).items()
        if name != "scales"
    }
    return dataclasses.replace(w, **changed)


@EVERY_FORM
@pytest.mark.parametrize("ids_type", ["int64", "int32"])
@pytest.mark.parametrize("shape", [(1, 1, 16), (100, 35, 32), (128, 48, 64), (300, 17, 256)])
def test_same_bits_as_the_reference(session, bits, grid, shape, ids_type):
    plain = make_planes(*shape, bits=bits, grid=grid)
    for w in (plain, hostile(plain)):
        model = embedding_model(w, ids_type=ids_type)
        onnx.checker.check_model(model, full_check=True)
        runner = session(model)
        n = w.N
        every = np.arange(-n, n, dtype=ids_type)
        for ids in (every.reshape(2, n), every[:1].reshape(1, 1), every[:0].reshape(0, 3)):
            (y,) = runner.run(None, {"ids": ids})
            assert_same_bits(y, reference.embedding(ids, w))


@pytest.mark.parametrize("ids_shape", [(), ("a",), ("a", "b", "c")], ids=str)
def test_any_rank(session, ids_shape):
    w = make_planes(33, 20, 32, bits=5)
    ids = np.full([2] * len(ids_shape), 19, np.int64)
    (y,) = session(embedding_model(w, ids_shape=ids_shape)).run(None, {"ids": ids})
    assert_same_bits(y, reference.embedding(ids, w))


@pytest.mark.parametrize("bits", [3, 8])
@pytest.mark.parametrize("wrong", [35, -36, 48, 2**40, -(2**63)])
def test_an_id_out_of_range_is_an_error(session, bits, wrong):
    runner = session(embedding_model(make_planes(100, 35, 32, bits=bits)))
    with pytest.raises(Exception, match=f"id {wrong} is out of range"):
        runner.run(None, {"ids": np.array([[0, wrong]], np.int64)})
    (y,) = runner.run(None, {"ids": np.array([[34]], np.int64)})
    assert y.shape == (1, 1, 100)


@EVERY_FORM
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_many_rows_on_threads(session, bits, grid, threads):
    w = make_planes(576, 1000, 32, bits=bits, grid=grid)
    ids = np.random.default_rng(0).integers(0, 1000, (2, 333))
    (y,) = session(embedding_model(w), threads=threads).run(None, {"ids": ids})
    assert_same_bits(y, reference.embedding(ids, w))
