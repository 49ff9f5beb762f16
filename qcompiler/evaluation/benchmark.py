"""Speed of several models side by side.

Rounds are interleaved (A B C, A B C, ...) and medians reported, so a slow moment of the machine
hits every model alike.
"""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from qcompiler.calibration.sources import load_source
from qcompiler.decoding import MOST_POSITIONS, Decoder
from qcompiler.errors import ModelError
from qcompiler.feeds import Array, Signature, vocabulary
from qcompiler.foreign import runtime_errors
from qcompiler.models import ModelPackage, open_package
from qcompiler.session import create_session, providers_of

Progress = Callable[[int, int], None]

ENCODER_BATCH = 8
SENTENCE_TOKENS = 32
"""Length of the sentences an encoder is timed on."""


@dataclass(frozen=True)
class BenchmarkResult:
    """Medians over rounds; None where a figure does not apply or could not be taken.

    `load_seconds`: creating the session. `memory_bytes`: resident memory that loading and a first
    run added (Linux). Decoders: tokens/s of `prefill` on a prompt, and of `decode` one token at a
    time after a context (None without a key/value cache). Encoders: `sentences_per_second` in a
    batch of eight. Encoders and others: `latency_ms` of one input.
    """

    model: str
    kind: str
    size_bytes: int
    load_seconds: float
    rounds: int
    memory_bytes: int | None = None
    prefill: float | None = None
    decode: float | None = None
    latency_ms: float | None = None
    sentences_per_second: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Setting:
    """What to time: prefill of a prompt, decoding `steps` tokens after `context` tokens."""

    prompt_length: int = 512
    context: int = 128
    steps: int = 32
    rounds: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.prompt_length, self.context, self.steps, self.rounds) < 1:
            raise ModelError("lengths, steps and rounds must be at least 1")
        if max(self.prompt_length, self.context + self.steps) > MOST_POSITIONS:
            raise ModelError(f"a text has at most {MOST_POSITIONS} tokens; measure shorter ones")


Actions = Mapping[str, Callable[[], float]]
"""What to time of one contender, by figure: each runs once and returns the seconds it took."""


@dataclass(frozen=True)
class Subject:
    """A loaded model and its timed actions."""

    package: ModelPackage
    kind: str
    load_seconds: float
    memory_bytes: int | None
    actions: Actions


def benchmark(
    models: Sequence[str | Path],
    setting: Setting | None = None,
    *,
    threads: int | None = None,
    provider: str = "cpu",
    progress: Progress = lambda _done, _total: None,
) -> list[BenchmarkResult]:
    """Time `models` side by side, on "cpu" or "cuda".

    Raises ModelError for a model that can't be loaded or fed.
    """
    setting = setting or Setting()
    subjects = [load(model, setting, threads=threads, provider=provider) for model in models]
    medians = take_turns([subject.actions for subject in subjects], setting.rounds, progress)
    return [result(s, m, setting) for s, m in zip(subjects, medians, strict=True)]


def take_turns(
    contenders: Sequence[Actions],
    rounds: int,
    progress: Progress = lambda _done, _total: None,
) -> list[dict[str, float]]:
    """Median seconds of each contender's actions, over rounds in which all take turns."""
    seconds: list[dict[str, list[float]]] = [{name: [] for name in c} for c in contenders]
    for actions in contenders:
        for action in actions.values():
            action()  # first runs allocate
    for done in range(rounds):
        for actions, taken in zip(contenders, seconds, strict=True):
            for figure, action in actions.items():
                taken[figure].append(action())
        progress(done + 1, rounds)
    return [{name: statistics.median(times) for name, times in s.items()} for s in seconds]


def load(
    model: str | Path,
    setting: Setting,
    *,
    threads: int | None = None,
    library: bool | None = None,
    provider: str = "cpu",
) -> Subject:
    """Open a model and run each of its actions once. `library` is as in `create_session`.

    Raises ModelError for a model that can't be loaded or fed.
    """
    package = open_package(model)
    signature = Signature.of(package)
    before = resident_bytes()
    start = time.perf_counter()
    session = create_session(
        package.onnx_path,
        threads=threads,
        library=library,
        options={"session.force_spinning_stop": "1"},
        providers=providers_of(provider),
    )
    load_seconds = time.perf_counter() - start
    actions = _actions(package, signature, session, setting)
    for action in actions.values():
        action()
    after = resident_bytes()
    memory = None if before is None or after is None else max(0, after - before)
    return Subject(package, signature.kind, load_seconds, memory, actions)


def _actions(
    package: ModelPackage, signature: Signature, session: ort.InferenceSession, setting: Setting
) -> Actions:
    """What to time of this kind of model, by figure."""

    def timed_run(feeds: Mapping[str, Array]) -> Callable[[], float]:
        wanted = None if signature.kind == "other" else [signature.logits]

        def action() -> float:
            with runtime_errors(ModelError, f"{package.onnx_path} does not run"):
                begin = time.perf_counter()
                session.run(wanted, feeds)
                return time.perf_counter() - begin

        return action

    if signature.kind == "other":
        feeds = load_source("random", package, samples=1, seed=setting.seed).feeds[0]
        return {"latency": timed_run(feeds)}
    size = vocabulary(package, signature)
    rng = np.random.default_rng(setting.seed)

    def tokens(batch: int, length: int) -> Array:
        return rng.integers(0, size, (batch, length))

    if signature.kind == "encoder":
        return {
            "latency": timed_run(signature.feeds(tokens(1, SENTENCE_TOKENS))),
            "batch": timed_run(signature.feeds(tokens(ENCODER_BATCH, SENTENCE_TOKENS))),
        }
    actions = {"prefill": timed_run(signature.feeds(tokens(1, setting.prompt_length)))}
    decoder = Decoder(session, signature, capacity=setting.context + setting.steps)
    if decoder.cached:
        decoder.step(tokens(1, setting.context))
        state = decoder.snapshot()
        fixed = tokens(setting.steps, 1)

        def decode() -> float:
            decoder.restore(state)
            begin = time.perf_counter()
            for token in fixed:
                decoder.step(token[None])
            return time.perf_counter() - begin

        actions["decode"] = decode
    return actions


def result(subject: Subject, median: Mapping[str, float], setting: Setting) -> BenchmarkResult:
    """A subject's figures, from the median seconds of its actions."""

    def rate(figure: str, amount: int) -> float | None:
        return amount / median[figure] if figure in median else None

    return BenchmarkResult(
        model=subject.package.name,
        kind=subject.kind,
        size_bytes=subject.package.size_bytes(),
        load_seconds=subject.load_seconds,
        rounds=setting.rounds,
        memory_bytes=subject.memory_bytes,
        prefill=rate("prefill", setting.prompt_length),
        decode=rate("decode", setting.steps),
        latency_ms=1e3 * median["latency"] if "latency" in median else None,
        sentences_per_second=rate("batch", ENCODER_BATCH),
    )


def resident_bytes() -> int | None:
    """Resident memory of this process, where the system tells (Linux).

    Memory that was freed but not yet handed back to the system is handed back first: it belongs to
    nobody, and the next allocation would use it.
    """
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, others may not
    if trim is not None:
        trim(0)
    for line in status.read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return None
