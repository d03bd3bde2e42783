"""Clips as samples: uint8 frames, label, name. What is random depends on (seed, epoch, clip) alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from ..kinetics.manifest import Clip
from . import sampling, transforms
from .readers import Undecodable, open_clip


@dataclass(frozen=True)
class Sample:
    video_id: str
    label: int
    views: np.ndarray | None
    """(V, T, H, W, 3) uint8 RGB; None if the clip did not decode."""
    reason: str = ""
    """Why there are no views."""


class TrainClips(Dataset):
    """One random clip of each video. Indexed by (epoch, number of the clip)."""

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
    ):
        self.folder, self.clips, self.seed = folder, clips, seed
        self.clip_len, self.frame_interval = clip_len, frame_interval
        self.resize, self.crop_size, self.area, self.aspect_ratio, self.flip = (
            resize,
            crop_size,
            area,
            aspect_ratio,
            flip,
        )

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, number = key
        clip = self.clips[number]
        rng = np.random.default_rng([self.seed, epoch, number])
        try:
            reader = open_clip(self.folder, clip)
            wanted = sampling.train_frames(
                reader.num_frames, clip_len=self.clip_len, frame_interval=self.frame_interval, rng=rng
            )
            frames = _read(reader, wanted, clip)
        except Undecodable as error:
            return Sample(clip.video_id, clip.label, None, str(error))
        frames = transforms.resize_short_side(frames, self.resize)
        box = transforms.random_resized_box(*frames.shape[1:3], area=self.area, aspect_ratio=self.aspect_ratio, rng=rng)
        frames = transforms.resize(transforms.crop(frames, box), self.crop_size, self.crop_size)
        if rng.random() < self.flip:
            frames = frames[:, :, ::-1]
        return Sample(clip.video_id, clip.label, np.ascontiguousarray(frames)[None])


class ViewClips(Dataset):
    """All views (clips x crops) of each video, decoded once. View number = crop * num_clips + clip."""

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

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, number: int) -> Sample:
        clip = self.clips[number]
        try:
            reader = open_clip(self.folder, clip)
            wanted = sampling.view_frames(
                reader.num_frames, clip_len=self.clip_len, frame_interval=self.frame_interval, num_clips=self.num_clips
            )
            distinct, place = np.unique(wanted, return_inverse=True)
            frames = _read(reader, distinct, clip)
        except Undecodable as error:
            return Sample(clip.video_id, clip.label, None, str(error))
        frames = transforms.resize_short_side(frames, self.resize)
        boxes = transforms.view_boxes(*frames.shape[1:3], crop_size=self.crop_size, num_crops=self.num_crops)
        place = place.reshape(self.num_clips, self.clip_len)
        views = [transforms.crop(frames, box)[clip_frames] for box in boxes for clip_frames in place]
        return Sample(clip.video_id, clip.label, np.stack(views))


def _read(reader, wanted: np.ndarray, clip: Clip) -> np.ndarray:
    try:
        return reader.read(wanted)
    except Exception as error:  # decoders raise what they like
        raise Undecodable(f"{clip.video_id}: {' '.join(str(error).split())[:200]}") from error
