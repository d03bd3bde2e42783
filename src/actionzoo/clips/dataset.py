"""The work on one clip: uint8 frames into a slot of shared memory, and a description of the views to cut from them.

Random numbers depend on (seed, epoch, clip) alone, not on the process or the order in which clips are loaded.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..errors import MachineFault, machine_fault
from ..kinetics.manifest import StoredClip
from ..recipe import Augment, Clips, TestSpec
from . import sampling, transforms
from .readers import FrameReader, Undecodable, open_clip
from .transforms import Box, Cut

Key = tuple[int, int]
"""(epoch, number of the clip among the data set's), both 0-based."""


@dataclass(frozen=True)
class Sample:
    """All views of a clip: the frames in a slot, and how to cut them. View number = box * num_clips + clip."""

    shape: tuple[int, ...] = (0, 3, 0, 0)
    """Of the frames in the slot, (F, 3, H, W): each distinct frame once."""
    frame_indices: np.ndarray = field(default_factory=lambda: np.empty((0, 0), np.int64))
    """int64 (num_clips, clip_len), into the frames: those of each view, in its order."""
    boxes: Sequence[Box] = ()
    """In the frames; each is resized to crop_size x crop_size if it has another size."""
    flip: bool = False
    """Mirror left and right, after cutting and resizing."""
    reason: str = ""
    """Why there are no frames: a sentence on why the clip did not decode; '' if it did."""


class TrainClips:
    """One random clip of each video, one random box of it, mirrored or not."""

    def __init__(
        self,
        folder: Path,
        clips: Sequence[StoredClip],
        spec: Clips,
        augment: Augment,
        *,
        seed: int,
        is_resized_later: bool = False,
    ):
        """With `is_resized_later` a slot gets the box at its stored size, unless that is more than twice the pixels of
        the crop: a GPU resizes it."""
        self.folder, self.clips, self.seed = folder, clips, seed
        self.crop_size, self.is_resized_later = augment.crop_size, is_resized_later
        self._spec, self._augment = spec, augment
        self._max_pixels = augment.crop_size**2 * (2 if is_resized_later else 1)
        self.slot_bytes = spec.clip_len * self._max_pixels * 3

    def __call__(self, key: Key, slot: np.ndarray) -> Sample:
        epoch, number = key
        clip = self.clips[number]
        rng = np.random.default_rng([self.seed, epoch, number])
        try:
            reader = open_clip(self.folder, clip)
            wanted = sampling.train_frames(
                reader.num_frames, clip_len=self._spec.clip_len, frame_interval=self._spec.frame_interval, rng=rng
            )
            wanted, indices = np.unique(wanted, return_inverse=True)
            frames = _fill(slot, reader, wanted, clip, lambda height, width: self._cut(height, width, rng))
        except Undecodable as error:
            return Sample(reason=str(error))
        flip = bool(rng.random() < self._augment.flip)
        return Sample(frames.shape, indices.reshape(1, -1), [Box(0, 0, frames.shape[3], frames.shape[2])], flip)

    def _cut(self, height: int, width: int, rng: np.random.Generator) -> Cut:
        augment = self._augment
        size = transforms.short_side_size(height, width, augment.resize)
        box = transforms.random_resized_box(*size, area=augment.area, aspect_ratio=augment.aspect_ratio, rng=rng)
        cut = transforms.short_cut((height, width), size, box, (self.crop_size, self.crop_size))
        if self.is_resized_later and cut.first is None and cut.box.height * cut.box.width <= self._max_pixels:
            return cut._replace(last=(cut.box.height, cut.box.width))
        return cut


class ViewClips:
    """All views (clips x crops) of each video, each frame decoded once."""

    def __init__(self, folder: Path, clips: Sequence[StoredClip], spec: TestSpec):
        self.folder, self.clips, self._spec = folder, clips, spec
        self.crop_size = spec.crop_size
        self.slot_bytes = max(self._num_bytes(clip) for clip in clips)

    def __call__(self, key: Key, slot: np.ndarray) -> Sample:
        clip, spec = self.clips[key[1]], self._spec
        try:
            reader = open_clip(self.folder, clip)
            wanted = sampling.view_frames(
                reader.num_frames, clip_len=spec.clip_len, frame_interval=spec.frame_interval, num_clips=spec.num_clips
            )
            wanted, indices = np.unique(wanted, return_inverse=True)
            frames = _fill(slot, reader, wanted, clip, lambda height, width: self._cut(height, width)[0])
        except Undecodable as error:
            return Sample(reason=str(error))
        boxes = self._cut(clip.height, clip.width)[1]
        return Sample(frames.shape, indices.reshape(spec.num_clips, spec.clip_len), boxes)

    def _cut(self, height: int, width: int) -> tuple[Cut, list[Box]]:
        spec = self._spec
        return transforms.view_cut(
            height, width, resize=spec.resize, crop_size=spec.crop_size, num_crops=spec.num_crops
        )

    def _num_bytes(self, clip: StoredClip) -> int:
        cut, _ = self._cut(clip.height, clip.width)
        return min(self._spec.num_clips * self._spec.clip_len, clip.num_frames) * cut.last[0] * cut.last[1] * 3


def _fill(
    slot: np.ndarray, reader: FrameReader, wanted: np.ndarray, clip: StoredClip, choose_cut: Callable[[int, int], Cut]
) -> np.ndarray:
    """The wanted frames, cut, at the start of the slot: (n, 3, height, width) uint8. Raises Undecodable, MachineFault.

    `choose_cut` is called once, with the frames' height and width.
    """
    cut: Cut | None = None
    frames = slot[:0].reshape(0, 3, 0, 0)
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
