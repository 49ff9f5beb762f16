"""Output appears whole or not at all: files are made in a scratch folder beside their place.

A run that is killed outright can't clean up; the next run for the same output does. Whoever works
in a scratch folder holds a lock on a file in it, which ends with the process, however that ends,
and which processes in other containers see too: a folder whose lock is free is abandoned.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import secrets
import shutil
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

_LOCK = ".lock"
_UNKNOWN = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})

_log = logging.getLogger(__name__)


class _NoLocksError(Exception):
    """The file system knows no locks, as some in networks: nobody can tell what is abandoned."""


@contextmanager
def scratch_beside(final: Path) -> Generator[Path, None, None]:
    """A folder on the file system of `final`, removed at the end whatever happens.

    So are folders above it that were missing, where nothing has been put into them.
    """
    missing = [folder for folder in final.parents if not folder.exists()]
    # Named before they are made: an interrupt right after mkdir still finds them in `finally`.
    folder, lock = _fresh(final), None
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(final)
        folder.mkdir(mode=0o700)
        try:
            while (lock := _take(folder)) is None:  # another run has just found it abandoned
                folder = _fresh(final)
                folder.mkdir(mode=0o700)
        except _NoLocksError:
            _log.info("%s has no locks: what a killed run leaves there stays", final.parent)
        yield folder
    finally:
        if lock is not None:
            os.close(lock)
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # not empty: in use
            for each in missing:
                each.rmdir()


def _fresh(final: Path) -> Path:
    return final.parent / f".{final.name}.{os.getpid()}-{secrets.token_hex(4)}"


def _remove_abandoned(final: Path) -> None:
    """Remove the scratch folders of runs that have ended."""
    pattern = re.compile(re.escape(f".{final.name}.") + r"\d+-[0-9a-f]{8}")
    for path in final.parent.iterdir():
        # Another user's is theirs to remove.
        if not pattern.fullmatch(path.name) or not os.access(path, os.W_OK):
            continue
        try:
            lock = _take(path)
        except _NoLocksError:
            return
        if lock is not None:
            shutil.rmtree(path, ignore_errors=True)
            os.close(lock)


def _take(folder: Path) -> int | None:
    """The descriptor of a folder's lock, to be closed; None where another run has it."""
    try:
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except FileNotFoundError:  # the folder is gone
        return None
    taken = False
    try:
        _lock(lock)
        taken = os.path.samestat((folder / _LOCK).stat(), os.fstat(lock))
    except (BlockingIOError, FileNotFoundError):
        taken = False
    except OSError as error:
        if error.errno in _UNKNOWN:
            raise _NoLocksError from error
        raise
    finally:
        if not taken:
            os.close(lock)
    return lock if taken else None


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        """Lock a file for as long as it is open; BlockingIOError where it is locked."""
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except PermissionError as error:
            raise BlockingIOError from error

else:
    import fcntl

    def _lock(descriptor: int) -> None:
        """Lock a file for as long as it is open; BlockingIOError where it is locked."""
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


__all__ = ["scratch_beside"]
