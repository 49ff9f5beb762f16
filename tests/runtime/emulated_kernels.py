"""The kernels of another machine, run in an emulator through their driver program."""

from __future__ import annotations

import ctypes
import struct
import subprocess

import numpy as np
from kernel_library import KernelLibrary

WORDS = 6  # what every call sends


class EmulatedKernels(KernelLibrary):
    """`command` starts the driver. Structures look the same on both machines."""

    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._c = _Functions(self)
        self._copies: dict[int, tuple[np.ndarray, int]] = {}

    def close(self) -> None:
        self._process.stdin.close()
        self._process.stdout.close()
        assert self._process.wait(timeout=10) == 0

    def call(self, name: str, *args) -> int:
        words, results = [], []
        for arg in args:
            if isinstance(arg, bytes):
                words.append(self._copy_in(arg + b"\0"))
            elif isinstance(arg, int):
                words.append(arg & 0xFFFF_FFFF_FFFF_FFFF)
            elif arg is None:
                words.append(0)
            else:  # ctypes.byref
                words.append(self._copy_in(bytes(arg._obj)))
                results.append((arg._obj, words[-1]))
        words += [0] * (WORDS - len(words))
        self._send(b"c", len(name), name.encode(), *words)
        value = self._word()
        for target, at in results:
            size = ctypes.sizeof(target)
            ctypes.memmove(ctypes.byref(target), self._read(at, size), size)
        for array, at in self._copies.values():
            array[...] = np.frombuffer(self._read(at, array.nbytes), array.dtype).reshape(
                array.shape
            )
        self._copies.clear()
        self._send(b"f")
        return value

    def _guarded(self, array: np.ndarray) -> np.ndarray:
        """A copy here; the one that ends at an unreadable page is there, until the next call."""
        copy = np.array(array)
        self._copies[id(copy)] = (copy, self._copy_in(copy.tobytes()))
        return copy

    def _address(self, array: np.ndarray | None) -> int | None:
        return None if array is None else self._copies[id(array)][1]

    def _string(self, at: int) -> str:
        self._send(b"s", at)
        return self._receive(self._word()).decode()

    def _copy_in(self, data: bytes) -> int:
        self._send(b"a", len(data), data)
        return self._word()

    def _read(self, at: int, size: int) -> bytes:
        self._send(b"r", at, size)
        return self._receive(size)

    def _send(self, *parts: bytes | int) -> None:
        for part in parts:
            self._process.stdin.write(part if isinstance(part, bytes) else struct.pack("<Q", part))
        self._process.stdin.flush()

    def _word(self) -> int:
        return struct.unpack("<Q", self._receive(8))[0]

    def _receive(self, size: int) -> bytes:
        data = self._process.stdout.read(size)
        assert len(data) == size, f"the driver ended with status {self._process.wait()}"
        return data


class _Functions:
    """Stands where a ctypes library would."""

    def __init__(self, kernels: EmulatedKernels) -> None:
        self._kernels = kernels

    def __getattr__(self, name: str):
        return lambda *args: self._kernels.call(name, *args)
