"""Valid nodes of the ops that read weights, and the bits that each should give."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from linear_models import X_SCALE, layer_tensors, matrix_attributes, matrix_tensors, wanted
from node_cases import SIZES_OF_X, NodeCase, Values, Wanted, leading_sizes, pick
from plane_cases import beyond_int8, make_planes, random_grid
from single_node import rounded_to_bfloat16

from qcompiler import ops
from qcompiler.numerics import reference
from qcompiler.numerics.planes import GROUP_SIZES, Grid, PlaneMatrix


def linear_case(rng: np.random.Generator) -> NodeCase:
    """A layer or a table; one in sixteen is large enough for several tasks."""
    large = rng.random() < 1 / 16
    bits, levels = pick(rng, ops.FORMS)
    w = make_planes(
        int(pick(rng, [300, 545] if large else [1, 7, 31, 32, 33, 64, 100, 160, 257])),
        int(pick(rng, [200, 333] if large else [1, 15, 16, 17, 35, 64, 130])),
        pick(rng, GROUP_SIZES),
        bits=bits,
        grid=random_grid(rng, bits) if levels else None,
        seed=int(rng.integers(1000)),
    )
    make = _embedding_case if rng.random() < 1 / 3 else _layer_case
    case = make(w, large, rng)
    if rng.random() < 0.25:  # weights that are no constants
        case.constants -= {pick(rng, sorted(case.constants)), pick(rng, sorted(case.constants))}
    return case


def _matrix(w: PlaneMatrix, attributes: Mapping[str, Any], values: Values) -> PlaneMatrix:
    """The matrix that an accepted node's tensors hold."""
    return dataclasses.replace(
        w,
        **{name: attributes[name] for name in ("K", "N")},
        **{name: values[name] for name in matrix_tensors(w)},
        group_size=attributes.get("group_size", attributes["K"]),
        grid=None if w.grid is None else Grid(tuple(attributes["levels"]), attributes["zero"]),
    )


def _embedding_case(w: PlaneMatrix, large: bool, rng: np.random.Generator) -> NodeCase:
    kind = pick(rng, ["int64", "int32"])

    def vary(rng: np.random.Generator) -> Values:
        return {"ids": rng.integers(-w.N, w.N, leading_sizes(large, rng)).astype(kind)}

    def judge(attributes: Mapping[str, Any], values: Values) -> list[Wanted]:
        with np.errstate(all="ignore"):
            rows = reference.embedding(values["ids"], _matrix(w, attributes, values))
        return [Wanted(rows, 0.0, exact=True)]

    return NodeCase(
        ops.embedding_op(w.bits, levels=w.grid is not None),
        matrix_attributes(w),
        vary(rng) | matrix_tensors(w),
        set(matrix_tensors(w)),
        ["Y"],
        judge,
        vary,
    )


def _layer_case(w: PlaneMatrix, large: bool, rng: np.random.Generator) -> NodeCase:
    n, x_scale = w.N, pick(rng, [None, X_SCALE])
    bias = rng.normal(size=n).astype(np.float32) if rng.random() < 0.5 else None
    dtype = pick(rng, ["float32", "float32", "float16", "bfloat16"])
    first = int(rng.integers(1, n + 1))
    second = int(rng.integers(0, n - first + 1))
    splits = [first, second, n - first - second]
    tensors = layer_tensors(w, bias, x_scale)

    def vary(rng: np.random.Generator) -> Values:
        x = rng.standard_normal((*leading_sizes(large, rng), w.K)) * pick(rng, SIZES_OF_X)
        with np.errstate(over="ignore"):
            x = x.astype("float16" if dtype == "float16" else "float32")
        return {"X": x}

    def judge(attributes: Mapping[str, Any], values: Values) -> list[Wanted]:
        # X may have come in another type.
        kind = "bfloat16" if dtype == "bfloat16" else str(values["X"].dtype)
        return _products(w, attributes, values, kind)

    return NodeCase(
        ops.linear_op(w.bits, levels=w.grid is not None, static=x_scale is not None),
        matrix_attributes(w) | {"splits": splits},
        vary(rng) | tensors,
        set(tensors),
        [f"Y{i}" if size or rng.random() < 0.2 else "" for i, size in enumerate(splits)],
        judge,
        vary,
        bfloat16=dtype == "bfloat16",
    )


def _products(
    w: PlaneMatrix, attributes: Mapping[str, Any], values: Values, dtype: str
) -> list[Wanted]:
    """Columns with a weight that is none (see `beyond_int8`) are not specified."""
    changed = _matrix(w, attributes, values)
    x = rounded_to_bfloat16(values["X"]) if dtype == "bfloat16" else values["X"]
    scale = float(values["x_scale"].reshape(())) if "x_scale" in values else None
    with np.errstate(all="ignore"):
        y = wanted(x, changed, values["bias"], scale, dtype=dtype)
    tolerance = np.where(beyond_int8(changed), np.inf, 0.0)
    ends = np.cumsum(attributes["splits"])[:-1]
    parts = (np.split(each, ends, axis=-1) for each in (y, tolerance))
    return [Wanted(*each, exact=True) for each in zip(*parts, strict=True)]
