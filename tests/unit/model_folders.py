"""Tiny models that feed one another, in folders as exporters write them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from odd_models import model_of

WIDTH, WORDS, BINS = 64, 300, 32
FAR = 20.0
"""Where the values that encoders give lie: no noise looks like them."""


def _weights(seed: int, **shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        name: (random.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)
        for name, shape in shapes.items()
    }


def text_encoder() -> onnx.ModelProto:
    """What each token is, but for those that are masked, around FAR."""
    return model_of(
        "encoder (int64[batch, sequence] input_ids, int64[batch, sequence] attention_mask)"
        " => (float[batch, sequence, 64] last_hidden_state) {"
        " e = Gather (E, input_ids) m = Cast <to = 1> (attention_mask) u = Unsqueeze (m, axis)"
        " x = Mul (e, u) [fc] h = MatMul (x, w) t = Tanh (h)"
        " last_hidden_state = Add (t, far) }",
        **_weights(1, E=(WORDS, WIDTH), w=(WIDTH, WIDTH)),
        axis=np.array([2]),
        far=np.array(FAR, np.float32),
    )


def sound_encoder(output: str = "last_hidden_state") -> onnx.ModelProto:
    return model_of(
        f"encoder (float[batch, frames, {BINS}] input_features) => (float[batch, frames, 64]"
        f" {output}) {{ [fc] h = MatMul (input_features, w) t = Tanh (h)"
        f" {output} = Add (t, far) }}",
        **_weights(2, w=(BINS, WIDTH)),
        far=np.array(FAR, np.float32),
    )


def decoder(*, states: str = "encoder_hidden_states", masked: bool = True) -> onnx.ModelProto:
    """The next token from the last one and the mean of what an encoder gives."""
    mask = ", int64[batch, encoder_sequence] encoder_attention_mask" if masked else ""
    counted = (
        "m = Cast <to = 1> (encoder_attention_mask) u = Unsqueeze (m, axis2) k = Mul (c, u)"
        if masked
        else "k = Identity (c)"
    )
    return model_of(
        f"decoder (int64[batch, sequence] input_ids, float[batch, encoder_sequence, 64] {states}"
        f"{mask}) => (float[batch, sequence, 300] logits) {{"
        f" [cross] c = MatMul ({states}, wc) {counted} p = ReduceMean (k, axis1)"
        " e = Gather (E, input_ids) s = Add (e, p) [head] logits = MatMul (s, wo) }",
        **_weights(3, E=(WORDS, WIDTH), wc=(WIDTH, WIDTH), wo=(WIDTH, WORDS)),
        axis1=np.array([1]),
        axis2=np.array([2]),
    )


def stepping_decoders() -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """A decoder of a text's beginning, and one that goes on from its caches: the same weights."""
    weights = _weights(4, E=(WORDS, WIDTH), wv=(WIDTH, WIDTH), wo=(WIDTH, WIDTH), wh=(WIDTH, WORDS))
    weights |= {"heads": np.array([0, 0, 4, 16]), "flat": np.array([0, 0, 64])}
    start = (
        " e = Gather (E, input_ids) [v] f = MatMul (e, wv) r = Reshape (f, heads)"
        " n = Transpose <perm = [0, 2, 1, 3]> (r)"
    )
    # Attention that weighs all positions alike, those before included.
    end = (
        " s = Shape <start = 2, end = 3> (present_value) o = Expand (one, s) c = Cast <to = 1> (s)"
        " a = Div (o, c) q = Unsqueeze (a, front) z = MatMul (q, present_value)"
        " t = Transpose <perm = [0, 2, 1, 3]> (z) y = Reshape (t, flat) [o] w = MatMul (y, wo)"
        " x = Add (e, w) [head] logits = MatMul (x, wh) }"
    ).replace("present_value", "present.0.value")
    extra = {"one": np.ones(1, np.float32), "front": np.array([0, 1, 2])}
    past = "float[batch, 4, past_sequence, 16] past_key_values.0.value"
    outputs = "(float[batch, sequence, 300] logits, float[batch, 4, total, 16] present.0.value)"
    names = ("past_key_values.0.value", "present.0.value")

    def made(inputs: str, cache: str) -> onnx.ModelProto:
        text = f"decoder ({inputs}) => {outputs} {{{start} {cache} {end}"
        for name in names:  # the text form has no dots
            text = text.replace(name, name.replace(".", "_"))
        model = model_of(text, **weights, **extra)
        for name in names:
            _rename(model, name.replace(".", "_"), name)
        return model

    ids = "int64[batch, sequence] input_ids"
    return (
        made(ids, "present.0.value = Identity (n)"),
        made(
            f"{ids}, {past}",
            "present.0.value = Concat <axis = 2> (past_key_values.0.value, n)",
        ),
    )


def merged_decoder() -> onnx.ModelProto:
    """Both of `stepping_decoders` in one, as Optimum merges them: the weights are shared."""
    first, after = stepping_decoders()
    flag = onnx.helper.make_tensor_value_info("use_cache_branch", onnx.TensorProto.BOOL, [1])
    branches = {}
    for attribute, model in (("else_branch", first), ("then_branch", after)):
        graph = onnx.GraphProto(name=attribute)
        graph.node.extend(model.graph.node)
        graph.output.extend(model.graph.output)
        for value in (*graph.output, *filter(lambda node: node.name, graph.node)):
            value.name = f"{attribute}/{value.name}"
        for node in graph.node:
            for names in (node.input, node.output):
                kept = {each.name for each in (*after.graph.input, *after.graph.initializer)}
                names[:] = [n if n in kept else f"{attribute}/{n}" for n in names]
        branches[attribute] = graph
    outputs = [each.name for each in after.graph.output]
    chosen = onnx.helper.make_node("If", [flag.name], outputs, name="merged", **branches)
    merged = onnx.ModelProto()
    merged.CopyFrom(after)
    merged.graph.input.append(flag)
    del merged.graph.node[:]
    merged.graph.node.append(chosen)
    return merged


def _rename(model: onnx.ModelProto, old: str, new: str) -> None:
    for value in (*model.graph.input, *model.graph.output):
        value.name = new if value.name == old else value.name
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [new if name == old else name for name in names]


def table() -> onnx.ModelProto:
    """Embeddings too small for recipes to quantize."""
    return model_of(
        "embed (int64[batch, sequence] input_ids) => (float[batch, sequence, 64] inputs_embeds)"
        " { e = Gather (E, input_ids) inputs_embeds = Add (e, far) }",
        **_weights(5, E=(40, WIDTH)),
        far=np.array(FAR, np.float32),
    )


def body() -> onnx.ModelProto:
    """The rest of a model whose embeddings are a graph of their own."""
    return model_of(
        "body (float[batch, sequence, 64] inputs_embeds, int64[batch, total] attention_mask)"
        " => (float[batch, sequence, 300] logits) { m = Cast <to = 1> (attention_mask)"
        " u = Unsqueeze (m, axis) x = Mul (inputs_embeds, u) [head] logits = MatMul (x, w) }",
        **_weights(6, w=(WIDTH, WORDS)),
        axis=np.array([2]),
    )


def part(source: str, result: str, *, width: int = WIDTH, seed: int = 7) -> onnx.ModelProto:
    """A layer of a decoder that is cut into several."""
    return model_of(
        f"part (float[batch, sequence, 64] {source}) => (float[batch, sequence, {width}] {result})"
        f" {{ [{result}_layer] {result} = MatMul ({source}, w) }}",
        **_weights(seed, w=(WIDTH, width)),
    )


def pipeline(folder: Path) -> Path:
    """A decoder in four parts, of which two do the same for texts and for one token."""
    ends = {"inputs": ["inputs_embeds"], "outputs": ["hidden_out"]}
    parts = {
        "embeddings": {"filename": "embed.onnx"},
        "prompt-processor": {
            **ends,
            "filename": "prompt.onnx",
            "run_on_token_gen": False,
            "output_names_forwarder": {"hidden_out": "hidden_in"},
            "session_options": {"intra_op_num_threads": 1},
        },
        "token-generator": {
            **ends,
            "filename": "iterator.onnx",
            "run_on_prompt": False,
            "output_names_forwarder": {"hidden_out": "hidden_in"},
        },
        "transformer-head": {"filename": "lm_head.onnx"},
    }
    return save(
        folder,
        {"model": {"type": "decoder-pipeline", "decoder": {"pipeline": [parts]}}},
        embed=table(),
        prompt=part("inputs_embeds", "hidden_out"),
        iterator=part("inputs_embeds", "hidden_out"),
        lm_head=part("hidden_in", "logits", width=WORDS, seed=8),
    )


def save(folder: Path, config: dict | None = None, **models: onnx.ModelProto) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, model in models.items():
        onnx.save(model, folder / f"{name}.onnx")
    if config is not None:
        (folder / "genai_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text("{}")
    return folder


def pair(folder: Path) -> Path:
    return save(folder, encoder=text_encoder(), decoder=decoder())
