"""The finished part of an evaluation on disk. Killed at any moment, the evaluation resumes with the other clips.

    part-<group>.safetensors   view logits of whole groups of clips; <group> is the number of the first
    rest-<rank>.safetensors    of groups that lack a clip which did not decode; they are evaluated again on resume
    lock                       held by the running evaluation

A group is the clips that pass through the network together. Groups depend neither on the number of processes nor on
interruptions, so the logits have the same bits in any case. All processes write into one folder; the first reads all.
"""

import contextlib
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..files.locks import locked
from .evaluate import BatchLogits
from .tensor_file import DamagedFile, Pieces, read_header, write_tensors

SAVE_CLIPS, SAVE_SECONDS = 64, 60.0
"""A process saves once it has so many new clips, or so many seconds after it last did."""

_LOGITS, _FP32_LOGITS = "logits", "exact"
"""Names of the tensors in a part, and of the metadata that list their clips."""


@dataclass(frozen=True)
class ClipLogits:
    """A clip's logits in a file."""

    path: Path
    offset: int
    """Bytes from the beginning of the file."""
    shape: tuple[int, ...]
    """(num_views, num_classes), float32."""

    def read(self) -> Tensor:
        size = 4 * math.prod(self.shape)
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            return torch.frombuffer(bytearray(file.read(size)), dtype=torch.float32).view(self.shape)


class FinishedClips:
    """The folder, as one of the processes writes to it."""

    def __init__(self, folder: Path, rank: int = 0):
        self._folder, self._rank = folder, rank
        folder.mkdir(parents=True, exist_ok=True)
        self._whole: list[tuple[int, BatchLogits]] = []
        self._incomplete: list[BatchLogits] = []
        self._saved_at = time.monotonic()
        self._held = contextlib.ExitStack()

    def begin(self) -> set[str]:
        """Lock the folder, delete what is damaged or incomplete, and return the ids of the finished clips.

        For the first process, before the others write. The lock is held until `close`, or until the process ends.
        Raises UserError if another evaluation holds it.
        """
        busy = (
            f"the same evaluation is already running, in {self._folder}; wait for it, or stop it and run this command "
            "again"
        )
        self._held.enter_context(locked(self._folder / "lock", busy=busy))
        for path in self._folder.glob("rest-*"):
            path.unlink()
        for path in self._folder.glob("part-*"):
            try:
                read_header(path)
            except DamagedFile:
                path.unlink()
        return set(self.read()[0])

    def add(self, group: int, batch: BatchLogits) -> None:
        """Keep a group's logits, and save now and then."""
        if batch.undecodable:
            self._incomplete.append(batch)
        else:
            self._whole.append((group, batch))
        num_clips = sum(len(batch.video_ids) for _, batch in self._whole)
        if num_clips >= SAVE_CLIPS or time.monotonic() - self._saved_at >= SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Write the whole groups that are not yet on disk."""
        if self._whole:
            first_group = self._whole[0][0]
            _write(self._folder / f"part-{first_group:06d}.safetensors", [batch for _, batch in self._whole])
        self._whole, self._saved_at = [], time.monotonic()

    def end(self) -> None:
        """Write everything that is left, including the groups that lack a clip."""
        self.save()
        if batches := [batch for batch in self._incomplete if batch.video_ids]:
            _write(self._folder / f"rest-{self._rank}.safetensors", batches)

    def close(self) -> None:
        """Release the lock."""
        self._held.close()

    def read(self) -> tuple[dict[str, ClipLogits], dict[str, ClipLogits]]:
        """Return the logits of all processes' clips by video id, and the fp32 logits of the compared ones."""
        found: dict[str, dict[str, ClipLogits]] = {_LOGITS: {}, _FP32_LOGITS: {}}
        for path in [*sorted(self._folder.glob("rest-*")), *sorted(self._folder.glob("part-*"))]:
            tensors, metadata = read_header(path)
            for name, clips in found.items():
                if tensor := tensors.get(name):
                    size = tensor.size_bytes // tensor.shape[0]
                    for number, video_id in enumerate(json.loads(metadata[name])):
                        clips[video_id] = ClipLogits(path, tensor.offset + number * size, tensor.shape[1:])
        return found[_LOGITS], found[_FP32_LOGITS]


def _write(path: Path, batches: list[BatchLogits]) -> None:
    compared = [(batch.video_ids, batch.fp32_logits) for batch in batches if batch.fp32_logits is not None]
    parts = {_LOGITS: [(batch.video_ids, batch.logits) for batch in batches], _FP32_LOGITS: compared}
    tensors, metadata = {}, {}
    for name, pairs in parts.items():
        video_ids = [video_id for ids, _ in pairs for video_id in ids]
        metadata[name] = json.dumps(video_ids)
        if pairs:
            logits = [logits for _, logits in pairs]
            tensors[name] = Pieces((len(video_ids), *logits[0].shape[1:]), torch.float32, logits)
    write_tensors(path, tensors, metadata)
