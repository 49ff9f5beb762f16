"""Graphs that read on from where they stopped: decoders, and the decoders of pairs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from qcompiler.export import kinds, states
from qcompiler.export.graphs import Graph, example
from qcompiler.export.kinds import Axes

ENCODED, ENCODED_MASK = "encoder_hidden_states", "encoder_attention_mask"


def decoder(torch: Any, transformers: Any, model: Any) -> Graph:
    """A decoder with what it keeps; ExportError where that can't be handed on."""
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
        states.found(
            torch, transformers, model, lambda cache: step(model, {kinds.TEXT: text}, cache)
        ),
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
    layers = states.found(torch, transformers, model, lambda cache: step(model, given, cache))
    return encoder, _cached("decoder.onnx", inputs, floats, step, transformers, layers)


def _encoder(model: Any, config: Mapping[str, Any]) -> Graph:
    main = model.main_input_name
    axes = kinds.axes_of(main, config, {}, beside_text=False)
    inputs: dict[str, Axes] = {main: axes}
    inputs |= {kinds.MASK: axes} if main == kinds.TEXT else {}

    def call(model: Any, given: dict[str, Any]) -> tuple[Any, ...]:
        return (model.get_encoder()(**given).last_hidden_state,)

    floats = frozenset({main} - {kinds.TEXT})
    return Graph("encoder.onnx", inputs, (kinds.VECTORS,), call, floats)


def _cached(
    file: str,
    inputs: dict[str, Axes],
    floats: frozenset[str],
    step: Callable[[Any, dict[str, Any], Any], Any],
    transformers: Any,
    layers: Sequence[states.Layer],
) -> Graph:
    """The graph of `step`: what its layers keep as inputs `past_*` and outputs `present*`."""
    past = states.inputs(layers)

    def call(model: Any, given: dict[str, Any]) -> tuple[Any, ...]:
        cache = states.cache_of(transformers, layers, [given.pop(name) for name in past])
        logits = step(model, given, cache)
        return (logits, *(value for each in cache.layers for value in states.kept(each).values()))

    outputs = ("logits", *map(states.present, past))
    return Graph(file, inputs | past, outputs, call, floats | frozenset(past))
