"""Let two runs of `qc` race for one output: the result of one of them is there, whole.

python tests/torture/races.py --rounds 200 --seed 0
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path
from random import Random

from commands import SLOW, Case, attack, start

from qcompiler.models import open_packages


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    return attack(options, "pair", pair)


def pair(case: Case, random: Random, folder: Path, _took: float) -> list[str]:
    """Two runs at once; which of them is there in the end."""
    place = folder / "place"
    shutil.rmtree(place, ignore_errors=True)
    there = random.random() < 0.5
    if there:
        case.put(place, folder / case.name)
    else:
        place.mkdir()
    order = random.sample((0, 1), 2)
    logs = [folder / f"log{which}" for which in order]
    children = []
    for which, log in zip(order, logs, strict=True):
        seed = random.randrange(1 << 30)
        children.append(start(case.arguments(which, place), log, SLOW, seed))
        time.sleep(random.uniform(0, 0.05))
    model = place / case.output
    if case.is_folder:
        model /= open_packages(folder / case.name / "0" / case.output)[0].onnx_path.name
    while None in [child.wait(nohang=True) for child in children]:
        assert model.exists() or not there, "lost: for a moment there is no model"
        time.sleep(0.0005)
    for child, log in zip(children, logs, strict=True):
        assert child.wait() == 0, f"exit code {child.wait()}: {log.read_text()}"
        assert log.read_text() == "", log.read_text()
    last = case.state(place)
    assert last is not None, "lost: nothing is there"
    assert not case.litter(place), f"left: {case.litter(place)}"
    if there:
        case.expect_notes(place)
    return ["the later starter's" if last == order[1] else "the earlier starter's"]


if __name__ == "__main__":
    sys.exit(main())
