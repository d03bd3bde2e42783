"""What `dvc status` costs on a data set of Kinetics-400's size: seconds, and the bytes that DVC hashes.

    python benchmarks/dvc_status.py                             # 301 parts, 300,000 clips, four forms: a minute
    python benchmarks/dvc_status.py --parts 12 --clips 1200

It makes a project in a temporary folder as the data stages leave it: inventory, manifests, class lists and shards.csv
of four forms, and under the data root the archives and shards that they name, each with its record. Archives and shards
are sparse files: they have the size of real ones and hold nothing but zeros. `dvc commit` takes the outs of the data
stages into the cache, and `dvc status` of these stages runs twice: first as in a fresh clone, where DVC knows no file,
then as on any other day. The bytes are counted inside DVC, where it hashes.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
SHARES = {"train": 242, "val": 20, "test": 39}
"""Parts of Kinetics-400."""
CLASSES = 400
FORMS = ("videos_256", "videos_320", "frames_256", "frames_320")
CLIP_BYTES = {"archive": 1_450_000, "videos_256": 900_000, "videos_320": 1_300_000, "frames_256": 6_000_000}
CLIP_BYTES |= {"frames_320": 9_000_000}
"""About what a clip takes."""


@dataclasses.dataclass(frozen=True)
class Figures:
    parts: int
    clips: int
    num_shards: int
    stored_bytes: int
    """Of archives and shards, which DVC does not see."""
    tracked_bytes: int
    """Of the outs that DVC tracks."""
    first_seconds: float
    """`dvc status` where DVC has hashed no file yet."""
    first_hashed_bytes: int
    again_seconds: float
    again_hashed_bytes: int

    def text(self) -> str:
        return "\n".join(
            [
                f"{self.parts} parts, {self.clips:,} clips: {self.num_shards:,} shards, with the archives "
                f"{self.stored_bytes / 1e9:,.0f} GB; DVC tracks {self.tracked_bytes / 1e6:,.1f} MB",
                f"{'':20}{'clock':>10}{'hashed':>14}",
                f"{'dvc status, first':20}{self.first_seconds:8.1f} s{self.first_hashed_bytes / 1e6:11,.1f} MB",
                f"{'dvc status, again':20}{self.again_seconds:8.1f} s{self.again_hashed_bytes / 1e6:11,.1f} MB",
            ]
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=int, default=sum(SHARES.values()), help="of all splits (default: %(default)s)")
    parser.add_argument("--clips", type=int, default=300_000, help="of all parts (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dvc-status-") as folder:
        figures = measure(Path(folder) / "project", args.parts, args.clips)
    print(json.dumps(dataclasses.asdict(figures), indent=1) if args.json else figures.text())


def measure(folder: Path, parts: int, clips: int) -> Figures:
    """Make the project in `folder`, which must not exist; run `dvc status` twice. Raises SystemExit if DVC fails."""
    make_project(folder, parts, clips)
    stages = ["download"] + [f"{stage}@{side}" for stage in ("resize", "frames") for side in (256, 320)]
    if "\n  settings:" in (folder / "dvc.yaml").read_text():
        _dvc(folder, "repro", "-q", "settings")
    _dvc(folder, "commit", "-q", "-f", *stages)
    shutil.rmtree(folder / ".dvc-site")  # where DVC remembers what it has hashed
    first = _status(folder, stages)
    again = _status(folder, stages)
    stored = [path for path in (folder / "data/status").rglob("*") if ".tar" in path.suffixes]
    tracked = [folder / "data/status/archive/inventory.json"]
    tracked += [folder / f"data/status/{form}/{name}" for form in FORMS for name in _OUTS]
    return Figures(
        parts=parts,
        clips=clips,
        num_shards=sum(path.suffix == ".tar" for path in stored),
        stored_bytes=sum(path.stat().st_size for path in stored),
        tracked_bytes=sum(path.stat().st_size for path in tracked),
        first_seconds=first[0],
        first_hashed_bytes=first[1],
        again_seconds=again[0],
        again_hashed_bytes=again[1],
    )


_OUTS = ("manifest.csv", "shards.csv", "classes.txt")


def make_project(folder: Path, parts: int, clips: int) -> None:
    """A checkout without history, and everything that its data stages would have made of `parts` and `clips`."""
    import yaml

    for name in ("stages", ".dvc"):
        ignore = shutil.ignore_patterns("__pycache__", "tmp", "cache", "config.local")
        shutil.copytree(PROJECT / name, folder / name, ignore=ignore)
    for name in ("dvc.yaml", ".dvcignore", ".gitignore", "published.yaml"):
        shutil.copy(PROJECT / name, folder / name)
    params = yaml.safe_load((PROJECT / "params.yaml").read_text())
    params["data"] |= {"name": "status", "root": "data"}
    params["datasets"]["status"] = {"source": "mirror"}
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    subprocess.run(["git", "init", "-q", folder], check=True)
    _make_data(folder / "data/status", _numbers(parts), clips)


def _numbers(parts: int) -> list[tuple[str, int]]:
    """(split, number) of every part; each split has one at least."""
    total = sum(SHARES.values())
    counts = {split: max(1, parts * share // total) for split, share in SHARES.items()}
    counts["train"] += parts - sum(counts.values())
    if counts["train"] < 1:
        raise SystemExit(f"--parts is {parts}; give 3 or more, one for each split")
    return [(split, number) for split, count in counts.items() for number in range(count)]


def _make_data(data: Path, numbers: list[tuple[str, int]], num_clips: int) -> None:
    from actionzoo.kinetics.inventory import ArchivedFile, FetchedSplit, Inventory
    from actionzoo.kinetics.manifest import Clip, write_manifest
    from actionzoo.kinetics.part_records import PartRecord, save_record
    from actionzoo.kinetics.shard_list import SHARDS, write_shards
    from actionzoo.kinetics.shards import index_path, keyed

    classes = [f"class number {label:03d}" for label in range(CLASSES)]
    parts = [range(n, num_clips, len(numbers)) for n in range(len(numbers))]
    files = {}
    for (split, number), clips in zip(numbers, parts, strict=True):
        name, size = f"{split}/part_{number}.tar.gz", CLIP_BYTES["archive"] * len(clips)
        _sparse(data / "archive" / name, size)
        files[name] = ArchivedFile(size=size, sha256=_sha256(name), etag=f'"{_sha256(name)[:32]}"', members=len(clips))
    by_split = {split: tuple(number for of, number in numbers if of == split) for split in SHARES}
    inventory = Inventory(files, {split: FetchedSplit(found, len(found)) for split, found in by_split.items()})
    (data / "archive/inventory.json").write_bytes(inventory.to_bytes())
    for form in FORMS:
        lines, records = [], {}
        for (split, number), clips in zip(numbers, parts, strict=True):
            key = _sha256(f"{form}/{split}/{number}")
            shard, clip_bytes = keyed(f"{split}/part_{number:03d}.tar", key), CLIP_BYTES[form]
            size = clip_bytes * len(clips)
            record = PartRecord(
                key=key, size=size, sha256=_sha256(shard), index_sha256=_sha256(f"{shard}.idx"), judged=2, clips=(),
                ffmpeg="7.0.2",
            )  # fmt: skip
            _sparse(data / form / shard, size)
            _sparse(index_path(data / form / shard), 16 * len(clips))
            save_record(data / form / shard, record)
            records[shard] = record
            for place, clip in enumerate(clips):
                source = _sha256(str(clip))
                lines.append(
                    Clip(
                        video_id=f"{source[:11]}_{clip % 290:06d}_{clip % 290 + 10:06d}",
                        split=split,
                        label=clip % CLASSES,
                        class_name=classes[clip % CLASSES],
                        state="ok",
                        shard=shard,
                        offset=place * clip_bytes,
                        size=clip_bytes,
                        num_frames=300,
                        width=340,
                        height=256,
                        fps=29.97,
                        sha256=source,
                    )
                )
        write_manifest(data / form / "manifest.csv", lines, classes)
        write_shards(data / form / SHARDS, records)


def _sparse(path: Path, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.truncate(path, size)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _status(folder: Path, stages: list[str]) -> tuple[float, int]:
    """(seconds, bytes hashed). Raises SystemExit unless everything is up to date."""
    began = time.monotonic()
    printed = _run(folder, "-c", _COUNTING, "status", *stages)
    seconds = time.monotonic() - began
    if "up to date" not in printed:
        raise SystemExit(f"dvc status says that something is to be done:\n{printed[-3000:]}")
    return round(seconds, 2), int(printed.splitlines()[-1])


# every file that DVC hashes passes through this class
_COUNTING = """
import sys
import dvc_data.hashfile.hash as hashing
num_bytes = 0
class Counting(hashing.HashStreamFile):
    __slots__ = ()
    def read(self, n=-1):
        global num_bytes
        data = super().read(n)
        num_bytes += len(data)
        return data
hashing.HashStreamFile = Counting
from dvc.cli import main
status = main(sys.argv[1:])
print(num_bytes)
sys.exit(status)
"""


def _dvc(folder: Path, *words: str) -> None:
    _run(folder, "-m", "dvc", *words)


def _run(folder: Path, *words: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ACTIONZOO_")} | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "DVC_SITE_CACHE_DIR": str(folder / ".dvc-site"),
    }
    done = subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(words[:4])} ended with status {done.returncode}:\n{done.stderr[-3000:]}")
    return done.stdout


if __name__ == "__main__":
    main()
