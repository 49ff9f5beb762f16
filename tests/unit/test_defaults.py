"""Default data: what an input is taken for, and that the model runs on what is drawn."""

from __future__ import annotations

import numpy as np
import odd_models as odd
import onnx
import pytest
import tiny_models as tiny
from onnx import TensorProto, helper, numpy_helper

import qcompiler
from qcompiler.calibration.sources import load_source
from qcompiler.calibration.supply import short
from qcompiler.errors import CalibrationError, QcError
from qcompiler.ir.io import import_proto
from qcompiler.lookups import Lookups
from qcompiler.models import open_package
from qcompiler.session import create_session

E, P, T = odd.normal(50, 8), odd.normal(24, 8), odd.normal(2, 8)
PLACES = np.arange(24)[None]
AXES = {"zero": np.array([0]), "one": np.array([1]), "two": np.array([2])}


def package_of(tmp_path, text: str, **weights):
    made = odd.model_of(text, **AXES, **weights)
    for domain, version in (("com.microsoft", 1), ("ai.onnx.ml", 3)):
        made.opset_import.append(helper.make_opsetid(domain, version))
    onnx.save(made, tmp_path / "model.onnx")
    return open_package(tmp_path / "model.onnx")


def drawn(package, spec="random", **options):
    """Feeds of default data, which the model runs on."""
    data = load_source(spec, package, samples=4, **options)
    session = create_session(package.onnx_path)
    for feed in data.feeds:
        session.run(None, feed)
    return data


TABLES = {
    "named otherwise": "g (int64[b, s] tokens) => (float[b, s, 8] y) { y = Gather(E, tokens) }",
    "int32 behind a Cast": """g (int32[b, s] tokens) => (float[b, s, 8] y) {
        wide = Cast <to = 7> (tokens) y = Gather(E, wide)
    }""",
    "reshaped and clipped": """g (int64[b, s] tokens) => (float[r, 8] y) {
        least = Constant <value = int64 {0}> () most = Constant <value = int64 {49}> ()
        flat = Constant <value_ints = [-1]> ()
        kept = Clip(tokens, least, most) row = Reshape(kept, flat) y = Gather(E, row)
    }""",
    "shifted": """g (int64[b, s] tokens) => (float[b, s, 8] y) {
        from = Constant <value_int = 10> () more = Add(tokens, from) y = Gather(E, more)
    }""",
    "a transposed table": """g (int64[b, s] tokens) => (float[b, s, 8] y) {
        turned = Transpose <perm = [1, 0]> (E) back = Transpose <perm = [1, 0]> (turned)
        y = Gather(back, tokens)
    }""",
    "in a branch": """g (int64[b, s] tokens) => (float[b, s, 8] y) {
        yes = Constant <value = bool {1}> ()
        y = If (yes) <then_branch = a () => (float[b, s, 8] p) { p = Gather(E, tokens) },
            else_branch = c () => (float[b, s, 8] q) { q = Gather(E, tokens) }>
    }""",
}


@pytest.mark.parametrize("name", TABLES)
def test_ids_are_drawn_from_the_rows_they_index(tmp_path, name):
    data = drawn(package_of(tmp_path, TABLES[name], E=E))
    ids = np.concatenate([feed["tokens"] for feed in data.feeds])
    assert 25 < ids.max() < (40 if name == "shifted" else 50)
    assert f"ids below {40 if name == 'shifted' else 50} for 'tokens'" in data.description


def test_ids_that_a_function_looks_up(tmp_path):
    made = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["" : 21, "own" : 1]>
    g (int64[b, s] tokens) => (float[b, s, 8] y) { y = own.embed(tokens, E) }
    <domain: "own", opset_import: ["" : 21]>
    embed (ids, table) => (v) { v = Gather(table, ids) }""")
    made.graph.initializer.append(numpy_helper.from_array(E, "E"))
    onnx.save(made, tmp_path / "model.onnx")
    assert "ids below 50" in drawn(open_package(tmp_path / "model.onnx")).description


def test_a_table_that_is_sparse(tmp_path):
    made = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["" : 21]>
    g (int64[b, s] tokens) => (float[b, s, 8] y) {
        turned = Transpose <perm = [1, 0]> (E) back = Transpose <perm = [1, 0]> (turned)
        y = Gather(back, tokens)
    }""")
    sparse = made.graph.sparse_initializer.add(dims=E.shape)
    sparse.values.CopyFrom(numpy_helper.from_array(np.ones(3, np.float32), "E"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.array([3, 77, 399])))
    onnx.save(made, tmp_path / "model.onnx")
    assert "ids below 50 for 'tokens'" in drawn(open_package(tmp_path / "model.onnx")).description


def test_a_table_turned_in_more_axes_than_it_has(tmp_path):
    text = """g (int64[b, s] tokens) => (float[b, s, 8] y) {
        turned = Transpose <perm = [1, 0]> (flat) y = Gather(turned, tokens)
    }"""
    path = package_of(tmp_path, text, flat=E.reshape(-1)).onnx_path
    with pytest.raises(QcError, match="holds nothing this recipe can quantize"):
        qcompiler.compile(path, output=tmp_path / "out.onnx")


DECODER = """g (int64[batch, seq] decoder_ids, int64[batch, enc] encoder_attention_mask,
    float[batch, enc, 8] encoder_hidden_states, float[batch, 3, side, side] pixels)
    => (float[batch, seq, 8] y, float[batch, 3, side, side] same)
{
    e = Gather(E, decoder_ids) m = Cast <to = 1> (encoder_attention_mask)
    m3 = Unsqueeze(m, two) masked = Mul(encoder_hidden_states, m3)
    sum = ReduceSum(masked, one) y = Add(e, sum) same = Neg(pixels)
}"""


def test_inputs_share_the_sizes_of_their_symbols(tmp_path):
    feed = drawn(package_of(tmp_path, DECODER, E=E)).feeds[0]
    assert feed["decoder_ids"].shape == (1, 64)
    mask = feed["encoder_attention_mask"]
    assert mask.all() and mask.shape == feed["encoder_hidden_states"].shape[:2]
    assert feed["pixels"].shape == (1, 3, 224, 224)


def test_masks_of_a_size_of_their_own_fit_what_they_mask(tmp_path):
    text = DECODER.replace("int64[batch, enc] enc", "int64[batch, total] enc")
    drawn(package_of(tmp_path, text, E=E))


def test_lengths_and_switches(tmp_path):
    text = """g (int64[n, time] x, int64[n] x_lengths, int64[n] speaker, int64[n] odd)
        => (float[n, time, 8] y, int64[n] left, float[n, 8] s)
    { y = Gather(E, x) left = Add(x_lengths, odd) s = Gather(T, speaker) }"""
    data = drawn(package_of(tmp_path, text, E=E, T=T))
    assert {feed["x_lengths"][0] for feed in data.feeds} == {64}
    assert {feed["speaker"][0] for feed in data.feeds} <= {0, 1}
    assert "0 or 1, a guess, for 'odd'" in data.description


def test_caches_of_a_decoder_with_other_inputs_are_empty(tmp_path):
    made = tiny.decoder(tiny.embedding())
    made.graph.input.append(tiny.value("shift", tiny.FLOAT, ["batch", 1, 1]))
    made.graph.node[-1].output[0] = "scores"
    made.graph.node.append(helper.make_node("Add", ["scores", "shift"], ["logits"]))
    feed = drawn(open_package(tiny.save(made, tmp_path / "d"))).feeds[0]
    assert feed["past_key_values.0.key"].shape == (1, 1, 0, tiny.HIDDEN)
    assert feed["input_ids"].shape == (1, 64)


POSITIONS = {
    "cut from a constant": """least = Constant <value_ints = [0]> ()
        length = Shape <start = 1, end = 2> (ids) at = Slice(places, least, length, one)
        p = Gather(P, at)""",
    "counted": """length = Shape <start = 1> (ids) many = Squeeze(length)
        start = Constant <value_int = 0> () step = Constant <value_int = 1> ()
        at = Range(start, many, step) p = Gather(P, at)""",
    "counted from behind a cache": """length = Shape <start = 1> (ids) many = Squeeze(length)
        start = Constant <value_int = 0> () step = Constant <value_int = 1> ()
        size = Shape <start = 0, end = 1> (cached) read = Squeeze(size)
        new = Range(start, many, step) at = Add(new, read)
        rows = Unsqueeze(at, one) p = GatherND(P, rows)""",
    "summed up": """pad = Constant <value_int = -1> () no = Equal(ids, pad) yes = Not(no)
        flags = Cast <to = 7> (yes) axis = Constant <value_int = 1> ()
        sums = CumSum(flags, axis) at = Mul(sums, flags) p = Gather(P, at)""",
    "a cache that is cut": """least = Constant <value_ints = [0]> ()
        length = Shape <start = 1, end = 2> (ids) p = Slice(P, least, length, zero)""",
}


@pytest.mark.parametrize("name", POSITIONS)
@pytest.mark.parametrize("spec", ["random", "random-tokens"])
def test_texts_are_no_longer_than_the_positions(tmp_path, name, spec):
    ids = "input_ids" if spec == "random-tokens" else "ids"
    text = f"""g (int64[b, s] ids) => (float[b, s, 8] y) {{
        e = Gather(E, ids) {POSITIONS[name]} y = Add(e, p)
    }}""".replace("(ids", f"({ids}").replace(" ids", f" {ids}")
    cached = np.zeros((0, 8), np.float32)
    package = package_of(tmp_path, text, E=E, P=P, places=PLACES, cached=cached)
    length = drawn(package, spec, length=64).feeds[0][ids].shape[1]
    assert length == (23 if name == "summed up" else 24)


def test_fused_embeddings(tmp_path):
    text = """g (int32[b, s] input_ids, int32[b, s] token_type_ids) => (float[b, s, 8] y) {
        y, i = com.microsoft.EmbedLayerNormalization(input_ids, token_type_ids, E, P, T, ones, ones)
    }"""
    package = package_of(tmp_path, text, E=E, P=P, T=T, ones=np.ones(8, "f4"))
    feed = drawn(package, "random-tokens").feeds[0]
    assert feed["input_ids"].dtype == np.int32 and feed["input_ids"].shape == (1, 24)
    assert Lookups.of(package.proto()).rows == {"input_ids": 50, "token_type_ids": 2}


def test_words_that_the_model_knows(tmp_path):
    text = """g (string[n] kind) => (float[n, 2] y) {
        y = ai.onnx.ml.OneHotEncoder <cats_strings = ["cat", "dog"], zeros = 1> (kind)
    }"""
    package = package_of(tmp_path, text)
    words = {str(feed["kind"][0]) for feed in drawn(package).feeds}
    assert words <= {"cat", "dog"}
    assert drawn(package).sha256 == drawn(package).sha256


@pytest.mark.parametrize("sizes", [(1, 16), (3, 16)])
@pytest.mark.parametrize("spec", ["random-tokens", "text.txt"])
def test_texts_of_a_fixed_size(tmp_path, sizes, spec):
    made = tiny.encoder(tiny.embedding())
    for value in made.graph.input:
        for dim, size in zip(value.type.tensor_type.shape.dim, sizes, strict=True):
            dim.dim_value = size
    package = open_package(tiny.save(made, tmp_path / "e", template="[BOS] $A [EOS]"))
    (tmp_path / "text.txt").write_text(tiny.text(300))
    data = drawn(package, spec if spec == "random-tokens" else tmp_path / spec)
    assert all(feed["input_ids"].shape == sizes for feed in data.feeds)
    assert short(data.feeds, import_proto(made))[0]["input_ids"].shape == sizes


def test_what_can_not_be_drawn_says_what_to_do(tmp_path):
    text = "g (string[n] kind) => (string[n] y) { y = Identity(kind) }"
    with pytest.raises(CalibrationError, match=r"'kind' can't be drawn.*npz with 'kind' in it"):
        drawn(package_of(tmp_path, text))
    text = "g (seq(float[n]) feats) => (float[n] y) { y = SequenceAt(feats, zero) }"
    with pytest.raises(CalibrationError, match=r"'feats' is no tensor.*--no-verify"):
        drawn(package_of(tmp_path, text))


def test_arrays_for_all_inputs_need_no_vocabulary(tmp_path):
    """The table is computed: nothing tells how many ids there are."""
    text = """g (int64[b, s] input_ids) => (float[b, s, 8] y) {
        table = Mul(E, two_f) y = Gather(table, input_ids)
    }"""
    package = package_of(tmp_path, text, E=E, two_f=np.float32(2))
    with pytest.raises(CalibrationError, match=r"vocabulary size is unknown.*npz with 'input_ids'"):
        drawn(package, "random-tokens")
    (tmp_path / "tokenizer.json").write_text("broken")
    np.savez(tmp_path / "feeds.npz", input_ids=np.arange(12).reshape(2, 6))
    assert len(drawn(open_package(package.onnx_path), tmp_path / "feeds.npz")) == 1


def test_texts_are_shortened_as_a_whole_or_not_at_all():
    ids = np.ones((1, 300), np.int32)
    values = {"x": TensorProto.INT32, "y": TensorProto.INT64, "z": TensorProto.FLOAT}
    graph = import_proto(
        tiny.model_of(
            [helper.make_node("Identity", ["x"], ["o"])],
            [tiny.value(name, kind, ["b", None]) for name, kind in values.items()],
            [tiny.value("o", TensorProto.INT32, None)],
            {},
        )
    )
    text = {"x": ids, "y": ids.astype(np.int64), "past": np.zeros((1, 2, 0, 4), np.float32)}
    assert {value.shape[1] for value in short([text], graph)[0].values()} == {128, 2}
    for other in ({"z": np.ones((1, 300), np.float32)}, {"y": np.ones((1, 301), np.int64)}):
        feed = {"x": ids, **other}
        assert short([feed], graph) == [feed]


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (np.zeros((4, 3), "f4"), "'x' never changes"),
        (np.tile(np.arange(3, dtype="f4"), (16, 1)), "all samples are the same"),
        (np.random.rand(16, 3).astype("f4"), None),
    ],
)
def test_data_that_hardly_varies(tmp_path, x, said):
    package = open_package(tiny.save(tiny.linear(), tmp_path / "o"))
    np.savez(tmp_path / "f.npz", x=x, flag=np.ones(len(x), np.int64))
    told = load_source(tmp_path / "f.npz", package).description.partition("WARNING: ")[2]
    assert told.startswith(said) if said else not told


def test_fresh_data_is_like_the_users(tmp_path):
    package = open_package(tiny.save(tiny.linear(), tmp_path / "o"))
    given = [{"x": 5 + np.random.rand(7, 3).astype("f4"), "flag": np.full(7, 9)}]
    feed = load_source("random", package, samples=1, seed=1, like=given).feeds[0]
    assert feed["x"].shape == (7, 3) and 4 < feed["x"].mean() < 7
    assert (feed["flag"] == 9).all()


@pytest.mark.parametrize(
    ("shape", "size"),
    [("b, t", 16_000), ("b, 1, t", 16_000), ("b, 80, t", 16), ("b, t, 80", 16)],
)
def test_waves_are_long_enough_for_convolutions(tmp_path, shape, size):
    text = f"g (float[{shape}] x) => (float[{shape}] y) {{ y = Relu(x) }}"
    assert size in drawn(package_of(tmp_path, text)).feeds[0]["x"].shape
