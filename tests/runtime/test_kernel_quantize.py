"""Activation quantization and the 16-bit float conversions of every ISA."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from qcompiler.numerics.reference import quantize_activations

RNG = np.random.default_rng(11)


def rows(k: int) -> dict[str, np.ndarray]:
    x = RNG.normal(size=k).astype(np.float32)
    ties = (RNG.integers(-254, 255, k) / 2).astype(np.float32)
    ties[0] = 127
    return {
        "normal": x,
        "zeros": np.zeros(k, np.float32),
        "ties": ties,
        "huge": np.clip(x, -3, 3) * np.float32(1e38),
        "subnormal": x * np.float32(1e-40),
        "tiniest": np.full(k, 1e-45, np.float32),
        "nan": np.where(np.arange(k) == k // 2, np.nan, x).astype(np.float32),
        "inf": np.where(np.arange(k) == k - 1, -np.inf, x).astype(np.float32),
    }


@pytest.mark.parametrize("static", [None, 0.013])
@pytest.mark.parametrize("group_size", [16, 32, 128])
@pytest.mark.parametrize("k", [1, 15, 16, 31, 33, 64, 100, 257])
def test_quantize_is_exact(kernels, isa, k, group_size, static):
    for name, x in rows(k).items():
        expected = quantize_activations(x[None], static)
        got = kernels.quantize(isa, x, group_size, scale=static or 0.0)
        np.testing.assert_array_equal(got.codes[:k], expected.codes[0], err_msg=name)
        assert not got.codes[k:].any()
        np.testing.assert_array_equal(got.scale, expected.scales[0], err_msg=name)
        sums = np.add.reduceat(expected.codes[0].astype(int), range(0, k, group_size))
        np.testing.assert_array_equal(got.sums, sums, err_msg=name)


def test_widening_is_exact_for_every_value(kernels, isa):
    every = np.arange(1 << 16, dtype=np.uint16)
    np.testing.assert_array_equal(
        kernels.convert(isa, every), every.view(np.float16).astype(np.float32)
    )
    np.testing.assert_array_equal(
        kernels.convert(isa, every, bfloat=True),
        every.view(ml_dtypes.bfloat16).astype(np.float32),
    )


@pytest.mark.filterwarnings("ignore:overflow")
def test_narrowing_rounds_to_nearest_even(kernels, isa):
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    halves = halves[np.isfinite(halves)]
    near = np.nextafter(halves, np.float32(np.inf))
    middles = (halves[1:] / 2 + halves[:-1] / 2).astype(np.float32)
    special = np.array([0, -0.0, np.inf, -np.inf, np.nan, 65519, 65520, 1e-8, 3e38], np.float32)
    for values in (halves, near, middles, special, RNG.normal(size=999).astype(np.float32)):
        half = kernels.convert(isa, values).view(np.float16)
        np.testing.assert_array_equal(half, values.astype(np.float16))
        bfloat = kernels.convert(isa, values, bfloat=True).view(ml_dtypes.bfloat16)
        np.testing.assert_array_equal(
            bfloat.astype(np.float32), values.astype(ml_dtypes.bfloat16).astype(np.float32)
        )
