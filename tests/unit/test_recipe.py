"""Recipes and pipelines: what is accepted, and what the refusals say."""

from __future__ import annotations

import typing
from pathlib import Path

import pytest

from qcompiler import targets
from qcompiler.calibration.sources import parts_of
from qcompiler.errors import RecipeError
from qcompiler.formats import WIDTHS
from qcompiler.passes import registry
from qcompiler.passmanager import PassManager
from qcompiler.recipe import available, load, make_pass, options_of, parse_pipeline, with_budget

TOML = """
name = "mine"
description = "For a test."
min_sqnr_db = 5
[[pass]]
name = "import"
[[pass]]
name = "plan-weights"
bits = 8
group-size = 64
[[pass]]
name = "plan-activations"
policy = "none"
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text)
    return path


def test_a_file_becomes_typed_passes(tmp_path: Path) -> None:
    recipe = load(write(tmp_path, TOML))
    assert recipe.name == "mine"
    assert recipe.min_sqnr_db == 5.0
    assert [step.name for step in recipe.passes] == [
        "import",
        "plan-weights",
        "plan-activations",
    ]
    options = options_of(recipe.passes[1])
    assert (options["bits"], options["group_size"]) == (8, 64)
    assert options_of(recipe.passes[2])["policy"] == "none"


def test_every_shipped_recipe_builds_and_describes_itself() -> None:
    assert {"w4a8", "fptq", "smoothquant", "rtn"} <= set(available())
    for name in available():
        recipe = load(name)
        assert recipe.name == name
        assert recipe.description and recipe.source
        PassManager(recipe.passes)  # the facts each pass needs are there


def test_recipes_that_fit_weights_or_biases_to_data_name_text() -> None:
    texts = {"pydoc:first", "self"}
    for name in available():
        recipe = load(name)
        fitted = any(
            step.name in ("compensate", "correct-bias", "tweak-norms")
            or options_of(step).get("rounding", "nearest") != "nearest"
            for step in recipe.passes
        )
        named = parts_of(recipe.calibration) if recipe.calibration else []
        assert bool(named) == fitted
        assert set(named) <= texts


def test_a_recipe_survives_its_own_dictionary() -> None:
    recipe = load("fptq")
    for step, data in zip(recipe.passes, recipe.to_dict()["pass"], strict=True):
        name = data.pop("name")
        assert make_pass(name, data) == step


def test_overrides(tmp_path: Path) -> None:
    path = write(tmp_path, TOML)
    recipe = load(path, ["plan-weights.bits=4", "plan-activations.policy=per-tensor"])
    assert options_of(recipe.passes[1])["bits"] == 4
    assert options_of(recipe.passes[2])["policy"] == "per-tensor"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("plan-weights.bits", "write pass.option=value"),
        ("bits=4", "write pass.option=value"),
        ("plan-weigths.bits=4", "did you mean 'plan-weights'"),
        ("plan-weights.bit=4", "did you mean 'bits'"),
        ("plan-weights.bits=7", "must be one of 2, 3, 4, 5, 6, 8, not 7"),
        ("plan-weights.bits=4.0", "must be one of 2, 3, 4, 5, 6, 8, not 4.0"),
        ("plan-weights.bits=true", "must be one of 2, 3, 4, 5, 6, 8, not True"),
        ("plan-weights.symmetric=1", "must be bool, not 1"),
        ("plan-weights.min_channels=true", "must be int, not True"),
        ("plan-activations.v0=high", "must be float, not 'high'"),
    ],
)
def test_bad_overrides_are_explained(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load(write(tmp_path, TOML), [override])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = ", "not valid TOML"),
        ('name = "empty"', r"lists no \[\[pass\]\]"),
        ('nmae = "x"\n[[pass]]\nname = "import"', "unknown key 'nmae'; did you mean 'name'"),
        ("[[pass]]\nbits = 4", "has no name"),
        ('[pass]\nname = "import"', r"\[\[pass\]\]"),
        ('pass = "import"', r"\[\[pass\]\]"),
        ('pass = ["import"]', r"\[\[pass\]\]"),
        ('calibration = 3\n[[pass]]\nname = "import"', "'calibration' must be str, not 3"),
        ('min_sqnr_db = "loud"\n[[pass]]\nname = "import"', "min_sqnr_db"),
        ('min_sqnr_db = nan\n[[pass]]\nname = "import"', "'min_sqnr_db' must be a finite number"),
        ('min_sqnr_db = -inf\n[[pass]]\nname = "import"', "must be a finite number, not -inf"),
        (
            '[[pass]]\nname = "plan-activations"\ntolerance = nan',
            "option 'tolerance' of pass 'plan-activations' must be a finite number, not nan",
        ),
        ('[[pass]]\nname = "imprt"', "did you mean 'import'"),
        ('[[pass]]\nname = "import"\nbits = 4', "has no options"),
        ('[[pass]]\nname = "equalize"\nedges = "norm"', "must be a list"),
        ('[[pass]]\nname = "equalize"\nedges = ["nrom"]', "must be one of 'norm'"),
    ],
)
def test_bad_files_are_explained(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load(write(tmp_path, text))


@pytest.mark.parametrize("limit", [float("nan"), float("inf"), 0.0])
def test_a_budget_is_a_number(limit: float) -> None:
    with pytest.raises(RecipeError, match=r"must be (positive|a finite number)"):
        with_budget(load("w4a8"), targets.get("qdq"), limit, None)


def test_every_option_that_is_a_number_is_finite() -> None:
    for name, cls in registry().items():
        for option, kind in typing.get_type_hints(cls).items():
            if kind is float:
                with pytest.raises(RecipeError, match="finite"):
                    make_pass(name, {option: float("nan")})


BASED = """
base = "w4a8"
name = "mine"
without = ["rotate"]
[[pass]]
name = "plan-weights"
group_size = 64
[[pass]]
name = "tweak-norms"
after = "insert-qdq"
target = "float"
"""


def test_a_recipe_says_only_what_sets_it_apart(tmp_path: Path) -> None:
    base, mine = load("w4a8"), load(write(tmp_path, BASED))
    assert mine.name == "mine" and mine.calibration == base.calibration
    names = [step.name for step in base.passes if step.name != "rotate"]
    assert [step.name for step in mine.passes] == [*names, "tweak-norms"]
    plans = [next(s for s in each.passes if s.name == "plan-weights") for each in (base, mine)]
    assert options_of(plans[1]) == options_of(plans[0]) | {"group_size": 64}
    assert options_of(mine.passes[-1])["target"] == "float"


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("w4a8-small", {"group_size": 128}),
        ("w3a8", {"bits": 3, "grid": "gaussian"}),
        ("w2a8", {"bits": 2, "grid": "gaussian"}),
    ],
)
def test_smaller_recipes_differ_in_formats_only(name: str, numbers: dict[str, typing.Any]) -> None:
    large, small = (load(each).to_dict()["pass"] for each in ("w4a8", name))
    changed = [
        (a["name"], key, b[key])
        for a, b in zip(large, small, strict=True)
        for key in a
        if a[key] != b[key]
    ]
    assert changed == [("plan-weights", key, number) for key, number in numbers.items()]


def test_a_base_may_be_a_file_beside_it(tmp_path: Path) -> None:
    write(tmp_path, BASED)
    (tmp_path / "deep").mkdir()
    other = tmp_path / "deep" / "other.toml"
    other.write_text('base = "../mine.toml"\n[[pass]]\nname = "plan-weights"\nbits = 8\n')
    found = load(other)
    assert found.name == "other"
    plan = next(step for step in found.passes if step.name == "plan-weights")
    assert (options_of(plan)["bits"], options_of(plan)["group_size"]) == (8, 64)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('base = "w4a9"', "did you mean 'w4a8'"),
        ('base = "mine.toml"', "built on itself"),
        ("base = 3", "'base' must be str, not 3"),
        ('without = ["rotate"]\n[[pass]]\nname = "import"', "there is no 'base'"),
        ('base = "w4a8"\nwithout = ["rotat"]', "no pass 'rotat'; did you mean 'rotate'"),
        ('base = "rtn"\n[[pass]]\nname = "rotate"', "no pass 'rotate'.*after or before"),
        ('base = "rtn"\n[[pass]]\nname = "rotate"\nafter = "fuse"', "no pass 'fuse'"),
        ('base = "w4a8"\n[[pass]]\nname = "rotate"\nsed = 1', "did you mean 'seed'"),
    ],
)
def test_bad_bases_are_explained(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load(write(tmp_path, text))


def test_an_unknown_recipe_is_guessed() -> None:
    with pytest.raises(RecipeError, match=r"did you mean 'w4a8'.*\.toml"):
        load("w4a9")


def test_pipeline_text() -> None:
    steps = parse_pipeline(
        "import, canonicalize,plan-weights{bits=8, group_size=64,symmetric=false},"
        "equalize{edges=['norm', 'v-o'],alpha=1},plan-activations{policy=none}"
    )
    assert [step.name for step in steps] == [
        "import",
        "canonicalize",
        "plan-weights",
        "equalize",
        "plan-activations",
    ]
    assert options_of(steps[2]) | {"bits": 8, "group_size": 64, "symmetric": False} == options_of(
        steps[2]
    )
    assert options_of(steps[3])["edges"] == ("norm", "v-o")
    assert options_of(steps[3])["alpha"] == 1.0
    assert options_of(steps[4])["policy"] == "none"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no pass"),
        ("import{", "can't read the pipeline at 'import{'"),
        ("import canonicalize", "can't read the pipeline"),
        ("plan-weights{bits}", "option 'bits' of pass 'plan-weights' has no value"),
        ("quantise-weights", "did you mean 'quantize-weights'"),
        ("plan-weights{bit=4}", "did you mean 'bits'"),
    ],
)
def test_bad_pipelines_are_explained(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse_pipeline(text)


def test_every_registered_name_is_its_class_name() -> None:
    for name, cls in registry().items():
        assert cls.name == name
        assert cls.__doc__ and cls.__doc__.strip()


def test_a_budget_is_met_with_what_the_target_runs(tmp_path: Path) -> None:
    def formats(target: str, recipe: str | Path = "w4a8") -> list[str]:
        passes = with_budget(load(recipe), targets.get(target), 3.25, None).passes
        (chosen,) = (step for step in passes if step.name == "allocate-bits")
        assert options_of(chosen)["budget"] == 3.25
        return list(options_of(chosen)["formats"])

    every = formats("ort-custom")
    assert every == formats("qdq") == formats("cuda")
    assert {text.split()[0] for text in every} == {f"int{bits}" for bits in WIDTHS}
    four = [text for text in every if text.startswith(("int4", "int8"))]
    assert formats("ort-contrib") == ["int2 g32 asym", *four]
    mine = 'base = "rtn"\n[[pass]]\nname = "allocate-bits"\nafter = "plan-activations"\n'
    mine += 'formats = ["int4 g32 sym"]\n'
    assert formats("ort-custom", write(tmp_path, mine)) == ["int4 g32 sym"]
