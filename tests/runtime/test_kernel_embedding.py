"""The kernel of the Embedding ops: numpy's bits, and nothing read or written beside the tensors."""

from __future__ import annotations

import numpy as np
import pytest
from plane_cases import EVERY_FORM, make_planes


@pytest.mark.parametrize("shape", [(1, 1, 16), (33, 17, 32), (100, 35, 64), (129, 16, 16)], ids=str)
@EVERY_FORM
def test_embedding_is_exact(kernels, bits, grid, shape):
    w = make_planes(*shape, bits=bits, grid=grid)
    dense = w.dequantized()
    for column in range(w.N):
        np.testing.assert_array_equal(kernels.embedding(w, column), dense[:, column])
