"""`qc` commands in forked children of a process that has imported everything, and what they leave.

A case is a command with an output that may be there already, made from other weights of the same
shapes: then data of one model beside the other loads, and only the numbers tell.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import NoReturn

# Threads do not survive a fork.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from qcompiler import commit, entry
from qcompiler.models import open_package, open_packages
from qcompiler.session import create_session

SLOW = 0.01
"""Seconds that the disk may take for a file: so much longer are the moments of the commit."""

for _module in (
    "qcompiler.cli",
    "qcompiler.compiler",
    "qcompiler.opt",
    "qcompiler.report",
    "qcompiler.export.hf",
):
    importlib.import_module(_module)  # here, and not in every child

SIZES = (64, 256, 256, 64)
NOTES = {"notes.txt": "mine", "deep/more.txt": "mine, too"}
"""What a user keeps in a folder that is compiled again."""


def write_layers(path: Path, seed: int) -> Path:
    """A model of linear layers with the shapes of SIZES."""
    random = np.random.default_rng(seed)
    nodes, weights = [], []
    for i, shape in enumerate(itertools.pairwise(SIZES)):
        values = random.standard_normal(shape).astype(np.float32) / 16
        weights.append(numpy_helper.from_array(values, f"w{i}"))
        nodes.append(helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"x{i + 1}"], name=f"fc{i}"))
    ends = [
        helper.make_tensor_value_info(f"x{i}", TensorProto.FLOAT, ["n", size])
        for i, size in ((0, SIZES[0]), (len(nodes), SIZES[-1]))
    ]
    graph = helper.make_graph(nodes, "layers", ends[:1], ends[1:], weights)
    opsets = [helper.make_opsetid("", 21)]
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def write_bert(folder: Path, seed: int) -> Path:
    """A Hugging Face folder of one small layer with random weights."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=40,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    transformers.BertModel(config).save_pretrained(folder)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(str, range(35))]
    (folder / "vocab.txt").write_text("\n".join(words))
    (folder / "config.json").write_text(
        json.dumps({**config.to_dict(), "architectures": ["BertModel"]})
    )
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Case:
    """One command that writes `output`, from sources that differ in their weights."""

    name: str
    sources: tuple[Path, Path]
    command: Callable[[Path, Path], list[str]]
    """The arguments of `qc`, for a source and an output."""
    output: str
    keeps: bool = False
    """Whether what a user keeps in the output's folder stays."""
    answers: list[np.ndarray] = field(default_factory=list)
    """What the results from the sources compute."""

    @property
    def is_folder(self) -> bool:
        return not self.output.endswith(".onnx")

    def arguments(self, which: int, folder: Path) -> list[str]:
        """Of the command that makes the output in `folder` from one of the sources."""
        return self.command(self.sources[which], folder / self.output)

    def learn(self, folder: Path, log: Path) -> float:
        """Make both results once, to know what they compute; gives the seconds of a run."""
        began = time.monotonic()
        for which in range(2):
            place = folder / str(which)
            place.mkdir(parents=True)
            child = start(self.arguments(which, place), log)
            assert child.wait() == 0, log.read_text()
            self.answers.append(answer(place / self.output))
        assert not np.array_equal(*self.answers)
        return (time.monotonic() - began) / 2

    def put(self, folder: Path, made: Path) -> None:
        """Have the first source's result in a folder, as `learn` has made it."""
        shutil.copytree(made / "0", folder)
        for name, text in NOTES.items() if self.keeps else ():
            note = folder / self.output / name
            note.parent.mkdir(exist_ok=True)
            note.write_text(text)

    def state(self, folder: Path) -> int | None:
        """Which of the results is there, None for none; AssertionError for anything else."""
        output = folder / self.output
        if not os.path.lexists(output):
            return None
        found = answer(output)
        same = [np.array_equal(found, known) for known in self.answers]
        assert any(same), "torn: it computes what neither model computes"
        return same.index(True)

    def expect_notes(self, folder: Path) -> None:
        """AssertionError where something of the user's is lost."""
        for name, text in NOTES.items() if self.keeps else ():
            note = folder / self.output / name
            assert note.is_file(), f"lost: {name}"
            assert note.read_text() == text, f"lost: {name}"

    def litter(self, folder: Path) -> list[Path]:
        """What lies in a folder beside the output and its data."""
        output = folder / self.output
        wanted = {output}
        if not self.is_folder and output.exists():
            wanted |= set(open_package(output).data_files)
        found = set(folder.iterdir()) - wanted
        if self.is_folder and output.is_dir():
            named = {file.name for each in open_packages(output) for file in each.data_files}
            found |= {
                each
                for each in output.iterdir()
                if each.name.startswith(".") or (each.suffix == ".data" and each.name not in named)
            }
        return sorted(found)


def answer(model: Path) -> np.ndarray:
    """What a model gives for fixed inputs; of a folder, what all in it give."""
    if model.is_dir():
        return np.concatenate([answer(each.onnx_path) for each in open_packages(model)])
    session = create_session(model, threads=1)
    feeds = {}
    for each in session.get_inputs():
        if each.type == "tensor(int64)":
            feeds[each.name] = np.ones((1, 8), np.int64)
        else:
            feeds[each.name] = np.linspace(-1, 1, 2 * SIZES[0], dtype=np.float32).reshape(2, -1)
    return session.run(None, feeds)[0]


@dataclass
class Child:
    """A forked process that runs one command."""

    pid: int
    status: int | None = None

    def wait(self, nohang: bool = False) -> int | None:
        """The exit code, negative for a signal; None while it runs, if it is not waited for."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG if nohang else 0)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
        return self.status

    def kill(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.wait(nohang=True) is None:
            os.kill(self.pid, number)


def start(arguments: Sequence[str], log: Path, slow: float = 0.0, seed: int = 0) -> Child:
    """Run `qc` with these arguments in a fork; what it says goes to `log`.

    `slow`: the longest time in seconds that the disk is to take for a file it is asked to keep.
    """
    if pid := os.fork():
        return Child(pid)
    _become(arguments, log, slow, seed)


def _become(arguments: Sequence[str], log: Path, slow: float, seed: int) -> NoReturn:
    code = 70
    try:
        # Background jobs of shells ignore these.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        into = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(into, 2)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
        sys.argv = ["qc", *arguments]
        random, sync = Random(seed), commit._sync

        def late(path: Path) -> None:
            time.sleep(random.uniform(0, slow))
            sync(path)

        if slow:
            commit._sync = late
        entry.main()
    except SystemExit as done:
        code = done.code if isinstance(done.code, int) else 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def cases(folder: Path, *, export: bool) -> list[Case]:
    """Every command that writes models."""
    layers = (write_layers(folder / "a.onnx", 0), write_layers(folder / "b.onnx", 1))
    packages = (folder / "a", folder / "b")
    for source, package in zip(layers, packages, strict=True):
        package.mkdir()
        shutil.copyfile(source, package / "model.onnx")
        (package / "config.json").write_text("{}")
    several = (folder / "several-a", folder / "several-b")
    for source, other, place in zip(layers, reversed(layers), several, strict=True):
        place.mkdir()
        shutil.copyfile(source, place / "encoder.onnx")
        shutil.copyfile(other, place / "decoder.onnx")
    quick = ["-r", "rtn", "--calib-samples", "8"]

    def compiled(source: Path, output: Path) -> list[str]:
        return ["compile", str(source), "-o", str(output), *quick]

    def optimized(source: Path, output: Path) -> list[str]:
        return ["opt", str(source), "-p", "import,canonicalize", "-o", str(output)]

    def exported(source: Path, output: Path) -> list[str]:
        return ["export", str(source), str(output), "--dialect", "torch", "--force"]

    made = [
        Case("compile a file", layers, compiled, "out.onnx"),
        Case("compile a folder", packages, compiled, "out", keeps=True),
        Case("compile a folder of several", several, compiled, "out", keeps=True),
        Case("opt", layers, optimized, "out.onnx"),
    ]
    if export:
        berts = (write_bert(folder / "bert-a", 0), write_bert(folder / "bert-b", 1))
        importlib.import_module("torch.onnx")
        made.append(Case("export --force", berts, exported, "out"))
    return made


ort.set_default_logger_severity(4)


def attack(options: argparse.ArgumentParser, what: str, one: Callable[..., list[str]]) -> int:
    """Run rounds as the command line says; the exit code.

    `one` takes a case, a source of chance, a folder, and the seconds that the
    command takes; it gives what there is to count, and asserts the rest.
    """
    options.add_argument("--rounds", type=int, default=200)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--minutes", type=float, default=float("inf"))
    given = options.parse_args()
    until = time.monotonic() + 60 * given.minutes
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        known = cases(folder / "sources", export=getattr(given, "export", False))
        took = {case.name: case.learn(folder / case.name, folder / "log") for case in known}
        for index in range(given.rounds):
            if time.monotonic() > until:
                break
            case, random = known[index % len(known)], Random(f"{given.seed} {index}")
            try:
                counts.update(one(case, random, folder, took[case.name]))
            except AssertionError as error:
                print(f"{what} {index} of seed {given.seed}, {case.name}: {error}")
                print((folder / "log").read_text())
                print("\n".join(map(str, sorted((folder / "place").rglob("*")))))
                return 1
            counts[f"{what}s"] += 1
    print(", ".join(f"{count} {each}" for each, count in counts.items()) + "; 0 torn, 0 lost")
    return 0
