"""What Kinetics-400's full shape costs apart from the pixels: 301 parts, 300,097 clips, tiny payloads.

    python benchmarks/scale.py                          # 3 GB under a temporary folder, some minutes
    python benchmarks/scale.py --clips-per-part 10      # a hundredth of the clips, all of the parts

It makes a mirror in the public layout and, by the functions that the stages use, the shards, indexes and records that
stages leave behind; every clip is a real video of two frames, and no two are alike. Then the real commands run on that:
the download reads and verifies every archive, `resize` and `frames` find each part finished and write the manifests,
DVC hashes the manifests. Of trainings there are placeholders, taken in as `dvc commit` does, so that `dvc status` looks
at the whole graph. Printed for each step: seconds by the clock and of all cores, the largest process's peak of resident
memory (the kernel's own figure), and the most that all its processes held together (proportional set size, sampled ten
times a second).
"""

import argparse
import contextlib
import csv
import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
PARTS = {"train": 242, "val": 20, "test": 39}
CLASSES = 400
FORMS = ("videos_256", "videos_320", "frames_256", "frames_320")
ROWS = {
    "videos_256": "slowfast_r50_video_4x16x1_256e_kinetics400_rgb",
    "frames_256": "slowfast_r50_256p_4x16x1_256e_kinetics400_rgb",
}
MB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips-per-part", type=int, default=997, help="997, as shipped, is the size of Kinetics-400")
    parser.add_argument("--folder", type=Path, help="keep the workspace here; without it, a temporary one")
    parser.add_argument("--no-dvc", action="store_true", help="leave out the steps that DVC does")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)  # the same file as a child of itself
    parser.add_argument("--load", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.make:
        make_data(args.make, args.clips_per_part)
    elif args.load:
        load(*args.load)
    else:
        with _folder(args.folder) as folder:
            steps = measure(folder, args.clips_per_part, with_dvc=not args.no_dvc, show=not args.json)
        if args.json:
            print(json.dumps(steps, indent=1))


def measure(
    folder: Path, clips_per_part: int, *, with_dvc: bool = True, show: bool = False
) -> dict[str, dict[str, float]]:
    """Step -> seconds, cpu_seconds, largest_mb, together_mb; loaders also imports_seconds, start_seconds, clips."""
    python, this = sys.executable, str(Path(__file__).resolve())
    make_workspace(folder)
    steps: dict[str, dict[str, float]] = {}

    def step(name: str, *command: str) -> str:
        steps[name], printed = run(command, folder)
        if show:
            figures = steps[name]
            print(
                f"{name:33}{figures['seconds']:8.1f} s{figures['cpu_seconds']:8.1f} s"
                f"{figures['largest_mb']:8.0f} MB{figures['together_mb']:8.0f} MB",
                flush=True,
            )
        return printed

    if show:
        print(f"{sum(PARTS.values())} parts, {sum(PARTS.values()) * clips_per_part:,} clips; {os.cpu_count()} cores")
        print(f"{'step':33}{'clock':>10}{'CPU':>10}{'largest':>11}{'together':>11}")
    step("(make mirror and shards)", python, this, "--make", str(folder), "--clips-per-part", str(clips_per_part))
    shards = {path: path.stat().st_mtime_ns for path in folder.glob("data/scale/*/*/part_*.tar")}
    assert len(shards) == len(FORMS) * sum(PARTS.values()), len(shards)
    for stage in ("download", "resize 256", "frames 256"):
        script, *short_side = stage.split()
        step(f"stage {stage}", python, f"stages/{script}.py", *short_side)
    step("actionzoo lists videos_256", python, "-m", "actionzoo.cli", "lists", "videos_256", "lists")
    for form, row in ROWS.items():
        printed = step(f"train loader, {form}", python, this, "--load", str(folder), row)
        figures = json.loads(printed.splitlines()[-1])
        steps[f"train loader, {form}"] |= figures
        if show:
            print("    of that: " + ", ".join(f"{value:g} {key}" for key, value in figures.items()), flush=True)
    if with_dvc:
        step("dvc repro of the data stages", python, "-m", "dvc", "repro", "frames@256", "frames@320")
        step("(commit placeholders of the rest)", python, "-c", _COMMIT_PLACEHOLDERS)
        printed = step("dvc status", python, "-m", "dvc", "status")
        assert "up to date" in printed, printed[-2000:]
        step("dvc repro, nothing to do", python, "-m", "dvc", "repro")
    # the stages did nothing but their manifests, or the figures are of something else
    assert shards == {path: path.stat().st_mtime_ns for path in shards}, "a stage made shards anew"
    step("actionzoo data report", python, "-m", "actionzoo.cli", "data", "report")
    return steps


def run(command: tuple[str, ...], folder: Path) -> tuple[dict[str, float], str]:
    """Run a command in the workspace to its end: its figures, and what it printed. Raises if it fails."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ACTIONZOO_")} | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "DVC_SITE_CACHE_DIR": str(folder / ".dvc-site"),
    }
    began = time.monotonic()
    with (
        tempfile.TemporaryFile("w+") as output,
        subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT) as process,
    ):
        together = _Together(process.pid)
        together.start()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        together.ended.set()
        together.join()
        output.seek(0)
        printed = output.read()
    seconds = time.monotonic() - began
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} left with status {process.returncode}:\n{printed[-3000:]}")
    largest_mb = usage.ru_maxrss / 1024  # KiB on Linux; covers grandchildren too
    figures = {
        "seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "largest_mb": largest_mb,
        "together_mb": max(together.peak_mb, largest_mb),
    }
    return {key: round(value, 2) for key, value in figures.items()}, printed


class _Together(threading.Thread):
    """Watches what a process and all below it hold: pages that they share count once."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.ended, self.peak_mb, self._pid = threading.Event(), 0.0, pid

    def run(self) -> None:
        while not self.ended.wait(0.1):
            self.peak_mb = max(self.peak_mb, sum(map(self._held_mb, self._family())))

    def _family(self) -> list[int]:
        found = [self._pid]
        for pid in found:
            with contextlib.suppress(OSError):
                for children in Path(f"/proc/{pid}/task").glob("*/children"):
                    found += map(int, children.read_text().split())
        return found

    def _held_mb(self, pid: int) -> float:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    return int(line.split()[1]) / 1024
        return 0.0


def make_workspace(folder: Path) -> None:
    """A checkout without history whose data set is the made-up mirror."""
    import yaml

    for name in ("stages", ".dvc"):
        ignore = shutil.ignore_patterns("__pycache__", "tmp", "cache", "config.local")
        shutil.copytree(PROJECT / name, folder / name, ignore=ignore)
    for name in ("dvc.yaml", ".dvcignore", ".gitignore"):
        shutil.copy(PROJECT / name, folder / name)
    params = yaml.safe_load((PROJECT / "params.yaml").read_text())
    params["data"]["name"] = "scale"
    params["datasets"]["scale"] = {
        "source": str(folder / "mirror"),
        "splits": list(PARTS),
        "parts": "all",
        "max_bad_share": 0.0,
        "overrides": {},
    }
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    shutil.copy(PROJECT / "published.yaml", folder)
    subprocess.run(["git", "init", "-q", folder], check=True)


def make_data(folder: Path, clips_per_part: int) -> None:
    """The mirror, and every part of every form as if the stages had made it."""
    from actionzoo.kinetics.part_records import PartClip, make_key, write_record
    from actionzoo.kinetics.resize import VideoFormat
    from actionzoo.kinetics.shards import ShardWriter, keyed
    from actionzoo.kinetics.transcode import FIXED, ffmpeg_version
    from actionzoo.params import load_params

    params = load_params(folder / "params.yaml")
    encode, timeout_seconds = params.prepare.encode, params.runtime.clip_timeout_seconds
    video, jpegs = _film()
    known = {"num_frames": len(jpegs), "width": 32, "height": 32, "fps": 25.0, "damage": ""}
    for split, number, clips in _parts(clips_per_part):
        name = f"{split}/part_{number:03d}.tar"
        sources = {video_id: _own(video, video_id) for video_id in clips}
        sha256 = _write_part(folder / "mirror/400" / split / f"part_{number}.tar.gz", sources)
        hashes = {video_id: hashlib.sha256(source).hexdigest() for video_id, source in sources.items()}
        for short_side in (256, 320):
            settings = VideoFormat(short_side, encode).settings()
            key = make_key(settings, FIXED, sha256)
            path = folder / f"data/scale/videos_{short_side}" / keyed(name, key)
            with ShardWriter(path) as writer:
                copies = []
                for video_id, source in sources.items():
                    offset, size = writer.add(f"{video_id}.mp4", source)
                    clip = PartClip(video_id=video_id, sha256=hashes[video_id], offset=offset, size=size, **known)
                    copies.append(clip)
            write_record(path, key, timeout_seconds, copies, ffmpeg=ffmpeg_version(), unlisted=[])

            key = make_key(params.prepare.jpeg.qscale, key, list(sources))
            path = folder / f"data/scale/frames_{short_side}" / keyed(name, key)
            with ShardWriter(path) as writer:
                copies = []
                for video_id in sources:
                    spans = [writer.add(f"{video_id}/img_{i:05d}.jpg", jpeg) for i, jpeg in enumerate(jpegs, start=1)]
                    offset, size = spans[0][0], sum(spans[-1]) - spans[0][0]
                    copies.append(PartClip(video_id=video_id, offset=offset, size=size))
            write_record(path, key, timeout_seconds, copies, ffmpeg=ffmpeg_version())
    _write_lists(folder / "mirror/400", clips_per_part)


def _parts(clips_per_part: int) -> Iterator[tuple[str, int, list[str]]]:
    """(split, number, video ids) of every part."""
    count = 0
    for split, num_parts in PARTS.items():
        for number in range(num_parts):
            names = (hashlib.sha256(str(count + i).encode()).hexdigest()[:11] for i in range(clips_per_part))
            yield split, number, [f"{name}_{count % 290:06d}_{count % 290 + 10:06d}" for name in names]
            count += clips_per_part


def _film() -> tuple[bytes, list[bytes]]:
    """A video of two frames, 32 x 32, and its frames."""
    import numpy as np

    from actionzoo.kinetics.transcode import Encode, from_frames, to_jpegs

    frames = np.zeros((2, 32, 32, 3), np.uint8)
    frames[0, :16], frames[1, 16:] = 200, 200
    video = from_frames(frames, fps=25, encode=Encode())
    return video, to_jpegs(video, qscale=2, timeout_seconds=60).frames


def _own(video: bytes, video_id: str) -> bytes:
    """The same film, and no other clip's bytes: a box that players skip holds the clip's name (ISO/IEC 14496-12)."""
    name = video_id.encode()
    return video + struct.pack(">I4s", 8 + len(name), b"free") + name


def _write_part(path: Path, sources: dict[str, bytes]) -> str:
    """The part's archive; gives its sha256."""
    from actionzoo.kinetics.synthetic import write_archive

    write_archive(path, {f"{video_id}.mp4": source for video_id, source in sources.items()})
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _write_lists(mirror: Path, clips_per_part: int) -> None:
    (mirror / "annotations").mkdir()
    count = 0
    for split, num_parts in PARTS.items():
        urls = [f"https://mirror.invalid/400/{split}/part_{number}.tar.gz\n" for number in range(num_parts)]
        (mirror / split / f"k400_{split}_path.txt").write_text("".join(urls))
        with open(mirror / f"annotations/{split}.csv", "w", newline="") as file:
            lines = csv.writer(file, lineterminator="\n")
            lines.writerow(["label", "youtube_id", "time_start", "time_end", "split", "is_cc"])
            for _, _, clips in (part for part in _parts(clips_per_part) if part[0] == split):
                for video_id in clips:
                    label = f"class number {count % CLASSES:03d}"
                    lines.writerow([label, video_id[:11], int(video_id[-13:-7]), int(video_id[-6:]), split, 0])
                    count += 1


# what no stage here makes: checkpoints, metrics, the report; DVC takes their word for it
_COMMIT_PLACEHOLDERS = """
from pathlib import Path
from dvc.repo import Repo
repo = Repo()
kinds = ("train", "evaluate", "benchmark", "report")
for stage in repo.index.stages:
    if stage.addressing.partition("@")[0] in kinds:
        for out in stage.outs:
            path = Path(out.fs_path)
            if not path.suffix:  # a folder
                path = path / "zoo.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"a placeholder for {path.name}\\n")
repo.commit(force=True)
"""


def load(folder: str, row: str) -> None:
    """The start of a training: a loader's first batch, decoded by two processes. Prints its figures as JSON."""
    began = time.monotonic()
    from actionzoo.clips.loader import Loading, train_loader, usable_clips
    from actionzoo.kinetics.manifest import read_manifest
    from actionzoo.params import load_params

    imported = time.monotonic()
    recipe = load_params(Path(folder) / "params.yaml").recipe(row)
    form = Path(folder) / "data/scale" / f"{recipe.clips.form}_{recipe.clips.short_side}"
    clips = usable_clips(read_manifest(form / "manifest.csv"), "train", form / "manifest.csv")
    loading = Loading(batch_size=recipe.optim.videos_per_gpu, workers=2, timeout_seconds=120)
    loader = train_loader(form, clips, recipe.clips, recipe.augment, seed=recipe.seed, loading=loading)
    batch = next(iter(loader))
    ready = time.monotonic()
    assert not batch.undecodable, batch.undecodable
    figures = {"imports_seconds": imported - began, "start_seconds": ready - imported, "clips": len(loader.clips)}
    print(json.dumps({key: round(value, 2) for key, value in figures.items()}))


@contextlib.contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep:
        keep.mkdir(parents=True)
        yield keep.resolve()
    else:
        with tempfile.TemporaryDirectory(prefix="actionzoo-scale-") as folder:
            yield Path(folder)


if __name__ == "__main__":
    main()
