"""What a model stores is counted to the byte, and whatever is not quantized has its reason."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from odd_models import model_of, normal
from onnx import TensorProto, helper, numpy_helper

from qcompiler.analysis.inventory import CODES, INDICES, SMALL
from qcompiler.ir.io import import_proto
from qcompiler.passmanager import PassContext, PassManager, Record
from qcompiler.recipe import load, parse_pipeline
from qcompiler.report import Layer, Weights, account

W = normal(64, 96)
BYTES = np.arange(64 * 96, dtype=np.uint8).reshape(64, 96)
SCALE, ZERO = np.full(1, 0.1, np.float32), np.zeros(1, np.uint8)

FUSED = "start from the model before optimization"
CODED = "it is quantized already"
RECURRENT = "recurrent weights are not quantized"
CONVOLUTION = "convolutions are not quantized"

# The node beside a layer, what it stores, why it stays, and what its bytes are called.
KEPT: dict[str, tuple[str, dict[str, np.ndarray], str, str]] = {
    "Einsum": ('Einsum <equation = "snk,km->snm"> (x, a)', {"a": W}, "as Einsum", "Einsum"),
    "LSTM": (
        "LSTM <hidden_size = 32> (x, a, r, b)",
        {"a": normal(1, 128, 64), "r": normal(1, 128, 32), "b": normal(1, 256)},
        RECURRENT,
        "LSTM",
    ),
    "GRU": (
        "GRU <hidden_size = 32> (x, a, r)",
        {"a": normal(1, 96, 64), "r": normal(1, 96, 32)},
        RECURRENT,
        "GRU",
    ),
    "RNN": (
        "RNN <hidden_size = 32> (x, a, r)",
        {"a": normal(1, 32, 64), "r": normal(1, 32, 32)},
        RECURRENT,
        "RNN",
    ),
    "Conv": ("Conv (x, a, b)", {"a": normal(8, 64, 3), "b": normal(8)}, CONVOLUTION, "Conv"),
    "small Conv": ("Conv (x, a)", {"a": normal(2, 3, 3)}, CONVOLUTION, "Conv"),
    "ConvTranspose": (
        "ConvTranspose (x, a)",
        {"a": normal(8, 64, 3)},
        CONVOLUTION,
        "ConvTranspose",
    ),
    "Attention": (
        "com.microsoft.Attention <num_heads = 4> (x, a, b)",
        {"a": normal(64, 192), "b": normal(192)},
        FUSED,
        "Attention",
    ),
    "EmbedLayerNormalization": (
        "com.microsoft.EmbedLayerNormalization (i, , a, p, , g, b)",
        {"a": normal(100, 64), "p": normal(40, 64), "g": normal(64), "b": normal(64)},
        FUSED,
        "EmbedLayerNormalization",
    ),
    "SkipLayerNormalization": (
        "com.microsoft.SkipLayerNormalization (x, a, g)",
        {"a": normal(1, 40, 64), "g": normal(64)},
        "constants that SkipLayerNormalization reads are not quantized",
        "SkipLayerNormalization",
    ),
    "FusedMatMul": ("com.microsoft.FusedMatMul (x, a)", {"a": W}, FUSED, "FusedMatMul"),
    "FusedConv": (
        "com.microsoft.FusedConv (x, a)",
        {"a": normal(8, 64, 3)},
        CONVOLUTION,
        "FusedConv",
    ),
    "MoE": (
        "com.microsoft.MoE <k = 2, use_sparse_mixer = 1> (x, x, a, , c)",
        {"a": normal(4, 64, 64), "c": normal(4, 64, 64)},
        "its experts are not split: it routes by a sparse mixer",
        "MoE",
    ),
    "QMoE": ("com.microsoft.QMoE <k = 2> (x, x, q, s)", {"q": BYTES, "s": W}, CODED, CODES),
    "QAttention": (
        "com.microsoft.QAttention <num_heads = 4> (x, q, b, s, s)",
        {"q": BYTES, "b": normal(96), "s": SCALE},
        CODED,
        CODES,
    ),
    "QGemm": (
        "com.microsoft.QGemm (u, s, z, q, s, z)",
        {"q": BYTES, "s": SCALE, "z": ZERO},
        CODED,
        CODES,
    ),
    "QLinearConv": (
        "QLinearConv (u, s, z, q, s, z, s, z)",
        {"q": BYTES.reshape(32, 64, 3), "s": SCALE, "z": ZERO},
        CODED,
        CODES,
    ),
    "QLinearMatMul": (
        "QLinearMatMul (u, s, z, q, s, z, s, z)",
        {"q": BYTES, "s": SCALE, "z": ZERO},
        CODED,
        CODES,
    ),
    "MatMulNBits": (
        "com.microsoft.MatMulNBits <K = 64, N = 96, bits = 4, block_size = 32> (x, q, s)",
        {"q": BYTES[:48].reshape(96, 2, 24), "s": normal(192)},
        CODED,
        CODES,
    ),
    "MatMulBnb4": (
        "com.microsoft.MatMulBnb4 <K = 64, N = 96, block_size = 64> (x, q, s)",
        {"q": BYTES.reshape(-1), "s": normal(96)},
        CODED,
        CODES,
    ),
    "DynamicQuantizeLSTM": (
        "com.microsoft.DynamicQuantizeLSTM <hidden_size = 32> (x, q, r)",
        {"q": BYTES.reshape(1, 64, 96), "r": BYTES.reshape(1, 64, 96)},
        CODED,
        CODES,
    ),
    "GatherBlockQuantized": (
        "com.microsoft.GatherBlockQuantized (q, i, s)",
        {"q": BYTES, "s": normal(64, 3)},
        CODED,
        CODES,
    ),
    "codes and a DequantizeLinear": (
        "MatMul (x, d)",
        {"q": BYTES, "s": SCALE[0], "z": ZERO[0]},
        "quantized already",
        CODES,
    ),
    "GatherND": ("GatherND (a, i)", {"a": W}, "that GatherND reads", "GatherND"),
    "GatherElements": ("GatherElements (a, i)", {"a": W}, "that GatherElements", "GatherElements"),
    "Gather of columns": ("Gather <axis = 1> (a, i)", {"a": W}, "only rows of a", "Gather"),
    "Gather of planes": ("Gather (a, i)", {"a": normal(9, 16, 64)}, "only rows of a", "Gather"),
    "Gather of indices": (
        "Gather (a, i)",
        {"a": np.arange(64 * 64).reshape(64, 64)},
        "holds int64 values, no weights",
        INDICES,
    ),
    "a position table that is added": ("Add (x, a)", {"a": normal(1, 40, 64)}, "that Add", "Add"),
    "a factor": ("Mul (x, a)", {"a": normal(40, 64)}, "that Mul reads", "Mul"),
    "a long vector": ("Gather (a, i)", {"a": normal(1 << 16)}, "only rows of a", "Gather"),
    "a mask": ("Where (a, x, x)", {"a": np.ones((40, 64), bool)}, "bool values", INDICES),
    "a batched product": (
        "MatMul (x, a)",
        {"a": normal(2, 64, 96)},
        "not two-dimensional",
        "MatMul",
    ),
    "a product from the left": ("MatMul (a, x)", {"a": W.T.copy()}, "the left operand", "MatMul"),
}


def beside_a_layer(node: str, constants: dict[str, np.ndarray]) -> onnx.ModelProto:
    """A model of the layer `fc`, and of the node `kept`."""
    before = "d = DequantizeLinear (q, s, z)" if "(x, d)" in node else ""
    made = model_of(
        "g (float[s, n, 64] x, uint8[s, n, 64] u, int64[m, 1] i) => (float[s, n, 96] y, h) {"
        f"[fc] y = MatMul (x, w) {before} [kept] h = {node} }}",
        w=W,
        **constants,
    )
    made.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return made


def stored_bytes(model: onnx.ModelProto) -> int:
    """Bytes of the initializers of a model that has all of them in raw form."""
    return sum(len(each.raw_data) for each in model.graph.initializer)


def history_of(model: onnx.ModelProto, pipeline: str = "") -> list[Record]:
    """What the passes of a pipeline say, or those of `rtn`."""
    manager = PassManager(parse_pipeline(pipeline) if pipeline else load("rtn").passes)
    manager.run(import_proto(model), PassContext())
    return manager.history


def accounted(model: onnx.ModelProto, pipeline: str = "") -> tuple[dict[str, Layer], Weights]:
    """Rows by name, and the bytes, which must add up."""
    layers, weights = account(history_of(model, pipeline))
    assert weights is not None
    assert weights.bytes == weights.quantized_bytes + sum(weights.rest.values())
    rows = {layer.name: layer for layer in layers}
    held = sum(layer.bytes_before or 0 for layer in layers)
    assert weights.bytes == held + weights.rest.get(SMALL, 0)
    done = sum(layer.bytes_before or 0 for layer in layers if layer.quantized)
    assert weights.quantized_bytes == done
    return rows, weights


@pytest.mark.parametrize("case", KEPT)
def test_whatever_holds_weights_has_a_row_with_its_reason(case: str) -> None:
    node, constants, reason, what = KEPT[case]
    model = beside_a_layer(node, constants)
    rows, weights = accounted(model)
    kept = rows["kept"]
    assert not kept.quantized and reason in (kept.reason or "")
    size = sum(np.asarray(each).nbytes for each in constants.values())
    assert kept.bytes_before == size
    assert weights.bytes == stored_bytes(model) == W.nbytes + size
    assert weights.quantized_bytes == W.nbytes
    assert weights.rest == {what: size}


BODY = """
    c = ReduceMax <keepdims = 0> (x)
    flag = Cast <to = 9> (c)
    [if] h = If (flag) <
        then_branch = then () => (float[s, n, 96] t) {{ {node} }},
        else_branch = other () => (float[s, n, 96] e) {{ [other] e = Expand (small, shape) }}
    >
"""


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        ("[kept] t = MatMul (x, a)", None),
        ("a2 = Identity (a) [kept] t = MatMul (x, a2)", None),
        ("g = Gather (a, ids) [kept] t = Add (g, x)", "that Add reads"),
        ('[kept] t = Einsum <equation = "snk,km->snm"> (x, a)', "as Einsum"),
        ("[kept] t = Identity (a)", "that If reads"),
    ],
)
def test_bodies_are_counted_too(node: str, reason: str | None) -> None:
    model = model_of(
        "g (float[s, n, 64] x) => (float[s, n, 96] y, h) { [fc] y = MatMul (x, w) "
        + BODY.format(node=node)
        + "}",
        w=W,
    )
    body = next(n for n in model.graph.node if n.op_type == "If").attribute[0].g
    constants = {"a": W[::-1].copy(), "ids": np.arange(3)}
    used = {name for each in body.node for name in each.input}
    inside = [numpy_helper.from_array(v, k) for k, v in constants.items() if k in used]
    body.initializer.extend(inside)
    outside = {"small": np.zeros(1, np.float32), "shape": np.array([1, 1, 96])}
    model.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in outside.items())
    rows, weights = accounted(model)
    name = "if" if "If" in (reason or "") else "kept"
    assert rows[name].quantized == (reason is None)
    assert (reason or "") in (rows[name].reason or "")
    size = sum(len(each.raw_data) for each in inside)
    given = 28 if name == "if" else 0  # by the other branch, from outside
    assert rows[name].bytes_before == size + given
    assert weights.bytes == stored_bytes(model) + size


def test_a_constant_node_is_counted_like_an_initializer() -> None:
    model = beside_a_layer("Add (x, a)", {})
    table = numpy_helper.from_array(normal(40, 64).astype(np.float16), "a")
    wide = helper.make_node("Cast", ["a16"], ["a"], to=TensorProto.FLOAT)
    made = helper.make_node("Constant", [], ["a16"], value=table)
    model.graph.node.insert(0, wide)
    model.graph.node.insert(0, made)
    rows, weights = accounted(model)
    assert rows["kept"].bytes_before == 40 * 64 * 2
    assert weights.rest == {"Add": 40 * 64 * 2}


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_weights_count_as_they_are_stored(dtype: Any) -> None:
    model = beside_a_layer("Relu (x)", {"half": W.astype(dtype)})
    cast = helper.make_node("Cast", ["half"], ["w"], to=TensorProto.FLOAT)
    model.graph.node.insert(0, cast)
    del model.graph.initializer[0]
    rows, weights = accounted(model)
    assert (weights.bytes, weights.quantized_bytes, weights.rest) == (W.size * 2, W.size * 2, {})
    assert rows["fc"].bytes_before == W.size * 2


def test_four_bit_codes_count_half_a_byte() -> None:
    model = beside_a_layer("com.microsoft.GatherBlockQuantized (q, i, s)", {"s": SCALE})
    codes = numpy_helper.from_array(BYTES.astype(ml_dtypes.uint4), "q")
    model.graph.initializer.append(codes)
    assert accounted(model)[1].rest == {CODES: W.size // 2 + SCALE.nbytes}


def test_what_a_table_and_a_head_share_is_counted_once() -> None:
    table = normal(1200, 64)
    model = model_of(
        "g (int64[m] i) => (float[m, 1200] y) { [embed] x = Gather (table, i)"
        " t = Transpose <perm = [1, 0]> (table) [head] y = MatMul (x, t) }",
        table=table,
    )
    rows, weights = accounted(model)
    assert weights.bytes == weights.quantized_bytes == table.nbytes and not weights.rest
    assert rows["embed"].bytes_before == table.nbytes and rows["head"].bytes_before == 0
    rows, weights = accounted(model, "import,canonicalize,plan-weights")
    assert weights.quantized_bytes == 0


def test_a_weight_that_something_else_reads_in_float_is_not_gone() -> None:
    model = beside_a_layer("Expand (w, shape)", {"shape": np.array([2, 64, 96])})
    rows, weights = accounted(model)
    assert rows["fc"].quantized and rows["fc"].bytes_before == 0
    assert weights.quantized_bytes == 0 and rows["kept"].bytes_before == W.nbytes + 24


def test_what_is_multiplied_by_constants_belongs_to_who_reads_the_product() -> None:
    low = {"left": normal(64, 32), "right": normal(32, 96)}
    model = model_of(
        "g (float[n, 64] x) => (float[n, 96] y) { low = MatMul (left, right)"
        " sum = Add (base, low) [kept] y = Where (flag, x, sum) }",
        base=W,
        flag=np.array([True]),
        **low,
    )
    rows, weights = accounted(model, "import")
    assert rows["kept"].bytes_before == weights.bytes == W.nbytes + 64 * 128 + 32 * 96 * 4 + 1


def test_a_weight_is_its_layers_though_a_product_with_a_constant_is_read_too() -> None:
    model = beside_a_layer("Add (p, x)", {"a": normal(96, 64)})
    model.graph.node.insert(0, helper.make_node("MatMul", ["w", "a"], ["p"]))
    rows, weights = accounted(model)
    assert rows["fc"].quantized and rows["fc"].bytes_before == weights.quantized_bytes == W.nbytes
    assert rows["kept"].bytes_before == W.nbytes


def test_vectors_and_small_constants_are_one_figure() -> None:
    constants = {"g": normal(64), "b": normal(64)}
    model = beside_a_layer("LayerNormalization (x, g, b)", constants)
    rows, weights = accounted(model)
    assert set(rows) == {"fc"}
    assert weights.rest == {SMALL: 512}


def test_a_bias_is_not_quantized_with_its_layer() -> None:
    model = model_of(
        "g (float[n, 64] x) => (float[n, 96] y) { [fc] y = Gemm (x, w, b) }", w=W, b=normal(96)
    )
    rows, weights = accounted(model)
    assert rows["fc"].bytes_before == weights.quantized_bytes == W.nbytes
    assert weights.rest == {SMALL: 384}


def test_constants_of_an_opset_conversion_are_not_the_sources() -> None:
    model = model_of(
        "g (float[n, 64] x) => (float[n, 96] y, h)"
        " { [fc] y = MatMul (x, w) h = ReduceMax <axes = [1]> (x) }",
        w=W,
    )
    model.opset_import[0].version = 17
    assert accounted(model)[1].bytes == W.nbytes


def test_what_no_output_needs_is_not_counted() -> None:
    model = beside_a_layer("Relu (x)", {"dead": W})
    model.graph.node.append(helper.make_node("MatMul", ["x", "dead"], ["nobody"]))
    assert accounted(model)[1].bytes == W.nbytes


def test_rotary_tables_that_are_computed_are_neither_kept_nor_quantized() -> None:
    factors = (10000.0 ** (-np.arange(32) / 32)).astype(np.float32)
    angles = np.arange(512, dtype=np.float32)[:, None] * factors
    tables = {"c": np.cos(angles), "d": np.sin(angles)}
    model = beside_a_layer("com.microsoft.RotaryEmbedding (x, i, c, d)", tables)
    rows, weights = accounted(model)
    size = tables["c"].nbytes * 2
    assert weights.rest == {"RotaryEmbedding": size}
    assert rows["kept"].reason == "its tables of rotary embeddings are not quantized"
    rows, weights = accounted(model, "import,canonicalize,compute-rotary")
    assert weights.rest["tables computed at load"] == size
    assert "computed when a session loads" in (rows["kept"].reason or "")
