"""Models of a few hundred bytes that behave like the real kinds, and a tokenizer for them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = [f"w{i}" for i in range(40)]
SPECIAL = ["[UNK]", "[BOS]", "[EOS]"]
VOCABULARY = len(WORDS) + len(SPECIAL)
HIDDEN = 8
BOS, EOS = 1, 2

FLOAT, INT = TensorProto.FLOAT, TensorProto.INT64


def embedding(seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return (scale * np.random.default_rng(seed).standard_normal((VOCABULARY, HIDDEN))).astype("f4")


def tokenizer(*, template: str = "$A") -> Tokenizer:
    vocabulary = {word: i for i, word in enumerate(SPECIAL + WORDS)}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(SPECIAL)
    made.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("[BOS]", BOS), ("[EOS]", EOS)]
    )
    return made


def text(words: int, seed: int = 0) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, words))


def value(name: str, kind: int, shape: list) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def model_of(nodes: list, inputs: list, outputs: list, constants: dict) -> onnx.ModelProto:
    stored = [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, stored)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def decoder(weights: np.ndarray, *, cache: bool = True, head_dim: int | str = HIDDEN):
    """Logits from the running sum of embeddings: what was read before matters, in any order.

    The cache holds the embeddings read: cached and uncached runs must agree.
    """
    node = helper.make_node
    inputs = [value("input_ids", INT, ["batch", "sequence"])]
    outputs = [value("logits", FLOAT, ["batch", "sequence", VOCABULARY])]
    constants = {"E": weights, "Et": weights.T.copy(), "heads": np.array([1])}
    nodes = [node("Gather", ["E", "input_ids"], ["e"])]
    if cache:
        shape = ["batch", 1, "past_length", head_dim]
        for name in ("key", "value"):
            inputs.append(value(f"past_key_values.0.{name}", FLOAT, shape))
            present = ["batch", 1, "total_length", head_dim]
            outputs.append(value(f"present.0.{name}", FLOAT, present))
            nodes += [
                node("Unsqueeze", ["e", "heads"], [f"new_{name}"]),
                node(
                    "Concat",
                    [f"past_key_values.0.{name}", f"new_{name}"],
                    [f"present.0.{name}"],
                    axis=2,
                ),
            ]
        constants |= {"two": np.array(2), "axis2": np.array([2]), "end": np.array([2**62])}
        nodes += [
            node("CumSum", ["present.0.value", "two"], ["sums"]),
            node("Shape", ["past_key_values.0.value"], ["past_size"], start=2, end=3),
            node("Slice", ["sums", "past_size", "end", "axis2"], ["recent"]),
            node("Squeeze", ["recent", "heads"], ["state"]),
        ]
    else:
        constants["one"] = np.array(1)
        nodes.append(node("CumSum", ["e", "one"], ["state"]))
    nodes.append(node("MatMul", ["state", "Et"], ["logits"]))
    return model_of(nodes, inputs, outputs, constants)


def gqa_decoder(weights: np.ndarray, window: int = 0) -> onnx.ModelProto:
    """A decoder that attends with GroupQueryAttention, as onnxruntime-genai's builder writes it.

    With a `window`, to the last positions only, and its caches hold no others.
    """
    node = helper.make_node
    windowed = {"local_window_size": window, "sliding_window_cache": 1} if window else {}
    cache = ["batch", 1, "past_length", "kv_cache_dim"]
    present = ["batch", 1, "total_length", "kv_cache_dim"]
    inputs = [
        value("input_ids", INT, ["batch", "sequence"]),
        value("attention_mask", INT, ["batch", "total_length"]),
        value("past_key_values.0.key", FLOAT, cache),
        value("past_key_values.0.value", FLOAT, cache),
    ]
    outputs = [
        value("logits", FLOAT, ["batch", "sequence", VOCABULARY]),
        value("present.0.key", FLOAT, present),
        value("present.0.value", FLOAT, present),
    ]
    nodes = [
        node("Gather", ["E", "input_ids"], ["e"]),
        node("ReduceSum", ["attention_mask", "axis1"], ["length"], keepdims=0),
        node("Sub", ["length", "one"], ["last"]),
        node("Cast", ["last"], ["seqlens_k"], to=TensorProto.INT32),
        node("Shape", ["attention_mask"], ["total_1"], start=1, end=2),
        node("Squeeze", ["total_1"], ["total_0"]),
        node("Cast", ["total_0"], ["total"], to=TensorProto.INT32),
        node(
            "GroupQueryAttention",
            [
                *("e", "e", "e", "past_key_values.0.key", "past_key_values.0.value"),
                *("seqlens_k", "total"),
            ],
            ["attended", "present.0.key", "present.0.value"],
            domain="com.microsoft",
            num_heads=1,
            kv_num_heads=1,
            **windowed,
        ),
        node("MatMul", ["attended", "Et"], ["logits"]),
    ]
    constants = {"E": weights, "Et": weights.T.copy(), "axis1": np.array([1]), "one": np.array(1)}
    made = model_of(nodes, inputs, outputs, constants)
    made.graph.value_info.append(value("attended", FLOAT, ["batch", "sequence", HIDDEN]))
    return made


def state_decoder(weights: np.ndarray) -> onnx.ModelProto:
    """A decoder that adds up the last three tokens, and hands on the last two."""
    node = helper.make_node
    state = ["batch", HIDDEN, 2]
    nodes = [
        node("Gather", ["E", "input_ids"], ["e"]),
        node("Transpose", ["e"], ["x"], perm=[0, 2, 1]),
        node("Concat", ["past.0.conv", "x"], ["all"], axis=2),
        node("Slice", ["all", "minus_2", "end", "two"], ["present.0.conv"]),
        node("Slice", ["all", "zero", "minus_2", "two"], ["before"]),
        node("Slice", ["all", "one", "minus_1", "two"], ["between"]),
        node("Sum", ["before", "between", "x"], ["sum"]),
        node("Transpose", ["sum"], ["h"], perm=[0, 2, 1]),
        node("MatMul", ["h", "Et"], ["logits"]),
    ]
    numbers = {"minus_2": -2, "minus_1": -1, "zero": 0, "one": 1, "two": 2, "end": 1 << 30}
    constants = {name: np.array([number]) for name, number in numbers.items()}
    inputs = [
        value("input_ids", INT, ["batch", "sequence"]),
        value("past.0.conv", FLOAT, state),
    ]
    outputs = [
        value("logits", FLOAT, ["batch", "sequence", VOCABULARY]),
        value("present.0.conv", FLOAT, state),
    ]
    return model_of(nodes, inputs, outputs, {"E": weights, "Et": weights.T.copy(), **constants})


def encoder(weights: np.ndarray) -> onnx.ModelProto:
    """Token embeddings plus a trace of the token type, so that every input counts."""
    node = helper.make_node
    names = ("input_ids", "attention_mask", "token_type_ids")
    nodes = [
        node("Gather", ["E", "input_ids"], ["e"]),
        node("Add", ["attention_mask", "token_type_ids"], ["flags"]),
        node("Cast", ["flags"], ["flags_f"], to=FLOAT),
        node("Unsqueeze", ["flags_f", "axis"], ["flags_3"]),
        node("Mul", ["e", "flags_3"], ["last_hidden_state"]),
    ]
    inputs = [value(name, INT, ["batch", "sequence"]) for name in names]
    outputs = [value("last_hidden_state", FLOAT, ["batch", "sequence", HIDDEN])]
    return model_of(nodes, inputs, outputs, {"E": weights, "axis": np.array([2])})


def linear(batch: int | str = "batch") -> onnx.ModelProto:
    """A model of the kind "other": x [batch, 3] float, flag [batch] int64."""
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["y"]),
        helper.make_node("Identity", ["flag"], ["same"]),
    ]
    return model_of(
        nodes,
        [value("x", FLOAT, [batch, 3]), value("flag", INT, [batch])],
        [value("y", FLOAT, [batch, 2]), value("same", INT, [batch])],
        {"W": np.ones((3, 2), np.float32)},
    )


def save(
    model: onnx.ModelProto,
    folder: Path,
    *,
    template: str = "$A",
    config: dict | None = None,
    external: bool = False,
) -> Path:
    """Write a model folder with its tokenizer; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    options = (
        {"save_as_external_data": True, "location": "model.onnx.data", "size_threshold": 256}
        if external
        else {}
    )
    onnx.save(model, str(folder / "model.onnx"), **options)
    tokenizer(template=template).save(str(folder / "tokenizer.json"))
    if config is not None:
        (folder / "genai_config.json").write_text(json.dumps(config))
    return folder


def two_encoders(folder: Path) -> tuple[Path, Path, Path]:
    """An encoder, another one, and a text of 40 sentences."""
    exact, other = (save(encoder(embedding(seed)), folder / f"encoder{seed}") for seed in (0, 1))
    file = folder / "text.txt"
    file.write_text("\n\n".join(f"{text(9, seed=n)}." for n in range(40)))
    return exact, other, file


CONFIG = {
    "model": {
        "bos_token_id": BOS,
        "eos_token_id": [EOS],
        "vocab_size": VOCABULARY,
        "decoder": {"filename": "model.onnx", "head_size": HIDDEN, "num_key_value_heads": 1},
    }
}
