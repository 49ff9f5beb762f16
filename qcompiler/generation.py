"""Generate text with a decoder: greedy or sampled, with its key/value cache where it has one."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from qcompiler.chat import render
from qcompiler.decoding import Decoder
from qcompiler.errors import ModelError
from qcompiler.feeds import Array, Signature
from qcompiler.models import ModelPackage
from qcompiler.session import create_session, providers_of


@dataclass(frozen=True)
class GenerationResult:
    """What was generated: text and tokens after the prompt, and how long it took.

    `finished`: the model ended the text itself, rather than the limit on new tokens.
    """

    text: str
    token_ids: tuple[int, ...]
    prompt_tokens: int
    prefill_seconds: float
    decode_seconds: float
    finished: bool

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def generate(
    package: ModelPackage,
    prompt: str,
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int = 50,
    seed: int = 0,
    chat: bool = False,
    threads: int | None = None,
    provider: str = "cpu",
    stream: Callable[[str], None] = lambda _piece: None,
) -> GenerationResult:
    """Continue `prompt`; with `chat`, answer it through the model's chat template.

    temperature 0 takes the likeliest token; above, tokens are drawn among the `top_k` likeliest.
    `provider`: cpu, or cuda. `stream` receives the text as it grows. Generation stops at the
    model's end-of-text tokens.

    Raises ModelError if the model is no decoder, has no tokenizer, or `chat` has no template.
    """
    if max_new_tokens < 1 or not 0 <= temperature < math.inf or top_k < 1:
        raise ModelError(
            "max_new_tokens and top_k must be at least 1, temperature at least 0 and finite"
        )
    signature, tokenizer = Signature.of(package), package.tokenizer()
    if signature.kind != "decoder":
        raise ModelError(f"{package.onnx_path} is no decoder: it can't generate text")
    ids = prompt_ids(package, tokenizer, prompt, chat=chat)
    session = create_session(package.onnx_path, threads=threads, providers=providers_of(provider))
    decoder = Decoder(session, signature, capacity=len(ids) + max_new_tokens)
    rng = np.random.default_rng(seed)
    ends = set(package.eos_ids())
    new: list[int] = []
    shown = ""
    start = time.perf_counter()
    logits = decoder.step(np.asarray([ids], np.int64))
    first = time.perf_counter()
    finished = False
    while len(new) < max_new_tokens:
        token = choose(logits[0], temperature=temperature, top_k=top_k, rng=rng)
        if token in ends:
            finished = True
            break
        new.append(token)
        text = tokenizer.decode(new)
        if not text.endswith("\ufffd"):  # a character may take several tokens
            stream(text[len(shown) :])
            shown = text
        if len(new) < max_new_tokens:
            logits = decoder.step(np.asarray([[token]], np.int64))
    text = tokenizer.decode(new)
    stream(text[len(shown) :])
    end = time.perf_counter()
    return GenerationResult(text, tuple(new), len(ids), first - start, end - first, finished)


def choose(logits: Array, *, temperature: float, top_k: int, rng: np.random.Generator) -> int:
    """A token by `logits` [V]: the likeliest at temperature 0, else drawn among the `top_k`."""
    if temperature == 0:
        return int(logits.argmax())
    k = min(top_k, len(logits))
    best = np.argpartition(logits, -k)[-k:]
    scaled = logits[best].astype(np.float64) / temperature
    return int(best[(scaled + rng.gumbel(size=k)).argmax()])


def prompt_ids(
    package: ModelPackage, tokenizer: Tokenizer, prompt: str, *, chat: bool = False
) -> list[int]:
    """Token ids of a prompt: framed by the chat template, or begun as the tokenizer begins one.

    An empty prompt becomes the begin-of-text token; ModelError where there is none.
    """
    if any("\ud800" <= letter <= "\udfff" for letter in prompt):
        raise ModelError("the prompt is not UTF-8 text; check the encoding of the terminal")
    text = _framed(package, prompt) if chat else prompt
    ids = list(tokenizer.encode(text, add_special_tokens=False).ids)
    if not chat:
        ids = [*package.frame()[0], *ids]
    if not ids and (bos := package.bos_id()) is not None:
        ids = [bos]
    if not ids:
        raise ModelError("the prompt is empty")
    return ids


def _framed(package: ModelPackage, prompt: str) -> str:
    template = package.chat_template()
    if template is None:
        raise ModelError(
            f"{package.onnx_path}: no chat template beside the model; leave out --chat"
        )
    return render(template, [{"role": "user", "content": prompt}])
