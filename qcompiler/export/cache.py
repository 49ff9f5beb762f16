"""Graphs with a key/value cache: decoders, and the decoders of pairs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from qcompiler.errors import ExportError
from qcompiler.export import kinds
from qcompiler.export.graphs import Graph, example
from qcompiler.export.kinds import Axes

ENCODED, ENCODED_MASK = "encoder_hidden_states", "encoder_attention_mask"


def decoder(torch: Any, transformers: Any, model: Any) -> Graph:
    """A decoder with its cache; ExportError where it keeps another state."""
    names = [kinds.TEXT, kinds.MASK, kinds.POSITIONS]
    parameters = inspect.signature(model.forward).parameters
    axes = {kinds.MASK: ("batch", "total_sequence")}
    inputs: dict[str, Axes] = {
        name: axes.get(name, ("batch", "sequence")) for name in names if name in parameters
    }

    def step(model: Any, given: dict[str, Any], cache: Any) -> Any:
        return model(**given, cache=cache, use_cache=True).logits

    text = example(torch, uncached())[kinds.TEXT]
    return _cached(
        "model.onnx",
        inputs,
        frozenset(),
        step,
        transformers,
        _caches(torch, transformers, model, lambda cache: step(model, {kinds.TEXT: text}, cache)),
    )


def uncached() -> Graph:
    """A decoder that reads the whole text at each step."""
    axes: Axes = ("batch", "sequence")

    def call(model: Any, given: dict[str, Any]) -> tuple[Any, ...]:
        return (model(**given, use_cache=False).logits,)

    return Graph("model.onnx", {kinds.TEXT: axes, kinds.MASK: axes}, ("logits",), call)


def pair(
    torch: Any, transformers: Any, model: Any, config: Mapping[str, Any]
) -> tuple[Graph, Graph]:
    """An encoder, and a decoder that attends to the encoder's vectors anew at each step.

    The decoder's `input_ids` have no mask: all of them are read.
    """
    encoder = _encoder(model, config)
    text = kinds.MASK in encoder.inputs
    with torch.no_grad():
        vectors = encoder.call(model, example(torch, encoder))[0]
    length = "encoder_sequence" if text else int(vectors.shape[1])
    inputs: dict[str, Axes] = {
        kinds.TEXT: ("batch", "sequence"),
        ENCODED: ("batch", length, int(vectors.shape[2])),
    }
    inputs |= {ENCODED_MASK: ("batch", length)} if text else {}
    floats = frozenset({ENCODED})

    def step(model: Any, given: dict[str, Any], cache: Any) -> Any:
        vectors = transformers.modeling_outputs.BaseModelOutput(given[ENCODED])
        masks = {kinds.MASK: given[ENCODED_MASK]} if text else {}
        return model(
            **masks,
            decoder_input_ids=given[kinds.TEXT],
            encoder_outputs=vectors,
            cache=transformers.EncoderDecoderCache(cache, transformers.DynamicCache()),
            use_cache=True,
        ).logits

    given = example(torch, Graph("", inputs, (), encoder.call, floats))
    caches = _caches(torch, transformers, model, lambda cache: step(model, given, cache))
    return encoder, _cached("decoder.onnx", inputs, floats, step, transformers, caches)


def _encoder(model: Any, config: Mapping[str, Any]) -> Graph:
    main = model.main_input_name
    axes = kinds.axes_of(main, config, {}, beside_text=False)
    inputs: dict[str, Axes] = {main: axes}
    inputs |= {kinds.MASK: axes} if main == kinds.TEXT else {}

    def call(model: Any, given: dict[str, Any]) -> tuple[Any, ...]:
        return (model.get_encoder()(**given).last_hidden_state,)

    floats = frozenset({main} - {kinds.TEXT})
    return Graph("encoder.onnx", inputs, (kinds.VECTORS,), call, floats)


def _caches(
    torch: Any, transformers: Any, model: Any, run: Callable[[Any], Any]
) -> dict[str, Axes]:
    """The inputs that hold the cache of each layer, found by running the model once."""
    layers = transformers.DynamicCache(config=model.config).layers
    kept = (
        transformers.cache_utils.DynamicLayer,
        transformers.cache_utils.DynamicSlidingWindowLayer,
    )
    if any(type(layer) not in kept for layer in layers):
        raise ExportError("it keeps a state that is no cache of keys and values")
    cache = transformers.DynamicCache()
    with torch.no_grad():
        run(cache)
    found: dict[str, Axes] = {}
    for index, layer in enumerate(cache.layers):
        for part, value in (("key", layer.keys), ("value", layer.values)):
            _, heads, _, width = value.shape
            axes = ("batch", int(heads), "past_sequence", int(width))
            found[f"past_key_values.{index}.{part}"] = axes
    if not found:
        raise ExportError("it fills no cache of keys and values")
    return found


def _cached(
    file: str,
    inputs: dict[str, Axes],
    floats: frozenset[str],
    step: Callable[[Any, dict[str, Any], Any], Any],
    transformers: Any,
    caches: dict[str, Axes],
) -> Graph:
    """The graph of `step`, with caches as inputs `past_key_values.*` and outputs `present.*`."""
    layer_kind = transformers.cache_utils.DynamicLayer

    def call(model: Any, given: dict[str, Any]) -> tuple[Any, ...]:
        # Layers of one kind: those with a sliding window would cut their keys off, and the mask
        # leaves out what lies outside the window just as well.
        cache = transformers.DynamicCache()
        past = [given.pop(name) for name in caches]
        for keys, values in zip(past[::2], past[1::2], strict=True):
            layer = layer_kind()
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = keys, values
            cache.layers.append(layer)
        logits = step(model, given, cache)
        present = [(layer.keys, layer.values) for layer in cache.layers]
        return (logits, *(each for both in present for each in both))

    outputs = ("logits", *(name.replace("past_key_values", "present") for name in caches))
    return Graph(file, inputs | caches, outputs, call, floats | frozenset(caches))
