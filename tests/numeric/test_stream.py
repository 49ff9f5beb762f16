"""Activations computed stage by stage are those of the whole graph, and rounding uses them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from block_models import HIDDEN, INNER, MODELS, feeds
from stock_runtime import inner_values

from qcompiler import ir
from qcompiler.analysis.activation_qdq import activation_qdq
from qcompiler.analysis.layers import find_layers
from qcompiler.analysis.qdq import quantized_layer, weight_dq
from qcompiler.calibration import stream as streaming
from qcompiler.calibration.stages import cut
from qcompiler.calibration.stream import stream
from qcompiler.calibration.supply import FeedData
from qcompiler.compiler import compile as compile_model
from qcompiler.errors import CalibrationError
from qcompiler.instruments import VerifyInstrument
from qcompiler.ir.io import import_proto
from qcompiler.ir.order import topological
from qcompiler.opt import run_pipeline
from qcompiler.passmanager import PassContext, PassManager
from qcompiler.recipe import parse_pipeline

PREPARED = (
    "import,canonicalize,fuse-norm{standard_only=true},plan-weights{group_size=32},plan-activations"
)
SHIPPED = f"{PREPARED},quantize-embedding,quantize-weights,insert-qdq"


def prepared(name: str, pipeline: str = PREPARED, **context):
    """A model's graph after some passes, and the history of them."""
    manager = PassManager(parse_pipeline(pipeline), [VerifyInstrument()])
    graph, _ = manager.run(import_proto(MODELS[name]()), PassContext(**context))
    return graph, manager.history


def data(name: str, count: int = 3, batch: int = 4) -> list[dict[str, np.ndarray]]:
    return [feeds(MODELS[name](), seed, batch) for seed in range(count)]


def matmul_inputs(graph) -> list[str]:
    """Inputs of products by a weight, in order, each once."""
    nodes = [
        node
        for node in topological(graph)
        if node.op == "MatMul" and (ir.is_constant(node.inputs[1]) or weight_dq(node.inputs[1]))
    ]
    return list(dict.fromkeys(node.inputs[0].name for node in nodes))


@pytest.mark.parametrize("pipeline", [PREPARED, SHIPPED], ids=["float", "shipped"])
@pytest.mark.parametrize("name", MODELS)
def test_stages_compute_what_the_whole_graph_computes(name: str, pipeline: str) -> None:
    graph, _ = prepared(name, pipeline)
    names, batches = matmul_inputs(graph), data(name)
    assert len(names) > 2
    got = list(stream(graph, names, batches))
    for index, whole in enumerate(inner_values(graph, names, batches)):
        for tensor, expected, values in zip(names, whole, got, strict=True):
            assert values[index].dtype == expected.dtype
            scale = float(np.abs(expected).max())
            np.testing.assert_allclose(
                values[index], expected, rtol=0, atol=1e-6 * scale, err_msg=tensor
            )


@pytest.mark.parametrize("name", MODELS)
def test_every_node_runs_once_and_only_what_is_read_stays(name: str) -> None:
    graph, _ = prepared(name)
    names = matmul_inputs(graph)
    stages = cut(graph, [(name,) for name in names])
    ran = [node.name for stage in stages for node in stage.nodes]
    assert len(ran) == len(set(ran))
    there: set[str] = set()
    for index, stage in enumerate(stages):
        there |= {*stage.leaves, *(name for name in stage.reads if name not in there)}
        there -= stage.done
        later = {read for after in stages[index + 1 :] for read in after.reads}
        assert there <= later | set(names[index + 1 :])
    assert not there


@pytest.mark.parametrize("name", MODELS)
def test_a_group_is_not_cut(name: str) -> None:
    graph, batches = prepared(name)[0], data(name)
    first, *others = matmul_inputs(graph)
    together = list(streaming.stream_together(graph, [(first,), tuple(others)], batches))
    alone = list(stream(graph, [first, *others], batches))
    for values, expected in zip([*together[0], *together[1]], alone, strict=True):
        for one, other in zip(values, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * np.abs(other).max())


def test_nodes_ahead_may_change() -> None:
    graph, _ = prepared("decoder")
    names = matmul_inputs(graph)
    up = next(linear for linear in find_layers(graph)[0] if linear.name == "up_proj")
    values = stream(graph, names, data("decoder"))
    for tensor in names:
        found = next(values)
        if tensor == up.x.name:
            zeros = np.zeros((HIDDEN, INNER), np.float32)
            up.node.inputs[1] = ir.constant(up.weight.name, zeros)
        if tensor == "product":
            assert not found[0].any()
            break
    else:
        pytest.fail("the product was not among the tensors")


def test_what_is_changed_in_place_is_seen_ahead_and_feeds_stay() -> None:
    graph, _ = prepared("encoder")
    batches = data("encoder")
    given, normed, q = stream(graph, ["x", "h", "q0"], batches)
    changed = stream(graph, ["x", "h", "q0"], batches)
    with pytest.raises(ValueError, match="read-only"):
        next(changed)[0][...] = 0.0
    for array in next(changed):
        np.multiply(array, 2.0, out=array)
    np.testing.assert_allclose(next(changed)[1], 2.0 * q[1], rtol=1e-6)
    np.testing.assert_array_equal(given[1], batches[1]["x"])
    assert normed[1].flags.writeable


def test_an_input_of_the_model_and_repeated_names() -> None:
    graph, _ = prepared("encoder")
    batches = data("encoder")
    given, first, again = stream(graph, ["x", "h", "h"], batches)
    np.testing.assert_array_equal(given[1], batches[1]["x"])
    np.testing.assert_array_equal(first[2], again[2])


def test_what_is_not_there_is_refused() -> None:
    graph, _ = prepared("encoder")
    with pytest.raises(CalibrationError, match="no tensor 'nothing'"):
        next(stream(graph, ["nothing"], data("encoder")))
    with pytest.raises(CalibrationError, match="does not run on the calibration data"):
        next(stream(graph, ["h"], [{"x": np.zeros((1, 2, 3, 4), np.float32)}]))


def calibrated(name: str, options: str, *, count: int = 12, policy: str = "per-token"):
    """A model after the passes up to insert-qdq, and the remarks of quantize-weights."""
    batches = data(name, count)
    pipeline = (
        "import,canonicalize,fuse-norm{standard_only=true},plan-weights{group_size=32},"
        f"plan-activations{{policy={policy}}},quantize-weights{{{options}}},insert-qdq"
    )
    graph, history = prepared(name, pipeline, data=FeedData(batches, "test"))
    remarks = next(step.remarks for step in history if step.name == "quantize-weights")
    return graph, {remark.layer: remark for remark in remarks}


@pytest.mark.parametrize("rounding", ["gptq", "gptaq"])
@pytest.mark.parametrize("name", MODELS)
def test_reported_errors_are_those_of_the_graph_that_ships(name: str, rounding: str) -> None:
    """The layers' inputs in the finished Q/DQ graph give the errors the remarks speak of."""
    graph, remarks = calibrated(name, f"rounding={rounding}")
    source, _ = prepared(name)
    batches = data(name, 12)
    linears = {linear.name: linear for linear in find_layers(source)[0]}
    nodes = {node.name: node for node in graph.nodes}
    layers = [layer for layer, remark in remarks.items() if remark.output_error is not None]
    assert layers
    signal, noise = dict.fromkeys(layers, 0.0), dict.fromkeys(layers, 0.0)
    for inputs in batches:
        read = [nodes[layer].inputs[0].name for layer in layers]
        shipped = inner_values(graph, read, [inputs])[0]
        read = [linears[layer].x.name for layer in layers]
        floats = inner_values(source, read, [inputs])[0]
        for layer, x, true in zip(layers, shipped, floats, strict=True):
            found = quantized_layer(graph, nodes[layer])
            assert found is not None and activation_qdq(found) is not None
            weight = np.asarray(ir.array(linears[layer].weight), np.float64)
            rounded = weight_dq(nodes[layer].inputs[1]).load().dequantize()
            wanted = (true if rounding == "gptaq" else x) @ weight
            signal[layer] += np.square(wanted).sum()
            noise[layer] += np.square(wanted - x @ rounded.astype(np.float64)).sum()
    for layer in layers:
        reported = remarks[layer]
        measured = np.sqrt(noise[layer] / signal[layer])
        assert reported.output_error == pytest.approx(measured, rel=1e-3)
        assert reported.output_error < reported.output_error_nearest


@pytest.mark.parametrize("policy", ["per-token", "none"])
def test_outputs_are_closer_than_rounded_to_nearest(policy: str) -> None:
    fresh = [feeds(MODELS["decoder"](), seed, 16) for seed in range(96, 100)]
    source, _ = prepared("decoder")
    reference = np.array(inner_values(source, ["logits"], fresh)[0])
    errors = []
    for rounding in ("nearest", "gptq", "gptaq"):
        graph, _ = calibrated("decoder", f"rounding={rounding}", count=60, policy=policy)
        logits = np.array(inner_values(graph, ["logits"], fresh)[0])
        errors.append(float(np.square(logits - reference).sum()))
    assert errors[1] < 0.9 * errors[0]
    assert errors[2] < 0.85 * errors[0]


def test_too_little_data_and_shared_weights_are_named() -> None:
    _, few = calibrated("decoder", "rounding=gptq", count=1)
    assert few["q_proj"].message == (
        "int4 symmetric, group 32, rounded to nearest: "
        "24 calibration tokens for 64 channels are too few"
    )
    assert few["q_proj"].rounding == "nearest"
    _, shared = calibrated("perceptron", "rounding=gptq", count=30)
    for layer in ("fc2", "fc2_again"):
        assert shared[layer].message.endswith(
            "rounded to nearest: other nodes read the same weight"
        )
    assert "gptq: output error" in shared["fc3"].message


def test_data_is_needed() -> None:
    with pytest.raises(CalibrationError, match="give --calib"):
        prepared("decoder", f"{PREPARED},quantize-weights{{rounding=gptq}}")


def test_the_compiler_and_opt_give_passes_the_data(tmp_path: Path) -> None:
    path = tmp_path / "encoder.onnx"
    onnx.save(MODELS["encoder"](), path)
    result = compile_model(
        path, recipe="gptq", target="qdq", overrides=["plan-weights.group_size=32"]
    )
    layers = [layer for layer in result.report.layers if layer.kind == "linear"]
    assert {layer.scheme for layer in layers} == {"int4 g32 sym gptq"}
    assert all(layer.output_error < layer.output_error_nearest for layer in layers)
    assert result.report.calibration.startswith("random: 18 feeds")
    few = compile_model(path, recipe="gptq", target="qdq", calib_samples=1, force=True)
    assert "tokens for 64 channels are too few" in few.report.layers[0].reason
    done = run_pipeline(path, f"{PREPARED},quantize-weights{{rounding=gptaq}}")
    assert all("gptaq: output error" in remark.message for remark in done.history[-1].remarks)


@pytest.mark.parametrize("rounding", ["gptq", "gptaq"])
@pytest.mark.parametrize("name", MODELS)
def test_codes_of_eight_bits_that_make_up_for_others_are_no_less_than_127(name, rounding) -> None:
    """-128 is no weight of the ops: one such code would leave its layer in Q/DQ."""
    pipeline = (
        "import,canonicalize,fuse-norm{standard_only=true},plan-weights{bits=8,head_bits=8},"
        f"plan-activations,quantize-weights{{rounding={rounding}}},insert-qdq"
    )
    graph, _ = prepared(name, pipeline, data=FeedData(data(name, 12), "test"))
    layers = [found for node in graph.nodes if (found := quantized_layer(graph, node))]
    assert layers
    assert min(int(ir.array(layer.weight.codes).min()) for layer in layers) == -127
