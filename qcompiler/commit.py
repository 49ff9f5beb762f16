"""Finished output goes to its place: whenever the run ends, what lies there is whole, old or new.

A model's data file is named by its content, so it never takes the place of other data: the rename
of the model is what counts. A folder changes places with the one that was there. Two runs for one
output take turns.
"""

from __future__ import annotations

import errno
import mmap
import os
import re
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from qcompiler.errors import OutputError
from qcompiler.exchange import CannotExchangeError, exchange
from qcompiler.locks import turn
from qcompiler.staging import REPLACED, fitted, scratch_beside

_DIGITS = 16
"""Hexadecimal digits of the SHA-256 of a data file that its name has."""
_IR_VERSION = b"\x08"
"""What an ONNX file begins with: the key of its first field."""


@dataclass(frozen=True)
class Made:
    """A model that is complete, in a scratch folder."""

    model: Path
    data: Path | None
    """None where all values fit into the model."""

    @property
    def files(self) -> tuple[Path, ...]:
        """Data first, as they are put in place."""
        return (self.model,) if self.data is None else (self.data, self.model)


def data_name(model: str, digest: str) -> str:
    """The name of a model file's data, from the SHA-256 of its content in hexadecimal digits."""
    readable = os.fsencode(model).decode(errors="replace")  # ONNX stores it as text
    return fitted(readable, after=f".{digest[:_DIGITS]}.data")


def is_data_of(file: str, model: str) -> bool:
    """Whether a file's name is one that `data_name` gives for a model file."""
    stem = data_name(model, "0" * _DIGITS).removesuffix("0" * _DIGITS + ".data")
    return re.fullmatch(re.escape(stem) + rf"[0-9a-f]{{{_DIGITS}}}\.data", file) is not None


def file_place(path: Path) -> Path:
    """Where the file of an output goes: its absolute path, a link followed.

    OutputError for a folder, a device, a pipe, and for links that lead nowhere.
    """
    place = _followed(path.absolute())
    if place.is_dir():
        raise OutputError(f"output '{path}' is a folder; name a file")
    if place.exists() and not place.is_file():
        raise OutputError(f"output '{path}' is a device or a pipe; name a file")
    return place


def folder_place(path: Path, *, replace: bool = True) -> Path:
    """Where the folder of an output goes: its absolute path, a link followed.

    OutputError for a file, for a folder that nobody wants to see replaced as a whole, and without
    `replace` for any that holds something.
    """
    place = _followed(path.absolute())
    if not os.path.lexists(place):
        return place
    if not place.is_dir():
        raise OutputError(f"output '{path}' is a file; name a folder")
    if os.path.ismount(place):
        raise OutputError(f"output '{path}' is a mount point; name a folder in it")
    if _inhabited(place.resolve()):
        raise OutputError(
            f"output '{path}' holds your home or working folder, and would be replaced as a whole; "
            "name a new folder"
        )
    files = list(place.iterdir())
    if files and not any(file.suffix == ".onnx" for file in files):
        raise OutputError(
            f"output '{path}' holds files but no model, and would be replaced as a whole; name a "
            "new folder"
        )
    if files and not replace:
        raise OutputError(
            f"output '{path}' is not empty; name another folder, or pass --force to replace it"
        )
    return place


def _followed(path: Path) -> Path:
    try:
        path.stat()
    except FileNotFoundError:
        if not path.is_symlink():
            return path
        place = Path(os.path.realpath(path))
        if place.parent.is_dir():
            return place
        raise OutputError(
            f"output '{path}' is a link to '{place}', whose folder is missing; make it, or name "
            "another output"
        ) from None
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise OutputError(
            f"output '{path}' is a link that leads back to itself; name another"
        ) from None
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def _inhabited(folder: Path) -> bool:
    lived_in = [Path("~").expanduser()]
    with suppress(FileNotFoundError):  # a working folder that somebody has removed
        lived_in.append(Path.cwd())
    return any(each.resolve().is_relative_to(folder) for each in lived_in)


def put_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all; its folder is made."""
    final = file_place(path)
    with scratch_beside(final) as work:
        made = work / "text"
        made.write_text(text, encoding="utf-8", errors="backslashreplace")
        _sync(made)
        made.replace(final)
        _sync(final.parent)


def put_model(made: Made, final: Path) -> list[Path]:
    """Put a model at `final` (a `file_place`) with its data beside it; returns both, data first.

    Data of the model that was there goes, and so does what killed runs have left of it, unless
    another model in the folder names it.
    """
    for file in made.files:
        _sync(file)
    data = None if made.data is None else final.with_name(made.data.name)
    with turn(_lock_file(final)):
        kept = None
        try:
            if made.data is not None and data is not None:
                made.data.replace(data)  # what has this name has this content
                _sync(final.parent)
            made.model.replace(final)
            _sync(final.parent)
            kept = data
        finally:
            _remove_unnamed(final, kept)
    return [final] if data is None else [data, final]


def put_folder(
    made: Path, final: Path, *, models: Sequence[str] = (), replace: bool = True
) -> None:
    """Put a folder at `final`, in place of one that is there, if it still is a `folder_place`.

    `made` lies in the scratch folder of `final`, with which the old folder goes. With `models`, the
    names of those in it, what the old folder holds beside is kept: all but the old models' data.
    """
    for path in (*made.rglob("*"), made):
        _sync(path)
    with turn(_lock_file(final)):
        if not os.path.lexists(folder_place(final, replace=replace)):
            made.rename(final)
        else:
            if models:
                _keep_others(final, made, models)
            _like(final, made)
            old = _change_places(made, final)
            if models:
                _keep_others(old, final, models)  # what has come meanwhile
        _sync(final.parent)


def _lock_file(final: Path) -> Path:
    return final.with_name(fitted(final.name, ".", ".lock"))


def _change_places(made: Path, final: Path) -> Path:
    """Put one folder in another's place; returns where that one is now."""
    try:
        exchange(made, final)
        return made
    except CannotExchangeError:
        pass
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EBUSY):
            raise
        raise OutputError(
            f"{final} can't be replaced here ({error.strerror}); name a new folder"
        ) from error
    old = made.with_name(REPLACED)
    final.rename(old)
    made.rename(final)  # a run that ends before this: `staging` puts the old one back
    return old


def _keep_others(old: Path, new: Path, models: Sequence[str]) -> None:
    """Link into one folder what another holds beside: files of the user, other models."""
    data = [path for path in old.iterdir() if any(is_data_of(path.name, model) for model in models)]
    for path in old.iterdir():
        if path not in data and not os.path.lexists(new / path.name):
            _link(path, new / path.name)
    for path in data:
        if not os.path.lexists(new / path.name) and _is_named(path.name, new):
            _link(path, new / path.name)


def _link(source: Path, link: Path) -> None:
    """The same file under a second name, or a copy where there are no such links."""
    if source.is_symlink():
        link.symlink_to(source.readlink())
    elif source.is_dir():
        link.mkdir()
        for path in source.iterdir():
            _link(path, link / path.name)
        _like(source, link)
    else:
        try:
            link.hardlink_to(source)
        except OSError:
            shutil.copy2(source, link)


def _like(model: Path, folder: Path) -> None:
    """Owner, permissions and times of one folder for another, as far as we may."""
    if sys.platform != "win32":
        status = model.stat()
        with suppress(PermissionError):
            os.chown(folder, status.st_uid, status.st_gid)
    with suppress(PermissionError):
        shutil.copystat(model, folder)


def _remove_unnamed(final: Path, kept: Path | None) -> None:
    """Remove data files of the output that no model in the folder names."""
    for path in final.parent.iterdir():
        named = path == kept or not is_data_of(path.name, final.name)
        if not named and not _is_named(path.name, final.parent):
            with suppress(OSError):  # in use, where such files can't be removed: the next run will
                path.unlink()


def _is_named(data: str, folder: Path) -> bool:
    """Whether an ONNX file of a folder names a data file: models are renamed and copied by hand."""
    files = [path for path in folder.iterdir() if path.suffix != ".data" and path.is_file()]
    return any(_names(path, os.fsencode(data)) for path in files)


def _names(path: Path, data: bytes) -> bool:
    try:
        with path.open("rb") as file:
            if file.read(1) != _IR_VERSION:
                return False
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return content.find(data) >= 0
    except FileNotFoundError:
        return False
    except OSError:
        return True  # better an orphan than a model without its data


def _sync(path: Path) -> None:
    """Have a file or a folder on the disk, where the system does that."""
    if sys.platform == "win32" and path.is_dir():
        return
    try:
        descriptor = os.open(path, os.O_RDONLY if sys.platform != "win32" else os.O_RDWR)
    except PermissionError:  # what may not be read is written all the same
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise  # a full disk may only say so now
    finally:
        os.close(descriptor)


__all__ = [
    "Made",
    "data_name",
    "file_place",
    "folder_place",
    "is_data_of",
    "put_folder",
    "put_model",
    "put_text",
]
