"""What the layers of a model keep from step to step: keys and values, states, or both.

| part | input | its size |
| --- | --- | --- |
| keys and values of attention | past_key_values.N.key, .value | grows with the text |
| the last columns that a convolution reads | past_conv.N | fixed |
| the state of a recurrence | past_recurrent.N | fixed |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qcompiler.errors import ExportError
from qcompiler.export.kinds import Axes

_GROWING = ("key", "value")
_FIXED = ("conv", "recurrent")


@dataclass(frozen=True)
class Layer:
    """What a layer keeps: its class in transformers, and axes by part."""

    kind: Any
    parts: Mapping[str, Axes]


def found(
    torch: Any, transformers: Any, model: Any, run: Callable[[Any], Any]
) -> tuple[Layer, ...]:
    """The layers of a model's cache, by running the model once.

    ExportError where they keep what can't be handed on, or nothing.
    """
    kinds = _kinds(transformers)
    planned = transformers.DynamicCache(config=model.config)
    if unknown := [type(each).__name__ for each in planned.layers if type(each) not in kinds]:
        raise ExportError(f"its cache has a layer that is not known ({unknown[0]})")
    # Configs of pairs may count the layers of the other half: a cache without one takes what comes.
    fixed = any(hasattr(each, "conv_states") for each in planned.layers)
    cache = planned if fixed else transformers.DynamicCache()
    with torch.no_grad():
        run(cache)
    layers = tuple(
        Layer(kinds[type(each)], {part: _axes(part, value) for part, value in kept(each).items()})
        for each in cache.layers
    )
    if not any(layer.parts for layer in layers):
        raise ExportError("it fills no cache")
    return layers


def _kinds(transformers: Any) -> dict[Any, Any]:
    """By class of a layer, that which takes its place: none that cuts off what left its window.

    The mask leaves out what lies outside the window just as well.
    """
    known = transformers.cache_utils
    whole, both = known.DynamicLayer, known.LinearAttentionAndFullAttentionLayer
    return {
        whole: whole,
        known.DynamicSlidingWindowLayer: whole,
        known.LinearAttentionLayer: known.LinearAttentionLayer,
        both: both,
        known.LinearAttentionAndSlidingWindowAttentionLayer: both,
        known.DummyLayer: known.DummyLayer,
    }


def kept(layer: Any) -> dict[str, Any]:
    """The tensors in a layer of a cache, by part."""
    held = {
        "key": getattr(layer, "keys", None),
        "value": getattr(layer, "values", None),
        "conv": getattr(layer, "conv_states", {}).get(0),
        "recurrent": getattr(layer, "recurrent_states", {}).get(0),
    }
    return {part: value for part, value in held.items() if value is not None}


def _axes(part: str, value: Any) -> Axes:
    _, *sizes = map(int, value.shape)
    if part in _GROWING:
        heads, _, width = sizes
        return ("batch", heads, "past_sequence", width)
    return ("batch", *sizes)


def cache_of(transformers: Any, layers: Sequence[Layer], given: Sequence[Any]) -> Any:
    """A cache that holds the tensors `given`, in the order of `inputs`."""
    values = iter(given)
    cache = transformers.DynamicCache()
    cache.layers.extend(
        _filled(layer.kind(), {part: next(values) for part in layer.parts}) for layer in layers
    )
    return cache


def _filled(layer: Any, held: Mapping[str, Any]) -> Any:
    if "key" in held:
        layer.lazy_initialization(held["key"], held["value"])
        layer.keys, layer.values = held["key"], held["value"]
    for part in _FIXED:
        if part in held:
            # A copy, for layers write into their states, which must not change an input.
            getattr(layer, f"{part}_states")[0] = held[part].clone()
            getattr(layer, f"is_{part}_states_initialized")[0] = True
            layer.has_previous_state[0] = True
    if "conv" in held:
        layer.conv_kernel_size[0] = held["conv"].shape[-1]
    return layer


def inputs(layers: Sequence[Layer]) -> dict[str, Axes]:
    """The inputs that hold what layers keep, with their axes."""
    return {
        f"past_key_values.{at}.{part}" if part in _GROWING else f"past_{part}.{at}": axes
        for at, layer in enumerate(layers)
        for part, axes in layer.parts.items()
    }


def present(past: str) -> str:
    """The output that continues an input."""
    return past.replace("past_key_values", "present").replace("past_", "present_")
