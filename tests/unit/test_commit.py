"""Finished output: whole at every step of its way, whatever is there, whatever it is called."""

from __future__ import annotations

import errno
import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs
import onnxruntime as ort
import pytest

from qcompiler import commit, ir, staging
from qcompiler.commit import (
    Made,
    data_name,
    file_place,
    folder_place,
    put_folder,
    put_model,
    put_text,
)
from qcompiler.errors import OutputError
from qcompiler.exchange import CannotExchangeError
from qcompiler.staging import scratch_beside

posix = pytest.mark.skipif(sys.platform == "win32", reason="needs fork, links and devices")

CALLS = ("rename", "replace", "unlink", "rmdir", "link", "symlink", "mkdir")
NOTES = {"notes.txt": "mine", "other.onnx": "\x08 another model", "deep/more.txt": "mine, too"}


def make(folder: Path, name: str, content: str) -> Made:
    """A stand-in for a model: it names its data, and says what that holds."""
    data = folder / data_name(name, hashlib.sha256(content.encode()).hexdigest())
    data.write_text(content)
    model = folder / name
    model.write_text(f"\x08 {data.name} {content}")
    return Made(model, data)


def content_of(model: Path) -> str | None:
    """What a stand-in holds, None where there is none; AssertionError where it is torn."""
    if not model.exists():
        return None
    _, data, content = model.read_text().split()
    assert model.with_name(data).read_text() == content
    return content


def write_file(final: Path, content: str) -> None:
    with scratch_beside(final) as work:
        put_model(make(work, final.name, content), final)


def write_folder(final: Path, content: str) -> None:
    with scratch_beside(final) as work:
        (work / "made").mkdir()
        make(work / "made", "model.onnx", content)
        (work / "made" / "config.json").write_text(content)
        put_folder(work / "made", final, models=["model.onnx"])


def write_export(final: Path, content: str) -> None:
    with scratch_beside(final) as work:
        (work / "made").mkdir()
        make(work / "made", "model.onnx", content)
        put_folder(work / "made", final)


def add_notes(folder: Path) -> None:
    for name, text in NOTES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)


def notes_of(folder: Path) -> dict[str, str]:
    return {name: (folder / name).read_text() for name in NOTES}


def unable(*_: Path) -> None:
    raise CannotExchangeError


def dies_after(step: int, work: Callable[[], None]) -> bool:
    """Whether a process that does some work is killed after the given number of system calls."""
    if pid := os.fork():
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert code in (0, 9)
        return code == 9
    left = step

    def counted(call):
        def made(*arguments, **options):
            nonlocal left
            result = call(*arguments, **options)
            left -= 1
            if left <= 0:
                os._exit(9)
            return result

        return made

    try:
        for name in CALLS:
            setattr(os, name, counted(getattr(os, name)))
        if commit.exchange is not unable:
            commit.exchange = counted(commit.exchange)
        work()
        os._exit(0)
    finally:
        os._exit(1)


@posix
@pytest.mark.parametrize("there", [False, True])
def test_a_file_is_whole_after_every_step(tmp_path: Path, there: bool) -> None:
    step, dies = 0, True
    while dies:
        step += 1
        final = tmp_path / str(step) / "out.onnx"
        if there:
            write_file(final, "old")
        dies = dies_after(step, lambda final=final: write_file(final, "new"))
        assert content_of(final) in ("new", "old" if there else None)
        assert len([path for path in final.parent.iterdir() if path.is_dir()]) <= 1
        write_file(final, "newer")
        assert content_of(final) == "newer"
        assert len(list(final.parent.iterdir())) == 2, "nothing is left of the killed run"
    assert step > 5


@posix
@pytest.mark.parametrize("exchanges", [True, False])
@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("write", [write_folder, write_export])
def test_a_folder_is_whole_after_every_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write, exchanges: bool, links: bool
) -> None:
    if not exchanges:
        monkeypatch.setattr(commit, "exchange", unable)
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    step, dies, states, away = 0, True, [], False
    while dies:
        step += 1
        final = tmp_path / str(step) / "out"
        write(final, "old")
        add_notes(final)
        dies = dies_after(step, lambda final=final: write(final, "new"))
        if not final.exists():
            away = True
            with scratch_beside(final):  # what every run begins with
                assert content_of(final / "model.onnx") == "old"
        states.append(content_of(final / "model.onnx"))
        if write is write_folder or states[-1] == "old":
            assert notes_of(final) == NOTES
        write(final, "newer")
        assert content_of(final / "model.onnx") == "newer"
        assert [path.name for path in final.parent.iterdir()] == ["out"]
        assert len([path for path in final.iterdir() if path.suffix == ".data"]) == 1
    assert states == sorted(states, reverse=True), "first the old, then the new"
    assert {"old", "new"} == set(states)
    assert away == (not exchanges)


def no_links(*_args: object, **_options: object) -> None:
    raise PermissionError(errno.EPERM, "no links here")


@posix
def test_the_old_folder_returns_when_the_new_one_can_not_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    final = tmp_path / "out"
    write_folder(final, "old")
    monkeypatch.setattr(commit, "exchange", unable)
    rename = os.rename

    def refused(source: Path, target: Path) -> None:
        if Path(source).name == "made":
            raise PermissionError(errno.EACCES, "not now")
        rename(source, target)

    monkeypatch.setattr(os, "rename", refused)
    with pytest.raises(PermissionError):
        write_folder(final, "new")
    assert content_of(final / "model.onnx") == "old"
    assert list(tmp_path.iterdir()) == [final]


@posix
def test_what_comes_while_a_folder_is_replaced_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    final, exchange = tmp_path / "out", commit.exchange
    write_folder(final, "old")

    def late(made: Path, place: Path) -> None:
        (place / "late.txt").write_text("mine")
        exchange(made, place)

    monkeypatch.setattr(commit, "exchange", late)
    write_folder(final, "new")
    assert (final / "late.txt").read_text() == "mine"


@posix
def test_what_comes_while_a_folder_is_exported_is_not_replaced(tmp_path: Path) -> None:
    final = tmp_path / "out"
    with scratch_beside(final) as work:
        (work / "made").mkdir()
        write_folder(final, "another run's")
        with pytest.raises(OutputError, match=r"not empty.*--force"):
            put_folder(work / "made", final, replace=False)
        add_notes(final)
        (final / "model.onnx").unlink()
        (final / "other.onnx").unlink()
        with pytest.raises(OutputError, match="no model"):
            put_folder(work / "made", final)
    assert (final / "notes.txt").exists()
    assert list(tmp_path.iterdir()) == [final]


@posix
def test_links_and_permissions_in_a_folder_are_kept(tmp_path: Path) -> None:
    final = tmp_path / "out"
    write_folder(final, "old")
    (final / "link").symlink_to("../elsewhere")
    (final / "read only").mkdir()
    (final / "read only" / "note").touch()
    (final / "read only").chmod(0o555)
    final.chmod(0o750)
    write_folder(final, "new")
    assert (final / "link").readlink() == Path("../elsewhere")
    assert (final / "read only" / "note").exists()
    assert (final / "read only").stat().st_mode & 0o777 == 0o555
    assert final.stat().st_mode & 0o777 == 0o750
    assert list(tmp_path.iterdir()) == [final]


@posix
def test_names_that_are_no_text(tmp_path: Path) -> None:
    final = tmp_path / os.fsdecode(b"\xff.onnx")
    for content in ("old", "new"):
        write_file(final, content)
        assert content_of(final) == content
    assert len(list(tmp_path.iterdir())) == 2


def test_data_that_another_model_names_is_kept(tmp_path: Path) -> None:
    final = tmp_path / "out.onnx"
    write_file(final, "one")
    final.rename(tmp_path / "kept by hand")
    write_file(final, "two")
    (tmp_path / "copy.onnx").write_bytes(final.read_bytes())
    orphan = tmp_path / data_name("out.onnx", "0" * 64)
    strange = [tmp_path / "out.onnx.data", tmp_path / "out.onnx.0123.data"]
    for path in (orphan, *strange):
        path.write_text("")
    write_file(final, "three")
    assert content_of(tmp_path / "kept by hand") == "one"
    assert content_of(tmp_path / "copy.onnx") == "two"
    assert content_of(final) == "three"
    assert not orphan.exists(), "nobody names it"
    assert all(path.exists() for path in strange), "nobody knows whose they are"


def test_a_model_that_can_not_be_put_leaves_no_data(tmp_path: Path) -> None:
    final = tmp_path / "out.onnx"
    final.mkdir()
    with pytest.raises(OSError, match=r"out\.onnx"):
        write_file(final, "new")
    assert list(tmp_path.iterdir()) == [final]


@posix
def test_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    for name in ("old.onnx", "dangling.onnx"):
        (tmp_path / name).symlink_to(tmp_path / "real" / name)
    write_file(tmp_path / "real" / "old.onnx", "old")
    for name in ("old.onnx", "dangling.onnx"):
        assert file_place(tmp_path / name) == tmp_path / "real" / name
        put_text(tmp_path / name, "new")
        assert (tmp_path / name).is_symlink()
        assert (tmp_path / "real" / name).read_text() == "new"
    (tmp_path / "folder").symlink_to(tmp_path / "made later")
    assert folder_place(tmp_path / "folder") == tmp_path / "made later"


@posix
def test_places_where_nothing_can_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing" / "file")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_text("mine")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home" / "me"))
    for place, name, message in [
        (file_place, "loop", "a link that leads back to itself"),
        (folder_place, "loop", "a link that leads back to itself"),
        (file_place, "nowhere", "whose folder is missing"),
        (file_place, "pipe", "a device or a pipe"),
        (file_place, "/dev/null", "a device or a pipe"),
        (file_place, "full", "is a folder; name a file"),
        (folder_place, "file", "is a file; name a folder"),
        (folder_place, "full", "no model.*name a new folder"),
        (folder_place, "/", "a mount point"),
        (folder_place, "here", "working folder"),
    ]:
        with pytest.raises(OutputError, match=message):
            place(tmp_path / name)
    (tmp_path / "home" / "me").mkdir(parents=True)
    (tmp_path / "home" / "stray.onnx").write_text("")
    with pytest.raises(OutputError, match="your home"):
        folder_place(tmp_path / "home")


def test_a_text_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = tmp_path / "new" / "r.json"
    put_text(report, "ä")
    assert report.read_text(encoding="utf-8") == "ä"

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left")

    monkeypatch.setattr(commit, "_sync", full)
    with pytest.raises(OSError, match="No space"):
        put_text(report, "half")
    assert report.read_text(encoding="utf-8") == "ä"
    assert list(report.parent.iterdir()) == [report]


@pytest.mark.parametrize("name", ["m" * 250 + ".onnx", "ä" * 124 + "b.onnx", "m" * 235 + ".onnx"])
def test_long_names(tmp_path: Path, name: str) -> None:
    weight = np.ones((32, 48), np.float32)
    x, y = (gs.Variable(n, np.dtype(np.float32), ("n", s)) for n, s in (("x", 32), ("y", 48)))
    node = gs.Node("MatMul", "fc", inputs=[x, ir.constant("w", weight)], outputs=[y])
    graph = gs.Graph([node], [x], [y], opset=21, ir_version=10)
    other = tmp_path / (name[:-6] + "x.onnx")
    for path in (tmp_path / name, other, tmp_path / name):
        ir.write_model(graph, path)
        weight += 1
    assert len(list(tmp_path.iterdir())) == 4, "each with its data"
    for path, factor in ((tmp_path / name, 3), (other, 2)):
        session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {"x": np.ones((1, 32), np.float32)})
        assert np.all(found == 32 * factor)


def test_names_that_are_cut_stay_different() -> None:
    names = [staging.fitted("ä" * 200 + end, ".", ".lock") for end in "ab"]
    assert names[0] != names[1]
    assert all(len(os.fsencode(name)) <= 255 and name.endswith(".lock") for name in names)
    assert staging.fitted("short", ".", ".lock") == ".short.lock"
