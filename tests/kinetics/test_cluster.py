"""The workers of a Dask cluster of real processes make parts: the same bytes, whichever worker is lost on the way.

Two schedulers serve all tests: one with two workers, and one where every test brings the workers that it needs.
"""

import concurrent.futures
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from actionzoo.errors import UserError
from actionzoo.kinetics import cluster
from actionzoo.kinetics.part_records import PartClip, read_record, write_record
from actionzoo.kinetics.parts import publish
from actionzoo.kinetics.shards import ShardWriter
from actionzoo.kinetics.transcode import find_ffmpeg
from actionzoo.params import load_params
from tests.kinetics.data_stages import make_archive, make_frames, make_videos
from tests.kinetics.files import file_of, hashes, without_key
from tests.kinetics.small_films import film
from tests.kinetics.small_mirror import as_members, write_split

PROJECT = Path(__file__).resolve().parents[2]
SAY = "{} is made".format  # it asks nothing of a worker


def inodes(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_ino for path in folder.rglob("part_*")}


class Cluster:
    """A scheduler and workers, each a process that `dask` starts, on loopback."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.folder, self.workers = folder, []
        fixed = {"DASK_TEMPORARY_DIRECTORY": str(folder), "DASK_LOGGING__DISTRIBUTED": "info"}
        self.environment = os.environ | fixed | settings
        about = folder / "scheduler.json"
        self.scheduler = self._start("scheduler", "--port", "0", "--scheduler-file", str(about))
        while not about.exists() or not about.read_text().strip():
            assert self.scheduler.poll() is None
            time.sleep(0.05)
        self.address = json.loads(about.read_text())["address"]

    def add_worker(self, *options: str, program: tuple[str, ...] = (), **settings: str) -> subprocess.Popen:
        self.environment |= settings
        arguments = ["worker", self.address, "--nthreads", "1", *(options or ["--no-nanny"])]
        self.workers.append(self._start(*arguments, program=program))
        return self.workers[-1]

    def end_workers(self) -> None:
        for worker in self.workers:
            worker.terminate()
        for worker in self.workers:
            worker.wait(30)
        self.workers.clear()

    def end(self) -> None:
        self.end_workers()
        self.scheduler.terminate()
        self.scheduler.wait(30)

    def _start(self, *arguments: str, program: tuple[str, ...] = ()) -> subprocess.Popen:
        command = [sys.executable, *(program or ["-m", "dask"]), *arguments, "--host", "127.0.0.1", "--no-dashboard"]
        with open(self.folder / "log", "ab") as log:
            return subprocess.Popen(command, env=self.environment, cwd=self.folder, stdout=log, stderr=log)


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory) -> Iterator[Cluster]:
    started = Cluster(tmp_path_factory.mktemp("dask"))
    started.add_worker()
    started.add_worker()
    yield started
    started.end()


@pytest.fixture(scope="module")
def strict_scheduler(tmp_path_factory) -> Iterator[Cluster]:
    """Its Dask gives a part up as soon as one worker dies of it: then it is on us to find out which part it was."""
    started = Cluster(tmp_path_factory.mktemp("strict"), DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES="0")
    yield started
    started.end()


@pytest.fixture
def own_workers(strict_scheduler) -> Iterator[Cluster]:
    before = dict(strict_scheduler.environment)
    yield strict_scheduler
    strict_scheduler.end_workers()
    strict_scheduler.environment = before


@pytest.fixture(scope="module")
def here(tiny_archive) -> Path:
    """A folder with what this machine makes by itself: videos and frames."""
    folder = tiny_archive.parent / "here"
    make_videos(tiny_archive, folder / "videos")
    make_frames(folder / "videos", folder / "frames")
    return folder


def test_without_a_scheduler_dask_is_not_even_imported(tiny_archive, tmp_path):
    code = """
import sys
from pathlib import Path
sys.modules["dask"] = sys.modules["distributed"] = None  # so that an import would fail
from actionzoo.files.data_folder import DataFolder
from actionzoo.kinetics.execution import Execution
from actionzoo.kinetics.frames import extract_frames
from actionzoo.kinetics.resize import VideoFormat, resize
from actionzoo.kinetics.transcode import Encode
execution = Execution(scratch=Path("scratch"), jobs=2)
video_format = VideoFormat(32, Encode(preset="ultrafast"))
archive, videos = DataFolder.at(Path(sys.argv[1])), DataFolder.at(Path("videos"))
resize(archive, videos, execution, video_format=video_format, max_bad_share=1.0)
print(extract_frames(videos, DataFolder.at(Path("frames")), execution, max_bad_share=1.0))
"""
    done = subprocess.run([sys.executable, "-c", code, tiny_archive], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.startswith("frames: 12 of 14 clips"), done.stderr


@pytest.mark.slow
def test_workers_make_the_same_bytes_as_one_machine(tiny_archive, here, two_workers, tmp_path):
    reports = []

    def on_progress(*state) -> None:
        reports.append(state)

    line = make_videos(tiny_archive, tmp_path / "videos", scheduler=two_workers.address, on_progress=on_progress)
    assert line.startswith("resize: 12 of 14 clips in 7 shards, 1 replaced, 1 missing, 1 corrupt, 1 unlisted (")
    make_frames(tmp_path / "videos", tmp_path / "frames", scheduler=two_workers.address, on_progress=on_progress)
    assert hashes(tmp_path / "videos") == hashes(here / "videos")
    assert hashes(tmp_path / "frames") == hashes(here / "frames")
    assert [state for state in reports if state[1] == state[2]] == [
        ("resize to 64, clips", 14, 14),
        ("extract frames, clips", 12, 12),
    ]
    assert [path for path in (tmp_path / "scratch").iterdir() if path.suffix != ".lock"] == []


def test_a_stage_takes_the_address_as_an_option_or_from_the_environment(two_workers, tmp_path):
    """With relative paths, as they stand in a project."""
    shutil.copy(PROJECT / "params.yaml", tmp_path)
    shutil.copy(PROJECT / "published.yaml", tmp_path)
    own_archive(tmp_path / "data/demo", {"a": film(8)}, {"b": film(8)})
    for name, options, variables in (
        ("resize", ["--scheduler", two_workers.address], {}),
        ("frames", [], {"DASK_SCHEDULER_ADDRESS": two_workers.address}),
    ):
        before = (two_workers.folder / "log").read_text().count("Receive client connection: Client-actionzoo")
        command = [sys.executable, PROJECT / f"stages/{name}.py", "256", *options]
        environment = os.environ | variables | {"DASK_LOGGING__DISTRIBUTED": "error"}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0 and done.stderr == "", done.stderr
        assert done.stdout.splitlines()[-1].startswith(f"{name}: 2 of 2 clips in 2 shards (data/")
        after = (two_workers.folder / "log").read_text().count("Receive client connection: Client-actionzoo")
        assert after == before + 1


def test_the_environment_wins_over_params_also_if_it_says_none(tmp_path, monkeypatch):
    text = (PROJECT / "params.yaml").read_text()
    assert "\n  scheduler: " in text
    (tmp_path / "params.yaml").write_text(text.replace("\n  scheduler: ", "\n  scheduler: tcp://written:1 "))
    shutil.copy(PROJECT / "published.yaml", tmp_path)
    runtime = load_params(tmp_path / "params.yaml").runtime
    monkeypatch.delenv("DASK_SCHEDULER_ADDRESS", raising=False)
    assert runtime.scheduler_address == "tcp://written:1"
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", "tcp://set:1")
    assert runtime.scheduler_address == "tcp://set:1"
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", "")
    assert runtime.scheduler_address is None


def test_what_a_lost_worker_has_finished_is_not_made_again(tiny_archive, here, two_workers, tmp_path, monkeypatch):
    """Its record is there, and only the news of it was lost: the run began before the part was finished."""
    shutil.copytree(here / "videos", tmp_path / "videos")
    file_of(tmp_path / "videos", "val/part_001.json").unlink()
    before = inodes(tmp_path / "videos")
    # in this process alone: the workers look for themselves
    monkeypatch.setattr("actionzoo.kinetics.resize._ShardBuilder._finished", lambda *_: None)
    make_videos(tiny_archive, tmp_path / "videos", scheduler=two_workers.address)
    after = inodes(tmp_path / "videos")
    assert {without_key(name) for name in after if before.get(name) != after[name]} == {
        f"val/part_001{ending}" for ending in (".tar", ".idx.npy", ".json")
    }
    assert hashes(tmp_path / "videos") == hashes(here / "videos")


def test_a_worker_killed_in_the_middle_of_a_part_loses_nothing(tiny_archive, here, own_workers, tmp_path, caplog):
    own_workers.add_worker()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        run = pool.submit(make_videos, tiny_archive, tmp_path / "videos", scheduler=own_workers.address)
        victim = wait_for(lambda: worker_at_work(tmp_path / "scratch/videos"))
        os.kill(victim, signal.SIGKILL)
        own_workers.add_worker()
        assert run.result(60).startswith("resize: 12 of 14 clips in 7 shards")
    assert own_workers.workers[0].wait(10) == -signal.SIGKILL
    assert re.search(r"the worker tcp://\S+ is gone", caplog.text)
    assert hashes(tmp_path / "videos") == hashes(here / "videos")


@pytest.mark.slow
def test_a_worker_given_up_that_lives_on_does_no_harm(tiny_archive, here, tmp_path):
    """Frozen in the middle of a part until the others have done everything, it goes on where it was."""
    frozen = Cluster(tmp_path, DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL="2 s")
    try:
        frozen.add_worker()
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            run = pool.submit(make_videos, tiny_archive, tmp_path / "videos", scheduler=frozen.address)
            sleeper = wait_for(lambda: worker_at_work(tmp_path / "scratch/videos"))
            os.kill(sleeper, signal.SIGSTOP)
            frozen.add_worker()
            run.result(60)
        before = inodes(tmp_path / "videos")
        os.kill(sleeper, signal.SIGCONT)
        frozen.workers[0].wait(30)  # it finds that its scheduler has given it up
        assert inodes(tmp_path / "videos") == before
        assert hashes(tmp_path / "videos") == hashes(here / "videos")
    finally:
        for worker in frozen.workers:
            worker.send_signal(signal.SIGCONT)
        frozen.end()


def test_when_the_scheduler_is_lost_the_stage_says_so_and_goes_on_later(tiny_archive, here, tmp_path):
    lost = Cluster(tmp_path)
    lost.add_worker()
    try:
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            run = pool.submit(make_videos, tiny_archive, tmp_path / "videos", scheduler=lost.address)
            wait_for(lambda: worker_at_work(tmp_path / "scratch/videos"))
            lost.scheduler.kill()
            with pytest.raises(UserError, match=rf"the Dask scheduler at {lost.address} is lost \(.*\); start it and"):
                run.result(60)
    finally:
        lost.end()
    make_videos(tiny_archive, tmp_path / "videos")
    assert hashes(tmp_path / "videos") == hashes(here / "videos")


def test_a_part_that_kills_its_workers_is_named_and_all_others_are_made(own_workers, tmp_path):
    poison = struct.pack(">I4s6s", 14, b"free", b"POISON")  # a box that players pass over
    archive = own_archive(tmp_path, {"a": film(8)}, {"b": film(8) + poison}, {"c": film(8)})
    script = 'for word; do [ "$before" = -i ] && grep -q POISON "$word" && kill -9 $PPID; before=$word; done'
    own_workers.add_worker("--nanny", PATH=with_ffmpeg(tmp_path, script))
    with pytest.raises(UserError, match=r"train/part_001\.tar: every worker that took it was lost.* that worker's log"):
        make_videos(archive, tmp_path / "videos", scheduler=own_workers.address)
    assert {without_key(path.name) for path in (tmp_path / "videos/train").glob("*.json")} == {
        "part_000.json",
        "part_002.json",
    }
    assert not (tmp_path / "videos/manifest.csv").exists()


def test_a_broken_archive_is_reported_in_the_same_words(tmp_path, two_workers):
    archive = own_archive(tmp_path, {"a": film(8)}, {"b": film(8)}, {"c": film(8)})
    whole = (archive / "train/part_1.tar.gz").read_bytes()
    (archive / "train/part_1.tar.gz").write_bytes(whole[:-40])
    messages = []
    for name, scheduler in (("alone", None), ("together", two_workers.address)):
        with pytest.raises(UserError) as error:
            make_videos(archive, tmp_path / name, scheduler=scheduler)
        messages.append(str(error.value))
        assert {without_key(path.name) for path in (tmp_path / name / "train").glob("*.tar")} == {
            "part_000.tar",
            "part_002.tar",
        }
    assert "part_1.tar.gz is not the file that inventory.json names" in messages[0]
    assert messages[0] == messages[1]


def test_a_worker_that_does_not_see_the_folder_is_named(two_workers, tmp_path, monkeypatch):
    """/proc/self/cwd is another folder for every process, as a path on a disk that is not shared is."""
    monkeypatch.chdir(tmp_path)
    made = cluster.made_by_workers(two_workers.address, SAY, {"part": 0}, Path("/proc/self/cwd/scratch"))
    with pytest.raises(
        UserError, match=r"the worker tcp://\S+ on \S+ does not see /proc/self/cwd/scratch/\w+; the pro"
    ):
        list(made)


def test_a_worker_with_another_ffmpeg_is_refused(own_workers, tmp_path):
    script = '[ "$1" = -version ] && echo ffmpeg version 0.5 && exit'
    own_workers.add_worker(PATH=with_ffmpeg(tmp_path, script))
    with pytest.raises(UserError, match=r"the worker tcp://\S+ has actionzoo \S+, ffmpeg 0\.5, and this machine act"):
        list(cluster.made_by_workers(own_workers.address, SAY, {"part": 0}, tmp_path / "scratch"))
    assert [path for path in (tmp_path / "scratch").iterdir() if path.suffix != ".lock"] == []


def test_a_worker_without_this_program_is_named(own_workers, tmp_path):
    code = "import sys; sys.modules['actionzoo'] = None; sys.argv[0] = 'dask'; from dask.__main__ import main; main()"
    own_workers.add_worker(program=("-c", code))
    with pytest.raises(UserError, match=r"the worker tcp://\S+ does not find actionzoo\.kinetics\.cluster; install"):
        list(cluster.made_by_workers(own_workers.address, SAY, {"part": 0}, tmp_path / "scratch"))


def test_a_scheduler_without_workers_is_not_waited_for_for_ever(own_workers, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "WORKERS_SECONDS", 0.5)
    with pytest.raises(
        UserError, match=rf"{own_workers.address} has had no worker for 0\.5 s; start some, as in `dask"
    ):
        list(cluster.made_by_workers(own_workers.address, SAY, {"part": 0}, tmp_path / "scratch"))


def test_a_result_comes_back_under_its_parts_name(two_workers, tmp_path):
    made = cluster.made_by_workers(two_workers.address, SAY, {"a": "first", "b": "second"}, tmp_path / "scratch")
    assert dict(made) == {"a": "first is made", "b": "second is made"}


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "nonsense", "ftp://there:1"])
def test_an_address_where_no_scheduler_answers_is_named(address, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 0.5)
    with pytest.raises(UserError, match=f"no Dask scheduler answers at {address} .*; start one with `dask scheduler`"):
        list(cluster.made_by_workers(address, SAY, {"part": 0}, tmp_path / "scratch"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_cancels_its_parts(number, tiny_archive, two_workers, tmp_path):
    code = """
import signal, sys
from pathlib import Path
from actionzoo.files.data_folder import DataFolder
from actionzoo.kinetics.execution import Execution
from actionzoo.kinetics.resize import VideoFormat, resize
from actionzoo.kinetics.transcode import Encode
from actionzoo.process.stage import stage
signal.signal(signal.SIGINT, signal.default_int_handler)  # who was started in the background ignores it
with stage("resize"):
    execution = Execution(scratch=Path("scratch"), scheduler=sys.argv[2])
    resize(DataFolder.at(Path(sys.argv[1])), DataFolder.at(Path("videos")), execution,
           video_format=VideoFormat(128, Encode(preset="slow")), max_bad_share=1.0)
"""
    stage = subprocess.Popen([sys.executable, "-c", code, tiny_archive, two_workers.address], cwd=tmp_path)
    wait_for(lambda: worker_at_work(tmp_path / "scratch/videos"))
    stage.send_signal(number)
    assert stage.wait(20) == 128 + number
    made = len(list((tmp_path / "videos").rglob("*.json")))
    assert list((tmp_path / "scratch").rglob("wanted")) == []
    # who is asked for these has left the other parts: each worker has one thread
    list(cluster.made_by_workers(two_workers.address, SAY, {"one": 1, "two": 2}, tmp_path / "scratch"))
    assert len(list((tmp_path / "videos").rglob("*.json"))) == made < 6


# publishing, by hand


def made_shard(folder: Path, data: bytes, key: str = "key") -> Path:
    path = folder / "part_000.tar"
    with ShardWriter(path) as shard:
        offset, size = shard.add("a.mp4", data)
    write_record(path, key, 60, [PartClip(video_id="a", offset=offset, size=size)])
    return path


def test_publishing_an_equal_shard_again_touches_nothing(tmp_path):
    shard = tmp_path / "val/part_000.tar"
    publish(made_shard(tmp_path / "one", b"clip"), shard)
    before = inodes(tmp_path / "val")
    publish(made_shard(tmp_path / "two", b"clip"), shard)
    assert inodes(tmp_path / "val") == before and len(before) == 3


def test_a_shard_with_another_key_is_replaced_whole(tmp_path):
    shard = tmp_path / "val/part_000.tar"
    publish(made_shard(tmp_path / "one", b"clip"), shard)
    publish(made_shard(tmp_path / "two", b"other", key="other"), shard)
    assert read_record(shard, "key", 60) is None
    assert read_record(shard, "other", 60).clips[0].size == 5
    assert not list((tmp_path / "two").iterdir())


def test_a_worker_that_finishes_after_the_run_publishes_nothing(tmp_path):
    shard = tmp_path / "val/part_000.tar"
    publish(made_shard(tmp_path / "one", b"clip"), shard)
    late = made_shard(tmp_path / "two", b"other", key="other")
    shutil.rmtree(tmp_path / "two")
    with pytest.raises(FileNotFoundError):
        publish(late, shard)
    assert read_record(shard, "key", 60)


def wait_for(look: Callable[[], object], seconds: float = 60):
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"nothing happened in {seconds} s"
        time.sleep(0.002)
    return found


def worker_at_work(scratch: Path) -> int | None:
    """Process id of a worker that has begun a shard; it is in the name of its scratch folder."""
    for partial in scratch.glob("*/*/.part_*.tar.partial"):
        return int(partial.parent.name.split("-")[-2])
    return None


def with_ffmpeg(folder: Path, script: str) -> str:
    """A PATH where `ffmpeg` does something else first."""
    program = folder / "bin/ffmpeg"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\n{script}\nexec {find_ffmpeg()} "$@"\n')
    program.chmod(0o755)
    return f"{program.parent}{os.pathsep}{os.environ['PATH']}"


def own_archive(folder: Path, *parts: dict[str, bytes]) -> Path:
    """archive/ with a split train of these parts: name -> video."""
    lines = [f"abseiling,{name}\n" for clips in parts for name in clips]
    members = [as_members(clips) for clips in parts]
    write_split(folder / "mirror/400", "train", members, "label,youtube_id\n" + "".join(lines))
    return make_archive(folder / "mirror", folder, ["train"])
