"""Tweaked norms bring the layers behind them closer to the float model's, on data not seen."""

from __future__ import annotations

import re

import numpy as np
import pytest
from block_models import MODELS, feeds
from stock_runtime import inner_values

from qcompiler import ir
from qcompiler.analysis.activation_qdq import before_rounding
from qcompiler.analysis.layers import find_layers
from qcompiler.analysis.qdq import quantized_layer, weight_dq
from qcompiler.calibration.supply import FeedData
from qcompiler.errors import RecipeError
from qcompiler.instruments import VerifyInstrument
from qcompiler.ir.io import import_proto
from qcompiler.passmanager import PassContext, PassManager
from qcompiler.recipe import make_pass, parse_pipeline

PREPARED = (
    "import,canonicalize,fuse-norm{standard_only=true},plan-weights{group_size=32},plan-activations"
)
QUANTIZED = f"{PREPARED},quantize-embedding,quantize-weights,insert-qdq"


def data(name: str, count: int = 12, batch: int = 16) -> list[dict[str, np.ndarray]]:
    return [feeds(MODELS[name](), seed, batch) for seed in range(count)]


def compiled(name: str, pipeline: str, batches: list[dict[str, np.ndarray]]):
    """A graph after a pipeline, and the remarks of its last pass by layer."""
    manager = PassManager(parse_pipeline(pipeline), [VerifyInstrument()])
    context = PassContext(data=FeedData(batches, "test"))
    graph, _ = manager.run(import_proto(MODELS[name]()), context)
    return graph, {remark.layer: remark for remark in manager.history[-1].remarks}


def values(graph, names: list[str], batches: list[dict[str, np.ndarray]]) -> list[np.ndarray]:
    """Rows of tensors over some data, from whole runs."""
    columns = zip(*inner_values(graph, names, batches), strict=True)
    return [np.concatenate([v.reshape(-1, v.shape[-1]) for v in each]) for each in columns]


def output_error(graph, source, layers: list[str], batches: list[dict[str, np.ndarray]]) -> float:
    """How far layers behind one norm are from the float model's, activations not rounded."""
    nodes = {node.name: node for node in graph.nodes}
    linears = {linear.name: linear for linear in find_layers(source)[0]}
    first = quantized_layer(graph, nodes[layers[0]])
    assert first is not None
    x = before_rounding(first).name
    rounded = values(graph, [x], batches)[0].astype(np.float64)
    true = values(source, [linears[layers[0]].x.name], batches)[0].astype(np.float64)
    noise = signal = 0.0
    for layer in layers:
        wanted = true @ ir.array(linears[layer].weight)
        weight = weight_dq(nodes[layer].inputs[1]).load().dequantize()
        noise += np.square(rounded @ weight - wanted).sum()
        signal += np.square(wanted).sum()
    return float(np.sqrt(noise / signal))


def by_norm(remarks) -> dict[str, list[str]]:
    """The layers behind each norm that was tried."""
    norms: dict[str, list[str]] = {}
    for layer, remark in remarks.items():
        if remark.norm is not None:
            norms.setdefault(remark.norm, []).append(layer)
    return norms


@pytest.mark.parametrize("target", ["own", "float"])
@pytest.mark.parametrize(("name", "count"), [("encoder", 1), ("decoder", 3)])
def test_layers_are_closer_on_data_not_seen(name: str, count: int, target: str) -> None:
    fresh = [feeds(MODELS[name](), seed, 16) for seed in range(100, 108)]
    source, _ = compiled(name, PREPARED, [])
    plain, _ = compiled(name, QUANTIZED, data(name))
    tweaked, remarks = compiled(name, f"{QUANTIZED},tweak-norms{{target={target}}}", data(name))
    norms = by_norm(remarks)
    assert len(norms) == count
    # "own" aims at the float model's output only where the input is the float model's.
    for norm, layers in list(norms.items())[: 1 if target == "own" else None]:
        before, after = (output_error(each, source, layers, fresh) for each in (plain, tweaked))
        print(f"{norm}, {target}: {before:.4f} -> {after:.4f}")
        assert after < before


def test_reported_errors_are_those_of_the_graph_that_ships() -> None:
    """Norms behind a tweaked one were fitted to what it gives now."""
    batches = data("decoder")
    graph, remarks = compiled("decoder", f"{QUANTIZED},tweak-norms{{target=float}}", batches)
    source, _ = compiled("decoder", PREPARED, batches)
    assert list(by_norm(remarks)) == ["h_norm", "h2_norm", "h3_norm"]
    for layers in by_norm(remarks).values():
        reported = remarks[layers[0]].error_after
        measured = output_error(graph, source, layers, batches[-3:])
        assert reported == pytest.approx(measured, rel=1e-3)
        assert measured < remarks[layers[0]].error_before


def test_what_does_not_help_is_left() -> None:
    """With a few tokens, the fit is to noise, and the held-out samples tell."""
    few = data("decoder", count=4, batch=1)
    plain, _ = compiled("decoder", QUANTIZED, few)
    tweaked, remarks = compiled("decoder", f"{QUANTIZED},tweak-norms{{ridge=1e-6}}", few)
    kept = [remark for remark in remarks.values() if not remark.applied]
    assert kept
    for remark in remarks.values():
        lower = remark.error_after < remark.error_before
        assert remark.applied == lower
    weights = [
        {t.name for t in graph.tensors().values() if ir.is_constant(t)}
        for graph in (plain, tweaked)
    ]
    norms = {r.norm for r in remarks.values() if r.applied}
    assert len(weights[1] - weights[0]) == len(norms)


def test_other_readers_veto() -> None:
    _, remarks = compiled("encoder", f"{QUANTIZED},tweak-norms", data("encoder"))
    assert re.fullmatch(r"norm not tweaked: Add '\w+' reads it, too", remarks["in"].message)
    assert "norm 'norm1' tweaked" in remarks["q"].message


def test_no_reference_and_bad_options() -> None:
    graph, _ = compiled("encoder", QUANTIZED, data("encoder"))
    with pytest.raises(RecipeError, match="no float graph to compare with"):
        make_pass("tweak-norms", {}).run(graph, PassContext())
    with pytest.raises(RecipeError, match="ridge must be positive"):
        make_pass("tweak-norms", {"ridge": 0.0})
