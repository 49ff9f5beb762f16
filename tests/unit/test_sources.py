"""Calibration sources: what each gives, that it repeats, and what it refuses."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import tiny_models as tiny

from qcompiler.calibration import texts
from qcompiler.calibration.sources import default_spec, load_source
from qcompiler.errors import CalibrationError
from qcompiler.evaluation.texts import PYDOC, pydoc_text, read_text, sentences
from qcompiler.models import open_package
from qcompiler.session import create_session


@pytest.fixture
def decoder(tmp_path):
    model = tiny.decoder(tiny.embedding(scale=0.2))
    return open_package(tiny.save(model, tmp_path / "d", config=tiny.CONFIG, template="[BOS] $A"))


@pytest.fixture
def encoder(tmp_path):
    model = tiny.encoder(tiny.embedding())
    return open_package(tiny.save(model, tmp_path / "e", template="[BOS] $A [EOS]"))


@pytest.fixture
def other(tmp_path):
    return open_package(tiny.save(tiny.linear(), tmp_path / "o"))


def run_all(package, data):
    session = create_session(package.onnx_path)
    for feed in data.feeds:
        session.run(None, feed)


def test_random_tokens(decoder):
    data = load_source("random-tokens", decoder, samples=4, length=20)
    ids = np.concatenate([feed["input_ids"] for feed in data.feeds])
    assert ids.shape == (4, 20)
    assert (ids[:, 0] == tiny.BOS).all()
    assert ids[:, 1:].min() >= len(tiny.SPECIAL)
    assert ids.max() < tiny.VOCABULARY
    assert data.feeds[0]["past_key_values.0.key"].shape[2] == 0
    assert default_spec(decoder) == "random-tokens"
    assert default_spec(decoder, "pydoc:first") == "pydoc:first"
    run_all(decoder, data)


def test_text_by_default_needs_a_tokenizer_and_a_model_that_reads_it(decoder, other):
    assert default_spec(other, "pydoc:first") == "random"
    bare = dataclasses.replace(decoder, tokenizer_file=None)
    assert default_spec(bare, "pydoc:first") == "random-tokens"


def test_seed_decides(decoder):
    same = [load_source("random-tokens", decoder, samples=2, length=9, seed=5) for _ in range(2)]
    other = load_source("random-tokens", decoder, samples=2, length=9, seed=6)
    assert same[0].sha256 == same[1].sha256 != other.sha256


def test_length_is_cut_to_what_the_model_reads(encoder):
    (encoder.onnx_path.parent / "config.json").write_text('{"max_position_embeddings": 12}')
    data = load_source("random-tokens", encoder, samples=1, length=512)
    assert data.feeds[0]["input_ids"].shape == (1, 12)


def test_random_tokens_for_encoders_are_framed(encoder):
    ids = load_source("random-tokens", encoder, samples=1, length=10).feeds[0]["input_ids"][0]
    assert len(ids) == 10
    assert (ids[0], ids[-1]) == (tiny.BOS, tiny.EOS)
    assert ids[1:-1].min() >= len(tiny.SPECIAL)


def test_self_follows_the_models_own_distribution(tmp_path):
    # A model that, whatever it read, gives all its weight to one token.
    weights = np.zeros((tiny.VOCABULARY, tiny.HIDDEN), np.float32)
    weights[:, 0] = 1.0
    weights[7, 0] = 100.0
    folder = tiny.save(tiny.decoder(weights), tmp_path, config=tiny.CONFIG)
    data = load_source("self", open_package(folder), samples=3, length=12)
    firsts = set()
    for feed in data.feeds:
        bos, first, *rest = feed["input_ids"][0].tolist()
        assert (bos, rest) == (tiny.BOS, [7] * 10)
        firsts.add(first)
    assert len(firsts) == 3  # drawn, so that no two texts are alike
    assert min(firsts) >= len(tiny.SPECIAL)


def test_self_draws_tokens_with_the_models_probabilities():
    logits = np.full((20_000, tiny.VOCABULARY), -80.0, np.float32)
    logits[:, 7], logits[:, 9], logits[:, tiny.EOS] = np.log(3.0), 0.0, 50.0
    tokens = np.array([5, 7, 9, 11])
    drawn = texts._sample(logits, tokens, np.random.default_rng(0))
    assert drawn.shape == (20_000, 1)
    assert set(drawn.ravel()) == {7, 9}
    assert (drawn == 7).mean() == pytest.approx(0.75, abs=0.01)


def test_text_file_in_windows(decoder, tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(tiny.text(200))
    data = load_source(file, decoder, samples=99, length=21)
    assert len(data) == 10
    assert all(feed["input_ids"].shape == (1, 21) for feed in data.feeds)
    words = decoder.tokenizer().encode(file.read_text(), add_special_tokens=False).ids
    fed = np.concatenate([feed["input_ids"][0, 1:] for feed in data.feeds])
    assert fed.tolist() == words
    assert "10 windows of 21 tokens" in data.description
    few = load_source(file, decoder, samples=3, length=21)
    assert len(few) == 3


def test_sources_in_turn(decoder, tmp_path):
    file = tmp_path / "a+b.txt"
    file.write_text(tiny.text(200))
    assert len(load_source(file, decoder, length=21)) == 10  # one source: such a file is there
    plain = file.rename(tmp_path / "text.txt")
    parts, shares = (str(plain), "random-tokens", "self"), (3, 3, 2)
    data = load_source("+".join(parts), decoder, samples=8, length=20)
    alone = [
        load_source(part, decoder, samples=share, length=20).feeds
        for part, share in zip(parts, shares, strict=True)
    ]
    turns = [alone[i % 3][i // 3]["input_ids"] for i in range(8)]
    np.testing.assert_array_equal([feed["input_ids"] for feed in data.feeds], turns)
    assert data.description.count(";") == 2
    one = load_source("+".join(parts), decoder, samples=1, length=20)
    assert one.sha256 == load_source(plain, decoder, samples=1, length=20).sha256


def test_the_models_own_text_is_a_default_where_it_can_generate(
    decoder, encoder, tmp_path, monkeypatch
):
    wanted = "pydoc:first+self"
    assert default_spec(decoder, wanted) == wanted
    with monkeypatch.context() as patched:
        patched.setattr("qcompiler.calibration.sources._MOST_BYTES", decoder.size_bytes() - 1)
        assert default_spec(decoder, wanted) == "pydoc:first"
    assert default_spec(encoder, wanted) == "pydoc:first"
    uncached = tiny.decoder(tiny.embedding(), cache=False)
    package = open_package(tiny.save(uncached, tmp_path / "n", config=tiny.CONFIG))
    assert default_spec(package, wanted) == "pydoc:first"
    assert default_spec(package, "self") == "random-tokens"


@pytest.mark.parametrize(
    "record",
    [
        {"text": "{}"},
        {"prompt": "{}"},
        {"messages": [{"role": "user", "content": "{}"}, {"role": "assistant", "content": "w1"}]},
    ],
)
def test_jsonl(decoder, tmp_path, record):
    file = tmp_path / "text.jsonl"
    line = json.dumps(record).replace("{}", tiny.text(100))
    file.write_text(f"{line}\n\n{line}\n")
    assert len(load_source(file, decoder, length=64)) == 3


@pytest.mark.parametrize(("line", "cause"), [("{", "line 2 is not JSON"), ("{}", "line 2 has no")])
def test_jsonl_errors_name_the_line(decoder, tmp_path, line, cause):
    file = tmp_path / "text.jsonl"
    file.write_text('{"text": "w1"}\n' + line + "\n")
    with pytest.raises(CalibrationError, match=cause):
        load_source(file, decoder)


def test_encoder_text_is_never_padded(encoder, tmp_path):
    file = tmp_path / "text.txt"
    written = [tiny.text(n, seed=n) + "." for n in [12] * 20 + list(range(13, 40))]
    file.write_text("\n\n".join(f"{text[:-1]} w{i}." for i, text in enumerate(written)))
    data = load_source(file, encoder, samples=99, length=24)
    assert {len(feed["input_ids"]) for feed in data.feeds} >= {1, 8, 12}, "some lengths are rare"
    assert sum(len(feed["input_ids"]) for feed in data.feeds) == len(written)
    for feed in data.feeds:
        ids, mask = feed["input_ids"], feed["attention_mask"]
        assert ids.shape == mask.shape and ids.shape[1] <= 24
        assert mask.all()
        assert (ids[:, 0] == tiny.BOS).all() and (ids[:, -1] == tiny.EOS).all()
    run_all(encoder, data)
    few = load_source(file, encoder, samples=2, length=24)
    assert len(few) == 2


def test_padding_of_arrays_is_cut_away(encoder, tmp_path):
    rows = [np.arange(4, 4 + n) for n in (3, 5, 5)]
    ids, mask = np.zeros((2, 3, 5), np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = row, 1
    data = load_source(write(tmp_path, input_ids=ids, attention_mask=mask), encoder)
    fed = [feed["input_ids"][0].tolist() for feed in data.feeds]
    assert fed == [row.tolist() for row in rows]
    assert all(feed["attention_mask"].all() for feed in data.feeds)
    run_all(encoder, data)


def test_a_batch_of_fixed_size_stays_padded(tmp_path):
    model = tiny.encoder(tiny.embedding())
    for entry in model.graph.input:
        entry.type.tensor_type.shape.dim[1].dim_value = 4
    package = open_package(tiny.save(model, tmp_path / "e"))
    mask = np.array([[1, 1, 0, 0], [1, 1, 1, 1]])
    data = load_source(write(tmp_path, input_ids=4 + mask, attention_mask=mask), package)
    assert [feed["input_ids"].shape for feed in data.feeds] == [(2, 4)]
    run_all(package, data)


def test_pydoc_halves_are_large_and_apart():
    first, second = pydoc_text(PYDOC[0]), pydoc_text(PYDOC[1])
    assert min(len(first), len(second)) > 80_000
    shared = set(sentences(first)) & set(sentences(second))
    assert len(shared) < 0.01 * len(sentences(second))
    assert read_text("pydoc:first", CalibrationError) == first


@pytest.mark.parametrize(
    ("spec", "cause"),
    [
        ("random-token", "neither a file nor a folder, nor one of random-tokens"),
        ("pydoc:third", "neither a file"),
        ("random", "use random-tokens"),
        ("random-tokens+", r"source of 'random-tokens\+' is empty"),
        ("random-tokens+random", "use random-tokens"),
        ("nothing.npz", r"nothing\.npz"),
    ],
)
def test_unknown_sources(decoder, spec, cause):
    with pytest.raises(CalibrationError, match=cause):
        load_source(spec, decoder)


def test_too_little_text(decoder, tmp_path):
    file = tmp_path / "short.txt"
    file.write_text("w1 w2 w3")
    with pytest.raises(CalibrationError, match="has 3 tokens; at least 128"):
        load_source(file, decoder)


def test_binary_text(decoder, tmp_path):
    file = tmp_path / "binary.txt"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CalibrationError, match="not UTF-8"):
        load_source(file, decoder)


def test_tokenizer_of_another_model(tmp_path):
    model = tiny.decoder(tiny.embedding()[:20])
    model.graph.output[0].type.tensor_type.shape.dim[2].dim_value = 20
    package = open_package(tiny.save(model, tmp_path / "d"))
    file = tmp_path / "text.txt"
    file.write_text(tiny.text(200))
    with pytest.raises(CalibrationError, match="another model's"):
        load_source(file, package)


def test_text_for_a_model_without_tokens(other):
    for spec in ("random-tokens", "self", "pydoc:first"):
        with pytest.raises(CalibrationError, match="reads no token ids"):
            load_source(spec, other)


def test_random_for_other_models(other):
    data = load_source("random", other, samples=3)
    assert default_spec(other) == "random"
    assert "WARNING" in data.description
    assert data.feeds[0]["x"].shape == (1, 3)
    run_all(other, data)


def write(tmp_path, **arrays):
    file = tmp_path / "feeds.npz"
    np.savez(file, **arrays)
    return file


def test_npz_batches_are_cut(other, tmp_path):
    x, flag = np.random.rand(20, 3).astype("f4"), np.arange(20)
    data = load_source(write(tmp_path, x=x, flag=flag), other)
    assert [len(feed["x"]) for feed in data.feeds] == [8, 8, 4]
    np.testing.assert_array_equal(np.concatenate([feed["x"] for feed in data.feeds]), x)
    run_all(other, data)


def test_npz_with_a_fixed_batch(tmp_path):
    package = open_package(tiny.save(tiny.linear(batch=2), tmp_path / "o"))
    x, flag = np.random.rand(6, 3).astype("f4"), np.arange(6)
    data = load_source(write(tmp_path, x=x, flag=flag), package)
    assert [feed["x"].shape for feed in data.feeds] == [(2, 3)] * 3
    run_all(package, data)


def test_npz_stacked(other, tmp_path):
    x, flag = np.random.rand(5, 2, 3), np.ones((5, 2), np.int32)
    data = load_source(write(tmp_path, x=x, flag=flag), other, samples=4)
    assert len(data) == 4
    assert data.feeds[0]["x"].dtype == np.float32
    np.testing.assert_allclose(data.feeds[3]["x"], x[3], rtol=1e-6)
    run_all(other, data)


def test_npz_directory(other, tmp_path):
    folder = tmp_path / "feeds"
    folder.mkdir()
    for i in range(3):
        np.savez(folder / f"{i}.npz", x=np.full((1, 3), i, "f4"), flag=np.array([i]))
    data = load_source(folder, other)
    assert [int(feed["flag"][0]) for feed in data.feeds] == [0, 1, 2]
    with pytest.raises(CalibrationError, match=r"no \.npz"):
        load_source(tmp_path / "o", other)


def test_npz_for_a_decoder_fills_the_cache(decoder, tmp_path):
    data = load_source(write(tmp_path, input_ids=np.full((4, 6), 9)), decoder)
    assert data.feeds[0]["past_key_values.0.value"].shape == (4, 1, 0, tiny.HIDDEN)
    run_all(decoder, data)


X, FLAG = np.zeros((2, 3), "f4"), np.zeros(2, int)


@pytest.mark.parametrize(
    ("arrays", "cause"),
    [
        ({"x": X}, "no array for input 'flag'"),
        ({"x": X, "flag": FLAG, "z": X}, "no input 'z'"),
        ({"x": X[:, :2], "flag": FLAG}, "'x' has shape"),
        ({"x": X[0], "flag": FLAG}, "'x' has rank 1"),
        ({"x": X.astype(complex), "flag": FLAG}, "'x' has dtype complex128"),
        ({"x": X, "flag": FLAG.astype("f4")}, "'flag' has dtype float32"),
        ({"x": X * np.nan, "flag": FLAG}, "'x' holds NaN"),
        ({"x": X[None], "flag": FLAG}, "'flag' is not stacked"),
        ({"x": np.stack([X] * 3), "flag": np.stack([FLAG] * 2)}, "different numbers"),
        ({"x": X[:0], "flag": FLAG[:0]}, "arrays are empty"),
        ({"x": np.array([object()]), "flag": FLAG}, "holds objects, not numbers"),
    ],
)
def test_npz_that_does_not_fit(other, tmp_path, arrays, cause):
    with pytest.raises(CalibrationError, match=cause):
        load_source(write(tmp_path, **arrays), other)


def test_npz_token_ids_in_range(decoder, tmp_path):
    with pytest.raises(CalibrationError, match=r"'input_ids' has ids outside \[0, 43\)"):
        load_source(write(tmp_path, input_ids=np.full((1, 4), 99)), decoder)


def test_broken_npz(other, tmp_path):
    file = tmp_path / "feeds.npz"
    file.write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(CalibrationError, match="can't be read"):
        load_source(file, other)
