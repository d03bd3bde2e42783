"""Batches of clips in a fixed order, decoded by worker processes that may hang or die without ending the run."""

import contextlib
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..kinetics.manifest import Clip, StoredClip
from ..kinetics.shard_list import check_shards
from ..recipe import Augment, Clips, TestSpec
from .dataset import Key, Sample, TrainClips, ViewClips
from .inputs import Footage, View
from .quarantine import Quarantine
from .workers import Lost, Pool, keep_memory

CPU = torch.device("cpu")


@dataclass
class Batch:
    """Clips that pass through a network together; N of them decoded."""

    views: list[View]
    """All views of the N clips, those of a clip adjacent."""
    labels: Tensor
    """(N,) int64; -1 where a clip has none."""
    video_ids: list[str]
    """Of the N clips."""
    undecodable: list[str] = field(default_factory=list)
    """A sentence for each clip that belongs here and did not decode."""


class EpochBatches:
    """Batches of every clip once per epoch, in an order that (seed, epoch) determines.

    `world_size` processes share a batch, of which this is number `rank`: their shares, concatenated, are the batch of
    one process with `world_size` times the `batch_size`. A last batch with fewer than two clips per process joins the
    batch before it, because batch norm cannot train on one value per channel. Raises UserError if there are fewer
    clips than processes.
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
        """This process's share of each batch, from batch number `start` on."""
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.num_clips)
        size, last = self.batch_size * self.world_size, len(self) - 1
        for number in range(self.start, len(self)):
            batch = order[number * size : (number + 1) * size if number < last else None]
            yield [(self.epoch, int(clip)) for clip in np.array_split(batch, self.world_size)[self.rank]]


class EveryClip:
    """Batches of every `world_size`th clip from number `rank` on: over all ranks, each clip exactly once."""

    def __init__(self, num_clips: int, *, batch_size: int, rank: int = 0, world_size: int = 1):
        self.numbers, self.batch_size = range(rank, num_clips, world_size), batch_size

    def __len__(self) -> int:
        return -(-len(self.numbers) // self.batch_size)

    def __iter__(self) -> Iterator[list[Key]]:
        for start in range(0, len(self.numbers), self.batch_size):
            yield [(0, clip) for clip in self.numbers[start : start + self.batch_size]]


class ClipGroups:
    """The named groups, a batch each: group n has the clips n * batch_size to (n + 1) * batch_size, half-open."""

    def __init__(self, num_clips: int, *, batch_size: int, groups: Sequence[int]):
        self.num_clips, self.batch_size, self.groups = num_clips, batch_size, groups

    def __len__(self) -> int:
        return len(self.groups)

    def __iter__(self) -> Iterator[list[Key]]:
        for group in self.groups:
            start = group * self.batch_size
            yield [(0, clip) for clip in range(start, min(start + self.batch_size, self.num_clips))]


Order = EpochBatches | EveryClip | ClipGroups
"""The keys of each batch."""

Results = Iterator[tuple[Key, Sample | Lost, np.ndarray]]
"""What the pool makes of the keys, in their order."""


@dataclass(frozen=True, kw_only=True)
class Loading:
    """How clips are loaded; nothing in it changes a pixel."""

    batch_size: int
    """Clips of a batch, in one process."""
    workers: int
    """Decoding processes. 0: the calling process decodes, no isolation, no timeout."""
    timeout_seconds: float
    """Longest time that a worker may take for a clip."""
    rank: int = 0
    """Number of this process among the `world_size` that share the clips."""
    world_size: int = 1
    device: torch.device = CPU
    """Where the clips are used; frames for a GPU are put into pinned memory."""
    quarantine: Path | None = None
    """File that lists the clips that hung or killed a worker; they are not tried again until it is deleted."""


class Loader:
    """Batches of clips, one pass after another.

    A pass that is broken off leaves nothing behind; the next one starts from the beginning.
    """

    def __init__(self, dataset: TrainClips | ViewClips, order: Order, loading: Loading):
        self.clips, self.workers = dataset.clips, loading.workers
        self._dataset, self._order, self._timeout_seconds = dataset, order, loading.timeout_seconds
        self._is_pinned = loading.device.type == "cuda"
        self._quarantine = Quarantine(loading.quarantine, loading.timeout_seconds)
        keep_memory()
        self._pool = Pool(
            dataset,
            workers=loading.workers,
            slots=loading.workers + 2 * loading.batch_size,  # while one batch is used the next one is made
            slot_bytes=dataset.slot_bytes,
            timeout_seconds=loading.timeout_seconds,
        )

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[Batch]:
        ahead, batches = itertools.tee(self._order)
        tried = (key for batch in ahead for key in batch if not self._quarantine.reason(self.clips[key[1]]))
        with contextlib.closing(self._pool.run(tried)) as results:
            for batch in batches:
                yield self._collect(batch, results)

    def close(self) -> None:
        """End the decoding processes; otherwise they end with this object or this process."""
        self._pool.close()

    def text(self) -> str:
        """A line for the log: how clips are decoded."""
        form = self._dataset.folder.name
        if not self.workers:
            return f"{form}, decoded by this process: no time limit on a clip, and no progress meanwhile"
        return f"{form}, decoded by {self.workers} processes, {self._timeout_seconds:g} s per clip at most"

    def advice(self) -> str:
        """What to change if the network waits for clips, in a clause."""
        cores = os.cpu_count() or 1
        if self.workers < cores:
            return f"raise runtime.workers from {self.workers}; there are {cores} cores"
        if not self._dataset.folder.name.startswith("frames"):
            return "all cores decode; JPEG frames take less of them than videos: clips.form: frames"
        return "all cores decode; smaller frames take less of them (clips.short_side), or find more cores"

    def _collect(self, keys: list[Key], results: Results) -> Batch:
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
        return [
            View(footage, indices, box, crop_size, sample.flip)
            for box in sample.boxes
            for indices in sample.frame_indices
        ]

    def _give_up(self, clip: Clip, reason: str) -> str:
        sentence = f"{clip.video_id}: {reason} and is left out from now on"
        self._quarantine.add(clip, sentence)
        return sentence


class TrainLoader(Loader):
    """A Loader whose order of clips and random numbers depend on the epoch."""

    def __init__(self, dataset: TrainClips, order: EpochBatches, loading: Loading):
        super().__init__(dataset, order, loading)
        self._epochs = order

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch (0-based) of the next pass, which begins after its first `start` batches."""
        self._epochs.epoch, self._epochs.start = epoch, start


def usable_clips(clips: Iterable[Clip], split: str, where: Path) -> list[StoredClip]:
    """The clips of a split that can be read, in the order given.

    `where` is the manifest that they are from. Raises UserError if there are none, or if the manifest lacks the place
    or the size of one.
    """
    usable = [clip.stored() for clip in clips if clip.split == split and clip.is_usable]
    if not usable:
        raise UserError(
            f"{where} has no usable clip in {split}; look at its reasons, or check splits and parts of the data set in "
            "params.yaml"
        )
    return usable


def train_loader(
    folder: Path, clips: Sequence[StoredClip], spec: Clips, augment: Augment, *, seed: int, loading: Loading
) -> TrainLoader:
    """One random, augmented clip of each training video, crops of augment.crop_size.

    `clips` are all usable ones, of every process; they lie in `folder`. Raises UserError if they are too few, or if
    their shards are not there.
    """
    check_shards(folder, clips)
    is_resized_later = loading.device.type == "cuda"
    dataset = TrainClips(folder, clips, spec, augment, seed=seed, is_resized_later=is_resized_later)
    order = EpochBatches(
        len(clips), batch_size=loading.batch_size, seed=seed, rank=loading.rank, world_size=loading.world_size
    )
    return TrainLoader(dataset, order, loading)


def view_loader(
    folder: Path, clips: Sequence[StoredClip], spec: TestSpec, *, loading: Loading, groups: Sequence[int] | None = None
) -> Loader:
    """All views of each clip, nothing random: this process's share of `clips`, which lie in `folder`.

    With `groups` these alone, whatever the rank: group n is the clips from number n * batch_size on, `batch_size` of
    them. Raises UserError if their shards are not there.
    """
    check_shards(folder, clips)
    dataset = ViewClips(folder, clips, spec)
    if groups is not None:
        return Loader(dataset, ClipGroups(len(clips), batch_size=loading.batch_size, groups=groups), loading)
    order = EveryClip(len(clips), batch_size=loading.batch_size, rank=loading.rank, world_size=loading.world_size)
    return Loader(dataset, order, loading)
