"""The CUDA kernels behind their C test interface: on a GPU, or compiled for the emulated one.

The emulated GPU reads the tests' own arrays, which end at an unreadable page: a kernel that touches
anything beyond them ends the test run.
"""

from __future__ import annotations

import ctypes
import os
from ctypes import POINTER, Structure, byref, c_char_p, c_float, c_int, c_int32, c_int64, c_void_p
from dataclasses import dataclass

import numpy as np
from cuda_structures import Levels, LinearProduct, LinearTuning, Output
from kernel_library import form_of, guarded, levels_of

from qcompiler.numerics.planes import PlaneMatrix, ceil_div
from qcompiler.runtime import installed_library

# Libraries from another build instead of the installed ones.
PATH_VARIABLES = {
    "qcompiler_cuda_emulated": "QCOMPILER_CUDA_EMULATED_LIBRARY",
    "qcompiler_cuda_test": "QCOMPILER_CUDA_TEST_LIBRARY",
}
ELEMENTS = ("float32", "float16", "bfloat16")
FEW_ROWS, MANY_ROWS = 1, 2


class QuantizeJob(Structure):
    _fields_ = (
        ("x", c_void_p),
        *((name, c_int64) for name in ("first", "rows", "k")),
        ("element", c_int32),
        ("static_scale", c_float),
        *((name, c_void_p) for name in ("codes", "scales")),
        ("padded", c_int64),
    )


class EmbeddingLookUp(Structure):
    _fields_ = (
        ("ids", c_void_p),
        *((name, c_int64) for name in ("count", "k", "n", "group_size")),
        *((name, c_void_p) for name in ("codes", "groups", "scales", "out")),
        *((name, c_int32) for name in ("wide_ids", "form")),
        ("levels", Levels),
    )


@dataclass(frozen=True)
class Quantized:
    """codes int8 [padded, strips * 32], scales float32 [padded]."""

    codes: np.ndarray
    scales: np.ndarray


class CudaError(Exception):
    """What CUDA said went wrong."""


class CudaLibrary:
    """`stem`: qcompiler_cuda_test or qcompiler_cuda_emulated. RuntimeLibraryError if not there."""

    def __init__(self, stem: str) -> None:
        path = os.environ.get(PATH_VARIABLES[stem]) or str(installed_library(stem))
        self.path = path
        self.emulated = stem.endswith("emulated")
        self._c = c = ctypes.CDLL(path)
        names = ("embedding", "linear_refusal", "linear", "synchronize")
        for name in (*names, "allocate", "free", "copy"):
            if not self.emulated or name not in ("allocate", "free", "copy"):
                getattr(c, f"qc_cuda_{name}").restype = c_char_p
        c.qc_cuda_quantize.argtypes = (POINTER(QuantizeJob), c_void_p)
        c.qc_cuda_linear_refusal.argtypes = (POINTER(LinearProduct),)
        c.qc_cuda_linear_scratch_bytes.restype = ctypes.c_size_t
        c.qc_cuda_linear_scratch_bytes.argtypes = (POINTER(LinearProduct), POINTER(LinearTuning))
        c.qc_cuda_linear.argtypes = (
            *(POINTER(LinearProduct), POINTER(LinearTuning)),
            *(c_void_p, c_void_p),
        )
        c.qc_cuda_embedding.argtypes = (POINTER(EmbeddingLookUp), c_void_p)
        c.qc_cuda_mma.argtypes = (c_void_p, c_void_p, c_void_p)
        c.qc_cuda_copy_through_shared.argtypes = (c_void_p, c_void_p, c_int)
        if not self.emulated:
            c.qc_cuda_allocate.argtypes = (ctypes.c_size_t, POINTER(c_void_p))
            c.qc_cuda_free.argtypes = (c_void_p,)
            c.qc_cuda_copy.argtypes = (c_void_p, c_void_p, ctypes.c_size_t)

    def devices(self) -> int:
        return self._c.qc_cuda_devices()

    def reverse(self, reverse: bool) -> None:
        """Run threads from the last to the first (emulated only)."""
        if self.emulated:
            self._c.qc_cuda_reverse(int(reverse))

    def _check(self, error: bytes | None) -> None:
        if error is not None:
            raise CudaError(error.decode())

    def put(self, array: np.ndarray) -> DeviceArray:
        return DeviceArray(self, array)

    def refusal(self, product: LinearProduct) -> str | None:
        error = self._c.qc_cuda_linear_refusal(byref(product))
        return None if error is None else error.decode()

    def mma(self, a: np.ndarray, b: np.ndarray, d: np.ndarray) -> np.ndarray:
        """Fragments a uint32 [32, 4], b uint32 [32, 2], d int32 [32, 4]."""
        on_device = [self.put(each) for each in (a, b, d)]
        self._c.qc_cuda_mma(*(each.address for each in on_device))
        self._check(self._c.qc_cuda_synchronize())
        return on_device[2].get()

    def copy_through_shared(self, array: np.ndarray, *, wait: bool) -> np.ndarray:
        """uint8 [512], through shared memory by asynchronous copies."""
        source, target = self.put(array), self.put(np.zeros_like(array))
        self._c.qc_cuda_copy_through_shared(source.address, target.address, int(wait))
        self._check(self._c.qc_cuda_synchronize())
        return target.get()

    def quantize(self, x, *, scale=0.0, padded=None, first=0, rows=None) -> Quantized:
        """Rows [first, first + rows) of x [M, K], in one of the three types."""
        m, k = x.shape
        rows = m - first if rows is None else rows
        padded = padded or ceil_div(rows, 8) * 8
        strips = ceil_div(k, 32)
        source = self.put(x)
        codes = self.put(np.full((strips, padded, 32), 99, np.int8))
        scales = self.put(np.full(padded, -5, np.float32))
        job = QuantizeJob(
            *(source.address, first, rows, k, ELEMENTS.index(x.dtype.name), scale),
            *(codes.address, scales.address, padded),
        )
        self._c.qc_cuda_quantize(byref(job), None)
        self._check(self._c.qc_cuda_synchronize())
        return Quantized(codes.get().transpose(1, 0, 2).reshape(padded, strips * 32), scales.get())

    def _put_planes(self, w: PlaneMatrix) -> tuple[list[DeviceArray], tuple[int | None, ...]]:
        """The tensors of w on the device; the addresses of codes, groups (or None) and scales."""
        keep = [self.put(a) for a in (w.W, w.groups, w.scales) if a is not None]
        groups = None if w.groups is None else keep[1].address
        return keep, (keep[0].address, groups, keep[-1].address)

    def embedding(self, ids: np.ndarray, w: PlaneMatrix) -> np.ndarray:
        """Dequantized columns of w for ids (int64 or int32) of any shape: [ids.shape..., K]."""
        keep, weights = self._put_planes(w)
        keep.append(self.put(ids))
        out = self.put(np.full((*ids.shape, w.K), -7, np.float32))
        job = EmbeddingLookUp(
            *(keep[-1].address, ids.size, w.K, w.N, w.group_size, *weights, out.address),
            *(int(ids.dtype == np.int64), form_of(w), levels_of(w)),
        )
        self._check(self._c.qc_cuda_embedding(byref(job), None))
        self._check(self._c.qc_cuda_synchronize())
        for array in keep:
            array.check_unchanged()
        return out.get()

    def linear(
        self, x, w: PlaneMatrix, bias, *, scale=0.0, splits=None, absent=(), kernel=0, chunk=0
    ) -> np.ndarray:
        """x [M, K] times w: [M, N] in x's type; columns of outputs in `absent` stay NaN.

        kernel: FEW_ROWS, MANY_ROWS or 0. chunk: rows at a time, in the second of them.
        """
        keep, weights = self._put_planes(w)
        keep += [self.put(x), self.put(bias)]
        outputs = _Outputs(self, x, splits or (w.N, 0, 0), absent)
        product = LinearProduct(
            *(keep[-2].address, len(x), w.K, w.N, w.group_size),
            *(*weights, keep[-1].address, outputs.records),
            *(ELEMENTS.index(x.dtype.name), scale, form_of(w), int(bias.size == 1), levels_of(w)),
        )
        assert self.refusal(product) is None
        tuning = LinearTuning(kernel, chunk)
        bytes_ = self._c.qc_cuda_linear_scratch_bytes(byref(product), byref(tuning))
        scratch = self.put(np.full(bytes_, 0xA5, np.uint8))
        self._check(self._c.qc_cuda_linear(byref(product), byref(tuning), scratch.address, None))
        self._check(self._c.qc_cuda_synchronize())
        for array in keep:
            array.check_unchanged()
        return outputs.get()


class _Outputs:
    """Up to three outputs of a product with x [M, K], NaN until written to."""

    def __init__(self, library: CudaLibrary, x: np.ndarray, splits, absent) -> None:
        self._tensors = [np.full((len(x), width), np.nan, x.dtype) for width in splits]
        self._on_device: list[DeviceArray | None] = []
        records, column = [], 0
        for i, (tensor, width) in enumerate(zip(self._tensors, splits, strict=True)):
            data = library.put(tensor) if width > 0 and i not in absent else None
            self._on_device.append(data)
            records.append(Output(data.address if data else None, column, column + width))
            column += width
        self.records = (Output * 3)(*records)

    def get(self) -> np.ndarray:
        """All side by side: [M, N]."""
        pairs = zip(self._on_device, self._tensors, strict=True)
        return np.concatenate([data.get() if data else empty for data, empty in pairs], axis=1)


class DeviceArray:
    """An array on the device; on the emulated one, with an unreadable page behind it."""

    def __init__(self, library: CudaLibrary, array: np.ndarray) -> None:
        self._library = library
        self._original = np.ascontiguousarray(array)
        if library.emulated:
            self._here = guarded(self._original)
            self.address = self._here.ctypes.data
            return
        pointer = c_void_p()
        library._check(library._c.qc_cuda_allocate(max(self._original.nbytes, 1), byref(pointer)))
        self.address = pointer.value
        library._check(
            library._c.qc_cuda_copy(self.address, self._original.ctypes.data, self._original.nbytes)
        )

    def __del__(self) -> None:
        if not self._library.emulated:
            self._library._c.qc_cuda_free(self.address)

    def get(self) -> np.ndarray:
        if self._library.emulated:
            return np.array(self._here)
        result = np.empty_like(self._original)
        self._library._check(
            self._library._c.qc_cuda_copy(result.ctypes.data, self.address, result.nbytes)
        )
        return result

    def check_unchanged(self) -> None:
        assert self.get().tobytes() == self._original.tobytes(), "an input was written to"
