"""Memory that is free but not yet given back."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Generator


def release() -> None:
    """Free what only cycles refer to, and give free memory back where the C library can."""
    # Nodes and tensors refer to each other: counting alone frees no weight.
    gc.collect()
    trim = getattr(ctypes.pythonapi, "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


@contextlib.contextmanager
def many_objects(nodes: int) -> Generator[None, None, None]:
    """Have Python look for cycles more rarely, the more nodes there are, for as long as it lasts.

    It does so after a number of new objects, and looks through all of a graph each time, with every
    message and list that is made of it: a fifth of a compile. Small graphs change nothing.
    """
    usual = gc.get_threshold()
    gc.set_threshold(max(usual[0], nodes) if usual[0] else 0, *usual[1:])  # 0: never
    try:
        yield
    finally:
        gc.set_threshold(*usual)
