"""Pieces that the function bodies share, in ONNX's text syntax."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx
import onnx.parser

DOMAIN = "ai.qcompiler"
CONTRIB_DOMAIN = "com.microsoft"
"""Of ONNX Runtime's own operators."""
ONNX_OPSET = 21


def parse(
    op_type: str,
    *,
    attributes: Sequence[str],
    inputs: Sequence[str],
    outputs: Sequence[str],
    body: str,
    domains: Mapping[str, int] = {},
) -> onnx.FunctionProto:
    """A function of our domain from its body's text; `domains` are those it uses beside ONNX's."""
    imports = ", ".join(
        f'"{each}" : {at}' for each, at in ({"": ONNX_OPSET} | dict(domains)).items()
    )
    names = f"<{', '.join(attributes)}>" if attributes else ""
    signature = f"{op_type} {names} ({', '.join(inputs)})"
    return onnx.parser.parse_function(
        f'<opset_import : [{imports}], domain : "{DOMAIN}">\n'
        f"{signature} => ({', '.join(outputs)}) {{{body}}}"
    )
