"""ONNX's Attention: values rotated and scaled through it, with the cache that it keeps."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from stock_runtime import open_session

from qcompiler.ir import to_model
from qcompiler.ir.io import import_proto
from qcompiler.passmanager import PassContext, PassManager
from qcompiler.recipe import parse_pipeline
from qcompiler.remarks import Rotated

EXACT = 1e-5
"""Of the largest output."""

WIDTH, HEAD = 32, 8
ROTATE = "import,fold-constants,canonicalize,rotate{residual=false,through_cache=true}"

ROWS = "o, present_k, present_v = Attention <{attrs}> (q, k, v, {mask}, past_k, past_v)"
BY_HEAD = """
    qs = Reshape(q, q_split) qt = Transpose <perm = [0, 2, 1, 3]> (qs)
    ks = Reshape(k, kv_split) kt = Transpose <perm = [0, 2, 1, 3]> (ks)
    vs = Reshape(v, kv_split) vt = Transpose <perm = [0, 2, 1, 3]> (vs)
    ot, present_k, present_v = Attention <{attrs}> (qt, kt, vt, {mask}, past_k, past_v)
    os = Transpose <perm = [0, 2, 1, 3]> (ot) o = Reshape(os, joined)
"""


def decoder(heads: int, kv_heads: int, attrs: str, mask: str, *, by_head: bool) -> onnx.ModelProto:
    """y from x by attention over what is cached and what is new, with weights of its own."""
    counts = f"q_num_heads = {heads}, kv_num_heads = {kv_heads}"
    joined = ", ".join(filter(None, [attrs, "" if by_head else counts]))
    body = (BY_HEAD if by_head else ROWS).format(attrs=joined, mask=mask and "mask")
    cache = f"float[1, {kv_heads}, P, {HEAD}] past_k, float[1, {kv_heads}, P, {HEAD}] past_v"
    handed = f"float[1, {kv_heads}, T, {HEAD}] present_k, float[1, {kv_heads}, T, {HEAD}] present_v"
    model = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 23]> g (float[1, S, {WIDTH}] x, {cache}'
        f"{mask and f', {mask}[S, T] mask'}) => (float[1, S, {WIDTH}] y, {handed}) {{"
        f"[q] q = MatMul(x, wq) [k] k = MatMul(x, wk) [v] v0 = MatMul(x, wv) v = Add(v0, bv)"
        f"{body} [out] y = MatMul(o, wo) }}"
    )
    rng = np.random.default_rng(0)
    shapes = {
        "wq": (WIDTH, heads * HEAD),
        "wk": (WIDTH, kv_heads * HEAD),
        "wv": (WIDTH, kv_heads * HEAD),
        "bv": (kv_heads * HEAD,),
        "wo": (heads * HEAD, WIDTH),
    }
    values = {n: rng.standard_normal(s).astype(np.float32) / 4 for n, s in shapes.items()}
    if by_head:
        values["q_split"] = np.array([0, 0, heads, HEAD])
        values["kv_split"] = np.array([0, 0, kv_heads, HEAD])
        values["joined"] = np.array([0, 0, heads * HEAD])
    model.graph.initializer.extend(numpy_helper.from_array(v, n) for n, v in values.items())
    return model


def steps(model: onnx.ModelProto, kv_heads: int, mask: str) -> list[np.ndarray]:
    """The outputs for three tokens and two more behind them."""
    session = open_session(model)
    rng = np.random.default_rng(1)
    past = [np.zeros((1, kv_heads, 0, HEAD), np.float32)] * 2
    found = []
    for tokens in (3, 2):
        whole = past[0].shape[2] + tokens
        feed: dict[str, Any] = {"past_k": past[0], "past_v": past[1]}
        feed["x"] = rng.standard_normal((1, tokens, WIDTH)).astype(np.float32)
        if mask == "bool":
            feed["mask"] = np.tril(np.ones((tokens, whole), bool), whole - tokens)
        elif mask:
            feed["mask"] = rng.standard_normal((tokens, whole)).astype(np.float32)
        y, *past = (np.asarray(each) for each in session.run(None, feed))
        found.append(y)
    return found


@pytest.mark.parametrize("by_head", [False, True])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "attrs", "mask"),
    [
        (4, 4, "is_causal = 1", ""),
        (4, 2, "is_causal = 0", "bool"),
        (6, 2, "softcap = 3.0, scale = 0.25", "float"),
        (4, 1, "is_causal = 1", "float"),
    ],
)
def test_values_are_rotated_through_it(
    heads: int, kv_heads: int, attrs: str, mask: str, by_head: bool
) -> None:
    model = decoder(heads, kv_heads, attrs, mask, by_head=by_head)
    manager = PassManager(parse_pipeline(ROTATE))
    graph, _ = manager.run(import_proto(model), PassContext())
    said = [each for each in manager.history[-1].remarks if isinstance(each, Rotated)]
    assert {each.layer for each in said if each.applied} == {"v", "out"}
    before, after = steps(model, kv_heads, mask), steps(to_model(graph), kv_heads, mask)
    for one, other in zip(before, after, strict=True):
        assert np.abs(one - other).max() <= EXACT * np.abs(one).max()
