"""The data set of a project: it stays while something builds, and only its line changes."""

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from actionzoo.errors import UserError
from flows import data_set

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(data_set, "POLL_SECONDS", 0.05)


@pytest.fixture
def project(make_repository):
    folder = make_repository("stages: {}")
    for name in ("params.yaml", "published.yaml"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture
def waits() -> list[str]:
    return []


def name_in(project: Path) -> str:
    return data_set._name_in(project / "params.yaml")


def test_another_data_set_changes_its_line_alone_and_stays(project, waits):
    before = (project / "params.yaml").read_text().splitlines()
    with data_set.held(project, "kinetics400", waits.append) as name:
        assert name == name_in(project) == "kinetics400"
    after = (project / "params.yaml").read_text().splitlines()
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert [new.split("#")[0].strip() for _, new in changed] == ["name: kinetics400"]
    assert waits == []


def test_tried_only_it_is_put_back(project):
    before = (project / "params.yaml").read_bytes()
    with data_set.held(project, "mirror", print, put_back=True) as name:
        assert name == name_in(project) == "mirror"
    assert (project / "params.yaml").read_bytes() == before


def test_runs_of_the_same_data_set_go_side_by_side(project, waits):
    with (
        data_set.held(project, None, waits.append) as first,
        data_set.held(project, "demo", waits.append) as second,
    ):
        assert first == second == "demo"
    assert waits == []


def test_another_data_set_waits_for_the_runs_that_build(project, waits):
    waiting, entered = threading.Event(), threading.Event()

    def change() -> None:
        with data_set.held(project, "mirror", lambda cause: (waits.append(cause), waiting.set())):
            entered.set()

    thread = threading.Thread(target=change)
    with data_set.held(project, None, print):
        thread.start()
        assert waiting.wait(60)
        assert name_in(project) == "demo" and not entered.is_set()
    thread.join(60)
    assert entered.is_set() and name_in(project) == "mirror"
    assert waits == ["the runs that build demo in this project; mirror is built after them"]


def test_another_data_set_waits_for_a_dvc_of_a_terminal(project, waits, start):
    builds = start([sys.executable, "-c", "import time; time.sleep(600)"])
    locks = {"write": {"out": {"pid": builds.pid, "cmd": "dvc repro train"}}, "read": {}}
    (project / ".dvc" / "tmp" / "rwlock").write_text(json.dumps(locks))

    def wait(cause: str) -> None:
        waits.append(cause)
        assert name_in(project) == "demo"
        builds.kill()
        builds.wait()

    with data_set.held(project, "mirror", wait):
        assert name_in(project) == "mirror"
    assert waits == ["the DVC that builds in this project: dvc repro train"]


def test_another_data_set_waits_while_dvc_holds_its_lock(project, waits, start):
    script = "import time; from dvc.repo import Repo; r = Repo(); r.lock.lock(); print(1, flush=True); time.sleep(600)"
    holder = start([sys.executable, "-c", script], cwd=project, stdout=subprocess.PIPE, env=os.environ)
    assert holder.stdout.readline()

    def wait(cause: str) -> None:
        waits.append(cause)
        holder.kill()
        holder.wait()

    with data_set.held(project, "mirror", wait):
        assert name_in(project) == "mirror"
    assert waits == ["the DVC that works in this project"]


def test_params_that_do_not_hold_are_told(project):
    (project / "params.yaml").write_text("data: {name: demo}\n")
    with pytest.raises(UserError, match=r"params\.yaml"), data_set.held(project, "mirror", print):
        pass


def test_a_project_of_another_kind_has_no_data_set(make_repository, tmp_path):
    with data_set.held(make_repository("stages: {}", "other"), None, print) as name:
        assert name == ""
    with data_set.held(tmp_path, None, print) as name:
        assert name == ""
    assert not (tmp_path / ".dvc").exists()
