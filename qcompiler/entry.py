"""The entry point of `qc`: listens to signals before anything heavy is imported."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from typing import NoReturn

from qcompiler import signals

NO_READER = 141
"""Exit code when the reader of a pipe has gone, as of programs that SIGPIPE ends."""


def main() -> NoReturn:
    """Run the command that the arguments name; exits 128 + n when signal n ends it."""
    try:
        listener = signals.Listener()
        try:
            with signals.unwrapped():
                code = _run()
        finally:
            listener.close()
    except signals.Interrupt as stop:
        _leave(stop)
    except KeyboardInterrupt:  # before there was a listener
        _leave(signals.Interrupt(signal.SIGINT))
    sys.exit(code)


def _run() -> int:
    """The exit code of the command, its output flushed."""
    try:
        from qcompiler import cli  # noqa: PLC0415

        code = cli.run()
    except BrokenPipeError:
        code = NO_READER
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        # What can't be written is dropped, lest the interpreter try again on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if isinstance(error, BrokenPipeError):
            return NO_READER
        signals.say(f"standard output: {error.strerror}; write elsewhere")
        return code or 1
    return code


def _leave(stop: signals.Interrupt) -> NoReturn:
    """End at once: what an interrupt has left of libraries may not survive an orderly exit."""
    if (staging := sys.modules.get("qcompiler.staging")) is not None:
        with suppress(OSError):  # the next run will
            staging.sweep()
    signals.say(str(stop))
    os._exit(stop.code)


__all__ = ["main"]
