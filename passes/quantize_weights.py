"""quantize-weights: float weights become group-wise integers behind a DequantizeLinear.

    MatMul(X, W[K, N])  ->  MatMul(X, DequantizeLinear(codes, scales[G, N], zeros?, axis=0))

float16 and bfloat16 layers are computed in float32 between two casts.

With `rounding` "gptq" or "gptaq" the codes are chosen layer after layer from calibration data: each
layer's input comes from the Q/DQ graph with all layers before it rounded and their activations
quantized as planned. Layers that share an input are rounded on the same data.

Which tokens an expert gets depends on the layers before. So its codes are chosen by "gptq": there
is no float input for each token. Where it gets few, others count for those that are lacking.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from qcompiler import ir
from qcompiler.analysis.activation_qdq import insert_activations
from qcompiler.analysis.experts import ENOUGH, RoutedRows, routed_rows
from qcompiler.analysis.layers import Layer, by_input, find_layers, layer_of
from qcompiler.analysis.qdq import insert_weight_dq, replace_weight, weight_dq
from qcompiler.analysis.rounded import better_codes, described
from qcompiler.errors import CalibrationError
from qcompiler.formats import WeightFormat
from qcompiler.numerics.descent import descend
from qcompiler.numerics.gptq import Moments, gptq, moments
from qcompiler.numerics.grid_search import fitted
from qcompiler.numerics.rounding import QuantizedWeight, Search, quantize_weight
from qcompiler.passmanager import Fact, Numerics, Pass, PassContext, PassResult
from qcompiler.remarks import LeftAlone, Remark, Rounded


@dataclass(frozen=True, kw_only=True)
class QuantizeWeights(Pass):
    """Round the weights of linear layers to the formats planned, in groups of input channels."""

    name: ClassVar[str] = "quantize-weights"
    numerics: ClassVar[Numerics] = Numerics.LOSSY
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.CANONICAL, Fact.PLANNED})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.WEIGHTS_QUANTIZED})
    forbids: ClassVar[frozenset[Fact]] = frozenset({Fact.WEIGHTS_QUANTIZED})

    search: Search = "none"
    """Range of a group: as found, least weight error ("mse"), least output error ("output")."""
    rounding: Literal["nearest", "gptq", "gptaq"] = "nearest"
    """How codes are chosen: each by itself ("nearest"), or so that a layer's output stays close to
    that of its float weight on the same input ("gptq"), or to the float model's ("gptaq")."""
    dampening: float = 0.01
    """Of GPTQ: the share by which the diagonal of the second moments grows."""
    act_order: bool = True
    """Of GPTQ: channels with the largest mean square first."""
    alpha: float = 0.25
    """Of GPTAQ: the share of earlier layers' errors that is compensated."""
    sweeps: int = 0
    """Of both: rounds of coordinate descent afterwards, over codes and ranges."""

    def __post_init__(self) -> None:
        if not self.dampening > 0.0:
            raise ValueError(f"dampening must be positive, not {self.dampening}")
        if not 0.0 <= self.alpha <= 1.0:
            raise ValueError(f"alpha must lie in 0 .. 1, not {self.alpha}")
        if self.sweeps < 0:
            raise ValueError(f"sweeps must not be negative, as {self.sweeps} is")

    def without_data(self) -> QuantizeWeights:
        return replace(self, rounding="nearest")

    def run(self, graph: gs.Graph, ctx: PassContext) -> PassResult:
        source = ir.copied(graph) if self.rounding != "nearest" else None
        planned = [
            (layer, form)
            for layer in find_layers(graph)[0]
            if layer.name in ctx.plan and (form := ctx.plan[layer.name].weight) is not None
        ]
        namer = ir.Namer(graph)
        done: dict[int, tuple[Any, Rounded]] = {}
        remarks: dict[str, Remark] = {}
        for index, (layer, form) in enumerate(planned):
            ctx.tick("quantizing weights", index, len(planned))
            weight = layer.weight
            if id(weight) not in done:
                try:
                    done[id(weight)] = self._quantize(graph, layer, form, ctx, namer)
                except ValueError as error:
                    remarks[layer.name] = LeftAlone(
                        layer=layer.name, message=str(error), kind="linear", shape=layer.shape
                    )
                    continue
            dequantized, remark = done[id(weight)]
            _use(graph, layer, dequantized, namer)
            remarks[layer.name] = replace(remark, layer=layer.name)
        ctx.tick("quantizing weights", len(planned), len(planned))
        if done:
            ir.remove_dead(graph)
        if done and source is not None:
            self._refine(graph, source, remarks, ctx)
        return PassResult(graph=graph, changed=bool(done), remarks=tuple(remarks.values()))

    def _refine(
        self, graph: gs.Graph, source: gs.Graph, remarks: dict[str, Remark], ctx: PassContext
    ) -> None:
        """Search the ranges of the layers of `graph` and choose their codes, in order, against the
        float graph `source`, and say so in their remarks."""
        shipped = ir.copied(graph)
        insert_activations(shipped, ctx.plan, ctx.statistics)
        here, ahead = _by_name(graph), _by_name(shipped)
        floats = {layer.name: layer for layer in find_layers(source)[0]}
        said = {name: each for name, each in remarks.items() if isinstance(each, Rounded)}
        groups = by_input(shipped, said)
        finished = 0
        for names, found, tokens in self._moments(shipped, source, floats, groups, ctx):
            ctx.tick(f"rounding weights ({self.rounding})", finished, len(said))
            finished += len(names)
            for name in names:
                remarks[name] = self._refined(
                    (here[name], ahead[name]),
                    floats[name],
                    found,
                    replace(said[name], tokens=tokens),
                )
            del found  # before the next
        ctx.tick(f"rounding weights ({self.rounding})", len(said), len(said))

    def _moments(
        self,
        shipped: gs.Graph,
        source: gs.Graph,
        floats: Mapping[str, Layer],
        groups: Mapping[str, list[str]],
        ctx: PassContext,
    ) -> Iterator[tuple[list[str], Moments, int | None]]:
        """The layers that share an input, in order, its moments, and where data chooses its rows
        how many these are."""
        routed = {x: routed_rows(floats[names[0]].x) for x, names in groups.items()}
        wanted = dict.fromkeys(each for x in groups for each in (*_whole(routed[x]), x))
        inputs = ctx.data.stream(shipped, list(wanted))
        references: Iterator[Sequence[Any]] = iter(())
        if self.rounding == "gptaq":
            firsts = [names[0] for x, names in groups.items() if routed[x] is None]
            references = ctx.data.stream(source, [str(floats[name].x.name) for name in firsts])
        whole: dict[str, Moments] = {}
        for x, values in zip(wanted, inputs, strict=True):
            if x not in groups:
                whole = {x: moments(values)}  # of its experts, all of which come before the next
                continue
            names, rows = groups[x], floats[groups[x][0]]
            reference = next(references, None) if routed[x] is None else None
            try:
                found = moments(
                    map(rows.rows, values),
                    None if reference is None else map(rows.rows, reference),
                )
            except ValueError as error:
                raise CalibrationError(f"layer '{names[0]}': {error}") from None
            if routed[x] is None:
                yield names, found, None
                continue
            alike = next((whole[each] for each in _whole(routed[x])), None)
            yield names, found.filled(ENOUGH * rows.shape[0], alike), found.tokens

    def _refined(
        self, copies: tuple[Layer, Layer], source: Layer, found: Moments, remark: Rounded
    ) -> Rounded:
        """Round one layer in both graphs; its remark with the output errors."""
        if _is_shared(source):
            return remark.fallen_back(ValueError("other nodes read the same weight"))
        values = np.asarray(source.matrix(), np.float32)
        nearest = quantize_weight(
            values, remark.form, search=self.search, importance=found.mean_square
        )
        chosen, judged = better_codes(
            "gptq" if found.drift is None else self.rounding,
            values,
            nearest,
            found,
            lambda: self._chosen(values, nearest, found),
        )
        for layer in copies:
            written = weight_dq(layer.weight)
            assert written is not None  # `run` has just done so
            replace_weight(written, chosen)
        again = described(remark.layer, chosen, values, kind="linear")
        return judged.tell(replace(again, tokens=remark.tokens))

    def _chosen(self, values: Any, nearest: QuantizedWeight, found: Moments) -> QuantizedWeight:
        alpha = self.alpha if found.drift is not None else 0.0
        chosen = gptq(
            values,
            nearest,
            found,
            dampening=self.dampening,
            act_order=self.act_order,
            alpha=alpha,
        )
        if not self.sweeps:
            return chosen
        return descend(
            values, chosen, found, dampening=self.dampening, alpha=alpha, sweeps=self.sweeps
        )

    def _quantize(
        self,
        graph: gs.Graph,
        layer: Layer,
        form: WeightFormat,
        ctx: PassContext,
        namer: ir.Namer,
    ) -> tuple[Any, Rounded]:
        importance = None
        if ctx.statistics is not None and layer.x.name in ctx.statistics.tensors:
            importance = ctx.statistics.tensors[layer.x.name].mean_square
        values = np.asarray(layer.matrix(), np.float32)
        if form.grid is not None and form.grid.name == "learned":
            form = fitted(values, form, importance)
        # Otherwise the range is searched when codes are chosen, by the moments of then.
        final = self.rounding == "nearest" or _is_shared(layer)
        search: Search = self.search if final else "none"
        quantized = quantize_weight(values, form, search=search, importance=importance)
        remark = described(layer.name, quantized, values, kind="linear")
        return insert_weight_dq(graph, quantized, str(layer.weight.name), namer), remark


def _whole(routed: RoutedRows | None) -> list[str]:
    """The name of the tensor that rows are taken from as they are, if there is one."""
    return [str(routed.whole.name)] if routed is not None and routed.alike else []


def _is_shared(layer: Layer) -> bool:
    return len(ir.consumers(layer.weight)) > 1


def _by_name(graph: gs.Graph) -> Mapping[str, Layer]:
    found = (layer_of(graph, node) for node in graph.nodes)
    return {layer.name: layer for layer in found if layer is not None}


def _use(graph: gs.Graph, layer: Layer, dequantized: Any, namer: ir.Namer) -> None:
    """Make a layer read the dequantized weight, in float32 whatever type it had."""
    node = layer.node
    source = ir.elem_type(layer.weight)
    layer.put(dequantized)
    if source == onnx.TensorProto.FLOAT:
        return
    x, y = layer.x, node.outputs[0]
    # One cast for all that read X, so that layers can be merged.
    to = {"to": onnx.TensorProto.FLOAT}
    casts = (r for r in ir.consumers(x) if r.op == "Cast" and r.attrs["to"] == to["to"])
    wide = next((cast.outputs[0] for cast in casts), None)
    if wide is None:
        wide = gs.Variable(namer(f"{x.name}_float"), np.dtype(np.float32), x.shape)
        ir.add_node(graph, "Cast", namer(f"{node.name}/CastIn"), [x], [wide], attrs=to)
    narrow = gs.Variable(namer(f"{y.name}_float"), np.dtype(np.float32), y.shape)
    layer.read(wide)
    node.outputs = [narrow]
    ir.add_node(graph, "Cast", namer(f"{node.name}/CastOut"), [narrow], [y], attrs={"to": source})
