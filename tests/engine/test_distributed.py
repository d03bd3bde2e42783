"""Two processes over gloo, started by torchrun: the same training as one process with the same batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from actionzoo.engine.checkpoint import load_checkpoint

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
