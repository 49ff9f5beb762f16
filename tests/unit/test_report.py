"""The report: every layer accounted for, in data, in text and as a page."""

from __future__ import annotations

import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qcompiler.analysis.inventory import CODES, Holding, Inventory
from qcompiler.comparison import OutputQuality
from qcompiler.formats import Granularity, WeightFormat
from qcompiler.passmanager import Record
from qcompiler.recipe import load
from qcompiler.remarks import (
    Equalized,
    Folded,
    LeftAlone,
    Lowered,
    Merged,
    Planned,
    Remark,
    Rotated,
    Rounded,
)
from qcompiler.report import (
    Report,
    Weights,
    build_report,
    summary,
    table,
    write_html,
    write_json,
)
from qcompiler.verification import Verification


def record(name: str, *remarks: Remark, stored: Inventory | None = None) -> Record:
    return Record(name=name, changed=bool(remarks), seconds=0.25, remarks=remarks, inventory=stored)


UP = WeightFormat(bits=4, group_size=32, symmetric=False)
TABLE = WeightFormat(bits=8, group_size=32)


def rounded(layer: str, sqnr_db: float = 20.0, **fields: Any) -> Rounded:
    usual = {"kind": "linear", "shape": (64, 32), "form": UP, "message": "done"}
    sizes = {"bytes_after": 1280, "sqnr_db": sqnr_db}
    return Rounded(layer=layer, **(usual | sizes | fields))


def planned(layer: str, activation: Granularity, **fields: Any) -> Planned:
    return Planned(layer=layer, message="done", shape=(64, 32), activation=activation, **fields)


GATES = [f"layer.{i}.{name}" for i in range(2) for name in ("gate", "up")]
LAYERS = [f"layer.{i}.{name}" for i in range(2) for name in ("gate", "up", "down")]
STREAM = "residual stream not rotated: it is shared"
HALF_FOLDED = "norm folded, but for its bias: not every layer behind it has one"

STORED = Inventory(
    holdings=(
        *(Holding(nbytes=8192, readers={name: "MatMul"}) for name in LAYERS),
        Holding(nbytes=25_600, readers={"lm_head": "Gemm"}),
        Holding(nbytes=12_000, readers={"embed": "Gather"}),
        Holding(nbytes=512, readers={"positions": "Gather"}),
        Holding(nbytes=2_100_000, readers={"encoder": "LSTM"}),
        Holding(nbytes=4096, readers={"packed": "MatMulNBits"}, sort=CODES),
    ),
    small_bytes=700,
)
TOTAL = 6 * 8192 + 25_600 + 12_000 + 512 + 2_100_000 + 4096 + 700

HISTORY = [
    record(
        "import",
        LeftAlone(layer="encoder", message="recurrent weights are not quantized"),
        LeftAlone(layer="packed", message="it is quantized already"),
        stored=STORED,
    ),
    record(
        "fold-norm",
        Folded(layer="layer.1.up", message=HALF_FOLDED),
        *(Folded(layer=f"layer.{i}.gate", message="norm and its bias folded") for i in range(2)),
    ),
    record(
        "rotate",
        *(Rotated(layer=f"layer.0.{n}", applied=False, message=STREAM) for n in ("gate", "down")),
        Rotated(layer="layer.1.up", message="residual stream rotated, hadamard 64"),
        Rotated(layer="layer.1.up", message="value heads rotated (2), hadamard 16"),
    ),
    record(
        "plan-weights",
        LeftAlone(layer="attention", message="both operands are computed (attention)"),
        LeftAlone(
            layer="lm_head", message="excluded by pattern 'head'", kind="linear", shape=(64, 100)
        ),
        LeftAlone(
            layer="positions", message="a small table (2 rows), kept in float", kind="embedding"
        ),
    ),
    record(
        "plan-activations",
        *(planned(name, Granularity.PER_TENSOR, input_absmax=3.5) for name in LAYERS),
    ),
    record(
        "equalize",
        *(Equalized(layer=name, message="done", method="lae", edge="norm") for name in GATES),
        Equalized(
            layer="layer.1.down",
            applied=False,
            message="not equalized: Gelu 'g1' reads it",
            method="lae",
            edge="none",
            activation=Granularity.PER_TOKEN,
        ),
    ),
    record(
        "quantize-embedding",
        rounded("embed", np.float32(44.0), kind="embedding", form=TABLE),
    ),
    record(
        "quantize-weights",
        *(rounded(name) for name in GATES),
        rounded("layer.0.down", float("inf")),
        rounded("layer.1.down", 17.5),
    ),
    record(
        "merge-linears",
        *(
            Merged(
                layer=name,
                message="done",
                members=(f"layer.{name[6]}.gate", f"layer.{name[6]}.up"),
                into=f"layer.{name[6]}.gate+up",
            )
            for name in GATES
        ),
    ),
    record(
        "lower-ort-custom",
        *(
            Lowered(layer=name, message="done", op="LinearW4A8Static")
            for name in ("layer.0.gate+up", "layer.1.gate+up", "layer.0.down")
        ),
        LeftAlone(layer="layer.1.down", message="kept as Q/DQ: no kernel"),
        Lowered(layer="embed", message="done", op="EmbeddingW8"),
    ),
]


def report_of(history: list[Record], **changes: Any) -> Report:
    """Of a compilation of which only the passes matter, and `changes`."""
    given = {
        "recipe": load("rtn"),
        "target": "qdq",
        "source": Path("a"),
        "output": Path("b"),
        "source_bytes": 1,
        "output_bytes": 1,
    }
    return build_report(history, **(given | changes))


VERIFICATION = Verification(
    sqnr_db=float("inf"),
    worst_sample_db=float("inf"),
    top1_agreement=0.5,
    samples=2,
    held_back=True,
    finite=True,
    outputs=(
        OutputQuality(name="y", role="judged", sqnr_db=math.inf, worst_sample_db=math.inf),
        OutputQuality(name="list", role="skipped", note="it is a seq(tensor(float))"),
    ),
)


@pytest.fixture
def report() -> Report:
    return report_of(
        HISTORY,
        recipe=load("w4a8"),
        target="ort-custom",
        source=Path("in.onnx"),
        output=Path("out.onnx"),
        source_bytes=8_000_000,
        output_bytes=2_000_000,
        calibration="random-tokens",
        verification=VERIFICATION.to_dict(),
        seconds=1.5,
    )


def test_every_layer_of_the_history_has_one_row(report: Report) -> None:
    spoken = {remark.layer for entry in HISTORY for remark in entry.remarks}
    names = [layer.name for layer in report.layers]
    assert set(names) == spoken - {"layer.0.gate+up", "layer.1.gate+up"}
    assert len(names) == len(set(names))
    assert names[-3:] == ["encoder", "packed", "attention"], "other nodes come last"


def test_what_passes_said_is_gathered(report: Report) -> None:
    layers = {layer.name: layer for layer in report.layers}
    up = layers["layer.1.up"]
    assert (up.scheme, up.activation, up.equalized) == (
        "int4 g32 asym",
        "per-tensor",
        "lae through norm",
    )
    assert (up.op, up.merged_with, up.sqnr_db) == ("LinearW4A8Static", ("layer.1.gate",), 20.0)
    assert (up.bytes_before, up.bytes_after, up.input_absmax) == (8192, 1280, 3.5)
    down = layers["layer.1.down"]
    assert (down.activation, down.not_equalized) == ("per-token", "Gelu 'g1' reads it")
    assert (down.op, down.reason) == ("Q/DQ", "kept as Q/DQ: no kernel")
    assert up.norm_folded == "norm folded, but for its bias: not every layer behind it has one"
    assert len(up.rotated) == 2 and not up.not_transformed
    gate = layers["layer.0.gate"]
    assert gate.not_transformed == ("residual stream not rotated: it is shared",)
    assert gate.reason is None, "a rotation has no say in that"
    head = layers["lm_head"]
    assert not head.quantized
    assert (head.reason, head.activation, head.op) == ("excluded by pattern 'head'", None, None)


def test_counts(report: Report) -> None:
    assert report.ratio == 4.0
    assert report.counts == {
        "linear": 7,
        "linear_quantized": 6,
        "embedding": 2,
        "embedding_quantized": 1,
        "norm_folded": 3,
        "rotated": 1,
        "equalized": 4,
        "other": 3,
    }
    assert report.ops == {"LinearW4A8Static": 5, "Q/DQ": 1, "EmbeddingW8": 1}


def test_bytes_add_up_and_say_what_holds_the_rest(report: Report) -> None:
    assert report.weights == Weights(
        bytes=TOTAL,
        quantized_bytes=6 * 8192 + 12_000,
        rest={
            "LSTM": 2_100_000,
            "linear layers": 25_600,
            "quantized already": 4096,
            "vectors and small constants": 700,
            "embeddings": 512,
        },
    )
    assert sum(layer.bytes_before or 0 for layer in report.layers) == TOTAL - 700
    layers = {layer.name: layer for layer in report.layers}
    assert layers["encoder"].bytes_before == 2_100_000
    assert layers["attention"].bytes_before is None
    assert report.to_dict()["weights"]["quantized_bytes"] == 61_152
    assert report_of([]).to_dict()["weights"] is None


def test_a_constant_of_several_readers_is_counted_with_one_that_keeps_it() -> None:
    shared = Holding(nbytes=100, readers={"a": "MatMul", "b": "Add", "c": "Add"})
    gone = Holding(nbytes=50, readers={"a": "MatMul", "d": "Gather"})
    stored = Inventory(holdings=(shared, gone), small_bytes=0)
    history = [
        record("import", LeftAlone(layer="b", message="x"), stored=stored),
        record("w", rounded("a"), rounded("d", kind="embedding", bytes_after=7, tied=True)),
    ]
    made = report_of(history)
    sizes = {layer.name: layer.bytes_before for layer in made.layers}
    assert sizes == {"a": 50, "b": 100, "d": 0}, "the codes of the second lie with 'a'"
    assert made.weights == Weights(bytes=150, quantized_bytes=50, rest={"Add": 100})


def test_bytes_are_those_that_the_operators_store() -> None:
    history = [
        record(
            "w",
            rounded("embed", kind="embedding", tied=True),
            rounded("head", tied=True, bytes_after=0),
            rounded("a", shape=(64, 10)),
            rounded("b", shape=(64, 20)),
            rounded("c", shape=(64, 3)),
            rounded("kept"),
        ),
        record(
            "merge-linears",
            *(Merged(layer=n, message="done", members=("a", "b", "c"), into="abc") for n in "abc"),
        ),
        record(
            "lower-ort-custom",
            *(
                Lowered(layer=name, message="done", op="x", bytes_after=size)
                for name, size in (("embed", 5000), ("head", 5000), ("abc", 1000))
            ),
        ),
    ]
    sizes = {layer.name: layer.bytes_after for layer in report_of(history).layers}
    assert sizes == {"embed": 5000, "head": 0, "a": 303, "b": 606, "c": 91, "kept": 1280}


def test_json_is_valid_everywhere(report: Report, tmp_path: Path) -> None:
    write_json(report, tmp_path / "deep" / "r.json")

    def never(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    text = (tmp_path / "deep" / "r.json").read_text()
    data = json.loads(text, parse_constant=never)
    assert data["schema_version"] == 1
    assert data["verification"]["sqnr_db"] is None
    assert data["recipe"]["name"] == "w4a8"
    layers = {layer["name"]: layer for layer in data["layers"]}
    assert layers["layer.0.down"]["sqnr_db"] is None
    assert layers["embed"]["sqnr_db"] == 44.0
    assert layers["embed"]["quantized"] is True
    assert [step["name"] for step in data["passes"]][-1] == "lower-ort-custom"


def test_summary(report: Report) -> None:
    text = "\n".join(summary(report))
    assert "8.0 MB -> 2.0 MB (4.0 times smaller)" in text
    done = "6 of 7 linear layers, 1 of 2 embeddings: 2.8% of 2.2 MB of weights"
    assert f"quantized {done}; norm folded 3, rotated 1, equalized 4" in text
    assert "the rest: LSTM 2.1 MB, linear layers 25.6 kB, quantized already 4.1 kB" in text
    assert "5 LinearW4A8Static" in text
    assert "same most likely token 50.0%" in text
    assert "not transformed: residual stream not rotated 2 (--report FILE says why)" in text


@pytest.mark.parametrize(
    ("done", "share"), [(999_999, "99.9%"), (1_000_000, "100.0%"), (0, "0.0%")]
)
def test_all_is_said_only_of_all(done: int, share: str) -> None:
    stored = Inventory(
        holdings=(Holding(nbytes=done, readers={"a": "MatMul"}),), small_bytes=1_000_000 - done
    )
    made = report_of([record("import", stored=stored), record("w", rounded("a"))])
    assert f"{share} of 1.0 MB of weights" in "\n".join(summary(made))
    assert any(line.startswith("the rest") for line in summary(made)) == (done < 1_000_000)


def test_an_unverified_compilation_says_so(report: Report) -> None:
    assert "not verified" in summary(report_of(HISTORY, output_bytes=0))


def test_table_rows(report: Report) -> None:
    columns, rows = table(report)
    assert len(rows) == len(report.layers)
    cells = {row[0]: dict(zip(columns, row, strict=True)) for row in rows}
    assert cells["layer.0.up"]["note"] == "with layer.0.gate"
    down = cells["layer.1.down"]["note"]
    assert down == "kept as Q/DQ: no kernel; not equalized: Gelu 'g1' reads it"
    transforms = "norm folded; residual stream rotated; value heads rotated; lae, norm"
    assert cells["layer.1.up"]["transforms"] == transforms
    assert cells["layer.1.gate"]["transforms"] == "norm and its bias folded; lae, norm"
    assert cells["layer.0.down"]["transforms"] == "-"
    assert cells["layer.0.down"]["note"] == "residual stream not rotated: it is shared"
    assert cells["lm_head"]["weight"] == "float"
    assert cells["lm_head"]["K x N"] == "64 x 100"
    assert cells["embed"]["MB"] == "0.01 -> 0.00"
    assert cells["encoder"]["MB"] == "2.10" and cells["attention"]["MB"] == "-"


def test_grouped_rows_fold_blocks_that_were_treated_alike(report: Report) -> None:
    _, rows = table(report, grouped=True)
    names = [row[0] for row in rows]
    assert "layer.*.gate (2)" in names
    assert "layer.0.down" in names and "layer.1.down" in names, "these differ"
    assert sum(int(name.split("(")[1][:-1]) if "(" in name else 1 for name in names) == len(
        report.layers
    )


def test_measured_activations_say_what_each_choice_would_have_cost() -> None:
    errors = {
        Granularity.PER_TENSOR: 0.25,
        Granularity.PER_TOKEN: 0.0123,
    }
    layers = {
        f"layer.{i}.up": {each: error * (i + 1) for each, error in errors.items()} for i in range(2)
    }
    history = [
        record(
            "plan-activations",
            *(planned(n, Granularity.PER_TOKEN, activation_errors=e) for n, e in layers.items()),
        ),
        record("quantize-weights", *map(rounded, layers)),
    ]
    made = report_of(history)
    notes = [row[-1] for row in table(made)[1]]
    assert notes[0] == "output error 25% per-tensor, 1.2% per-token"
    grouped = table(made, grouped=True)[1]
    assert [row[-1] for row in grouped] == ["output error up to 50% per-tensor, 2.5% per-token"]
    assert made.to_dict()["layers"][0]["activation_errors"] == {
        each.value: error for each, error in errors.items()
    }


class Checker(HTMLParser):
    """Counts rows, and notes anything fetched from elsewhere or left open."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.open, self.outside = 0, [], []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.outside += [value for name, value in attrs if name in ("src", "href")]
        if tag != "meta":
            self.open.append(tag)
        self.rows += tag == "tr"

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_nothing_else(report: Report, tmp_path: Path) -> None:
    write_html(report, tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text()
    checker = Checker()
    checker.feed(text)
    assert checker.open == [] and checker.outside == []
    assert checker.rows == 2 + len(report.layers) + len(report.passes)
    assert text.count("<svg") == 8, "a bar for each ratio, and one for the weights"
    assert "LSTM: 2.1 MB</title>" in text and "LSTM: 2.1 MB, 95.8%</li>" in text
    assert 'aria-label="2.8% of 2.2 MB of weights quantized"' in text
    assert 'class="float"' in text and 'class="other"' in text


def test_names_are_escaped(tmp_path: Path) -> None:
    evil = '<script>alert("x")</script>'
    left = LeftAlone(layer=evil, message=f"because {evil}", kind="linear", shape=(1, 1))
    made = report_of([record("plan-weights", left)])
    write_html(made, tmp_path / "r.html")
    assert "<script" not in (tmp_path / "r.html").read_text()
