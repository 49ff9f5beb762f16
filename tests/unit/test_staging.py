"""Scratch folders beside an output: removed at the end, respected while somebody works in them."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qcompiler import locks, staging
from qcompiler.staging import scratch_beside

HOLDER = """
import sys
from pathlib import Path
from qcompiler.staging import scratch_beside
with scratch_beside(Path(sys.argv[1])) as folder:
    (folder / "half").write_text("done")
    print(folder, flush=True)
    sys.stdin.read()
"""


def holder(final: Path) -> tuple[subprocess.Popen[str], Path]:
    """Another process that works in a scratch folder of `final`."""
    running = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(final)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert running.stdout is not None
    return running, Path(running.stdout.readline().strip())


def test_the_folder_goes_whatever_happens(tmp_path: Path) -> None:
    final = tmp_path / "new" / "deep" / "out.onnx"
    with pytest.raises(KeyboardInterrupt), scratch_beside(final) as folder:
        (folder / "file").write_text("half")
        assert folder.parent == final.parent
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == [], "and so do the folders above it that it made"
    with scratch_beside(final) as folder:
        final.write_text("done")
    assert list(final.parent.iterdir()) == [final]


def test_a_folder_in_use_is_respected_and_an_abandoned_one_removed(tmp_path: Path) -> None:
    final = tmp_path / "out.onnx"
    running, theirs = holder(final)
    with scratch_beside(final):
        assert (theirs / "half").exists()
    running.kill()
    running.communicate()
    assert theirs.exists()
    with scratch_beside(final):
        assert not theirs.exists()
    assert list(tmp_path.iterdir()) == []


def test_the_number_in_the_name_does_not_matter(tmp_path: Path) -> None:
    """In another container the same number is another process."""
    final = tmp_path / "out.onnx"
    running, theirs = holder(final)
    nobody = theirs.rename(tmp_path / ".out.onnx.99999999-0123abcd")
    abandoned = tmp_path / f".out.onnx.{os.getpid()}-0123abcd"
    abandoned.mkdir()
    others = [tmp_path / ".out.onnx.1-0123abcd.txt", tmp_path / ".other.onnx.1-0123abcd"]
    for other in others:
        other.mkdir()
    with scratch_beside(final):
        assert nobody.exists()
        assert not abandoned.exists()
        assert all(other.exists() for other in others)
    running.kill()
    running.communicate()


def test_without_locks_nothing_is_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_descriptor: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    final = tmp_path / "out.onnx"
    unclear = tmp_path / ".out.onnx.1-0123abcd"
    unclear.mkdir()
    monkeypatch.setattr(locks, "_lock", unknown)
    with scratch_beside(final) as folder:
        assert folder.exists()
    assert list(tmp_path.iterdir()) == [unclear]


def test_a_folder_taken_for_abandoned_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run may find the folder between its making and its locking."""
    take, seen = staging.take, []

    def late(lock: Path) -> int | None:
        seen.append(lock.parent)
        if len(seen) == 1:
            lock.parent.rmdir()
        return take(lock)

    monkeypatch.setattr(staging, "take", late)
    with scratch_beside(tmp_path / "out.onnx") as folder:
        assert folder == seen[1] != seen[0]
        assert folder.exists()
    assert list(tmp_path.iterdir()) == []
