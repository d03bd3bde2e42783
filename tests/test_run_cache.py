"""DVC's run cache on the real graph: what was built is restored, and a kill repeats nothing. In experiments:
tests/test_dvc_page.py."""

import hashlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.test_end_to_end import PROJECT, SLOWFAST, Workspace, small

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
        for name in ("train", "evaluate"):
            with (root / "stages" / f"{name}.py").open("a") as file:
                file.write(EPILOGUE.format(starts=str(self.starts), kill=str(self.kill)))

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
    workspace.repro(f"evaluate@{SLOWFAST}")
    assert sorted(workspace.started()) == ["evaluate", "train"]
    workspace.first = workspace.outputs()
    return workspace


@pytest.mark.parametrize(
    ("stage", "section", "values"),
    [("train", "optim", {"lr": 0.05}), ("evaluate", "test", {"average_clips": "score"})],
    ids=["train", "evaluate"],
)
def test_work_that_was_finished_when_dvc_was_killed_is_published_again(built, stage, section, values):
    """And a forced stage does its work anew, with the same bytes: no output holds a time or the id of a run."""
    name = f"{stage}@{SLOWFAST}"
    before = yaml.safe_load((built.root / "dvc.lock").read_text())["stages"][name]
    built.params["recipes"][SLOWFAST][section] |= values
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
    assert built.started() == (["evaluate"] if stage == "train" else [])
    made = built.outputs()
    _, printed = built.repro("-f", "-s", name)
    assert "published again" not in printed and built.started() == [stage]
    assert built.outputs() == made != built.first


def test_values_there_and_back_train_and_test_once(built):
    """The tests before this one went there."""
    recipe, shipped = built.params["recipes"][SLOWFAST], yaml.safe_load((PROJECT / "params.yaml").read_text())
    assert recipe != shipped["recipes"][SLOWFAST]
    built.params["recipes"][SLOWFAST] = shipped["recipes"][SLOWFAST]
    built.save()
    _, printed = built.repro(f"evaluate@{SLOWFAST}")
    assert f"Stage 'train@{SLOWFAST}' is cached" in printed
    assert built.started() == [] and built.outputs() == built.first


def test_logs_follow_the_training_that_dvc_restored(built):
    """The newest log is that of the learning rate that was given up."""
    from actionzoo.records import RunRecord
    from actionzoo.run_files import RunFiles, logs_of

    files = RunFiles(built.root, "demo", SLOWFAST)
    found = logs_of(files.run, RunRecord.read(files.recipe).log_mark)
    assert found and max(files.run.glob("*.log.json")) not in found
