"""Activations that wait for their readers: some in memory, the rest in the scratch folder."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np

from qcompiler.ir import scratch
from qcompiler.ir.scratch import ScratchFile

Array = np.ndarray[Any, Any]

IN_MEMORY = 16 << 20
"""Bytes of activations that stay in memory."""


class Held:
    """One array, in memory or in a file."""

    def __init__(self, values: Array, file: ScratchFile | None = None) -> None:
        self._values = None if file is not None else values
        self._file, self._dtype, self._shape = file, values.dtype, values.shape

    def array(self) -> Array:
        """The values. What is changed in place, later readers see."""
        if self._values is not None:
            return self._values
        assert self._file is not None  # one or the other
        return np.memmap(self._file.path, self._dtype, "r+", shape=self._shape)


class Room:
    """Memory for so many activations; what goes beyond is written to files."""

    def __init__(self) -> None:
        self._left = IN_MEMORY

    def put(self, values: Array) -> Held:
        """Values that nobody else holds. OSError (disk full) passes through."""
        store = scratch.active()
        if store is not None and values.nbytes > self._left and values.dtype.kind != "O":
            return Held(
                values, store.store([np.ascontiguousarray(values).reshape(-1).view("u1").data])
            )
        # A copy: a result of ONNX Runtime, however small, keeps all the memory around it.
        made = Held(np.array(values))
        self._left -= values.nbytes
        weakref.finalize(made, self._freed, values.nbytes).atexit = False
        return made

    def _freed(self, size: int) -> None:
        self._left += size


class Arrays(Sequence[Array]):
    """Arrays one after the other: those in files are mapped as long as somebody looks at them."""

    def __init__(self, held: Iterable[Held]) -> None:
        self._held = list(held)

    def __len__(self) -> int:
        return len(self._held)

    @overload
    def __getitem__(self, index: int) -> Array: ...
    @overload
    def __getitem__(self, index: slice) -> Arrays: ...
    def __getitem__(self, index: int | slice) -> Array | Arrays:
        if isinstance(index, slice):
            return Arrays(self._held[index])
        return self._held[index].array()

    def __iter__(self) -> Iterator[Array]:
        return (each.array() for each in self._held)
