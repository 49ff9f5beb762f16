"""One table of words that a file holds in two roundings: as embeddings, and as the head.

Converters to GGUF round the head of a tied model by a finer format than the embeddings, and write
both. Read as they are, they count as two tables, and a compiled model holds both.
"""

from __future__ import annotations

import math
from typing import Any

from qcompiler.errors import ExportError

_SAME_DB = 12.0
"""Two roundings of one table are closer than that from 3 bits on; two tables are some -3 dB apart,
or a few dB where training parted them."""
_ROWS = 4096  # compared


def settle(torch: Any, model: Any, *, tie: bool) -> tuple[str, ...]:
    """Tie a model's head to its embeddings if `tie`, else say where that could be done.

    The head's rounding is kept, as the finer one. ExportError where they are two tables.
    """
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is None or head.weight is embeddings.weight or model.config.tie_word_embeddings:
        return ()
    apart = _apart_db(torch, head.weight, embeddings.weight)
    if apart < _SAME_DB:
        if tie:
            raise ExportError(
                f"embeddings and head are two tables ({apart:.0f} dB apart), and can't be tied; "
                "leave out --tie"
            )
        return ()
    if tie:
        embeddings.weight.data.copy_(head.weight.data)
        model.config.tie_word_embeddings = True
        return ()
    return (
        f"embeddings and head are one table in two roundings ({apart:.0f} dB apart); --tie makes "
        "it one again, and the compiled model smaller",
    )


def _apart_db(torch: Any, head: Any, embeddings: Any) -> float:
    """The signal-to-noise of the embeddings as a rounding of the head, on some of their rows."""
    if head.shape != embeddings.shape:
        return -math.inf
    step = max(1, len(head) // _ROWS)
    with torch.no_grad():
        wanted, found = head[::step].double(), embeddings[::step].double()
        noise = float((wanted - found).square().sum())
        signal = float(wanted.square().sum())
    return 10.0 * math.log10(signal / noise) if noise and signal else math.inf
