"""What commands have in common: how they run, and how their options read numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import typer
from typer.core import TyperCommand

from qcompiler import console, literals

_Number = TypeVar("_Number", int, float)


class Command(TyperCommand):
    """A command whose results alone go to standard output."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        with console.results_only():
            return super().invoke(ctx)


def whole(least: int) -> Callable[[str], int]:
    """A parser of whole numbers from `least`."""
    return _at_least(least, literals.whole, "a whole number", "d")


def real(least: float = -math.inf) -> Callable[[str], float]:
    """A parser of finite numbers from `least`."""
    return _at_least(least, literals.real, "a finite number", "g")


def _at_least(
    least: _Number, read: Callable[[str], _Number], what: str, form: str
) -> Callable[[str | _Number], _Number]:
    def number(text: str | _Number) -> _Number:
        try:
            value = read(text) if isinstance(text, str) else text  # a default is one already
        except ValueError:
            raise typer.BadParameter(f"'{text}' is not {what}") from None
        if value < least:
            raise typer.BadParameter(f"{value:{form}} is less than {least:{form}}")
        return value

    return number


def bits(text: str) -> float:
    """4.5 of "4.5bpw"."""
    try:
        return literals.real(text.removesuffix("bpw"))
    except ValueError:
        raise typer.BadParameter(
            f"'{text}' is no number of bits, such as 4.5bpw", param_hint="--budget"
        ) from None
