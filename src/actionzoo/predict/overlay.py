"""Draws lines of text as pictures that are legible over footage, dark or bright.

matplotlib draws them: it comes with a font, and finds a font of the system for letters that its own lacks.
"""

import functools
from collections.abc import Sequence
from typing import Any, cast

import numpy as np

_LARGEST, _SMALLEST = 0.045, 7.0
"""Height of the letters: a share of the frame's shorter side, and pixels."""


def text_boxes(texts: Sequence[Sequence[str]], height: int, width: int) -> list[bytes]:
    """A PNG for each text, a text being some lines; all PNGs have one size. `height` and `width` are the frame's.

    White on a translucent black box, in one font size. Lines too long for the frame end in an ellipsis; lines that do
    not fit into it are left out.
    """
    import cv2

    margin = margin_of(height, width)
    room = width - 2 * margin
    size = max(_SMALLEST, _LARGEST * min(height, width))
    widest = max((_width(line, size) for lines in texts for line in lines), default=1)
    size = max(_SMALLEST, min(size, size * (room - 2 * size) / widest))
    step = 1.4 * size
    num_lines = max(1, min(max(len(lines) for lines in texts), int((height - 2 * margin - size) / step)))
    shown = [[_cut(line, size, room - 2 * size) for line in lines[:num_lines]] for lines in texts]
    box_width = min(room, round(2 * size + max(_width(line, size) for lines in shown for line in lines)))
    box_height = min(height, round(num_lines * step + size))
    pictures = (_drawn(lines, size, step, box_height, box_width) for lines in shown)
    return [cv2.imencode(".png", cv2.cvtColor(rgba, cv2.COLOR_RGBA2BGRA))[1].tobytes() for rgba in pictures]


def margin_of(height: int, width: int) -> int:
    """Distance of a box from the frame's edges, in pixels."""
    return min(height, width) // 40


def _drawn(lines: Sequence[str], size: float, step: float, height: int, width: int) -> np.ndarray:
    """uint8 RGBA (height, width, 4)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # at 72 dots per inch a point is a pixel
    figure = Figure(figsize=(width / 72, height / 72), dpi=72, facecolor=(0, 0, 0, 0.6))
    for number, line in enumerate(lines):
        baseline = height - size / 2 - (number + 0.78) * step
        figure.text(
            size / width,
            baseline / height,
            line,
            color="white",
            fontfamily=_families(line),
            fontsize=size,
            parse_math=False,
            verticalalignment="baseline",
        )
    canvas: Any = FigureCanvasAgg(figure)  # has no types
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


def _cut(line: str, size: float, room: float) -> str:
    """The line, shortened with an ellipsis to at most `room` pixels."""
    if _width(line, size) <= room:
        return line
    while line and _width(f"{line}…", size) > room:
        line = line[:-1]
    return f"{line}…"


@functools.lru_cache(maxsize=4096)
def _width(line: str, size: float) -> float:
    """In pixels."""
    from matplotlib.backends.backend_agg import RendererAgg
    from matplotlib.font_manager import FontProperties

    font, renderer_of = FontProperties(family=_families(line), size=size), cast(Any, RendererAgg)
    width, _, _ = renderer_of(1, 1, 72).get_text_width_height_descent(line, font, ismath=False)
    return float(width)


def _families(text: str) -> list[str]:
    """DejaVu Sans, and for each letter that it lacks the first font of this machine that has it."""
    return ["DejaVu Sans", *dict.fromkeys(filter(None, map(_family_with, sorted(set(text)))))]


@functools.cache
def _family_with(letter: str) -> str | None:
    from matplotlib import get_data_path
    from matplotlib.font_manager import fontManager, get_font

    own = f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf"
    if letter.isspace() or get_font(own).get_char_index(ord(letter)):
        return None
    # matplotlib's last resort font has every letter, as a picture of its script
    fonts = [font for font in fontManager.ttflist if "Last Resort" not in font.name]
    fonts.sort(key=lambda font: ("Sans" not in font.name, font.style != "normal", font.weight != 400))
    return next((font.name for font in fonts if get_font(font.fname).get_char_index(ord(letter))), None)
