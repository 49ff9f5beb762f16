"""Export of each kind of model: the graphs compute what torch does, at once and step by step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from tiny_families import FAMILIES, tokenizer

import qcompiler
from qcompiler.errors import ExportError
from qcompiler.export import export_model, states, ties
from qcompiler.feeds import Signature
from qcompiler.models import open_package
from qcompiler.numerics.rounding import sqnr_db
from qcompiler.session import create_session

pytestmark = pytest.mark.slow
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SMALL: dict[str, Any] = {
    **{"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4},
    **{"intermediate_size": 96, "vocab_size": 300},
}
GROUPED = SMALL | {"num_key_value_heads": 2}
WINDOW = 8
LENGTH = 20
T5 = FAMILIES["t5"].options | {"vocab_size": 300, "num_layers": 1}
WHISPER = {
    **{"vocab_size": 300, "d_model": 64, "num_mel_bins": 8, "max_source_positions": 30},
    **{"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4},
    **{"decoder_attention_heads": 4, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 3},
    **{"suppress_tokens": None, "begin_suppress_tokens": None},
}


def saved(folder: Path, model: str, options: dict[str, Any], config: str | None = None) -> Any:
    """A model of random weights, saved in `folder`."""
    torch.manual_seed(0)
    kind = getattr(transformers, model)
    made = kind(getattr(transformers, config or kind.config_class.__name__)(**options)).eval()
    made.save_pretrained(folder)
    return made


def session(file: Path) -> ort.InferenceSession:
    return ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])


def run(model: ort.InferenceSession, feeds: dict[str, Any]) -> dict[str, Any]:
    names = [output.name for output in model.get_outputs()]
    return dict(zip(names, model.run(None, feeds), strict=True))


def called(model: Any, feeds: dict[str, Any], **options: Any) -> Any:
    with torch.no_grad():
        return model(**{name: torch.from_numpy(value) for name, value in feeds.items()}, **options)


def same(found: np.ndarray, wanted: Any) -> None:
    np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-4, atol=1e-4)


def text(rng: np.random.Generator, length: int = LENGTH) -> np.ndarray:
    return rng.integers(5, 300, (3, length))


DECODERS = {
    "gpt2": ("GPT2LMHeadModel", {"n_embd": 64, "n_layer": 1, "n_head": 4, "vocab_size": 300}),
    "bloom": (
        "BloomForCausalLM",
        {"hidden_size": 64, "n_layer": 1, "n_head": 4} | {"vocab_size": 300},
    ),
    "gemma3": (
        "Gemma3ForCausalLM",
        GROUPED
        | {"head_dim": 16, "sliding_window": WINDOW, "num_hidden_layers": 2}
        | {"layer_types": ["sliding_attention", "full_attention"]},
    ),
    "mixtral": ("MixtralForCausalLM", GROUPED | {"num_local_experts": 3}),
    "lfm2": (
        "Lfm2ForCausalLM",
        GROUPED | {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2},
    ),
    "mamba2": (
        "Mamba2ForCausalLM",
        {"hidden_size": 64, "num_hidden_layers": 1, "vocab_size": 300}
        | {"num_heads": 4, "head_dim": 32, "state_size": 16, "n_groups": 1, "chunk_size": 8},
    ),
    "falcon_h1": (
        "FalconH1ForCausalLM",
        GROUPED
        | {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1}
        | {"mamba_d_state": 16, "mamba_chunk_size": 8},
    ),
}


@pytest.mark.parametrize("name", DECODERS)
def test_decoders_step_by_step(tmp_path, name):
    model = saved(tmp_path / "hf", *DECODERS[name])
    result = export_model(tmp_path / "hf", tmp_path / "out")
    assert result.dialect == "torch"
    assert not [note for note in result.notes if "without key/value cache" in note]
    assert [note for note in result.notes if "onnxruntime-genai can't build" in note]
    signature = Signature.of(open_package(tmp_path / "out"))
    assert signature.kind == "decoder"
    assert signature.caches
    runs = session(tmp_path / "out" / "model.onnx")
    ids = text(np.random.default_rng(0))
    mask = np.ones_like(ids)
    mask[0, :3] = 0
    full = {"input_ids": ids, "attention_mask": mask}
    feeds = signature.feeds(ids, mask)
    if "position_ids" in feeds:
        full["position_ids"] = feeds["position_ids"]
    wanted = called(model, full, use_cache=False).logits
    read = mask.astype(bool)  # what a token that is masked itself answers means nothing
    same(run(runs, feeds)["logits"][read], wanted[torch.from_numpy(read)])
    past = None
    for start, end in ((0, 7), (7, 11), *((at, at + 1) for at in range(11, LENGTH))):
        step = run(runs, signature.feeds(ids[:, start:end], mask[:, :end], past))
        past = signature.next_past(step)
        same(step["logits"][1:], wanted[1:, start:end])


def test_a_window_in_all_layers_survives_the_builder(tmp_path):
    pytest.importorskip("onnxruntime_genai")
    options = GROUPED | {"sliding_window": WINDOW, "max_position_embeddings": 64}
    options |= {"hidden_size": 128, "head_dim": 32}
    model = saved(tmp_path / "hf", "MistralForCausalLM", options)
    tokenizer(tmp_path / "hf")
    assert export_model(tmp_path / "hf", tmp_path / "out").dialect == "genai"
    ids = text(np.random.default_rng(0))
    feeds = Signature.of(open_package(tmp_path / "out")).feeds(ids)
    found = run(session(tmp_path / "out" / "model.onnx"), feeds)["logits"]
    same(found, called(model, {"input_ids": ids}).logits)


PAIRS = {
    "t5": ("T5ForConditionalGeneration", T5),
    "whisper": ("WhisperForConditionalGeneration", WHISPER),
}


@pytest.fixture(scope="module", params=PAIRS)
def pair(request, tmp_path_factory):
    """A pair's name, its model, and the folder of its export."""
    folder = tmp_path_factory.mktemp(request.param)
    model = saved(folder / "hf", *PAIRS[request.param])
    export_model(folder / "hf", folder / "out")
    return request.param, model, folder / "out"


def pair_feeds(name: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """What an encoder reads, and the first tokens of an answer."""
    rng = np.random.default_rng(0)
    if name == "t5":
        feeds = {"input_ids": text(rng, 9), "attention_mask": np.ones((3, 9), np.int64)}
        feeds["attention_mask"][0, 6:] = 0
    else:
        feeds = {"input_features": rng.standard_normal((3, 8, 60)).astype(np.float32)}
    return feeds, text(rng, 6)


def answered(folder: Path, feeds: dict[str, np.ndarray], ids: np.ndarray) -> tuple[Any, Any]:
    """The encoder's vectors, and the decoder's logits, in steps."""
    encoder = create_session(folder / "encoder.onnx")
    decoder = create_session(folder / "decoder.onnx")
    states = run(encoder, feeds)["last_hidden_state"]
    read = {"encoder_hidden_states": states}
    if "attention_mask" in feeds:
        read["encoder_attention_mask"] = feeds["attention_mask"]
    past = {
        value.name: np.zeros((3, value.shape[1], 0, value.shape[3]), np.float32)
        for value in decoder.get_inputs()
        if value.name.startswith("past_key_values.")
    }
    assert past
    logits: list[np.ndarray] = []
    for start, end in ((0, 3), (3, 4), (4, 5), (5, 6)):
        step = run(decoder, {"input_ids": ids[:, start:end], **read, **past})
        logits.append(step["logits"])
        past = {each: step[each.replace("past_key_values", "present")] for each in past}
    return states, np.concatenate(logits, axis=1)


def test_pairs_step_by_step(pair):
    name, model, folder = pair
    feeds, ids = pair_feeds(name)
    wanted = called(model, feeds | {"decoder_input_ids": ids}, use_cache=False)
    states, logits = answered(folder, feeds, ids)
    same(states, wanted.encoder_last_hidden_state)
    same(logits, wanted.logits)


def test_pairs_compile_as_one(pair, tmp_path):
    name, _, folder = pair
    result = qcompiler.compile(folder, output=tmp_path / "out", calib_samples=8, calib_length=32)
    encoder, decoder = result.report.models
    assert encoder.output == tmp_path / "out" / "encoder.onnx"
    for report in (encoder, decoder):
        assert report.counts["linear_quantized"] == report.counts["linear"] > 0
    assert "encoder_hidden_states" in decoder.calibration
    assert f"from encoder.onnx on {encoder.calibration.partition(';')[0]}" in decoder.calibration
    feeds, ids = pair_feeds(name)
    exact, found = answered(folder, feeds, ids), answered(tmp_path / "out", feeds, ids)
    for kept, given in zip(exact, found, strict=True):
        assert sqnr_db(kept, given) > 17


PIXELS = {"pixel_values": (3, 3, 32, 32)}
WHOLE = {
    "vit": ("ViTForImageClassification", FAMILIES["vit"].options, PIXELS, ["logits"]),
    "dinov2": (
        "Dinov2Model",
        FAMILIES["dinov2"].options,
        PIXELS,
        ["last_hidden_state", "pooler_output"],
    ),
    "wav2vec2": (
        "Wav2Vec2ForCTC",
        FAMILIES["wav2vec2"].options,
        {"input_values": (3, 900)},
        ["logits"],
    ),
    "clip": (
        "CLIPModel",
        FAMILIES["clip"].options,
        {"pixel_values": (2, 3, 32, 32), "input_ids": (3, 9), "attention_mask": (3, 9)},
        ["logits_per_image", "logits_per_text", "text_embeds", "image_embeds"],
    ),
    "bert": (
        "BertForSequenceClassification",
        SMALL,
        dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), (3, 9)),
        ["logits"],
    ),
}


@pytest.mark.parametrize("name", WHOLE)
def test_models_that_are_one_graph(tmp_path, name):
    kind, options, shapes, outputs = WHOLE[name]
    model = saved(tmp_path / "hf", kind, dict(options))
    export_model(tmp_path / "hf", tmp_path / "out")
    runs = session(tmp_path / "out" / "model.onnx")
    assert {value.name for value in runs.get_inputs()} == set(shapes)
    assert [value.name for value in runs.get_outputs()] == outputs
    rng = np.random.default_rng(0)
    feeds: dict[str, Any] = {}
    for key, shape in shapes.items():
        whole = key.endswith(("ids", "mask"))
        top = 300 if key == "input_ids" else 2
        feeds[key] = (
            rng.integers(0, top, shape) if whole else rng.standard_normal(shape, np.float32)
        )
    if "attention_mask" in feeds:
        feeds["attention_mask"] = np.ones_like(feeds["attention_mask"])
    wanted = called(model, feeds)
    found = run(runs, feeds)
    for output in outputs:
        same(found[output], wanted[output])


def test_heads_without_weights_are_refused(tmp_path):
    saved(tmp_path / "hf", "ViTModel", dict(FAMILIES["vit"].options))
    config = tmp_path / "hf" / "config.json"
    named = json.loads(config.read_text()) | {"architectures": ["ViTForImageClassification"]}
    config.write_text(json.dumps(named))
    with pytest.raises(ExportError, match=r"lacks weights.*'classifier\.bias' \[2\] and 1 more"):
        export_model(tmp_path / "hf", tmp_path / "out")


def test_a_pooler_without_weights_is_left_out(tmp_path):
    saved(tmp_path / "hf", "ViTForImageClassification", dict(FAMILIES["vit"].options))
    config = tmp_path / "hf" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"architectures": ["ViTModel"]}))
    export_model(tmp_path / "hf", tmp_path / "out")
    runs = session(tmp_path / "out" / "model.onnx")
    assert [value.name for value in runs.get_outputs()] == ["last_hidden_state"]


def test_caches_that_cannot_be_handed_on(tmp_path, monkeypatch):
    model = saved(tmp_path / "hf", *DECODERS["gpt2"])
    monkeypatch.setattr(states, "_kinds", lambda _transformers: {})
    result = export_model(tmp_path / "hf", tmp_path / "out")
    assert [note for note in result.notes if "without key/value cache" in note]
    ids = text(np.random.default_rng(0))
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    found = run(session(tmp_path / "out" / "model.onnx"), feeds)
    assert list(found) == ["logits"]
    same(found["logits"], called(model, feeds).logits)


def untied(bits: int) -> Any:
    """A decoder whose embeddings are its head, rounded to `bits`; with 0, tables of their own."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**GROUPED, tie_word_embeddings=False)
    model = transformers.LlamaForCausalLM(config).eval()
    if bits:
        head = model.lm_head.weight.data
        scale = head.abs().amax() / 2 ** (bits - 1)
        model.model.embed_tokens.weight.data = (head / scale).round() * scale
    return model


@pytest.mark.parametrize("bits", [4, 6])
def test_two_roundings_of_a_table_become_one_when_asked(bits):
    model = untied(bits)
    (note,) = ties.settle(torch, model, tie=False)
    assert "--tie" in note
    head = model.lm_head.weight.clone()
    assert not torch.equal(model.model.embed_tokens.weight, head)
    assert ties.settle(torch, model, tie=True) == ()
    assert model.config.tie_word_embeddings
    assert torch.equal(model.model.embed_tokens.weight, head)
    assert torch.equal(model.lm_head.weight, head)
    assert ties.settle(torch, model, tie=True) == ()


def test_two_tables_are_not_tied():
    model = untied(0)
    before = model.model.embed_tokens.weight.clone()
    assert ties.settle(torch, model, tie=False) == ()
    with pytest.raises(ExportError, match="leave out --tie"):
        ties.settle(torch, model, tie=True)
    assert torch.equal(model.model.embed_tokens.weight, before)
