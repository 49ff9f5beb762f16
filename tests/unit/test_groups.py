"""The suite itself: tests that share what they have made run in one worker."""

from __future__ import annotations

import os


def test_workers_take_whole_groups(request):
    """xdist reads a group off the end of a test's id, where not every pytest lets it be written."""
    grouped = "@" in request.node.nodeid
    assert grouped == ("PYTEST_XDIST_WORKER" in os.environ)
