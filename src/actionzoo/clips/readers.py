"""Frames of one clip by number. The only module that knows decord and the JPEG decoder."""

import functools
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from ..kinetics.frames import frame_spans
from ..kinetics.manifest import Clip
from ..kinetics.shards import pread, read_index, read_member
from .excerpt import excerpt


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


@dataclass(frozen=True)
class Contents:
    """What a video or a folder of frames really holds."""

    num_frames: int
    """Decoded and counted; of loose frames, found."""
    width: int
    height: int
    fps: float | None = None


class VideoReader:
    """An encoded video in memory. One thread: loaders have many processes.

    `num_frames` is how many there are for certain; containers claim too many. A phone's rotation is applied.
    """

    def __init__(self, data: bytes, num_frames: int):
        self._data, self.num_frames = data, num_frames

    def each(self, frames: np.ndarray) -> Iterator[np.ndarray]:
        _check(frames, self.num_frames)
        data, start = self._data, 0
        if frames[-1] - frames[0] < self.num_frames * 3 / 4:
            data, start = excerpt(data, int(frames[0]), int(frames[-1])) or (data, 0)
        from torch.utils import dlpack

        video = _open_video(data)
        # decord hangs on frames that are not there
        _check(frames - start, len(video))
        # one by one: what is resized right away has not left the cache
        for number in (frames - start).tolist():
            yield dlpack.from_dlpack(video[number].to_dlpack()).numpy()  # without a copy


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


def video_contents(data: bytes) -> Contents:
    """Decode a video once through, for its frames to be counted. Takes as long as that.

    Raises Undecodable where there are none; where a part in the middle is lost; and where frames that are asked for by
    number are not those that come one after another, as in files that mark no time on each frame.
    """
    try:
        height, width, _ = _open_video(data)[0].shape
        small = {"width": min(width, 32), "height": min(height, 32)}
        through = _open_video(data, **small)
        frames: list[bytes] = []
        for number in range(len(through)):
            try:
                frames.append(through[number].asnumpy().tobytes())
            except Exception:
                if not frames:
                    raise
                break
        jumping = _open_video(data, **small)
        keys = [key for key in jumping.get_key_indices() if key < len(frames)]
        # backwards, so that each is sought anew; the first frames after a seek are those that go wrong
        for key in keys[:: -max(1, len(keys) // 10)]:
            for number in range(min(key + 2, len(frames) - 1), key - 1, -1):
                if jumping[number].asnumpy().tobytes() != frames[number]:
                    raise Undecodable(f"frame {number} cannot be found by its number; encode the video anew")
    except Undecodable:
        raise
    except Exception as error:  # decoders raise what they like
        raise Undecodable(_reason(error)) from error
    return Contents(len(frames), width, height, round(float(through.get_avg_fps()), 3))


def frames_contents(folder: Path, num_frames: int) -> Contents:
    """Look whether there are img_00001.jpg to the last of `num_frames`, and at the first one. Raises Undecodable."""
    try:
        there = {entry.name for entry in os.scandir(folder)}
        missing = [number for number in range(1, num_frames + 1) if f"img_{number:05d}.jpg" not in there]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise Undecodable(f"img_{missing[0]:05d}.jpg{more} of {num_frames} frames are not there")
        (first,) = LooseJpegReader(folder, num_frames).each(np.array([0]))
    except Undecodable:
        raise
    except Exception as error:
        raise Undecodable(_reason(error)) from error
    return Contents(num_frames, width=first.shape[1], height=first.shape[0])


@functools.cache
def _decord():
    # torch first, then decord, and only where frames are decoded: the other order crashes next to CUDA
    import torch  # noqa: F401, I001
    import decord

    decord.logging.set_level(decord.logging.QUIET)  # what is wrong with a video is in our exceptions
    return decord


def _open_video(data: bytes, **size: int):
    # a frame that decord would put in its neighbour's place is an error, from the first one on
    return _decord().VideoReader(io.BytesIO(data), num_threads=1, fault_tol=1e-9, **size)


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
