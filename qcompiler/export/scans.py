"""Recurrences that read a text in chunks, as those of Mamba2 do."""

from __future__ import annotations

from typing import Any


def take_whole(model: Any) -> None:
    """Let a model's recurrences take any text as one chunk, as long as it is.

    Else a graph pads each text, and each single token, to whole chunks of 128 or 256. The price is
    that of attention: memory by the square of the length.
    """

    def before(module: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        hidden = given[0] if given else named["hidden_states"]
        module.chunk_size = hidden.shape[1]

    for module in model.modules():
        if hasattr(module, "chunk_size") and hasattr(module, "conv1d"):
            module.register_forward_pre_hook(before, with_kwargs=True)
