"""Saved states in a real DVC remote, which is a folder here: another machine goes on from the newest that is whole."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from actionzoo.engine.checkpoint import save_checkpoint
from actionzoo.engine.distributed import World
from actionzoo.engine.state import State, saved_states
from actionzoo.files.dvc_remote import remote_folder
from actionzoo.jobs import shared_states
from actionzoo.jobs.resume import spread_states, state_about
from actionzoo.jobs.shared_states import SharedStates
from actionzoo.records import RunRecord

RECORD = RunRecord(
    model="m", dataset="demo", recipe={"optim": {"lr": 0.1, "batch_norm": "local"}}, batch=8, lr=0.1, files={}
)
FOLDER = "unfinished/demo/m/0123456789abcdef"


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(shared_states, "RETRY_SECONDS", ())


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("repository")
    subprocess.run(["git", "init", "-q", root], check=True)
    for words in (["init", "-q"], ["remote", "add", "--quiet", "--default", "team", str(root / "remote")]):
        subprocess.run([sys.executable, "-m", "dvc", *words], cwd=root, check=True)
    return root


@pytest.fixture
def remote(repository):
    folder = remote_folder(repository, FOLDER)
    folder.delete(folder.names())
    return folder


@pytest.fixture
def on_machine(remote, tmp_path):
    """A function: name of a machine -> its shared states. All uploads are over when the test ends."""
    opened = []

    def make(name: str, seconds: float = 0) -> SharedStates:
        (tmp_path / name).mkdir()
        opened.append(SharedStates(remote, tmp_path / name, seconds))
        return opened[-1]

    yield make
    for shared in opened:
        shared.stop()


def save(folder: Path, epochs: int, *, best: int = 0, record: RunRecord = RECORD) -> tuple[Path, State]:
    state = State(finished_epochs=epochs, best_epoch=best)
    if best:
        save_checkpoint(folder / "best.pth", {"meta": {"epoch": best}, "state_dict": {"w": torch.ones(1) * best}})
    path = folder / f"state-{epochs:05d}-0000000.pth"
    save_checkpoint(path, {"about": state_about(record), "state": vars(state), "model": {"w": torch.ones(2) * epochs}})
    return path, state


def test_the_newest_state_goes_to_another_machine_with_the_best_weights_up_to_then(on_machine, remote, tmp_path):
    left = on_machine("left")
    for epochs, best in ((1, 1), (2, 1), (3, 3)):
        left.offer(*save(tmp_path / "left", epochs, best=best))
    save_checkpoint(tmp_path / "left/best.pth", {"meta": {"epoch": 4}, "state_dict": {}})  # the training goes on
    left.stop()
    assert remote.names() == ["best-00003.pth", "state-00003-0000000.pth"]

    on_machine("right").take_newest(RECORD, print)
    assert [path.name for path in saved_states(tmp_path / "right")] == ["state-00003-0000000.pth"]
    assert torch.load(tmp_path / "right/best.pth")["meta"]["epoch"] == 3


def test_states_wait_until_it_is_time_and_the_newest_of_them_is_uploaded_at_the_end(on_machine, remote, tmp_path):
    left = on_machine("left", seconds=3600)
    left.offer(*save(tmp_path / "left", 1))
    left.offer(*save(tmp_path / "left", 2))
    assert remote.names() == []
    left.stop()
    assert remote.names() == ["state-00002-0000000.pth"]


def test_an_older_state_than_its_own_is_left_alone(on_machine, tmp_path):
    left, right = on_machine("left"), on_machine("right")
    left.offer(*save(tmp_path / "left", 3))
    left.stop()
    save(tmp_path / "right", 4)
    right.take_newest(RECORD, print)
    assert [path.name for path in saved_states(tmp_path / "right")] == ["state-00004-0000000.pth"]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda remote, path: path.write_bytes(path.read_bytes()[:-400]), "damaged"),
        (lambda remote, path: path.write_bytes(b"not even a zip"), "damaged"),
        (lambda remote, path: save_checkpoint(path, {"about": 1, "state": vars(State())}), "no saved state"),
    ],
    ids=["cut off", "no checkpoint", "of something else"],
)
def test_a_state_that_is_not_whole_is_passed_over_for_the_one_before(
    on_machine, remote, repository, tmp_path, damage, said
):
    left = tmp_path / "elsewhere"
    left.mkdir()
    for epochs in (2, 3):
        path, _ = save(left, epochs)
        remote.put(path, path.name)
    damage(remote, repository / "remote/actionzoo" / FOLDER / "state-00003-0000000.pth")
    lines: list[str] = []
    on_machine("right").take_newest(RECORD, lines.append)
    assert [path.name for path in saved_states(tmp_path / "right")] == ["state-00002-0000000.pth"]
    assert lines[0].startswith("warning: not going on from state-00003") and said in lines[0]


def test_a_state_of_another_recipe_or_without_its_best_weights_is_not_taken(on_machine, remote, tmp_path):
    left = tmp_path / "elsewhere"
    left.mkdir()
    other = dataclasses.replace(RECORD, recipe={"optim": {"lr": 0.2, "batch_norm": "local"}})
    for path, _ in (save(left, 1, record=other), save(left, 2, best=2)):
        remote.put(path, path.name)
    lines: list[str] = []
    on_machine("right").take_newest(RECORD, lines.append)
    assert saved_states(tmp_path / "right") == []
    assert "best-00002.pth, the best weights up to then, is not there" in lines[0]
    assert "is of another training" in lines[1]


def test_the_end_of_a_training_deletes_its_states(on_machine, remote, tmp_path):
    left = on_machine("left")
    left.offer(*save(tmp_path / "left", 1, best=1))
    left.delete()
    assert remote.names() == []


def test_a_remote_that_cannot_be_written_does_not_stop_the_training(on_machine, repository, tmp_path, capsys):
    folder = repository / "remote/actionzoo"
    if folder.exists():
        folder.rename(repository / "aside")
    folder.parent.mkdir(exist_ok=True)
    folder.write_text("a file in the way")
    try:
        left = on_machine("left")
        left.offer(*save(tmp_path / "left", 1))
        left.stop()
        assert "warning: state-00001-0000000.pth is not shared: cannot" in capsys.readouterr().out
    finally:
        folder.unlink()


class TwoMachines(World):
    """The second of two machines that share no disk, beside the first one's folder."""

    def gather(self, value):
        first = saved_states(FIRST)
        theirs = first[0].name if isinstance(value, str) and first else first[0].read_bytes() if first else ""
        return [theirs, value]

    def wait(self):
        pass


FIRST = Path()


@pytest.mark.parametrize("epochs", [0, 2])
def test_a_machine_that_sees_another_folder_gets_the_state_of_the_first(tmp_path, monkeypatch, epochs):
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    save(second, 5)
    if epochs:
        save(first, epochs)
    monkeypatch.setattr(f"{__name__}.FIRST", first)
    spread_states(second, TwoMachines(rank=1, size=2, local_rank=0))
    assert [path.name for path in saved_states(second)] == [path.name for path in saved_states(first)]
    assert [path.read_bytes() for path in saved_states(second)] == [path.read_bytes() for path in saved_states(first)]


def test_a_disk_that_cannot_take_a_state_twice_does_not_stop_the_training(on_machine, remote, tmp_path, capsys):
    left = on_machine("left")
    (tmp_path / "left/outgoing").write_text("a file stands where the folder should be")
    left.offer(*save(tmp_path / "left", 1))
    left.stop()
    assert "state-00001-0000000.pth is not shared: " in capsys.readouterr().out
    assert remote.names() == []
