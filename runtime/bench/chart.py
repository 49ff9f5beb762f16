"""Bar charts of ratios as SVG, written by hand: no library is needed to draw a few bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 820
LEFT = 150
RIGHT = 70
BAR = 11
GAP = 8
TITLE = 40
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Told apart by colour-blind people too."""


@dataclass(frozen=True)
class Panel:
    """Bars under a title: for each label the ratio of every series."""

    title: str
    bars: Mapping[str, Mapping[str, float]]

    @property
    def height(self) -> int:
        """Pixels, title and legend included."""
        bars = sum(len(series) * BAR + GAP for series in self.bars.values())
        return 2 * TITLE + bars + GAP


def draw(panels: Sequence[Panel], caption: str) -> str:
    """An SVG document of the panels, one below the other, and a caption at its end."""
    height = sum(panel.height for panel in panels) + 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="11" fill="#222">',
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
    ]
    top = 0
    for panel in panels:
        parts += _panel(panel, top)
        top += panel.height
    parts += [_text(10, height - 12, caption, 'font-size="9" fill="#666"'), "</svg>"]
    return "\n".join(parts) + "\n"


def _panel(panel: Panel, top: int) -> list[str]:
    names = list(dict.fromkeys(name for series in panel.bars.values() for name in series))
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
    widest = max([1.0, *(ratio for series in panel.bars.values() for ratio in series.values())])
    scale = (WIDTH - LEFT - RIGHT) / widest
    parts = [_text(10, top + 24, panel.title, 'font-size="14" font-weight="bold"')]
    x = LEFT
    for name in names:
        parts.append(_rectangle(x, top + 36, 10, colours[name]))
        parts.append(_text(x + 14, top + 45, name))
        x += 34 + 7 * len(name)
    y = first = top + 2 * TITLE - 10
    for label, series in panel.bars.items():
        parts.append(_text(LEFT - 8, y + len(series) * BAR // 2 + 4, label, 'text-anchor="end"'))
        for name, ratio in series.items():
            parts.append(_rectangle(LEFT, y, ratio * scale, colours[name]))
            parts.append(_text(LEFT + ratio * scale + 4, y + BAR - 2, f"{ratio:.2f}x"))
            y += BAR
        y += GAP
    equal = LEFT + scale
    parts.append(
        f'<line x1="{equal:.1f}" y1="{first - 4}" x2="{equal:.1f}" y2="{y - GAP + 4}" '
        f'stroke="#222" stroke-dasharray="3 3"/>'
    )
    return parts


def _text(x: float, y: float, text: str, style: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(text)}</text>'


def _rectangle(x: float, y: float, width: float, colour: str) -> str:
    return f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{BAR - 1}" fill="{colour}"/>'
