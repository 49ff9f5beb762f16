"""Recipes: a TOML list of passes with typed options.

    name = "w4a8"
    description = "..."
    [[pass]]
    name = "plan-weights"
    bits = 4

Unknown passes and options are errors with a suggestion; values are checked against the type of
the pass's field. A recipe with `base = "..."` is another recipe with some changes: see `_built_on`.
"""

from __future__ import annotations

import dataclasses
import enum
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qcompiler import literals
from qcompiler.errors import RecipeError, did_you_mean, shown
from qcompiler.files import read_text, read_toml
from qcompiler.passes import registry
from qcompiler.passmanager import Pass

if TYPE_CHECKING:
    from qcompiler.targets import Target

_LARGEST = 10**18  # what is larger is a slip, and no number of the machine
_ROUNDS = ("quantize-embedding", "quantize-weights")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A named pipeline up to Q/DQ; the target adds the passes that lower it."""

    name: str
    description: str
    source: str
    passes: tuple[Pass, ...]
    min_sqnr_db: float
    """Least signal-to-noise of the outputs (dB) below which the compiled model counts as broken."""
    calibration: str | None = None
    """Calibration source for language models with a tokenizer where the user names none."""
    calibration_samples: int = 16
    """How many samples of it where the user does not say."""
    calibration_length: int = 512
    """How many tokens each has, at most, where the user does not say."""

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain data, every option spelled out."""
        return {
            "name": self.name,
            "description": self.description,
            "source": self.source,
            "min_sqnr_db": self.min_sqnr_db,
            "calibration": self.calibration,
            "calibration_samples": self.calibration_samples,
            "calibration_length": self.calibration_length,
            "pass": [{"name": step.name, **options_of(step)} for step in self.passes],
        }


def with_budget(
    recipe: Recipe, target: Target, budget: float | None, max_kl: float | None
) -> Recipe:
    """The recipe with `allocate-bits` before the first pass that rounds weights.

    It chooses from all formats that `target` can run, but where the recipe has the pass already.
    RecipeError where it rounds none, or for limits that are not positive and finite.
    """
    limits = {"budget": budget, "max_kl": max_kl}
    given = {name: value for name, value in limits.items() if value is not None}
    for name, value in given.items():
        if not 0.0 < value < math.inf:
            raise RecipeError(
                f"{name.replace('_', '-')} must be positive and finite, not {value:g}"
            )
    passes = list(recipe.passes)
    names = [step.name for step in passes]
    if "quantize-weights" not in names:
        raise RecipeError(f"recipe '{recipe.name}' rounds no weights: a budget has no meaning")
    if "allocate-bits" in names:
        at = names.index("allocate-bits")
        passes[at] = make_pass("allocate-bits", options_of(passes[at]) | given)
    else:
        at = min(names.index(name) for name in _ROUNDS if name in names)
        formats = [str(each) for each in target.candidates()]
        by_data = options_of(passes[names.index("quantize-weights")])["rounding"] != "nearest"
        rounding = "gptq" if by_data else "nearest"
        passes.insert(
            at, make_pass("allocate-bits", {"formats": formats, "rounding": rounding} | given)
        )
    return dataclasses.replace(recipe, passes=tuple(passes))


def options_of(step: Pass) -> dict[str, Any]:
    """A pass's options with their values, as plain data."""
    values: dict[str, Any] = {}
    for item in dataclasses.fields(step):
        value = getattr(step, item.name)
        values[item.name] = value.value if isinstance(value, enum.Enum) else value
    return values


def _convert(where: str, annotation: Any, value: Any) -> Any:
    """Check a TOML value against a field's annotation; RecipeError names what was expected."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        inner = [arg for arg in typing.get_args(annotation) if arg is not type(None)]
        return _convert(where, inner[0], value)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise RecipeError(f"{where} must be a list, not {shown(value)}")
        item = typing.get_args(annotation)[0]
        return tuple(_convert(where, item, entry) for entry in value)
    if origin is typing.Literal:
        allowed = typing.get_args(annotation)
        if not any(type(value) is type(option) and value == option for option in allowed):
            known = ", ".join(map(repr, allowed))
            raise RecipeError(f"{where} must be one of {known}, not {shown(value)}")
        return value
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        try:
            return annotation(value)
        except ValueError:
            known = ", ".join(repr(member.value) for member in annotation)
            raise RecipeError(f"{where} must be one of {known}, not {shown(value)}") from None
    if isinstance(value, int) and abs(value) > _LARGEST:
        raise RecipeError(f"{where} must be at most 10^18, not {shown(value)}")
    if annotation is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, float) and not math.isfinite(value):
        # Every comparison with NaN is false: it would switch off what the option is for.
        raise RecipeError(f"{where} must be a finite number, not {value}")
    if not isinstance(value, annotation) or (annotation is not bool and isinstance(value, bool)):
        raise RecipeError(f"{where} must be {annotation.__name__}, not {shown(value)}")
    return value


def make_pass(name: str, options: Mapping[str, Any]) -> Pass:
    """Build a pass from its recipe name and options; RecipeError on anything unknown."""
    known = registry()
    if name not in known:
        raise RecipeError(f"unknown pass '{name}'; {did_you_mean(name, list(known))}")
    cls = known[name]
    hints = typing.get_type_hints(cls)
    allowed = {item.name: hints[item.name] for item in dataclasses.fields(cls)}
    values: dict[str, Any] = {}
    for key, value in options.items():
        option = key.replace("-", "_")
        if option not in allowed:
            hint = did_you_mean(option, list(allowed)) if allowed else "it has no options"
            raise RecipeError(f"pass '{name}' has no option '{key}'; {hint}")
        values[option] = _convert(f"option '{key}' of pass '{name}'", allowed[option], value)
    try:
        return cls(**values)
    except ValueError as error:
        raise RecipeError(f"pass '{name}': {error}") from None


_SPEC = re.compile(r"\s*+([A-Za-z0-9_-]++)\s*+(?:\{([^}]*+)\}\s*+)?(?:,|$)")


def parse_pipeline(text: str) -> tuple[Pass, ...]:
    """Passes from text such as `canonicalize,plan-weights{bits=4,group_size=32}`."""
    steps: list[Pass] = []
    position = 0
    while position < len(text.rstrip()):
        match = _SPEC.match(text, position)
        if match is None:
            raise RecipeError(
                f"can't read the pipeline at {shown(text[position:])}; "
                "write name{option=value,...},name,..."
            )
        options: dict[str, Any] = {}
        for part in literals.split(match[2] or ""):
            key, equals, value = part.partition("=")
            if not equals:
                raise RecipeError(f"option '{part}' of pass '{match[1]}' has no value")
            options[key.strip()] = literals.value(value)
        steps.append(make_pass(match[1], options))
        position = match.end()
    if not steps:
        raise RecipeError("the pipeline names no pass")
    return tuple(steps)


def available() -> dict[str, Path]:
    """The recipes that come with qcompiler, by name."""
    folder = files("qcompiler").joinpath("recipes")
    found: dict[str, Path] = {}
    for entry in folder.iterdir():
        if entry.name.endswith(".toml"):
            found[entry.name.removesuffix(".toml")] = Path(str(entry))
    return dict(sorted(found.items()))


def load(name_or_file: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe by name or from a TOML file, with `pass.option=value` overrides applied.

    Raises RecipeError for an unknown recipe, pass or option, with what was probably meant.
    """
    path = _find(str(name_or_file), Path())
    return _build(_read(path), path, overrides)


def text_of(name_or_file: str) -> str:
    """The TOML of a recipe, which `load` takes."""
    return read_text(_find(name_or_file, Path()), RecipeError)


def _find(text: str, beside: Path) -> Path:
    """The file of a recipe by its name, or by a path from the folder `beside`."""
    known = available()
    path = known.get(text, beside / text)
    try:
        found = path.is_file()
    except OSError:  # a name too long
        found = False
    if not found:
        hint = did_you_mean(text, list(known))
        raise RecipeError(f"unknown recipe {shown(text)}; {hint} (or give a .toml file)")
    return path


_OWN = (
    *("name", "description", "source", "min_sqnr_db"),
    *("calibration", "calibration_samples", "calibration_length"),
)
_KEYS = (*_OWN, "base", "without", "pass")
_DEEPEST = 16  # recipes built on one another


def _read(path: Path, depth: int = 0) -> dict[str, Any]:
    """A recipe's keys and passes, those of its base included."""
    data = read_toml(path, RecipeError)
    for key in data:
        if key not in _KEYS:
            raise RecipeError(f"{path}: unknown key '{key}'; {did_you_mean(key, _KEYS)}")
    data.setdefault("name", path.stem)
    data["pass"] = _steps(data, path)
    base = _convert(f"{path}: 'base'", str | None, data.pop("base", None))
    without = _convert(f"{path}: 'without'", tuple[str, ...], data.pop("without", ()))
    if base is None and without:
        raise RecipeError(f"{path}: 'without' leaves passes of a base out, and there is no 'base'")
    if base is None:
        return data
    if depth == _DEEPEST:
        raise RecipeError(f"{path} is built on itself, or on too many others")
    return _built_on(_read(_find(base, path.parent), depth + 1), data, without, path)


def _built_on(
    base: dict[str, Any], data: dict[str, Any], without: Sequence[str], path: Path
) -> dict[str, Any]:
    """What `base` says, changed by `data`.

    A [[pass]] with the name of a pass of the base changes options of that pass. One with `after` or
    `before`, which name a pass, is a new pass and put there. Passes in `without` are left out.
    """
    steps: list[dict[str, Any]] = base["pass"]
    for name in without:
        _required(steps, name, path)
        steps = [step for step in steps if step.get("name") != name]
    for step in data["pass"]:
        places = [place for place in ("after", "before") if place in step]
        if places:
            anchor = _required(steps, step[places[0]], path)
            made = {key: value for key, value in step.items() if key not in places}
            steps.insert(anchor + (places[0] == "after"), made)
            continue
        _required(steps, step.get("name"), path)
        for each in steps:
            if each.get("name") == step.get("name"):
                each.update(step)
    return {**base, **data, "pass": steps}


def _required(steps: Sequence[Mapping[str, Any]], name: Any, path: Path) -> int:
    """The position of a pass; RecipeError where there is none."""
    names = [str(step.get("name")) for step in steps]
    if name not in names:
        hint = did_you_mean(name if isinstance(name, str) else "", names)
        raise RecipeError(
            f"{path}: the base has no pass {shown(name)}; {hint} (a new one says after or before "
            "which it goes)"
        )
    return names.index(name)


def _build(data: dict[str, Any], path: Path, overrides: Sequence[str]) -> Recipe:
    name = _convert(f"{path}: 'name'", str, data["name"])
    if not re.fullmatch(r"[\w.+-]+", name):
        raise RecipeError(
            f"{path}: the name {shown(name)} must consist of letters, digits, . + - and _"
        )
    steps: list[dict[str, Any]] = data["pass"]
    if not steps:
        raise RecipeError(f"{path} lists no [[pass]]")
    for override in overrides:
        target, equals, value = override.partition("=")
        wanted, dot, option = target.rpartition(".")
        if not equals or not dot:
            raise RecipeError(f"--set {override}: write pass.option=value")
        hits = [step for step in steps if step.get("name") == wanted]
        if not hits:
            names = [str(step.get("name")) for step in steps]
            hint = did_you_mean(wanted, names)
            raise RecipeError(f"--set {override}: the recipe has no pass '{wanted}'; {hint}")
        for step in hits:
            step[option] = literals.value(value)
    passes: list[Pass] = []
    for step in steps:
        kind = step.pop("name", None)
        if not isinstance(kind, str):
            raise RecipeError(f"{path}: a [[pass]] has no name")
        passes.append(make_pass(kind, step))
    return Recipe(
        name=name,
        description=_convert(f"{path}: 'description'", str, data.get("description", "")).strip(),
        source=_convert(f"{path}: 'source'", str, data.get("source", "")).strip(),
        passes=tuple(passes),
        min_sqnr_db=_convert(f"{path}: 'min_sqnr_db'", float, data.get("min_sqnr_db", 3.0)),
        calibration=_convert(f"{path}: 'calibration'", str | None, data.get("calibration")),
        calibration_samples=_count(path, data, "calibration_samples", 1, 16),
        calibration_length=_count(path, data, "calibration_length", 2, 512),
    )


def _count(path: Path, data: Mapping[str, Any], key: str, least: int, default: int) -> int:
    count = int(_convert(f"{path}: '{key}'", int, data.get(key, default)))
    if count < least:
        raise RecipeError(f"{path}: '{key}' must be at least {least}, not {count}")
    return count


def _steps(data: Mapping[str, Any], path: Path) -> list[dict[str, Any]]:
    """Copies of the [[pass]] tables of a recipe."""
    tables = data.get("pass", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise RecipeError(f"{path}: write each pass as a table of its own, [[pass]]")
    return [dict(table) for table in tables]
