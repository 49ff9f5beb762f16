"""Output is made in a scratch folder beside its place, and put there when it is complete.

A run that is killed outright can't clean up; the next run for the same output does. Whoever works
in a scratch folder holds a lock on a file in it: a folder whose lock is free is abandoned.
"""

from __future__ import annotations

import atexit
import hashlib
import logging
import os
import re
import secrets
import shutil
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from qcompiler.locks import NoLocksError, take
from qcompiler.signals import held

REPLACED = ".replaced"
"""In a scratch folder, the folder that was at the output's place while the new one goes there."""
_LOCK = ".lock"
_NAME_BYTES = 255
"""Of a file's name, on all file systems in use."""

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Scratch:
    """A scratch folder that is to be removed, with the folders above it that were missing."""

    final: Path
    folder: Path
    missing: list[Path]
    lock: int | None = None
    process: int = field(default_factory=os.getpid)

    def remove(self) -> None:
        with held():
            if self not in _open:
                return
            _open.remove(self)
            if self.lock is not None:
                os.close(self.lock)
            _put_back(self.folder, self.final)
            _remove_tree(self.folder)
            with suppress(OSError):  # not empty: in use
                for each in self.missing:
                    each.rmdir()


_open: list[_Scratch] = []


@contextmanager
def scratch_beside(final: Path) -> Generator[Path, None, None]:
    """A folder on the file system of `final`, removed at the end whatever happens.

    So are folders above it that were missing, where nothing has been put into them.
    """
    missing = [folder for folder in final.parents if not folder.exists()]
    # Known before it is made: an interrupt at any moment still finds it, `sweep` at the latest.
    scratch = _Scratch(final, _fresh(final), missing)
    _open.append(scratch)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        _clear_abandoned(final)
        scratch.folder.mkdir(mode=0o700)
        try:
            while (lock := take(scratch.folder / _LOCK)) is None:
                scratch.folder = _fresh(final)  # another run has just found it abandoned
                scratch.folder.mkdir(mode=0o700)
            scratch.lock = lock
        except NoLocksError:
            _log.info("%s has no locks: what a killed run leaves there stays", final.parent)
        yield scratch.folder
    finally:
        scratch.remove()


def sweep() -> None:
    """Remove the scratch folders of this process that are still there: nobody returns to them."""
    for scratch in [each for each in _open if each.process == os.getpid()]:
        scratch.remove()


atexit.register(sweep)


def fitted(name: str, before: str = "", after: str = "") -> str:
    """`before`, a name and `after`, the name cut where all would be too long for a file system.

    A name that is cut ends in a digest of all of it, so that no two become one.
    """
    room = _NAME_BYTES - len(os.fsencode(before)) - len(os.fsencode(after))
    if len(os.fsencode(name)) > room:
        digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:8]
        kept = os.fsencode(name)[: room - len(digest) - 1]
        name = f"{kept.decode(errors='ignore')}-{digest}"
    return f"{before}{name}{after}"


def _fresh(final: Path) -> Path:
    return final.with_name(f"{_prefix(final.name)}{os.getpid()}-{secrets.token_hex(4)}")


def _prefix(name: str) -> str:
    """What the names of an output's scratch folders begin with."""
    longest = "4294967295-01234567"
    return fitted(name, ".", "." + longest).removesuffix(longest)


def _clear_abandoned(final: Path) -> None:
    """Remove the scratch folders of runs that have ended, and put back what they had replaced."""
    pattern = re.compile(re.escape(_prefix(final.name)) + r"\d+-[0-9a-f]{8}")
    for path in final.parent.iterdir():
        # Another user's is theirs to remove.
        if not pattern.fullmatch(path.name) or not os.access(path, os.W_OK):
            continue
        try:
            lock = take(path / _LOCK)
        except NoLocksError:  # nobody can tell what is abandoned
            _put_back(path, final)
            continue
        if lock is not None:
            _put_back(path, final)
            _remove_tree(path)
            os.close(lock)


def _remove_tree(folder: Path) -> None:
    """Remove a folder as far as we may, read-only folders of a user's in it too."""
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        for path in folder.rglob("*/"):
            path.chmod(0o700)
        shutil.rmtree(folder, ignore_errors=True)


def _put_back(folder: Path, final: Path) -> None:
    """Where a run ended between two renames, return the folder that it had taken away."""
    if not os.path.lexists(final):
        with suppress(FileNotFoundError):
            (folder / REPLACED).rename(final)


__all__ = ["REPLACED", "fitted", "scratch_beside", "sweep"]
