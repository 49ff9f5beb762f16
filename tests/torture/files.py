"""Hostile configs, texts, archives, recipes, patterns, templates and weights, for as long as asked.

    python tests/torture/files.py --minutes 15 --seed 1

Every kind of `BOUNDARIES` (tests/unit/hostile_files.py) in turn: valid input mutated, and what was
found before. What is neither read nor refused properly is a finding: it is written to --keep, and
put into tests/corpus/<kind>/ once it is mended.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit"))

from hostile_files import BOUNDARIES, CORPUS, check, mutated_bytes

RARE = {"template": 20}
"""Kinds of which one of so many rounds is run: each input is a process of its own."""


def hostile(kind: str, rng: random.Random) -> bytes:
    """An input: a mutation of a valid one, or of what was found before."""
    seeds = sorted((CORPUS / kind).glob("*"))
    if seeds and rng.random() < 0.2:
        return mutated_bytes(rng.choice(seeds).read_bytes(), rng.choice)
    return BOUNDARIES[kind].mutate(rng.choice)


def attack(arguments: argparse.Namespace, work: Path) -> tuple[Counter[str], int]:
    """Run all rounds; inputs by kind, and the number of findings."""
    rng = random.Random(arguments.seed)
    end = time.monotonic() + 60 * arguments.minutes if arguments.minutes else None
    done: Counter[str] = Counter()
    found: set[str] = set()
    turn = 0
    while (time.monotonic() < end) if end else (turn < arguments.rounds):
        turn += 1
        for kind in arguments.kinds or BOUNDARIES:
            if turn % RARE.get(kind, 1):
                continue
            folder = work / kind
            folder.mkdir(exist_ok=True)
            content = hostile(kind, rng)
            wrong = check(kind, folder, content)
            done[kind] += 1
            if wrong is None or f"{kind}: {wrong[:60]}" in found:
                continue
            found.add(f"{kind}: {wrong[:60]}")
            name = hashlib.sha256(content).hexdigest()[:12]
            arguments.keep.mkdir(parents=True, exist_ok=True)
            (arguments.keep / f"{kind}-{name}").write_bytes(content)
            print(f"{kind}: {wrong} ({arguments.keep / f'{kind}-{name}'})", flush=True)
    return done, len(found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200, help="inputs of each kind")
    parser.add_argument("--minutes", type=float, help="go on for so long instead")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="*", choices=list(BOUNDARIES))
    parser.add_argument("--keep", type=Path, default=Path("findings"), help="folder of findings")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    start = time.process_time()
    with tempfile.TemporaryDirectory() as work:
        done, findings = attack(arguments, Path(work))
    kinds = ", ".join(f"{kind} {count}" for kind, count in done.items())
    print(
        f"files: {done.total()} inputs ({kinds}), {time.process_time() - start:.0f} s of CPU, "
        f"seed {arguments.seed}, {findings} findings"
    )
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
