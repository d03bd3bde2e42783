"""Many loose videos or folders of frames, looked at by processes that may hang or die over one of them."""

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
"""A clip of ten seconds has some MB; it is held in memory as a whole."""


def inspect_clips(
    paths: list[tuple[Path, int | None]], *, workers: int, timeout_seconds: float
) -> Iterator[VideoInfo | str]:
    """For each path, a video or, with their number, a folder of frames: what is in it, or why it cannot be used.

    Raises MachineFault.
    """
    # with workers the pool keeps the time, and tries a clip again before it is given up
    look = functools.partial(_look, timeout_seconds=timeout_seconds * (2 if workers else 1))
    pool = Pool(look, workers=workers, slots=4 * max(1, workers), slot_bytes=0, timeout_seconds=timeout_seconds)
    try:
        for _, contents, _ in pool.run(paths):
            yield f"{contents.reason}; {_REMEDY}" if isinstance(contents, Lost) else contents
    finally:
        pool.close()


_REMEDY = "raise runtime.clip_timeout_seconds, lower runtime.workers, or encode it anew"


def _look(task: tuple[Path, int | None], _: np.ndarray, timeout_seconds: float) -> VideoInfo | str:
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
    """decord tells stderr of each file that is no video, past its own logging; it is in the answer."""
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)
