"""The loop itself, on a tiny network: resuming, logs, non-finite losses."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from actionzoo.engine.checkpoint import load_checkpoint
from actionzoo.engine.logs import RunLog, read_log
from actionzoo.engine.train import NonFiniteLoss, train

NUM_CLIPS, BATCH = 12, 4


class Loader:
    """Batches in an order that the epoch fixes; stops dead before the batch `killed_at`, (epoch, number)."""

    def __init__(self, killed_at=None, poisoned=False, batch=BATCH):
        self.epoch, self.killed_at, self.poisoned, self.batch = 0, killed_at, poisoned, batch
        self.views = torch.randn(NUM_CLIPS, 1, 2, 4, 4, 3, generator=torch.Generator().manual_seed(0))
        self.labels = torch.arange(NUM_CLIPS) % 3

    def __len__(self):
        return math.ceil(NUM_CLIPS / self.batch)

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        order = torch.randperm(NUM_CLIPS, generator=torch.Generator().manual_seed(self.epoch))
        for number, picked in enumerate(order.split(self.batch)):
            if (self.epoch, number) == self.killed_at:
                raise KeyboardInterrupt
            views = self.views[picked] * (float("nan") if self.poisoned else 1)
            yield SimpleNamespace(
                views=views, labels=self.labels[picked], video_ids=[f"clip{i}" for i in picked], undecodable=[]
            )


def network(norm=True):
    torch.manual_seed(0)
    if not norm:
        return nn.Sequential(nn.Flatten(), nn.Linear(96, 3))
    return nn.Sequential(nn.Flatten(), nn.Linear(96, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))


def run(scratch, training, epochs=4, accumulate=1, norm=True):
    events = []
    state = train(
        network(norm), training, Loader(), lambda views: views.flatten(0, -5).movedim(-1, 1),
        device=torch.device("cpu"), lr_at=lambda step: 0.1, momentum=0.9, weight_decay=1e-4, max_grad_norm=40,
        accumulate=accumulate, epochs=epochs, val_interval=2, checkpoint_interval=1, log_interval=2, scratch=scratch,
        on_start=lambda state: None, on_event=lambda line, step: events.append((step, line)), on_text=lambda text: None,
    )  # fmt: skip
    return state, events


def test_an_interrupted_training_ends_bit_identical_to_an_undisturbed_one(tmp_path):
    whole, _ = run(tmp_path / "whole", Loader())
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", Loader(killed_at=(2, 1)))
    resumed, events = run(tmp_path / "cut", Loader())
    assert min(line["epoch"] for _, line in events) == 3
    assert resumed == whole
    for name in ("best.pth", "latest.pth"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize(("batch", "accumulate"), [(2, 2), (1, 4), (4, 3), (5, 2)])
def test_accumulated_batches_make_the_step_of_one_large_batch(tmp_path, batch, accumulate):
    """Without batch norm and dropout; 5 x 2 ends the epoch with a step of two clips, as does one batch of 10."""
    small, small_events = run(tmp_path / "small", Loader(batch=batch), accumulate=accumulate, norm=False)
    large, large_events = run(tmp_path / "large", Loader(batch=batch * accumulate), norm=False)
    assert [curve["loss"] for curve in small.train_curve] == pytest.approx([c["loss"] for c in large.train_curve])
    assert [step for step, _ in small_events] == [step for step, _ in large_events]
    ours, theirs = (load_checkpoint(tmp_path / name / "latest.pth")["state_dict"] for name in ("small", "large"))
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name])


def test_checkpoints_hold_weights_and_no_clock(tmp_path):
    run(tmp_path, Loader())
    latest = load_checkpoint(tmp_path / "latest.pth")
    assert latest.keys() == {"meta", "state_dict"} and latest["meta"].keys() == {"epoch", "val_top1"}
    network().load_state_dict(latest["state_dict"])


def test_events_have_the_keys_that_analysis_scripts_know(tmp_path):
    _, events = run(tmp_path, Loader(), epochs=2)
    train_lines = [line for _, line in events if line["mode"] == "train"]
    assert list(train_lines[0]) == [
        "mode", "epoch", "iter", "lr", "data_time", "top1_acc", "top5_acc", "loss_cls", "loss", "grad_norm", "time",
    ]  # fmt: skip
    assert [(line["epoch"], line["iter"]) for line in train_lines] == [(1, 2), (2, 2)]
    (val_line,) = [line for _, line in events if line["mode"] == "val"]
    assert list(val_line) == ["mode", "epoch", "iter", "lr", "top1_acc", "top5_acc", "mean_class_accuracy"]


def test_a_loss_that_is_no_number_stops_with_the_clips_named(tmp_path):
    with pytest.raises(NonFiniteLoss, match=r"epoch 1, step 1.*clip\d+, clip\d+"):
        run(tmp_path, Loader(poisoned=True))


def test_a_resumed_log_drops_the_epochs_that_run_again(tmp_path):
    log = RunLog(tmp_path, "now")
    log.begin({"seed": 0}, finished_epochs=0)
    for epoch in (1, 2):
        log.event({"mode": "train", "epoch": epoch, "loss": 1 / 3})
    with (tmp_path / "now.log.json").open("a") as file:
        file.write('{"mode": "tra')  # a kill cut the line off
    log.begin({"seed": 0}, finished_epochs=1)
    log.event({"mode": "train", "epoch": 2, "loss": 0.5})
    assert list(read_log(log.json_path)) == [
        {"mode": "train", "epoch": 1, "loss": 0.33333},
        {"mode": "train", "epoch": 2, "loss": 0.5},
    ]
    assert json.loads(log.json_path.read_text().splitlines()[0]) == {"seed": 0}
