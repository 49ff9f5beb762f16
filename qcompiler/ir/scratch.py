"""Large constants that passes make lie in files of a scratch folder, not in memory.

Inside `spilling(folder)`, `ir.constant` writes each large array to a file of its own below it;
whoever reads it maps it, read-only. A file goes when the last graph that has the constant is gone,
all of them with the folder. Nothing of it is known to passes.
"""

from __future__ import annotations

import itertools
import os
import tempfile
import weakref
from collections import deque
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from qcompiler.staging import scratch_beside

THRESHOLD = 64 << 10
"""Bytes from which a constant is worth a file."""


class ScratchFile:
    """A file that is needed for as long as somebody holds this object."""

    def __init__(self, path: Path) -> None:
        self.path = path


class Scratch:
    """Arrays in files of one folder."""

    def __init__(self, folder: Path, threshold: int) -> None:
        self.folder = folder
        self.threshold = threshold
        self._numbers = itertools.count()
        self._files: weakref.WeakValueDictionary[str, ScratchFile] = weakref.WeakValueDictionary()
        self._dropped: deque[Path] = deque()

    def store(self, blocks: Iterable[bytes | memoryview]) -> ScratchFile:
        """Write blocks of bytes one after the other to a new file."""
        self._clear()
        path = self.folder / f"{next(self._numbers)}.bin"
        with path.open("xb") as out:
            for block in blocks:
                out.write(block)
        made = ScratchFile(path)
        # Removed later, in `_clear`: what interrupts a finalizer is lost, be it Ctrl-C.
        weakref.finalize(made, self._dropped.append, path).atexit = False
        self._files[os.fspath(path)] = made
        return made

    def find(self, path: Path) -> ScratchFile | None:
        """What keeps the file of that path, if it is one of these."""
        return self._files.get(os.fspath(path))

    def _clear(self) -> None:
        """Remove the files that nobody holds any more."""
        while self._dropped:
            self._dropped.popleft().unlink(missing_ok=True)


_active: ContextVar[Scratch | None] = ContextVar("qcompiler.scratch", default=None)


def active() -> Scratch | None:
    """Where this thread's constants go, None for memory."""
    return _active.get()


def find(path: Path) -> ScratchFile | None:
    """What keeps a file of the active scratch folder; None for any other file."""
    store = _active.get()
    return None if store is None else store.find(path)


@contextmanager
def spilling(folder: Path, threshold: int = THRESHOLD) -> Generator[None, None, None]:
    """Inside, constants of `threshold` bytes or more go to files below `folder`, which is the
    caller's to remove; what has been made inside can't be read afterwards.

    Holds for the thread that enters: compiles in other threads have folders of their own. OSError
    (disk full) passes through whoever makes a constant.
    """
    home = folder.resolve() / ".constants"
    home.mkdir()
    token = _active.set(Scratch(home, threshold))
    try:
        yield
    finally:
        _active.reset(token)


@contextmanager
def spilling_beside(output: Path | None) -> Generator[Path, None, None]:
    """`spilling` in a scratch folder beside an output; where temporary files go without one."""
    final = Path(tempfile.gettempdir()) / "qcompiler" if output is None else output.absolute()
    with scratch_beside(final) as folder, spilling(folder):
        yield folder
