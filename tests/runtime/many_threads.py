"""Sessions that many threads use at once, in a process of its own or in a test's:

python tests/runtime/many_threads.py SEED ROUNDS THREADS
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
from fuzzing import open_session, valid_case
from node_cases import Values

from qcompiler import ops


@dataclass(frozen=True)
class Subject:
    """A node, what its runs get, and the bits that one thread alone computes of each."""

    op_type: str
    model: bytes
    feeds: list[Values]
    results: list[list[bytes]]


def subjects(seed: int, feeds: int = 3) -> list[Subject]:
    """A valid node of every op. One of its runs is large enough for tasks of its own."""
    rng = np.random.default_rng(seed)
    found: dict[str, Subject] = {}
    while len(found) < len(ops.OP_TYPES):
        case = valid_case(rng)
        if case.op_type in found:
            continue
        given = case.runs()[0]
        case.later = [case.vary(rng) for _ in range(8)]
        largest = sorted(case.runs(), key=lambda fed: sum(v.size for v in fed.values()))
        chosen = [given, *largest[-feeds + 1 :]]
        model = case.model(functions=False).SerializeToString()
        session = open_session(model)
        found[case.op_type] = Subject(
            case.op_type, model, chosen, [_bits(session, fed) for fed in chosen]
        )
    return list(found.values())


def _bits(session: ort.InferenceSession, fed: Values) -> list[bytes]:
    return [np.asarray(y).tobytes() for y in session.run(None, fed)]


def share_sessions(all_subjects: list[Subject], rounds: int, threads: int) -> Iterator[str]:
    """One session of each op, run by all threads at once with different inputs."""
    for subject in all_subjects:
        session = open_session(subject.model, threads=2)

        def work(number: int, subject=subject, session=session) -> Iterator[str]:
            for turn in range(rounds):
                which = (number + turn) % len(subject.feeds)
                if _bits(session, subject.feeds[which]) != subject.results[which]:
                    yield f"{subject.op_type}: other bits in a session that threads share"

        yield from _at_once(work, threads)


def churn_sessions(all_subjects: list[Subject], rounds: int, threads: int) -> Iterator[str]:
    """Sessions of all ops, created, run and destroyed by all threads at once."""

    def work(number: int) -> Iterator[str]:
        for turn in range(rounds * len(all_subjects)):
            subject = all_subjects[(number + turn) % len(all_subjects)]
            which = turn % len(subject.feeds)
            session = open_session(subject.model, threads=1 + number % 2)
            if _bits(session, subject.feeds[which]) != subject.results[which]:
                yield f"{subject.op_type}: other bits while sessions come and go"

    yield from _at_once(work, threads)


def _at_once(work: Callable[[int], Iterator[str]], threads: int) -> list[str]:
    """What the threads say is wrong, errors included; they begin together."""
    wrong: list[str] = []
    start = threading.Barrier(threads)

    def run(number: int) -> None:
        start.wait()
        try:
            wrong.extend(work(number))
        except Exception as error:  # a thread's error must reach the report
            wrong.append(f"{type(error).__name__}: {error}")

    workers = [threading.Thread(target=run, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return wrong


def main(seed: int, rounds: int, threads: int) -> int:
    chosen = subjects(seed)
    wrong = [*share_sessions(chosen, rounds, threads), *churn_sessions(chosen, rounds, threads)]
    for each in wrong:
        print(f"FINDING {each}")
    runs = threads * rounds * len(chosen)
    print(f"{runs} runs of shared sessions, {runs} sessions, {len(wrong)} wrong")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
