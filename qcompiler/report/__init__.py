"""Reports: what became of every layer, as data, on a terminal, and as a page."""

from __future__ import annotations

from qcompiler.report.build import SCHEMA_VERSION, PassTime, Report, build_report, write_json
from qcompiler.report.html import write_html
from qcompiler.report.layers import Layer
from qcompiler.report.text import summary, table

__all__ = [
    "SCHEMA_VERSION",
    "Layer",
    "PassTime",
    "Report",
    "build_report",
    "summary",
    "table",
    "write_html",
    "write_json",
]
