"""DVC's run cache on the real graph: what was built is restored, also in experiments, and a kill repeats nothing."""

import hashlib
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.test_end_to_end import SLOWFAST, Workspace, small

pytestmark = pytest.mark.slow

EPILOGUE = """
if __name__ == "__main__":  # a line for each start; kills DVC once, after the work and before the commit
    import os, signal
    from pathlib import Path
    from actionzoo.process.ancestors import dvc_above
    with open({starts!r}, "a") as file:
        file.write(os.environ["DVC_STAGE"] + "\\n")
    if Path({kill!r}).exists():
        Path({kill!r}).unlink()
        os.kill(dvc_above(os.environ["DVC_STAGE"]).pid, signal.SIGKILL)
"""


class Counted(Workspace):
    """A workspace whose stages of runs note their starts."""

    def __init__(self, root: Path):
        super().__init__(root)
        self.starts, self.kill = root.parent / "starts.txt", root.parent / "kill"
        for name in ("train", "evaluate", "benchmark"):
            with (root / "stages" / f"{name}.py").open("a") as file:
                file.write(EPILOGUE.format(starts=str(self.starts), kill=str(self.kill)))

    def commit(self) -> None:
        git = ["git", "-C", self.root, "-c", "user.name=x", "-c", "user.email=x@example.org"]
        subprocess.run([*git, "add", "-A"], check=True)
        subprocess.run([*git, "commit", "--allow-empty", "-qm", "all"], check=True)

    def started(self) -> list[str]:
        """The stages that started since the last call."""
        lines = self.starts.read_text().splitlines() if self.starts.exists() else []
        self.starts.write_text("")
        return [line.partition("@")[0] for line in lines]

    def outputs(self) -> dict[str, str]:
        """Path -> hash of all files of runs and their tables, but for logs and who ran it."""
        paths = [path for kind in ("runs", "metrics", "plots") for path in (self.root / kind / "demo").rglob("*")]
        return {
            str(path.relative_to(self.root)): hashlib.md5(path.read_bytes()).hexdigest()
            for path in paths
            if path.is_file() and not re.match(r"\d{8}_\d{6}\.", path.name)
        }


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Counted:
    workspace = Counted(tmp_path_factory.mktemp("cached") / "actionzoo")
    small(workspace.params)
    workspace.params["runtime"] |= {"workers": 1}
    workspace.save()
    workspace.commit()
    workspace.repro(f"evaluate@{SLOWFAST}", f"benchmark@{SLOWFAST}")
    assert sorted(workspace.started()) == ["benchmark", "evaluate", "train"]
    workspace.commit()
    return workspace


def test_dvc_shows_metrics_and_plots_of_what_was_built_and_complains_of_nothing(built):
    printed = [built.run("dvc", *words.split()) for words in ("metrics show", "plots show", "exp show")]
    assert not any("failed to load" in text for text in printed)
    for name in ("train.json", "test.json", "speed.json"):
        assert f"{SLOWFAST}/{name}" in printed[0]


def test_forced_stages_do_their_work_anew_and_give_the_same_bytes(built):
    """No output of a training or an evaluation holds a time or the id of a run."""
    before = built.outputs()
    built.repro("-f", "-s", f"train@{SLOWFAST}", f"evaluate@{SLOWFAST}")
    assert built.started() == ["train", "evaluate"]
    assert built.outputs() == before


def test_a_learning_rate_there_and_back_trains_once(built):
    optim = built.params["recipes"][SLOWFAST]["optim"]
    before, known = optim["lr"], built.outputs()
    optim["lr"] = before / 2
    built.save()
    built.repro(f"evaluate@{SLOWFAST}", f"benchmark@{SLOWFAST}")
    assert built.started() == ["train", "evaluate"]
    half = built.outputs()
    optim["lr"] = before
    built.save()
    built.repro(f"evaluate@{SLOWFAST}", f"benchmark@{SLOWFAST}")
    assert built.started() == [] and built.outputs() == known != half


def test_logs_follow_the_training_that_dvc_restored(built):
    """The newest log is that of the learning rate that was given up."""
    from actionzoo.records import RunRecord
    from actionzoo.run_files import RunFiles, logs_of

    files = RunFiles(built.root, "demo", SLOWFAST)
    found = logs_of(files.run, RunRecord.read(files.recipe).log_mark)
    assert found and max(files.run.glob("*.log.json")) not in found


def test_a_queued_experiment_with_a_recipe_that_was_trained_trains_nothing(built):
    built.commit()
    lr = built.params["recipes"][SLOWFAST]["optim"]["lr"] / 2
    built.run("dvc", "exp", "run", "--queue", "-S", f"recipes.{SLOWFAST}.optim.lr={lr}", f"evaluate@{SLOWFAST}")
    built.run("dvc", "queue", "start")
    deadline = time.monotonic() + 600
    while "Success" not in (status := built.run("dvc", "queue", "status")):
        assert "Failed" not in status and time.monotonic() < deadline, status
        time.sleep(2)
    assert built.started() == []


@pytest.mark.parametrize("stage", ["train", "evaluate"])
def test_work_that_was_finished_when_dvc_was_killed_is_published_again(built, stage):
    name = f"{stage}@{SLOWFAST}"
    before = yaml.safe_load((built.root / "dvc.lock").read_text())["stages"][name]
    built.params["recipes"][SLOWFAST]["optim" if stage == "train" else "test"] |= (
        {"weight_decay": 0.0002} if stage == "train" else {"average_clips": "score"}
    )
    built.save()
    built.kill.touch()
    killed = subprocess.run(
        [sys.executable, "-m", "dvc", "repro", name], cwd=built.root, env=built.environment,
        text=True, capture_output=True, check=False)  # fmt: skip
    assert killed.returncode == -9 and built.started() == [stage]
    assert yaml.safe_load((built.root / "dvc.lock").read_text())["stages"][name] == before
    finished = built.outputs()
    ran, printed = built.repro(name)
    assert ran == [name] and "its files were published again" in printed
    assert not re.search(r"^Epoch \[", printed, re.MULTILINE)
    assert built.outputs() == finished
    built.started()
    built.repro(f"evaluate@{SLOWFAST}")
    _, printed = built.repro("-f", "-s", name)
    assert "published again" not in printed  # a forced stage does its work
    built.started()
