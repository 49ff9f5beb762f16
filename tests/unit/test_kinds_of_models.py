"""What a config says of a model, and what onnxruntime-genai's builder is handed."""

from __future__ import annotations

import json

import pytest
from command_line import qc

from qcompiler import export
from qcompiler.errors import ExportError
from qcompiler.export import ExportResult, export_model, fit, genai, kinds, standard
from qcompiler.export.hf import cause_of

LONGROPE = {"type": "su", "rope_type": "longrope", "short_factor": [1.0]}


def config(name, **more):
    return {"architectures": [name], **more}


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("GPT2LMHeadModel", "decoder"),
        ("BertForTokenClassification", "head"),
        ("CLIPTextModelWithProjection", "head"),
        ("BertForMaskedLM", "bare"),
        ("SiglipModel", "bare"),
    ],
)
def test_roles_by_the_name_of_the_class(name, role):
    assert kinds.role_of(config(name)) == role


@pytest.mark.parametrize("name", ["MarianMTModel", "T5ForConditionalGeneration"])
def test_pairs_are_encoder_decoders(name):
    assert kinds.role_of(config(name, is_encoder_decoder=True)) == "pair"


@pytest.mark.parametrize(
    ("described", "cause"),
    [
        (config("T5Model", is_encoder_decoder=True), "without a head"),
        (config("LlavaForConditionalGeneration"), "reads more than text"),
        (config("MambaForCausalLM", model_type="mamba"), "texts of one length"),
        (config("Qwen3NextForCausalLM", model_type="qwen3_next"), "texts of one length"),
    ],
)
def test_models_without_an_export(described, cause):
    with pytest.raises(ExportError, match=cause):
        kinds.role_of(described)


@pytest.mark.parametrize(
    ("seen", "preprocessor", "size"),
    [
        ({"image_size": 32}, {}, (32, 32)),
        ({"image_size": [32, 64]}, {}, (32, 64)),
        ({"vision_config": {"image_size": 16}}, {"size": {"height": 8, "width": 8}}, (16, 16)),
        ({}, {"crop_size": {"height": 8, "width": 9}}, (8, 9)),
        ({}, {"size": {"shortest_edge": 8}}, ("height", "width")),
    ],
)
def test_sizes_of_images(seen, preprocessor, size):
    axes = kinds.axes_of("pixel_values", seen, preprocessor, beside_text=False)
    assert axes == ("batch", 3, *size)


@pytest.fixture
def builder(tmp_path, monkeypatch):
    """A builder of Llama, and of Gemma 3, which it fails on."""
    models = tmp_path / "genai" / "models"
    models.mkdir(parents=True)
    names = ("LlamaForCausalLM", "Gemma3ForCausalLM")
    lines = [f'elif config.architectures[0] == "{name}":' for name in names]
    (models / "builder.py").write_text("\n".join(lines))
    monkeypatch.setattr(genai, "package_folder", lambda _name: models.parent)
    monkeypatch.setattr(fit, "check_fit", lambda _folder: None)  # the folders below hold no weights


def hf_folder(tmp_path, name):
    folder = tmp_path / "hf"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config(name)))
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    (folder / "tokenizer.model").touch()  # the builder needs one
    return folder


@pytest.mark.usefixtures("builder")
@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("LlamaForCausalLM", None),
        ("GPT2LMHeadModel", "can't build GPT2LMHeadModel"),
        ("Gemma3ForCausalLM", "rotary embeddings of two kinds"),
        ("BertModel", "no decoder"),
    ],
)
def test_the_dialect_is_chosen_before_anything_is_read(tmp_path, monkeypatch, name, cause):
    folder = hf_folder(tmp_path, name)
    monkeypatch.setattr(genai, "build", lambda _source, made, *_: (made / "model.onnx").touch())
    monkeypatch.setattr(standard, "export_torch", lambda _source, _made: ("slow",))
    result = export_model(folder, tmp_path / "out")
    assert result.dialect == ("torch" if cause else "genai")
    told = any(
        f"standard operators: onnxruntime-genai can't build {name}" in n for n in result.notes
    )
    assert told == (name in ("GPT2LMHeadModel", "Gemma3ForCausalLM"))
    if cause:
        with pytest.raises(ExportError, match=f"{cause}.*--dialect torch"):
            export_model(folder, tmp_path / "out", dialect="genai", overwrite=True)
        with pytest.raises(ExportError, match=f"genai dialect only.*{cause}"):
            export_model(folder, tmp_path / "out", precision="int4", overwrite=True)


@pytest.mark.usefixtures("builder")
def test_a_failure_of_the_builder_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(_source, made, *_):
        (made / "model.onnx.data").touch()
        raise ExportError("KeyError: 'rope'")

    folder = hf_folder(tmp_path, "LlamaForCausalLM")
    monkeypatch.setattr(genai, "build", fail)
    monkeypatch.setattr(standard, "export_torch", lambda _source, _made: ())
    result = export_model(folder, tmp_path / "out")
    assert result.notes == ("in standard operators: KeyError: 'rope'",)
    assert not [*(tmp_path / "out").iterdir()]
    with pytest.raises(ExportError, match="KeyError: 'rope'; use --dialect torch"):
        export_model(folder, tmp_path / "other", dialect="genai")


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (config("LlamaForCausalLM", sliding_window=4, num_hidden_layers=1), {}),
        (config("MistralForCausalLM", sliding_window=None, num_hidden_layers=1), {}),
        (
            config("MistralForCausalLM", sliding_window=4, num_hidden_layers=2),
            {"layer_types": ["sliding_attention"] * 2},
        ),
        (
            config("Phi3ForCausalLM", max_position_embeddings=9),
            {"original_max_position_embeddings": 9},
        ),
        (
            config("Phi3ForCausalLM", max_position_embeddings=9, rope_scaling=LONGROPE),
            {"rope_scaling": LONGROPE | {"type": "longrope"}},
        ),
    ],
)
def test_configs_in_the_words_of_the_builder(tmp_path, given, wanted):
    folder = tmp_path / "hf"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(given))
    (folder / "model.safetensors").write_bytes(b"weights")
    read = genai.adapted(folder, tmp_path / "copy")
    assert json.loads((read / "config.json").read_text()) == given | wanted
    assert (read / "model.safetensors").read_bytes() == b"weights"
    assert json.loads((folder / "config.json").read_text()) == given
    assert (read == folder) == (not wanted)


def test_the_first_cause_is_told_without_colours():
    try:
        try:
            raise KeyError("head\ndim")
        except KeyError as error:
            raise RuntimeError("\x1b[96mstep 1/3\x1b[0m failed") from error
    except RuntimeError as error:
        assert cause_of(error) == "KeyError: 'head\\ndim'"
    assert cause_of(ValueError("\x1b[96mstep\x1b[0m\n failed")) == "ValueError: step failed"
    assert len(cause_of(ValueError("word " * 1000))) < 350


def test_the_terminal_tells_the_notes(tmp_path, monkeypatch):
    result = ExportResult(tmp_path, "hf", "torch", "fp32", 1.0, ("without tokenizer.json",))
    monkeypatch.setattr(export, "export_model", lambda *_args, **_options: result)
    told = qc("export", "hf", tmp_path)
    assert "torch fp32, 1 s" in told.stdout
    assert told.stderr.strip() == "note: without tokenizer.json"
    assert json.loads(qc("export", "hf", tmp_path, "--json").stdout)["notes"] == [*result.notes]
