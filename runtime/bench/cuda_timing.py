"""Times on a GPU, by events of PyTorch. Needs nothing else."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

REPLAYS = 15


def event_microseconds(action: Callable[[], object]) -> float:
    """The median time of an action on the current stream."""
    times = []
    for _ in range(REPLAYS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        action()
        end.record()
        end.synchronize()
        times.append(1e3 * begin.elapsed_time(end))
    return statistics.median(times)


def graph_microseconds(actions: list[Callable[[], object]]) -> float:
    """The median time of one of the actions, all captured into a graph."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for action in actions:  # libraries set themselves up at the first call
            action()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for action in actions:
            action()
    return event_microseconds(graph.replay) / len(actions)
