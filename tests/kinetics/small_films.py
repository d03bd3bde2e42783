"""Small real videos, made by ffmpeg on the spot."""

import numpy as np

from actionzoo.kinetics.transcode import Encode, from_frames

QUICK = Encode(preset="ultrafast", crf=28, gop=16, tune="none")


def picture(height: int, width: int) -> np.ndarray:
    """Red above, blue below; green to the left of it: uint8 RGB (height, width, 3). Any turn shows."""
    image = np.zeros((height, width, 3), np.uint8)
    image[: height // 2, :, 0], image[height // 2 :, :, 2] = 220, 220
    image[:, : width // 2, 1] = 180
    return image


def film(num_frames: int = 30, height: int = 90, width: int = 120, fps: float = 25, **options) -> bytes:
    """`picture` with a grey level that rises from frame to frame, as an mp4 file."""
    level = np.arange(num_frames, dtype=np.uint8)[:, None, None, None]
    return from_frames(picture(height, width)[None] // 2 + level, fps=fps, encode=QUICK, **options)
