"""What people bring beside the model: one line says what is wrong, and nothing runs away."""

from __future__ import annotations

import json
import os
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tiny_models as tiny
from command_line import qc, refusal, short

from qcompiler import files, settings
from qcompiler.errors import ModelError
from qcompiler.export import export_model
from qcompiler.models import open_package

DEEP = "[" * 100_000
DEEP_OBJECT = '{"model":' * 100_000
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="POSIX files")


def generate(folder: Path, *more: str) -> str:
    return refusal("generate", folder, "w1", "--max-new-tokens", "1", *more)


# Configs


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (DEEP, "too deeply nested"),
        (DEEP_OBJECT, "too deeply nested"),
        ('{"a":' * 80 + "1" + "}" * 80, "more than 64 levels"),
        ("[1]", "expected a JSON object"),
        ("", "is not JSON"),
        ("9" * 5000, "is not JSON"),
        ('{"model": [1]}', "'model' must be an object"),
        ('{"model": {"decoder": 3}}', "'decoder' must be an object"),
        ('{"model": {"decoder": {"session_options": "x"}}}', "'session_options' must be"),
        ('{"model": {"decoder": {"filename": null}}}', "must be a plain name"),
        ('{"model": {"decoder": {"filename": "' + "x" * 5000 + '"}}}', "must be a plain name"),
        ('{"model": {"decoder": {"filename": "a\\u0000b"}}}', "holds no a\\x00b"),
    ],
    ids=short,
)
def test_genai_config_that_can_not_be_one(decoder, text, cause):
    (decoder / "genai_config.json").write_text(text)
    assert cause in generate(decoder)
    assert cause in refusal("compile", decoder, "--recipe", "rtn")


@pytest.mark.parametrize(
    "name",
    ["genai_config.json", "generation_config.json", "config.json", "tokenizer_config.json"],
    ids=short,
)
def test_configs_that_are_no_text(decoder, name):
    config = {"model": {"decoder": tiny.CONFIG["model"]["decoder"]}}  # it names no tokens
    (decoder / "genai_config.json").write_text(json.dumps(config))
    for content in (b"\xff\xfe\x00", DEEP.encode(), b"\x00" * 100):
        (decoder / name).write_bytes(content)
        assert name in generate(decoder)


@pytest.mark.parametrize(
    "odd", [None, [], {}, True, -1, 0.5, "a", 2**80, [None, "a", -2, 2**80]], ids=short
)
def test_odd_settings_are_left_alone(decoder, odd):
    keys = ("bos_token_id", "eos_token_id", "vocab_size", "context_length")
    config = {"model": {**dict.fromkeys(keys, odd), "decoder": tiny.CONFIG["model"]["decoder"]}}
    (decoder / "genai_config.json").write_text(json.dumps(config))
    for name in ("generation_config.json", "config.json"):
        (decoder / name).write_text(json.dumps({**dict.fromkeys(keys, odd), "max_position": odd}))
    (decoder / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": odd, "eos_token": {"content": odd}, "chat_template": odd})
    )
    package = open_package(decoder)
    assert package.bos_id() is None
    assert package.eos_ids() == ()
    assert package.context_length() is None
    assert qc("generate", decoder, "w1", "--max-new-tokens", "1").exit_code == 0


def test_a_config_with_null_compiles(decoder, tmp_path):
    (decoder / "genai_config.json").write_text('{"model": {"decoder": null}}')
    done = qc("compile", decoder, "-o", tmp_path / "o", "--recipe", "rtn")
    if done.exit_code:  # the decoder is too small to quantize: that is what must be said
        assert "holds nothing this recipe can quantize" in done.stderr


def test_accessors():
    found = {"n": 3, "zero": 0, "big": 2**40, "flag": True, "list": [1, True, -1, "x", 2]}
    assert settings.count(found, "n") == 3
    assert [settings.count(found, key) for key in ("zero", "big", "flag", "list")] == [None] * 4
    assert settings.token(found, "zero") == 0
    assert settings.tokens(found, "list") == (1, 2)
    assert settings.table({"a": {"b": [1]}}, "a", "b") == {}


@pytest.mark.parametrize("size", [10**12, 2**31], ids=short)
def test_a_vocabulary_of_billions(tmp_path, size):
    made = tiny.decoder(tiny.embedding(), head_dim=tiny.HIDDEN)
    folder = tiny.save(made, tmp_path / "d", config={"model": {"vocab_size": size}})
    assert qc("generate", folder, "w1", "--max-new-tokens", "1").exit_code == 0


# Files that are no files


@POSIX
@pytest.mark.parametrize(
    "name", ["genai_config.json", "chat_template.jinja", "tokenizer.json"], ids=short
)
def test_pipes_folders_and_loops_beside_a_model(decoder, name):
    (decoder / name).unlink(missing_ok=True)
    for make in (os.mkfifo, Path.mkdir, lambda path: path.symlink_to(path)):
        make(decoder / name)
        done = qc("generate", decoder, "w1", "--max-new-tokens", "1")
        assert done.exit_code == (1 if name == "tokenizer.json" else 0), done.output
        if (decoder / name).is_dir():
            (decoder / name).rmdir()
        else:
            (decoder / name).unlink()


@POSIX
def test_pipes_and_devices_that_are_named(model, decoder, tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "loop.txt").symlink_to(tmp_path / "loop.txt")
    for name in (tmp_path / "pipe.txt", tmp_path / "loop.txt", "/dev/zero"):
        assert "no calibration source" in refusal("compile", decoder, "--calib", name)
        assert "no text file" in refusal("eval", decoder, "--text", name)
        assert "unknown recipe" in refusal("compile", model, "-r", name)
        assert "no such file" in refusal("inspect", name)
        assert "no such file" in refusal("export", name, tmp_path / "out")
    (tmp_path / "z.npz").symlink_to("/dev/zero")
    assert "is no file" in refusal("compile", model, "--calib", tmp_path / "z.npz")


@POSIX
def test_a_file_that_becomes_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelError, match="is no regular file"):
        files.read_bytes(tmp_path / "pipe", 10, ModelError)
    with pytest.raises(ModelError, match="can't be read"):
        files.read_bytes(tmp_path / ("x" * 5000), 10, ModelError)


def test_files_that_are_too_large(model, tmp_path):
    with (tmp_path / "r.toml").open("wb") as file:
        file.truncate(files.RECIPE_BYTES + 1)
    assert "larger than 1 MiB" in refusal("compile", model, "-r", tmp_path / "r.toml")


def test_a_text_is_cut_between_characters(tmp_path, monkeypatch):
    from qcompiler.evaluation import texts

    monkeypatch.setattr(texts, "MAX_BYTES", 8)
    for text, kept in (("aaaaaaaé", "aaaaaaa"), ("aaaaaaéx", "aaaaaaé"), ("aaaaa😀x", "aaaaa")):
        (tmp_path / "t.txt").write_text(text, "utf-8")
        assert texts.read_text(str(tmp_path / "t.txt"), ModelError) == kept


# Texts


def test_lines_of_json(decoder, tmp_path):
    words = tiny.text(160)
    lines = tmp_path / "t.jsonl"
    for text, cause in (
        (DEEP, "line 1 is not JSON: too deeply nested"),
        ('{"text": "a"}\n{"text": ' + "9" * 5000 + "}", "line 2 is not JSON"),
        ("[1]", "line 1 has no text"),
        ("5", "line 1 has no text"),
    ):
        lines.write_text(text)
        assert cause in refusal("eval", decoder, "--text", lines)
    lines.write_text(json.dumps({"text": f"\ud800 {words} \udfff 😀 \\ud800"}))
    done = qc("eval", decoder, "--text", lines, "--window", "32", "--json")
    assert done.exit_code == 0, done.stderr


def test_lone_halves_of_characters_are_replaced():
    text = r'["\ud83d\ude00", "\ud83d", "\\ud83d", "\ude00\ud83d", "\uDBFFx"]'
    found = files.parse_json(text, "t", ModelError)
    assert found == ["😀", "�", "\\ud83d", "��", "�x"]


@pytest.mark.parametrize("content", [b"\xff\xfe", b"ab\xc3", b"\x80"], ids=short)
def test_texts_that_are_not_utf8(decoder, tmp_path, content):
    (tmp_path / "t.txt").write_bytes(content)
    assert "is not UTF-8 text (byte" in refusal("eval", decoder, "--text", tmp_path / "t.txt")


def test_a_prompt_that_is_not_utf8(decoder):
    assert "the prompt is not UTF-8 text" in refusal("generate", decoder, "w1\udcff")


# Archives


def npy(header: str, data: bytes = b"", version: int = 1) -> bytes:
    text = header.encode()
    return b"\x93NUMPY" + bytes([version, 0]) + len(text).to_bytes(2, "little") + text + data


def archive(path: Path, name: str, content: bytes, kind: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", kind) as made:
        made.writestr(name, content)
    return path


PLAIN = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 64)}"


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (npy(PLAIN.replace("<f4", "|O"), b"\x80\x04K\x01."), "holds objects, not numbers"),
        (b"\x80\x04K\x01.", "can't be read as .npz"),
        (b"", "can't be read as .npz"),
        (npy(PLAIN, bytes(511)), "says 512 bytes and has 511"),
        (npy(PLAIN, bytes(513)), "says 512 bytes and has 513"),
        (npy(PLAIN.replace("2, 64", "10**15,"), b""), "can't be read as .npz"),
        (npy(PLAIN.replace("2, 64", "1000000000000000,"), b""), "says 4000000000000000 bytes"),
        (npy(PLAIN.replace("2, 64", "-1, 64"), b""), "says"),
        (npy("(" * 9000), "can't be read as .npz"),
        (npy(PLAIN, bytes(512), version=9), "can't be read as .npz"),
        (npy("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2,)}", bytes(8)), "obj"),
    ],
    ids=short,
)
def test_arrays_that_are_none(model, tmp_path, content, cause):
    told = refusal("compile", model, "--calib", archive(tmp_path / "f.npz", "x.npy", content))
    assert cause in told and "f.npz" in told


def test_archives_of_terabytes(model, tmp_path):
    """Zeros deflate to a thousandth: the limit is on what they say they hold."""
    shape = (80, 16_384, 1_024)
    header = PLAIN.replace("2, 64", ", ".join(map(str, shape))).encode()
    member = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    path = tmp_path / "f.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as made:
        made.writestr("x.npy", member)
    raw = bytearray(path.read_bytes())
    huge = len(member) + 4 * int(np.prod(shape))  # the directory says so; the file does not
    at = raw.rindex(b"PK\x01\x02") + 24
    raw[at : at + 4] = min(huge, 2**32 - 2).to_bytes(4, "little")
    path.write_bytes(raw)
    start = time.process_time()
    assert "f.npz" in refusal("compile", model, "--calib", path)
    assert time.process_time() - start < 20


def test_archives_with_more_than_there_is_room_for(model, tmp_path, monkeypatch):
    from qcompiler.calibration import arrays

    monkeypatch.setattr(arrays, "MOST_BYTES", 2000)
    np.savez(tmp_path / "f.npz", x=np.ones((20, 64), "f4"))
    assert "may be held" in refusal("compile", model, "--calib", tmp_path / "f.npz")
    folder = tmp_path / "many"
    folder.mkdir()
    for index in range(3):
        np.savez(folder / f"{index}.npz", x=np.ones((4, 64), "f4"))
    assert "may be held" in refusal("compile", model, "--calib", folder)


def test_archives_are_read_as_numpy_reads_them(tmp_path):
    from qcompiler.archives import read_npz

    given = {
        "a": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "b": np.array(["x", "yy"]),
        "c": np.zeros((0, 3), "i8"),
        "d": np.float32(2.5),
        "e": np.arange(4, dtype=">i4"),
    }
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "f.npz", **given)
        with np.load(tmp_path / "f.npz") as expected:
            found = read_npz(tmp_path / "f.npz", 1 << 20, ModelError)
            assert found.keys() == set(expected)
            for name, values in found.items():
                np.testing.assert_array_equal(values, expected[name])
                assert values.dtype == expected[name].dtype


def test_many_members(model, tmp_path):
    with zipfile.ZipFile(tmp_path / "f.npz", "w") as made:
        for index in range(5000):
            made.writestr(f"{index}.npy", b"")
    assert "holds 5000 arrays" in refusal("compile", model, "--calib", tmp_path / "f.npz")


# Tokenizers


@pytest.mark.parametrize(
    "change",
    [
        lambda found: found["post_processor"]["special_tokens"].clear(),  # panics
        lambda found: found.update(model=[]),
        lambda found: found.update(added_tokens=None, model=None),
    ],
    ids=short,
)
def test_tokenizers_that_are_none(tmp_path, change, capfd):
    made = tiny.decoder(tiny.embedding(), head_dim=tiny.HIDDEN)
    folder = tiny.save(made, tmp_path / "d", config=tiny.CONFIG, template="[BOS] $A")
    found = json.loads((folder / "tokenizer.json").read_text())
    change(found)
    (folder / "tokenizer.json").write_text(json.dumps(found))
    assert "is not a usable tokenizer" in generate(folder)
    assert capfd.readouterr() == ("", "")  # nor does the library print


@pytest.mark.parametrize(
    "content", [b"", b"\xff", DEEP.encode(), b'{"version": ' + b"9" * 5000], ids=short
)
def test_tokenizers_that_are_no_json(decoder, content):
    (decoder / "tokenizer.json").write_bytes(content)
    assert "is not a usable tokenizer" in generate(decoder)


# Weights to export


def hf_folder(tmp_path: Path, content: bytes) -> Path:
    folder = tmp_path / "hf"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (folder / "model.safetensors").write_bytes(content)
    return folder


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "is cut off"),
        ((2**63).to_bytes(8, "little"), "is cut off"),
        ((5).to_bytes(8, "little") + b"[[[[[", "is not JSON"),
        ((100_000).to_bytes(8, "little") + DEEP.encode(), "too deeply nested"),
        ((2).to_bytes(8, "little") + b"[]", "is no JSON object"),
        ((8).to_bytes(8, "little") + b'{"w": 1}', "tensor 'w' lies outside"),
    ],
    ids=short,
)
def test_safetensors_that_are_none(tmp_path, content, cause):
    folder = hf_folder(tmp_path, content)
    assert cause in refusal("export", folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


GGUF = b"GGUF\x03\0\0\0" + bytes(8) + (b"\x01" + bytes(7)) * 2 + b"k"
"""A header with one entry, named k."""


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"GGU", "is not a GGUF file"),
        (b"GGUF", "is cut off"),
        (b"GGUF" + bytes(20), "GGUF version 0"),
        (b"GGUF\x03\0\0\0" + bytes(8) + b"\xff" * 8, "is cut off"),
        (b"GGUF\x03\0\0\0" + b"\xff" * 8 + bytes(8), "is cut off"),
        (GGUF + b"\x09\0\0\0" + bytes(4) + (2**60).to_bytes(8, "little"), "is cut off"),
        (GGUF + (b"\x09\0\0\0" + b"\x01" + bytes(7)) * 9, "is cut off"),
        (GGUF + b"\x09\0\0\0" * 4 + bytes(8), "is cut off"),
        (GGUF + b"\x63\0\0\0", "unknown type 99"),
    ],
    ids=short,
)
def test_gguf_that_is_none(tmp_path, content, cause):
    (tmp_path / "m.gguf").write_bytes(content)
    assert cause in refusal("export", tmp_path / "m.gguf", tmp_path / "out")


@pytest.mark.parametrize(
    "config", ['{"architectures": 5}', '{"architectures": [[]]}', DEEP, "5"], ids=short
)
def test_configs_to_export(tmp_path, config):
    folder = hf_folder(tmp_path, (2).to_bytes(8, "little") + b"{}")
    (folder / "config.json").write_text(config)
    from qcompiler.errors import ExportError

    with pytest.raises(ExportError):
        export_model(folder, tmp_path / "out", dialect="genai")
