"""It learns: a network of each family comes to know eight clips by heart."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from actionzoo.engine.data import TrainingData
from actionzoo.engine.state import StateFolder
from actionzoo.engine.train import train
from actionzoo.models.csn import CSN
from actionzoo.models.slowfast import SlowFast
from tests.engine.small_training import Recorder, plan

NETWORKS = {
    "slowfast": lambda: SlowFast(
        slow_depth=50, fast_depth=50, alpha=8, beta=1 / 8, fusion_kernel=5, num_classes=4, dropout=0.0
    ),
    "csn": lambda: CSN(depth=50, bottleneck="ir", norm_eval=False, bn_frozen=False, num_classes=4, dropout=0.0),
}


class EightClips:
    """One batch a pass: clouds, each clip with its label."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.batch = SimpleNamespace(
            views=F.interpolate(torch.randn(8, 3, 8, 6, 6, generator=generator), size=(16, 24, 24), mode="trilinear"),
            labels=torch.arange(8) % 4,
            video_ids=[f"clip{i}" for i in range(8)],
            undecodable=[],
        )

    def __len__(self):
        return 1

    def __iter__(self):
        yield self.batch

    def set_epoch(self, epoch, start=0):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("family", NETWORKS)
def test_eight_clips_are_learnt_by_heart(family, tmp_path):
    torch.manual_seed(0)
    data, recorder = TrainingData(EightClips(), EightClips(), lambda views: views), Recorder()
    settings = plan(lr=0.005, epochs=24, momentum=0.9, val_interval=24, log_interval=1, checkpoint_interval=24)

    train(NETWORKS[family](), data, settings, StateFolder(tmp_path), recorder)

    steps = [event for _, event in recorder.events if event["mode"] == "train"]
    losses = [event["loss"] for event in steps]
    assert losses[0] > 1 and losses[-1] < 0.3 * losses[0], losses
    assert steps[-1]["top1_acc"] == 1.0
