"""Renders one chat template: a script for a process of its own, within limits (`chat`).

It reads JSON from standard input and writes the text to standard output; what is wrong with the
template instead, and exit code FAILED, where it does not work. It imports nothing of this package.
"""

from __future__ import annotations

import json
import sys

SECONDS = 2
"""Of computing: a template takes milliseconds."""
MEMORY = 512 << 20
"""Bytes."""
TEXT = 4 << 20
"""Characters of the result."""
FAILED = 3


def _limit() -> None:
    try:
        import resource  # noqa: PLC0415
    except ImportError:  # Windows: the clock alone, in the process that waits
        return
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform != "darwin":  # which has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def _rendered(request: dict[str, object]) -> str:
    from jinja2.sandbox import ImmutableSandboxedEnvironment  # noqa: PLC0415

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    text = environment.from_string(str(request["template"])).render(
        messages=request["messages"], add_generation_prompt=True, bos_token="", eos_token=""
    )
    if len(text) > TEXT:
        raise ValueError(f"it makes a text of more than {TEXT >> 20} million characters")
    return text


def main() -> int:
    """Render what standard input asks for; the exit code."""
    request = json.load(sys.stdin.buffer)
    sys.path[:] = request["path"]
    _limit()
    try:
        text = _rendered(request)
    except MemoryError:
        text = f"it takes more than {MEMORY >> 20} MiB"
    except Exception as error:  # a template may raise anything
        text = f"{type(error).__name__}: {error}"[:1000]
    else:
        sys.stdout.buffer.write(text.encode("utf-8", "replace"))
        return 0
    sys.stdout.buffer.write(text.encode("utf-8", "replace"))
    return FAILED


if __name__ == "__main__":
    sys.exit(main())
