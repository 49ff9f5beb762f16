"""Finding a model's files, and refusing what is broken, by name."""

from __future__ import annotations

import json

import onnx
import pytest
import tiny_models as tiny

from qcompiler.errors import ModelError, RuntimeLibraryError
from qcompiler.models import open_package
from qcompiler.session import create_session


@pytest.fixture
def folder(tmp_path):
    model = tiny.decoder(tiny.embedding())
    return tiny.save(model, tmp_path / "m", config=tiny.CONFIG, external=True)


def test_folder_and_file_give_the_same_model(folder):
    by_folder, by_file = open_package(folder), open_package(folder / "model.onnx")
    assert by_folder.onnx_path == by_file.onnx_path
    assert by_folder.folder == folder
    assert by_file.folder is None
    assert by_file.tokenizer_file == folder / "tokenizer.json"
    assert by_folder.name == by_file.name == "m"
    assert by_folder.bos_id() == tiny.BOS
    assert by_folder.eos_ids() == (tiny.EOS,)
    assert by_folder.special_ids() == {0, 1, 2}


def test_filename_comes_from_the_config(folder):
    config = json.loads((folder / "genai_config.json").read_text())
    config["model"]["decoder"]["filename"] = "other.onnx"
    (folder / "genai_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"holds no other\.onnx"):
        open_package(folder)
    (folder / "model.onnx").rename(folder / "other.onnx")
    assert open_package(folder).onnx_path.name == "other.onnx"


def test_filename_may_not_leave_the_folder(folder):
    config = json.loads((folder / "genai_config.json").read_text())
    config["model"]["decoder"]["filename"] = "../model.onnx"
    (folder / "genai_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="plain name"):
        open_package(folder)


def test_size_counts_model_and_data_only(folder):
    (folder / "unrelated.bin").write_bytes(b"x" * 1000)
    package = open_package(folder)
    data = folder / "model.onnx.data"
    assert package.data_files == (data,)
    assert package.size_bytes() == (folder / "model.onnx").stat().st_size + data.stat().st_size


def test_special_tokens_from_the_tokenizer_config(tmp_path):
    folder = tiny.save(tiny.decoder(tiny.embedding()), tmp_path)
    package = open_package(folder)
    assert package.bos_id() is None
    settings = {"bos_token": {"content": "[BOS]"}, "eos_token": "[EOS]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert package.bos_id() == tiny.BOS
    assert package.eos_ids() == (tiny.EOS,)


@pytest.mark.parametrize(
    ("template", "frame"),
    [("$A", ([], [])), ("[BOS] $A", ([1], [])), ("[BOS] $A [EOS]", ([1], [2]))],
)
def test_frame_is_what_the_tokenizer_adds(tmp_path, template, frame):
    folder = tiny.save(tiny.encoder(tiny.embedding()), tmp_path, template=template)
    assert open_package(folder).frame() == frame


def test_tokenizer_truncation_and_padding_are_off(tmp_path):
    folder = tiny.save(tiny.encoder(tiny.embedding()), tmp_path)
    padded = tiny.tokenizer()
    padded.enable_truncation(4)
    padded.enable_padding(length=4)
    padded.save(str(folder / "tokenizer.json"))
    tokenizer = open_package(folder).tokenizer()
    assert len(tokenizer.encode(tiny.text(9)).ids) == 9
    assert len(tokenizer.encode(tiny.text(2)).ids) == 2


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x0a", b"PK\x03\x04" + b"\0" * 99])
def test_no_onnx_file(tmp_path, content):
    file = tmp_path / "model.onnx"
    file.write_bytes(content)
    with pytest.raises(ModelError, match="not an ONNX model"):
        open_package(file)


def test_truncated_model(folder):
    file = folder / "model.onnx"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ModelError, match="cut off"):
        open_package(file)


@pytest.mark.parametrize("name", ["nothing.onnx", "empty"])
def test_missing(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=name):
        open_package(tmp_path / name)


def test_truncated_data(folder):
    data = folder / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:-4])
    with pytest.raises(ModelError, match=r"model\.onnx\.data is cut off: \d+ bytes needed"):
        open_package(folder).size_bytes()


def test_missing_data(folder):
    (folder / "model.onnx.data").unlink()
    with pytest.raises(ModelError, match="is missing"):
        open_package(folder)


@pytest.mark.parametrize("location", ["../outside.data", "/etc/hostname", "link.data", ""])
def test_data_outside_the_folder(folder, location):
    outside = folder.parent / "outside.data"
    outside.write_bytes(b"\0" * 10_000)
    (folder / "link.data").symlink_to(outside)
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = location
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="outside the model's folder"):
        open_package(folder)


def test_hub_cache_links_are_followed(folder):
    # A hub cache keeps all files in one store and links to them from the model's folder.
    link = folder.parent / "snapshot"
    link.mkdir()
    for file in folder.iterdir():
        (link / file.name).symlink_to(file)
    assert len(open_package(link).data_files) == 1


def test_external_data_of_constants_counts(folder):
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    constant = onnx.TensorProto(name="c", data_type=onnx.TensorProto.FLOAT, dims=[1])
    constant.data_location = onnx.TensorProto.EXTERNAL
    constant.external_data.add(key="location", value="constant.data")
    node = onnx.helper.make_node("Constant", [], ["c"], value=constant)
    model.graph.node.insert(0, node)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=r"'c'.*constant\.data is missing"):
        open_package(folder)


def custom_op_model(tmp_path):
    model = tiny.linear()
    model.graph.node[0].domain = "ai.qcompiler"
    model.opset_import.add(domain="ai.qcompiler", version=1)
    file = tmp_path / "custom.onnx"
    onnx.save(model, file)
    return file


def test_session_of_a_plain_model_needs_no_library(folder, monkeypatch, caplog):
    monkeypatch.setenv("QCOMPILER_LIBRARY", "/nowhere")
    create_session(folder)
    assert "without the op library" not in caplog.text
    with pytest.raises(RuntimeLibraryError):
        create_session(folder, library=True)


def test_session_without_library_says_so(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("QCOMPILER_LIBRARY", "/nowhere")
    file = custom_op_model(tmp_path)
    with pytest.raises(ModelError, match="ONNX Runtime refuses it"):
        create_session(file)  # this model has no function body to run by
    assert "without the op library" in caplog.text


def test_session_errors_are_one_line(folder):
    model = onnx.load(folder / "model.onnx")
    model.graph.node[0].op_type = "NoSuchOp"
    onnx.save(model, folder / "bad.onnx")
    with pytest.raises(ModelError, match="NoSuchOp") as caught:
        create_session(folder / "bad.onnx")
    assert "\n" not in str(caught.value)


def test_session_refuses_unknown_providers(folder):
    with pytest.raises(ModelError, match="NoSuchProvider"):
        create_session(folder, providers=["NoSuchProvider"])
