"""The documentation keeps up with the code: commands parse, links lead somewhere, examples run."""

from __future__ import annotations

import itertools
import re
import shlex
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterable
from pathlib import Path

import pytest
import typer

from qcompiler import passes, recipe
from qcompiler.cli import app
from qcompiler.passmanager import Fact, Numerics
from qcompiler.recipe import make_pass

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*.md")])
# A checkout may be incomplete, an installed package has no documentation at all.
pytestmark = pytest.mark.skipif(not (ROOT / "README.md").is_file(), reason="no checkout")

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
_SPAN = re.compile(r"`(qc [^`\n]+)`")
_LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s#]*)(#[^)\s]*)?\)")


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page in a language."""
    return [body for kind, body in _BLOCK.findall(page.read_text("utf-8")) if kind == language]


def shown_commands() -> list[str]:
    """Every `qc ...` line of a shell block, each once."""
    lines = (
        line.strip()
        for page in PAGES
        for block in blocks(page, "sh")
        for line in block.splitlines()
    )
    return list(dict.fromkeys(line for line in lines if line.startswith("qc ")))


def shown_spans() -> list[str]:
    """Every `qc ...` within a sentence: maybe with placeholders, maybe without its arguments."""
    texts = (_BLOCK.sub("", page.read_text("utf-8")) for page in PAGES)
    spans = (span for text in texts for span in _SPAN.findall(text))
    return list(dict.fromkeys(spans))


def words(line: str) -> list[str]:
    """The arguments of a command line, without comment and redirection."""
    found = shlex.split(line, comments=True)[1:]
    return found[: found.index(">")] if ">" in found else found


def resolve(line: str):
    """The command a line means, its context, and the arguments left for it."""
    command, rest = typer.main.get_command(app), words(line)
    ctx = command.make_context("qc", list(rest), resilient_parsing=True)
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        wanted = rest[0]
        name, command, rest = command.resolve_command(ctx, rest)
        assert command is not None, f"{line}: no command '{wanted}'"
        ctx = type(ctx)(command, info_name=name, parent=ctx)
    return command, ctx, rest


def test_there_are_commands_to_check() -> None:
    assert len(shown_commands()) > 15
    assert len(shown_spans()) > 15


@pytest.mark.parametrize("line", shown_commands())
def test_shown_commands_parse(line: str) -> None:
    command, ctx, rest = resolve(line)
    assert not hasattr(command, "commands") or rest, f"{line}: no command"
    # Parsing checks names, values and required arguments; --version and --help would run.
    if "--version" not in rest and "--help" not in rest:
        command.make_context(ctx.info_name, list(rest), parent=ctx.parent)


@pytest.mark.parametrize("line", shown_spans())
def test_mentioned_options_exist(line: str) -> None:
    if line.startswith("qc COMMAND "):
        return
    command, ctx, rest = resolve(line)
    known = {name for option in command.get_params(ctx) for name in option.opts}
    assert {word for word in rest if word.startswith("-")} <= known


def test_wrong_commands_are_found() -> None:
    with pytest.raises(Exception, match="recype"):
        test_shown_commands_parse("qc compile model.onnx --recype w4a8")
    with pytest.raises(AssertionError, match="kompile"):
        test_shown_commands_parse("qc kompile model.onnx")
    with pytest.raises(AssertionError):
        test_mentioned_options_exist("qc eval --texts FILE")


def test_set_options_exist() -> None:
    for line in shown_commands():
        arguments = words(line)
        name = arguments[arguments.index("--recipe") + 1] if "--recipe" in arguments else "w4a8"
        if name in recipe.available():
            changes = [b for a, b in itertools.pairwise(arguments) if a == "--set"]
            recipe.load(name, changes)


def test_shown_recipes_load(tmp_path: Path) -> None:
    shown = [text for page in PAGES for text in blocks(page, "toml")]
    assert shown
    for text in shown:
        (tmp_path / "shown.toml").write_text(text, encoding="utf-8")
        assert recipe.load(tmp_path / "shown.toml").name == tomllib.loads(text)["name"]


def test_every_recipe_pass_and_option_is_described() -> None:
    text = (ROOT / "docs" / "recipes.md").read_text("utf-8")
    for name in recipe.available():
        assert f"\n## {name}\n" in text
        assert f"`{name}`" in (ROOT / "README.md").read_text("utf-8")
    table = text.split("\n## Options\n")[1].split("\n## ")[0]
    for name in passes.registry():
        for option in recipe.options_of(make_pass(name, {})):
            assert f"`{name}`" in table and f"`{option}`" in table, f"{name}.{option}"


FACTS = ("<!-- facts:begin -->\n", "<!-- facts:end -->")


def facts_in_words() -> str:
    """What the passes declare: who deals with each fact, which passes are exact, which lossy."""
    known = {
        name: cls
        for name, cls in passes.registry().items()
        if cls.__module__.startswith("qcompiler.passes.")  # tests and examples register theirs
    }

    def dealing(fact: Fact, how: str) -> str:
        return ", ".join(name for name, cls in known.items() if fact in getattr(cls, how))

    def listed(title: str, names: Iterable[str]) -> list[str]:
        return textwrap.wrap(f"{title}: {', '.join(names)}.", 100, break_on_hyphens=False)

    roles = ("provides", "requires", "forbids", "revokes")
    rows = [[fact.value, *(dealing(fact, role) for role in roles)] for fact in Fact]
    titles = ["fact", "provided by", "required by", "forbidden by", "revoked by"]
    table = [titles, ["---"] * len(titles), *rows]
    exact, lossy = (
        [name for name, cls in known.items() if cls.numerics is kind]
        for kind in (Numerics.EXACT, Numerics.LOSSY)
    )
    lines = [
        *("|" + "|".join(f" {cell} " if cell else " " for cell in row) + "|" for row in table),
        "",
        *listed("Exact passes", exact),
        "",
        *listed("Lossy passes", lossy),
    ]
    return "\n".join(lines) + "\n"


def test_facts_are_those_of_the_passes() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    begin, end = FACTS
    found = text.split(begin)[1].split(end)[0]
    wanted = facts_in_words()
    assert found == wanted, f"docs/architecture.md: between {begin}and {end} belongs\n\n{wanted}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in _LINK.findall(_BLOCK.sub("", page.read_text("utf-8"))):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            titles = re.findall(r"^#+ (.+)$", file.read_text("utf-8"), re.M)
            slugs = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
            assert anchor[1:] in slugs, f"{page.name}: {target}{anchor}"


def test_own_pass_runs() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "own_pass.py")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "- heavy: int4 g32 sym keeps" in done.stdout
    assert "+ first: int4 symmetric" in done.stdout
    assert "+ heavy: int4" not in done.stdout
