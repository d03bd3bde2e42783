"""Which frames of a video a clip takes: by frame number alone, whatever the frame rate, as in the published zoo.

A clip of clip_len frames, one every frame_interval video frames, counts as clip_len x frame_interval frames long. With
clip_len=4 and frame_interval=2 that is 8 frames, the last of them never used:

    a video of 20 frames        ....................

    training: any start         f.f.f.f.
    from the first, 0,           f.f.f.f.
    to the last, 12                         f.f.f.f.

    one view: start 6 of 0 to 12      f.f.f.f.

    three views: each start in    f.f.f.f.
    the middle of its third           f.f.f.f.
    of 0 to 12: 2, 6 and 10               f.f.f.f.

Videos shorter than a clip start at frame 0 and wrap around, and all their views are one:

    clip_len=4, frame_interval=2, 5 frames  ->  0 2 4 1
"""

import numpy as np


def train_frames(num_frames: int, *, clip_len: int, frame_interval: int, rng: np.random.Generator) -> np.ndarray:
    """One clip with a random start. Returns (clip_len,) int64 frame numbers, 0-based.

    All starts from 0 to num_frames - clip_len * frame_interval are equally likely.
    """
    span = clip_len * frame_interval
    start = int(rng.integers(num_frames - span + 1)) if num_frames >= span else 0
    return _clip(start, num_frames, clip_len, frame_interval)


def view_frames(num_frames: int, *, clip_len: int, frame_interval: int, num_clips: int) -> np.ndarray:
    """num_clips clips spread evenly, each in the middle of its share of the video; a single clip is centred.

    Returns (num_clips, clip_len) int64 frame numbers, 0-based. Nothing is random.
    """
    span = clip_len * frame_interval
    starts = np.zeros(num_clips, np.int64)
    if num_frames >= span:
        share = (num_frames - span + 1) / num_clips
        starts = (np.arange(num_clips) * share + share / 2).astype(np.int64)
    return np.stack([_clip(start, num_frames, clip_len, frame_interval) for start in starts.tolist()])


def _clip(start: int, num_frames: int, clip_len: int, frame_interval: int) -> np.ndarray:
    return (start + np.arange(clip_len, dtype=np.int64) * frame_interval) % num_frames
