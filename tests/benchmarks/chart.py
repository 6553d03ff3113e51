"""A bar chart as SVG, readable on light and on dark pages."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

WIDTH, LABEL, ROW, GAP = 760, 170, 22, 34
OURS, OTHER, INK = "#2f9e6e", "#8a94a6", "#7a8290"


def bars(title: str, series: Mapping[str, Sequence[tuple[str, float, str]]], ours: str) -> str:
    """Return a chart with a group of bars for each of *series*: label, value, and the words beside the bar.

    The bars of *ours* have a colour of their own. All groups have the same scale.
    """
    longest = max(value for rows in series.values() for _, value, _ in rows)
    scale = (WIDTH - LABEL - 150) / longest
    drawn: list[str] = []
    top = 40
    for name, rows in series.items():
        drawn.append(_text(0, top + 4, name, weight="bold"))
        top += 16
        for label, value, words in rows:
            width = max(1.0, value * scale)
            colour = OURS if label == ours else OTHER
            drawn.append(_text(LABEL - 8, top + 12, label, anchor="end"))
            drawn.append(f'<rect x="{LABEL}" y="{top}" width="{width:.1f}" height="{ROW - 6}" fill="{colour}"/>')
            drawn.append(_text(LABEL + width + 6, top + 12, words))
            top += ROW
        top += GAP - ROW
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" width="{WIDTH}" height="{top}" '
        f'font-family="system-ui, sans-serif" font-size="12" role="img" aria-label="{escape(title)}">'
    )
    return "\n".join([head, _text(0, 16, title, weight="bold"), *drawn, "</svg>", ""])


def _text(x: float, y: float, words: str, *, anchor: str = "start", weight: str = "normal") -> str:
    place = f'x="{x:.1f}" y="{y}" text-anchor="{anchor}" font-weight="{weight}"'
    return f'<text {place} fill="{INK}">{escape(words)}</text>'
