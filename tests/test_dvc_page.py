"""docs/dvc.md, typed as it stands: by real DVC, Git and shells, on the shipped files at small sizes."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from dvc.utils.hydra import apply_overrides
from mlflow import MlflowClient

PROJECT = Path(__file__).resolve().parents[1]
PAGE = PROJECT / "docs" / "dvc.md"
SLOWFAST = "slowfast_r50_video_4x16x1_256e_kinetics400_rgb"
SMALL = [
    *(f"datasets.demo.synthetic.{size}" for size in ("train_clips=3", "val_clips=2", "test_clips=1", "parts=1")),
    "datasets.demo.max_bad_share=0.2",
    f"datasets.demo.overrides.{SLOWFAST}.schedule.epochs=1",
    "datasets.demo.overrides.slowfast.schedule.log_interval=1",
]

pytestmark = pytest.mark.slow


def commands(page: str) -> list[str]:
    """The indented lines of a page, in its order."""
    return [line.strip() for line in page.splitlines() if re.match(r" {4}\S", line)]


class Session:
    """A shell in a project; what it printed for each command."""

    def __init__(self, root: Path, lines: list[str], environment: dict[str, str]):
        marked = "\n".join(f"echo '### {number}'\n{line}" for number, line in enumerate(lines))
        done = subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", marked], cwd=root, env=environment, check=False, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
        printed = re.split(r"^### \d+\n", done.stdout, flags=re.MULTILINE)[1:]
        assert done.returncode == 0, f"`{lines[len(printed) - 1]}` ended with status {done.returncode}:\n{printed[-1]}"
        self.printed = list(zip(lines, printed, strict=True))

    def of(self, start: str) -> list[str]:
        """What the commands printed that begin so."""
        return [printed for line, printed in self.printed if line.startswith(start)]


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A clone with the shipped files at small sizes, committed."""
    root = tmp_path_factory.mktemp("page") / "actionzoo"
    root.mkdir()
    for name in ("stages", "docs", ".dvc"):
        shutil.copytree(PROJECT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "tmp", "cache"))
    for name in ("dvc.yaml", ".dvcignore", ".gitignore", "params.yaml", "published.yaml"):
        shutil.copy(PROJECT / name, root / name)
    apply_overrides(str(root / "params.yaml"), SMALL)
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "Start"]):
        subprocess.run(["git", *words], cwd=root, env=environment_of(root), check=True)
    return root


def environment_of(root: Path) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("ACTIONZOO_", "MLFLOW_"))}
    return inherited | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        **{f"GIT_{who}_{what}": "zoo@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
        "PAGER": "cat",
        "COLUMNS": "200",
    }


@pytest.fixture(scope="module")
def session(project) -> Session:
    lines = [line.replace("/mnt/team", str(project.parent / "team")) for line in commands(PAGE.read_text())]
    return Session(project, lines, environment_of(project))


def trainings(root: Path) -> int:
    """Runs in the store of a workspace: a training that DVC restored records none."""
    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    (experiment,) = [found for found in client.search_experiments() if found.name == "demo"]
    return len(client.search_runs([experiment.experiment_id], f"tags.model = '{SLOWFAST}'"))


def test_nothing_is_trained_twice(session, project):
    # lr 0.1, 0.2 and 0.05 in the workspace and its experiments; 0.4 at the colleague's
    assert trainings(project) == 3
    assert trainings(project.parent / "colleague") == 1
    (back,) = session.of("dvc exp run --name back")
    assert f"Stage 'train@{SLOWFAST}' is cached" in back and "Running stage" not in back


def test_a_colleague_finds_everything_up_to_date(session):
    _, said, _ = session.of("dvc repro")
    assert "Data and pipelines are up to date." in said and "Running stage" not in said


def test_no_command_complains_of_models_that_were_never_built(session):
    for line, printed in session.printed:
        assert "failed to load" not in printed, line
        assert "No file hash info" not in printed, line


def test_metrics_are_a_table_of_the_models_that_ran(session):
    (table,) = session.of("dvc metrics show")
    header, *rows = [line.split() for line in table.splitlines() if line.strip()]
    assert {"top1", "top5", "protocol", "loss"} <= set(header) and "sha256" not in table
    assert all(SLOWFAST in row[0] for row in rows) and len(table.splitlines()[0]) <= 200


def test_experiments_are_a_table_of_what_differs(session):
    *_, table = session.of("dvc exp show")
    assert all(name in table for name in ("faster", "back", "grid-1", "grid-2", "loss", "val_top1", "optim.lr"))
    assert not re.search(r"[0-9a-f]{32}", table) and "seed" not in table


def test_an_experiment_changes_the_lines_that_it_sets(session, project):
    """By the branch that the page makes of one."""
    diff = subprocess.run(
        ["git", "diff", "-U0", "HEAD~1", "faster-branch", "--", "params.yaml"], cwd=project, check=True, text=True,
        capture_output=True).stdout  # fmt: skip
    changed = [line for line in diff.splitlines() if re.match(r"[+-] ", line)]
    assert [line.split()[1:] for line in changed] == [["lr:", "0.1"], ["lr:", "0.2"]]


def test_the_script_for_a_team_leaves_a_clone_with_nothing_to_do(session, project):
    environment = environment_of(project) | {"PWD": str(project)}
    clone, remote = project.parent / "another", project.parent / "another remote"
    subprocess.run(["sh", "docs/team.sh", str(remote), str(clone)], cwd=project, env=environment, check=True)
    done = Session(clone, ["dvc repro"], environment | {"ACTIONZOO_DATA": str(project / "data")})
    assert "Data and pipelines are up to date." in done.printed[0][1]
