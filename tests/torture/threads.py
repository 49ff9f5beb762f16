"""The library under the sanitizer of races: sessions that threads share, sessions that come and go.

    python tests/torture/threads.py --rounds 20 --seed 0 [--minutes M] [--threads T]

Every round takes other nodes, one of each op. A finding is a report of the sanitizer with the
library in it, a crash, or a result whose bits are not those of one thread alone. The last line sums
up.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from pathlib import Path

from sanitized import LIBRARY, TESTS, build, environment

LIMIT = 1800  # seconds that a round may take


def findings(output: str, errors: str, code: int) -> list[str]:
    """Of one round: reports in which the library stands, wrong results, a crash."""
    reports = re.findall(r"^={18}\n(WARNING: ThreadSanitizer.*?)^={18}$", errors, re.M | re.S)
    found = [report for report in reports if LIBRARY in report]
    found += [line for line in output.splitlines() if line.startswith("FINDING")]
    if code not in (0, 1, 66) or " runs of shared sessions" not in output:
        found.append(f"ends with {code}: {errors[-2000:]}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin nothing after")
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--turns", type=int, default=4, help="of every thread with every op")
    parser.add_argument("--library", type=Path, help="a build to use, instead of one made here")
    options = parser.parse_args()
    library = options.library.resolve() if options.library else build("tsan")
    end = time.monotonic() + 60 * options.minutes
    rounds, total, last = 0, 0, ""
    for seed in range(options.seed, options.seed + options.rounds):
        if time.monotonic() >= end:
            break
        arguments = [str(n) for n in (seed, options.turns, options.threads)]
        done = subprocess.run(
            [sys.executable, str(TESTS / "many_threads.py"), *arguments],
            env=environment("tsan", library),
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )
        for finding in findings(done.stdout, done.stderr, done.returncode):
            total += 1
            print(f"{finding}\n  repeat: python tests/torture/threads.py --seed {seed} --rounds 1")
        rounds += 1
        last = done.stdout.splitlines()[-1] if done.stdout else ""
        print(f"seed {seed}: {last}", flush=True)
    print(f"threads: {rounds} rounds of {options.threads} threads, {total} findings")
    return int(total > 0)


if __name__ == "__main__":
    sys.exit(main())
