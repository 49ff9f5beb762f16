"""Kill `qc` at random moments, hard and politely: what is there is whole, and nothing is left.

python tests/torture/kills.py --rounds 200 --seed 0
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from random import Random

from commands import SLOW, Case, Child, attack, start

SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
POLITE = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGHUP: 129}


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--export", action="store_true", help="`qc export` too; needs torch")
    return attack(options, "round", round_of)


def round_of(case: Case, random: Random, folder: Path, took: float) -> list[str]:
    """One kill, and the run after it; what there is to count."""
    place, log = folder / "place", folder / "log"
    shutil.rmtree(place, ignore_errors=True)
    there = random.random() < 0.5
    if there:
        case.put(place, folder / case.name)
    else:
        place.mkdir()
    number = random.choice(SIGNALS)
    child = start(case.arguments(1, place), log, SLOW, random.randrange(1 << 30))
    in_commit = random.random() < 0.5
    if in_commit:
        wait_for(place / f".{case.output}.lock", child)
        time.sleep(random.uniform(0, 6 * SLOW))
    else:
        time.sleep(random.uniform(0, 1.2 * took))
    child.kill(number)
    if number in POLITE and random.random() < 0.3:
        time.sleep(random.uniform(0, 0.02))
        child.kill(random.choice(list(POLITE)))
    code = child.wait()
    after = case.state(place)
    assert after is not None or not there, "lost: nothing is there"
    if after == 0 or there:
        case.expect_notes(place)
    litter = case.litter(place)
    if number is signal.SIGKILL:
        scratch = [path for path in litter if path.is_dir()]
        assert len(scratch) <= 1, f"several scratch folders: {scratch}"
    else:
        said = log.read_text().splitlines()
        assert code in (0, POLITE[number], *POLITE.values()), f"exit code {code}"
        assert len(said) == (code != 0), f"{len(said)} lines, exit code {code}"
        assert not litter, f"left: {litter}"
    if code == 0:
        assert after == 1, "it says that it is done, and is not"
    again = start(case.arguments(1, place), log)
    assert again.wait() == 0, "the next run fails"
    assert case.state(place) == 1, "the next run changes nothing"
    assert not case.litter(place), f"left after the next run: {case.litter(place)}"
    if there:
        case.expect_notes(place)
    kind = "hard kills" if number is signal.SIGKILL else "polite ones"
    state = {None: "left none", 0: "left the old", 1: "left the new"}[after]
    return [kind, state, "ended before" if code == 0 else "in time"]


def wait_for(path: Path, child: Child) -> None:
    """Until a file is there, or the process has ended."""
    while not os.path.lexists(path) and child.wait(nohang=True) is None:
        time.sleep(0.0002)


if __name__ == "__main__":
    sys.exit(main())
