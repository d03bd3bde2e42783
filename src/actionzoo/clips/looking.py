"""Many loose videos or folders of frames, looked at by processes that may hang or die over one of them."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .readers import Contents, Undecodable, frames_contents, video_contents
from .workers import Lost, Pool


def contents_of(
    paths: list[tuple[Path, int | None]], *, workers: int, timeout_seconds: float
) -> Iterator[Contents | str]:
    """For each path, a video or, with their number, a folder of frames: what is in it, or why it cannot be used."""
    pool = Pool(_look, workers=workers, slots=4 * max(1, workers), slot_bytes=0, timeout_seconds=timeout_seconds)
    try:
        for _, contents, _ in pool.run(paths):
            yield contents.reason if isinstance(contents, Lost) else contents
    finally:
        pool.close()


def _look(task: tuple[Path, int | None], _: np.ndarray) -> Contents | str:
    path, num_frames = task
    try:
        with _silence():
            return video_contents(path.read_bytes()) if num_frames is None else frames_contents(path, num_frames)
    except (Undecodable, OSError) as error:
        return " ".join(str(error).split())[:200] or type(error).__name__


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
