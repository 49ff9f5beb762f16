"""Short forms of the attacks in tests/torture, each as its script runs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "torture"


@pytest.mark.parametrize(("script", "rounds"), [("models", 150)])
def test_nothing_is_found(script: str, rounds: int) -> None:
    command = [sys.executable, str(SCRIPTS / f"{script}.py"), "--rounds", str(rounds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
