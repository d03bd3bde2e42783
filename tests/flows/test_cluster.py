"""The flow's Dask cluster: there while it runs, found by its stages, of loopback alone, and gone with it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from actionzoo.errors import UserError
from flows import cluster

DATA = """
    stages:
      resize:
        cmd: {python} resize.py
        deps: [in.txt]
        outs: [videos]
    """

# As stages/resize.py does, of a small archive and at a small size.
RESIZE = """
import os
from pathlib import Path
from actionzoo.files.data_folder import DataFolder
from actionzoo.kinetics.execution import Execution
from actionzoo.kinetics.resize import VideoFormat, resize
from actionzoo.kinetics.transcode import Encode
address = os.environ.get("DASK_SCHEDULER_ADDRESS")
print("scheduler:", address)
execution = Execution(scratch=Path("scratch"), scheduler=address)
video_format = VideoFormat(64, Encode(preset="ultrafast"))
archive, videos = DataFolder.at(Path("archive")), DataFolder.at(Path("videos"))
print(resize(archive, videos, execution, video_format=video_format, max_bad_share=1.0))
"""


@pytest.fixture
def repository(make_repository, tiny_mirror) -> Path:
    from tests.kinetics.data_stages import make_archive

    made = make_repository(DATA.format(python=sys.executable))
    (made / "resize.py").write_text(RESIZE)
    make_archive(tiny_mirror, made, ["train", "val"])
    return made


@pytest.mark.slow
def test_with_dask_local_the_stages_find_workers_that_end_with_the_flow(repository, with_server, left_running):
    command = [sys.executable, "-m", "flows.pipeline", "--dask", "local"]
    done = subprocess.run(
        command, cwd=repository, env=with_server, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, done.stdout
    assert "scheduler: tls://127.0.0.1:" in done.stdout
    assert "resize: 8 of 10 clips in 5 shards" in done.stdout
    assert [line for line in done.stdout.splitlines() if "distributed" in line or "dashboard" in line] == []
    assert left_running() == []


def test_killed_its_host_leaves_no_worker_running(environment, start, wait_for, left_running, tmp_path):
    code = """
import time
from pathlib import Path
from flows import cluster
with cluster.joined("local"):
    Path("up").touch()
    time.sleep(600)
"""
    host = start([sys.executable, "-c", code], cwd=tmp_path, env=environment)
    wait_for((tmp_path / "up").exists)
    assert any("spawn_main" in running for running in left_running(0))
    os.kill(host.pid, signal.SIGKILL)
    assert left_running() == []


def test_without_dask_nothing_is_started_nor_said():
    with cluster.joined(None) as variables:
        assert variables == {}
    with cluster.joined("") as variables:
        assert variables == {}


def test_where_no_scheduler_answers_the_flow_does_not_begin(monkeypatch):
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 0.5)
    with (
        pytest.raises(
            UserError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:1 .*or `local` for workers on"
        ),
        cluster.joined("tcp://127.0.0.1:1"),
    ):
        pass


@pytest.mark.slow
def test_only_who_has_the_key_may_talk_to_the_local_cluster():
    ask = """
import os, distributed
client = distributed.Client(os.environ["DASK_SCHEDULER_ADDRESS"], timeout=60)
print(client.run(os.getpid))
"""
    with cluster.joined("local") as variables:
        with_key = subprocess.run(
            [sys.executable, "-c", ask], env=os.environ | variables, capture_output=True, text=True
        )
        address = {"DASK_SCHEDULER_ADDRESS": variables["DASK_SCHEDULER_ADDRESS"]}
        without = subprocess.run([sys.executable, "-c", ask], env=os.environ | address, capture_output=True, text=True)
    assert with_key.returncode == 0 and "tls://127.0.0.1:" in with_key.stdout, with_key.stderr
    assert without.returncode != 0 and "TLS" in without.stderr
