"""What happens to pixels on the way to the network: sizes and boxes here, on uint8 frames (T, H, W, 3), RGB.

Resizing is cv2's bilinear on uint8 without antialiasing: released weights were trained on just that.
"""

from typing import NamedTuple

import cv2
import numpy as np

cv2.setNumThreads(0)  # loaders have processes of their own


class Box(NamedTuple):
    """Pixels left <= x < left + width, top <= y < top + height."""

    left: int
    top: int
    width: int
    height: int


def short_side_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """(height, width) after scaling so that the shorter becomes short_side; halves round up."""
    factor = short_side / min(height, width)
    return int(height * factor + 0.5), int(width * factor + 0.5)


def resize(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear; frames of that size come back untouched."""
    if frames.shape[1:3] == (height, width):
        return frames
    return np.stack([cv2.resize(frame, (width, height), interpolation=cv2.INTER_LINEAR) for frame in frames])


def resize_short_side(frames: np.ndarray, short_side: int) -> np.ndarray:
    return resize(frames, *short_side_size(*frames.shape[1:3], short_side))


def crop(frames: np.ndarray, box: Box) -> np.ndarray:
    return frames[:, box.top : box.top + box.height, box.left : box.left + box.width]


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
    return Box((width - crop_size) // 2, (height - crop_size) // 2, crop_size, crop_size)


def three_boxes(height: int, width: int, crop_size: int) -> list[Box]:
    """Left, right, centre of a landscape frame; top, bottom, centre of a portrait one.

    The far box starts at twice the rounded-down middle, so an odd size leaves its last column or row out.
    """
    step_x, step_y = (width - crop_size) // 2, (height - crop_size) // 2
    return [Box(step_x * n, step_y * n, crop_size, crop_size) for n in (0, 2, 1)]


def view_boxes(height: int, width: int, *, crop_size: int, num_crops: int) -> list[Box]:
    """num_crops is 1, the centre, or 3."""
    return three_boxes(height, width, crop_size) if num_crops == 3 else [center_box(height, width, crop_size)]
