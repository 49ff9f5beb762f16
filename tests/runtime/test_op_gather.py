"""GatherW4 and GatherW8 in ONNX Runtime: with the library, without it, and numpy agree."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from op_checks import BOTH
from op_models import BITS, gather_model, make_layer

from qcompiler.numerics import reference

EITHER_WIDTH = pytest.mark.parametrize("bits", BITS)


@BOTH
@EITHER_WIDTH
@pytest.mark.parametrize("ids_type", ["int64", "int32"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("shape", [(1, 1, 32), (100, 35, 32), (128, 48, 64), (300, 17, 256)])
def test_is_exact(session, bits, shape, symmetric, ids_type, library):
    layer = make_layer(*shape, bits=bits, symmetric=symmetric)
    model = gather_model(layer, ids_type=ids_type)
    onnx.checker.check_model(model, full_check=True)
    runner = session(model, library=library)
    n = layer.w.N
    every = np.arange(-n, n, dtype=ids_type)
    for ids in (every.reshape(2, n), every[:1].reshape(1, 1), every[:0].reshape(0, 3)):
        (y,) = runner.run(None, {"ids": ids})
        np.testing.assert_array_equal(y, reference.gather(ids, layer.w))


@BOTH
@EITHER_WIDTH
@pytest.mark.parametrize("ids_shape", [(), ("a",), ("a", "b", "c")], ids=str)
def test_any_rank(session, bits, ids_shape, library):
    layer = make_layer(33, 20, 32, bits=bits)
    ids = np.full([2] * len(ids_shape), 19, np.int64)
    (y,) = session(gather_model(layer, ids_shape=ids_shape), library=library).run(
        None, {"ids": ids}
    )
    np.testing.assert_array_equal(y, reference.gather(ids, layer.w))


@BOTH
@EITHER_WIDTH
@pytest.mark.parametrize("wrong", [35, -36, 47, 48, 2**40, -(2**63)])
def test_an_id_out_of_range_is_an_error(session, bits, wrong, library):
    runner = session(gather_model(make_layer(100, 35, 32, bits=bits)), library=library)
    with pytest.raises(Exception, match=f"id {wrong} is out of range" if library else "Gather"):
        runner.run(None, {"ids": np.array([[0, wrong]], np.int64)})
    (y,) = runner.run(None, {"ids": np.array([[34]], np.int64)})
    assert y.shape == (1, 1, 100)


@EITHER_WIDTH
def test_many_rows_on_threads(session, bits):
    layer = make_layer(576, 1000, 32, bits=bits, symmetric=False)
    ids = np.random.default_rng(0).integers(0, 1000, (2, 333))
    (y,) = session(gather_model(layer)).run(None, {"ids": ids})
    np.testing.assert_array_equal(y, reference.gather(ids, layer.w))
