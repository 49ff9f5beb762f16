"""The structures of the kernels' C test interface, as ctypes: for tests and benchmarks.

Needs nothing but Python, so that benchmarks run where qcompiler is not installed.
"""

from __future__ import annotations

from ctypes import Structure, c_float, c_int32, c_int64, c_uint8, c_void_p


class Output(Structure):
    """`Output` of runtime/cuda/elements.h."""

    _fields_ = (("data", c_void_p), ("begin", c_int64), ("end", c_int64))


class Levels(Structure):
    """`Levels` of runtime/kernels/planes.h."""

    _fields_ = (("values", c_uint8 * 16), ("zero", c_int32))


class LinearProduct(Structure):
    """`LinearProduct` of runtime/cuda/linear.h."""

    _fields_ = (
        ("x", c_void_p),
        *((name, c_int64) for name in ("rows", "k", "n", "group_size")),
        *((name, c_void_p) for name in ("codes", "groups", "scales", "bias")),
        ("outputs", Output * 3),
        ("element", c_int32),
        ("static_scale", c_float),
        *((name, c_int32) for name in ("form", "one_bias")),
        ("levels", Levels),
    )


class LinearTuning(Structure):
    """`LinearTuning` of runtime/cuda/linear.h."""

    _fields_ = (("kernel", c_int32), ("rows", c_int32))
