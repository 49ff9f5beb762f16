"""Options shared by all tests."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

# The same examples in every run, however slow the machine is just then; HYPOTHESIS_PROFILE=default
# looks for others.
settings.register_profile("same", derandomize=True, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="write the expectations of tests/golden/**/*.qir from what the passes do now",
    )


REAL_MODELS = ("smollm2_genai", "smollm2_first", "smollm2_torch", "minilm")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of one file stay with one worker, and what they have made; slow ones by real model."""
    for item in items:
        # Not item.location: that names the file an imported test was written in.
        group = item.nodeid.partition("::")[0]
        if item.get_closest_marker("slow") is not None:
            call = getattr(item, "callspec", None)
            asked = [*getattr(item, "fixturenames", ()), *(call.params.values() if call else ())]
            group += "".join(f"-{model}" for model in REAL_MODELS if model in asked)
        item.add_marker(pytest.mark.xdist_group(group))
