"""Small models of all kinds, for attacks that change them: each compiles, and holds what they need.

Every seed is built from the helpers of the unit tests.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx
import tiny_models
from odd_models import model_of
from onnx import TensorProto, helper, numpy_helper

WIDTH = 32
"""Channels: the least that is quantized."""


@dataclass(frozen=True)
class Seed:
    """A model, and the files beside it by name."""

    model: onnx.ModelProto
    files: dict[str, bytes] = field(default_factory=dict)


def _normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.2, shape).astype(np.float32)


def stack() -> Seed:
    """Gemm, MatMul and bias, a norm, an initializer that is an input too."""
    made = model_of(
        """g (float[n, 32] x) => (float[n, 48] y, float[n, 32] h) {
          [fc1] a = Gemm <transB = 1, alpha = 0.5> (x, w1, b1)
          b = Relu(a)
          [fc2] c = MatMul(b, w2)
          d = Add(c, b2)
          h = LayerNormalization <axis = -1, epsilon = 1e-5> (d, s, b2)
          [fc3] y = MatMul(h, w3)
        }""",
        w1=_normal(48, 32),
        b1=_normal(48),
        w2=_normal(48, 32, seed=1),
        b2=_normal(32),
        s=_normal(32) + 1,
        w3=_normal(32, 48, seed=2),
    )
    made.metadata_props.add(key="author", value="nobody")
    made.graph.doc_string = "a stack"
    return Seed(made)


def attention() -> Seed:
    """Heads apart and together, with shapes computed in nodes."""
    return Seed(
        model_of(
            """g (float[b, t, 32] x) => (float[b, t, 32] y) {
              [q] q0 = MatMul(x, wq)
              [k] k0 = MatMul(x, wk)
              [v] v0 = MatMul(x, wv)
              shape = Shape(x)
              lead = Slice(shape, zero, two, zero)
              apart = Concat <axis = 0> (lead, heads)
              q4 = Reshape(q0, apart)
              k4 = Reshape(k0, apart)
              v4 = Reshape(v0, apart)
              qt = Transpose <perm = [0, 2, 1, 3]> (q4)
              kt = Transpose <perm = [0, 2, 3, 1]> (k4)
              vt = Transpose <perm = [0, 2, 1, 3]> (v4)
              qk = MatMul(qt, kt)
              scores = Mul(qk, scale)
              p = Softmax <axis = -1> (scores)
              mixed = MatMul(p, vt)
              back = Transpose <perm = [0, 2, 1, 3]> (mixed)
              flat = Reshape(back, joined)
              [o] o0 = MatMul(flat, wo)
              y = Add(x, o0)
            }""",
            **{f"w{name}": _normal(32, 32, seed=at) for at, name in enumerate("qkvo")},
            zero=np.array([0]),
            two=np.array([2]),
            heads=np.array([4, 8]),
            joined=np.array([0, 0, 32]),
            scale=np.float32(0.35),
        )
    )


def decoder() -> Seed:
    """Embedding, RMSNorm spelled out, a tied head."""
    return Seed(
        model_of(
            """g (int64[b, t] input_ids) => (float[b, t, 40] logits) {
              [embed] x = Gather(table, input_ids)
              p = Pow(x, two)
              m = ReduceMean <keepdims = 1> (p, last)
              e = Add(m, epsilon)
              s = Sqrt(e)
              i = Reciprocal(s)
              n = Mul(x, i)
              h = Mul(weight, n)
              [gate] g0 = MatMul(h, wg)
              [up] u = MatMul(h, wu)
              a = Sigmoid(g0)
              silu = Mul(g0, a)
              product = Mul(silu, u)
              [down] d = MatMul(product, wd)
              r = Add(x, d)
              head = Transpose <perm = [1, 0]> (table)
              [lm_head] logits = MatMul(r, head)
            }""",
            table=_normal(40, 32),
            weight=_normal(32) + 1,
            wg=_normal(32, 48),
            wu=_normal(32, 48, seed=1),
            wd=_normal(48, 32),
            two=np.float32(2),
            epsilon=np.float32(1e-5),
            last=np.array([-1]),
        )
    )


def genai() -> Seed:
    """A decoder with GroupQueryAttention and key/value caches, with a projection before it."""
    made = tiny_models.gqa_decoder(_normal(tiny_models.VOCABULARY, tiny_models.HIDDEN))
    node = made.graph.node[-1]
    node.input[0] = "projected"
    made.graph.node.insert(7, helper.make_node("MatMul", ["wide", "Wd"], ["down"], "down"))
    made.graph.node.insert(7, helper.make_node("MatMul", ["attended", "Wu"], ["wide"], "up"))
    hidden = tiny_models.HIDDEN
    for name, values in {"Wu": _normal(hidden, 64), "Wd": _normal(64, hidden)}.items():
        made.graph.initializer.append(numpy_helper.from_array(values, name))
    made.graph.node.insert(10, helper.make_node("Add", ["attended", "down"], ["projected"]))
    order = {"attended": 0, "wide": 1, "down": 2, "projected": 3, "logits": 4}
    nodes = sorted(made.graph.node, key=lambda each: order.get(each.output[0], -1))
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    return Seed(made)


def convolutions() -> Seed:
    """Images to labels: convolution, batch norm, pooling, a Gemm."""
    return Seed(
        model_of(
            """g (float[b, 3, 16, 16] pixels) => (float[b, 10] y) {
              [conv1] a = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (pixels, c1, cb)
              n = BatchNormalization (a, s, cb, m, s)
              r = Relu(n)
              p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)
              [conv2] c = Conv <kernel_shape = [1, 1]> (p, c2)
              g0 = GlobalAveragePool(c)
              f = Flatten <axis = 1> (g0)
              [fc] y = Gemm(f, w, b)
            }""",
            c1=_normal(8, 3, 3, 3),
            cb=_normal(8),
            s=_normal(8) ** 2 + 1,
            m=_normal(8, seed=1),
            c2=_normal(64, 8, 1, 1),
            w=_normal(64, 10),
            b=_normal(10),
        )
    )


def bodies() -> Seed:
    """If, Loop and Scan whose bodies hold matrices."""
    return Seed(
        model_of(
            """g (float[n, 32] x, bool c) => (float[n, 32] y, float[2, n, 32] all) {
              five = Constant <value = int64 {2}> ()
              go = Constant <value = bool {1}> ()
              [start] s = MatMul(x, w)
              z, all = Loop (five, go, s) <
                body = turn (int64 i, bool on, float[n, 32] state)
                  => (bool more, float[n, 32] next, float[n, 32] seen) {
                  more = Identity(on)
                  [step] m = MatMul(state, v)
                  next = Tanh(m)
                  seen = Add(next, x)
                }
              >
              q = If (c) <
                then_branch = yes () => (float[n, 32] a) { [then] k = MatMul(z, w) a = Abs(k) },
                else_branch = no () => (float[n, 32] b) { b = Neg(z) }
              >
              zero = ConstantOfShape <value = float[1] {0}> (size)
              last, y = Scan <num_scan_inputs = 1,
                body = turn (float[32] state, float[32] row) => (float[32] next, float[32] out) {
                  two = Unsqueeze(row, axis)
                  [cell] m = MatMul(two, u)
                  one = Squeeze(m, axis)
                  next = Add(one, state)
                  out = Tanh(next)
                }> (zero, q)
            }""",
            w=_normal(32, 32),
            v=_normal(32, 32, seed=1),
            u=_normal(32, 32, seed=2),
            size=np.array([32]),
            axis=np.array([0]),
        )
    )


def functions() -> Seed:
    """Local functions that call each other, with attributes by reference."""
    made = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 21, "local" : 1]>
        g (float[n, 32] x) => (float[n, 32] y) {
          a = local.block <alpha = 0.5> (x, w, b)
          y = local.block <alpha = 0.1> (a, v, b)
        }
        <domain: "local", opset_import: ["" : 21, "local" : 1]>
        block <alpha> (x, w, b) => (y) {
          m = MatMul(x, w)
          s = Add(m, b)
          y = local.leaky <alpha: float = @alpha> (s)
        }
        <domain: "local", opset_import: ["" : 21]>
        leaky <alpha> (x) => (y) { y = LeakyRelu <alpha: float = @alpha> (x) }
        """
    )
    weights = {"w": _normal(32, 32), "v": _normal(32, 32, seed=1), "b": _normal(32)}
    made.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in weights.items())
    return Seed(made)


def quantized() -> Seed:
    """A model that holds codes already: Q/DQ around one layer, MatMulNBits, and a float layer."""
    random = np.random.default_rng(3)
    made = model_of(
        """g (float[n, 32] x) => (float[n, 48] y) {
          q = QuantizeLinear(x, sx, zx)
          d = DequantizeLinear(q, sx, zx)
          w = DequantizeLinear <axis = 1> (codes, sw)
          [old] a = MatMul(d, w)
          [four] b = com.microsoft.MatMulNBits <K = 32, N = 32, bits = 4, block_size = 32>
            (a, packed, scales)
          [float] y = MatMul(b, v)
        }""",
        sx=np.float32(0.05),
        zx=np.int8(0),
        codes=random.integers(-127, 127, (32, 32)).astype(np.int8),
        sw=np.full(32, 0.01, np.float32),
        packed=random.integers(0, 255, (32, 1, 16)).astype(np.uint8),
        scales=np.full(32, 0.02, np.float32),
        v=_normal(32, 48),
    )
    made.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    note = made.graph.quantization_annotation.add(tensor_name="a")
    note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="sx")
    return Seed(made)


def half() -> Seed:
    """Weights stored in float16 and bfloat16, with Casts before they are used."""
    return Seed(
        model_of(
            """g (float[n, 32] x) => (float[n, 32] y) {
              a = Cast <to = 1> (w)
              [fc1] h = MatMul(x, a)
              b = Cast <to = 1> (v)
              r = Relu(h)
              [fc2] k = MatMul(r, b)
              half = Cast <to = 10> (k)
              [fc3] l = MatMul(half, u)
              y = Cast <to = 1> (l)
            }""",
            w=_normal(32, 32).astype(np.float16),
            v=helper.make_tensor("v", TensorProto.BFLOAT16, [32, 32], _normal(32, 32).ravel()),
            u=_normal(32, 32, seed=2).astype(np.float16),
        )
    )


def external() -> Seed:
    """Weights in a file beside the model, a sparse one, values spelled out one by one."""
    first, second = _normal(32, 48), _normal(48, 32)
    made = model_of(
        """g (float[n, 32] x) => (float[n, 32] y) {
          [fc1] a = MatMul(x, w)
          b = Add(a, bias)
          [fc2] c = MatMul(b, v)
          y = Add(c, spelled)
        }""",
        spelled=helper.make_tensor("spelled", TensorProto.FLOAT, [32], [0.5] * 32),
    )
    offset = 0
    for name, values in (("w", first), ("v", second)):
        tensor = made.graph.initializer.add(name=name, data_type=TensorProto.FLOAT)
        tensor.dims.extend(values.shape)
        tensor.data_location = TensorProto.EXTERNAL
        entries = {"location": "m.data", "offset": str(offset), "length": str(values.nbytes)}
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=value)
        offset += values.nbytes
    places = numpy_helper.from_array(np.array([1, 5, 40]), "bias_places")
    found = numpy_helper.from_array(np.array([0.5, -1, 2], np.float32), "bias")
    made.graph.sparse_initializer.append(helper.make_sparse_tensor(found, places, [48]))
    return Seed(made, {"m.data": first.tobytes() + second.tobytes()})


def labels() -> Seed:
    """Strings and a sequence as outputs, beside the floats they are made from."""
    return Seed(
        model_of(
            """g (float[n, 32] x) => (float[n, 8] y, string[n] label, seq(float[1, 8]) rows) {
              [fc] h = MatMul(x, w)
              r = Relu(h)
              [head] y = MatMul(r, v)
              best = ArgMax <axis = 1, keepdims = 0> (y)
              label = Gather(words, best)
              rows = SplitToSequence <axis = 0> (y)
            }""",
            w=_normal(32, 32),
            v=_normal(32, 8),
            words=np.array([f"word {i}" for i in range(8)], object),
        )
    )


SEEDS: dict[str, Callable[[], Seed]] = {
    "stack": stack,
    "attention": attention,
    "decoder": decoder,
    "genai": genai,
    "convolutions": convolutions,
    "bodies": bodies,
    "functions": functions,
    "quantized": quantized,
    "half": half,
    "external": external,
    "labels": labels,
}
