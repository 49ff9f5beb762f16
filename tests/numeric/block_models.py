"""Small models with the shapes of the real ones: a decoder block, an encoder block, a plain MLP."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import numpy_helper

HIDDEN, INNER, HEADS, KV_HEADS, VOCABULARY = 64, 96, 4, 2, 1100
HEAD = HIDDEN // HEADS
TOKENS = 6


@dataclass
class Weights:
    """Seeded initializers, collected by name."""

    seed: int
    tensors: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._random = np.random.default_rng(self.seed)

    def matrix(self, name: str, rows: int, columns: int, std: float | None = None) -> None:
        std = rows**-0.5 if std is None else std
        self.tensors[name] = self._random.normal(0, std, (rows, columns)).astype(np.float32)

    def norm(self, name: str, size: int = HIDDEN) -> None:
        """Channel scales with outliers, as trained norms have."""
        values = np.exp(self._random.normal(0, 0.7, size))
        values[:: size // 4] *= 8
        self.tensors[name] = values.astype(np.float32)

    def vector(self, name: str, size: int) -> None:
        self.tensors[name] = self._random.normal(0, 0.1, size).astype(np.float32)

    def integers(self, name: str, values: list[int]) -> None:
        self.tensors[name] = np.asarray(values, np.int64)

    def scalar(self, name: str, value: float) -> None:
        self.tensors[name] = np.asarray(value, np.float32)

    def model(self, text: str) -> onnx.ModelProto:
        header = '<ir_version: 10, opset_import: ["" : 21]>\n'
        model = onnx.parser.parse_model(header + text)
        for name, values in self.tensors.items():
            model.graph.initializer.append(numpy_helper.from_array(values, name))
        return model


def _rms_norm(x: str, weight: str, out: str) -> str:
    """RMSNorm as exporters spell it out."""
    return f"""
        {out}_p = Pow({x}, two)
        {out}_m = ReduceMean <keepdims = 1> ({out}_p, last)
        {out}_e = Add({out}_m, epsilon)
        {out}_s = Sqrt({out}_e)
        {out}_i = Reciprocal({out}_s)
        {out}_n = Mul({x}, {out}_i)
        [{out}_norm] {out} = Mul({weight}, {out}_n)
    """


def _heads(x: str, shape: str, perm: str = "0, 2, 1, 3") -> str:
    """Heads of `x` apart, as `{x}t`."""
    return f"""
        {x}4 = Reshape({x}, {shape})
        {x}t = Transpose <perm = [{perm}]> ({x}4)
    """


def _repeated(x: str, joined: str, out: str) -> str:
    """Each key or value head as often as query heads read it."""
    return f"""
        {x}5 = Unsqueeze({x}t, second)
        {x}6 = Expand({x}5, repeats)
        {out} = Reshape({x}6, {joined})
    """


def _mixed(k: str, v: str) -> str:
    """Attention of the heads `qt` over `k` and `v`, the heads joined again as `a`."""
    return f"""
        qk = MatMul(qt, {k})
        scores = Mul(qk, scale)
        p = Softmax <axis = -1> (scores)
        mixed = MatMul(p, {v})
        back = Transpose <perm = [0, 2, 1, 3]> (mixed)
        a = Reshape(back, joined)
    """


def _shared_constants(w: Weights) -> None:
    w.integers("last", [-1])
    w.integers("joined", [0, 0, HIDDEN])
    w.scalar("two", 2.0)
    w.scalar("epsilon", 1e-5)
    w.scalar("scale", HEAD**-0.5)


def decoder() -> onnx.ModelProto:
    """Tied embedding, RMSNorm, grouped attention, SwiGLU, head."""
    w = Weights(1)
    w.matrix("table", VOCABULARY, HIDDEN, 0.5)
    for name in ("norm1", "norm2", "norm3"):
        w.norm(name)
    for name, size in (("q", HIDDEN), ("k", KV_HEADS * HEAD), ("v", KV_HEADS * HEAD)):
        w.matrix(f"w_{name}", HIDDEN, size)
    w.matrix("w_o", HIDDEN, HIDDEN)
    w.matrix("w_gate", HIDDEN, INNER)
    w.matrix("w_up", HIDDEN, INNER)
    w.matrix("w_down", INNER, HIDDEN)
    _shared_constants(w)
    w.integers("second", [2])
    w.integers("q_heads", [0, 0, HEADS, HEAD])
    w.integers("kv_heads", [0, 0, KV_HEADS, HEAD])
    w.integers("repeats", [1, 1, HEADS // KV_HEADS, 1, 1])
    w.integers("all_k", [0, HEADS, HEAD, -1])
    w.integers("all_v", [0, HEADS, -1, HEAD])
    return w.model(f"""
    decoder (int64[B, {TOKENS}] input_ids) => (float[B, {TOKENS}, {VOCABULARY}] logits) {{
        [embed] x = Gather <axis = 0> (table, input_ids)
        {_rms_norm("x", "norm1", "h")}
        [q_proj] q = MatMul(h, w_q)
        [k_proj] k = MatMul(h, w_k)
        [v_proj] v = MatMul(h, w_v)
        {_heads("q", "q_heads")}
        {_heads("k", "kv_heads", "0, 2, 3, 1")}
        {_heads("v", "kv_heads")}
        {_repeated("k", "all_k", "k7")}
        {_repeated("v", "all_v", "v7")}
        {_mixed("k7", "v7")}
        [o_proj] o = MatMul(a, w_o)
        x2 = Add(x, o)
        {_rms_norm("x2", "norm2", "h2")}
        [gate_proj] g = MatMul(h2, w_gate)
        [up_proj] u = MatMul(h2, w_up)
        s = Sigmoid(g)
        silu = Mul(g, s)
        product = Mul(silu, u)
        [down_proj] d = MatMul(product, w_down)
        x3 = Add(x2, d)
        {_rms_norm("x3", "norm3", "h3")}
        table_t = Transpose <perm = [1, 0]> (table)
        [lm_head] logits = MatMul(h3, table_t)
    }}
    """)


def _layer_norm(x: str, out: str) -> str:
    """The first LayerNorm as exporters spell it out."""
    return f"""
        mean = ReduceMean <keepdims = 1> ({x}, last)
        centered = Sub({x}, mean)
        squared = Pow(centered, two)
        variance = ReduceMean <keepdims = 1> (squared, last)
        safe = Add(variance, epsilon)
        deviation = Sqrt(safe)
        unit = Div(centered, deviation)
        scaled = Mul(unit, norm1)
        [norm1] {out} = Add(scaled, shift1)
    """


def encoder() -> onnx.ModelProto:
    """Biased Q/K/V, LayerNorm spelled out and whole, Gelu."""
    w = Weights(2)
    w.norm("norm1")
    w.norm("norm2")
    for name in ("q", "k", "v", "o", "in", "out"):
        rows, columns = {"in": (HIDDEN, INNER), "out": (INNER, HIDDEN)}.get(name, (HIDDEN, HIDDEN))
        w.matrix(f"w_{name}", rows, columns)
        w.vector(f"b_{name}", columns)
    w.vector("shift1", HIDDEN)
    w.vector("shift2", HIDDEN)
    _shared_constants(w)
    w.integers("heads", [0, 0, HEADS, HEAD])
    return w.model(f"""
    encoder (float[B, {TOKENS}, {HIDDEN}] x) => (float[B, {TOKENS}, {HIDDEN}] y) {{
        {_layer_norm("x", "h")}
        [q] q0 = MatMul(h, w_q)
        q = Add(q0, b_q)
        [k] k0 = MatMul(h, w_k)
        k = Add(b_k, k0)
        [v] v0 = MatMul(h, w_v)
        v = Add(v0, b_v)
        {_heads("q", "heads")}
        {_heads("k", "heads", "0, 2, 3, 1")}
        {_heads("v", "heads")}
        {_mixed("kt", "vt")}
        [o] o0 = MatMul(a, w_o)
        o = Add(o0, b_o)
        x2 = Add(x, o)
        [norm2] h2 = LayerNormalization <axis = -1, epsilon = 1e-5> (x2, norm2, shift2)
        [in] i0 = MatMul(h2, w_in)
        i = Add(i0, b_in)
        act = Gelu(i)
        [out] d0 = MatMul(act, w_out)
        d = Add(d0, b_out)
        y = Add(h2, d)
    }}
    """)


def perceptron() -> onnx.ModelProto:
    """Gemms of every form, a width that is no multiple of a group, a float16 layer, an If."""
    w = Weights(3)
    w.matrix("w1", INNER, 40)  # transposed
    w.vector("b1", INNER)
    w.matrix("w2", INNER, INNER)
    w.matrix("w3", INNER, 10)
    w.tensors["w3"] = w.tensors["w3"].astype(np.float16)
    w.vector("b3", 10)
    w.scalar("bound", -1e6)  # rounding must not decide which branch is taken
    w.integers("every", [0, 1])
    return w.model("""
    perceptron (float[B, 40] x) => (float[B, 10] y) {
        [fc1] h1 = Gemm <transB = 1, alpha = 0.5> (x, w1, b1)
        a1 = Relu(h1)
        [fc2] h2 = MatMul(a1, w2)
        [fc2_again] h3 = MatMul(h2, w2)
        total = ReduceSum <keepdims = 0> (h3, every)
        positive = Greater(total, bound)
        h4 = If (positive) <
            then_branch = yes () => (float[B, 96] t) { t = Relu(h3) },
            else_branch = no () => (float[B, 96] e) { e = Abs(h3) }
        >
        half = Cast <to = 10> (h4)
        [fc3] h5 = MatMul(half, w3)
        wide = Cast <to = 1> (h5)
        [bias] y = Add(wide, b3)
    }
    """)


MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    "decoder": decoder,
    "encoder": encoder,
    "perceptron": perceptron,
}


def feeds(model: onnx.ModelProto, seed: int, batch: int = 2) -> dict[str, np.ndarray]:
    """Random inputs of a model above."""
    random = np.random.default_rng(seed)
    made: dict[str, np.ndarray] = {}
    for entry in model.graph.input:
        kind = entry.type.tensor_type
        shape = [batch, *(dim.dim_value for dim in kind.shape.dim[1:])]
        if kind.elem_type == onnx.TensorProto.INT64:
            made[entry.name] = random.integers(0, VOCABULARY, shape)
        else:
            made[entry.name] = random.standard_normal(shape).astype(np.float32)
    return made
