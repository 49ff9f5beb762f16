"""Every op gives the same bits in sessions that threads share and in those that come and go."""

from __future__ import annotations

import pytest
from many_threads import churn_sessions, share_sessions, subjects

from qcompiler import ops


@pytest.fixture(scope="module")
def nodes():
    return subjects(0)


def test_threads_share_a_session(nodes):
    assert {each.op_type for each in nodes} == set(ops.OP_TYPES)
    assert not list(share_sessions(nodes, rounds=8, threads=8))


def test_sessions_come_and_go(nodes):
    assert not list(churn_sessions(nodes, rounds=2, threads=8))
