"""The suite itself: tests that share what they have made run in one worker."""

from __future__ import annotations


def test_workers_take_whole_groups(request):
    """xdist reads a group off the end of a test's id, where not every pytest lets it be written."""
    wanted = getattr(request.config.option, "loadgroup", False)  # xdist sets it in workers
    assert ("@" in request.node.nodeid) == wanted
