"""Check prepared data against their records: every byte of the archives and shards, or of a sample of them.

Archives are compared with inventory.json, shards with the shards.csv beside the manifest. A file that is missing or
differs is declared unfinished. Its stage makes that file again, with the same bytes:

    archive/val/part_7.tar.gz              removed; `download` fetches it
    videos_256/val/part_007-1a2b3c4d.tar   its record is removed; `resize` makes the shard from the archive's part
    frames_256/val/part_007-9c0d1e2f.tar   its record is removed; `frames` makes the shard from the videos' shard

Frames of a damaged shard of videos are made again too, since the shard may have been damaged before they were made.

DVC takes the stage for up to date, because it does not see the shards: `dvc repro -f` runs it all the same.
"""

import dataclasses
import itertools
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ..data_folder import DataFolder
from ..errors import UserError
from ..files.hashes import sha256_of
from ..files.locks import locked
from ..process.progress import Progress
from .inventory import read_inventory
from .manifest import SPLITS
from .part_records import forget_record, load_record, record_path, save_record
from .shard_list import SHARDS, read_shards
from .shards import FILE_NAME, index_path, without_key

FORMS = ("videos_256", "videos_320", "frames_256", "frames_320")


@dataclasses.dataclass(frozen=True)
class Damage:
    path: Path
    error: str
    """What is wrong with it."""
    stage: str
    """The stage that makes the file again, as `dvc repro` names it: resize@256."""

    def text(self) -> str:
        return f"{self.path}: {self.error}; `dvc repro -f {self.stage}` makes it again"


@dataclasses.dataclass(frozen=True)
class UnusedShard:
    """A shard under the data root that no manifest of this workspace names."""

    path: Path
    size: int
    """Bytes, with its index and its record."""

    @property
    def files(self) -> tuple[Path, Path, Path]:
        """The record first: without it the shard is not finished."""
        return record_path(self.path), self.path, index_path(self.path)


@dataclasses.dataclass(frozen=True)
class Checked:
    """The result of a check."""

    num_files: int
    num_recorded: int
    """Shards of an older version that had no hash; it was recorded now."""
    num_finished: int
    """Archives and shards that no check before found damaged, in the sample or not."""
    damages: tuple[Damage, ...]

    def text(self) -> str:
        """A line for each damaged file, then the counts."""
        lines = [damage.text() for damage in self.damages]
        ok = self.num_files - len({damage.path for damage in self.damages if damage.error != _SUSPECT})
        lines.append(f"data check: {ok} of {self.num_files} files are as recorded; {self.num_finished} are finished")
        if self.num_recorded:
            lines.append(f"  {self.num_recorded} shards of an older version had no hash; it is recorded now")
        if self.damages:
            stages = dict.fromkeys(damage.stage for damage in self.damages)
            lines.append(f"To make the damaged ones again, and no other: dvc repro -f {' '.join(stages)}")
        return "\n".join(lines)


def check_data(
    data: DataFolder,
    *,
    sample: int | None = None,
    seed: int | None = None,
    on_progress: Progress | None = None,
) -> Checked:
    """Hash the files of a data set, and compare; with `sample` only so many of them, drawn by `seed`.

    Files that fail are declared unfinished. `on_progress` counts bytes. Raises UserError if no file is finished.
    """
    shards = {form: _shards(data / form) for form in FORMS}
    files = _archive_files(data / "archive") + [shard for of in shards.values() for shard in of]
    if not files:
        raise UserError(
            f"{data.tracked} holds no finished files yet; run `dvc repro resize@256`, or another data stage"
        )
    chosen = files
    if sample is not None and sample < len(files):
        indices = sorted(random.Random(seed).sample(range(len(files)), sample))
        chosen = [files[index] for index in indices]
    damages: dict[Path, Damage] = {}
    num_finished = sum(not file.is_shard or record_path(file.path).is_file() for file in files)
    num_recorded, done, total = 0, 0, sum(file.size for file in chosen)
    for file in chosen:
        error, found = _error(file)
        if error:
            damages[file.path] = Damage(file.path, error, file.stage)
        elif not file.sha256:
            _record_sha256(file.path, found)
            num_recorded += 1
        done += file.size
        if on_progress:
            on_progress("check, bytes", done, total)
    for damage in list(damages.values()):
        if damage.error != _OTHER:
            for frames in _frames_made_of(damage.path, shards):
                damages.setdefault(frames.path, Damage(frames.path, _SUSPECT, frames.stage))
    for damage in damages.values():
        if damage.error != _OTHER:
            _declare_unfinished(damage.path, data)
    return Checked(len(chosen), num_recorded, num_finished, tuple(damages.values()))


def unused_shards(data: DataFolder, workspace: Path) -> list[UnusedShard]:
    """Shards that neither this workspace's manifests nor those of its unfinished experiments name.

    Forms without a manifest here are passed over: the data root may be shared with the clone that made them.
    """
    unused = []
    for form in FORMS:
        listed = [data.tracked / form / SHARDS]
        if not listed[0].is_file():
            continue
        experiments = workspace / ".dvc" / "tmp" / "exps"
        for depth in ("*", "*/*", "*/*/*"):
            listed += experiments.glob(f"{depth}/data/{data.name}/{form}/{SHARDS}")
        used = {line.shard for path in listed for line in read_shards(path)}
        for split in SPLITS:
            stems = {
                match[1] for path in (data.stored / form / split).glob("*") if (match := FILE_NAME.fullmatch(path.name))
            }
            for stem in sorted(stems):
                if f"{split}/{stem}.tar" not in used:
                    shard = UnusedShard(data.stored / form / split / f"{stem}.tar", 0)
                    size = sum(path.stat().st_size for path in shard.files if path.is_file())
                    unused.append(dataclasses.replace(shard, size=size))
    return unused


def delete_shards(shards: Iterable[UnusedShard], scratch: Callable[[str], Path]) -> None:
    """Delete the shards, each with its index and its record.

    `scratch` gives the scratch folder of a stage. Raises UserError, before any shard of the form is deleted, if the
    stage that makes them is at work: its new shards are in no manifest yet.
    """
    for form, of in itertools.groupby(shards, key=lambda shard: shard.path.parts[-3]):
        stage = "frames" if form.startswith("frames") else "resize"
        busy = f"the stage `{stage}` is at work on {form}; delete unused shards when it has ended"
        with locked(scratch(stage) / f".{form}.lock", busy=busy):
            for shard in of:
                for path in shard.files:
                    path.unlink(missing_ok=True)


def unused_text(unused: Sequence[UnusedShard], *, deleted: bool) -> str:
    """A line for each shard, and what they are; '' if there is none."""
    if not unused:
        return ""
    lines = [f"{'deleted' if deleted else 'unused'}: {shard.path}  {shard.size / 1e6:,.1f} MB" for shard in unused]
    total = f"{len(unused)} {'shard' if len(unused) == 1 else 'shards'}, {sum(shard.size for shard in unused) / 1e9:,.2f} GB"
    if deleted:
        lines.append(f"{total} deleted")
    else:
        lines.append(
            f"{total} that no manifest here names. Other clones with this data root, and other commits, may use them; "
            "to delete them: actionzoo data check --delete-unused"
        )
    return "\n".join(lines)


_SUSPECT = "it was made of a damaged shard"
_OTHER = "it was made anew since the manifest was written"
_UNFINISHED = "it is not finished"


@dataclasses.dataclass(frozen=True)
class _File:
    path: Path
    size: int
    sha256: str
    """'' where none is recorded."""
    stage: str
    index_sha256: str = ""
    """Of the index beside a shard; '' where none is recorded."""
    is_shard: bool = False


def _archive_files(archive: DataFolder) -> list[_File]:
    if not (archive.tracked / "inventory.json").is_file():
        return []
    return [
        _File(archive.stored / name, file.size, file.sha256, "download")
        for name, file in sorted(read_inventory(archive.tracked).files.items())
        if file.sha256 and not (name.endswith(".csv") and "/part_" in name)  # a list of videos that lie elsewhere
    ]


def _shards(form: DataFolder) -> list[_File]:
    kind, _, short_side = form.name.partition("_")
    stage = f"{'resize' if kind == 'videos' else 'frames'}@{short_side}"
    if listed := read_shards(form.tracked / SHARDS):
        return [
            _File(form.stored / line.shard, line.size, line.sha256, stage, line.index_sha256, is_shard=True)
            for line in listed
        ]
    found = []  # of a version that wrote no list
    for path in sorted(form.stored.glob("*/*.json")):
        shard = path.with_suffix(".tar")
        record = load_record(shard)
        if record is None:
            found.append(_File(shard, 0, "", stage, is_shard=True))
        else:
            found.append(_File(shard, record.size, record.sha256, stage, record.index_sha256, is_shard=True))
    return found


def _error(file: _File) -> tuple[str, str]:
    """(what is wrong with the file, '' for nothing; its sha256, '' if it was not computed)."""
    if not file.path.is_file():
        return "it is not there", ""
    record = load_record(file.path) if file.is_shard else None
    if file.is_shard and record is None:
        return "its record cannot be read" if record_path(file.path).exists() else _UNFINISHED, ""
    if record and record.sha256 not in ("", file.sha256) and _error(_recorded(file)) == ("", record.sha256):
        return _OTHER, ""
    if (size := file.path.stat().st_size) != file.size:
        return f"it has {size} bytes, {file.size} were recorded", ""
    if file.index_sha256:
        index = index_path(file.path)
        if not index.is_file() or sha256_of(index) != file.index_sha256:
            return f"its index {index.name} is not the one that was recorded", ""
    found = sha256_of(file.path)
    if file.sha256 and found != file.sha256:
        return f"its sha256 is {found[:8]}…, {file.sha256[:8]}… was recorded", found
    return "", found


def _recorded(file: _File) -> _File:
    """The shard as its record describes it."""
    record = load_record(file.path)
    assert record is not None
    return dataclasses.replace(file, size=record.size, sha256=record.sha256, index_sha256=record.index_sha256)


def _record_sha256(shard: Path, sha256: str) -> None:
    if record := load_record(shard):
        save_record(shard, dataclasses.replace(record, sha256=sha256))


def _frames_made_of(path: Path, shards: dict[str, list[_File]]) -> list[_File]:
    """The finished shards of frames of the part whose videos' shard is `path`."""
    kind, _, short_side = path.parent.parent.name.partition("_")
    if kind != "videos":
        return []
    return [
        file
        for file in shards[f"frames_{short_side}"]
        if (file.path.parent.name, without_key(file.path.name)) == (path.parent.name, without_key(path.name))
        and record_path(file.path).is_file()
    ]


def _declare_unfinished(path: Path, data: DataFolder) -> None:
    if path.is_relative_to(data.stored / "archive"):
        path.unlink(missing_ok=True)
    else:
        forget_record(path)
