"""What the pass manager runs around every pass: verify, dump, hold plans against the target."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from qcompiler.commit import put_text
from qcompiler.ir.printer import print_graph
from qcompiler.ir.verifier import verify
from qcompiler.passmanager import Pass, PassResult
from qcompiler.targets import Target


class VerifyInstrument:
    """Checks the graph after every pass that changed it; PassError if the pass broke it."""

    watches_bodies: ClassVar[bool] = False

    def after(self, index: int, step: Pass, result: PassResult, seconds: float) -> None:
        """Verify the graph; the pass manager adds the pass's name to the error."""
        if result.changed:
            verify(result.graph)


@dataclass(frozen=True)
class DumpInstrument:
    """Writes the graph after every pass to `folder`, as `003_quantize-weights.qir`."""

    watches_bodies: ClassVar[bool] = False

    folder: Path

    def after(self, index: int, step: Pass, result: PassResult, seconds: float) -> None:
        """Write one file: what the pass said as comments, then the graph."""
        lines = [f"// {step.name}, {seconds:.3f} s, changed: {str(result.changed).lower()}"]
        for remark in result.remarks:
            sign = "+" if remark.applied else "-"
            lines.append(f"// {sign} {remark.layer}: {remark.message}")
        file = re.sub(r"[^A-Za-z0-9_.-]", "_", f"{index:03d}_{step.name}.qir")
        text = "\n".join(lines) + "\n" + print_graph(result.graph)
        put_text(self.folder / file, text)


@dataclass(frozen=True)
class TargetInstrument:
    """Refuses a plan that the target can't run, as soon as a pass has made it."""

    watches_bodies: ClassVar[bool] = True

    target: Target

    def after(self, index: int, step: Pass, result: PassResult, seconds: float) -> None:
        """RecipeError that names the layer."""
        for layer, plan in (result.plan or {}).items():
            self.target.require([plan], f"'{layer}'")
