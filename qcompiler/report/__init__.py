"""Reports: what became of every layer, as data, on a terminal, and as a page."""

from __future__ import annotations

from qcompiler.report.build import (
    SCHEMA_VERSION,
    FolderReport,
    PassTime,
    Report,
    account,
    build_report,
    write_json,
)
from qcompiler.report.html import write_html
from qcompiler.report.layers import Layer
from qcompiler.report.text import summary, table, told_sizes
from qcompiler.report.weights import Weights

__all__ = [
    "SCHEMA_VERSION",
    "FolderReport",
    "Layer",
    "PassTime",
    "Report",
    "Weights",
    "account",
    "build_report",
    "summary",
    "table",
    "told_sizes",
    "write_html",
    "write_json",
]
