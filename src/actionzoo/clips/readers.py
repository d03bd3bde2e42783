"""Frames of one clip by number. The only module that knows decord and the JPEG decoder."""

import functools
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

from ..kinetics.frames import frame_spans
from ..kinetics.manifest import Clip
from ..kinetics.shards import pread, read_index, read_member


class Undecodable(Exception):
    """A clip whose frames cannot be had; the message says which clip and why."""


class FrameReader(Protocol):
    num_frames: int

    def each(self, frames: np.ndarray) -> Iterator[np.ndarray]:
        """Frame numbers, 0-based, ascending, each once -> (H, W, 3) uint8 RGB of each, valid until the next one.

        Raises IndexError for a frame that is not there; anything where the decoder fails.
        """


def read(reader: FrameReader, frames: np.ndarray) -> np.ndarray:
    """(n,) frame numbers, any order, repeats allowed -> (n, H, W, 3) uint8 RGB."""
    wanted, places = np.unique(frames, return_inverse=True)
    return np.stack([frame.copy() for frame in reader.each(wanted)])[places]


def open_clip(folder: Path, clip: Clip) -> FrameReader:
    """A reader of the clip's frames from the form in `folder`, whichever it is.

    Videos and frames lie in shards; or loose, where the manifest names a file or a folder instead of a shard. Raises
    Undecodable.
    """
    try:
        if not folder.name.startswith("frames"):
            return VideoReader(read_member(folder / clip.shard, clip.offset, clip.size), clip.num_frames)
        if clip.shard.endswith(".tar"):
            return JpegReader(folder / clip.shard, clip)
        return LooseJpegReader(folder / clip.shard, clip.num_frames)
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

    def each(self, frames: np.ndarray) -> Iterator[np.ndarray]:
        _check(frames, self.num_frames)
        # one by one: what is resized right away has not left the cache
        for number in frames.tolist():
            yield self._video[number].asnumpy()


class JpegReader:
    """One JPEG per frame, each a member of the shard."""

    def __init__(self, shard: Path, clip: Clip):
        self._shard = shard
        self._spans = frame_spans(_index(shard), clip)
        self.num_frames = len(self._spans)

    def each(self, frames: np.ndarray) -> Iterator[np.ndarray]:
        _check(frames, self.num_frames)
        decode = _jpeg_decoder()
        descriptor = os.open(self._shard, os.O_RDONLY)
        try:
            for offset, size in self._spans[frames].tolist():
                yield decode(pread(descriptor, self._shard, offset, size))
        finally:
            os.close(descriptor)


class LooseJpegReader:
    """One JPEG per frame, img_00001.jpg and so on, in a folder of the clip's own."""

    def __init__(self, folder: Path, num_frames: int):
        self._folder, self.num_frames = folder, num_frames

    def each(self, frames: np.ndarray) -> Iterator[np.ndarray]:
        _check(frames, self.num_frames)
        decode = _jpeg_decoder()
        for number in frames.tolist():
            yield decode((self._folder / f"img_{number + 1:05d}.jpg").read_bytes())


def _jpeg_decoder():
    """bytes -> (H, W, 3) uint8 RGB, in one and the same buffer as long as the size stays."""
    import simplejpeg

    buffer = None

    def decode(data: bytes) -> np.ndarray:
        nonlocal buffer
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        if buffer is None or buffer.shape[:2] != (height, width):
            buffer = np.empty((height, width, 3), np.uint8)
        return simplejpeg.decode_jpeg(data, colorspace="RGB", buffer=buffer)

    return decode


def _check(frames: np.ndarray, num_frames: int) -> None:
    if len(frames) and not 0 <= frames.min() <= frames.max() < num_frames:
        raise IndexError(f"frames {frames.min()} to {frames.max()} are asked for, it has {num_frames}")


@functools.lru_cache(maxsize=64)
def _index(shard: Path) -> np.ndarray:
    return read_index(shard)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
