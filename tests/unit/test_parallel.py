"""Work side by side: in order, never far ahead, BLAS on one thread."""

from __future__ import annotations

import threading
import time

import onnx_graphsurgeon as gs
import pytest
from threadpoolctl import threadpool_info

from qcompiler.numerics import parallel
from qcompiler.numerics.parallel import column_parts, mapped, one_blas_thread
from qcompiler.passmanager import Numerics, Pass, PassContext, PassManager, PassResult


@pytest.mark.parametrize("cores", [1, 2, 5])
def test_results_come_in_order(monkeypatch, cores):
    monkeypatch.setattr(parallel, "_cores", lambda: cores)

    def slow_at_first(x: int) -> int:
        time.sleep(0.01 if x < 3 else 0)
        return x * x

    assert list(mapped(slow_at_first, range(20))) == [x * x for x in range(20)]
    assert list(mapped(slow_at_first, [])) == []


@pytest.mark.parametrize("ahead", [0, 1])
def test_reads_no_more_than_a_few_items_ahead(monkeypatch, ahead):
    monkeypatch.setattr(parallel, "_cores", lambda: 2)
    read = []
    results = mapped(lambda x: x, (read.append(x) or x for x in range(100)), ahead=ahead)
    assert next(results) == 0
    assert len(read) == 2 + ahead
    results.close()
    assert len(read) == 2 + ahead


def test_works_side_by_side_and_raises(monkeypatch):
    monkeypatch.setattr(parallel, "_cores", lambda: 2)
    together = threading.Barrier(2, timeout=10)

    def meet(x: int) -> int:
        if x < 2:
            together.wait()  # broken, and so raises, if the two don't run at once
        if x == 3:
            raise ValueError("three")
        return x

    results = mapped(meet, range(10))
    assert [next(results), next(results), next(results)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)


def test_passes_run_with_one_blas_thread():
    def threads() -> list[int]:
        return [p["num_threads"] for p in threadpool_info() if p["user_api"] == "blas"]

    seen = []

    class Look(Pass):
        name = "look"
        numerics = Numerics.EXACT

        def run(self, graph, ctx):
            seen.extend(threads())
            return PassResult(graph=graph, changed=False)

    before = threads()
    PassManager([Look()]).run(gs.Graph(), PassContext())
    assert seen
    assert set(seen) == {1}
    assert threads() == before
    with one_blas_thread():
        assert set(threads()) == {1}


@pytest.mark.parametrize("rows", [0, 1, 576, 1536, 100_000])
@pytest.mark.parametrize("columns", [0, 1, 255, 576, 49_152])
def test_columns_are_parted_evenly(rows, columns):
    parts = column_parts(rows, columns)
    assert [n for part in parts for n in range(columns)[part]] == list(range(columns))
    sizes = [len(range(columns)[part]) for part in parts]
    assert max(sizes) - min(sizes) <= 1 and max(sizes) <= 1024
    assert len(parts) == 1 or min(sizes) >= 128
