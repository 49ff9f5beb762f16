"""Output appears whole or not at all: files are made in a scratch folder beside their place.

A run that is killed outright can't clean up; the next run for the same output does.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def scratch_beside(final: Path) -> Generator[Path, None, None]:
    """A folder on the file system of `final`, removed at the end whatever happens."""
    final.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(final)
    # Named before it is made: an interrupt right after mkdir still finds it in `finally`.
    folder = final.parent / f".{final.name}.{os.getpid()}-{secrets.token_hex(4)}"
    try:
        folder.mkdir(mode=0o700)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_stale(final: Path) -> None:
    """Remove scratch folders whose process is gone."""
    pattern = re.compile(re.escape(f".{final.name}.") + r"(\d+)-")
    for path in final.parent.iterdir():
        found = pattern.match(path.name)
        if found and path.is_dir() and not _alive(int(found[1])):
            shutil.rmtree(path, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
