"""Inspects many loose videos or folders of frames, in processes that may hang or die over one of them."""

import contextlib
import functools
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..errors import machine_fault
from .readers import Undecodable, VideoInfo, inspect_frames, inspect_video
from .workers import Lost, Pool

MAX_VIDEO_BYTES = 4 * 2**30
"""A clip of ten seconds has some MB. A video is held in memory as a whole."""


def inspect_clips(
    paths: list[tuple[Path, int | None]], *, workers: int, timeout_seconds: float
) -> Iterator[VideoInfo | str]:
    """For each path, a video or a folder of frames with their number: its content, or a sentence why it is unusable.

    In the order of the paths. Raises MachineFault.
    """
    # with workers the pool enforces the time limit, and retries a clip once
    inspect = functools.partial(_inspect, timeout_seconds=timeout_seconds * (2 if workers else 1))
    pool = Pool(inspect, workers=workers, slots=4 * max(1, workers), slot_bytes=0, timeout_seconds=timeout_seconds)
    try:
        for _, found, _ in pool.run(paths):
            yield f"{found.reason}; {_REMEDY}" if isinstance(found, Lost) else found
    finally:
        pool.close()


_REMEDY = "raise runtime.clip_timeout_seconds, lower runtime.workers, or encode it anew"


def _inspect(task: tuple[Path, int | None], _: np.ndarray, timeout_seconds: float) -> VideoInfo | str:
    path, num_frames = task
    try:
        with _silence():
            if num_frames is not None:
                return inspect_frames(path, num_frames)
            if not path.is_file() and path.exists():
                return "it is no file that can be read to its end; name a video"
            if path.stat().st_size > MAX_VIDEO_BYTES:
                return f"it is larger than {MAX_VIDEO_BYTES // 2**30} GiB; cut it into clips"
            return inspect_video(path.read_bytes(), timeout_seconds)
    except Undecodable as error:
        return str(error)
    except OSError as error:
        if fault := machine_fault(error):
            raise fault from error
        return error.strerror or type(error).__name__


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Discards stderr: decord writes to it about every file that is not a video, and the answer says the same."""
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)
