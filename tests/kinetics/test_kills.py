"""Killed with SIGKILL again and again, the data stages end with the bytes of an undisturbed run, and redo little.

Some kills come from outside, at a moment drawn by lot. The others the process does to itself, right before or after a
call drawn by lot: a rename, a flush to the disk, a deletion, the start of an ffmpeg. These are the places where a file
could be half there.
"""

import collections
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from actionzoo.kinetics.serve import serve
from actionzoo.kinetics.synthetic import write_archive
from tests.kinetics.files import hashes, without_key
from tests.kinetics.small_films import film
from tests.kinetics.small_mirror import SlowHandler, as_members, write_split

PROJECT = Path(__file__).resolve().parents[2]
NUM_KILLS, MAX_ROUNDS = 20, 12
STAGES = {
    "download": ["stages/download.py"],
    "resize": ["stages/resize.py", "256"],
    "frames": ["stages/frames.py", "256"],
}
POINTS = [
    *(f"{call} {when}" for call in ("replace", "fsync", "unlink", "Popen") for when in ("before", "after")),
    *["clock"] * 4,
]

# Python imports this before anything else, wherever it finds it first
SITECUSTOMIZE = """
import atexit, json, os, signal, subprocess, threading

counts, lock = {}, threading.Lock()
point = os.environ.get("KILL_AT", "").split()  # [] or [call, before or after, which of them]

def deadly(call, function):
    def instead(*arguments, **options):
        with lock:
            counts[call] = counts.get(call, 0) + 1
            is_it = point[:1] == [call] and counts[call] == int(point[2])
        if is_it and point[1] == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*arguments, **options)
        if is_it:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return instead

for call in ("replace", "fsync", "unlink"):
    setattr(os, call, deadly(call, getattr(os, call)))
subprocess.Popen.__init__ = deadly("Popen", subprocess.Popen.__init__)

@atexit.register
def tell():
    if "COUNTS" in os.environ:
        with open(os.environ["COUNTS"], "w") as file:
            json.dump(counts, file)
"""


class Trickle(SlowHandler):
    chunk_bytes = 4096
    pause_seconds = 0.005


@pytest.fixture
def workspace(tmp_path):
    """Two parts of train and one of val; a clip that is cut off and has a replacement; one that is nowhere."""
    root = tmp_path / "mirror/400"
    splits = {"train": [["-a", "b", "cut"], ["d", "e", "_f"]], "val": [["g", "h"]]}
    names = [name for parts in splits.values() for part in parts for name in part]
    videos = {name: film(num_frames=8 + n, height=60, width=80) for n, name in enumerate(names)}
    write_archive(root / "replacement_for_corrupted_k400.tgz", {"cut.mp4": videos["cut"]})
    videos["cut"] = videos["cut"][:500]
    for split, parts in splits.items():
        lines = [f"zumba,{name}\n" for name in [*itertools.chain(*parts), "nowhere"]]
        members = [as_members({name: videos[name] for name in part}) for part in parts]
        write_split(root, split, members, "label,youtube_id\n" + "".join(lines))
    with serve(root.parent, Trickle) as url:
        yield Workspace(tmp_path / "workspace", url)


class Workspace:
    def __init__(self, root: Path, url: str) -> None:
        self.root = root
        shutil.copytree(PROJECT / "stages", root / "stages")
        params = yaml.safe_load((PROJECT / "params.yaml").read_text())
        params["data"]["name"] = "killed"
        params["runtime"]["jobs"] = 2
        params["datasets"]["killed"] = params["datasets"]["kinetics400"] | {
            "source": url, "splits": ["train", "val"], "max_bad_share": 1.0,
        }  # fmt: skip
        (root / "params.yaml").write_text(yaml.safe_dump(params))
        shutil.copy(PROJECT / "published.yaml", root)
        (root / "site").mkdir()
        (root / "site/sitecustomize.py").write_text(SITECUSTOMIZE)
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("ACTIONZOO_")} | {
            "PYTHONPATH": os.pathsep.join(filter(None, [str(root / "site"), os.environ.get("PYTHONPATH")])),
            "COUNTS": str(root / "counts.json"),
        }

    @property
    def data(self) -> Path:
        return self.root / "data/killed"

    def run(self, stage: str, kill_at: str = "", after_seconds: float | None = None) -> bool:
        """Whether the stage was killed. What it does otherwise must be to end well."""
        process = subprocess.Popen(
            [sys.executable, *STAGES[stage]],
            cwd=self.root,
            env=self.environment | {"KILL_AT": kill_at},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        with process:
            try:
                printed, _ = process.communicate(timeout=after_seconds)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                printed, _ = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), printed
        return process.returncode != 0

    def counts(self) -> dict[str, int]:
        return json.loads((self.root / "counts.json").read_text())

    def forget(self) -> None:
        shutil.rmtree(self.root / "data", ignore_errors=True)

    def finished(self, stage: str) -> dict[Path, tuple[int, int]]:
        """Files of parts that the stage has declared finished, as they lie on the disk: one that is put anew shows."""
        if stage == "download":
            records = [path.stem for path in self.root.glob("data/.scratch/download/killed/records/*.json")]
            made = [path for path in self.data.glob("archive/**/*") if path.is_file()]
            made = [path for path in made if str(path.relative_to(self.data / "archive")).replace("/", "_") in records]
        else:
            made = [path for record in self.records(stage) for path in (record, record.with_suffix(".tar"))]
        return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in made}

    def records(self, stage: str) -> list[Path]:
        return list(self.data.glob({"resize": "videos_256", "frames": "frames_256"}.get(stage, "") + "/*/*.json"))

    def num_finished_clips(self, stage: str) -> int:
        """Clips of finished parts. Each of them took one ffmpeg."""
        return sum(len(json.loads(record.read_text())["clips"]) for record in self.records(stage))


@pytest.mark.slow
def test_killed_twenty_times_the_stages_end_with_the_same_bytes(workspace):
    usual, seconds = {}, {}
    for stage in STAGES:
        began = time.monotonic()
        assert not workspace.run(stage)
        seconds[stage], usual[stage] = time.monotonic() - began, workspace.counts()
    undisturbed = hashes(workspace.data)
    assert "frames_256/manifest.csv" in undisturbed and "videos_256/train/replacement.tar" in map(
        without_key, undisturbed
    )

    def run(stage: str, **how) -> bool:
        """As workspace.run; and what was finished is neither put nor made anew."""
        finished, num_clips = (
            workspace.finished(stage),
            0 if stage == "download" else workspace.num_finished_clips(stage),
        )
        was_killed = workspace.run(stage, **how)
        assert finished.items() <= workspace.finished(stage).items()
        if not was_killed:
            assert workspace.counts().get("Popen", 0) <= usual[stage].get("Popen", 0) - num_clips
        return was_killed

    draw, killed = random.Random(20), []
    points = itertools.cycle(draw.sample(POINTS, len(POINTS)))
    for _ in range(MAX_ROUNDS):  # each time from nothing to the end
        if len(killed) >= NUM_KILLS and {stage for stage, _ in killed} == set(STAGES):
            break
        workspace.forget()
        for stage in STAGES:
            for point in itertools.islice(points, 3):
                call = point.split()[0]
                if call == "clock":
                    how = {"after_seconds": draw.uniform(0.3, 1.0) * seconds[stage]}
                else:  # of the calls that it makes at all; where there are none, nothing kills it
                    how = {"kill_at": f"{point} {draw.randint(1, max(1, usual[stage].get(call, 0) // 2))}"}
                if not run(stage, **how):  # the clock's kills come too late where the first run was slower
                    break
                killed.append((stage, point))
            run(stage)
        assert hashes(workspace.data) == undisturbed
        left = [path for path in (workspace.root / "data/.scratch").rglob("*") if path.is_file()]
        # of downloads some words on each file: what is known of it; locks are empty
        assert [
            path for path in left if "records" not in path.parts and not path.name.endswith((".version", ".lock"))
        ] == []
    hits = collections.Counter(point for _, point in killed)
    assert {stage for stage, _ in killed} == set(STAGES) and len(hits) >= 6, hits
