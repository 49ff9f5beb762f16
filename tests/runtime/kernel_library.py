"""The kernels behind their C test interface, on buffers that end at an unreadable page.

A kernel that reads or writes past the end of anything it was given kills the test run.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from ctypes import (
    POINTER,
    Structure,
    c_bool,
    c_char_p,
    c_float,
    c_int,
    c_int32,
    c_int64,
    c_uint8,
    c_void_p,
)
from dataclasses import dataclass

import numpy as np

from qcompiler.numerics.planes import PlaneMatrix, ceil_div
from qcompiler.runtime import installed_library

# A library from another build, such as one with sanitizers, instead of the installed one.
PATH_VARIABLE = "QCOMPILER_KERNELS_TEST_LIBRARY"


UNPACKED_ROWS = 2  # of attention
NO_WINDOW = 2**63 - 1


class QuantizeRow(Structure):
    _fields_ = (
        ("x", c_void_p),
        ("k", c_int64),
        ("group_size", c_int64),
        ("static_scale", c_float),
        ("codes", c_void_p),
        ("padded_k", c_int64),
        ("scale", c_void_p),
        ("sums", c_void_p),
    )


class QuantizedRows(Structure):
    _fields_ = (
        ("codes", c_void_p),
        ("stride", c_int64),
        ("scales", c_void_p),
        ("sums", c_void_p),
    )


class Levels(Structure):
    _fields_ = (("values", c_uint8 * 16), ("zero", c_int32))


class PlaneWeights(Structure):
    _fields_ = (
        ("codes", c_void_p),
        ("groups", c_void_p),
        ("scales", c_void_p),
        ("bias", c_void_p),
        ("k", c_int64),
        ("n", c_int64),
        ("group_size", c_int64),
        ("levels", Levels),
    )


class Tile(Structure):
    _fields_ = (
        ("row_begin", c_int64),
        ("row_end", c_int64),
        ("panel_begin", c_int64),
        ("panel_end", c_int64),
        ("column_end", c_int64),
        ("out", c_void_p),
        ("out_stride", c_int64),
    )


class AttentionRows(Structure):
    _fields_ = (
        ("q", c_void_p),
        ("q_stride", c_int64),
        ("rows", c_int64),
        ("keys", c_int64),
        ("causal", c_bool),
        ("k", c_void_p),
        ("packed_k", c_void_p),
        ("v", c_void_p),
        ("d", c_int64),
        ("scores", c_void_p),
        ("out", c_void_p),
        ("out_stride", c_int64),
        ("mask", c_void_p),
        ("mask_stride", c_int64),
        ("nan_is_zero", c_bool),
        ("window", c_int64),
        ("softcap", c_float),
        ("sink", c_float),
    )


class NormRow(Structure):
    _fields_ = (
        ("x", c_void_p),
        ("skip", c_void_p),
        ("weight", c_void_p),
        ("bias", c_void_p),
        ("n", c_int64),
        ("epsilon", c_float),
        ("sum", c_void_p),
        ("y", c_void_p),
    )


_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = c_void_p
_libc.mmap.argtypes = (c_void_p, ctypes.c_size_t, c_int, c_int, c_int, c_int64)
_libc.mprotect.argtypes = (c_void_p, ctypes.c_size_t, c_int)
_libc.munmap.argtypes = (c_void_p, ctypes.c_size_t)


def guarded(array: np.ndarray) -> np.ndarray:
    """A copy that ends where an unreadable page begins, and starts after another one."""
    page = mmap.PAGESIZE
    size = ceil_div(max(array.nbytes, 1), page) * page
    base = _libc.mmap(
        None, size + 2 * page, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | 0x20, -1, 0
    )
    assert base not in (None, c_void_p(-1).value)
    for at in (base, base + page + size):
        assert _libc.mprotect(at, page, 0) == 0
    raw = (ctypes.c_uint8 * array.nbytes).from_address(base + page + size - array.nbytes)
    weakref.finalize(raw, _libc.munmap, base, size + 2 * page)
    copy = np.frombuffer(raw, dtype=array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def form_of(w: PlaneMatrix) -> int:
    """The number of a form, as kernels/planes.h has it."""
    return w.bits if w.grid is None else w.bits + 16


def levels_of(w: PlaneMatrix) -> tuple[tuple[int, ...], int]:
    """Its levels as the kernels read them; anything where it has none."""
    return ((99,) * 16, 99) if w.grid is None else (w.grid.levels, w.grid.zero)


@dataclass(frozen=True)
class Quantized:
    """One row as the quantizer writes it: scale float32 [1], sums int32 [groups]."""

    codes: np.ndarray
    scale: np.ndarray
    sums: np.ndarray


class KernelLibrary:
    def __init__(self) -> None:
        path = os.environ.get(PATH_VARIABLE) or str(installed_library("qcompiler_kernels_test"))
        self._c = ctypes.CDLL(path)
        self._c.qc_cpu_flags.restype = ctypes.c_uint32
        self._c.qc_choose.restype = c_void_p
        self._c.qc_choose.argtypes = (ctypes.c_uint32, c_char_p)
        self._c.qc_table.argtypes = (c_int, POINTER(c_void_p), POINTER(ctypes.c_uint32))
        self._c.qc_quantize.argtypes = (c_char_p, POINTER(QuantizeRow))
        for function in (self._c.qc_load_tiles, self._c.qc_store_tiles):
            function.argtypes = (c_void_p,)
        self._c.qc_convert.argtypes = (c_char_p, c_int, c_int, c_void_p, c_void_p, c_int64)
        self._c.qc_swiglu.argtypes = (c_char_p, c_void_p, c_void_p, c_int64, c_void_p)
        self._c.qc_gelu.argtypes = (c_char_p, c_void_p, c_int64, c_int, c_void_p)
        self._c.qc_pack_keys.argtypes = (c_void_p, c_int64, c_int64, c_int64, c_void_p)
        self._c.qc_embedding.argtypes = (c_int, POINTER(PlaneWeights), c_int64, c_void_p)

    def _guarded(self, array: np.ndarray) -> np.ndarray:
        return guarded(array)

    def _address(self, array: np.ndarray | None) -> int | None:
        return None if array is None else array.ctypes.data

    def _string(self, at: int) -> str:
        return ctypes.string_at(at).decode()

    def cpu_flags(self) -> int:
        return self._c.qc_cpu_flags()

    def choose(self, flags: int, forced: str | None = None) -> str | None:
        name = self._c.qc_choose(flags, None if forced is None else forced.encode())
        return self._string(name) if name else None

    def tables(self) -> dict[str, int]:
        """ISA -> the flags it needs, best first."""
        isa, needs = c_void_p(), ctypes.c_uint32()
        tables = {}
        while self._c.qc_table(len(tables), ctypes.byref(isa), ctypes.byref(needs)):
            tables[self._string(isa.value)] = needs.value
        return tables

    def quantize(self, isa, x, group_size, *, scale=0.0) -> Quantized:
        guarded, address = self._guarded, self._address
        k = x.size
        x = guarded(x)
        codes = guarded(np.full(ceil_div(k, 8) * 8 + 8, 99, np.int8))
        found = guarded(np.zeros(1, np.float32))
        sums = guarded(np.zeros(ceil_div(k, group_size), np.int32))
        row = QuantizeRow(
            *(address(x), k, group_size, scale),
            *(address(codes), codes.size, address(found), address(sums)),
        )
        assert self._c.qc_quantize(isa.encode(), ctypes.byref(row))
        return Quantized(codes, found, sums)

    def linear(
        self, isa, codes, x_scales, w: PlaneMatrix, bias=None, *, rows=None, panels=None
    ) -> np.ndarray:
        """Rows and panels (begin, end) of the product of codes int8 [M, K] with x_scales [M]."""
        guarded, address = self._guarded, self._address
        m, k = codes.shape
        row_begin, row_end = rows or (0, m)
        panel_begin, panel_end = panels or (0, w.W.shape[0])
        # What lies past the last strip may be anything.
        padded = np.full((m, ceil_div(k, 64) * 64), 99, np.int8)
        padded[:, : ceil_div(k, 32) * 32] = 0
        padded[:, :k] = codes
        sums = np.add.reduceat(codes.astype(np.int32), range(0, k, w.group_size), axis=1)
        keep = [guarded(a) for a in (padded, x_scales, sums.astype(np.int32), w.W, w.scales)]
        groups = None if w.groups is None else guarded(w.groups)
        bias = None if bias is None else guarded(bias)
        columns = min(w.N, panel_end * 16) - panel_begin * 16
        out = guarded(np.full((row_end - row_begin, columns), np.nan, np.float32))
        done = self._c.qc_linear(
            isa.encode(),
            form_of(w),
            ctypes.byref(
                QuantizedRows(
                    *(address(keep[0]), padded.shape[1], address(keep[1]), address(keep[2]))
                )
            ),
            ctypes.byref(
                PlaneWeights(
                    *(address(keep[3]), address(groups), address(keep[4]), address(bias)),
                    *(k, w.N, w.group_size, levels_of(w)),
                )
            ),
            ctypes.byref(
                Tile(
                    *(row_begin, row_end, panel_begin, panel_end, min(w.N, panel_end * 16)),
                    *(address(out), columns),
                )
            ),
        )
        assert done
        return out

    def tiles(self, config: np.ndarray | None = None) -> np.ndarray | None:
        """The AMX tile configuration of this thread, set to `config` before; None: no AMX."""
        if config is not None and not self._c.qc_load_tiles(config.ctypes.data):
            return None
        now = np.zeros(64, np.uint8)
        return now if self._c.qc_store_tiles(now.ctypes.data) else None

    def convert(self, isa, values, *, bfloat=False) -> np.ndarray:
        """uint16 values to float32, float32 values to uint16."""
        guarded, address = self._guarded, self._address
        narrow = values.dtype == np.float32
        source = guarded(values)
        target = guarded(np.zeros(values.shape, np.uint16 if narrow else np.float32))
        args = (int(bfloat), int(narrow), address(source), address(target), values.size)
        assert self._c.qc_convert(isa.encode(), *args)
        return target

    def pack_keys(self, k, d=None) -> np.ndarray:
        """[keys, stride] -> [panels, d, 64]."""
        guarded, address = self._guarded, self._address
        keys, stride = k.shape
        d = d or stride
        source = guarded(k)
        packed = guarded(np.full((ceil_div(keys, 64), d, 64), np.nan, np.float32))
        self._c.qc_pack_keys(address(source), stride, keys, d, address(packed))
        return packed

    def attend(
        self,
        isa,
        q,
        k,
        v,
        *,
        rows=None,
        causal=True,
        mask=None,
        nan_is_zero=False,
        window=NO_WINDOW,
        softcap=0.0,
        sink=-np.inf,
    ) -> np.ndarray:
        """The last `len(q)` positions, or all, attend to keys [keys, d].

        `rows`: only from begin to end. `mask` [len(q) or 1, keys].
        """
        guarded, address = self._guarded, self._address
        begin, end = rows or (0, len(q))
        used = len(k) - len(q) + end if causal else len(k)
        packed = np.array(self.pack_keys(k[:used]))
        # Few rows read the keys as they lie, more read them packed: the others may be anything.
        plain = k[:used] if end - begin <= UNPACKED_ROWS else np.full_like(k[:used], np.nan)
        if end - begin <= UNPACKED_ROWS:
            packed[...] = np.nan
        inputs = (q[begin:end], plain, packed, v[:used])
        keep = [guarded(np.ascontiguousarray(a)) for a in inputs]
        added, stride = None, 0
        if mask is not None:
            stride = 0 if len(mask) == 1 else mask.shape[1]
            added = guarded(np.array(mask[begin:end] if stride else mask))
        scores = guarded(np.full(6 * 64 * ceil_div(used, 64), np.nan, np.float32))
        out = guarded(np.full((end - begin, q.shape[1]), np.nan, np.float32))
        arguments = AttentionRows(
            *(address(keep[0]), q.shape[1], end - begin, used, causal),
            *(address(keep[1]), address(keep[2]), address(keep[3]), q.shape[1]),
            *(address(scores), address(out), q.shape[1]),
            *(address(added), stride, nan_is_zero, window, softcap, sink),
        )
        assert self._c.qc_attend(isa.encode(), ctypes.byref(arguments))
        return out

    def add_norm(self, isa, x, skip, weight, bias, epsilon, *, keep_sum=True):
        """Y and the sum of one row; both are one array where the sum is not kept."""
        guarded, address = self._guarded, self._address
        inputs = [None if a is None else guarded(a) for a in (x, skip, weight, bias)]
        y = guarded(np.full(x.shape, np.nan, np.float32))
        total = guarded(np.full(x.shape, np.nan, np.float32)) if keep_sum else y
        row = NormRow(*map(address, inputs), x.size, epsilon, address(total), address(y))
        assert self._c.qc_add_norm(isa.encode(), ctypes.byref(row))
        return y, total

    def swiglu(self, isa, gate, up) -> np.ndarray:
        guarded, address = self._guarded, self._address
        gate, up = guarded(gate), guarded(up)
        y = guarded(np.full(gate.shape, np.nan, np.float32))
        assert self._c.qc_swiglu(isa.encode(), address(gate), address(up), gate.size, address(y))
        return y

    def gelu(self, isa, x, *, by_tanh=False) -> np.ndarray:
        guarded, address = self._guarded, self._address
        x = guarded(x)
        y = guarded(np.full(x.shape, np.nan, np.float32))
        assert self._c.qc_gelu(isa.encode(), address(x), x.size, int(by_tanh), address(y))
        return y

    def embedding(self, w: PlaneMatrix, column: int) -> np.ndarray:
        guarded, address = self._guarded, self._address
        out = guarded(np.full(w.K, np.nan, np.float32))
        codes, scales = guarded(w.W), guarded(w.scales)
        groups = None if w.groups is None else guarded(w.groups)
        weights = PlaneWeights(
            *(address(codes), address(groups), address(scales), None),
            *(w.K, w.N, w.group_size, levels_of(w)),
        )
        self._c.qc_embedding(form_of(w), ctypes.byref(weights), column, address(out))
        return out
