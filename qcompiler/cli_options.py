"""What commands have in common: how they run, options of several, and how options read numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

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


def one_of(name: str, value: str, choices: tuple[str, ...]) -> Any:
    """The value, if it is one of the choices for the option of that name."""
    if value not in choices:
        raise typer.BadParameter(
            f"'{value}' is not one of {', '.join(choices)}", param_hint=f"--{name}"
        )
    return value


def _known_provider(value: str) -> str:
    from qcompiler.session import PROVIDERS

    return str(one_of("provider", value, tuple(PROVIDERS)))


Models = Annotated[list[str], typer.Argument(metavar="MODEL", help="ONNX files or model folders.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Threads = Annotated[
    int | None,
    typer.Option(parser=whole(1), metavar="N", help="Threads; by default ONNX Runtime chooses."),
]
Provider = Annotated[
    str,
    typer.Option(
        help="What runs the model: cpu, or cuda (for models compiled with -t cuda).",
        callback=_known_provider,
    ),
]
