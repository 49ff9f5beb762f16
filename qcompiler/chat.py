"""Chat templates: programs that come with a model, run with a budget of time and memory.

A template may loop without end or build gigabytes, and nothing inside a process can stop that. So
it runs in one of its own (`chat_child`), which is ended where it goes beyond.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from qcompiler import chat_child
from qcompiler.errors import ModelError

_SECONDS = 60.0
"""Of the clock, for a busy machine; the process itself may compute for less (`chat_child`)."""


def render(template: str, messages: Sequence[Mapping[str, str]]) -> str:
    """The text of a prompt: messages as a Jinja template writes them, an answer's beginning last.

    ModelError where the template fails, or takes more than its budget.
    """
    found = importlib.util.find_spec("jinja2")
    if found is None or found.origin is None:  # not a dependency: only chat needs it
        raise ModelError("--chat needs jinja2: pip install jinja2")
    request = {"path": sys.path, "template": template, "messages": list(messages)}
    command = [sys.executable, "-I", "-S", chat_child.__file__]
    try:
        done = subprocess.run(
            command,
            input=json.dumps(request).encode(),
            capture_output=True,
            timeout=_SECONDS,
            check=False,
            cwd=Path(chat_child.__file__).parent,
        )
    except subprocess.TimeoutExpired:
        raise _beyond() from None
    if done.returncode == chat_child.FAILED:
        cause = " ".join(done.stdout.decode("utf-8", "replace").split())
        raise ModelError(f"the model's chat template does not work here: {cause}")
    if done.returncode != 0:  # ended by its limits
        raise _beyond()
    return done.stdout.decode("utf-8")


def _beyond() -> ModelError:
    return ModelError(
        f"the model's chat template takes more than {chat_child.SECONDS} s or "
        f"{chat_child.MEMORY >> 20} MiB; repair it, or leave out --chat"
    )
