"""Speed of llama.cpp on the same model in Q4_0, where its Python package llama_cpp is installed."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np

from qcompiler.evaluation.benchmark import Actions, Setting

REST = 0.2
"""Seconds for its threads to stop spinning, before the next contender's turn."""

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


def load(gguf: Path, setting: Setting, threads: int) -> tuple[dict[str, Any], Actions]:
    """Open a file: what is known of it already, and what to time."""
    llama: Any = importlib.import_module("llama_cpp")
    start = time.perf_counter()
    model = llama.Llama(
        str(gguf),
        n_ctx=max(setting.prompt_length, setting.context + setting.steps),
        n_batch=setting.prompt_length,
        n_ubatch=setting.prompt_length,
        n_threads=threads,
        n_threads_batch=threads,
        verbose=False,
    )
    load_seconds = time.perf_counter() - start
    lengths = (setting.prompt_length, setting.context, setting.steps)
    tokens = np.random.default_rng(setting.seed).integers(0, model.n_vocab(), sum(lengths))
    prompt, before, fixed = np.split(tokens, np.cumsum(lengths)[:-1])

    def read(ids: list[int]) -> None:
        model.eval(ids)
        llama.llama_synchronize(model.ctx)  # `eval` may return before the work is done

    def timed(texts: list[list[int]]) -> float:
        begin = time.perf_counter()
        for ids in texts:
            read(ids)
        seconds = time.perf_counter() - begin
        time.sleep(REST)
        return seconds

    def prefill() -> float:
        model.reset()
        return timed([prompt.tolist()])

    def decode() -> float:
        model.reset()
        read(before.tolist())
        return timed([[token] for token in fixed.tolist()])

    known = {
        "model": "llama.cpp Q4_0",
        "size_bytes": gguf.stat().st_size,
        "load_seconds": load_seconds,
        "rounds": setting.rounds,
    }
    return known, {"prefill": prefill, "decode": decode}


def figures(known: dict[str, Any], median: dict[str, float], setting: Setting) -> dict[str, Any]:
    """Tokens/s from the actions' median seconds, for JSON."""
    return known | {
        "prefill": setting.prompt_length / median["prefill"],
        "decode": setting.steps / median["decode"],
    }
