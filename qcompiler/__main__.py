"""`python -m qcompiler` is `qc`."""

from __future__ import annotations

from qcompiler.entry import main

if __name__ == "__main__":
    main()
