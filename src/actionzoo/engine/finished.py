"""What a test has finished, on the disk: killed at any moment, it goes on with the other clips.

    part-<group>.safetensors   view logits of whole groups of clips, the first of which has that number
    rest-<rank>.safetensors    of groups that lack a clip, which did not decode: they are tried again another time
    lock                       held by the test that is at it

A group is what passes through the network together, the same clips whoever does it and whenever; so the logits have the
same bits, too, after an interruption. All processes write into one folder, and the first one reads them all.
"""

import fcntl
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import torch
from torch import Tensor

from ..errors import UserError
from .evaluate import ViewBatch
from .tensor_file import DamagedFile, Pieces, read_header, write_tensors

SAVE_CLIPS, SAVE_SECONDS = 64, 60.0
"""A process saves once it has so many new clips, or so long after it did."""


@dataclass(frozen=True)
class Row:
    """A clip's logits in a file."""

    path: Path
    offset: int
    """Bytes from the file's start."""
    shape: tuple[int, ...]
    """(num_views, num_classes), float32."""

    def read(self) -> Tensor:
        size = 4 * math.prod(self.shape)
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            return torch.frombuffer(bytearray(file.read(size)), dtype=torch.float32).view(self.shape)


class Saved:
    """The folder, as one of the processes sees it."""

    def __init__(self, folder: Path, rank: int = 0):
        self._folder, self._rank = folder, rank
        folder.mkdir(parents=True, exist_ok=True)
        self._new: list[tuple[int, ViewBatch]] = []
        self._rest: list[tuple[int, ViewBatch]] = []
        self._saved_at = time.monotonic()
        self._lock: TextIO | None = None

    def begin(self) -> set[str]:
        """The clips that need not be tried again. For the first process, before the others do anything.

        Raises UserError if another test is at work here.
        """
        self._lock = open(self._folder / "lock", "w")  # noqa: SIM115  # until close, or this process ends somehow
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"the very same test is under way already, in {self._folder}; wait for it, or end it and run again"
            ) from None
        for path in self._folder.glob("rest-*"):
            path.unlink()
        for path in self._folder.glob("part-*"):
            try:
                read_header(path)
            except DamagedFile:
                path.unlink()
        return set(self.rows()[0])

    def add(self, group: int, batch: ViewBatch) -> None:
        """Keep what came of a group, and save now and then."""
        (self._rest if batch.undecodable else self._new).append((group, batch))
        num_clips = sum(len(batch.video_ids) for _, batch in self._new)
        if num_clips >= SAVE_CLIPS or time.monotonic() - self._saved_at >= SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        if self._new:
            _write(self._folder / f"part-{self._new[0][0]:06d}.safetensors", [batch for _, batch in self._new])
        self._new, self._saved_at = [], time.monotonic()

    def end(self) -> None:
        """Save what is left, also of groups that lack a clip."""
        self.save()
        if rest := [batch for _, batch in self._rest if batch.video_ids]:
            _write(self._folder / f"rest-{self._rank}.safetensors", rest)

    def close(self) -> None:
        """Let others at it."""
        if self._lock:
            self._lock.close()

    def rows(self) -> tuple[dict[str, Row], dict[str, Row]]:
        """Clip -> where its logits lie, of all processes; and of the clips that were computed in fp32 too, those."""
        logits: dict[str, Row] = {}
        exact: dict[str, Row] = {}
        for path in [*sorted(self._folder.glob("rest-*")), *sorted(self._folder.glob("part-*"))]:
            places, texts = read_header(path)
            for name, rows in (("logits", logits), ("exact", exact)):
                if place := places.get(name):
                    step = place.size_bytes // place.shape[0]
                    for number, video_id in enumerate(json.loads(texts[name])):
                        rows[video_id] = Row(path, place.offset + number * step, place.shape[1:])
        return logits, exact


def _write(path: Path, batches: list[ViewBatch]) -> None:
    compared = [batch for batch in batches if batch.exact is not None]
    tensors = {"logits": [batch.logits for batch in batches], "exact": [batch.exact for batch in compared]}
    ids = {
        name: [video_id for batch in some for video_id in batch.video_ids]
        for name, some in (("logits", batches), ("exact", compared))
    }
    write_tensors(
        path,
        {
            name: Pieces((len(ids[name]), *parts[0].shape[1:]), torch.float32, parts)
            for name, parts in tensors.items()
            if parts
        },
        {name: json.dumps(some) for name, some in ids.items()},
    )
