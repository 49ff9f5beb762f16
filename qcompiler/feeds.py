"""What a model's inputs are, and how to fill them from token ids.

A decoder is fed correctly: key/value caches that are empty (zero positions), not filled with zeros;
masks and positions that agree with them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime as ort

from qcompiler import ops, settings
from qcompiler.errors import ModelError
from qcompiler.lookups import Lookups
from qcompiler.models import ModelPackage
from qcompiler.protos import all_nodes
from qcompiler.settings import Settings

Kind = Literal["decoder", "encoder", "other"]
Array = np.ndarray[Any, np.dtype[Any]]

IDS, MASK, POSITIONS, TYPES = "input_ids", "attention_mask", "position_ids", "token_type_ids"
BRANCH = "use_cache_branch"
"""Of a decoder that holds two: whether it goes on from its caches."""
SWITCHES = {BRANCH: False, "num_logits_to_keep": 0, "logits_to_keep": 0}
_MOST_TOKENS = 1 << 24  # far more than any vocabulary has
_MOST_CACHED = 1 << 28  # values of a position in a cache, far more than any has
_ATTENTION = ("GroupQueryAttention", "GroupQueryAttentionSink")
_LAST_AXIS_IS_TOKENS = 3  # rank of [batch, sequence, vocabulary or hidden]

_FLOATS: dict[str, Any] = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


@dataclass(frozen=True)
class TensorSpec:
    """An input or output: a dimension is its size, its symbol, or None where unknown.

    `shape` is None where not even the rank is known; `dtype` is None for what is no tensor.
    """

    name: str
    dtype: np.dtype[Any] | None
    shape: tuple[int | str | None, ...] | None

    @property
    def rank(self) -> int | None:
        """Number of dimensions, None where unknown."""
        return None if self.shape is None else len(self.shape)

    def last(self) -> int | None:
        """Size of the last axis where it is fixed."""
        size = self.shape[-1] if self.shape else None
        return size if isinstance(size, int) else None


@dataclass(frozen=True)
class CacheSpec:
    """What a decoder hands on from step to step: keys, values, or a state of fixed size."""

    past: str
    present: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    """-1 for batch; 0 positions where it grows."""
    sequence_axis: int | None
    """Of positions; None where the size stays: of states, and windows of the last positions."""

    @property
    def grows(self) -> bool:
        """Whether it has a place for every position of the text."""
        return self.sequence_axis is not None

    def empty(self, batch: int) -> Array:
        """What `batch` sequences start with."""
        return np.zeros([batch if size == -1 else size for size in self.shape], self.dtype)

    def sized(self, batch: int, length: int) -> Array:
        """A zeroed cache of `length` positions, of one that grows."""
        assert self.sequence_axis is not None
        shape = list(self.empty(batch).shape)
        shape[self.sequence_axis] = length
        return np.zeros(shape, self.dtype)


@dataclass(frozen=True)
class Signature:
    """The inputs and outputs of a model, and what they make of it.

    kind: "decoder" predicts a next token at each position (output `logits` [B, T, V]); "encoder"
    reads token ids and gives vectors, or labels; "other" is everything else.
    """

    kind: Kind
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    caches: tuple[CacheSpec, ...] = ()
    shares_buffer: bool = False
    """The graph attends through GroupQueryAttention: past and present may be one buffer."""
    labels: bool = False
    """Its logits are too few for the tokens that it reads: they are of labels."""

    @classmethod
    def of(cls, package: ModelPackage) -> Signature:
        """Read the signature of a model on disk; ModelError if its caches have no known size."""
        return cls.of_proto(package.outline, package.config)

    @classmethod
    def of_proto(cls, model: onnx.ModelProto, config: Settings | None = None) -> Signature:
        """Read the signature of a loaded model (external data not needed)."""
        stored = {tensor.name for tensor in model.graph.initializer}
        inputs = tuple(_of_value(v) for v in model.graph.input if v.name not in stored)
        outputs = tuple(_of_value(v) for v in model.graph.output)
        attention = [n for n in all_nodes(model) if n.op_type in _ATTENTION]
        facts = _CacheFacts.of(config, model, attention)
        labels = _are_labels(next((o for o in outputs if o.name == "logits"), None), model)
        return _signature(inputs, outputs, facts, shares_buffer=bool(attention), labels=labels)

    @property
    def logits(self) -> str:
        """Name of the output that holds a decoder's logits or an encoder's token vectors."""
        return _main_output(self.kind, self.outputs)

    def input(self, name: str) -> TensorSpec | None:
        """The input of that name, or None."""
        return next((spec for spec in self.inputs if spec.name == name), None)

    def without(self, names: Collection[str]) -> Signature:
        """What is left to feed where something else gives the inputs of these names."""
        inputs = tuple(spec for spec in self.inputs if spec.name not in names)
        caches = tuple(cache for cache in self.caches if cache.past not in names)
        logits = next((spec for spec in self.outputs if spec.name == "logits"), None)
        kind = _kind({spec.name for spec in inputs}, None if self.labels else logits, caches)
        return replace(self, kind=kind, inputs=inputs, caches=caches)

    def feeds(
        self,
        token_ids: Array,
        attention_mask: Array | None = None,
        past: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Every input for `token_ids` [B, T].

        `attention_mask` [B, P + T] covers the P cached positions too, ones by default; `past` maps
        cache inputs to [..., P, ...] arrays (from `next_past`), empty ones by default.

        Raises ModelError for an input that language models are not known to have, and where `past`
        does not tell how many positions are cached and there is no mask to do so.
        """
        ids = np.atleast_2d(np.asarray(token_ids))
        mask = attention_mask
        if mask is None:
            mask = np.ones((ids.shape[0], self._cached(past) + ids.shape[1]), np.int64)
        feeds = self.text_inputs(ids, mask)
        for cache in self.caches:
            feeds[cache.past] = past[cache.past] if past else cache.empty(ids.shape[0])
        return feeds

    def text_inputs(self, token_ids: Array, attention_mask: Array) -> dict[str, Array]:
        """The inputs but for the caches: `token_ids` [B, T], `attention_mask` [B, P + T]."""
        batch, length = token_ids.shape
        cached = attention_mask.shape[-1] - length
        if attention_mask.shape != (batch, cached + length) or cached < 0:
            raise ModelError(
                f"attention_mask {attention_mask.shape} does not fit token ids {token_ids.shape}"
            )
        values = {
            IDS: token_ids,
            MASK: attention_mask,
            POSITIONS: np.clip(np.cumsum(attention_mask, axis=1) - 1, 0, None)[:, cached:],
            TYPES: np.zeros_like(token_ids),
        }
        caches = {cache.past for cache in self.caches}
        feeds: dict[str, Array] = {}
        for spec in self.inputs:
            if spec.name in caches:
                continue
            if spec.name in values:
                feeds[spec.name] = np.ascontiguousarray(values[spec.name], dtype=spec.dtype)
            elif spec.name in SWITCHES:
                value = cached > 0 if spec.name == BRANCH else SWITCHES[spec.name]
                feeds[spec.name] = np.full((1,) * (spec.rank or 0), value, dtype=spec.dtype)
            else:
                raise ModelError(
                    f"input '{spec.name}' is none that a language model is known to have; "
                    "give its values in an .npz"
                )
        return feeds

    def next_past(self, outputs: Mapping[str, Any]) -> dict[str, Any]:
        """The `past` of the next step from this step's outputs (arrays or OrtValues, by name)."""
        return {cache.past: outputs[cache.present] for cache in self.caches}

    def _cached(self, past: Mapping[str, Any] | None) -> int:
        if not past or not self.caches:
            return 0
        for cache in self.caches:
            if cache.sequence_axis is not None:
                return int(np.shape(past[cache.past])[cache.sequence_axis])
        raise ModelError("the caches do not tell how many positions were read; give a mask")


def untensored(spec: TensorSpec) -> str:
    """Why an input that is a sequence, a map or optional can't be fed, and what to do."""
    return (
        f"input '{spec.name}' is no tensor, and calibration data holds tensors only; compile with "
        "--no-verify by a recipe that needs no data, such as rtn"
    )


def as_taken(session: ort.InferenceSession, feed: Mapping[str, Any]) -> dict[str, Any]:
    """`feed` with its floats in the types that a session takes: float16 caches, for example."""
    taken = dict(feed)
    for spec in session.get_inputs():
        wanted, given = _FLOATS.get(spec.type), feed.get(spec.name)
        if wanted is not None and given is not None and given.dtype in _FLOATS.values():
            taken[spec.name] = given.astype(wanted, copy=False)
    return taken


def vocabulary(package: ModelPackage, signature: Signature) -> int:
    """How many token ids the model knows: the least of what its files say.

    Raises ModelError when they say nothing, or more than any model knows.
    """
    sizes: list[int] = []
    if package.config is not None:
        size = settings.count(settings.table(package.config, "model"), "vocab_size")
        sizes += [] if size is None else [size]
    if signature.kind == "decoder":
        width = next(o.last() for o in signature.outputs if o.name == signature.logits)
        sizes += [width] if width else []
    rows = Lookups.of(package.outline).rows.get(IDS)
    sizes += [] if rows is None else [rows]
    if package.tokenizer_file is not None:
        sizes.append(package.tokenizer().get_vocab_size(with_added_tokens=True))
    if not sizes:
        raise ModelError(
            f"{package.onnx_path}: its vocabulary size is unknown; put its tokenizer.json "
            f"beside it, or give an .npz with '{IDS}'"
        )
    if min(sizes) > _MOST_TOKENS:
        raise ModelError(
            f"{package.onnx_path}: its files claim a vocabulary of {min(sizes)} tokens; put its "
            "tokenizer.json beside it"
        )
    return min(sizes)


@dataclass(frozen=True)
class _CacheFacts:
    """What is known of key/value heads where the input's own shape leaves them open."""

    heads: int | None
    head_dim: int | None
    windows: Mapping[str, int]
    """By input: positions of a cache that holds the last ones only."""

    @classmethod
    def of(
        cls,
        config: Settings | None,
        model: onnx.ModelProto,
        attention: list[onnx.NodeProto],
    ) -> _CacheFacts:
        decoder = settings.table(config or {}, "model", "decoder")
        heads = settings.count(decoder, "num_key_value_heads")
        width = settings.count(decoder, "head_size")
        if attention:
            node = attention[0]
            count = {a.name: a.i for a in node.attribute}
            heads = heads or count.get("kv_num_heads")
            width = width or _head_dim(model, node, count.get("num_heads", 0))
        return cls(heads=heads, head_dim=width, windows=_windows(attention))


def _windows(attention: Iterable[onnx.NodeProto]) -> dict[str, int]:
    """The least capacity that each windowed cache may have, by input.

    ONNX Runtime's GroupQueryAttention with `sliding_window_cache` keeps the last positions of as
    many as the cache given holds, and evicts by itself.
    """
    found: dict[str, int] = {}
    for node in attention:
        given = {each.name: each.i for each in node.attribute}
        window = given.get("local_window_size", 0)
        if given.get("sliding_window_cache", 0) and 0 < window <= _MOST_CACHED:
            found |= dict.fromkeys((name for name in node.input[3:5] if name), window)
    return found


def _head_dim(model: onnx.ModelProto, node: onnx.NodeProto, heads: int) -> int | None:
    """Head width of a GroupQueryAttention: from its output's shape, else its rotary table."""
    for value in model.graph.value_info:
        if value.name == node.output[0] and heads:
            hidden = _of_value(value).last()
            if hidden is not None:
                return hidden // heads
    cos_cache = 5 if node.domain == ops.DOMAIN else 7  # the input [positions, head_dim / 2]
    if len(node.input) > cos_cache:
        for tensor in model.graph.initializer:
            if tensor.name == node.input[cos_cache]:
                return 2 * tensor.dims[-1]
    return None


def _signature(
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    facts: _CacheFacts,
    *,
    shares_buffer: bool,
    labels: bool,
) -> Signature:
    names = {spec.name for spec in inputs}
    by_name = {spec.name: spec for spec in outputs}
    caches = [
        _cache(spec, by_name[present], facts)
        for spec in inputs
        if (present := _present_of(spec.name, by_name)) is not None
    ]
    kind = _kind(names, None if labels else by_name.get("logits"), caches)
    return Signature(kind, inputs, outputs, tuple(caches), shares_buffer and bool(caches), labels)


def _are_labels(logits: TensorSpec | None, model: onnx.ModelProto) -> bool:
    """Whether there is a logit for less than half of the tokens in the table of `input_ids`.

    Vocabularies of tables and heads differ by padding and added tokens, never by that much.
    """
    width = None if logits is None else logits.last()
    if width is None or logits is None or logits.rank != _LAST_AXIS_IS_TOKENS:
        return False
    rows = Lookups.of(model).rows.get(IDS)
    return rows is not None and 2 * width < rows


def _kind(names: Set[str], logits: TensorSpec | None, caches: Sequence[CacheSpec]) -> Kind:
    """What reads inputs of these names."""
    known = names <= {IDS, MASK, POSITIONS, TYPES, *SWITCHES, *(c.past for c in caches)}
    if IDS not in names or not known:
        return "other"
    token_wise = logits is not None and logits.rank in (None, _LAST_AXIS_IS_TOKENS)
    return "decoder" if caches or (token_wise and TYPES not in names) else "encoder"


def _present_of(past: str, outputs: Iterable[str]) -> str | None:
    """The output that continues a cache input: past_key_values.0.key -> present.0.key."""
    for prefix in ("past_key_values", "past"):
        if past.startswith(prefix):
            rest = past[len(prefix) :]
            for stem in ("present", "present_key_values"):
                if stem + rest in outputs:
                    return stem + rest
    return None


def _cache(spec: TensorSpec, present: TensorSpec, facts: _CacheFacts) -> CacheSpec:
    if spec.shape is None or spec.dtype is None or len(spec.shape) < _LAST_AXIS_IS_TOKENS:
        raise ModelError(f"cache input '{spec.name}' has no usable shape; export the model again")
    rank = len(spec.shape)
    sequence = _sequence_axis(spec.shape)
    window = facts.windows.get(spec.name)
    batch = rank - 4 if rank > 4 else 0  # an older form stacks key and value in front
    fixed: list[int] = []
    for axis, size in enumerate(spec.shape):
        other = present.shape[axis] if present.shape and len(present.shape) == rank else None
        if axis == sequence:
            fixed.append(window or 0)
        elif axis == batch:
            fixed.append(size if isinstance(size, int) and size > 0 else -1)
        elif isinstance(size, int) and size > 0:
            fixed.append(size)
        elif isinstance(other, int) and other > 0:
            fixed.append(other)
        else:
            known = facts.head_dim if axis == rank - 1 else facts.heads
            if known is None:
                raise ModelError(
                    f"cache input '{spec.name}': the size of axis {axis} ('{size}') is unknown; "
                    "put the model's genai_config.json beside it"
                )
            fixed.append(known)
    if math.prod(size for size in fixed if size > 0) > _MOST_CACHED:
        raise ModelError(f"cache input '{spec.name}' has no usable shape; export the model again")
    grows = None if window else sequence
    return CacheSpec(spec.name, present.name, spec.dtype, tuple(fixed), grows)


def _sequence_axis(shape: tuple[int | str | None, ...]) -> int | None:
    """The axis of positions, None where every size but that of the batch is fixed."""
    for axis, size in enumerate(shape):
        if isinstance(size, str) and ("past" in size or "seq" in size):
            return axis
    last_but_one = len(shape) - 2
    size = shape[last_but_one]
    return None if isinstance(size, int) and size > 0 else last_but_one


def _main_output(kind: Kind, outputs: tuple[TensorSpec, ...]) -> str:
    wanted = ("logits",) if kind == "decoder" else ("last_hidden_state", "token_embeddings")
    for name in wanted:
        if any(spec.name == name for spec in outputs):
            return name
    return outputs[0].name


def _of_value(value: onnx.ValueInfoProto) -> TensorSpec:
    if not value.type.HasField("tensor_type"):
        return TensorSpec(value.name, None, None)
    tensor = value.type.tensor_type
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    if not tensor.HasField("shape"):
        return TensorSpec(value.name, dtype, None)
    shape: list[int | str | None] = []
    for dim in tensor.shape.dim:
        if dim.HasField("dim_value"):
            shape.append(int(dim.dim_value))
        else:
            shape.append(dim.dim_param or None)
    return TensorSpec(value.name, dtype, tuple(shape))
