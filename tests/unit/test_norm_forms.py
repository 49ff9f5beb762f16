"""Norms in compiled models: valid ONNX, in one node each when ONNX Runtime has loaded the model."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from command_line import qc
from odd_models import K, model_of, normal

from qcompiler.numerics.rounding import sqnr_db

RMS, SKIP = "SimplifiedLayerNormalization", "com.microsoft.SkipLayerNormalization"

SPELLED_OUT = f"""
g ({{kind}}[b, n, 64] x) => ({{kind}}[b, n, 64] y) {{{{
    two = Constant <value = float {{{{2.0}}}}> ()
    eps = Constant <value = float {{{{0.001}}}}> ()
    last = Constant <value_ints = [-1]> ()
    xf = Cast <to = 1> (x)
    p = Pow(xf, two) m = ReduceMean <keepdims = 1> (p, last) e = Add(m, eps) r = Sqrt(e)
    i = Reciprocal(r) s = Mul(xf, i) a = Mul(g1, s)
    b = MatMul(a, w1)
    c = Add(xf, b)
    c2 = Mul(c, c) cm = ReduceMean <keepdims = 1> (c2, last) ce = Add(cm, eps) cr = Sqrt(ce)
    cs = Div(c, cr) d = Mul(cs, g2)
    f = MatMul(d, w2)
    h = Add(c, f)
    hm = ReduceMean <keepdims = 1> (h, last) hc = Sub(h, hm)
    h2 = Pow(hc, two) hv = ReduceMean <keepdims = 1> (h2, last) he = Add(hv, eps) hr = Sqrt(he)
    hs = Div(hc, hr) hw = Mul(hs, g3) l = Add(hw, b3)
    o = MatMul(l, w3)
    z = {SKIP} <epsilon = 0.001> (o, h, g1, b3)
    q = MatMul(z, w1)
    y = Cast <to = {{code}}> (q)
}}}}
"""


def spelled_out(kind: str) -> onnx.ModelProto:
    """An RMS norm, one behind a residual sum, a layer norm, and ONNX Runtime's skip norm."""
    code = {"float": 1, "float16": 10}[kind]
    weights = {f"w{i}": normal(K, K) for i in (1, 2, 3)}
    scales = {f"g{i}": 1 + normal(K) for i in (1, 2, 3)}
    made = model_of(SPELLED_OUT.format(kind=kind, code=code), **weights, **scales, b3=normal(K))
    made.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    return made


def loaded(path: Path) -> Counter[str]:
    """The operators that ONNX Runtime runs."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(path.with_name("loaded.onnx"))
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    model = onnx.load(path.with_name("loaded.onnx"), load_external_data=False)
    return Counter(node.op_type for node in model.graph.node)


@pytest.mark.parametrize("target", ["ort-custom", "cuda", "ort-contrib", "qdq"])
@pytest.mark.parametrize("recipe", ["rtn", "fptq", "w4a8-fast", "w4a8"])
@pytest.mark.parametrize("kind", ["float", "float16"])
def test_norms(kind: str, recipe: str, target: str, tmp_path: Path) -> None:
    source, result = tmp_path / "m.onnx", tmp_path / "o.onnx"
    onnx.save(spelled_out(kind), source)
    onnx.checker.check_model(str(source), full_check=True)
    done = qc("compile", source, "-r", recipe, "-t", target, "-o", result)
    assert done.exit_code == 0, done.stderr
    onnx.checker.check_model(str(result), full_check=True)
    assert RMS not in ops(result)
    if target != "qdq":  # which keeps the form of the source
        taken = Counter(ops(result))["AddRMSNormalization"]
        assert loaded(result)[RMS] + taken == 2
    x = normal(2, 5, K, std=1.0).astype({"float": np.float32, "float16": np.float16}[kind])
    wanted, found = (
        ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        for path in (source, result)
    )
    assert sqnr_db(wanted.astype(np.float32), found.astype(np.float32)) > 12


def ops(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path, load_external_data=False).graph.node]


def test_a_norm_of_the_source_stays(tmp_path: Path) -> None:
    source, result = tmp_path / "m.onnx", tmp_path / "o.onnx"
    made = model_of(
        f"g (float[n, 64] x) => (float[n, 64] y) "
        f"{{ a = {RMS} <axis = -1> (x, g) y = MatMul(a, w) }}",
        g=1 + normal(K),
        w=normal(K, K),
    )
    onnx.save(made, source)
    assert qc("compile", source, "-r", "rtn", "-t", "qdq", "-o", result).exit_code == 0
    assert RMS in ops(result)
