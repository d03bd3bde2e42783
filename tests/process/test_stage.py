"""The frame of commands: the end with DVC, and errors as sentences."""

import os
import shlex
import signal
import subprocess
import sys

import pytest

from actionzoo.files.locks import try_lock
from actionzoo.process.stage import repair_rwlock
from actionzoo.process.supervisor import supervised
from tests.dvc_graph import environment, kill, start_dvc, write_graph, written
from tests.processes import is_running, wait_for


def test_a_list_of_files_in_use_that_was_cut_off_is_put_aside(tmp_path):
    path = tmp_path / ".dvc/tmp/rwlock"
    repair_rwlock(tmp_path)  # there is none
    path.parent.mkdir(parents=True)
    path.write_text('{"data/a": {"write": {"pid": 1}}}')
    repair_rwlock(tmp_path)
    assert path.is_file()
    for cut_off in ("", '{"data/a": {"wri'):
        path.write_text(cut_off)
        repair_rwlock(tmp_path)
        assert not path.exists() and path.with_name("rwlock.damaged").read_text() == cut_off


def test_a_damaged_list_of_files_in_use_stays_while_a_process_may_need_it(tmp_path):
    path = tmp_path / ".dvc/tmp/rwlock"
    write_graph(tmp_path)
    dvc = start_dvc(tmp_path)
    written(tmp_path / "importing")
    path.write_text('{"wri')
    repair_rwlock(tmp_path)
    assert path.exists()  # a DVC of this repository
    kill(dvc)
    (tmp_path / "go").touch()  # the stage sees that DVC has ended
    path.write_text(f'{{"write": {{"data/a": {{"pid": {os.getppid()}, "cm')
    repair_rwlock(tmp_path)
    assert path.exists()  # a process that it names
    path.write_text('{"wri')
    with path.with_name("rwlock.lock").open("a") as guard:
        assert try_lock(guard)
        repair_rwlock(tmp_path)
        assert path.exists()  # a process that writes it
    repair_rwlock(tmp_path)
    assert not path.exists()


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
    ("words", "is_supervised"),
    [(("-m", "dvc", "repro"), False), (("-m", "dvc", "repro"), True), (("-c", LIBRARY), False)],
    ids=["by hand", "under a supervisor of the flow", "as a library"],
)
def test_a_stage_whose_dvc_lives_is_done(words, is_supervised, tmp_path):
    write_graph(tmp_path, COMMANDS["a shell between"])
    for name in ("go", "finish"):
        (tmp_path / name).touch()
    command = [sys.executable, *words]
    done = subprocess.run(
        supervised(command) if is_supervised else command, cwd=tmp_path, env=environment(), check=False
    )
    assert done.returncode == 0 and (tmp_path / "out").read_text() == "made"


def test_a_name_of_a_stage_that_no_dvc_started_is_told():
    code = "from actionzoo.process.stage import stage\nwith stage('made'): print('worked')"
    command = ["env", "DVC_STAGE=made", sys.executable, "-c", code]
    # a shell below this test, which is in another group and so not the script that uses DVC as a library
    shell = ["sh", "-c", f"{shlex.join(command)}; exit $?"]
    done = subprocess.run(shell, capture_output=True, text=True, start_new_session=True, check=False)
    assert done.returncode == 1 and "unset the environment variable DVC_STAGE" in done.stderr and not done.stdout


def in_stage(code: str, **how) -> subprocess.CompletedProcess:
    code = (
        f"import errno, os, subprocess, sys\nfrom actionzoo.process.stage import stage\nwith stage('made'):\n    {code}"
    )
    buffered = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    return subprocess.run(
        [sys.executable, "-c", code], text=True, stderr=subprocess.PIPE, check=False, env=buffered, **how
    )


FAULTS = {
    "bytearray(1 << 60)": "no memory left",
    "raise RuntimeError('CPUAllocator: can\\'t allocate memory: 7 bytes')": "allocate memory",
    "import threading; raise RuntimeError('can\\'t start new thread')": "start new thread",
    "import json; json.loads('[' * 100000)": "nested too deeply",
    "exec('def f(): return f()'); f()": "nested too deeply",
    "open('a' * 300)": "File name too long at aaa.*; use a shorter name",
    "open('file/below')": "Not a directory at file/below; a file stands where",
    "open('.', 'w')": "Is a directory at .; a folder stands where",
    "open('loop')": "Too many levels of symbolic links at loop",
    "open('absent')": "No such file or directory at absent",
    "os.mkdir('file')": "File exists at file",
    "print([open('file') for _ in iter(int, 1)])": "Too many open files at file; raise the limit",
    "raise OSError(errno.EIO, os.strerror(errno.EIO), 'disk')": "Input/output error at disk; check the machine",
    "raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))": "Resource temporarily unavailable; check the machine",
    "open('latin', encoding='utf-8').read()": "no utf-8 (at byte 3: e9); save it as UTF-8",
    "open('out', 'w', encoding='ascii').write('\\u4e2d')": "cannot be written as ascii",
    "subprocess.Popen('true', stdin=-1).stdin.write(b'a' * 10**7)": "the program that reads this has ended",
}


@pytest.mark.parametrize(("code", "said"), FAULTS.items(), ids=FAULTS.values())
def test_what_the_machine_or_the_input_lacks_is_told_in_a_sentence(code, said, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    done = in_stage(code, cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr and done.stderr.startswith("made: error: ")
    assert all(part in done.stderr for part in said.split(".*")), done.stderr


def test_a_mistake_of_ours_keeps_its_traceback():
    done = in_stage("{}['key']")
    assert done.returncode == 1 and "Traceback" in done.stderr and "KeyError: 'key'" in done.stderr


@pytest.mark.parametrize("code", ["print('a\\n' * 10**6)", "print('a')", "print('a'); sys.exit(3)"])
def test_a_reader_that_has_enough_is_no_error(code):
    reader, writer = os.pipe()
    os.close(reader)
    done = in_stage(code, stdout=writer)
    os.close(writer)
    assert done.stderr == "" and done.returncode == (3 if "exit" in code else 128 + signal.SIGPIPE)


def test_an_output_on_a_full_disk_is_told():
    with open("/dev/full", "w") as full:
        done = in_stage("print('a')", stdout=full)
    assert done.returncode == 1 and done.stderr.startswith("made: error: No space left on device; free some")
    assert done.stderr.count("\n") == 1
