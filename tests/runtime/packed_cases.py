"""Valid nodes of the ops that read packed weights, and what each should give."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from node_cases import SIZES_OF_X, NodeCase, Values, Wanted, leading_sizes, pick
from op_models import ACTIVATIONS, BITS, GROUPS, ROUNDING, X_SCALE, Layer, make_layer
from single_node import rounded_to_bfloat16

from qcompiler import ops
from qcompiler.numerics import reference
from qcompiler.numerics.packing import PackedMatrix

# Terms that float32 can hold; what is infinite on the way is not specified.
MOST_TERMS = {"float32": 1e30, "bfloat16": 1e30, "float16": 6e4}


def packed_case(rng: np.random.Generator) -> NodeCase:
    """A layer or a table; one in sixteen is large enough for several tasks."""
    large = rng.random() < 1 / 16
    layer = make_layer(
        int(pick(rng, [700, 1025] if large else [1, 7, 32, 33, 64, 100, 160, 257])),
        int(pick(rng, [400, 777] if large else [1, 15, 16, 17, 35, 64, 130])),
        pick(rng, GROUPS),
        bits=pick(rng, BITS),
        symmetric=bool(rng.random() < 0.5),
        bias=bool(rng.random() < 0.5),
        seed=int(rng.integers(1000)),
    )
    make = _gather_case if rng.random() < 0.25 else _matmul_case
    case = make(layer, large, rng)
    if rng.random() < 0.25:  # weights that are no constants
        case.constants -= {pick(rng, sorted(case.constants)), pick(rng, sorted(case.constants))}
    return case


def _attributes(layer: Layer) -> dict[str, Any]:
    w = layer.w
    return {"K": w.K, "N": w.N, "group_size": w.form.group_size, "layout": 1}


def _matrix(layer: Layer, attributes: Mapping[str, Any], values: Values) -> PackedMatrix:
    """The matrix that an accepted node's tensors hold."""
    tensors = {name: values[name] for name in ("W", "scales", "zero_points")}
    form = dataclasses.replace(layer.w.form, group_size=attributes["group_size"])
    sizes = {name: attributes[name] for name in ("K", "N")}
    return dataclasses.replace(layer.w, **tensors, **sizes, form=form)


def _gather_case(layer: Layer, large: bool, rng: np.random.Generator) -> NodeCase:
    kind = pick(rng, ["int64", "int32"])

    def vary(rng: np.random.Generator) -> Values:
        return {"ids": rng.integers(-layer.w.N, layer.w.N, leading_sizes(large, rng)).astype(kind)}

    def judge(attributes: Mapping[str, Any], values: Values) -> list[Wanted]:
        with np.errstate(all="ignore"):
            rows = reference.gather(values["ids"], _matrix(layer, attributes, values))
        return [Wanted(rows, 0.0)]

    tensors = layer.inputs()
    del tensors["bias"]
    return NodeCase(
        ops.gather_op(layer.w.form.bits),
        _attributes(layer),
        vary(rng) | tensors,
        set(tensors),
        ["Y"],
        judge,
        vary,
    )


def _matmul_case(layer: Layer, large: bool, rng: np.random.Generator) -> NodeCase:
    w, activation = layer.w, pick(rng, ACTIVATIONS)
    dtype = pick(rng, ["float32", "float32", "float16", "bfloat16"])
    static = activation == "static"
    first = int(rng.integers(1, w.N + 1))
    second = int(rng.integers(0, w.N - first + 1))
    splits = [first, second, w.N - first - second]
    attributes = _attributes(layer) | {"splits": splits}
    tensors = layer.inputs()
    if static:
        tensors["x_scale"] = np.array(X_SCALE, np.float32)
    else:
        attributes["activation_block"] = layer.block(activation)

    def vary(rng: np.random.Generator) -> Values:
        x = rng.standard_normal((*leading_sizes(large, rng), w.K)) * pick(rng, SIZES_OF_X)
        with np.errstate(over="ignore"):
            x = x.astype("float16" if dtype == "float16" else "float32")
        return {"X": x}

    def judge(attributes: Mapping[str, Any], values: Values) -> list[Wanted]:
        # X may have come in another type.
        kind = "bfloat16" if dtype == "bfloat16" else str(values["X"].dtype)
        return _products(layer, attributes, values, kind)

    return NodeCase(
        ops.matmul_op(w.form.bits, static=static),
        attributes,
        vary(rng) | tensors,
        set(tensors),
        [f"Y{i}" if size or rng.random() < 0.2 else "" for i, size in enumerate(splits)],
        judge,
        vary,
        bfloat16=dtype == "bfloat16",
    )


def _products(
    layer: Layer, attributes: Mapping[str, Any], values: Values, dtype: str
) -> list[Wanted]:
    """Where terms are larger than the type holds, or a scale is no number, nothing is specified."""
    changed = Layer(_matrix(layer, attributes, values), values["bias"])
    x = values["X"]
    if dtype == "bfloat16":
        x = rounded_to_bfloat16(x)
    scale = None
    if "x_scale" in values:
        activation, scale = "static", float(values["x_scale"].reshape(()))
    else:
        activation = "row" if attributes["activation_block"] == changed.w.K else "group"
    with np.errstate(all="ignore"):
        wanted = changed.expected(x, activation, scale or X_SCALE).astype(np.float64)
        tolerance = changed.tolerance(x, activation, scale or X_SCALE)
        # A bias of NaN has no tolerance, and needs none.
        fits = (tolerance * 1e5 < MOST_TERMS[dtype]) | np.isnan(values["bias"])
        tolerance = tolerance + ROUNDING[dtype] * np.abs(wanted) + (dtype == "float16") * 6e-8
        tolerance = np.where(fits, tolerance, np.inf)
    ends = np.cumsum(attributes["splits"])[:-1]
    parts = (np.split(each, ends, axis=-1) for each in (wanted, tolerance))
    return [Wanted(*each) for each in zip(*parts, strict=True)]
