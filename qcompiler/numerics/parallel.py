"""The same bytes whatever the number of cores.

BLAS and LAPACK add up in an order that depends on the number of their threads. Passes therefore run
with one (`one_blas_thread`), and long work is cut into pieces that depend on the data alone, which
`mapped` computes side by side.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from threadpoolctl import threadpool_limits

_T = TypeVar("_T")
_R = TypeVar("_R")

_PART = 1 << 19  # elements
_LEAST_COLUMNS, _MOST_COLUMNS = 256, 1024


def one_blas_thread() -> AbstractContextManager[Any]:
    """Inside, each call of BLAS or LAPACK in this process runs on the thread that makes it."""
    manager: AbstractContextManager[Any] = threadpool_limits(limits=1, user_api="blas")
    return manager


def mapped(function: Callable[[_T], _R], items: Iterable[_T], *, ahead: int = 1) -> Iterator[_R]:
    """`function` of each item, in order; as many at a time as there are cores.

    `ahead` more wait, so that no core does where some items take longer; 0 where they are large.
    """
    workers = _cores()
    if workers == 1:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[_R]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= workers + ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def for_each(function: Callable[[_T], None], items: Iterable[_T]) -> None:
    """Like `mapped`, for what `function` does to each item."""
    deque(mapped(function, items), maxlen=0)


def column_parts(rows: int, columns: int) -> list[slice]:
    """The columns of a matrix in even parts, by its shape alone.

    Small enough for a core's cache in float64, large enough for the arithmetic to outweigh Python.
    """
    most = min(max(_PART // max(rows, 1), _LEAST_COLUMNS), _MOST_COLUMNS)
    count = max(1, -(-columns // most))
    borders = [columns * each // count for each in range(count + 1)]
    return [slice(*borders[each : each + 2]) for each in range(count)]


def _cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
