"""Hostile ONNX files: each is compiled, or refused in one line that says what is wrong where."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command_line import qc, refusal
from odd_models import K, N, W, linear, model_of, normal
from onnx import AttributeProto, ModelProto, TensorProto, helper
from seed_models import SEEDS

from qcompiler.errors import FaultError, ModelError, QcError
from qcompiler.models import open_package
from qcompiler.passes import registry
from qcompiler.session import create_session

Change = Callable[[ModelProto], object]


def written(folder: Path, made: ModelProto | bytes) -> Path:
    path = folder / "m.onnx"
    path.write_bytes(made if isinstance(made, bytes) else made.SerializeToString())
    return path


def changed(change: Change, seed: Callable[[], ModelProto] = lambda: linear(w=W)) -> ModelProto:
    made = ModelProto()
    made.CopyFrom(seed())
    change(made)
    return made


def seed(name: str) -> Callable[[], ModelProto]:
    return lambda: SEEDS[name]().model


# Not UTF-8: every place where a string stands.

MARK = "marked"


def marked(place: Callable[[ModelProto], tuple[object, str]]) -> bytes:
    """A model that has bytes that are no text in one field."""
    made = SEEDS["functions"]().model
    owner, field = place(made)
    value = getattr(owner, field)
    if isinstance(value, str):
        setattr(owner, field, MARK)
    else:
        value[0] = MARK
    return made.SerializeToString().replace(MARK.encode(), b"\xff" * len(MARK))


def metadata(made: ModelProto) -> tuple[object, str]:
    return made.metadata_props.add(key="k", value="v"), "value"


def dim(made: ModelProto) -> tuple[object, str]:
    return made.graph.input[0].type.tensor_type.shape.dim[0], "dim_param"


PLACES: dict[str, Callable[[ModelProto], tuple[object, str]]] = {
    "producer": lambda m: (m, "producer_name"),
    "metadata": metadata,
    "opset": lambda m: (m.opset_import[1], "domain"),
    "graph": lambda m: (m.graph, "name"),
    "input": lambda m: (m.graph.input[0], "name"),
    "size": dim,
    "initializer": lambda m: (m.graph.initializer[0], "name"),
    "data file": lambda m: (m.graph.initializer[0].external_data.add(), "value"),
    "node": lambda m: (m.graph.node[0], "name"),
    "operator": lambda m: (m.graph.node[0], "op_type"),
    "domain": lambda m: (m.graph.node[0], "domain"),
    "read": lambda m: (m.graph.node[0], "input"),
    "written": lambda m: (m.graph.node[0], "output"),
    "attribute": lambda m: (m.graph.node[0].attribute[0], "name"),
    "function": lambda m: (m.functions[0], "name"),
    "node of a function": lambda m: (m.functions[0].node[0], "name"),
}


@pytest.mark.parametrize("place", PLACES)
def test_names_that_are_no_text(tmp_path: Path, place: str) -> None:
    assert "is not UTF-8" in refusal("compile", written(tmp_path, marked(PLACES[place])))


def weight(**fields: object) -> Change:
    """Other fields of the weight; None drops one."""

    def change(made: ModelProto) -> None:
        tensor = made.graph.initializer[0]
        for name, value in fields.items():
            tensor.ClearField(name)
            if isinstance(value, list):
                getattr(tensor, name).extend(value)
            elif value is not None:
                setattr(tensor, name, value)

    return change


def sparse(indices: list[int], dims: list[int], shape: tuple[int, ...] = (2,)) -> Change:
    def change(made: ModelProto) -> None:
        places = helper.make_tensor("places", TensorProto.INT64, list(shape), indices)
        values = helper.make_tensor("s", TensorProto.FLOAT, [2], [1.0, 2.0])
        made.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, dims))

    return change


def output_type(kind: int, which: str = "output") -> Change:
    def change(made: ModelProto) -> None:
        getattr(made.graph, which)[0].type.tensor_type.elem_type = kind

    return change


def opset(version: int, domain: str = "") -> Change:
    def change(made: ModelProto) -> None:
        del made.opset_import[:]
        made.opset_import.append(helper.make_opsetid(domain, version))

    return change


def attribute(op: str, name: str, value: object = None, kind: int | None = None) -> Change:
    """Another value of an attribute of the first node of an operator."""

    def change(made: ModelProto) -> None:
        node = next(node for node in made.graph.node if node.op_type == op)
        for each in [each for each in node.attribute if each.name == name]:
            node.attribute.remove(each)
        if kind is not None:
            node.attribute.append(AttributeProto(name=name, type=kind))
        elif value is not None:
            node.attribute.append(helper.make_attribute(name, value))

    return change


def by_reference(made: ModelProto) -> None:
    node = next(node for node in made.graph.node if node.op_type == "Gemm")
    node.attribute[0].ref_attr_name = "outer"


def calls(*names: str) -> Change:
    """Functions of these names, each calling the next, the last the first."""

    def change(made: ModelProto) -> None:
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid("local", 1)]
        for name, called in zip(names, (*names[1:], names[0]), strict=True):
            body = [helper.make_node(called, ["a"], ["b"], domain="local")]
            made.functions.append(helper.make_function("local", name, ["a"], ["b"], body, opsets))
        made.opset_import.append(helper.make_opsetid("local", 1))
        made.graph.node.append(helper.make_node(names[0], ["x"], ["unread"], domain="local"))

    return change


def no_input(made: ModelProto) -> None:
    made.graph.input[0].ClearField("type")


def two_outputs(made: ModelProto) -> None:
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, [1]))
    made.graph.output.append(helper.make_value_info(made.graph.output[0].name, kind))


def two_inputs(made: ModelProto) -> None:
    made.graph.input.append(made.graph.input[0])


def written_twice(made: ModelProto) -> None:
    made.graph.node.append(helper.make_node("Relu", ["x"], ["y"]))


def cycle(made: ModelProto) -> None:
    made.graph.node[0].input[0] = "back"
    made.graph.node.append(helper.make_node("Relu", ["y"], ["back"]))


def nobody(made: ModelProto) -> None:
    made.graph.node[0].input[0] = "two\nlines"


def fewer_inputs(made: ModelProto) -> None:
    made.graph.node[0].input.pop()


def body_inputs(made: ModelProto) -> None:
    next(node for node in made.graph.node if node.op_type == "Loop").input.pop()


def behind(node: str, version: int = 21, **weights: np.ndarray) -> ModelProto:
    """A layer, and a node behind it; in its text `_` is an input or output of no name."""
    text = f"g (float[4, 64] x) => (float[4, 96] h) {{ h = MatMul(x, w) {node} }}"
    made = model_of(text, w=W, **weights)
    opset(version)(made)
    made.opset_import.append(helper.make_opsetid("ai.onnx.ml", 4))
    last = made.graph.node[-1]
    for names in (last.input, last.output):
        names[:] = ["" if name == "_" else name for name in names]
    return made


def endless(first: str = "go", turns: int = (1 << 63) - 1, after: str = "Identity") -> ModelProto:
    """A Loop, by its first condition, its most turns, and what its body makes of the condition."""
    return model_of(
        f"""g (float[n, 64] x, bool c) => (float[n, 64] y) {{
          h = MatMul(x, w)
          y = Loop (most, {first}, h) <
            body = turn (int64 i, bool on, float[n, 64] state)
              => (bool more, float[n, 64] next) {{
              more = {after}(on)
              next = Tanh(state)
            }}
          >
        }}""",
        w=normal(K, K),
        most=np.array(turns),
        go=np.array(True),
        stop=np.array(False),
    )


def vast_sequence(made: ModelProto) -> None:
    made.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 1 << 62


def vast_between(made: ModelProto) -> None:
    """A wrong size of what ONNX Runtime infers itself, between inputs and outputs and of one."""
    vast = helper.make_tensor_value_info("h", TensorProto.FLOAT, [1 << 62, 32])
    made.graph.value_info.append(vast)
    made.graph.output.append(vast)


def vast_cache(made: ModelProto) -> None:
    value = next(each for each in made.graph.input if each.name.endswith(".0.key"))
    value.type.tensor_type.shape.dim[0].dim_value = 1 << 61


REFUSED: dict[str, tuple[ModelProto | bytes, str]] = {
    "no bytes": (b"", "holds no graph"),
    "text": (b"hello\n" * 9, "is not an ONNX model"),
    "too deep": (b"\x3a\xff\x7f" * 500, "is not an ONNX model"),
    "no IR version": (changed(lambda m: m.ClearField("ir_version")), "its IR version"),
    "an IR version of the future": (changed(lambda m: setattr(m, "ir_version", 1 << 60)), ""),
    "no opset": (changed(lambda m: m.ClearField("opset_import")), "opset"),
    "opset 0": (changed(opset(0)), "there is no opset 0"),
    "opset -1": (changed(opset(-1)), "there is no opset -1"),
    "an endless opset": (changed(opset(1 << 60)), "there is no opset 1152921504606846976"),
    "the opset of nobody": (changed(opset(1, "nobody")), "opset"),
    "two opsets": (
        changed(lambda m: m.opset_import.append(helper.make_opsetid("", 13))),
        "it has two opsets, 21 and 13",
    ),
    "no graph": (changed(lambda m: m.graph.Clear()), ""),
    "no nodes": (changed(lambda m: m.graph.ClearField("node")), ""),
    "no outputs": (changed(lambda m: m.graph.ClearField("output")), ""),
    "no inputs": (changed(lambda m: m.graph.ClearField("input")), "'x'"),
    "an input twice": (changed(two_inputs), "two inputs are named 'x'"),
    "an output twice": (changed(two_outputs), "output 'y' is there twice, with two types"),
    "an input without type": (changed(no_input), "input 'x' has no type"),
    "an input of type 0": (changed(output_type(0, "input")), "'x' has an unknown element type"),
    "an output of type 0": (changed(output_type(0)), "'y' has an unknown element type"),
    "an output of type 99": (changed(output_type(99)), "'y' has an unknown element type"),
    "a name written twice": (changed(written_twice), "'y'"),
    "a cycle": (changed(cycle), "cycle"),
    "a name of two lines": (changed(nobody), "'two lines'"),
    "an unknown operator": (changed(lambda m: setattr(m.graph.node[0], "op_type", "No")), "No"),
    "an unknown domain": (changed(lambda m: setattr(m.graph.node[0], "domain", "no")), "no"),
    "fewer inputs": (changed(fewer_inputs), "has 1 inputs, not 2 to 2"),
    "an attribute of another type": (
        changed(attribute("Gemm", "alpha", "text"), seed("stack")),
        "attribute 'alpha' of node 'fc1' (Gemm) has the wrong type, STRING",
    ),
    "an attribute of no type": (
        changed(attribute("Gemm", "alpha", kind=0), seed("stack")),
        "'alpha' of node 'fc1' (Gemm) has no type",
    ),
    "an attribute without value": (
        changed(attribute("Loop", "body", kind=AttributeProto.GRAPH), seed("bodies")),
        "attribute 'body' of a node (Loop) has no value",
    ),
    "a type that is none": (
        changed(attribute("Cast", "to", 0), seed("half")),
        "(Cast) is no element type: 0",
    ),
    "an attribute less": (
        changed(attribute("Cast", "to"), seed("half")),
        "(Cast) has no attribute 'to'",
    ),
    "a reference outside of functions": (
        changed(by_reference, seed("stack")),
        "of node 'fc1' (Gemm) refers to one of a function",
    ),
    "heads that don't fit 32 bits": (
        changed(attribute("GroupQueryAttention", "num_heads", 1 << 40), seed("genai")),
        "attribute 'num_heads' of a node (GroupQueryAttention) can't be 1099511627776",
    ),
    "a loop without end": (endless(), "(Loop) never ends"),
    "a loop without end if it begins": (endless("c"), "(Loop) never ends"),
    "a sequence without end": (
        changed(vast_sequence, seed("attention")),
        "are more than the 4 GiB that may be held in memory",
    ),
    "a cache without end": (
        changed(vast_cache, seed("genai")),
        "cache input 'past_key_values.0.key' has no usable shape",
    ),
    "blocks of nothing": (
        changed(attribute("MatMulNBits", "block_size", 0), seed("quantized")),
        "attribute 'block_size' of node 'four' (MatMulNBits) can't be 0",
    ),
    "an axis that doesn't fit 32 bits": (
        behind("a, b, c = LayerNormalization<axis = 2147483648>(h, h)"),
        "attribute 'axis' of a node (LayerNormalization) can't be 2147483648",
    ),
    "batch dimensions below none": (
        behind("y = GatherND<batch_dims = -3>(h, i)"),
        "attribute 'batch_dims' of a node (GatherND) can't be -3",
    ),
    "no heads": (
        behind("y = Attention<q_num_heads = 0, kv_num_heads = 1>(h, h, h)", 23),
        "attribute 'q_num_heads' of a node (Attention) can't be 0",
    ),
    "no groups": (
        behind("y = ConvTranspose<group = 0>(h, h)"),
        "attribute 'group' of a node (ConvTranspose) can't be 0",
    ),
    "more outputs than said": (
        behind("a, b, c = Split<num_outputs = 2>(h)"),
        "a node (Split) has 3 outputs, and says that it has 2",
    ),
    "a part without a name": (behind("a, _ = Split<num_outputs = 2>(h)"), "an output of no name"),
    "no first input": (behind("y = EyeLike(_)"), "(EyeLike) has no input 0, 'input'"),
    "no second of many": (behind("y = Sum(h, _)"), "(Sum) has no input 1, 'data_0'"),
    "no input of another domain": (
        behind("y = ai.onnx.ml.LabelEncoder(_)"),
        "(LabelEncoder) has no input 0, 'X'",
    ),
    "an empty bias": (behind("y = LayerNormalization(h, h, _)"), "an input of no name"),
    "an empty axis": (behind("y = DFT(h, _, _)"), "an input of no name"),
    "a loop that gives its body less": (
        changed(body_inputs, seed("bodies")),
        "(Loop) and what it holds differ",
    ),
    "a function that calls itself": (changed(calls("f")), "function 'f' calls itself"),
    "functions that call each other": (changed(calls("f", "g", "h")), "calls itself"),
    "one function twice": (
        changed(lambda m: m.functions.append(m.functions[0]), seed("functions")),
        "two functions are named",
    ),
    "no values": (changed(weight(raw_data=None)), "'w' holds 0 values in float_data"),
    "2^124 values": (changed(weight(dims=[1 << 62] * 2)), "more values than any file"),
    "2^56 values": (changed(weight(dims=[1 << 28] * 2)), "its shape and type need"),
    "strings as bytes": (changed(weight(data_type=8)), "holds strings as bytes"),
    "strings as weights": (
        model_of(
            "g (float[n, 64] x) => (float[n, 96] y) { y = MatMul(x, w) }",
            w=np.full((K, N), "a", object),
        ),
        "",
    ),
    "no rows": (linear(w=np.zeros((0, N), np.float32)), ""),
    "no columns": (linear(w=np.zeros((K, 0), np.float32)), ""),
    "a scalar": (linear(w=np.float32(1)), ""),
    "sparse values elsewhere": (changed(sparse([1, 99], [8])), "'s' has values outside its shape"),
    "sparse values before": (changed(sparse([-1, 1], [8])), "'s' has values outside its shape"),
    "fewer places than values": (changed(sparse([1], [8], (1,))), "2] values and indices of"),
    "a large sparse tensor": (
        changed(sparse([1, 2], [1 << 20, 1 << 20])),
        "'s' would take more than 1 GiB",
    ),
    "text that is not UTF-8": (
        changed(
            lambda m: m.graph.initializer.append(
                helper.make_tensor("t", TensorProto.STRING, [1], [b"\xff"])
            )
        ),
        "tensor 't' holds text that is not UTF-8",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(tmp_path: Path, name: str) -> None:
    made, cause = REFUSED[name]
    told = refusal("compile", written(tmp_path, made))
    assert cause in told
    assert "failed on this model" not in told
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def annotated(made: ModelProto) -> None:
    for value in "ab":
        made.metadata_props.add(key="k", value=value)
    made.graph.quantization_annotation.add(tensor_name="nobody")
    made.training_info.add().algorithm.CopyFrom(made.graph)


def typed_again(made: ModelProto) -> None:
    made.graph.value_info.append(helper.make_tensor_value_info("h", 0, [1]))
    made.graph.value_info.append(helper.make_tensor_value_info("h", 99, [1]))


def two_sets(made: ModelProto) -> None:
    made.graph.initializer[0].float_data.extend([1.0, 2.0])


def two_types(made: ModelProto) -> None:
    """Values in the field of another type, more than those of the tensor."""
    value = made.graph.node[0].attribute[0].t
    assert value.int64_data
    value.double_data.extend([0.0] * 1024)


def noted(made: ModelProto) -> None:
    made.graph.node[0].attribute[0].t.doc_string = "five " * 1000


def no_type(made: ModelProto) -> None:
    made.graph.output[0].ClearField("type")


def deep(levels: int) -> Change:
    """A product in an If in an If, and so on."""

    def change(made: ModelProto) -> None:
        node = made.graph.node.pop()
        made.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
        for level in range(levels):
            node.output[0] = f"y{level}"
            value = helper.make_tensor_value_info(f"y{level}", TensorProto.FLOAT, None)
            body = helper.make_graph([node], f"g{level}", [], [value])
            other = helper.make_node("MatMul", ["x", "w"], [f"e{level}"])
            value = helper.make_tensor_value_info(f"e{level}", TensorProto.FLOAT, None)
            left = helper.make_graph([other], f"e{level}", [], [value])
            node = helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=left)
        made.graph.node.append(node)

    return change


def negative(made: ModelProto) -> None:
    for value in (made.graph.input[0], made.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = -1


def local_opset(made: ModelProto) -> None:
    """Only the functions say which opset their operators are of."""
    del made.opset_import[0]


def twice(made: ModelProto) -> None:
    """ONNX Runtime takes two Constant nodes of one name."""
    first = next(node for node in made.graph.node if node.op_type == "Constant")
    made.graph.node.insert(0, first)


def older_functions(made: ModelProto) -> None:
    """Functions that are not inlined, as their opset is another; the second calls the first."""
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid("local", 1)]
    for name, domain, op in (("outer", "local", "inner"), ("inner", "", "Relu")):
        node = helper.make_node(op, ["a"], ["b"], domain=domain)
        made.functions.append(helper.make_function("local", name, ["a"], ["b"], [node], opsets))


PLAIN = linear(w=W).SerializeToString()
COMPILED: dict[str, ModelProto | bytes] = {
    "annotations and training": changed(annotated),
    "unknown types between": changed(typed_again),
    "an output without type": changed(no_type),
    "two sets of values": changed(two_sets),
    "values of another type": changed(two_types, seed("bodies")),
    "a small value with a long note": changed(noted, seed("bodies")),
    "wrong sizes of an output that a node reads": model_of(
        """g (float[n, 64] x) => (float[n, 96] y, float[n, 70] h) {
          h = MatMul(x, v)
          y = MatMul(h, w)
        }""",
        v=normal(K, K),
        w=W,
    ),
    "negative sizes": changed(negative),
    "a size that no memory holds": changed(vast_between, seed("stack")),
    "a constant twice": changed(twice, seed("bodies")),
    "functions of another opset, and bodies": changed(older_functions, seed("bodies")),
    "an opset that functions alone have": changed(local_opset, seed("functions")),
    "inputs left out": behind("y = Clip(h, _, c)", c=normal()),
    "a needed input that nobody reads": behind("y = Resize(h, _, s)", 11, s=np.ones(2, np.float32)),
    "a loop that does not begin": endless("stop"),
    "a loop of three turns": endless(turns=3),
    "a loop that its body ends": endless(after="Not"),
    "an opset twice": changed(lambda m: m.opset_import.append(helper.make_opsetid("ai.onnx", 21))),
    "unknown fields": PLAIN + b"\xf8\x3f\x05\xfa\x3f\x03abc",
    "groups": PLAIN + b"\xfb\x07" * 20 + b"\xfc\x07" * 20,
    "a name of two lines": changed(lambda m: setattr(m.graph.node[0], "name", "two\nlines")),
    "a body in twelve others": changed(deep(12)),
    "many words": model_of(
        """g (float[n, 64] x) => (float[n, 96] y, string[n] label) {
          y = MatMul(x, w)
          best = ArgMax <axis = 1, keepdims = 0> (y)
          label = Gather(words, best)
        }""",
        w=W,
        words=np.array([f"word {i}" for i in range(300)], object),
    ),
}


@pytest.mark.parametrize("name", COMPILED)
def test_what_is_compiled(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, COMPILED[name])
    result = qc("compile", path, "-r", "rtn", "-t", "qdq", "-o", tmp_path / "o.onnx")
    assert result.exit_code == 0, result.stderr
    create_session(tmp_path / "o.onnx")


# What is said where the compiler itself trips.


@pytest.fixture
def trips(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object) -> None:
        raise KeyError("axis")

    monkeypatch.setattr(registry()["canonicalize"], "run", run)


def test_a_fault_on_a_sound_model_is_told_as_one(tmp_path: Path, trips: None) -> None:
    told = refusal("compile", written(tmp_path, linear(w=W)))
    assert "pass 'canonicalize' failed on this model (KeyError: 'axis')" in told


def test_a_fault_on_an_unsound_model_is_the_models(tmp_path: Path, trips: None) -> None:
    made = changed(lambda m: m.graph.node.append(helper.make_node("Sin", ["x"], ["z"], axis=1)))
    told = refusal("compile", written(tmp_path, made))
    assert "ONNX Runtime refuses it" in told
    assert "axis" in told


@pytest.mark.parametrize(
    ("node", "cause"),
    [
        ("LayerNormalization<axis = -9>(h, v)", "ONNX Runtime refuses it"),
        ("Gather(h, i)", "does not run on the calibration data"),
    ],
)
def test_a_source_that_does_not_run_is_named(tmp_path: Path, node: str, cause: str) -> None:
    made = model_of(
        f"g (float[4, 64] x) => (float[4, 96] y) {{ h = MatMul(x, w) y = {node} }}",
        w=W,
        v=np.ones(N, np.float32),
        i=np.full(4, 100),
    )
    path = written(tmp_path, made)
    told = refusal("compile", path, "--recipe", "rtn")
    assert told.startswith(f"error: {path}")
    assert cause in told


def test_messages_are_one_printable_line() -> None:
    assert str(QcError("a\n  b\x1b[2Jc\0")) == "a b\\x1b[2Jc\\x00"
    assert str(FaultError("é 漢 ' \"")) == "é 漢 ' \""


def test_it_is_checked_when_opened(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="two inputs are named 'x'"):
        open_package(written(tmp_path, changed(two_inputs)))
    assert normal(1).size == 1
