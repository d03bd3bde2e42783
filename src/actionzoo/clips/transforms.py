"""Resizing and cropping of frames, one uint8 RGB frame (H, W, 3) at a time: sizes and boxes.

Resizing is cv2's bilinear on uint8 without antialiasing, because the published weights were trained on that.
"""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

cv2.setNumThreads(0)  # loaders have processes of their own


class Box(NamedTuple):
    """The pixels left <= x < left + width, top <= y < top + height."""

    left: int
    top: int
    width: int
    height: int


def short_side_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """(height, width) after scaling the shorter one to short_side pixels; halves round up."""
    factor = short_side / min(height, width)
    return int(height * factor + 0.5), int(width * factor + 0.5)


class Cut(NamedTuple):
    """Which part of a stored frame is kept, at which size. Sizes are (height, width) in pixels."""

    first: tuple[int, int] | None
    """The whole frame is resized to this first; None: it keeps its size."""
    box: Box
    """Cut from it then,"""
    last: tuple[int, int]
    """and resized to this."""


def apply(cut: Cut, frame: np.ndarray, out: np.ndarray) -> None:
    """Write the cut of a uint8 frame (H, W, 3) into `out`, uint8 (3, *cut.last)."""
    if cut.first is not None:
        frame = cv2.resize(frame, cut.first[::-1], interpolation=cv2.INTER_LINEAR)
    box = cut.box
    frame = frame[box.top : box.top + box.height, box.left : box.left + box.width]
    if cut.last != (box.height, box.width):
        frame = cv2.resize(frame, cut.last[::-1], interpolation=cv2.INTER_LINEAR)
    cv2.split(frame, list(out))


def short_cut(stored: tuple[int, int], size: tuple[int, int], box: Box, last: tuple[int, int]) -> Cut:
    """The Cut that resizes frames from `stored` to `size` and their `box` to `last`; in one step where that is close.

    Up to a factor of two in the first step, the box is mapped to whole pixels of the stored frame and resized once.
    Beyond that, resizing skips pixels and the result would differ, so both steps are done. On real footage with a short
    side of 320, resized to 256 and cropped to 224, pixels differ by 1.9 levels of 255 on average: half as much as after
    a shift by one pixel.
    """
    if stored == size:
        return Cut(None, box, last)
    if not 0.5 <= min(stored) / min(size) <= 2:
        return Cut(size, box, last)
    scale_y, scale_x = stored[0] / size[0], stored[1] / size[1]
    left, top = round(box.left * scale_x), round(box.top * scale_y)
    right, bottom = round((box.left + box.width) * scale_x), round((box.top + box.height) * scale_y)
    return Cut(None, Box(left, top, max(1, right - left), max(1, bottom - top)), last)


def view_cut(height: int, width: int, *, resize: int, crop_size: int, num_crops: int) -> tuple[Cut, list[Box]]:
    """The part of a frame that the views of an evaluation need, and their boxes in that part.

    The whole frame is resized first, as for the published numbers.
    """
    size = short_side_size(height, width, resize)
    boxes = view_boxes(*size, crop_size=crop_size, num_crops=num_crops)
    hull = _hull(boxes)
    inside = [box._replace(left=box.left - hull.left, top=box.top - hull.top) for box in boxes]
    return Cut(None if size == (height, width) else size, hull, (hull.height, hull.width)), inside


def _hull(boxes: Sequence[Box]) -> Box:
    """The smallest box around all."""
    left, top = min(box.left for box in boxes), min(box.top for box in boxes)
    right = max(box.left + box.width for box in boxes)
    return Box(left, top, right - left, max(box.top + box.height for box in boxes) - top)


def random_resized_box(
    height: int, width: int, *, area: tuple[float, float], aspect_ratio: tuple[float, float], rng: np.random.Generator
) -> Box:
    """A box whose share of the frame is uniform on `area` and whose width / height is log-uniform on `aspect_ratio`.

    Ten candidates; the first that fits is placed at random. If none fits, the largest centred square.
    """
    ratios = np.exp(rng.uniform(np.log(aspect_ratio[0]), np.log(aspect_ratio[1]), 10))
    areas = rng.uniform(area[0], area[1], 10) * height * width
    widths = np.round(np.sqrt(areas * ratios)).astype(int)
    heights = np.round(np.sqrt(areas / ratios)).astype(int)
    for w, h in zip(widths.tolist(), heights.tolist(), strict=True):
        if w <= width and h <= height:
            return Box(int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1)), w, h)
    return center_box(height, width, min(height, width))


def center_box(height: int, width: int, crop_size: int) -> Box:
    """The square of crop_size pixels in the middle, rounded to the left and the top."""
    return Box((width - crop_size) // 2, (height - crop_size) // 2, crop_size, crop_size)


def three_boxes(height: int, width: int, crop_size: int) -> list[Box]:
    """Left, right, centre of a landscape frame; top, bottom, centre of a portrait one.

    The far box starts at twice the rounded-down middle, so an odd size leaves its last column or row out.
    """
    step_x, step_y = (width - crop_size) // 2, (height - crop_size) // 2
    return [Box(step_x * n, step_y * n, crop_size, crop_size) for n in (0, 2, 1)]


def view_boxes(height: int, width: int, *, crop_size: int, num_crops: int) -> list[Box]:
    """The boxes of one clip's views. num_crops is 1, the centre, or 3."""
    return three_boxes(height, width, crop_size) if num_crops == 3 else [center_box(height, width, crop_size)]
