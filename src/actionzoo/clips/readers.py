"""Frames of one clip by number, from memory. The only module that knows decord and the JPEG decoder."""

import functools
import io
from pathlib import Path
from typing import Protocol

import numpy as np

from ..kinetics.frames import frame_spans
from ..kinetics.manifest import Clip
from ..kinetics.shards import read_index, read_member


class Undecodable(Exception):
    """A clip whose frames cannot be had; the message says which clip and why."""


class FrameReader(Protocol):
    num_frames: int

    def read(self, frames: np.ndarray) -> np.ndarray:
        """(n,) frame numbers, 0-based, any order, repeats allowed -> (n, H, W, 3) uint8 RGB."""


def open_clip(folder: Path, clip: Clip) -> FrameReader:
    """A reader of the clip's frames from the prepared form in `folder`, whichever it is.

    Raises Undecodable.
    """
    try:
        if folder.name.startswith("frames"):
            return JpegReader(folder / clip.shard, clip)
        return VideoReader(read_member(folder / clip.shard, clip.offset, clip.size), clip.num_frames)
    except Exception as error:  # decoders raise what they like
        raise Undecodable(f"{clip.video_id}: {_reason(error)}") from error


class VideoReader:
    """An encoded video in memory. One thread: loaders have many processes."""

    def __init__(self, data: bytes, num_frames: int):
        # torch first, then decord, and only where frames are decoded: the other order crashes next to CUDA
        import torch  # noqa: F401
        from decord import VideoReader as Decord

        self._video = Decord(io.BytesIO(data), num_threads=1)
        self.num_frames = min(num_frames, len(self._video))  # decord hangs on frames that are not there

    def read(self, frames: np.ndarray) -> np.ndarray:
        wanted, place = np.unique(frames, return_inverse=True)
        return self._video.get_batch(wanted).asnumpy()[place]


class JpegReader:
    """One JPEG per frame, each a member of the shard."""

    def __init__(self, shard: Path, clip: Clip):
        self._shard = shard
        self._spans = frame_spans(_index(shard), clip)
        self.num_frames = len(self._spans)

    def read(self, frames: np.ndarray) -> np.ndarray:
        import simplejpeg

        wanted, place = np.unique(frames, return_inverse=True)
        images = [
            simplejpeg.decode_jpeg(read_member(self._shard, int(offset), int(size)), colorspace="RGB")
            for offset, size in self._spans[wanted]
        ]
        return np.stack(images)[place]


@functools.lru_cache(maxsize=64)
def _index(shard: Path) -> np.ndarray:
    return read_index(shard)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
