"""The loop itself, on a tiny network: resuming, logs, non-finite losses."""

import math
import os
import random
import signal
import time
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from actionzoo.engine.checkpoint import CheckpointError, load_checkpoint
from actionzoo.engine.data import TrainingData
from actionzoo.engine.state import StateFolder, saved_states
from actionzoo.engine.train import train
from actionzoo.engine.trainer import NonFiniteLoss
from tests.engine.small_training import Recorder, plan, shuffled, to_input
from tests.processes import in_child

NUM_CLIPS, BATCH = 12, 4


class Loader:
    """Batches in an order that the epoch fixes; stops dead before the batch `killed_at`, (epoch, number)."""

    def __init__(self, killed_at=None, poisoned=False, batch=BATCH, kill=signal.default_int_handler):
        self.epoch, self.start, self.killed_at, self.poisoned, self.batch = 0, 0, killed_at, poisoned, batch
        self.kill = lambda: kill(signal.SIGINT, None)
        self.views = torch.randn(NUM_CLIPS, 1, 2, 4, 4, 3, generator=torch.Generator().manual_seed(0))
        self.labels = torch.arange(NUM_CLIPS) % 3

    def __len__(self):
        return math.ceil(NUM_CLIPS / self.batch)

    def set_epoch(self, epoch, start=0):
        self.epoch, self.start = epoch, start

    def __iter__(self):
        order = shuffled(NUM_CLIPS, self.epoch)
        for number, picked in list(enumerate(order.split(self.batch)))[self.start :]:
            if (self.epoch, number) == self.killed_at:
                self.kill()
            views = self.views[picked] * (float("nan") if self.poisoned else 1)
            yield SimpleNamespace(
                views=views, labels=self.labels[picked], video_ids=[f"clip{i}" for i in picked], undecodable=[]
            )


def network(norm=True):
    torch.manual_seed(0)
    if not norm:
        return nn.Sequential(nn.Flatten(), nn.Linear(96, 3))
    return nn.Sequential(nn.Flatten(), nn.Linear(96, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))


def run(folder, training, recorder=None, *, norm=True, advice="", **settings):
    """Train for four epochs of three steps; `settings` are other fields of Plan. Return the state and the events."""
    recorder, data = recorder or Recorder(), TrainingData(training, Loader(), to_input, advice)
    settings = {"momentum": 0.9, "weight_decay": 1e-4} | settings
    state = train(network(norm), data, plan(**settings), StateFolder(folder), recorder)
    return state, recorder.events


def test_an_interrupted_training_ends_bit_identical_to_an_undisturbed_one(tmp_path):
    whole, _ = run(tmp_path / "whole", Loader())
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", Loader(killed_at=(2, 1)))
    resumed, events = run(tmp_path / "cut", Loader())
    assert min(line["epoch"] for _, line in events) == 3
    assert resumed == whole
    for name in ("best.pth", "latest.pth"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def without_clock(events):
    return [(step, {key: line[key] for key in line.keys() - {"time", "data_time"}}) for step, line in events]


@pytest.mark.parametrize("settings", [{}, {"accumulate": 2, "ema": 0.9}], ids=["plain", "accumulated and averaged"])
def test_a_training_killed_at_ten_random_steps_ends_bit_identical(tmp_path, settings, one_thread):
    """SIGKILL, ten times; states are saved after every step, so that a killed one loses what came after."""
    settings |= {"epochs": 8, "save_seconds": 0}
    whole, events = run(tmp_path / "whole", Loader(batch=2), **settings)
    batches = [(epoch, number) for epoch in range(8) for number in range(NUM_CLIPS // 2)]
    for killed_at in sorted(random.Random(0).sample(batches, 10)):
        die = Loader(killed_at=killed_at, batch=2, kill=lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        assert in_child(lambda die=die: run(tmp_path / "cut", die, **settings)) == signal.SIGKILL
    resumed, last_events = run(tmp_path / "cut", Loader(batch=2), **settings)
    assert resumed == whole
    assert without_clock(last_events) == without_clock(events)[-len(last_events) :]
    for name in ("best.pth", "latest.pth"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def kill_by(number):
    return lambda *_: os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_sigterm_and_ctrl_c_save_the_step_and_leave(number, tmp_path):
    handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    whole, _ = run(tmp_path / "whole", Loader())
    recorder = Recorder()
    with pytest.raises(SystemExit) as left:
        run(tmp_path / "cut", Loader(killed_at=(2, 1), kill=kill_by(number)), recorder)
    assert left.value.code == 128 + number
    assert (
        recorder.texts[-1] == "stopped after epoch 3, step 2, and saved; run the same command again to go on from there"
    )
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == handlers
    resumed, _ = run(tmp_path / "cut", Loader(killed_at=(2, 1)))  # that batch is not loaded again
    assert resumed == whole
    assert (tmp_path / "cut/latest.pth").read_bytes() == (tmp_path / "whole/latest.pth").read_bytes()


def test_a_second_ctrl_c_ends_at_once(tmp_path, one_thread):
    def twice(*_):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    assert in_child(lambda: run(tmp_path, Loader(killed_at=(1, 1), kill=twice))) == signal.SIGINT
    assert [path.name for path in saved_states(tmp_path)] == ["state-00001-0000000.pth"]  # that of the epoch before


def test_who_ignores_ctrl_c_as_a_process_in_the_background_does_goes_on(tmp_path):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        state, _ = run(tmp_path, Loader(killed_at=(2, 1), kill=kill_by(signal.SIGINT)))
    finally:
        signal.signal(signal.SIGINT, before)
    assert state.finished_epochs == 4


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_amid_a_validation_they_save_too(number, tmp_path, monkeypatch):
    whole, _ = run(tmp_path / "whole", Loader())
    usual = Loader.__iter__

    def asked(self):
        for batch_number, batch in enumerate(usual(self)):
            if self is not training and batch_number == 1:
                os.kill(os.getpid(), number)
            yield batch

    training, recorder = Loader(), Recorder()
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as left:
        patch.setattr(Loader, "__iter__", asked)
        run(tmp_path / "cut", training, recorder, checkpoint_interval=4)
    assert left.value.code == 128 + number and "amid the validation; saved after epoch 2, step 3" in recorder.texts[-1]
    (state,) = saved_states(tmp_path / "cut")
    assert state.name == "state-00001-0000003.pth"  # the second epoch's steps are done, its validation is not
    assert run(tmp_path / "cut", Loader())[0] == whole
    assert (tmp_path / "cut/latest.pth").read_bytes() == (tmp_path / "whole/latest.pth").read_bytes()


def test_a_damaged_state_falls_back_to_the_one_before_it(tmp_path):
    whole, _ = run(tmp_path / "whole", Loader())
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", Loader(killed_at=(3, 1)), save_seconds=0)
    newest, before = saved_states(tmp_path / "cut")
    newest.write_bytes(newest.read_bytes()[:1000])
    recorder = Recorder()
    assert run(tmp_path / "cut", Loader(), recorder)[0] == whole
    assert any(newest.name in text and f"going on from {before.name}" in text for text in recorder.texts)
    for path in saved_states(tmp_path / "cut"):
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="no saved state can be used"):
        run(tmp_path / "cut", Loader())


def test_averaged_weights_are_what_is_kept(tmp_path):
    """The average starts at the weights after the first step, and takes a tenth of each later one."""
    seen = []

    def note_weights(optimizer, *_):
        seen.append(optimizer.param_groups[0]["params"][0].detach().clone())

    hook = register_optimizer_step_post_hook(note_weights)
    try:
        run(tmp_path, Loader(), norm=False, momentum=0.0, weight_decay=0.0, epochs=2, ema=0.9)
    finally:
        hook.remove()
    average = seen[0]
    for weight in seen[1:]:
        average = 0.9 * average + 0.1 * weight
    torch.testing.assert_close(load_checkpoint(tmp_path / "latest.pth")["state_dict"]["1.weight"], average)


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


class SlowLoader(Loader):
    def __iter__(self):
        for batch in super().__iter__():
            time.sleep(0.05)
            yield batch


@pytest.mark.parametrize("loader", [SlowLoader, Loader])
def test_an_epoch_that_waits_for_clips_says_how_long_and_what_would_help(tmp_path, loader):
    recorder = Recorder()
    run(tmp_path, loader(), recorder, advice="take more processes", epochs=2)
    texts = [text for text in recorder.texts if "waited for clips" in text]
    assert [text.partition("\t")[0] for text in texts] == ["Epoch [1]", "Epoch [2]"]
    shares = [float(text.partition("waited for clips ")[2].partition("%")[0]) for text in texts]
    assert [text.endswith("% of the time; take more processes") for text in texts] == [share > 20 for share in shares]
    assert loader is Loader or shares[1] > 20  # a process' first steps take long themselves


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


@pytest.mark.slow
def test_a_compiled_network_learns_the_same(tmp_path):
    plain, _ = run(tmp_path / "plain", Loader(), norm=False, epochs=1)
    compiled, _ = run(tmp_path / "compiled", Loader(), norm=False, epochs=1, is_compiled=True)
    assert compiled.train_curve[0]["loss"] == pytest.approx(plain.train_curve[0]["loss"], rel=1e-4)
    assert list(load_checkpoint(tmp_path / "compiled/latest.pth")["state_dict"]) == ["1.weight", "1.bias"]
