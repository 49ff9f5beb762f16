"""Locks on files, which end with the process, however that ends, and hold across containers."""

from __future__ import annotations

import errno
import logging
import os
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from qcompiler.signals import held

_UNKNOWN = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})
_POLL = 0.003
"""Seconds between two looks at a lock that is taken."""

_log = logging.getLogger(__name__)


class NoLocksError(Exception):
    """The file system knows no locks, as some in networks."""


def take(path: Path) -> int | None:
    """The descriptor of a file that is locked while it is open; None where another run has it.

    None too where the file or its folder goes just then. NoLocksError where there are no locks.
    """
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except FileNotFoundError:  # the folder is gone
        return None
    taken = False
    try:
        _lock(lock)
        taken = os.path.samestat(path.stat(), os.fstat(lock))
    except (BlockingIOError, FileNotFoundError):
        taken = False
    except OSError as error:
        if error.errno in _UNKNOWN:
            raise NoLocksError from error
        raise
    finally:
        if not taken:
            os.close(lock)
    return lock if taken else None


@contextmanager
def turn(path: Path) -> Generator[None, None, None]:
    """Inside, this run is alone among those with the lock file `path`, and signals wait.

    For what takes milliseconds: others look again and again. The file goes at the end. Without
    locks, and where the file is another user's, nobody waits.
    """
    lock = None
    try:
        while lock is None:
            with held():  # or a lock could be taken that nobody knows of
                lock = take(path)
            if lock is None:
                path.parent.stat()  # FileNotFoundError where nobody will ever have it
                time.sleep(_POLL)
    except (NoLocksError, PermissionError):
        _log.info("%s can't be locked: two runs for one output may meet", path)
        with suppress(PermissionError):
            path.unlink(missing_ok=True)
    except BaseException:
        if lock is not None:
            _release(path, lock)
        raise
    with held():
        try:
            yield
        finally:
            if lock is not None:
                _release(path, lock)


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        """Lock a file for as long as it is open; BlockingIOError where it is locked."""
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except PermissionError as error:
            raise BlockingIOError from error

    def _release(path: Path, lock: int) -> None:
        os.close(lock)
        with suppress(OSError):  # an open file can't be removed: the next one has it already
            path.unlink()

else:
    import fcntl

    def _lock(descriptor: int) -> None:
        """Lock a file for as long as it is open; BlockingIOError where it is locked."""
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _release(path: Path, lock: int) -> None:
        # Removed first: whoever waits for it sees that it is no longer there, and makes a new one.
        with suppress(OSError):
            path.unlink()
        os.close(lock)


__all__ = ["NoLocksError", "take", "turn"]
