"""Signals end `qc` in one line at any moment; a reader that goes away, in none."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from qcompiler import locks
from qcompiler.signals import held

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")

PROGRAM = """
import atexit, contextlib, io, os, signal, sys, time, types, weakref
from pathlib import Path
from signal import SIGHUP, SIGINT, SIGTERM, raise_signal
from qcompiler import entry
from qcompiler.signals import held
from qcompiler.staging import scratch_beside

signal.signal(SIGINT, signal.default_int_handler)  # background jobs of shells ignore these
signal.signal(SIGHUP, signal.SIG_DFL)
folder = Path(sys.argv[1])
command = types.ModuleType("qcompiler.cli")

class Thing:
    pass

def busy():
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        time.sleep(0.001)

def run():
{body}
    return 0

command.run = run
sys.modules["qcompiler.cli"] = command
{before}
entry.main()
"""


def run(folder: Path, body: str, before: str = "", **options) -> tuple[int, str]:
    """Exit code and standard error of a `qc` whose command is `body`."""
    program = PROGRAM.format(body=textwrap.indent(textwrap.dedent(body), "    "), before=before)
    ran = subprocess.run(
        [sys.executable, "-c", program, str(folder)],
        stderr=subprocess.PIPE,
        stdout=options.pop("stdout", subprocess.DEVNULL),
        text=True,
        check=False,
        timeout=60,
        env={k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"},
        **options,
    )
    return ran.returncode, ran.stderr


INTERRUPTED = (130, "error: interrupted\n")


@pytest.mark.parametrize(
    ("body", "ends"),
    [
        ("raise_signal(SIGINT)", INTERRUPTED),
        ("raise_signal(SIGTERM)", (143, "error: terminated\n")),
        ("raise_signal(SIGHUP)", (129, "error: the terminal was closed\n")),
    ],
)
def test_each_in_one_line(tmp_path: Path, body: str, ends: tuple[int, str]) -> None:
    assert run(tmp_path, body) == ends


@pytest.mark.parametrize(
    "body",
    [
        "Thing.__del__ = lambda self: raise_signal(SIGINT)\nThing()\nbusy()",
        "a = Thing()\nb = weakref.ref(a, lambda _: raise_signal(SIGINT))\ndel a\nbusy()",
        "try:\n    raise_signal(SIGINT)\nexcept BaseException:\n    pass\nbusy()",
        "with contextlib.suppress(KeyboardInterrupt):\n    raise_signal(SIGINT)",
        "with contextlib.redirect_stderr(io.StringIO()):\n    raise_signal(SIGINT)",
        "try:\n    raise_signal(SIGINT)\nfinally:\n    sys.stderr.close()",
        "Thing.__set_name__ = lambda *_: raise_signal(SIGINT)\nclass Other:\n    thing = Thing()",
        "try:\n    raise_signal(SIGINT)\nfinally:\n    raise OSError('in the clean-up')",
    ],
    ids=[
        "finalizer",
        "weak reference",
        "swallowed",
        "suppressed",
        "redirected",
        "closed",
        "wrapped",
        "replaced",
    ],
)
def test_wherever_it_comes(tmp_path: Path, body: str) -> None:
    assert run(tmp_path, body) == INTERRUPTED


def test_while_modules_are_imported(tmp_path: Path) -> None:
    before = """
del sys.modules["qcompiler.cli"]
class Finder:
    def find_spec(name, path, target=None):
        raise_signal(SIGINT)
sys.meta_path.insert(0, Finder)
"""
    assert run(tmp_path, "pass", before) == INTERRUPTED


def test_while_another_one_is_lost(tmp_path: Path) -> None:
    before = "sys.unraisablehook = lambda _: raise_signal(SIGINT)"
    body = "Thing.__del__ = lambda self: 1 / 0\nThing()\nbusy()"
    assert run(tmp_path, body, before) == INTERRUPTED


def test_a_second_one_waits_for_the_clean_up(tmp_path: Path) -> None:
    body = """
    with contextlib.suppress(ValueError):
        try:
            raise_signal(SIGINT)
        finally:
            raise_signal(SIGTERM)
            with contextlib.suppress(KeyError):
                try:
                    {}["x"]
                except KeyError:
                    raise_signal(SIGINT)
            time.sleep(0.5)
            (folder / "clean").touch()
    """
    assert run(tmp_path, body) == INTERRUPTED
    assert (tmp_path / "clean").exists()


def test_what_is_held_is_done_first(tmp_path: Path) -> None:
    body = """
    with held():
        raise_signal(SIGTERM)
        (folder / "done").touch()
    (folder / "never").touch()
    """
    assert run(tmp_path, body) == (143, "error: terminated\n")
    assert [path.name for path in tmp_path.iterdir()] == ["done"]


def test_scratch_folders_go_even_where_nobody_cleans_up(tmp_path: Path) -> None:
    body = """
    scratch = scratch_beside(folder / "new" / "out")
    (scratch.__enter__() / "half").touch()
    {}
    """
    for then, ends in (("raise_signal(SIGINT)", INTERRUPTED), ("return 0", (0, ""))):
        assert run(tmp_path, body.format(then)) == ends
        assert list(tmp_path.iterdir()) == []


def test_when_all_is_done_nothing_is_said(tmp_path: Path) -> None:
    body = "atexit.register(lambda: [raise_signal(n) for n in (SIGINT, SIGTERM, SIGHUP)])"
    assert run(tmp_path, body) == (0, "")


def test_what_is_to_be_ignored_is_ignored(tmp_path: Path) -> None:
    before = "signal.signal(SIGHUP, signal.SIG_IGN)"  # as nohup does
    assert run(tmp_path, "raise_signal(SIGHUP)", before) == (0, "")


@pytest.mark.parametrize("size", [1, 1 << 20])
def test_a_reader_that_goes_away(tmp_path: Path, size: int) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    assert run(tmp_path, f"print('x' * {size})", stdout=writing) == (141, "")
    os.close(writing)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_output_that_does_not_fit(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        code, said = run(tmp_path, "print('x')", stdout=full)
    assert code == 1
    assert said.startswith("error: standard output: ")
    assert said.count("\n") == 1


def test_held_in_a_program_of_ones_own() -> None:
    done = []
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), held(), held():
            signal.raise_signal(signal.SIGINT)
            done.append("all of it")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert done


def test_runs_take_turns(tmp_path: Path) -> None:
    lock, inside, most = tmp_path / ".lock", 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(20):
            with locks.turn(lock):
                inside += 1
                most = max(most, inside)
                inside -= 1

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert most == 1
    assert not lock.exists()


def test_a_lock_file_that_a_killed_run_left_is_no_obstacle(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    lock.touch()
    with locks.turn(lock):
        assert lock.exists()
    assert not lock.exists()


def test_without_locks_nobody_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_descriptor: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks, "_lock", unknown)
    with locks.turn(tmp_path / ".lock"), locks.turn(tmp_path / ".lock"):
        assert list(tmp_path.iterdir()) == []


def test_who_waits_for_a_turn_can_be_interrupted(tmp_path: Path) -> None:
    body = """
    from qcompiler import locks
    import threading
    threading.Timer(0.3, os.kill, (os.getpid(), SIGINT)).start()
    with locks.turn(folder / ".lock"):
        pass
    """
    with locks.turn(tmp_path / ".lock"):
        assert run(tmp_path, body) == INTERRUPTED
        assert (tmp_path / ".lock").exists()
