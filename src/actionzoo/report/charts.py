"""Charts as inline SVG; the page's style sheet gives them their colours."""

import base64
import math
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence

from markupsafe import Markup, escape


def curve_chart(
    title: str, curves: Mapping[str, Sequence[tuple[float, float]]], *, over: str = "epochs", top: float | None = None
) -> Markup:
    """Named curves of (x, y) points with whole x; each curve's name is also its CSS class.

    The y axis runs from 0 to `top`, by default a round number above the data.
    """
    width, height, left, right, above, below = 360, 180, 34, 10, 24, 22
    everything = [point for series in curves.values() for point in series]
    if not everything:
        return Markup(f'<p class="none">{escape(title)}: no values</p>')
    first, last = min(x for x, _ in everything), max(x for x, _ in everything)
    y_ticks = _ticks(0, top or max(y for _, y in everything) or 1, 4)
    top = top or y_ticks[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        share = (x - first) / (last - first) if last > first else 0.5
        return left + share * (width - left - right), height - below - y / top * (height - above - below)

    svg = [
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)} over {over}">',
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
    for name, series in reversed(list(curves.items())):
        if not series:
            continue
        places = [place(x, y) for x, y in series]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        svg.append(f'<polyline class="{name}" points="{line}"/>')
        if len(places) <= 12:
            svg += [f'<circle class="{name}" cx="{x:.1f}" cy="{y:.1f}" r="2.4"/>' for x, y in places]
        svg.append(f'<text class="legend {name}" x="{legend}" y="14" text-anchor="end">{name}</text>')
        legend -= 34
    return Markup("".join([*svg, "</svg>"]))


LABELLED = 24
"""Up to so many classes, a confusion matrix shows names and numbers; above, one pixel per cell."""


def confusion_chart(classes: Sequence[str], matrix: Sequence[Sequence[int]]) -> Markup:
    """Clips by actual class (rows) and predicted class (columns).

    Correct cells are blue, wrong ones orange; the strength is the cell's share of its row.
    """
    draw = _labelled_matrix if len(classes) <= LABELLED else _pixel_matrix
    return draw(classes, matrix)


def bar(share: float) -> Markup:
    """A horizontal bar for a share of 0 to 1, as high as a line of text."""
    return Markup(
        f'<svg class="bar" viewBox="0 0 100 8" aria-hidden="true"><rect width="{100 * share:.1f}" height="8"/></svg>'
    )


def standalone(chart: Markup) -> str:
    """The chart as the content of an SVG file."""
    return (
        str(chart)
        .replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
        .replace(">", f'><style>{_ALONE}</style><rect width="100%" height="100%" fill="#fff"/>', 1)
    )


_ALONE = (
    "svg { font: 11px system-ui, sans-serif; } text { fill: #1d2126; } "
    ".right { fill: #1a5fb4; } .wrong { fill: #c64600; } "
    ".frame { fill: none; stroke: #c9ced3; } image { image-rendering: pixelated; }"
)


def _confusion_start(width: int, height: int, num_classes: int) -> str:
    about = f'role="img" aria-label="confusion matrix of {num_classes} classes"'
    return f'<svg class="confusion" viewBox="0 0 {width} {height}" width="{width}" {about}>'


def _labelled_matrix(classes: Sequence[str], matrix: Sequence[Sequence[int]]) -> Markup:
    cell, names, head = (40 if len(classes) <= 10 else 26), 240, 34
    side = cell * len(classes)
    svg = [
        _confusion_start(names + side + 6, head + side + 6, len(classes)),
        f'<text x="{names}" y="12">predicted</text>',
        f'<text x="{names - 8}" y="{head - 6}" text-anchor="end">actual</text>',
    ]
    for label, (name, row) in enumerate(zip(classes, matrix, strict=True)):
        y, total = head + cell * label, sum(row)
        short = name if len(name) <= 36 else f"{name[:35]}…"
        svg.append(
            f'<text x="{names - 8}" y="{y + cell / 2 + 4:g}" text-anchor="end">{escape(short)} ({label})'
            f"<title>{escape(name)}</title></text>"
        )
        svg.append(f'<text x="{names + cell * (label + 0.5):g}" y="{head - 6}" text-anchor="middle">{label}</text>')
        for guess, count in enumerate(row):
            if count:
                kind, x = ("right" if guess == label else "wrong"), names + cell * guess
                svg.append(
                    f'<rect class="{kind}" x="{x}" y="{y}" width="{cell}" height="{cell}" '
                    f'fill-opacity="{0.08 + 0.6 * count / total:.3f}"><title>{escape(name)} predicted as '
                    f"{escape(classes[guess])}: {count} of {total}</title></rect>"
                    f'<text x="{x + cell / 2:g}" y="{y + cell / 2 + 4:g}" text-anchor="middle">{count}</text>'
                )
    svg.append(f'<rect class="frame" x="{names}" y="{head}" width="{side}" height="{side}"/></svg>')
    return Markup("".join(svg))


def _pixel_matrix(classes: Sequence[str], matrix: Sequence[Sequence[int]]) -> Markup:
    left, head, side = 44, 34, len(classes) * max(2, 600 // len(classes))
    picture = base64.b64encode(_png(_pixels(matrix), len(classes))).decode()
    svg = [
        _confusion_start(left + side + 6, head + side + 6, len(classes)),
        f'<text x="{left}" y="12">predicted, by label</text>',
        f'<text x="{left - 8}" y="{head - 6}" text-anchor="end">actual</text>',
        f'<image x="{left}" y="{head}" width="{side}" height="{side}" href="data:image/png;base64,{picture}"/>',
    ]
    for label in _whole_ticks(0, len(classes) - 1):
        at = (label + 0.5) * side / len(classes)
        svg.append(f'<text x="{left - 8}" y="{head + at + 4:.1f}" text-anchor="end">{label:g}</text>')
        svg.append(f'<text x="{left + at:.1f}" y="{head - 6}" text-anchor="middle">{label:g}</text>')
    svg.append(f'<rect class="frame" x="{left}" y="{head}" width="{side}" height="{side}"/></svg>')
    return Markup("".join(svg))


def _pixels(matrix: Sequence[Sequence[int]]) -> bytes:
    """RGBA bytes, row by row. A cell with few clips is faint, but visible."""
    pixels = bytearray()
    for label, row in enumerate(matrix):
        total = sum(row) or 1
        for guess, count in enumerate(row):
            colour = (45, 115, 205) if guess == label else (214, 90, 20)
            strength = 80 + 175 * math.sqrt(count / total) if count else 0
            pixels += bytes((*colour, round(strength)))
    return bytes(pixels)


def _png(pixels: bytes, side: int) -> bytes:
    """A square RGBA image as PNG (PNG specification, third edition, sections 5 and 11)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + pixels[start : start + 4 * side] for start in range(0, len(pixels), 4 * side))
    header = struct.pack(">IIBBBBB", side, side, 8, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


def _ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers in steps of 1, 2, 2.5 or 5 x 10^n; the last one is `high` or above."""
    raw = (high - low) / about
    power = 10 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    return [low + n * step for n in range(math.ceil((high - low) / step - 1e-9) + 1)]


def _whole_ticks(first: float, last: float) -> list[float]:
    """At most seven whole numbers from `first` to `last`."""
    step = next(step for step in _steps() if (last - first) / step <= 6)
    return [n * step for n in range(math.ceil(first / step), math.floor(last / step) + 1)]


def _steps() -> Iterable[int]:
    power = 1
    while True:
        yield from (power, 2 * power, 5 * power)
        power *= 10
