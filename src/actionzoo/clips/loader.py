"""Batches of clips in a fixed order, decoded by worker processes; and the last step to the network's input."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ..errors import UserError
from ..kinetics.manifest import Clip, read_manifest
from ..params import Augment, Clips
from .dataset import Sample, TrainClips, ViewClips


@dataclass
class Batch:
    views: Tensor
    """(N, V, T, H, W, 3) uint8 RGB."""
    labels: Tensor
    """(N,) int64."""
    video_ids: list[str]
    undecodable: list[str] = field(default_factory=list)
    """One sentence for each clip that should be here and did not decode."""

    def pin_memory(self) -> "Batch":
        self.views, self.labels = self.views.pin_memory(), self.labels.pin_memory()
        return self


class EpochBatches:
    """Batch sampler: every clip once an epoch, in an order that (seed, epoch) fixes whatever the worker count.

    A last batch of a single clip joins the one before it: batch norm cannot train on one value per channel.
    """

    def __init__(self, num_clips: int, *, batch_size: int, seed: int):
        self.num_clips, self.batch_size, self.seed, self.epoch = num_clips, batch_size, seed, 0

    def __len__(self) -> int:
        full, rest = divmod(self.num_clips, self.batch_size)
        return max(1, full + (rest > 1))

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.num_clips).tolist()
        batches = [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]
        if len(batches) > 1 and len(batches[-1]) == 1:
            batches[-2:] = [batches[-2] + batches[-1]]
        yield from ([(self.epoch, number) for number in batch] for batch in batches)


class Loader:
    """Batches of one epoch after another; `set_epoch` before each pass of a training loader."""

    def __init__(self, dataset, *, workers: int, timeout_seconds: float, batch_sampler=None, batch_size: int = 1):
        self.clips = dataset.clips
        self._sampler = batch_sampler
        order = {"batch_sampler": batch_sampler} if batch_sampler is not None else {"batch_size": batch_size}
        # forked workers share the clip list; decord is opened inside them, after torch
        self._loader = DataLoader(
            dataset,
            **order,
            num_workers=workers,
            collate_fn=_collate,
            persistent_workers=workers > 0,
            timeout=timeout_seconds if workers else 0,
            pin_memory=torch.cuda.is_available(),
            multiprocessing_context="fork" if workers else None,
        )

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        """Raises UserError when no batch comes within the time limit: some decoder hangs."""
        try:
            yield from self._loader
        except RuntimeError as error:
            if "timed out" not in str(error):
                raise
            raise UserError(
                f"no batch of {self.clips[0].split} clips came within {self._loader.timeout:g} s: a decoder hangs, or "
                "the disk is slow. What is finished is kept; raise runtime.clip_timeout_seconds in params.yaml, or "
                "find the clip with runtime.workers: 0"
            ) from None

    def set_epoch(self, epoch: int) -> None:
        self._sampler.epoch = epoch


def usable_clips(folder: Path, split: str) -> list[Clip]:
    """The split's clips that can be decoded, in the manifest's order.

    Raises UserError if there are none."""
    clips = [clip for clip in read_manifest(folder / "manifest.csv") if clip.split == split and clip.is_usable]
    if not clips:
        raise UserError(
            f"{folder / 'manifest.csv'} has no usable clip in {split}; "
            "look at its reasons, or check splits and parts of the data set in params.yaml"
        )
    return clips


def train_loader(
    folder: Path, spec: Clips, augment: Augment, *, batch_size: int, seed: int, workers: int, timeout_seconds: float
) -> Loader:
    """One random, augmented clip of each training video, crops of augment.crop_size."""
    clips = usable_clips(folder, "train")
    dataset = TrainClips(
        folder,
        clips,
        seed=seed,
        clip_len=spec.clip_len,
        frame_interval=spec.frame_interval,
        resize=augment.resize,
        crop_size=augment.crop_size,
        area=augment.area,
        aspect_ratio=augment.aspect_ratio,
        flip=augment.flip,
    )
    order = EpochBatches(len(clips), batch_size=batch_size, seed=seed)
    return Loader(dataset, workers=workers, timeout_seconds=timeout_seconds, batch_sampler=order)


def view_loader(
    folder: Path,
    spec: Clips,
    augment: Augment,
    *,
    split: str = "val",
    num_clips: int = 1,
    num_crops: int = 1,
    crop_size: int | None = None,
    batch_size: int,
    workers: int,
    timeout_seconds: float,
) -> Loader:
    """Fixed views of each video; by default the one of a validation: centred clip, centre crop of augment.crop_size."""
    dataset = ViewClips(
        folder,
        usable_clips(folder, split),
        clip_len=spec.clip_len,
        frame_interval=spec.frame_interval,
        num_clips=num_clips,
        num_crops=num_crops,
        resize=augment.resize,
        crop_size=crop_size or augment.crop_size,
    )
    return Loader(dataset, workers=workers, timeout_seconds=timeout_seconds, batch_size=batch_size)


def to_input(views: Tensor, *, mean: Sequence[float], std: Sequence[float], device: torch.device) -> Tensor:
    """(..., T, H, W, 3) uint8 -> (prod(...), 3, T, H, W) float32 on the device: minus mean, times 1 / std."""
    views = views.to(device, non_blocking=True).flatten(0, -5).movedim(-1, 1)
    mean_, std_ = (torch.tensor(values, dtype=torch.float32, device=device).view(3, 1, 1, 1) for values in (mean, std))
    return (views.float() - mean_) * (1 / std_)


def _collate(samples: list[Sample]) -> Batch:
    good = [sample for sample in samples if sample.views is not None]
    views = torch.from_numpy(np.stack([sample.views for sample in good])) if good else torch.empty(0, dtype=torch.uint8)
    return Batch(
        views=views,
        labels=torch.tensor([sample.label for sample in good], dtype=torch.int64),
        video_ids=[sample.video_id for sample in good],
        undecodable=[sample.reason for sample in samples if sample.views is None],
    )
