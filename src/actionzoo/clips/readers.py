"""Frames of one clip by number. The only module that imports decord and the JPEG decoder."""

import contextlib
import functools
import hashlib
import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..errors import MachineFault, UserError, machine_fault
from ..kinetics.ffmpeg_process import BadVideo
from ..kinetics.frames import frame_spans
from ..kinetics.manifest import StoredClip
from ..kinetics.shards import pread, read_index, read_member
from ..kinetics.transcode import measure
from .containers import CONTAINERS, begins_like_video, codec_of, mentions_playlist
from .excerpt import excerpt

Size = tuple[int, int]
"""(height, width) in pixels."""


MAX_JPEG_BYTES = 64 * 2**20
MAX_JPEG_PIXELS = 2**26
"""8192 x 8192."""


class Undecodable(Exception):
    """A clip whose frames cannot be read. The message, which depends on the bytes alone, says why and what to do."""


class FrameReader(Protocol):
    """Reads one clip."""

    num_frames: int

    def each(self, frames: np.ndarray) -> Iterator[np.ndarray]:
        """For 0-based frame numbers, ascending and distinct: each frame, (H, W, 3) uint8 RGB, valid until the next one.

        All have one size. Raises IndexError for a number that the clip does not have, Undecodable, and MachineFault.
        """


def read(reader: FrameReader, frames: np.ndarray) -> np.ndarray:
    """(n,) frame numbers, any order, repeats allowed -> (n, H, W, 3) uint8 RGB."""
    wanted, indices = np.unique(frames, return_inverse=True)
    return np.stack([frame.copy() for frame in reader.each(wanted)])[indices]


def open_clip(folder: Path, clip: StoredClip) -> FrameReader:
    """A reader of the clip's frames. `folder` holds the shards, videos or frames by its name.

    A clip lies in a shard, or loose: then `clip.shard` is the path of a video or of a folder of frames. A loose video
    must have the bytes that it had when it was imported. Raises Undecodable and MachineFault, as the reader does; both
    messages begin with the clip's id.
    """
    size = (clip.height, clip.width)
    with _faults_told_apart(f"{clip.video_id}: "):
        return _NamedReader(clip.video_id, _open(folder, clip, size))


def _open(folder: Path, clip: StoredClip, size: Size) -> FrameReader:
    if not folder.name.startswith("frames"):
        path = folder / clip.shard
        data = read_member(path, clip.offset, clip.size) if path.suffix == ".tar" else _unchanged(path, clip)
        return VideoReader(data, clip.num_frames, size)
    if clip.shard.endswith(".tar"):
        return JpegReader(folder / clip.shard, clip)
    return LooseJpegReader(folder / clip.shard, clip.num_frames, size)


class _NamedReader:
    """A reader whose Undecodable and MachineFault begin with the clip's id."""

    def __init__(self, video_id: str, reader: FrameReader):
        self._video_id, self._reader, self.num_frames = video_id, reader, reader.num_frames

    def each(self, frames: np.ndarray) -> Iterator[np.ndarray]:
        try:
            yield from self._reader.each(frames)
        except (Undecodable, MachineFault) as error:
            raise type(error)(f"{self._video_id}: {error}") from error


@dataclass(frozen=True)
class VideoInfo:
    """The content of a video or of a folder of frames."""

    num_frames: int
    """Decoded and counted; loose frames are found, not decoded."""
    width: int
    height: int
    fps: float | None = None
    """Frames per second, on average; None for a folder of frames."""


class VideoReader:
    """Reads an encoded video in memory, with one thread: loaders have many processes.

    `num_frames` is the number of frames that were decoded before; containers claim too many. Rotation metadata, as
    phones write them, are applied.
    """

    def __init__(self, data: bytes, num_frames: int, size: Size | None = None):
        """`size` is the size that all frames must have; None: that of the first one."""
        self._data, self.num_frames, self._size = data, num_frames, size

    def each(self, frames: np.ndarray) -> Iterator[np.ndarray]:
        _check(frames, self.num_frames)
        if not len(frames):
            return
        if not begins_like_video(self._data):
            raise Undecodable(_NO_VIDEO)
        data, start = self._data, 0
        if frames[-1] - frames[0] < self.num_frames * 3 / 4:
            data, start = excerpt(data, int(frames[0]), int(frames[-1])) or (data, 0)
        from torch.utils import dlpack

        check = _SizeCheck(self._size)
        with _decoder_faults(self._data, "its video"):
            video = _open_video(data)
            num_frames = len(video)
        # decord hangs on frames that do not exist
        _check(frames - start, num_frames)
        # one by one: a frame that is resized at once is still in the cache
        for number in (frames - start).tolist():
            with _decoder_faults(self._data, f"frame {start + number} of {self.num_frames}"):
                frame = _rgb(dlpack.from_dlpack(video[number].to_dlpack()).numpy())  # without a copy
            yield check(frame, start + number)


class JpegReader:
    """Reads a shard that has one JPEG per frame as members."""

    def __init__(self, shard: Path, clip: StoredClip):
        self._shard = shard
        self._spans = frame_spans(_index(shard), clip)
        self.num_frames = len(self._spans)
        self._size = (clip.height, clip.width)

    def each(self, frames: np.ndarray) -> Iterator[np.ndarray]:
        _check(frames, self.num_frames)
        decode, check = _jpeg_decoder(), _SizeCheck(self._size)
        descriptor = os.open(self._shard, os.O_RDONLY)
        try:
            for number, (offset, size) in zip(frames.tolist(), self._spans[frames].tolist(), strict=True):
                data = pread(descriptor, self._shard, offset, size)
                yield check(decode(data, number), number)
        finally:
            os.close(descriptor)


class LooseJpegReader:
    """Reads a clip's folder of one JPEG per frame: img_00001.jpg and so on."""

    def __init__(self, folder: Path, num_frames: int, size: Size | None = None):
        self._folder, self.num_frames, self._size = folder, num_frames, size

    def each(self, frames: np.ndarray) -> Iterator[np.ndarray]:
        _check(frames, self.num_frames)
        decode, check = _jpeg_decoder(), _SizeCheck(self._size)
        for number in frames.tolist():
            with _faults_told_apart():
                path = self._folder / f"img_{number + 1:05d}.jpg"
                with path.open("rb") as file:
                    data = file.read(MAX_JPEG_BYTES + 1)
                if len(data) > MAX_JPEG_BYTES:
                    raise Undecodable(f"{path.name} is larger than {MAX_JPEG_BYTES // 2**20} MiB; make the frames anew")
            yield check(decode(data, number), number)


def inspect_video(data: bytes, timeout_seconds: float = 600) -> VideoInfo:
    """Count the frames of a video by decoding it all.

    Our ffmpeg decodes it before decord opens it, for at most `timeout_seconds`. Raises Undecodable if there are no
    frames, if a part in the middle is lost, and if seeking a frame by its number gives another one than decoding in
    order, as in files without a timestamp per frame. Raises MachineFault.
    """
    if not begins_like_video(data) or mentions_playlist(data):
        raise Undecodable(_NO_VIDEO)
    try:
        codec = measure(data, timeout_seconds=timeout_seconds).video
    except BadVideo as error:
        raise Undecodable(f"ffmpeg cannot read it ({error}); {_ANEW}") from None
    with _decoder_faults(data, "its video", codec):
        height, width, _ = _rgb(_open_video(data)[0].asnumpy()).shape
        small = {"width": min(width, 32), "height": min(height, 32)}
        through = _open_video(data, **small)
        frames: list[bytes] = []
        for number in range(len(through)):
            try:
                frames.append(_rgb(through[number].asnumpy()).tobytes())
            except Exception as error:
                if not frames or machine_fault(error):
                    raise
                break
        jumping = _open_video(data, **small)
        keys = [key for key in jumping.get_key_indices() if key < len(frames)]
        # backwards, so that each needs a seek; the first frames after one are those that go wrong
        for key in keys[:: -max(1, len(keys) // 10)]:
            for number in range(min(key + 2, len(frames) - 1), key - 1, -1):
                if _rgb(jumping[number].asnumpy()).tobytes() != frames[number]:
                    raise Undecodable(f"frame {number} cannot be found by its number; {_ENCODE} ({codec})")
        return VideoInfo(len(frames), width, height, round(float(through.get_avg_fps()), 3))


def inspect_frames(folder: Path, num_frames: int) -> VideoInfo:
    """Check that the folder has img_00001.jpg to the last of `num_frames`, and decode the first. Raises Undecodable."""
    with _faults_told_apart():
        there = {entry.name for entry in os.scandir(folder)}
        num_missing, first_missing = 0, 0
        for number in range(num_frames, 0, -1):
            if f"img_{number:05d}.jpg" not in there:
                num_missing, first_missing = num_missing + 1, number
                if num_frames - number > len(there) + _MANY:
                    break
        if num_missing:
            more = f" and {num_missing - 1} more" if num_missing > 1 else ""
            raise Undecodable(f"img_{first_missing:05d}.jpg{more} of {num_frames} frames are not there")
        (first,) = LooseJpegReader(folder, num_frames).each(np.array([0]))
    return VideoInfo(num_frames, width=first.shape[1], height=first.shape[0])


_ANEW = "download it again, or encode it anew"
_ENCODE = "encode the video anew as H.264, or name its folder as `source: folder:`, which does that"
_NO_VIDEO = f"it is not a video file: none of {CONTAINERS}, or one with a playlist in it; {_ANEW}"
_MANY = 1000


@functools.cache
def _decord() -> Any:
    # torch first, then decord, and only where frames are decoded: the other order crashes next to CUDA
    import torch  # noqa: F401, I001
    import decord

    decord.logging.set_level(decord.logging.QUIET)  # what is wrong with a video is in our exceptions
    return decord


def _open_video(data: bytes, **size: int) -> Any:
    """A decord VideoReader. Any frame that it would replace by its neighbour is an error (fault_tol)."""
    return _decord().VideoReader(io.BytesIO(data), num_threads=1, fault_tol=1e-9, **size)


def _rgb(frame: np.ndarray) -> np.ndarray:
    """decord's frame as (H, W, 3) uint8. Raises Undecodable for anything else.

    FFmpeg pads rows of 3 W bytes to a round number. Where that is a multiple of the width (192 bytes at 48 pixels),
    decord returns (H, W, 4), whose rows begin with the 3 W bytes of pixels all the same.
    """
    if frame.dtype != np.dtype(np.uint8) or frame.ndim != 3 or frame.shape[2] < 3 or not frame.size:
        raise Undecodable(f"decord gives frames of {frame.shape} {frame.dtype}, not (height, width, 3); {_ENCODE}")
    height, width, channels = frame.shape
    if channels == 3:
        return frame
    rows = frame.reshape(height, width * channels)[:, : 3 * width]
    return np.ascontiguousarray(rows).reshape(height, width, 3)


class _SizeCheck:
    """Checks that every frame has the expected size, by default that of the first one. Raises Undecodable."""

    def __init__(self, size: Size | None):
        self._size, self._whose = size, "the manifest has"
        self._is_first = True

    def __call__(self, frame: np.ndarray, number: int) -> np.ndarray:
        size = (frame.shape[0], frame.shape[1])
        if self._size is None:
            self._size, self._whose = size, "the one before"
        if size != self._size:
            which = "its frames are" if self._is_first else f"frame {number} is"
            shape = f"{which} {size[1]} x {size[0]}"
            raise Undecodable(f"{shape}, {self._whose} {self._size[1]} x {self._size[0]}")
        self._is_first = False
        return frame


def _jpeg_decoder() -> Callable[[bytes, int], np.ndarray]:
    """A function (bytes, frame number) -> (H, W, 3) uint8 RGB, which reuses one buffer while the size stays the same.

    Grey becomes RGB. The function raises Undecodable, also for CMYK, whose colours differ from decoder to decoder.
    """
    import simplejpeg

    buffer: np.ndarray | None = None

    def decode(data: bytes, number: int) -> np.ndarray:
        nonlocal buffer
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
            if colours in ("CMYK", "YCCK"):
                raise Undecodable(f"frame {number} is a JPEG in {colours}; make it RGB")
            if height * width > MAX_JPEG_PIXELS:  # before memory is allocated
                raise Undecodable(
                    f"frame {number} is {width} x {height}, more than {MAX_JPEG_PIXELS} pixels; make it small"
                )
            if buffer is None or buffer.shape[:2] != (height, width):
                buffer = np.empty((height, width, 3), np.uint8)
            frame: np.ndarray = simplejpeg.decode_jpeg(data, colorspace="RGB", buffer=buffer)
            return frame
        except ValueError:
            raise Undecodable(f"frame {number} is a damaged JPEG, or none; make the frames anew") from None

    return decode


@contextlib.contextmanager
def _decoder_faults(data: bytes, what: str, codec: str | None = None) -> Iterator[None]:
    """Turns decord's exceptions into Undecodable, whose message names `what` and the codec, or into MachineFault."""
    try:
        yield
    except (UserError, Undecodable):
        raise
    except Exception as error:  # decord raises many types
        if fault := machine_fault(error):
            raise fault from error
        why = "would be a duplicate of another" if "duplicate" in str(error) else "cannot be decoded by decord"
        raise Undecodable(f"{what} ({codec or codec_of(data)}) {why}; {_ENCODE}") from error


@contextlib.contextmanager
def _faults_told_apart(prefix: str = "") -> Iterator[None]:
    """Turns errors of the machine into MachineFault, all others into Undecodable; both messages begin with `prefix`."""
    try:
        yield
    except Undecodable as error:
        raise Undecodable(f"{prefix}{error}") from error
    except Exception as error:
        if fault := machine_fault(error):
            raise MachineFault(f"{prefix}{fault}") from error
        raise Undecodable(f"{prefix}{_reason(error)}") from error


def _unchanged(path: Path, clip: StoredClip) -> bytes:
    """A loose video's bytes. Raises Undecodable if they are not those that were imported; OSError."""
    try:
        with path.open("rb") as file:
            data = file.read(clip.size + 1)
    except FileNotFoundError:
        raise Undecodable(f"{path} is not there; put it back, or import the list again") from None
    if len(data) != clip.size or (clip.sha256 and hashlib.sha256(data).hexdigest() != clip.sha256):
        raise Undecodable(f"{path} is not the file that was imported; import it again")
    return data


def _check(frames: np.ndarray, num_frames: int) -> None:
    if len(frames) and not 0 <= frames.min() <= frames.max() < num_frames:
        raise IndexError(f"frames {frames.min()} to {frames.max()} are asked for, it has {num_frames}")


@functools.lru_cache(maxsize=64)
def _index(shard: Path) -> np.ndarray:
    return read_index(shard)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
