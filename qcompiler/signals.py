"""Ctrl-C, a polite kill, a terminal that closes: each ends a command in one line, at any moment.

Imports nothing heavy: the handlers stand before anything else is loaded.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_SAID = {"SIGINT": "interrupted", "SIGTERM": "terminated", "SIGHUP": "the terminal was closed"}
_STOPPING = {
    getattr(signal, name): said for name, said in _SAID.items() if hasattr(signal, name)
}  # Windows has no SIGHUP
_AGAIN = 0.2
"""Seconds after which a signal that something has swallowed comes again."""


class Interrupt(BaseException):
    """A signal that ends the command.

    No KeyboardInterrupt: libraries have ideas of their own about these.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    @property
    def code(self) -> int:
        """The exit code, as shells give it."""
        return 128 + self.number

    def __str__(self) -> str:
        return _STOPPING[signal.Signals(self.number)]


class Listener:
    """Turns signals into `Interrupt`, in the main thread, until `close`.

    One that comes while another unwinds the stack changes nothing. One that is lost on its way up,
    in a finalizer or in a library that catches everything, comes again. What the process was told
    to ignore (nohup, background jobs of shells) it ignores.
    """

    def __init__(self) -> None:
        self._closed = False
        self._number: int | None = None
        self._unraisable = sys.unraisablehook
        sys.unraisablehook = self._lost
        for number in _STOPPING:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._stop)

    def close(self) -> None:
        """From here on nothing stops the process: it is about to end anyway."""
        self._closed = True
        _alarm(0)
        for number in _STOPPING:
            signal.signal(number, signal.SIG_IGN)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self._closed or _unwinding():
            return
        if self._number is None:
            self._number = number
            if hasattr(signal, "SIGALRM"):
                signal.signal(signal.SIGALRM, self._remind)
        _alarm(_AGAIN)
        while frame is not None and frame.f_code is not Listener._lost.__code__:
            frame = frame.f_back
        if frame is None:  # else it would be lost there, and not in silence
            raise Interrupt(self._number)

    def _remind(self, _number: int, frame: FrameType | None) -> None:
        if self._number is not None:
            self._stop(self._number, frame)

    def _lost(self, unraisable: Any) -> None:
        """Called for exceptions in finalizers: a signal comes again, and needs no word."""
        if not issubclass(unraisable.exc_type, Interrupt):
            self._unraisable(unraisable)


def _alarm(seconds: float) -> None:
    if hasattr(signal, "setitimer"):  # elsewhere a lost signal has to be sent again
        signal.setitimer(signal.ITIMER_REAL, seconds, seconds)


def _unwinding() -> bool:
    """Whether an `Interrupt` is on its way up, through handlers and clean-up."""
    return _behind(sys.exc_info()[1]) is not None


def _behind(error: BaseException | None) -> Interrupt | None:
    """The `Interrupt` that has led to an exception."""
    if error is None or isinstance(error, Interrupt):
        return error
    cause, context = error.__cause__, error.__context__
    return _behind(cause) or (None if context is cause else _behind(context))


@contextmanager
def unwrapped() -> Generator[None, None, None]:
    """An `Interrupt` that comes out of this as another exception is one again.

    Python itself makes a RuntimeError of what interrupts `__set_name__`.
    """
    try:
        yield
    except Exception as error:
        if (stop := _behind(error)) is not None:
            raise stop from None
        raise


@contextmanager
def held() -> Generator[None, None, None]:
    """Signals that Python handles wait until the end of this; for what takes milliseconds."""
    if threading.current_thread() is not threading.main_thread():
        yield  # handlers run in the main thread alone
        return
    came: list[int] = []
    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGALRM")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    handlers: dict[int, Any] = {n: signal.getsignal(n) for n in numbers}
    handlers = {n: handler for n, handler in handlers.items() if callable(handler)}
    try:
        for number in handlers:
            signal.signal(number, lambda n, _frame: came.append(n))
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in came:
            signal.raise_signal(number)


def say(line: str) -> None:
    """A line on standard error, whatever has become of `sys.stderr`."""
    try:
        os.write(2, f"error: {line}\n".encode())
    except OSError:
        return  # nobody listens


__all__ = ["Interrupt", "Listener", "held", "say", "unwrapped"]
