"""Batches of clips in a fixed order, decoded by processes that may hang or die without taking the run along."""

import contextlib
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..kinetics.manifest import Clip, read_manifest
from ..recipe import Augment, Clips
from .dataset import Key, Sample, TrainClips, ViewClips
from .inputs import Footage, View
from .quarantine import Quarantine
from .workers import Lost, Pool, keep_memory

CPU = torch.device("cpu")


@dataclass
class Batch:
    views: list[View]
    """All views of all clips, those of a clip side by side."""
    labels: Tensor
    """(N,) int64."""
    video_ids: list[str]
    undecodable: list[str] = field(default_factory=list)
    """One sentence for each clip that should be here and did not decode."""


class EpochBatches:
    """Every clip once an epoch, in an order that (seed, epoch) fixes, whoever loads it.

    A batch is shared among `world_size` processes, of which this is number `rank`: one after another their shares are
    the batch that one process with `world_size` times the `batch_size` has. A last batch that has less than two clips
    for each process joins the one before: batch norm cannot train on one value per channel. Raises UserError where
    there are not even as many clips as processes.
    """

    def __init__(self, num_clips: int, *, batch_size: int, seed: int, rank: int = 0, world_size: int = 1):
        if num_clips < world_size:
            raise UserError(
                f"{num_clips} training clips are too few for {world_size} processes; use fewer GPUs or more clips"
            )
        self.num_clips, self.batch_size, self.seed = num_clips, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.epoch, self.start = 0, 0

    def __len__(self) -> int:
        full, rest = divmod(self.num_clips, self.batch_size * self.world_size)
        return max(1, full + (rest >= 2 * self.world_size))

    def __iter__(self) -> Iterator[list[Key]]:
        """This process's share of each batch, from number `start` on."""
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.num_clips)
        size, last = self.batch_size * self.world_size, len(self) - 1
        for number in range(self.start, len(self)):
            batch = order[number * size : (number + 1) * size if number < last else None]
            yield [(self.epoch, int(clip)) for clip in np.array_split(batch, self.world_size)[self.rank]]


class EveryClip:
    """Batches of every `world_size`th clip from number `rank` on: over all ranks each clip once, and none twice."""

    def __init__(self, num_clips: int, *, batch_size: int, rank: int = 0, world_size: int = 1):
        self.numbers, self.batch_size = range(rank, num_clips, world_size), batch_size

    def __len__(self) -> int:
        return -(-len(self.numbers) // self.batch_size)

    def __iter__(self) -> Iterator[list[Key]]:
        for start in range(0, len(self.numbers), self.batch_size):
            yield [(0, clip) for clip in self.numbers[start : start + self.batch_size]]


class ClipGroups:
    """Batches of neighbouring clips, by number: clips 0 to batch_size - 1 are group 0. Of the groups that are named."""

    def __init__(self, num_clips: int, *, batch_size: int, groups: Sequence[int]):
        self.num_clips, self.batch_size, self.groups = num_clips, batch_size, groups

    def __len__(self) -> int:
        return len(self.groups)

    def __iter__(self) -> Iterator[list[Key]]:
        for group in self.groups:
            start = group * self.batch_size
            yield [(0, clip) for clip in range(start, min(start + self.batch_size, self.num_clips))]


class Loader:
    """Batches, one pass after another; `set_epoch` before each pass of a training loader.

    A pass that is broken off leaves nothing behind, and the next one begins afresh.
    """

    def __init__(
        self,
        dataset: TrainClips | ViewClips,
        order: EpochBatches | EveryClip | ClipGroups,
        *,
        workers: int,
        timeout_seconds: float,
        device: torch.device = CPU,
        quarantine: Path | None = None,
    ):
        """`device` is where the clips will go. `quarantine` is a file that remembers, until it is deleted, which clips
        hung or killed a worker."""
        self.clips, self.workers = dataset.clips, workers
        self._dataset, self._order, self._timeout_seconds = dataset, order, timeout_seconds
        self._is_pinned = device.type == "cuda"
        self._quarantine = Quarantine(quarantine, timeout_seconds)
        keep_memory()
        self._pool = Pool(
            dataset,
            workers=workers,
            slots=workers + 2 * order.batch_size,  # while one batch is used the next one is made
            slot_bytes=dataset.slot_bytes,
            timeout_seconds=timeout_seconds,
        )

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[Batch]:
        ahead, batches = itertools.tee(self._order)
        tried = (key for batch in ahead for key in batch if not self._quarantine.reason(self.clips[key[1]]))
        with contextlib.closing(self._pool.run(tried)) as results:
            for batch in batches:
                yield self._collect(batch, results)

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch of the next pass, which begins after `start` batches of it."""
        self._order.epoch, self._order.start = epoch, start

    def close(self) -> None:
        """End the decoding processes; otherwise they end with this object or this process."""
        self._pool.close()

    def text(self) -> str:
        """How clips are loaded, in a line for the log."""
        form = self._dataset.folder.name
        if not self.workers:
            return f"{form}, decoded by this process: no time limit on a clip, and no progress meanwhile"
        return f"{form}, decoded by {self.workers} processes, {self._timeout_seconds:g} s per clip at most"

    def advice(self) -> str:
        """What to change if the network waits for clips."""
        cores = os.cpu_count() or 1
        if self.workers < cores:
            return f"raise runtime.workers from {self.workers}; there are {cores} cores"
        if not self._dataset.folder.name.startswith("frames"):
            return "all cores decode; JPEG frames take less of them than videos: clips.form: frames"
        return "all cores decode; smaller frames take less of them (clips.short_side), or find more cores"

    def _collect(self, keys: list[Key], results: Iterator) -> Batch:
        batch = Batch([], torch.empty(0, dtype=torch.int64), [])
        labels = []
        for key in keys:
            clip = self.clips[key[1]]
            if reason := self._quarantine.reason(clip):
                batch.undecodable.append(reason)
                continue
            done, sample, slot = next(results)
            assert done == key, (done, key)
            if isinstance(sample, Lost):
                sample = Sample(reason=self._give_up(clip, sample.reason))
            if sample.reason:
                batch.undecodable.append(sample.reason)
                continue
            batch.views += self._views(sample, slot)
            batch.video_ids.append(clip.video_id)
            labels.append(clip.label)
        batch.labels = torch.tensor(labels, dtype=torch.int64)
        return batch

    def _views(self, sample: Sample, slot: np.ndarray) -> list[View]:
        size = int(np.prod(sample.shape))
        if self._is_pinned:
            frames = torch.empty(sample.shape, dtype=torch.uint8, pin_memory=True)
        else:
            frames = torch.from_numpy(np.empty(sample.shape, np.uint8))
        np.copyto(frames.numpy().reshape(-1), slot[:size])
        footage, crop_size = Footage(frames), self._dataset.crop_size
        return [View(footage, places, box, crop_size, sample.flip) for box in sample.boxes for places in sample.places]

    def _give_up(self, clip: Clip, reason: str) -> str:
        sentence = f"{clip.video_id}: {reason} and is left out from now on"
        self._quarantine.add(clip, sentence)
        return sentence


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
    folder: Path,
    spec: Clips,
    augment: Augment,
    *,
    batch_size: int,
    seed: int,
    workers: int,
    timeout_seconds: float,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device = CPU,
    quarantine: Path | None = None,
) -> Loader:
    """One random, augmented clip of each training video, crops of augment.crop_size; `batch_size` is of one rank."""
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
        is_resized_later=device.type == "cuda",
    )
    order = EpochBatches(len(clips), batch_size=batch_size, seed=seed, rank=rank, world_size=world_size)
    return Loader(
        dataset, order, workers=workers, timeout_seconds=timeout_seconds, device=device, quarantine=quarantine
    )


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
    rank: int = 0,
    world_size: int = 1,
    groups: Sequence[int] | None = None,
    clips: Sequence[Clip] | None = None,
    device: torch.device = CPU,
    quarantine: Path | None = None,
) -> Loader:
    """Fixed views of each video; by default the one of a validation: centred clip, centre crop of augment.crop_size.

    With `groups` these alone, of `batch_size` neighbouring clips each, whatever the rank. `clips` are all usable ones
    of the split if None.
    """
    clips = usable_clips(folder, split) if clips is None else list(clips)
    dataset = ViewClips(
        folder,
        clips,
        clip_len=spec.clip_len,
        frame_interval=spec.frame_interval,
        num_clips=num_clips,
        num_crops=num_crops,
        resize=augment.resize,
        crop_size=crop_size or augment.crop_size,
    )
    order = EveryClip(len(clips), batch_size=batch_size, rank=rank, world_size=world_size)
    if groups is not None:
        order = ClipGroups(len(clips), batch_size=batch_size, groups=groups)
    return Loader(
        dataset, order, workers=workers, timeout_seconds=timeout_seconds, device=device, quarantine=quarantine
    )
