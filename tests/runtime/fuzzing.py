"""Runs cases of nodes with the op library, in a process of its own that prints each beforehand:

    python tests/runtime/fuzzing.py SEED FIRST COUNT [BODIES]

A node that is accepted gives what the reference gives, twice the same bits, into memory that held
anything; so does its function body without the library, which every BODIES-th case asks too. Exits
with 1 where one does not. The last line is a `Tally` in JSON.
"""

from __future__ import annotations

import json
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import onnxruntime as ort
from float_cases import float_case
from linear_cases import linear_case
from node_cases import NodeCase, Values, mutate, pick
from op_checks import run_into

from qcompiler import runtime

CASE_SECONDS = 30  # of CPU time, beyond which a case hangs
DIRT = 0x5A  # what outputs held before; no result repeats it


@dataclass
class Tally:
    """What became of the cases: by op, how many were accepted, refused, compared with the body,
    and how often the body refused what the kernel took."""

    accepted: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    bodies: Counter[str] = field(default_factory=Counter)
    bodies_refused: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    findings: int = 0

    def add(self, other: Tally) -> None:
        for name in ("accepted", "refused", "bodies", "bodies_refused"):
            getattr(self, name).update(getattr(other, name))
        self.runs += other.runs
        self.findings += other.findings

    @staticmethod
    def read(line: str) -> Tally:
        values = json.loads(line)
        return Tally(**{n: Counter(v) if isinstance(v, dict) else v for n, v in values.items()})


def valid_case(rng: np.random.Generator) -> NodeCase:
    """A node of any op; most are of the many ops that read weights."""
    return pick(rng, (linear_case, linear_case, float_case))(rng)


def make_case(seed: int, index: int) -> NodeCase:
    """Case `index` of a seed, mutated."""
    rng = np.random.default_rng([seed, index])
    case = valid_case(rng)
    mutate(case, rng)
    return case


def open_session(
    model: bytes, *, library: bool = True, threads: int = 1, arena: bool = False
) -> ort.InferenceSession:
    """A session of a model that may be refused. Without `arena` each tensor is a block of memory
    of its own, so that a sanitizer sees where it ends."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_cpu_mem_arena = options.enable_mem_pattern = arena
    if library:
        runtime.register(options)
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def examine(case: NodeCase, tally: Tally, *, body: bool, threads: int) -> Iterator[str]:
    """What is wrong with the case."""
    try:
        model = case.model(functions=False).SerializeToString()
    except (ValueError, TypeError, OverflowError):  # protobuf itself can't hold it
        tally.refused[case.op_type] += 1
        return
    taken: list[Values] = []
    try:
        session = open_session(model, threads=threads)
    except Exception as error:  # ONNX Runtime's errors share no other base class
        if not str(error).strip():
            yield "refused without a word"
    else:
        for number, fed in enumerate(case.runs()):
            tally.runs += 1
            try:
                outputs = [np.asarray(y) for y in session.run(None, fed)]
            except Exception:
                continue
            taken.append(fed)
            yield from (f"run {number}: {each}" for each in _judged(case, session, fed, outputs))
        if taken and body and not case.structure:
            yield from _bodies_findings(case, tally, taken)
    (tally.accepted if taken else tally.refused)[case.op_type] += 1


def _judged(
    case: NodeCase, session: ort.InferenceSession, fed: Values, outputs: list[np.ndarray]
) -> Iterator[str]:
    dirty = [np.full(y.nbytes, DIRT, np.uint8).view(y.dtype).reshape(y.shape) for y in outputs]
    for number, (y, other) in enumerate(zip(outputs, run_into(session, fed, dirty), strict=True)):
        if y.tobytes() != other.tobytes():
            yield f"output {number} depends on what its memory held"
    if case.in_place and not case.alias:
        yield from _in_place(case, session, fed, outputs)
    yield from _compared(case, fed, outputs, body=False)


def _in_place(
    case: NodeCase, session: ort.InferenceSession, fed: Values, outputs: list[np.ndarray]
) -> Iterator[str]:
    """Where inputs and outputs may be one buffer, values are written as elsewhere or left."""
    names = [each.name for each in session.get_outputs()]
    pairs = {i: names.index(o) for i, o in case.in_place.items() if i in fed and o in names}
    if not pairs or any(fed[i].shape != outputs[o].shape for i, o in pairs.items()):
        return
    binding = session.io_binding()
    results = {o: ort.OrtValue.ortvalue_from_numpy(fed[i]) for i, o in pairs.items()}
    for name, value in fed.items():
        if name in pairs:
            binding.bind_ortvalue_input(name, results[pairs[name]])
        else:
            binding.bind_cpu_input(name, np.asarray(value, order="C"))
    for index, name in enumerate(names):
        if index not in results:
            results[index] = ort.OrtValue.ortvalue_from_numpy(np.zeros_like(outputs[index]))
        binding.bind_ortvalue_output(name, results[index])
    session.run_with_iobinding(binding)
    before = {o: fed[i] for i, o in pairs.items()}
    for index, wanted in enumerate(outputs):
        y = results[index].numpy()
        left = before.get(index, wanted)
        if not ((_bits(y) == _bits(wanted)) | (_bits(y) == _bits(left))).all():
            yield f"output {index} differs where it lies in an input's memory"


def _bits(values: np.ndarray) -> np.ndarray:
    return np.frombuffer(np.ascontiguousarray(values).tobytes(), f"u{values.itemsize}")


def _compared(
    case: NodeCase, fed: Values, outputs: list[np.ndarray], *, body: bool
) -> Iterator[str]:
    try:
        wanted = case.wanted(fed)
    except (ValueError, IndexError, TypeError, KeyError, ZeroDivisionError) as error:
        yield f"accepted, but the reference fails: {error!r}"
        return
    if wanted is not None:
        kept = [each for each, name in zip(wanted, case.outputs, strict=True) if name]
        for number, (each, found) in enumerate(zip(kept, outputs, strict=True)):
            if excess := each.excess(found, body=body):
                yield f"{'body: ' if body else ''}output {number}: {excess}"


def _bodies_findings(case: NodeCase, tally: Tally, taken: list[Values]) -> Iterator[str]:
    """Of the runs that the kernel took."""
    try:
        session = open_session(case.model(functions=True).SerializeToString(), library=False)
    except Exception:
        tally.bodies_refused[case.op_type] += 1
        return
    for fed in taken:
        if not case.body_takes(case.inputs | fed):
            continue
        try:
            outputs = [np.asarray(y) for y in session.run(None, fed)]
        except Exception:
            tally.bodies_refused[case.op_type] += 1
            continue
        tally.bodies[case.op_type] += 1
        yield from _compared(case, fed, outputs, body=True)


def main(seed: int, first: int, count: int, bodies: int = 0) -> int:
    tally = Tally()
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # a hang ends the process, at the case printed
    for index in range(first, first + count):
        signal.setitimer(signal.ITIMER_PROF, CASE_SECONDS)
        case = make_case(seed, index)
        print(f"{index}: {case}", flush=True)
        asks_body = bool(bodies) and index % bodies == 0
        for finding in examine(case, tally, body=asks_body, threads=1 + index % 2):
            tally.findings += 1
            print(f"FINDING {index}: {finding}", flush=True)
    print(json.dumps(vars(tally)))
    return int(tally.findings > 0)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
