"""Target ort-contrib in 2 bits: packed bytes, what ONNX Runtime makes of them, and refusals."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from command_line import qc, refusal
from odd_models import model_of, normal
from onnx import numpy_helper

from qcompiler import runtime, targets
from qcompiler.formats import LayerPlan, WeightFormat
from qcompiler.numerics.nbits import narrowed, pack
from qcompiler.numerics.rounding import QuantizedWeight, quantize_weight

CONTRIB = targets.get("ort-contrib")
TWO_BITS = LayerPlan(weight=WeightFormat(bits=2, group_size=32))
TOO_OLD = CONTRIB.accepts(TWO_BITS)
NEEDS_TWO_BITS = pytest.mark.skipif(TOO_OLD is not None, reason=str(TOO_OLD))

TEXT = """
g (int64[N] ids) => (float[N, 40] y) {
    [embed] e = Gather(table, ids)
    [up] u = MatMul(e, up)
    r = Relu(u)
    [down] d = MatMul(r, down)
    n = Add(d, e)
    [head] y = MatMul(n, head)
}
"""


def rounded(rows: int, columns: int, form: WeightFormat) -> QuantizedWeight:
    return quantize_weight(normal(rows, columns), form)


def as_stored(weight: QuantizedWeight) -> QuantizedWeight:
    """As Q/DQ holds it, in a type of 4 bits."""
    shift = 0 if weight.zero_points is not None else 8 - weight.form.middle
    wide = WeightFormat(bits=4, group_size=weight.form.group_size, symmetric=weight.form.symmetric)
    codes = weight.codes + np.uint8(shift)
    return QuantizedWeight(codes, weight.scales, weight.zero_points, wide)


def unpacked(packed: np.ndarray, bits: int) -> np.ndarray:
    """Codes by the bit, as the operator's schema has them: a run of bits, the lowest first."""
    run = np.unpackbits(packed, axis=-1, bitorder="little")
    run = run.reshape(*packed.shape[:-1], -1, bits)
    return (run << np.arange(bits, dtype=np.uint8)).sum(-1).astype(np.uint8)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 4])
def test_codes_lie_as_the_schema_says(bits: int, symmetric: bool) -> None:
    form = WeightFormat(bits=bits, group_size=32, symmetric=symmetric)
    weight = rounded(150, 7, form)
    packed, scales, *zeros = pack(weight)
    codes = unpacked(packed, bits).reshape(7, -1).T
    np.testing.assert_array_equal(codes[:150], weight.codes)
    np.testing.assert_array_equal(scales, weight.scales.T)
    last = form.middle if weight.zero_points is None else weight.zero_points[-1]
    assert (codes[150:] == last).all()
    assert len(zeros) == (not symmetric)
    if weight.zero_points is not None:
        np.testing.assert_array_equal(unpacked(zeros[0], bits)[:, :5], weight.zero_points.T)


@pytest.mark.parametrize("symmetric", [True, False])
def test_two_bits_are_found_in_a_type_of_four(symmetric: bool) -> None:
    weight = rounded(64, 5, WeightFormat(bits=2, group_size=32, symmetric=symmetric))
    found = narrowed(as_stored(weight), 2)
    assert found is not None and found.form.bits == 2
    np.testing.assert_array_equal(found.dequantize(), weight.dequantize())


def test_codes_that_two_bits_do_not_hold_stay() -> None:
    weight = rounded(64, 5, WeightFormat(bits=4, group_size=32))
    assert narrowed(weight, 2) is None
    shifted = as_stored(rounded(64, 5, WeightFormat(bits=2, group_size=32)))
    shifted.codes[0, 0] = 10
    assert narrowed(shifted, 2) is None, "four neighbours hold 7 .. 10, but not around 8"


def product(weight: QuantizedWeight, x: np.ndarray) -> np.ndarray:
    """MatMulNBits of ONNX Runtime, as the target writes it."""
    (rows, columns), form = weight.codes.shape, weight.form
    named = dict(zip(("B", "scales", "zeros"), pack(weight), strict=False))
    node = onnx.helper.make_node(
        "MatMulNBits",
        ["x", *named],
        ["y"],
        domain="com.microsoft",
        K=rows,
        N=columns,
        bits=form.bits,
        block_size=form.group_size,
        accuracy_level=4,
    )
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["M", size])
        for name, size in (("x", rows), ("y", columns))
    ]
    stored = [numpy_helper.from_array(values, name) for name, values in named.items()]
    graph = onnx.helper.make_graph([node], "g", ends[:1], ends[1:], stored)
    opsets = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def most_error(weight: QuantizedWeight, x: np.ndarray) -> np.ndarray:
    """How far half a step of int8, in each block of a row, can move each result."""
    values, size = np.abs(weight.dequantize().astype(np.float64)), weight.form.group_size
    most = np.zeros((len(x), values.shape[1]))
    for start in range(0, values.shape[0], size):
        block = slice(start, start + size)
        half_step = np.abs(x[:, block]).max(axis=1) / 127 / 2
        most += half_step[:, None] * values[block].sum(axis=0)
    return most


@NEEDS_TWO_BITS
@pytest.mark.parametrize(
    ("size", "symmetric"), list(itertools.product(CONTRIB.later[2].group_sizes, (True, False)))
)
def test_onnxruntime_multiplies_two_bits(size: int, symmetric: bool) -> None:
    form = WeightFormat(bits=2, group_size=size, symmetric=symmetric)
    for rows, columns, tokens in ((64, 3, 1), (300, 35, 1), (512, 16, 2), (300, 130, 17)):
        weight = rounded(rows, columns, form)
        x = np.random.default_rng(rows).standard_normal((tokens, rows)).astype(np.float32)
        exact = x.astype(np.float64) @ weight.dequantize()
        error = np.abs(product(weight, x) - exact)
        assert (error <= 1.001 * most_error(weight, x) + 1e-5).all()
        if runtime.info()["isa"] in ("amxint8", "avx512vnni"):  # elsewhere nobody has looked
            assert error.max() > 1e-5, "it has a kernel: what has none is the product in float"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    made = model_of(
        TEXT,
        table=normal(40, 72),
        up=normal(72, 96),
        down=normal(96, 72),
        head=normal(72, 40),
    )
    onnx.save(made, str(tmp_path / "m.onnx"))
    return tmp_path / "m.onnx"


TWO = [
    *("--recipe", "rtn", "--set", "plan-weights.bits=2", "--set", "plan-weights.head_bits=2"),
    *("--set", "plan-weights.table_bits=2", "--set", "plan-weights.min_rows=1"),
]


@NEEDS_TWO_BITS
def test_a_model_in_two_bits(model: Path) -> None:
    outputs = {}
    for target in ("ort-contrib", "qdq"):
        path = model.with_name(f"{target}.onnx")
        result = qc(
            *("compile", model, "-o", path, "-t", target, *TWO, "--force"),
            *("--set", "plan-weights.group_size=32", "--set", "plan-weights.table_group_size=32"),
        )
        assert result.exit_code == 0, result.stderr
        session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        outputs[target] = session.run(None, {"ids": np.arange(40)})[0]
    made = onnx.load(str(model.with_name("ort-contrib.onnx")))
    widths = [
        onnx.helper.get_node_attr_value(node, "bits")
        for node in made.graph.node
        if node.op_type == "MatMulNBits"
    ]
    assert widths == [2, 2, 2]
    told = {entry.key: entry.value for entry in made.metadata_props}
    assert told["qcompiler.minimum_onnxruntime"] == "1.28"
    table = next(each for each in made.graph.initializer if each.name == "embed_B")
    assert len(table.raw_data) == 40 * 96 // 4, "72 channels in groups of 32"
    apart = np.linalg.norm(outputs["ort-contrib"] - outputs["qdq"])
    assert apart < 0.03 * np.linalg.norm(outputs["qdq"]), "both round activations, each its way"


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_report_says_how_many_bytes_are_stored(tmp_path: Path, bits: int, tied: bool) -> None:
    if bits == 2 and TOO_OLD is not None:
        pytest.skip(TOO_OLD)
    weights = {"table": normal(40, 64)} if tied else {"table": normal(40, 64), "t": normal(64, 40)}
    head = "t = Transpose<perm = [1, 0]>(table)" if tied else ""
    text = (
        f"g (int64[N] ids) => (float[N, 40] y) {{ {head} [embed] e = Gather(table, ids) "
        "r = Relu(e) [head] y = MatMul(r, t) }"
    )
    onnx.save(model_of(text, **weights), str(tmp_path / "m.onnx"))
    out, report = tmp_path / "o.onnx", tmp_path / "r.json"
    sizes = ["min_rows=1", f"head_bits={bits}", f"table_bits={bits}", "group_size=32"]
    changes = [part for size in sizes for part in ("--set", f"plan-weights.{size}")]
    result = qc(
        *("compile", tmp_path / "m.onnx", "-t", "ort-contrib", "-r", "rtn", "-o", out),
        *("--report", report, "--force", *changes),
    )
    assert result.exit_code == 0, result.stderr
    rows = [row for row in json.loads(report.read_text())["layers"] if row["quantized"]]
    assert {row["name"] for row in rows} == {"embed", "head"}
    stored = sum(
        numpy_helper.to_array(each).nbytes
        for each in onnx.load(str(out)).graph.initializer
        if each.name.split("_")[-1] in ("B", "scales", "zeros", "q8", "scale")
    )
    assert sum(row["bytes_after"] for row in rows) == stored


@NEEDS_TWO_BITS
def test_groups_of_two_bits_become_as_large_as_it_has_kernels_for(model: Path) -> None:
    path = model.with_name("o.onnx")
    sizes = ("--set", "plan-weights.group_size=16")
    result = qc("compile", model, "-o", path, "-t", "ort-contrib", *TWO, *sizes, "--force")
    assert result.exit_code == 0, result.stderr
    nodes = onnx.load(str(path), load_external_data=False).graph.node
    found = [node for node in nodes if node.op_type == "MatMulNBits"]
    assert {onnx.helper.get_node_attr_value(node, "block_size") for node in found} == {32}


@pytest.mark.parametrize(
    ("version", "size", "why"),
    [
        ("1.27.1", 32, "weights of 2 bits need ONNX Runtime 1.28 or later, and this is 1.27.1"),
        ("1.28.0", 256, "no kernels for groups of 256 channels, but for 32, 64, 128"),
    ],
)
def test_what_onnxruntime_has_no_kernels_for_is_refused_at_once(
    model: Path, monkeypatch: pytest.MonkeyPatch, version: str, size: int, why: str
) -> None:
    monkeypatch.setattr(ort, "__version__", version)
    monkeypatch.setattr("qcompiler.ir.read_model", None)
    told = refusal(
        *("compile", model, "-t", "ort-contrib", *TWO),
        *("--set", f"plan-weights.group_size={size}"),
    )
    assert why in told and "--target qdq" in told


@pytest.mark.parametrize("bits", [3, 5, 6])
def test_other_widths_have_no_kernels_in_any_version(bits: int) -> None:
    plan = LayerPlan(weight=WeightFormat(bits=bits, group_size=32))
    assert CONTRIB.accepts(plan) == f"it has no kernels for weights of {bits} bits"


def test_a_model_needs_what_its_widest_demand_needs() -> None:
    four = LayerPlan(weight=WeightFormat(bits=4, group_size=32))
    assert CONTRIB.minimum_for([four, LayerPlan()]) == CONTRIB.minimum_onnxruntime == "1.23"
    assert CONTRIB.minimum_for([four, TWO_BITS]) == "1.28"
