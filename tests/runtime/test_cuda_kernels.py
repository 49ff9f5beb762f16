"""The CUDA kernels against the numpy reference: on the emulated GPU, and on a real one."""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from cuda_library import ELEMENTS, LARGE, SMALL, WGMMA
from cuda_structures import Output, Product
from op_models import (
    ACTIVATIONS,
    BITS,
    X_SCALE,
    assert_close,
    extreme_problem,
    make_layer,
)
from test_kernel_quantize import rows

from qcompiler.formats import GROUP_SIZES
from qcompiler.numerics import reference
from qcompiler.numerics.reference import quantize_activations

RNG = np.random.default_rng(17)
TYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
# K, N, group size: below, at and above steps of 32, panels, tiles and groups.
SHAPES = [
    (1, 1, 32),
    (33, 17, 32),
    (100, 35, 32),
    (257, 130, 64),
    (520, 150, 128),
    (1300, 40, 256),
    (2100, 20, 32),
]
KERNELS = pytest.mark.parametrize("kernel", [SMALL, LARGE, WGMMA], ids=["small", "large", "wgmma"])
FORMS = [(4, True), (4, False), (8, True), (8, False)]  # bits, symmetric


def product(cuda, layer, x, activation, **options) -> np.ndarray:
    need(cuda, options.get("kernel", 0))
    scale = X_SCALE if activation == "static" else 0.0
    y = cuda.matmul(x, layer.w, layer.bias, block=layer.block(activation), scale=scale, **options)
    return y.astype(np.float32)


def need(cuda, kernel: int) -> None:
    if kernel and kernel not in cuda.kernels():
        pytest.skip("this kernel is for GPUs of compute capability 9.0")


def test_mma_fragments_are_those_of_the_manual(cuda):
    """PTX ISA, mma.m16n8k32 with 8-bit operands: the fragments written out, a plain product."""
    A = RNG.integers(0, 256, (16, 32))
    B = RNG.integers(-128, 128, (32, 8))
    C = RNG.integers(-1000, 1000, (16, 8))
    a, b, c = np.zeros((32, 16), np.uint8), np.zeros((32, 8), np.int8), np.zeros((32, 4), np.int32)
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


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("k", [1, 31, 64, 100, 257, 2080])
def test_quantize_is_exact(cuda, k, group_size, activation):
    block = group_size if activation == "group" else k
    static = 0.013 if activation == "static" else None
    for dtype in TYPES.values():
        with np.errstate(over="ignore"):
            x = np.stack(list(rows(k).values())).astype(dtype)
        expected = quantize_activations(x, block, static)
        got = cuda.quantize(x, block, group_size, scale=static or 0.0, zero_point=8, padded=16)
        m = len(x)
        np.testing.assert_array_equal(got.codes[:m, :k], expected.codes)
        assert not got.codes[:, k:].any() and not got.codes[m:].any()
        wanted = expected.scales if activation == "group" else expected.scales[:, :1]
        np.testing.assert_array_equal(got.scales[:m], wanted)
        sums = np.add.reduceat(expected.codes.astype(int), range(0, k, group_size), axis=1)
        np.testing.assert_array_equal(got.starts[:m], -8 * sums)
        assert not got.starts[m:].any()


def test_quantize_takes_some_rows(cuda):
    x = RNG.normal(size=(9, 70)).astype(np.float32)
    whole, part = cuda.quantize(x, 70, 32), cuda.quantize(x, 70, 32, first=3, rows=4)
    np.testing.assert_array_equal(part.codes[:4], whole.codes[3:7])
    np.testing.assert_array_equal(part.starts[:4], whole.starts[3:7])
    assert not part.codes[4:].any()


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agrees_with_reference(cuda, shape, form):
    bits, symmetric = form
    layer = make_layer(*shape, bits=bits, symmetric=symmetric, bias=symmetric)
    for activation in ACTIVATIONS:
        for m, kernel in ((1, SMALL), (9, SMALL), (29, SMALL), (3, LARGE), (70, 0), (40, WGMMA)):
            if kernel not in (0, *cuda.kernels()):
                continue
            x = RNG.normal(size=(m, layer.w.K)).astype(np.float32)
            x[0, 0] = np.nan
            x[-1, -1] = -np.inf
            y = product(cuda, layer, x, activation, kernel=kernel)
            assert_close(y, layer.expected(x, activation), layer.tolerance(x, activation))


@KERNELS
@pytest.mark.parametrize("dtype", ELEMENTS)
@pytest.mark.parametrize("splits", [(150, 0, 0), (64, 48, 38), (1, 146, 3)], ids=str)
def test_outputs_of_every_type(cuda, splits, dtype, kernel):
    layer = make_layer(200, 150, 64, symmetric=False)
    x = RNG.normal(size=(11, 200)).astype(TYPES[dtype])
    expected, tolerance = layer.expected(x, "row"), layer.tolerance(x, "row")
    y = product(cuda, layer, x, "row", splits=splits, kernel=kernel)
    assert_close(y, expected, tolerance, dtype)
    if splits[1]:
        absent = slice(splits[0], splits[0] + splits[1])
        y = product(cuda, layer, x, "row", splits=splits, absent=(1,), kernel=kernel)
        assert np.isnan(y[:, absent]).all()
        y[:, absent] = expected[:, absent]
        assert_close(y, expected, tolerance, dtype)


@KERNELS
@pytest.mark.parametrize("zero_point", [None, "lowest", "highest", "mixed"])
@pytest.mark.parametrize("bits", BITS)
def test_integer_part_is_exact_at_the_extremes(cuda, bits, zero_point, kernel):
    """With all scales 1 the result is the integer sum itself, as on the CPU."""
    w, q = extreme_problem(bits, zero_point)
    x = q.astype(np.float32)
    need(cuda, kernel)
    y = cuda.matmul(x, w, np.zeros(1, np.float32), block=w.K, scale=1.0, kernel=kernel)
    np.testing.assert_array_equal(y, reference.integer_dots(q, w).sum(axis=1))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_integer_part_is_that_of_the_cpu(cuda, kernels, activation):
    """Scales that are powers of two, and few bits: no sum rounds, so all kernels agree exactly."""
    layer = make_layer(300, 70, 64, symmetric=False)
    w = layer.w
    halves = np.exp2(np.round(np.log2(np.maximum(w.scales, 2**-6)))).astype(np.float16)
    exact = replace(w, scales=halves)
    x = RNG.integers(-127, 128, (40, 300)).astype(np.float32)
    x[:, ::32] = 127  # a scale of 1 for each row and group
    block = w.form.group_size if activation == "group" else w.K
    a = quantize_activations(x, block)
    on_cpu = kernels.matmul("reference", a.codes, a.scales, exact)
    for kernel, m in ((SMALL, 30), (LARGE, 40), (WGMMA, 40)):
        if kernel not in cuda.kernels():
            continue
        y = cuda.matmul(
            x[:m],
            exact,
            np.zeros(1, np.float32),
            block=block,
            scale=1.0 if activation == "static" else 0.0,
            kernel=kernel,
        )
        np.testing.assert_array_equal(y, on_cpu[:m])


@pytest.mark.parametrize("bits", BITS)
def test_bits_do_not_depend_on_the_order_of_threads(cuda, bits):
    layer = make_layer(1100, 100, 64, bits=bits, symmetric=False)
    x = RNG.normal(size=(70, 1100)).astype(np.float32)
    cases = [(1, {}), (5, {"serial": True}), (20, {}), (70, {"k_splits": 3}), (70, {"chunk": 64})]
    cases += [(40, {"kernel": kernel}) for kernel in cuda.kernels() if kernel != SMALL]
    for m, options in cases:
        first = product(cuda, layer, x[:m], "row", **options)
        try:
            cuda.reverse(True)
            again = product(cuda, layer, x[:m], "row", **options)
        finally:
            cuda.reverse(False)
        np.testing.assert_array_equal(first, again)
        assert_close(first, layer.expected(x[:m], "row"), layer.tolerance(x[:m], "row"))


def test_bits_do_not_depend_on_the_other_rows(cuda):
    layer = make_layer(700, 50, 32)
    x = RNG.normal(size=(200, 700)).astype(np.float32)
    few = product(cuda, layer, x[:30], "group")
    for some in (slice(3, 4), slice(2, 11), slice(1, 18)):
        np.testing.assert_array_equal(product(cuda, layer, x[some], "group"), few[some])
    many = product(cuda, layer, x, "group", k_splits=1)
    assert_close(many, layer.expected(x, "group"), layer.tolerance(x, "group"))
    np.testing.assert_array_equal(
        product(cuda, layer, x[5:50], "group", k_splits=1, kernel=LARGE), many[5:50]
    )


@pytest.mark.parametrize("k_splits", [2, 5, 16, 99])
def test_groups_shared_out_to_blocks(cuda, k_splits):
    layer = make_layer(600, 140, 64, symmetric=False)
    x = RNG.normal(size=(33, 600)).astype(np.float16)
    for activation in ACTIVATIONS:
        y = product(cuda, layer, x, activation, splits=(100, 40, 0), k_splits=k_splits)
        expected, tolerance = layer.expected(x, activation), layer.tolerance(x, activation)
        assert_close(y, expected, tolerance, "float16")


def test_more_rows_than_are_quantized_at_once(cuda):
    layer = make_layer(96, 40, 32)
    x = RNG.normal(size=(300, 96)).astype(np.float32)
    y = product(cuda, layer, x, "row", chunk=128)
    np.testing.assert_array_equal(y, product(cuda, layer, x, "row"))


@KERNELS
def test_one_bias_and_one_zero_point(cuda, kernel):
    w = make_layer(64, 20, 32).w
    shifted = replace(w, zero_points=np.full((1, 1, 1), 5, np.uint8))
    x = RNG.normal(size=(2, 64)).astype(np.float32)
    need(cuda, kernel)
    y = cuda.matmul(x, shifted, np.array([0.5], np.float32), block=64, kernel=kernel)
    expected = reference.matmul_a8(x, shifted, np.array([0.5], np.float32), activation_block=64)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


def test_no_rows(cuda):
    layer = make_layer(64, 20, 32)
    assert product(cuda, layer, np.zeros((0, 64), np.float32), "row").shape == (0, 20)


@pytest.mark.parametrize(
    ("field", "address", "cause"),
    [
        ("x", 2, "X is not aligned"),
        ("codes", 8, "W is not aligned to 16 bytes"),
        ("scales", 4, "scales is not aligned to 8 bytes"),
        ("zero_points", 2, "zero_points is not aligned to 4 bytes"),
        ("bias", 1, "bias is not aligned"),
        ("outputs", 2, "an output is not aligned"),
    ],
)
def test_addresses_that_the_kernels_cannot_read_are_refused(emulated, field, address, cause):
    p = Product(x=64, codes=64, scales=64, zero_points=64, bias=64, rows=1, k=32, n=1, bits=4)
    p.outputs[0] = Output(64, 0, 1)
    assert emulated.refusal(p) is None
    if field == "outputs":
        p.outputs[0].data = address
    else:
        setattr(p, field, address)
    assert cause in emulated.refusal(p)


@pytest.mark.parametrize("unit_bytes", [256, 512], ids=["4 bit", "8 bit"])
def test_tiles_lie_on_different_banks(unit_bytes):
    """The swizzle of the tiled kernels: eight lanes that read at once meet all 32 banks."""

    def swizzled(unit):  # as in multiply_tiled.h
        return unit ^ (unit >> 2 & 6)

    loads = unit_bytes // 256
    for step in range(2):
        for load in range(loads):
            for first in range(0, 32, 8):
                banks = set()
                for lane in range(first, first + 8):
                    group, thread = lane // 4, lane % 4
                    unit = step * 16 * loads + (thread * loads + load) * 4 + group % 4
                    banks.add(swizzled(unit) % 8)
                assert len(banks) == 8


@pytest.mark.parametrize("dtype", [np.int64, np.int32])
@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize(
    "shape", [(1, 1, 32), (33, 17, 32), (100, 35, 64), (1300, 40, 256)], ids=str
)
def test_gather_is_exact(cuda, shape, form, dtype):
    bits, symmetric = form
    w = make_layer(*shape, bits=bits, symmetric=symmetric).w
    ids = np.arange(-w.N, w.N, dtype=dtype).reshape(2, -1)
    np.testing.assert_array_equal(cuda.gather(ids, w), reference.gather(ids, w))


@pytest.mark.parametrize("wrong", [35, -36, 47, 2**40, -(2**63)])
def test_a_row_out_of_range_is_nan(cuda, wrong):
    w = make_layer(100, 35, 32, bits=4, symmetric=False).w
    found = cuda.gather(np.array([3, wrong, 5]), w)
    assert np.isnan(found[1]).all()
    np.testing.assert_array_equal(found[[0, 2]], reference.gather(np.array([3, 5]), w))
