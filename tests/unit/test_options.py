"""Recipes, numbers, patterns, templates and amounts of data that can not be meant."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import onnx
import pytest
from command_line import qc, refusal, short
from odd_models import W, linear, model_of

from qcompiler import literals
from qcompiler.chat import render
from qcompiler.chat_child import SECONDS
from qcompiler.errors import ModelError, RecipeError
from qcompiler.patterns import matches, require_pattern
from qcompiler.report.text import unnumbered

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="POSIX files")


def generate(folder: Path, *more: str) -> str:
    return refusal("generate", folder, "w1", "--max-new-tokens", "1", *more)


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
        ("calibration_length = 1", "'calibration_length' must be at least 2, not 1"),
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
        ("a" * 600, "too long"),
        ("a{" + "9" * 500, "no layer has a name"),
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


@pytest.mark.parametrize("source", ["random-tokens", "self", "pydoc:first+self"], ids=short)
def test_too_many_tokens(decoder, source):
    many = ("--calib", source, "--calib-samples", "1000000000000")
    assert "--calib-samples" in refusal("compile", decoder, "-r", "w4a8-fast", *many)
