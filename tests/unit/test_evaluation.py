"""Metrics against their definitions, and the orchestration around them."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import tiny_models as tiny

from qcompiler.errors import ModelError
from qcompiler.evaluation import divergence, embeddings, evaluate, intervals, perplexity
from qcompiler.evaluation.benchmark import Setting, benchmark
from qcompiler.feeds import Signature
from qcompiler.generation import choose, generate
from qcompiler.models import open_package
from qcompiler.session import create_session


def log_softmax(x):
    x = x.astype(np.float64)
    return (
        x
        - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - x.max(-1, keepdims=True)
    )


@pytest.fixture
def logits():
    return (5 * np.random.default_rng(1).standard_normal((150, 33))).astype("f4")


def test_token_losses(logits):
    targets = np.arange(150) % 33
    expected = -log_softmax(logits)[np.arange(150), targets]
    np.testing.assert_allclose(perplexity.token_losses(logits, targets), expected, rtol=1e-6)
    shifted = perplexity.token_losses(logits + 1e4, targets)
    np.testing.assert_allclose(shifted, expected, rtol=1e-2)


def test_windows_cover_the_text_once():
    ids = np.arange(10, 33)
    pieces = list(perplexity.windows(ids, window=8, lead=[1]))
    assert [piece.token_ids.shape[1] for piece in pieces] == [8, 8, 8, 3]
    assert np.concatenate([piece.targets for piece in pieces]).tolist() == ids.tolist()
    without = list(perplexity.windows(ids, window=8, max_tokens=17))
    assert [piece.token_ids.shape[1] for piece in without] == [8, 8]  # one token predicts nothing
    with pytest.raises(ModelError, match="too short"):
        list(perplexity.windows(ids[:1]))
    with pytest.raises(ModelError, match="at least 3"):
        list(perplexity.windows(ids, window=2, lead=[1]))


def test_summary_and_interval():
    rng = np.random.default_rng(0)
    losses = [rng.exponential(2.0, 50) for _ in range(40)]
    result = perplexity.summarize(losses, 51)
    assert result.perplexity == pytest.approx(math.exp(np.concatenate(losses).mean()))
    means = np.array([part.mean() for part in losses])
    error = 1.96 * means.std(ddof=1) / math.sqrt(40)
    assert result.low == pytest.approx(math.exp(means.mean() - error))
    assert result.high == pytest.approx(math.exp(means.mean() + error))
    assert result.tokens == 2000
    assert perplexity.summarize(losses[:2], 51).low is None


def test_divergence(logits):
    other = logits + np.random.default_rng(2).standard_normal(logits.shape).astype("f4")
    p, q = log_softmax(logits), log_softmax(other)
    kl, agree = divergence.token_divergence(logits, other)
    np.testing.assert_allclose(kl, (np.exp(p) * (p - q)).sum(1), rtol=1e-4, atol=1e-6)
    assert agree.tolist() == (logits.argmax(1) == other.argmax(1)).tolist()
    same, all_agree = divergence.token_divergence(logits, logits + 3)
    assert same.max() < 1e-6
    assert all_agree.all()
    assert divergence.summarize([kl], [agree]).kl == pytest.approx(kl.mean())


def test_pooling_ignores_padding():
    hidden = np.random.default_rng(0).standard_normal((2, 4, 3)).astype("f4")
    mask = np.array([[1, 1, 0, 0], [1, 1, 1, 1]])
    pooled = embeddings.pool(hidden, mask)
    expected = hidden[0, :2].mean(0)
    np.testing.assert_allclose(pooled[0], expected / np.linalg.norm(expected), rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(pooled, axis=1), 1, rtol=1e-6)


def test_compare_embeddings():
    reference = np.eye(4, dtype="f4")[[0, 0, 1, 1]]
    reference += 0.01 * np.arange(16).reshape(4, 4)
    reference /= np.linalg.norm(reference, axis=1, keepdims=True)
    assert embeddings.compare(reference, reference).neighbour_agreement == 1
    assert embeddings.compare(reference, reference).min_cosine == pytest.approx(1)
    swapped = reference[[0, 2, 1, 3]]
    result = embeddings.compare(reference, swapped)
    assert result.neighbour_agreement == 0
    assert result.min_cosine < 0.5


def test_intervals_of_embeddings():
    rng = np.random.default_rng(0)
    reference = rng.standard_normal((40, 8))
    noisy = reference + 0.3 * rng.standard_normal((40, 8))
    reference, noisy = (
        (x / np.linalg.norm(x, axis=1, keepdims=True)).astype("f4") for x in (reference, noisy)
    )
    found = embeddings.compare(reference, noisy)
    cosine = (reference.astype("f8") * noisy).sum(1)
    error = 1.96 * cosine.std(ddof=1) / math.sqrt(40)
    assert found.cosine_low == pytest.approx(cosine.mean() - error)
    assert found.cosine_high == pytest.approx(cosine.mean() + error)
    hits = round(40 * found.neighbour_agreement)
    assert 0 < hits < 40
    assert (found.neighbour_low, found.neighbour_high) == intervals.of_share(hits, 40)
    same = embeddings.compare(reference, reference)
    assert same.cosine_low == pytest.approx(1)
    assert same.mean_cosine <= same.cosine_high <= 1
    assert same.neighbour_high == 1
    assert embeddings.compare(reference[:2], noisy[:2]).cosine_low is None


def test_share_interval():
    # Newcombe 1998, Two-sided confidence intervals for the single proportion, table I.
    for hits, total, low, high in [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ]:
        assert intervals.of_share(hits, total) == pytest.approx((low, high), abs=5e-5)
        mirrored = intervals.of_share(total - hits, total)
        assert mirrored == pytest.approx((1 - high, 1 - low), abs=5e-5)
    # What the limits are: shares that the one seen lies Z standard errors from.
    for hits, total in [(3, 7), (400, 500)]:
        for limit in intervals.of_share(hits, total):
            away = abs(hits / total - limit) / math.sqrt(limit * (1 - limit) / total)
            assert away == pytest.approx(intervals.Z)


def decoder(path, seed=0, scale=1.0, **options):
    return tiny.save(tiny.decoder(tiny.embedding(seed, scale), **options), path)


def words(tmp_path, count=300):
    file = tmp_path / "words.txt"
    file.write_text(tiny.text(count))
    return str(file)


def test_evaluate_decoders(tmp_path):
    exact, noisy = decoder(tmp_path / "a"), decoder(tmp_path / "b", seed=1)
    flat = decoder(tmp_path / "c", scale=0.0, cache=False)
    seen = []
    results = evaluate(
        [exact, noisy, flat],
        words(tmp_path),
        exact,
        window=32,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert [result.model for result in results] == ["a", "b", "c"]
    assert results[0].divergence.kl == 0
    assert results[0].divergence.top1 == 1
    assert results[1].divergence.kl > 0.1
    # Without any preference every token costs log(vocabulary).
    assert results[2].perplexity.perplexity == pytest.approx(tiny.VOCABULARY, rel=1e-6)
    assert results[2].perplexity.tokens == 300 - 10
    assert seen[-1] == (10, 10)
    json.dumps([result.to_dict() for result in results])


def test_perplexity_of_the_orchestrated_run(tmp_path):
    folder, file = decoder(tmp_path / "a", scale=0.3), words(tmp_path, 60)
    package = open_package(folder)
    ids = np.array([package.tokenizer().encode(tiny.text(60)).ids])
    feeds = Signature.of(package).feeds(ids)
    scores = log_softmax(create_session(folder).run(["logits"], feeds)[0][0])
    expected = math.exp(-scores[np.arange(59), ids[0, 1:]].mean())
    result = evaluate([folder], file, window=60)[0]
    assert result.perplexity.perplexity == pytest.approx(expected, rel=1e-5)


def test_evaluate_encoders(tmp_path):
    exact, other, file = tiny.two_encoders(tmp_path)
    results = evaluate([exact, other], str(file), exact)
    assert results[0].embeddings.min_cosine == pytest.approx(1)
    assert results[1].embeddings.mean_cosine < 0.9
    assert results[0].embeddings.sentences == 40
    with pytest.raises(ModelError, match="--reference"):
        evaluate([exact], str(file))


def test_evaluate_refuses(tmp_path):
    folder = decoder(tmp_path / "a")
    encoder = tiny.save(tiny.encoder(tiny.embedding()), tmp_path / "e")
    other = tiny.save(tiny.linear(), tmp_path / "o")
    with pytest.raises(ModelError, match="different kinds"):
        evaluate([folder], words(tmp_path), encoder)
    with pytest.raises(ModelError, match="nothing to evaluate"):
        evaluate([other], words(tmp_path))
    with pytest.raises(ModelError, match="no text file"):
        evaluate([folder], "nowhere.txt")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        evaluate([folder], words(tmp_path))


def test_benchmark_figures_by_kind(tmp_path):
    setting = Setting(prompt_length=8, context=4, steps=2, rounds=2)
    cached, uncached, encoder, other = benchmark(
        [
            decoder(tmp_path / "a"),
            decoder(tmp_path / "b", cache=False),
            tiny.save(tiny.encoder(tiny.embedding()), tmp_path / "e"),
            tiny.save(tiny.linear(), tmp_path / "o"),
        ],
        setting,
    )
    assert cached.prefill > 0
    assert cached.decode > 0
    assert uncached.prefill > 0
    assert uncached.decode is None
    assert encoder.sentences_per_second > 0
    assert other.latency_ms > 0
    assert other.prefill is None
    json.dumps([result.to_dict() for result in (cached, uncached, encoder, other)])
    with pytest.raises(ModelError, match="at least 1"):
        Setting(rounds=0)


def test_generate_stops_at_end_of_text(tmp_path):
    # All weight on EOS, then on another token.
    for token, finished in ((tiny.EOS, True), (9, False)):
        weights = np.zeros((tiny.VOCABULARY, tiny.HIDDEN), np.float32)
        weights[:, 0], weights[token, 0] = 1, 50
        folder = tiny.save(tiny.decoder(weights), tmp_path / str(token), config=tiny.CONFIG)
        pieces = []
        result = generate(open_package(folder), "w1 w2", max_new_tokens=4, stream=pieces.append)
        assert result.finished == finished
        assert result.token_ids == (() if finished else (9,) * 4)
        assert "".join(pieces) == result.text == ("" if finished else "w6 w6 w6 w6")
        assert result.prompt_tokens == 2


def test_generate_is_the_same_with_and_without_cache(tmp_path):
    texts = [
        generate(open_package(folder), "w3 w4", max_new_tokens=8, temperature=1.0, seed=3).token_ids
        for folder in (
            decoder(tmp_path / "a", scale=0.2),
            decoder(tmp_path / "b", scale=0.2, cache=False),
        )
    ]
    assert texts[0] == texts[1]
    assert len(set(texts[0])) > 1


def test_choose():
    rng = np.random.default_rng(0)
    logits = np.array([0.0, 3.0, 2.0, -1.0])
    assert choose(logits, temperature=0, top_k=1, rng=rng) == 1
    drawn = [choose(logits, temperature=1.0, top_k=2, rng=rng) for _ in range(2000)]
    assert set(drawn) == {1, 2}
    share = math.exp(3) / (math.exp(3) + math.exp(2))
    assert drawn.count(1) / 2000 == pytest.approx(share, abs=0.04)


def test_chat_needs_a_template(tmp_path):
    pytest.importorskip("jinja2")
    folder = decoder(tmp_path / "a")
    with pytest.raises(ModelError, match="no chat template"):
        generate(open_package(folder), "w1", chat=True)
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}w2 {{ m.content }} {% endfor %}w3"
    )
    result = generate(open_package(folder), "w1", chat=True, max_new_tokens=1)
    assert result.prompt_tokens == 3
    (folder / "chat_template.jinja").write_text("{% for %}")
    with pytest.raises(ModelError, match="does not work here"):
        generate(open_package(folder), "w1", chat=True)


def test_empty_prompt(tmp_path):
    with pytest.raises(ModelError, match="prompt is empty"):
        generate(open_package(decoder(tmp_path / "a")), "")
