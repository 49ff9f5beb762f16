"""The CUDA kernels, on the emulated GPU and on a real one: the bits of the numpy reference, no
others."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from cuda_library import FEW_ROWS, MANY_ROWS
from cuda_structures import LinearProduct, Output
from plane_cases import EVERY_FORM, at_their_ends, make_planes
from test_kernel_quantize import rows

from qcompiler.numerics import reference
from qcompiler.numerics.planes import PlaneMatrix
from qcompiler.numerics.reference import quantize_activations

RNG = np.random.default_rng(17)
TYPES = (np.float32, np.float16, ml_dtypes.bfloat16)

# K, N, group size: below, at and above strips, panels, chunks, tiles and groups.
SHAPES = [
    (1, 1, 16),
    (33, 17, 32),
    (100, 35, 16),
    (257, 130, 64),
    (520, 20, 256),
    (1300, 40, 128),
]
NO_BIAS = np.zeros(1, np.float32)


def activations(m: int, k: int, dtype=np.float32) -> np.ndarray:
    return np.random.default_rng(m).normal(size=(m, k)).astype(dtype)


def same_bits(y: np.ndarray, expected: np.ndarray) -> None:
    """`expected` float32, rounded to y's type; of NaN only where they are."""
    with np.errstate(over="ignore"):
        expected = expected.astype(y.dtype)
    nan = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(y), nan)
    bits = np.dtype(f"u{y.dtype.itemsize}")
    np.testing.assert_array_equal(y.view(bits)[~nan], expected.view(bits)[~nan])


def test_mma_fragments_are_those_of_the_manual(cuda):
    """PTX ISA, mma.m16n8k32 with 8-bit operands: the fragments written out, a plain product."""
    A = RNG.integers(-128, 128, (16, 32))
    B = RNG.integers(-128, 128, (32, 8))
    C = RNG.integers(-1000, 1000, (16, 8))
    a, b, c = np.zeros((32, 16), np.int8), np.zeros((32, 8), np.int8), np.zeros((32, 4), np.int32)
    expected = np.zeros((32, 4), np.int32)
    D = C + A @ B
    for lane in range(32):
        group, thread = lane >> 2, lane & 3
        for i in range(16):
            row = group if i < 4 or 8 <= i < 12 else group + 8
            a[lane, i] = A[row, thread * 4 + (i & 3) + (16 if i >= 8 else 0)]
        for i in range(8):
            b[lane, i] = B[thread * 4 + (i & 3) + (16 if i >= 4 else 0), group]
        for i in range(4):
            at = (group if i < 2 else group + 8), thread * 2 + (i & 1)
            c[lane, i], expected[lane, i] = C[at], D[at]
    np.testing.assert_array_equal(cuda.mma(a.view(np.uint32), b.view(np.uint32), c), expected)


def test_copies_arrive_only_when_waited_for(emulated):
    data = RNG.integers(0, 160, 512, dtype=np.uint8)
    np.testing.assert_array_equal(emulated.copy_through_shared(data, wait=True), data)
    assert (emulated.copy_through_shared(data, wait=False) == 0xA5).all()


@pytest.mark.parametrize("static", [None, 0.013])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("k", [1, 31, 64, 100, 257, 2080])
def test_quantize_is_exact(cuda, k, dtype, static):
    with np.errstate(over="ignore"):
        x = np.stack(list(rows(k).values())).astype(dtype)
    expected = quantize_activations(x, static)
    got = cuda.quantize(x, scale=static or 0.0, padded=16)
    m = len(x)
    np.testing.assert_array_equal(got.codes[:m, :k], expected.codes)
    assert not got.codes[:, k:].any() and not got.codes[m:].any()
    np.testing.assert_array_equal(got.scales[:m], expected.scales[:, 0])


def test_quantize_takes_some_rows(cuda):
    x = RNG.normal(size=(9, 70)).astype(np.float32)
    whole, part = cuda.quantize(x), cuda.quantize(x, first=3, rows=4)
    np.testing.assert_array_equal(part.codes[:4], whole.codes[3:7])
    np.testing.assert_array_equal(part.scales[:4], whole.scales[3:7])
    assert not part.codes[4:].any()


@EVERY_FORM
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_same_bits_as_the_reference(cuda, shape, bits, grid):
    w = make_planes(*shape, bits=bits, grid=grid)
    bias = np.random.default_rng(1).normal(size=w.N).astype(np.float32)
    for m, kernel in ((1, FEW_ROWS), (7, FEW_ROWS), (3, MANY_ROWS), (70, 0)):
        x = activations(m, w.K)
        if m > 1:
            x[0, 0], x[1], x[-1, -1] = np.nan, 0, -np.inf
        for scale in (None, 0.013) if m == 7 else (None,):
            with np.errstate(invalid="ignore"):
                expected = reference.linear_a8(x, w, bias, x_scale=scale)
            same_bits(cuda.linear(x, w, bias, scale=scale or 0.0, kernel=kernel), expected)


@pytest.mark.parametrize("m", [2, 3, 4, 8, 9, 16, 17, 64, 65])
def test_any_number_of_rows(cuda, m):
    w = make_planes(70, 20, 32, bits=3)
    x = activations(m, 70)
    same_bits(cuda.linear(x, w, NO_BIAS), reference.linear_a8(x, w, NO_BIAS))


@pytest.mark.parametrize("kernel", [FEW_ROWS, MANY_ROWS])
@EVERY_FORM
def test_sums_at_their_ends(cuda, bits, grid, kernel):
    k, n = 4128, 18
    high = np.random.default_rng(0).choice([False, True], (k // 16, n))
    w = at_their_ends(high, k, 16, bits=bits, grid=grid)
    x = 127 * np.sign(w.weights().T[:4]).astype(np.float32)
    y = cuda.linear(x, w, NO_BIAS, kernel=kernel)
    same_bits(y, reference.linear_a8(x, w, NO_BIAS))
    assert y.max() >= 100 * 127 * k


@pytest.mark.parametrize("kernel", [FEW_ROWS, MANY_ROWS])
@pytest.mark.parametrize("dtype", TYPES)
def test_outputs_of_every_type(cuda, dtype, kernel):
    w = make_planes(200, 150, 64, bits=5)
    x = activations(11, 200, dtype)
    bias = np.array([0.75], np.float32)
    expected = reference.linear_a8(x, w, bias)
    for splits in ((64, 48, 38), (1, 146, 3)):
        same_bits(cuda.linear(x, w, bias, splits=splits, kernel=kernel), expected)
        y = cuda.linear(x, w, bias, splits=splits, absent=(1,), kernel=kernel)
        absent = expected.copy()
        absent[:, splits[0] : splits[0] + splits[1]] = np.nan
        same_bits(y, absent)


def test_more_rows_than_are_quantized_at_once(cuda):
    w = make_planes(96, 40, 32, bits=6)
    x = activations(300, 96)
    same_bits(cuda.linear(x, w, NO_BIAS, chunk=128), reference.linear_a8(x, w, NO_BIAS))


@pytest.mark.parametrize("bits", [3, 8])
def test_bits_do_not_depend_on_the_order_of_threads(emulated, bits):
    w = make_planes(700, 100, 64, bits=bits)
    for m in (5, 70):
        x = activations(m, 700)
        try:
            emulated.reverse(True)
            y = emulated.linear(x, w, NO_BIAS)
        finally:
            emulated.reverse(False)
        same_bits(y, reference.linear_a8(x, w, NO_BIAS))


@EVERY_FORM
def test_any_byte_is_read_without_a_trap(cuda, bits, grid):
    """Groups that leave int8, and codes beyond N and K of any kind."""
    w = make_planes(200, 35, 16, bits=bits, grid=grid)
    rng = np.random.default_rng(3)
    hostile = PlaneMatrix(
        *(w.bits, w.group_size, w.K, w.N),
        rng.integers(0, 256, w.W.shape, dtype=np.uint8),
        None if w.groups is None else rng.integers(0, 256, w.groups.shape, dtype=np.uint8),
        w.scales,
        w.grid,
    )
    for m in (3, 20):
        assert not np.isnan(cuda.linear(activations(m, 200), hostile, NO_BIAS)).any()


def test_no_rows(cuda):
    w = make_planes(64, 20, 32, bits=4)
    assert cuda.linear(np.zeros((0, 64), np.float32), w, NO_BIAS).shape == (0, 20)


@pytest.mark.parametrize(
    ("field", "address", "cause"),
    [
        ("x", 2, "X is not aligned"),
        ("codes", 8, "W is not aligned to 16 bytes"),
        ("groups", 2, "groups is not aligned to 4 bytes"),
        ("scales", 2, "scales is not aligned to 4 bytes"),
        ("bias", 1, "bias is not aligned"),
        ("outputs", 2, "an output is not aligned"),
    ],
)
def test_addresses_that_the_kernels_cannot_read_are_refused(emulated, field, address, cause):
    p = LinearProduct(x=64, codes=64, groups=64, scales=64, bias=64, rows=1, k=32, n=1, form=4)
    p.outputs[0] = Output(64, 0, 1)
    assert emulated.refusal(p) is None
    if field == "outputs":
        p.outputs[0].data = address
    else:
        setattr(p, field, address)
    assert cause in emulated.refusal(p)


@EVERY_FORM
@pytest.mark.parametrize("shape", SHAPES[:4], ids=str)
def test_embedding_is_exact(cuda, shape, bits, grid):
    w = make_planes(*shape, bits=bits, grid=grid)
    for dtype in (np.int64, np.int32):
        ids = np.arange(-w.N, w.N, dtype=dtype).reshape(2, -1)
        same_bits(cuda.embedding(ids, w), reference.embedding(ids, w))


@pytest.mark.parametrize("wrong", [35, -36, 47, 2**40, -(2**63)])
def test_a_row_out_of_range_is_nan(cuda, wrong):
    w = make_planes(100, 35, 16, bits=5)
    found = cuda.embedding(np.array([3, wrong, 5]), w)
    assert np.isnan(found[1]).all()
    same_bits(found[[0, 2]], reference.embedding(np.array([3, 5]), w))
