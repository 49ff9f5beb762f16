"""What the command lines of the benchmarks have in common. Needs nothing but Python."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser with --quick; `doc` is the program's own, whose first line describes it."""
    made = argparse.ArgumentParser(description=(doc or "").split("\n", 1)[0])
    made.add_argument("--quick", action="store_true", help="a smoke test, of no meaning")
    return made


def add_out(to: argparse.ArgumentParser) -> None:
    """The option --out, for a file."""
    to.add_argument("--out", type=Path, help="a JSON file to write")


def write_json(file: Path | None, value: Any) -> None:
    """Write JSON, if there is a file for it."""
    if file is not None:
        file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
