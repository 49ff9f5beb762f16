"""quantize-weights: float weights become group-wise integers behind a DequantizeLinear.

    MatMul(X, W[K, N])  ->  MatMul(X, DequantizeLinear(codes, scales[G, N], zeros?, axis=0))

float16 and bfloat16 layers are computed in float32 between two casts.

With `rounding` "gptq" or "gptaq" the codes are chosen layer after layer from calibration data: each
layer's input comes from the Q/DQ graph with all layers before it rounded and their activations
quantized as planned. Layers that share an input are rounded on the same data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from qcompiler import ir
from qcompiler.analysis.linears import Linear, by_input, find_linears, is_head
from qcompiler.analysis.qdq import insert_weight_dq, replace_weight, weight_dq
from qcompiler.errors import CalibrationError
from qcompiler.numerics.allocation import WeightFormat
from qcompiler.numerics.descent import descend
from qcompiler.numerics.gptq import Moments, gptq, improved, moments
from qcompiler.numerics.rounding import QuantizedWeight, Search, quantize_weight, sqnr_db
from qcompiler.passes.insert_qdq import InsertQdq
from qcompiler.passmanager import Fact, Numerics, Pass, PassContext, PassResult, Remark

GroupSize = Literal[32, 64, 128, 256]
Bits = Literal[4, 8]


@dataclass(frozen=True, kw_only=True)
class QuantizeWeights(Pass):
    """Round the weights of planned linear layers to 4 or 8 bits in groups of input channels."""

    name: ClassVar[str] = "quantize-weights"
    numerics: ClassVar[Numerics] = Numerics.LOSSY
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.CANONICAL, Fact.PLANNED})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.WEIGHTS_QUANTIZED})

    bits: Bits = 4
    group_size: GroupSize = 128
    symmetric: bool = True
    progressive: bool = False
    """Of 4 bits: the scales of a column's groups are small multiples of one number, so that codes
    become int8 values by integer arithmetic alone, as in QServe, arXiv 2405.04532."""
    search: Search = "none"
    """Range of a group: as found, least weight error ("mse"), least output error ("output")."""
    rounding: Literal["nearest", "gptq", "gptaq"] = "nearest"
    """How codes are chosen: each by itself, or so that a layer's output stays close to that of its
    float weight on the same input ("gptq") or to the float model's ("gptaq")."""
    dampening: float = 0.01
    """Of GPTQ: the share by which the diagonal of the second moments grows."""
    act_order: bool = True
    """Of GPTQ: channels with the largest mean square first."""
    alpha: float = 0.25
    """Of GPTAQ: the share of the layers' earlier errors that is made up for."""
    sweeps: int = 0
    """Of both: rounds of coordinate descent over the codes afterwards."""
    head_bits: Bits = 8
    """Bits of layers whose result is an output of the model (the language-model head), and of those
    that only such layers read, as the one `rotate` puts before a head."""
    min_channels: int = 32
    """Layers with fewer input channels are left alone: nothing to gain."""

    def __post_init__(self) -> None:
        if not self.dampening > 0.0:
            raise ValueError(f"dampening must be positive, not {self.dampening}")
        if not 0.0 <= self.alpha <= 1.0:
            raise ValueError(f"alpha must lie in 0 .. 1, not {self.alpha}")
        if self.sweeps < 0:
            raise ValueError(f"sweeps must not be negative, as {self.sweeps} is")

    def run(self, graph: gs.Graph, ctx: PassContext) -> PassResult:
        source = graph.copy() if self.rounding != "nearest" else None
        linears, _ = find_linears(graph)
        linears = [linear for linear in linears if linear.name in ctx.plan]
        namer = ir.Namer(graph)
        done: dict[int, tuple[Any, dict[str, Any]]] = {}
        remarks: list[Remark] = []
        for index, linear in enumerate(linears):
            ctx.tick("quantizing weights", index, len(linears))
            weight = linear.weight
            if linear.shape[0] < self.min_channels:
                reason = f"only {linear.shape[0]} input channels"
                remarks.append(Remark(layer=linear.name, applied=False, message=reason))
                continue
            if id(weight) not in done:
                try:
                    done[id(weight)] = self._quantize(graph, linear, ctx, namer)
                except ValueError as error:
                    message = str(error)
                    remarks.append(Remark(layer=linear.name, applied=False, message=message))
                    continue
            dequantized, data = done[id(weight)]
            _use(graph, linear, dequantized, namer)
            kind = "asymmetric" if data["symmetric"] is False else "symmetric"
            message = f"int{data['bits']} {kind}, group {data['group_size']}"
            message += ", progressive" if data["progressive"] else ""
            remarks.append(Remark(layer=linear.name, applied=True, message=message, data=data))
        ctx.tick("quantizing weights", len(linears), len(linears))
        if done:
            ir.remove_dead(graph)
        if done and source is not None:
            remarks = self._refine(graph, source, remarks, ctx)
        return PassResult(graph=graph, changed=bool(done), remarks=tuple(remarks))

    def _refine(
        self, graph: gs.Graph, source: gs.Graph, remarks: list[Remark], ctx: PassContext
    ) -> list[Remark]:
        """Round the layers of `graph` once more, in order, against the float graph `source`."""
        if ctx.stream is None:
            raise CalibrationError(f"rounding '{self.rounding}' needs data; give --calib SRC")
        shipped = InsertQdq().run(graph.copy(), ctx).graph
        nodes, ahead = _by_name(graph), _by_name(shipped)
        floats = {linear.name: linear for linear in find_linears(source)[0]}
        said = {remark.layer: remark for remark in remarks if remark.applied}
        groups = by_input(shipped, said)
        inputs = ctx.stream(shipped, list(groups))
        references: Iterator[list[Any]] | None = None
        if self.rounding == "gptaq":
            references = ctx.stream(
                source, [str(floats[names[0]].x.name) for names in groups.values()]
            )
        finished = 0
        for names, values in zip(groups.values(), inputs, strict=True):
            ctx.tick(f"rounding weights ({self.rounding})", finished, len(said))
            finished += len(names)
            reference = next(references) if references is not None else None
            try:
                found = moments(values, reference)
            except ValueError as error:
                raise CalibrationError(f"layer '{names[0]}': {error}") from None
            for held in (values, reference or []):
                held.clear()  # large, and zip would hold them until it has the next
            for name in names:
                said[name] = self._refined(
                    nodes[name], ahead[name], floats[name], found, said[name]
                )
            del found  # before the next
        ctx.tick(f"rounding weights ({self.rounding})", len(said), len(said))
        return [said.get(remark.layer, remark) for remark in remarks]

    def _refined(
        self, node: gs.Node, ahead: gs.Node, linear: Linear, found: Moments, remark: Remark
    ) -> Remark:
        """Round one layer once more in both graphs; its remark with the output errors."""
        dequantized, copy = weight_dq(node.inputs[1]), weight_dq(ahead.inputs[1])
        assert dequantized is not None and copy is not None  # `run` has just written them
        values = np.asarray(ir.array(linear.weight), np.float32)
        nearest = dequantized.load()
        try:
            if len(ir.consumers(linear.weight)) > 1:
                raise ValueError("other nodes read the same weight")
            chosen, before, after = improved(
                values, nearest, found, lambda: self._rounded(values, nearest, found)
            )
        except ValueError as reason:
            return fallen_back(remark, reason)
        replace_weight(dequantized, chosen)
        replace_weight(copy, chosen)
        remark = replace(remark, data=describe(chosen, values, linear.weight, kind="linear"))
        return better_rounded(remark, self.rounding, before, after)

    def _rounded(self, values: Any, nearest: QuantizedWeight, found: Moments) -> QuantizedWeight:
        alpha = self.alpha if self.rounding == "gptaq" else 0.0
        if self.search == "output" or self.progressive:
            # Importance as measured now; and a graph says nothing of a progressive weight's limits.
            form = WeightFormat(
                bits=nearest.bits,
                group_size=nearest.group_size,
                symmetric=nearest.zero_points is None,
            )
            nearest = self._nearest(values, form, found.mean_square)
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
        self, graph: gs.Graph, linear: Linear, ctx: PassContext, namer: ir.Namer
    ) -> tuple[Any, dict[str, Any]]:
        importance = None
        if ctx.statistics is not None and linear.x.name in ctx.statistics.tensors:
            importance = ctx.statistics.tensors[linear.x.name].mean_square
        values = np.asarray(ir.array(linear.weight), np.float32)
        form = ctx.plan[linear.name].weight or WeightFormat(
            bits=self.head_bits if is_head(graph, linear.output) else self.bits,
            group_size=self.group_size,
            symmetric=self.symmetric,
        )
        quantized = self._nearest(values, form, importance)
        data = describe(quantized, values, linear.weight, kind="linear")
        return insert_weight_dq(graph, quantized, str(linear.weight.name), namer), data

    def _nearest(self, values: Any, form: WeightFormat, importance: Any) -> QuantizedWeight:
        return quantize_weight(
            values,
            bits=form.bits,
            group_size=form.group_size,
            symmetric=form.symmetric,
            search=self.search,
            importance=importance,
            progressive=self.progressive,
        )


def better_rounded(remark: Remark, rounding: str, before: float, after: float) -> Remark:
    """The remark of a layer rounded to nearest, with what another rounding made of its output."""
    message = f"{remark.message}, {rounding}: output error {before:.4f} -> {after:.4f}"
    data = {"rounding": rounding, "output_error_nearest": before, "output_error": after}
    return replace(remark, message=message, data={**remark.data, **data})


def fallen_back(remark: Remark, reason: Exception) -> Remark:
    """The remark of a layer that stays rounded to nearest."""
    fallback = f"rounded to nearest: {reason}"
    data = {**remark.data, "rounding": "nearest", "fallback": fallback}
    return replace(remark, message=f"{remark.message}, {fallback}", data=data)


def describe(
    quantized: QuantizedWeight, values: Any, source: gs.Constant, *, kind: str
) -> dict[str, Any]:
    """What the report says of one quantized weight; `values` is its float [K, N] form."""
    rows, columns = quantized.codes.shape
    return {
        "kind": kind,
        "K": rows,
        "N": columns,
        "bits": quantized.bits,
        "group_size": quantized.group_size,
        "symmetric": quantized.zero_points is None,
        "progressive": quantized.reach is not None,
        "sqnr_db": chunked_sqnr_db(values, quantized),
        "bytes_before": ir.nbytes(source),
        "bytes_after": quantized.nbytes(),
    }


def chunked_sqnr_db(values: Any, quantized: QuantizedWeight) -> float:
    """Signal-to-noise of a weight, over at most 4096 evenly spaced columns: memory stays small."""
    part = slice(None, None, max(1, values.shape[1] // 4096))
    return sqnr_db(values[:, part], quantized.columns(part).dequantize())


def _by_name(graph: gs.Graph) -> Mapping[str, gs.Node]:
    return {node.name: node for node in graph.nodes}


def _use(graph: gs.Graph, linear: Linear, dequantized: Any, namer: ir.Namer) -> None:
    """Make a layer read the dequantized weight, in float32 whatever type it had."""
    node = linear.node
    source = ir.elem_type(linear.weight)
    node.inputs[1] = dequantized
    if source == onnx.TensorProto.FLOAT:
        return
    x, y = node.inputs[0], node.outputs[0]
    # One cast for all that read X, so that layers can be merged.
    to = {"to": onnx.TensorProto.FLOAT}
    casts = (r for r in ir.consumers(x) if r.op == "Cast" and r.attrs["to"] == to["to"])
    wide = next((cast.outputs[0] for cast in casts), None)
    if wide is None:
        wide = gs.Variable(namer(f"{x.name}_float"), np.dtype(np.float32), x.shape)
        ir.add_node(graph, "Cast", namer(f"{node.name}/CastIn"), [x], [wide], attrs=to)
    narrow = gs.Variable(namer(f"{y.name}_float"), np.dtype(np.float32), y.shape)
    node.inputs[0] = wide
    node.outputs = [narrow]
    ir.add_node(graph, "Cast", namer(f"{node.name}/CastOut"), [narrow], [y], attrs={"to": source})
