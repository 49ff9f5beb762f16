"""What commands have in common: how they run, and how their options read numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperCommand

from qcompiler import console, literals


class Command(TyperCommand):
    """A command whose results alone go to standard output."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        with console.results_only():
            return super().invoke(ctx)


def whole(least: int) -> Callable[[str], int]:
    """A parser of whole numbers from `least`."""

    def number(text: str | int) -> int:
        try:
            value = literals.whole(text) if isinstance(text, str) else text
        except ValueError:
            raise typer.BadParameter(f"'{text}' is not a whole number") from None
        if value < least:
            raise typer.BadParameter(f"{value} is less than {least}")
        return value

    return number


def real(least: float = -math.inf) -> Callable[[str], float]:
    """A parser of finite numbers from `least`."""

    def number(text: str | float) -> float:
        try:
            value = literals.real(text) if isinstance(text, str) else text
        except ValueError:
            raise typer.BadParameter(f"'{text}' is not a finite number") from None
        if value < least:
            raise typer.BadParameter(f"{value:g} is less than {least:g}")
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
