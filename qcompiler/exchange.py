"""Two folders change places in one step, where the system can do that."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from pathlib import Path
from typing import Any

_UNABLE = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2  # <linux/fs.h>
_RENAME_SWAP = 2  # <sys/stdio.h> of macOS


class CannotExchangeError(Exception):
    """This system, C library or file system has no such call."""


def exchange(one: Path, other: Path) -> None:
    """Let two paths of one file system change places, at once; both must exist.

    CannotExchangeError, and nothing has changed, where that is not possible.
    """
    call, arguments = _call(os.fsencode(one), os.fsencode(other))
    if call(*arguments):
        number = ctypes.get_errno()
        if number in _UNABLE:
            raise CannotExchangeError
        raise OSError(number, os.strerror(number), os.fspath(other))


def _call(one: bytes, other: bytes) -> tuple[Any, tuple[Any, ...]]:
    name = ""
    arguments: tuple[Any, ...] = ()
    if sys.platform == "linux":
        name, arguments = "renameat2", (_AT_FDCWD, one, _AT_FDCWD, other, _RENAME_EXCHANGE)
    elif sys.platform == "darwin":
        name, arguments = "renamex_np", (one, other, _RENAME_SWAP)
    call = getattr(ctypes.CDLL(None, use_errno=True), name, None) if name else None
    if call is None:
        raise CannotExchangeError
    return call, arguments


__all__ = ["CannotExchangeError", "exchange"]
