"""Corrected biases bring the mean output of a model closer to the float model's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from block_models import MODELS, feeds
from stock_runtime import open_session

from qcompiler.calibration.supply import FeedData
from qcompiler.errors import RecipeError
from qcompiler.instruments import VerifyInstrument
from qcompiler.ir import to_model
from qcompiler.ir.io import import_proto
from qcompiler.opt import run_pipeline
from qcompiler.passmanager import PassContext, PassManager
from qcompiler.recipe import parse_pipeline

QUANTIZED = (
    "import,canonicalize,fuse-norm{standard_only=true},plan-weights{group_size=32},"
    "plan-activations,quantize-weights,insert-qdq"
)


def shifted(model: onnx.ModelProto, seed: int) -> dict[str, np.ndarray]:
    """Inputs whose mean is not zero, as activations of real models."""
    inputs = feeds(model, seed, batch=16)
    return {k: v + 1 if v.dtype == np.float32 else v for k, v in inputs.items()}


def compiled(name: str, pipeline: str):
    """A model after a pipeline, and the remarks of its last pass."""
    batches = [shifted(MODELS[name](), seed) for seed in range(12)]
    manager = PassManager(parse_pipeline(pipeline), [VerifyInstrument()])
    context = PassContext(data=FeedData(batches, "test"))
    graph, _ = manager.run(import_proto(MODELS[name]()), context)
    return to_model(graph), manager.history[-1].remarks


def mean_output(model: onnx.ModelProto, name: str) -> np.ndarray:
    session = open_session(model)
    unseen = [shifted(MODELS[name](), seed) for seed in range(100, 110)]
    outputs = [session.run(None, inputs)[0] for inputs in unseen]
    return np.concatenate(outputs).reshape(-1, outputs[0].shape[-1]).mean(axis=0)


@pytest.mark.parametrize("name", ["encoder", "perceptron"])
def test_means_are_closer_on_data_not_seen(name: str) -> None:
    true = mean_output(MODELS[name](), name)
    plain, _ = compiled(name, QUANTIZED)
    corrected, remarks = compiled(name, f"{QUANTIZED},correct-bias")
    before, after = (
        float(np.linalg.norm(mean_output(model, name) - true)) for model in (plain, corrected)
    )
    print(f"{name}: {before:.4f} -> {after:.4f}")
    assert after < 0.7 * before
    new = sum("new bias" in remark.message for remark in remarks)
    adds = [sum(n.op_type == "Add" for n in m.graph.node) for m in (plain, corrected)]
    assert adds[1] - adds[0] == new


def test_layers_quantized_before_are_refused(tmp_path: Path) -> None:
    model, _ = compiled("encoder", QUANTIZED)
    path = tmp_path / "quantized.onnx"
    onnx.save(model, path)
    assumed = ["canonical", "planned", "weights-quantized"]
    with pytest.raises(RecipeError, match="'correct-bias' compares with the float graph"):
        run_pipeline(path, "correct-bias", assume=[*assumed, "qdq"])
    with pytest.raises(RecipeError, match="'q' was quantized before this pipeline began"):
        run_pipeline(path, "insert-qdq,correct-bias", assume=assumed)


@pytest.mark.parametrize("name", MODELS)
def test_every_quantized_layer_is_spoken_of(name: str) -> None:
    model, remarks = compiled(name, f"{QUANTIZED},correct-bias")
    layers = [remark.layer for remark in remarks]
    assert len(layers) == len(set(layers))
    weights = [n for n in model.graph.node if n.op_type == "MatMul" and n.input[1].endswith("_dq")]
    assert set(layers) == {node.name for node in weights}
    for remark in remarks:
        lower = remark.error_after < remark.error_before
        assert remark.applied == lower
