"""Memory that is free but not yet given back."""

from __future__ import annotations

import ctypes
import gc


def release() -> None:
    """Free what only cycles refer to, and give free memory back where the C library can."""
    # Nodes and tensors refer to each other: counting alone frees no weight.
    gc.collect()
    trim = getattr(ctypes.pythonapi, "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)
