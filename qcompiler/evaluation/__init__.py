"""Measure models: perplexity, divergence from a reference, embeddings, speed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from tokenizers import Tokenizer

from qcompiler.errors import ModelError
from qcompiler.evaluation import divergence, embeddings, perplexity
from qcompiler.evaluation.divergence import DivergenceResult
from qcompiler.evaluation.embeddings import EmbeddingResult
from qcompiler.evaluation.perplexity import PerplexityResult
from qcompiler.evaluation.texts import read_text, sentences
from qcompiler.feeds import Array, Signature, vocabulary
from qcompiler.foreign import runtime_errors
from qcompiler.models import ModelPackage, open_package
from qcompiler.session import create_session, providers_of

__all__ = [
    "DivergenceResult",
    "EmbeddingResult",
    "Evaluation",
    "PerplexityResult",
    "evaluate",
]

Progress = Callable[[int, int], None]
"""Called with (done, total) as work goes on."""


@dataclass(frozen=True)
class Evaluation:
    """What was measured of one model; a field is None where it does not apply."""

    model: str
    size_bytes: int
    perplexity: PerplexityResult | None = None
    divergence: DivergenceResult | None = None
    embeddings: EmbeddingResult | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the parts that apply."""
        parts = {
            "perplexity": self.perplexity,
            "divergence": self.divergence,
            "embeddings": self.embeddings,
        }
        measured = {name: part.to_dict() for name, part in parts.items() if part is not None}
        return {"model": self.model, "size_bytes": self.size_bytes, **measured}


def evaluate(
    models: Sequence[str | Path],
    text: str,
    reference: str | Path | None = None,
    *,
    window: int = 512,
    max_tokens: int | None = 12_000,
    threads: int | None = None,
    provider: str = "cpu",
    progress: Progress = lambda _done, _total: None,
) -> list[Evaluation]:
    """Measure `models` on `text` (a file, or pydoc:first / pydoc:second).

    Decoders: perplexity, and with a `reference` KL divergence and top-1 agreement. Encoders:
    embeddings against the `reference`, which they need. All models see the same tokens.

    Raises ModelError when the models do not fit together or the text does not serve.
    """
    packages = [open_package(model) for model in models]
    if not packages:
        raise ModelError("no model to evaluate")
    base = open_package(reference) if reference is not None else None
    every = [*packages, *([base] if base is not None else [])]
    signatures = [Signature.of(package) for package in every]
    kinds = {signature.kind for signature in signatures}
    if len(kinds) > 1:
        raise ModelError(f"models of different kinds can't be compared: {', '.join(sorted(kinds))}")
    content = read_text(text, ModelError)
    kind = signatures[0].kind
    if kind == "other":
        raise ModelError(f"{packages[0].onnx_path} does not read token ids: nothing to evaluate")
    source = next((p for p in every if p.tokenizer_file is not None), packages[0])
    tokenizer = source.tokenizer()
    open_ = functools.partial(create_session, threads=threads, providers=providers_of(provider))
    job = _Job(packages, base, content, tokenizer, max_tokens, open_, progress)
    if kind == "decoder":
        return _evaluate_decoders(job, lead=source.frame()[0], window=window)
    if base is None:
        raise ModelError("encoders are evaluated against a float model: name it with --reference")
    return _evaluate_encoders(job, base)


@dataclass(frozen=True)
class _Job:
    packages: list[ModelPackage]
    base: ModelPackage | None
    content: str
    tokenizer: Tokenizer
    max_tokens: int | None
    open: Callable[..., ort.InferenceSession]
    progress: Progress


def _evaluate_decoders(job: _Job, *, lead: list[int], window: int) -> list[Evaluation]:
    packages, base = job.packages, job.base
    ids = np.asarray(job.tokenizer.encode(job.content, add_special_tokens=False).ids, np.int64)
    for package in packages:
        if (size := vocabulary(package, Signature.of(package))) <= int(ids.max(initial=0)):
            raise ModelError(
                f"{package.onnx_path} knows {size} tokens, fewer than the tokenizer in use: "
                "they do not belong together"
            )
    runners = [_Runner(package, job.open) for package in packages]
    base_runner = None
    if base is not None:
        # The same file as a model and as reference runs once.
        known = {runner.path: runner for runner in runners}
        base_runner = known.get(base.onnx_path.resolve()) or _Runner(base, job.open)
    cut = list(perplexity.windows(ids, window=window, lead=lead, max_tokens=job.max_tokens))
    losses: list[list[Array]] = [[] for _ in runners]
    kl: list[list[Array]] = [[] for _ in runners]
    agree: list[list[Array]] = [[] for _ in runners]
    for done, piece in enumerate(cut):
        truth = base_runner.logits(piece.token_ids) if base_runner is not None else None
        for i, runner in enumerate(runners):
            same = truth is not None and runner is base_runner
            logits = truth if same and truth is not None else runner.logits(piece.token_ids)
            losses[i].append(perplexity.token_losses(logits[:-1], piece.targets))
            if truth is not None:
                if logits.shape != truth.shape:
                    raise ModelError(
                        f"{packages[i].onnx_path} and the reference have different vocabularies"
                    )
                distance, equal = divergence.token_divergence(truth[:-1], logits[:-1])
                kl[i].append(distance)
                agree[i].append(equal)
        job.progress(done + 1, len(cut))
    return [
        Evaluation(
            model=package.name,
            size_bytes=package.size_bytes(),
            perplexity=perplexity.summarize(losses[i], window),
            divergence=divergence.summarize(kl[i], agree[i]) if base is not None else None,
        )
        for i, package in enumerate(packages)
    ]


def _evaluate_encoders(job: _Job, base: ModelPackage) -> list[Evaluation]:
    texts = sentences(job.content)
    mean_tokens = 24
    if job.max_tokens is not None:
        texts = texts[: max(2, job.max_tokens // mean_tokens)]
    if len(texts) < 2:
        raise ModelError("the text is too short: it has fewer than two sentences")
    total = len(texts) * (len(job.packages) + 1)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        job.progress(done, total)

    def run(package: ModelPackage) -> Array:
        session = job.open(package.onnx_path)
        return embeddings.embed(
            session, Signature.of(package), job.tokenizer, texts, advance=advance
        )

    truth = run(base)
    return [
        Evaluation(
            model=package.name,
            size_bytes=package.size_bytes(),
            embeddings=embeddings.compare(truth, run(package)),
        )
        for package in job.packages
    ]


class _Runner:
    """A decoder open for whole windows."""

    def __init__(self, package: ModelPackage, open_: Callable[..., ort.InferenceSession]) -> None:
        self.path = package.onnx_path.resolve()
        self._signature = Signature.of(package)
        # Several sessions take turns: one that waits must not hold the cores.
        self._session = open_(package.onnx_path, options={"session.force_spinning_stop": "1"})

    def logits(self, token_ids: Array) -> Array:
        """Logits [T, V] of one window [1, T]."""
        feeds = self._signature.feeds(token_ids)
        with runtime_errors(ModelError, f"{self.path} does not run on the text"):
            logits: Array = np.asarray(self._session.run([self._signature.logits], feeds)[0])[0]
        return logits
