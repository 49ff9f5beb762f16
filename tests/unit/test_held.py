"""Activations beyond some memory lie in files, and nobody who reads them need know."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest

from qcompiler import ir
from qcompiler.calibration import held
from qcompiler.calibration.held import Arrays, Room


@pytest.fixture
def little_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held, "IN_MEMORY", 1000)


def files(folder: Path) -> int:
    return len(list(folder.rglob("*.bin")))


@pytest.mark.usefixtures("little_room")
def test_what_goes_beyond_the_room_is_in_files(tmp_path: Path) -> None:
    values = [np.full((10, 10), i, np.float32) for i in range(4)]
    with ir.spilling(tmp_path):
        room = Room()
        kept = [room.put(each) for each in values]
        assert files(tmp_path) == 2, "800 bytes stay"
        arrays = Arrays(kept)
        assert [each[3, 3] for each in arrays] == [0, 1, 2, 3]
        assert [type(each) for each in arrays[:2]] == [np.ndarray] * 2
        assert all(isinstance(each, np.memmap) for each in arrays[2:])
        assert len(arrays[1:]) == 3 and arrays[-1][0, 0] == 3


@pytest.mark.usefixtures("little_room")
def test_changes_in_place_are_seen_by_later_readers(tmp_path: Path) -> None:
    with ir.spilling(tmp_path):
        room = Room()
        arrays = Arrays([room.put(np.ones((20, 20), np.float16)) for _ in range(3)])
        for each in arrays:
            each[...] = each * 2
        assert all((each == 2).all() for each in arrays)


@pytest.mark.usefixtures("little_room")
def test_room_and_files_come_back(tmp_path: Path) -> None:
    with ir.spilling(tmp_path):
        room = Room()
        first = room.put(np.zeros(200, np.float32))
        second = room.put(np.zeros(200, np.float32))
        assert files(tmp_path) == 1
        del first, second
        gc.collect()
        again = room.put(np.zeros(200, np.float32))
        assert isinstance(again.array(), np.ndarray)
        assert not isinstance(again.array(), np.memmap)
        other = room.put(np.zeros(200, np.float32))
        assert files(tmp_path) == 1, "the file of the second is gone"
        assert isinstance(other.array(), np.memmap)


@pytest.mark.usefixtures("little_room")
def test_without_a_scratch_folder_everything_stays_in_memory() -> None:
    room = Room()
    arrays = Arrays([room.put(np.zeros(400, np.float32)) for _ in range(3)])
    assert not any(isinstance(each, np.memmap) for each in arrays)
