"""Check prepared data against their records: every byte of the archives and shards, or of a sample of them.

A file that is missing or differs is declared unfinished. Its stage makes that file again, with the same bytes:

    archive/val/part_7.tar.gz     removed; `download` fetches it
    videos_256/val/part_007.tar   its record is removed; `resize` makes the shard from the archive's part
    frames_256/val/part_007.tar   its record is removed; `frames` makes the shard from the videos' shard

Frames of a damaged shard of videos are made again too, since the shard may have been damaged before they were made.
"""

import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError
from ..files.hashes import sha256_of
from ..process.progress import Progress
from .inventory import read_inventory
from .part_records import forget_record, load_record, record_path, save_record
from .shards import index_path

FORMS = ("videos_256", "videos_320", "frames_256", "frames_320")


@dataclasses.dataclass(frozen=True)
class Damage:
    path: Path
    error: str
    """What is wrong with it."""
    stage: str
    """The stage that makes the file again, as `dvc repro` names it: resize@256."""

    def text(self) -> str:
        return f"{self.path}: {self.error}; `dvc repro {self.stage}` makes it again"


@dataclasses.dataclass(frozen=True)
class Checked:
    """The result of a check."""

    num_files: int
    num_recorded: int
    """Shards of an older version that had no hash; it was recorded now."""
    num_finished: int
    """Files that could have been checked: all of them."""
    damages: tuple[Damage, ...]

    def text(self) -> str:
        """A line for each damaged file, then the counts."""
        lines = [damage.text() for damage in self.damages]
        ok = self.num_files - len({damage.path for damage in self.damages if damage.error != _SUSPECT})
        lines.append(f"data check: {ok} of {self.num_files} files are as recorded; {self.num_finished} are finished")
        if self.num_recorded:
            lines.append(f"  {self.num_recorded} shards of an older version had no hash; it is recorded now")
        return "\n".join(lines)


def check_data(
    data: Path,
    *,
    sample: int | None = None,
    seed: int | None = None,
    on_progress: Progress | None = None,
) -> Checked:
    """Hash the files below `data`, e.g. data/demo, and compare; with `sample` only so many of them, drawn by `seed`.

    Files that fail are declared unfinished. `on_progress` counts bytes. Raises UserError if no file is finished.
    """
    files = _archive_files(data) + [shard for form in FORMS for shard in _shards(data / form)]
    if not files:
        raise UserError(f"{data} holds no finished files yet; run `dvc repro resize@256`, or another data stage")
    chosen = files
    if sample is not None and sample < len(files):
        indices = sorted(random.Random(seed).sample(range(len(files)), sample))
        chosen = [files[index] for index in indices]
    damages: dict[Path, Damage] = {}
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
        for frames in _frames_made_of(damage.path, data):
            damages.setdefault(frames, Damage(frames, _SUSPECT, f"frames@{frames.parts[-3].partition('_')[2]}"))
    for damage in damages.values():
        _declare_unfinished(damage.path, data)
    return Checked(len(chosen), num_recorded, len(files), tuple(damages.values()))


_SUSPECT = "it was made of a damaged shard"


@dataclasses.dataclass(frozen=True)
class _File:
    path: Path
    size: int
    sha256: str
    """'' where none is recorded."""
    stage: str
    index_sha256: str = ""
    """Of the index beside a shard; '' where none is recorded."""


def _archive_files(data: Path) -> list[_File]:
    archive = data / "archive"
    if not (archive / "inventory.json").is_file():
        return []
    return [
        _File(archive / name, file.size, file.sha256, "download")
        for name, file in sorted(read_inventory(archive).files.items())
        if file.sha256 and not (name.endswith(".csv") and "/part_" in name)  # a list of videos that lie elsewhere
    ]


def _shards(form: Path) -> list[_File]:
    kind, _, short_side = form.name.partition("_")
    stage = f"{'resize' if kind == 'videos' else 'frames'}@{short_side}"
    found = []
    for path in sorted(form.glob("*/*.json")):
        shard = path.with_suffix(".tar")
        record = load_record(shard)
        if record is None:
            found.append(_File(shard, 0, _UNREADABLE, stage))
        else:
            found.append(_File(shard, record.size, record.sha256, stage, record.index_sha256))
    return found


_UNREADABLE = "?"
"""In place of a hash: the record cannot be read."""


def _error(file: _File) -> tuple[str, str]:
    """(what is wrong with the file, '' for nothing; its sha256, '' if it was not computed)."""
    if not file.path.is_file():
        return "it is not there", ""
    if file.sha256 == _UNREADABLE:
        return "its record cannot be read", ""
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


def _record_sha256(shard: Path, sha256: str) -> None:
    if record := load_record(shard):
        save_record(shard, dataclasses.replace(record, sha256=sha256))


def _frames_made_of(path: Path, data: Path) -> Sequence[Path]:
    kind, _, short_side = path.parent.parent.name.partition("_")
    frames = data / f"frames_{short_side}" / path.parent.name / path.name
    return [frames] if kind == "videos" and record_path(frames).is_file() else []


def _declare_unfinished(path: Path, data: Path) -> None:
    if path.is_relative_to(data / "archive"):
        path.unlink(missing_ok=True)
    else:
        forget_record(path)
