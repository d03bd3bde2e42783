"""Pictures made of numbers, as SVG that stands in a page and takes its colours from the page's style."""

import math
from collections.abc import Iterable
from typing import Any

from markupsafe import Markup, escape


def curve_chart(
    title: str, curves: list[dict[str, Any]], key: str, *, scale: float = 1, top: float | None = None
) -> Markup:
    """One quantity over the epochs as SVG, train and val; the y axis runs from 0 to `top`, by default a round number
    above the data."""
    width, height, left, right, above, below = 360, 180, 34, 10, 24, 22
    points = {
        split: [
            (line["epoch"], scale * line[key])
            for line in curves
            if line["split"] == split and line["epoch"] is not None and line[key] is not None
        ]
        for split in ("train", "val")
    }
    everything = [point for series in points.values() for point in series]
    if not everything:
        return Markup(f'<p class="none">{escape(title)}: no values</p>')
    first, last = min(x for x, _ in everything), max(x for x, _ in everything)
    y_ticks = _ticks(0, top or max(y for _, y in everything) or 1, 4)
    top = top or y_ticks[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        share = (x - first) / (last - first) if last > first else 0.5
        return left + share * (width - left - right), height - below - y / top * (height - above - below)

    svg = [
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)} over epochs">',
        f'<text class="title" x="{left}" y="14">{escape(title)}</text>',
    ]
    for y in y_ticks:
        _, at = place(first, y)
        svg.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{at:.1f}" y2="{at:.1f}"/>')
        svg.append(f'<text class="tick" x="{left - 6}" y="{at + 3.5:.1f}" text-anchor="end">{y:g}</text>')
    for x in _whole_ticks(first, last):
        at, _ = place(x, 0)
        svg.append(f'<text class="tick" x="{at:.1f}" y="{height - 6}" text-anchor="middle">{x:g}</text>')
    legend = width - right
    for split, series in reversed(points.items()):
        if not series:
            continue
        places = [place(x, y) for x, y in series]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        svg.append(f'<polyline class="{split}" points="{line}"/>')
        if len(places) <= 12:
            svg += [f'<circle class="{split}" cx="{x:.1f}" cy="{y:.1f}" r="2.4"/>' for x, y in places]
        svg.append(f'<text class="legend {split}" x="{legend}" y="14" text-anchor="end">{split}</text>')
        legend -= 34
    return Markup("".join([*svg, "</svg>"]))


def _ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers in steps of 1, 2, 2.5 or 5 x 10^n; the last one reaches `high`."""
    raw = (high - low) / about
    power = 10 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    return [low + n * step for n in range(math.ceil((high - low) / step - 1e-9) + 1)]


def _whole_ticks(first: float, last: float) -> list[float]:
    """At most seven whole epochs between the first and the last."""
    step = next(step for step in _steps() if (last - first) / step <= 6)
    return [n * step for n in range(math.ceil(first / step), math.floor(last / step) + 1)]


def _steps() -> Iterable[int]:
    power = 1
    while True:
        yield from (power, 2 * power, 5 * power)
        power *= 10
