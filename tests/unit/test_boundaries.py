"""What people bring beside the model: one line says what is wrong, and nothing runs away."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny_models as tiny
from command_line import qc, refusal
from odd_models import W, linear, model_of

from qcompiler import cli, console, files, literals, settings
from qcompiler.chat import render
from qcompiler.chat_child import SECONDS
from qcompiler.errors import ModelError, RecipeError
from qcompiler.escapes import in_json, printable
from qcompiler.export import export_model
from qcompiler.foreign import runtime_errors
from qcompiler.models import open_package
from qcompiler.patterns import matches, require_pattern
from qcompiler.report.text import unnumbered


def short(value: object) -> str:
    """A name for a case: the operating system hands it to child processes."""
    return "" if callable(value) else repr(value)[:40]


DEEP = "[" * 100_000
DEEP_OBJECT = '{"model":' * 100_000
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="POSIX files")


@pytest.fixture
def decoder(tmp_path) -> Path:
    made = tiny.decoder(tiny.embedding(), head_dim=tiny.HIDDEN)
    return tiny.save(made, tmp_path / "d", config=tiny.CONFIG)


@pytest.fixture
def model(tmp_path) -> Path:
    onnx.save(linear(w=W), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


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


# Recipes, pipelines and numbers


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("a = " + "[" * 100_000, "too deeply nested"),
        ("a = " + "[" * 100 + "]" * 100, "more than 64 levels"),
        ("a." * 50_000 + "b = 1", "a key has more than 64 parts"),
        ("min_sqnr_db = " + "9" * 5000, "is not valid TOML"),
        ("min_sqnr_db = 0x" + "f" * 5000, "must be at most 10^18, not a number of more than 80"),
        ("min_sqnr_db = [[1]]", "must be float, not a list of 1"),
        ("calibration_samples = " + "9" * 30, "must be at most 10^18"),
        ("calibration_samples = true", "must be int, not True"),
        ("name = [1]", "must be str, not a list of 1"),
        ('name = "' + "x" * 1000 + ' "', "must consist of letters"),
        ("description = 5", "must be str"),
        ("[[pass]]\nname = 5", "has no name"),
        ('base = "w4a8"\n[[pass]]\nname = {a = 1}', "has no pass a table of 1"),
        ("name = 1979-05-27", "must be str, not datetime.date"),
        ("\ufeffname = ", "is not valid TOML"),
    ],
    ids=short,
)
def test_recipes_that_are_none(model, tmp_path, text, cause):
    (tmp_path / "r.toml").write_text(text + '\n[[pass]]\nname = "import"\n', "utf-8")
    told = refusal("compile", model, "-r", tmp_path / "r.toml")
    assert cause in told and "r.toml" in told and len(told) < 1000


@pytest.mark.parametrize(
    "value",
    ["1_0", "٣", "0x10", "1e999", "9" * 5000, "(" * 5000, "[" * 5000, "__import__('os')"],
    ids=short,
)
def test_options_that_are_no_numbers(model, value):
    told = refusal("compile", model, "--set", f"plan-weights.min_rows={value}")
    assert "min_rows" in told
    assert qc("opt", model, "-p", f"plan-weights{{min_rows={value}}}").exit_code == 1


@pytest.mark.parametrize(
    "arguments",
    [
        *(("--calib-samples", text) for text in ("1_0", "٣", "1.5", "0", "-1", "9" * 5000, "")),
        *(("--budget", text) for text in ("1_0", "nan", "inf", "٣", "", "1e999", "bpw")),
        *(("--max-kl", text) for text in ("nan", "inf", "1_0", "٣")),
        *(("--seed", text) for text in ("-1", "1_0", "9" * 30)),
    ],
    ids=short,
)
def test_numbers_on_the_command_line(model, arguments):
    done = qc("compile", model, *arguments)
    assert done.exit_code == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert arguments[0] in done.stderr


@pytest.mark.parametrize("value", ["0", "-1", "-0", "-0.0"], ids=short)
def test_limits_that_are_not_positive(model, value):
    assert "must be positive" in refusal("compile", model, f"--budget={value}")
    assert "must be positive" in refusal("compile", model, f"--max-kl={value}")


def test_numbers():
    assert literals.whole("-12") == -12
    assert literals.real("-1.5e-3") == -0.0015
    for text in ("1_0", "٣", "", " 1", "0x1", "1.0", "9" * 19):
        with pytest.raises(ValueError, match="whole"):
            literals.whole(text)
    for text in ("1_0.0", "nan", "inf", "1e999", "", ".", "٣.0"):
        with pytest.raises(ValueError, match="finite"):
            literals.real(text)
    assert literals.value('["a, b", c, 1, 2.5, true]') == ["a, b", "c", 1, 2.5, True]
    assert literals.value("[]") == []
    assert literals.value("int4 g128 sym") == "int4 g128 sym"


def test_long_pipelines_are_read_at_once(model):
    start = time.process_time()
    for text in (" " * 100_000 + "!", "import{" + "," * 100_000, "a=" * 50_000, "import," * 1_000):
        qc("opt", model, "-p", text + "nothere")
    assert time.process_time() - start < 20


@pytest.mark.parametrize("offset", ["1_0", "٣", "-0", "0x0", "1e3", "9" * 5000, " 1"], ids=short)
def test_offsets_that_are_no_numbers(tmp_path, offset):
    from odd_models import edited

    path = tmp_path / "m.onnx"
    onnx.save(linear(w=W), path, save_as_external_data=True, location="d", size_threshold=0)
    edited(path, offset=offset)
    assert "not a byte count" in refusal("inspect", path)


# Patterns


@pytest.mark.parametrize(
    ("pattern", "cause"),
    [
        ("(", "is no regular expression"),
        ("(" * 2000, "is no regular expression"),
        ("a{" + "9" * 5000 + "}", "too long"),
        ("(((a{1000}){1000}){1000}){1000}", "repeats more than"),
        ("a" * 5000, "too long"),
    ],
    ids=short,
)
def test_patterns_that_are_none(model, pattern, cause):
    assert cause in refusal("compile", model, "--nodes-to-exclude", pattern)


def test_patterns_that_never_end():
    name = "a" * 40 + "!"
    for pattern in ("(a+)+$", "(a|aa)+b$", "(?R)"):
        start = time.process_time()
        try:
            matches(pattern, name)
        except RecipeError as error:
            assert "takes too long to match" in str(error)
        assert time.process_time() - start < 20
    with pytest.raises(RecipeError, match="takes too long"):
        matches(r"(a+)+(b+)+c|(.*)*\1x(.+)+y$", "ab" * 2000)
    assert not matches("b", "a" * 100_000)
    require_pattern("^(" + "|".join(f"model\\.layers\\.{n}\\.fc1" for n in range(64)) + ")$")


def test_names_with_one_quote_are_read_once():
    start = time.process_time()
    assert unnumbered("'" + "1" * 200_000) == "'" + "1" * 200_000
    assert unnumbered("it's 'fc1' and 'fc2'") == "it's 'fc*' and 'fc*'"
    assert time.process_time() - start < 5


# Chat templates


def test_templates_give_what_they_say():
    template = (
        "{%- for m in messages %}\n  {% if m.role == 'user' %}\n<|im_start|>{{ m['role'] }}\n"
        "{{ m['content'] | trim }}é😀<|im_end|>\n  {% endif %}\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}{{ bos_token }}"
    )
    pytest.importorskip("jinja2")
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    messages = [{"role": "user", "content": " hi\nthere "}]
    expected = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    assert render(template, messages) == expected.from_string(template).render(
        messages=messages, add_generation_prompt=True, bos_token="", eos_token=""
    )


@pytest.mark.parametrize(
    ("template", "cause"),
    [
        ("{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3, f"more than {SECONDS} s"),
        ("{% set a = 'x' * 1000000000 %}{{ a }}", "MiB"),
        ("{{ (['x' * 100000] * 100000) | join }}", "MiB"),
        ("{{ 'x' * 5000000 }}", "million characters"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{% if 1 %}" * 20_000, "RecursionError"),
        ("{{ " + "(" * 50_000, "RecursionError"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ nothing.at.all }}", "undefined"),
        ("{% for %}", "TemplateSyntaxError"),
    ],
    ids=short,
)
@pytest.mark.skipif(sys.platform == "win32", reason="no limits of memory")
def test_templates_that_run_away(template, cause):
    pytest.importorskip("jinja2")
    start = time.process_time()
    with pytest.raises(ModelError, match="chat template") as caught:
        render(template, [{"role": "user", "content": "hi"}])
    assert cause in str(caught.value)
    assert time.process_time() - start < 5  # this process only waits


def test_a_template_is_refused_on_the_command_line(decoder):
    pytest.importorskip("jinja2")
    (decoder / "chat_template.jinja").write_bytes(b"\xff")
    assert "is not UTF-8 text" in generate(decoder, "--chat")
    (decoder / "chat_template.jinja").write_text("{{ 9 / 0 }}")
    assert "ZeroDivisionError" in generate(decoder, "--chat")


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


# Calibration data


def wide(tmp_path: Path, *sizes: int) -> Path:
    inputs = ", ".join(f"float[{size}, 64] x{i}" for i, size in enumerate(sizes))
    text = f"g ({inputs}) => (float[{sizes[0]}, 96] y) {{ y = MatMul(x0, w) }}"
    onnx.save(model_of(text, w=W), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_inputs_of_gigabytes(tmp_path):
    start = time.process_time()
    told = refusal("compile", wide(tmp_path, 8_388_608))
    assert "4295.0 MB" in told and "not one fits" in told
    assert "export the model for smaller inputs" in told
    assert "not one fits" in refusal("bench", wide(tmp_path, 8_388_608, 10**15))
    assert time.process_time() - start < 20


def test_the_remedy_for_too_many_samples_works(tmp_path, monkeypatch):
    from qcompiler.calibration import budget

    model = wide(tmp_path, 128)  # 64 KiB a sample
    monkeypatch.setattr(budget, "MOST_BYTES", 6 * 128 * 64 * 8)
    told = refusal("compile", model, "--calib-samples", "1000000000000")
    assert "at most 4 fit beside 2 to verify with: --calib-samples 4" in told
    assert qc("compile", model, "--calib-samples", "4").exit_code == 0


@pytest.mark.parametrize("source", ["random-tokens", "self"], ids=short)
def test_too_many_tokens(decoder, source):
    many = ("--calib", source, "--calib-samples", "1000000000000")
    assert "--calib-samples" in refusal("compile", decoder, "-r", "w4a8-fast", *many)


# Terminals


NASTY = "a\x1b[31m\x07\x9b\u202eb\u2066\udcff\u2028"


def test_escapes():
    assert printable(NASTY) == r"a\x1b[31m\x07\x9b\u202eb\u2066\xff\u2028"
    assert printable("a\nb\tc", lines=True) == "a\nb\tc"
    assert printable("a\nb\tc") == r"a\nb\tc"
    assert json.loads(in_json(json.dumps(NASTY, ensure_ascii=False))) == NASTY
    assert printable("añ😀\u200d中") == "añ😀\u200d中"


@pytest.fixture
def nasty(tmp_path) -> Path:
    made = linear(w=W)
    made.graph.node[0].name = "\x1b[31mfc\u202e\n"
    made.graph.input[0].name = made.graph.node[0].input[0] = "x\x1b]0;title\x07"
    made.metadata_props.add(key="k\x1b", value="v\x9b")
    onnx.save(made, tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_names_reach_no_terminal_as_they_are(nasty, tmp_path):
    report = tmp_path / "r.html"
    for arguments in (
        ("inspect", nasty, "-a"),
        ("compile", nasty, "--report", report),
        ("opt", nasty, "-p", "import", "--print"),
        ("opt", nasty, "-p", "import,canonicalize,plan-weights"),
        ("compile", nasty, "--nodes-to-exclude", "\x1b[2Jnot"),
        ("inspect", "nothere\x1b[31m\udcff"),
        ("inspect", nasty, "--json"),
    ):
        done = qc(*arguments)
        for sign in "\x1b\x07\x9b\u202e":
            assert sign not in done.output + done.stderr, arguments
        if "--json" in arguments:
            assert "\x1b" in json.dumps(json.loads(done.stdout), ensure_ascii=False).replace(
                "\\u001b", "\x1b"
            )
    page = report.read_text("utf-8")
    assert "fc" in page
    assert not any(sign in page for sign in "\x1b\x07\x9b\u202e")


def run(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "qcompiler.cli", *map(str, arguments)],
        capture_output=True,
        check=False,
        env={**os.environ, **environment},
    )


@POSIX
def test_a_terminal_of_few_letters(tmp_path):
    folder = tmp_path / "modèle-中"
    folder.mkdir()
    try:
        path = Path(os.fsdecode(os.fsencode(folder) + b"/m\xff\x1b.onnx"))
        onnx.save(linear(w=W), path)
    except OSError:
        pytest.skip("the file system takes UTF-8 names only")
    for encoding in ("latin-1", "ascii"):
        plain = run("inspect", path, PYTHONIOENCODING=encoding)
        assert plain.returncode == 0, plain.stderr
        assert b"m\\xff\\x1b.onnx" in plain.stdout and b"\x1b" not in plain.stdout
        found = json.loads(run("inspect", path, "--json", PYTHONIOENCODING=encoding).stdout)
        assert found["path"] == str(path)
    bare = run("inspect", path, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert bare.returncode == 0 and b"\\x1b.onnx" in bare.stdout


def test_results_are_alone_on_standard_output(model, monkeypatch):
    def noisy(_path):
        print("noise")
        os.write(1, b"more noise\n")
        raise ModelError("no")

    monkeypatch.setattr("qcompiler.inspection.inspect", noisy)
    done = qc("inspect", model, "--json")
    assert done.stdout == "" and done.exit_code == 1


def test_noise_below_python_is_kept_out(tmp_path):
    script = (
        "import os, qcompiler.console as c\n"
        "with c.results_only():\n"
        "    print('noise'); os.system('echo deeper'); os.write(1, b'deep\\n')\n"
        "    c.print_json({'a': float('nan')})\n"
        "print('after')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert done.stdout == b'{\n  "a": null\n}\nafter\n'
    assert sorted(done.stderr.split()) == [b"deep", b"deeper", b"noise"]


@POSIX
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_standard_output_on_a_full_disk(model):
    with Path("/dev/full").open("wb") as full:
        command = [sys.executable, "-m", "qcompiler.cli", "recipe", "list"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 1 and b"the disk is full" in done.stderr


# ONNX Runtime, and our own mistakes


@pytest.mark.parametrize(
    ("message", "kind", "told"),
    [
        ("std::bad_alloc", MemoryError, "std::bad_alloc"),
        ("[ONNXRuntimeError] : 6 : FAIL : it\nbroke", ModelError, "m.onnx: it broke; again"),
        ("x(): incompatible constructor arguments. The following " + "a" * 99, ModelError, "type"),
        ("/" * 50_000, ModelError, "m.onnx"),
    ],
    ids=short,
)
def test_errors_of_onnx_runtime(message, kind, told):
    start = time.process_time()
    with pytest.raises(kind) as caught, runtime_errors(ModelError, "m.onnx", "again"):
        raise RuntimeError(message)
    assert told in str(caught.value) and "\n" not in str(caught.value)
    assert time.process_time() - start < 5


def test_too_many_threads(decoder):
    told = refusal("bench", decoder, "--threads", "1000000")
    assert "threads must be at most 1024" in told


def test_libraries_that_are_none(tmp_path, monkeypatch):
    (tmp_path / "lib.so").write_bytes(b"\x7fELF" + bytes(100))
    monkeypatch.setenv("QCOMPILER_LIBRARY", str(tmp_path / "lib.so"))
    assert "lib.so does not load" in refusal("runtime", "info")


def test_a_mistake_of_ours_is_one_line(model, monkeypatch):
    def fails(_path):
        raise TypeError("oh\nno \x1b")

    monkeypatch.setattr("qcompiler.inspection.inspect", fails)
    from typer.testing import CliRunner

    from qcompiler.cli import app

    done = CliRunner().invoke(app, ["inspect", str(model)])
    assert done.exit_code == cli.BUG
    assert done.stderr.count("\n") == 1
    assert "this is a bug of qc" in done.stderr and "QC_TRACEBACK=1" in done.stderr
    assert "TypeError: oh no" in done.stderr and "\x1b" not in done.stderr
    monkeypatch.setenv("QC_TRACEBACK", "1")
    assert "Traceback" in CliRunner().invoke(app, ["inspect", str(model)]).stderr


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


def test_console_writes_what_a_stream_can_take(monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), "latin-1")
    monkeypatch.setattr(sys, "stdout", out)
    console.say("é中\x1b")
    console.print_json({"é": "中\x1b\u202e"})
    out.flush()
    text = out.buffer.getvalue().decode("latin-1")
    assert text.startswith("é\\u4e2d\\x1b\n")
    assert json.loads(text.split("\n", 1)[1]) == {"é": "中\x1b\u202e"}
