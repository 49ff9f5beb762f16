"""Speed of llama.cpp on the same model in Q4_0, where its Python package llama_cpp is installed."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import logging
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

MISSING = "llama.cpp: skipped, the package llama-cpp-python is not installed"


def available() -> bool:
    """Whether llama.cpp can be called."""
    return importlib.util.find_spec("llama_cpp") is not None


def quantize(source: Path, folder: Path) -> Path:
    """The Q4_0 form of a GGUF file, in `folder`.

    Raises RuntimeError where llama.cpp refuses the file.
    """
    target = folder / "Q4_0.gguf"
    llama: Any = importlib.import_module("llama_cpp")
    logging.getLogger("llama-cpp-python").setLevel(logging.ERROR)  # a line a tensor otherwise
    settings = llama.llama_model_quantize_default_params()
    settings.ftype = llama.LLAMA_FTYPE_MOSTLY_Q4_0
    settings.allow_requantize = True
    names = (str(source).encode(), str(target).encode())
    if llama.llama_model_quantize(*names, ctypes.byref(settings)) != 0:
        raise RuntimeError(f"llama.cpp can't quantize {source}")
    return target


def measure(
    gguf: Path, *, prompt_length: int, context: int, steps: int, rounds: int, threads: int
) -> dict[str, Any]:
    """Tokens/s of prefill and decode, medians over rounds, for JSON."""
    llama: Any = importlib.import_module("llama_cpp")
    start = time.perf_counter()
    model = llama.Llama(
        str(gguf),
        n_ctx=max(prompt_length, context + steps),
        n_batch=prompt_length,
        n_ubatch=prompt_length,
        n_threads=threads,
        n_threads_batch=threads,
        verbose=False,
    )
    load_seconds = time.perf_counter() - start
    tokens = np.random.default_rng(0).integers(0, model.n_vocab(), prompt_length + context + steps)
    prompt, before, fixed = np.split(tokens, (prompt_length, prompt_length + context))

    def read(ids: list[int]) -> None:
        model.eval(ids)
        llama.llama_synchronize(model.ctx)  # `eval` may return before the work is done

    def prefill() -> float:
        model.reset()
        begin = time.perf_counter()
        read(prompt.tolist())
        return time.perf_counter() - begin

    def decode() -> float:
        model.reset()
        read(before.tolist())
        begin = time.perf_counter()
        for token in fixed.tolist():
            read([token])
        return time.perf_counter() - begin

    return {
        "model": "llama.cpp Q4_0",
        "size_bytes": gguf.stat().st_size,
        "load_seconds": load_seconds,
        "rounds": rounds,
        "prefill": prompt_length / _median(prefill, rounds),
        "decode": steps / _median(decode, rounds),
    }


def _median(action: Callable[[], float], rounds: int) -> float:
    action()
    return statistics.median(action() for _ in range(rounds))
