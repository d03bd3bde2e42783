"""What a worker does with a clip: uint8 frames into a slot of shared memory, and a few words on how to cut them.

What is random depends on (seed, epoch, clip) alone, whoever does the work and in whatever order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import MachineFault, machine_fault
from ..kinetics.manifest import Clip
from . import sampling, transforms
from .readers import FrameReader, Undecodable, open_clip
from .transforms import Box, Cut

Key = tuple[int, int]
"""Epoch, and the clip's number."""


@dataclass(frozen=True)
class Sample:
    """Views of a clip, as the frames in a slot and where to cut them. View number = box * num_clips + clip."""

    shape: tuple[int, ...] = (0, 3, 0, 0)
    """Of the frames, (F, 3, H, W): each distinct frame once."""
    places: np.ndarray | None = None
    """int64 (num_clips, clip_len): which of the frames a view takes."""
    boxes: Sequence[Box] = ()
    """Where in the frames; to be resized to the size of the crop if it is another."""
    flip: bool = False
    """Left and right change sides, after all else."""
    reason: str = ""
    """Why there is nothing: the clip did not decode."""


class TrainClips:
    """One random clip of each video, one random box, flipped or not."""

    def __init__(
        self,
        folder: Path,
        clips: Sequence[Clip],
        *,
        seed: int,
        clip_len: int,
        frame_interval: int,
        resize: int,
        crop_size: int,
        area: tuple[float, float],
        aspect_ratio: tuple[float, float],
        flip: float,
        is_resized_later: bool = False,
    ):
        """With is_resized_later a slot gets the box as it is stored, unless that is much more than what it becomes."""
        self.folder, self.clips, self.seed = folder, clips, seed
        self.clip_len, self.frame_interval, self.resize, self.crop_size = clip_len, frame_interval, resize, crop_size
        self.area, self.aspect_ratio, self.flip = area, aspect_ratio, flip
        self.is_resized_later = is_resized_later
        self.max_pixels = crop_size**2 * (2 if is_resized_later else 1)
        self.slot_bytes = clip_len * self.max_pixels * 3

    def __call__(self, key: Key, slot: np.ndarray) -> Sample:
        epoch, number = key
        clip = self.clips[number]
        rng = np.random.default_rng([self.seed, epoch, number])
        try:
            reader = open_clip(self.folder, clip)
            wanted = sampling.train_frames(
                reader.num_frames, clip_len=self.clip_len, frame_interval=self.frame_interval, rng=rng
            )
            wanted, places = np.unique(wanted, return_inverse=True)
            frames = _fill(slot, reader, wanted, clip, lambda height, width: self._cut(height, width, rng))
        except Undecodable as error:
            return Sample(reason=str(error))
        flip = bool(rng.random() < self.flip)
        return Sample(frames.shape, places.reshape(1, -1), [Box(0, 0, frames.shape[3], frames.shape[2])], flip)

    def _cut(self, height: int, width: int, rng: np.random.Generator) -> Cut:
        size = transforms.short_side_size(height, width, self.resize)
        box = transforms.random_resized_box(*size, area=self.area, aspect_ratio=self.aspect_ratio, rng=rng)
        cut = transforms.short_cut((height, width), size, box, (self.crop_size, self.crop_size))
        if self.is_resized_later and cut.first is None and cut.box.height * cut.box.width <= self.max_pixels:
            return cut._replace(last=(cut.box.height, cut.box.width))
        return cut


class ViewClips:
    """All views (clips x crops) of each video, each frame decoded once."""

    def __init__(
        self,
        folder: Path,
        clips: Sequence[Clip],
        *,
        clip_len: int,
        frame_interval: int,
        num_clips: int,
        num_crops: int,
        resize: int,
        crop_size: int,
    ):
        self.folder, self.clips = folder, clips
        self.clip_len, self.frame_interval, self.num_clips = clip_len, frame_interval, num_clips
        self.num_crops, self.resize, self.crop_size = num_crops, resize, crop_size
        self.slot_bytes = max(self._num_bytes(clip) for clip in clips)

    def __call__(self, key: Key, slot: np.ndarray) -> Sample:
        clip = self.clips[key[1]]
        try:
            reader = open_clip(self.folder, clip)
            wanted = sampling.view_frames(
                reader.num_frames, clip_len=self.clip_len, frame_interval=self.frame_interval, num_clips=self.num_clips
            )
            wanted, places = np.unique(wanted, return_inverse=True)
            frames = _fill(slot, reader, wanted, clip, lambda height, width: self._cut(height, width)[0])
        except Undecodable as error:
            return Sample(reason=str(error))
        return Sample(
            frames.shape, places.reshape(self.num_clips, self.clip_len), self._cut(clip.height, clip.width)[1]
        )

    def _cut(self, height: int, width: int) -> tuple[Cut, list[Box]]:
        return transforms.view_cut(
            height, width, resize=self.resize, crop_size=self.crop_size, num_crops=self.num_crops
        )

    def _num_bytes(self, clip: Clip) -> int:
        cut, _ = self._cut(clip.height, clip.width)
        return min(self.num_clips * self.clip_len, clip.num_frames) * cut.last[0] * cut.last[1] * 3


def _fill(slot: np.ndarray, reader: FrameReader, wanted: np.ndarray, clip: Clip, choose_cut) -> np.ndarray:
    """The wanted frames, cut, at the slot's beginning: (n, 3, height, width). Raises Undecodable and MachineFault."""
    cut = frames = None
    try:
        for number, frame in enumerate(reader.each(wanted)):
            if cut is None:
                height, width = frame.shape[:2]
                if (height, width) != (clip.height, clip.width):
                    raise ValueError(
                        f"its frames are {width} x {height}, the manifest has {clip.width} x {clip.height}"
                    )
                cut = choose_cut(height, width)
                shape = (len(wanted), 3, *cut.last)
                frames = slot[: int(np.prod(shape))].reshape(shape)
            transforms.apply(cut, frame, frames[number])
    except (MachineFault, Undecodable):
        raise
    except Exception as error:
        if fault := machine_fault(error):
            raise MachineFault(f"{clip.video_id}: {fault}") from error
        raise Undecodable(f"{clip.video_id}: {' '.join(str(error).split())[:200]}") from error
    return frames
