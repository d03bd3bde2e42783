"""What is left when a process is killed."""

import shlex
import subprocess
import sys

import pytest

from actionzoo.process import mend_dvc
from flows import process as keeper
from tests.dvc_graph import environment, is_running, kill, start_dvc, wait_for, write_graph, written


def test_a_list_of_files_in_use_that_was_cut_off_is_put_aside(tmp_path):
    path = tmp_path / ".dvc/tmp/rwlock"
    mend_dvc(tmp_path)  # there is none
    path.parent.mkdir(parents=True)
    path.write_text('{"data/a": {"write": {"pid": 1}}}')
    mend_dvc(tmp_path)
    assert path.is_file()
    for cut_off in ("", '{"data/a": {"wri'):
        path.write_text(cut_off)
        mend_dvc(tmp_path)
        assert not path.exists() and path.with_name("rwlock.damaged").read_text() == cut_off


COMMANDS = {
    "child of DVC": "python stage.py",
    "a shell between": "python stage.py; true",
    "two shells and a child": "sh -c 'sh -c \"python stage.py; true\"; true'",
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_stage_whose_dvc_is_killed_during_its_imports_does_nothing(command, tmp_path):
    write_graph(tmp_path, command)
    dvc = start_dvc(tmp_path)
    stage = written(tmp_path / "importing")
    kill(dvc)
    (tmp_path / "go").touch()
    (tmp_path / "finish").touch()
    wait_for(lambda: not is_running(stage))
    assert not (tmp_path / "working").exists() and not (tmp_path / "out").exists()
    assert "made: error: the DVC that started stage made has ended" in (tmp_path / "dvc.log").read_text()


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_stage_at_work_ends_with_its_dvc(command, tmp_path):
    write_graph(tmp_path, command)
    (tmp_path / "go").touch()
    dvc = start_dvc(tmp_path)
    stage = written(tmp_path / "importing")
    wait_for((tmp_path / "working").exists)
    kill(dvc)
    wait_for(lambda: not is_running(stage))
    assert not (tmp_path / "out").exists()


LIBRARY = "from dvc.repo import Repo\nwith Repo() as repo: repo.reproduce()"


@pytest.mark.parametrize(
    ("words", "kept"),
    [(("-m", "dvc", "repro"), False), (("-m", "dvc", "repro"), True), (("-c", LIBRARY), False)],
    ids=["by hand", "under a keeper of the flow", "as a library"],
)
def test_a_stage_whose_dvc_lives_is_done(words, kept, tmp_path):
    write_graph(tmp_path, COMMANDS["a shell between"])
    for name in ("go", "finish"):
        (tmp_path / name).touch()
    command = [sys.executable, *words]
    done = subprocess.run(keeper.kept(command) if kept else command, cwd=tmp_path, env=environment(), check=False)
    assert done.returncode == 0 and (tmp_path / "out").read_text() == "made"


def test_a_name_of_a_stage_that_no_dvc_started_is_told():
    code = "from actionzoo.process import stage\nwith stage('made'): print('worked')"
    command = ["env", "DVC_STAGE=made", sys.executable, "-c", code]
    # a shell below this test, which is in another group and so not the script that uses DVC as a library
    shell = ["sh", "-c", f"{shlex.join(command)}; exit $?"]
    done = subprocess.run(shell, capture_output=True, text=True, start_new_session=True, check=False)
    assert done.returncode == 1 and "unset the environment variable DVC_STAGE" in done.stderr and not done.stdout
