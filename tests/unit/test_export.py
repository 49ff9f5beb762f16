"""Export: what is found, what is refused, and that a failure leaves nothing behind."""

from __future__ import annotations

import json
import sys
import types

import numpy as np
import pytest

from qcompiler import export
from qcompiler.errors import ExportError, OutputError
from qcompiler.export import export_model, genai, sources, standard
from qcompiler.export.sources import check_weights, find_source, is_decoder


@pytest.fixture
def hf_folder(tmp_path):
    folder = tmp_path / "hf"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    return folder


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package `carrier`, to put a model into."""
    folder = tmp_path / "site" / "carrier"
    folder.mkdir(parents=True)
    # Importing it would fail: it must be found without.
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return folder


@pytest.mark.parametrize(
    ("src", "cause"),
    [
        ("nowhere", "no such file"),
        ("package:not_installed_at_all", "pip install --no-deps not_installed_at_all"),
        ("package:..", "is installed"),
    ],
)
def test_sources_that_are_not_there(src, cause):
    with pytest.raises(ExportError, match=cause):
        find_source(src)


def test_files_that_are_no_models(tmp_path):
    (tmp_path / "fake.gguf").write_bytes(b"not GGUF")
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(ExportError, match="not a GGUF file"):
        check_weights(find_source(str(tmp_path / "fake.gguf")))
    with pytest.raises(ExportError, match="only a Hugging Face folder"):
        find_source(str(tmp_path / "model.bin"))
    with pytest.raises(ExportError, match=r"config\.json"):
        find_source(str(tmp_path))


def test_package_with_a_gguf(package):
    (package / "m.gguf").write_bytes(b"GGUF")
    source = find_source("package:carrier")
    assert source.is_gguf
    assert source.path == package / "m.gguf"


def test_package_with_a_folder(package, hf_folder):
    hf_folder.rename(package / "model")
    assert find_source("package:carrier").path == package / "model"


def test_package_with_nothing_or_too_much(package):
    with pytest.raises(ExportError, match=r"holds no \.gguf"):
        find_source("package:carrier")
    for name in ("a.gguf", "b.gguf"):
        (package / name).write_bytes(b"GGUF")
    with pytest.raises(ExportError, match=r"name one: .*a\.gguf, .*b\.gguf"):
        find_source("package:carrier")


@pytest.mark.parametrize(
    ("architecture", "decoder"),
    [("LlamaForCausalLM", True), ("GPT2LMHeadModel", True), ("BertModel", False)],
)
def test_decoders_by_architecture(hf_folder, architecture, decoder):
    (hf_folder / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    assert is_decoder(hf_folder) == decoder


def write_model(_source, _folder, made, _work, _dialect, _precision):
    (made / "model.onnx").write_text("new")
    return "genai", ("slow",)


def test_output_is_complete_or_absent(tmp_path, hf_folder, monkeypatch):
    def fail(_source, _folder, made, _work, _dialect, _precision):
        (made / "model.onnx").write_text("half")
        raise ExportError("no luck")

    out = tmp_path / "deep" / "out"
    monkeypatch.setattr(export, "_export", fail)
    with pytest.raises(ExportError, match="no luck"):
        export_model(hf_folder, out)
    assert not out.parent.exists()
    monkeypatch.setattr(export, "_export", write_model)
    result = export_model(hf_folder, out)
    assert (out / "model.onnx").read_text() == "new"
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert result.to_dict()["path"] == str(out)
    assert result.notes == ("slow",)


def test_existing_output_is_kept_unless_asked(tmp_path, hf_folder, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious").write_text("mine")
    monkeypatch.setattr(export, "_export", write_model)
    for overwrite in (False, True):
        with pytest.raises(OutputError, match=r"no model.*name a new folder"):
            export_model(hf_folder, out, overwrite=overwrite)
    (out / "old.onnx").write_text("")
    with pytest.raises(OutputError, match=r"not empty.*--force"):
        export_model(hf_folder, out)
    assert (out / "precious").exists()
    export_model(hf_folder, out, overwrite=True)
    assert [path.name for path in out.iterdir()] == ["model.onnx"]
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(OutputError, match="is a file"):
        export_model(hf_folder, file)


@pytest.mark.parametrize(
    "options",
    [{"dialect": "onnx"}, {"precision": "int3"}, {"dialect": "torch", "precision": "int4"}],
)
def test_options_that_do_not_exist(tmp_path, hf_folder, options):
    with pytest.raises(ExportError, match="int4"):
        export_model(hf_folder, tmp_path / "out", **options)


def test_encoders_do_not_go_through_genai(tmp_path, hf_folder):
    (hf_folder / "config.json").write_text('{"architectures": ["BertModel"]}')
    with pytest.raises(ExportError, match="--dialect torch"):
        export_model(hf_folder, tmp_path / "out", dialect="genai")


@pytest.mark.parametrize("missing", ["torch", "transformers", "onnxscript"])
def test_missing_libraries_name_the_extra(tmp_path, hf_folder, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ExportError, match=r"pip install 'qcompiler\[export\]'"):
        export_model(hf_folder, tmp_path / "out", dialect="torch")


def test_missing_builder_names_the_extra(tmp_path, hf_folder, monkeypatch):
    monkeypatch.setattr(genai.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ExportError, match=r"pip install 'qcompiler\[export\]'"):
        genai.build(hf_folder, tmp_path / "out", tmp_path / "cache", "fp32")


def test_a_failing_builder_tells_its_last_words(tmp_path, hf_folder, monkeypatch):
    pytest.importorskip("onnxruntime_genai")
    monkeypatch.setattr(genai, "BUILDER", "json.tool")  # a module that refuses these arguments
    with pytest.raises(ExportError, match=r"exit code 2.*Is a directory") as caught:
        genai.build(hf_folder, tmp_path / "out", tmp_path / "cache", "fp32")
    assert "\n" not in str(caught.value)


# What fails at once


@pytest.fixture
def no_work(monkeypatch):
    """Nothing may be exported."""
    monkeypatch.setattr(export, "_export", lambda *_: pytest.fail("it began"))


def test_a_disk_without_room(tmp_path, hf_folder, monkeypatch, no_work):
    header = {
        "w": {"dtype": "F16", "shape": [300, 1000], "data_offsets": [0, 600_000]},
        "v": {"dtype": "F32", "shape": [50], "data_offsets": [600_000, 600_200]},
    }
    lead = json.dumps(header).encode()
    content = len(lead).to_bytes(8, "little") + lead + bytes(600_200)
    (hf_folder / "model.safetensors").write_bytes(content)
    found = sources.find_source(str(hf_folder))
    assert sources.check_weights(found) == 300_050
    usage = types.SimpleNamespace(free=1_000_000)
    monkeypatch.setattr(sources.shutil, "disk_usage", lambda _place: usage)
    with pytest.raises(ExportError, match=r"takes 1 MiB, and .* has 0 MiB left; free some"):
        export_model(hf_folder, tmp_path / "new" / "out")
    assert not (tmp_path / "new").exists()


def test_a_broken_tokenizer(tmp_path, hf_folder, no_work):
    (hf_folder / "tokenizer.json").write_text('{"a": 1}')
    with pytest.raises(ExportError, match=r"tokenizer.json is no usable tokenizer.*again"):
        export_model(hf_folder, tmp_path / "out")


def test_int4_in_standard_operators(tmp_path, hf_folder, no_work):
    with pytest.raises(ExportError, match="int4 exists in the genai dialect only"):
        export_model(hf_folder, tmp_path / "out", dialect="torch", precision="int4")


def test_the_builder_is_not_asked_for_a_model_without_tokenizer(hf_folder):
    (hf_folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    for file in hf_folder.glob("tokenizer*"):
        file.unlink()
    assert "holds no tokenizer" in (genai.obstacle(hf_folder) or "")
    (hf_folder / "tokenizer.model").write_text("")
    assert "tokenizer" not in (genai.obstacle(hf_folder) or "")


SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "vocab_size": 32}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2}


@pytest.mark.usefixtures("nothing_built")
@pytest.mark.parametrize("dialect", ["auto", "genai", "torch"])
@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (
            {"intermediate_size": 48},
            r"down_proj\.weight' has sizes \[16, 32\], and config\.json makes it \[16, 48\]; put",
        ),
        (
            {"num_hidden_layers": 2},
            r"lacks weights of LlamaForCausalLM as config\.json describes it, "
            r"'model\.layers\.1\.input_layernorm\.weight' \[16\] and 8 more; put",
        ),
    ],
)
def test_weights_of_another_config(tmp_path, change, cause, dialect):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(**SIZES, **HEADS)
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(tmp_path / "m")
    (tmp_path / "m" / "tokenizer.model").touch()  # the builder needs one
    written = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps(written | change))
    with pytest.raises(ExportError, match=cause):
        export_model(tmp_path / "m", tmp_path / "out", dialect=dialect)


@pytest.fixture
def nothing_built(monkeypatch):
    """No model may be built."""
    monkeypatch.setattr(genai, "build", lambda *_: pytest.fail("it was built"))
    monkeypatch.setattr(standard, "export_torch", lambda *_: pytest.fail("it was traced"))


@pytest.mark.parametrize(
    ("changed", "cause"),
    [
        (
            {"blk.0.ffn_down.weight": (16, 24)},
            r"down_proj\.weight' has sizes \[16, 24\], and its metadata makes it",
        ),
        (
            {"blk.0.ffn_norm.weight": None},
            r"as its metadata describes it, '.*\.0\.post_attention_layernorm\.weight' \[16\]; ",
        ),
    ],
)
def test_a_gguf_file_whose_weights_do_not_fit(tmp_path, changed, cause):
    pytest.importorskip("transformers")
    write_gguf(tmp_path / "m.gguf", changed)
    with pytest.raises(ExportError, match=cause):
        export_model(tmp_path / "m.gguf", tmp_path / "out")


def write_gguf(path, changed):
    """A Llama of one layer, without a tokenizer; `changed`: other shapes, None for none."""
    gguf = pytest.importorskip("gguf")
    square, wide = (16, 16), (32, 16)
    shapes = {
        "token_embd.weight": wide,
        "output_norm.weight": (16,),
        "blk.0.attn_norm.weight": (16,),
        "blk.0.ffn_norm.weight": (16,),
        **{f"blk.0.attn_{each}.weight": square for each in ("q", "k", "v", "output")},
        **{f"blk.0.ffn_{each}.weight": wide for each in ("gate", "up")},
        "blk.0.ffn_down.weight": (16, 32),
        **changed,
    }
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_block_count(1)
    writer.add_embedding_length(16)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(32)
    for name, shape in shapes.items():
        if shape is not None:
            writer.add_tensor(name, np.ones(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_only_gguf_files_are_tied(tmp_path, hf_folder):
    with pytest.raises(ExportError, match=r"leave out --tie"):
        export_model(hf_folder, tmp_path / "out", tie=True)
    assert not (tmp_path / "out").exists()
