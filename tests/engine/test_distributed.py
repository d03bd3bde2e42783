"""Two processes over gloo, started by torchrun: the same training as one process with the same batch."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from actionzoo.engine.checkpoint import load_checkpoint
from actionzoo.engine.state import saved_states

PROJECT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow


def trained(out: Path, processes: int, *arguments: object) -> Path:
    out.mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [*command, "-m", "tests.engine.pair", str(out), *map(str, arguments)], cwd=PROJECT, env=environment,
        text=True, capture_output=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def read(out: Path) -> list[dict]:
    return [
        {key: value for key, value in line.items() if key not in ("time", "data_time", "iter")}
        for line in json.loads((out / "events.json").read_text())
    ]


def test_two_processes_with_synchronised_norms_train_as_one_with_the_whole_batch(tmp_path):
    one = trained(tmp_path / "one", 1, 8, 1, "local")
    two = trained(tmp_path / "two", 2, 4, 1, "sync")
    assert len(read(one)) == len(read(two)) == 9
    for ours, theirs in zip(read(two), read(one), strict=True):
        assert ours.pop("mode") == theirs.pop("mode")
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)
    ours, theirs = (load_checkpoint(out / "latest.pth")["state_dict"] for out in (two, one))
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-5)
    # one log, each clip validated once
    assert [line["mode"] for line in read(two)].count("val") == 3


def test_two_processes_see_their_own_batches_as_ghost_norms_of_one_do(tmp_path):
    """The weights are the same; running statistics are not: of two processes the first one's are kept."""
    ghost = trained(tmp_path / "ghost", 1, 8, 1, "ghost")
    two = trained(tmp_path / "two", 2, 4, 1, "local")
    losses = [[line["loss"] for line in read(out) if line["mode"] == "train"] for out in (two, ghost)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


SLOW_PAIR = """
import sys, time
from pathlib import Path
import torch
from actionzoo.engine.data import TrainingData
from actionzoo.engine.distributed import joined
from actionzoo.engine.listener import Listener
from actionzoo.engine.state import StateFolder
from actionzoo.engine.train import train
from tests.engine.pair import Loader, network
from tests.engine.small_training import plan, to_input

class Slow(Loader):
    def __iter__(self):
        for batch in super().__iter__():
            time.sleep(0.05)
            yield batch

out = Path(sys.argv[1])

class Notes(Listener):
    def on_event(self, event, step):
        (out / "begun").touch()

    def on_text(self, text):
        (out / "last_text").write_text(text)

torch.set_num_threads(1)
with joined("cpu") as world:
    data = TrainingData(Slow(4, world), Slow(4, world), to_input)
    endless = plan(epochs=100000, val_interval=100000, log_interval=1, checkpoint_interval=100000)
    try:
        train(network(), data, endless, StateFolder(out), Notes(), world)
    except SystemExit as left:
        (out / f"left-{world.rank}").write_text(str(left.code))
        raise
"""


def test_ctrl_c_saves_once_and_ends_all_processes(tmp_path):
    """It reaches all of them from the terminal, and the copies once more from torchrun."""
    (tmp_path / "pair.py").write_text(SLOW_PAIR)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")])}
    torchrun = subprocess.Popen(
        [*command, tmp_path / "pair.py", tmp_path], cwd=PROJECT, env=environment, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=hear_ctrl_c)  # fmt: skip
    while not (tmp_path / "begun").exists():
        assert torchrun.poll() is None
        time.sleep(0.05)
    os.killpg(torchrun.pid, signal.SIGINT)
    torchrun.wait(60)
    assert [(tmp_path / f"left-{rank}").read_text() for rank in (0, 1)] == ["130", "130"]
    assert len(saved_states(tmp_path)) == 1 and "and saved; run the same" in (tmp_path / "last_text").read_text()


def hear_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
