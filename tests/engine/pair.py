"""Run by torchrun: train a small 3-D network over clips that a list gives, and write what the first process saw.

torchrun --nproc-per-node 2 -m tests.engine.pair OUT CLIPS_PER_PROCESS ACCUMULATE NORM
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn

from actionzoo.engine.data import TrainingData
from actionzoo.engine.distributed import joined
from actionzoo.engine.norms import split_norms, synchronise_norms
from actionzoo.engine.state import StateFolder
from actionzoo.engine.train import train
from tests.engine.small_training import Recorder, plan, shuffled, to_input

NUM_CLIPS = 16


class Loader:
    """The clips of one process: each global batch is split among all."""

    def __init__(self, batch, world, num_clips=NUM_CLIPS):
        generator = torch.Generator().manual_seed(0)
        self.views = torch.randn(num_clips, 1, 4, 8, 8, 3, generator=generator)
        self.labels = torch.arange(num_clips) % 3
        self.batch, self.world, self.epoch, self.start = batch, world, 0, 0

    def __len__(self):
        return len(self.labels) // (self.batch * self.world.size)

    def set_epoch(self, epoch, start=0):
        self.epoch, self.start = epoch, start

    def __iter__(self):
        order = shuffled(len(self.labels), self.epoch)
        for number, picked in enumerate(order.split(self.batch * self.world.size)):
            if number >= self.start:
                mine = picked[self.world.rank * self.batch :][: self.batch]
                names = [f"clip{i:02d}" for i in mine]
                yield SimpleNamespace(views=self.views[mine], labels=self.labels[mine], video_ids=names, undecodable=[])


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv3d(3, 8, 3, padding=1, bias=False), nn.BatchNorm3d(8), nn.ReLU(),
        nn.Conv3d(8, 8, 3, stride=2, groups=8, bias=False), nn.BatchNorm3d(8), nn.ReLU(),
        nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip


def main(out: Path, batch: int, accumulate: int, norm: str) -> None:
    torch.set_num_threads(1)
    with joined("cpu") as world:
        model, recorder = network(), Recorder()
        if norm == "sync":
            synchronise_norms(model)
        if norm == "ghost":
            split_norms(model, 4)
        data = TrainingData(Loader(batch, world), Loader(batch, world), to_input)
        settings = plan(epochs=3, momentum=0.9, accumulate=accumulate, max_grad_norm=1, val_interval=1, log_interval=1)
        state = train(model, data, settings, StateFolder(out), recorder, world)
        if world.is_first:
            (out / "events.json").write_text(json.dumps([event for _, event in recorder.events]))
            (out / "curve.json").write_text(json.dumps(state.val_curve))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
