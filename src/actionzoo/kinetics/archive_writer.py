"""archive/ for videos that stay where they are: reads each video once, writes lists, annotations and the inventory.

archive/train/part_0.csv       some hundred videos: video_id, sha256, path
archive/annotations/train.csv  label,youtube_id of every video that there should be
archive/sources.csv            the name of each video, and why one is left out
archive/inventory.json         written last
"""

import concurrent.futures
import csv
import dataclasses
import hashlib
import io
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from ..errors import UserError
from ..files.atomic import atomic_write
from ..files.csv_cells import safe_cell, safe_id
from ..files.data_folder import DataFolder
from ..files.hashes import sha256_of_open
from ..files.json_files import read_json_list, write_json
from ..process.progress import Progress
from .archives import LISTED, content_sha256
from .inventory import ArchivedFile, FetchedSplit, Inventory


@dataclasses.dataclass(frozen=True, slots=True)
class FolderVideo:
    """A video of a split: a file, or a line of a CSV without one."""

    split: str
    class_name: str | None
    path: str
    """Below the root; of a line without a file as the line has it, or ''."""
    real: str = ""
    """Absolute, with links followed; '' if there is no such file."""
    version: tuple[int, int, int] = (0, 0, 0)
    """Bytes, and times of change in nanoseconds: of the contents, and of the file's entry. If one of them differs, the
    video is read again."""
    error: str = ""
    """Why the video cannot be used; '' if it can."""
    is_listed: bool = True
    """Whether it belongs to the split; False for a file that no CSV lists."""
    video_id: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Member:
    """A video of a part."""

    video: FolderVideo
    sha256: str
    """Of its contents; '' for an unlisted video, which is not read."""


PartName = tuple[str, int]
"""Split and number."""


class ArchiveWriter:
    """Writes the files of archive/, and those only whose bytes change."""

    def __init__(self, archive: DataFolder, scratch: Path, jobs: int, on_progress: Progress | None) -> None:
        self.unreadable: list[FolderVideo] = []
        """Videos that could not be read, each with its error."""
        self.num_read = 0
        """Videos that were read by this run."""
        self._files: dict[str, ArchivedFile] = {}
        self._archive, self._scratch, self._jobs, self._on_progress = archive, scratch, jobs, on_progress

    def read(self, parts: Mapping[PartName, Sequence[FolderVideo]]) -> dict[PartName, list[Member]]:
        """Hash the videos of the parts, and write the parts' lists; returns the videos of each that can be used.

        Hashes are kept in scratch, part by part, and used as long as the part's list is there.
        """
        known = dict(self._known())
        todo = {
            part: [v for v in of if v.is_listed and not v.error and (v.real, v.version) not in known]
            for part, of in parts.items()
        }
        total, done = sum(video.version[0] for of in todo.values() for video in of), 0
        members: dict[PartName, list[Member]] = {}
        with concurrent.futures.ThreadPoolExecutor(self._jobs) as pool:
            try:
                for part, videos in parts.items():
                    errors: dict[str, str] = {}
                    for video, (sha256, error) in zip(todo[part], pool.map(_digest, todo[part]), strict=True):
                        if not error:
                            known[video.real, video.version] = sha256
                        errors[video.path] = error
                        done += video.version[0]
                        self.num_read += not error
                        if self._on_progress:
                            self._on_progress("read, bytes", done, total)
                    self.unreadable += [
                        dataclasses.replace(video, error=errors[video.path])
                        for video in videos
                        if errors.get(video.path)
                    ]
                    members[part] = [
                        Member(video, known[video.real, video.version] if video.is_listed else "")
                        for video in videos
                        if not video.error and not errors.get(video.path)
                    ]
                    self._write_part(part, members[part])
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return members

    def write_annotations(self, split: str, videos: Iterable[FolderVideo]) -> None:
        """annotations/<split>.csv: the split's listed videos."""
        lines = {video.video_id: video.class_name or "" for video in videos if video.is_listed}
        rows = ((safe_cell(class_name), safe_id(video_id)) for video_id, class_name in lines.items())
        self._put(f"annotations/{split}.csv", _csv(("label", "youtube_id"), rows))

    def write_sources(self, videos: Mapping[str, Sequence[FolderVideo]]) -> None:
        """sources.csv: every video of every split, and why it is left out."""
        errors = {(video.split, video.path): video.error for video in self.unreadable}
        rows = []
        for video in itertools.chain.from_iterable(videos.values()):
            error = video.error or errors.get((video.split, video.path), "")
            reason = error or ("" if video.is_listed else "in no line of a CSV")
            texts = (safe_cell(text) for text in (video.class_name or "", video.path, reason))
            rows.append((video.split, safe_id(video.video_id), *texts))
        header = ("split", "video_id", "class_name", "path", "reason")
        self._put("sources.csv", _csv(header, rows, errors="backslashreplace"))

    def finish(self, splits: Mapping[str, FetchedSplit]) -> None:
        """Remove the lists and annotations that were not written again, and write the inventory."""
        for path in [*self._archive.stored.glob("*/part_*.csv"), *self._archive.stored.glob("annotations/*.csv")]:
            if path.relative_to(self._archive.stored).as_posix() not in self._files:
                (self._archive.tracked / "inventory.json").unlink(missing_ok=True)
                path.unlink()
        path, data = self._archive.tracked / "inventory.json", Inventory(self._files, splits).to_bytes()
        if not (path.is_file() and path.read_bytes() == data):
            with atomic_write(path) as file:
                file.write(data)

    def _put(self, name: str, data: bytes, sha256: str = "", members: int | None = None) -> None:
        """Write the file unless it has these bytes. `sha256` is what the inventory has instead of the file's own."""
        path = self._archive.stored / name
        if not (path.is_file() and path.read_bytes() == data):
            (self._archive.tracked / "inventory.json").unlink(missing_ok=True)  # neither the old state nor the new one
            with atomic_write(path) as file:
                file.write(data)
        sha256 = sha256 or hashlib.sha256(data).hexdigest()
        self._files[name] = ArchivedFile(size=len(data), sha256=sha256, members=members)

    def _write_part(self, part: PartName, members: Sequence[Member]) -> None:
        name = f"{part[0]}/part_{part[1]}.csv"
        known = [[member.video.real, *member.video.version, member.sha256] for member in members if member.sha256]
        write_json(self._record(name), known, indent=None)
        # real paths are absolute: they begin with / and need no escape as cells. They need not be UTF-8
        rows = ((safe_id(member.video.video_id), member.sha256, member.video.real) for member in members)
        data = _csv(LISTED, rows, errors="surrogateescape")
        sha256 = content_sha256((member.video.video_id, member.sha256) for member in members)
        self._put(name, data, sha256=sha256, members=len(members))

    def _known(self) -> Iterator[tuple[tuple[str, tuple[int, int, int]], str]]:
        """((path, version), sha256) of the videos that were read before.

        Without its list a part's hashes are not used: after a list was removed, its videos are read again.
        """
        for path in self._archive.stored.glob("*/part_*.csv"):
            for entry in read_json_list(self._record(path.relative_to(self._archive.stored).as_posix())):
                match entry:
                    case [str(real), int(size), int(modified), int(changed), str(sha256)]:
                        yield (real, (size, modified, changed)), sha256

    def _record(self, name: str) -> Path:
        return self._scratch / f"{name.replace('/', '_')}.json"


def _digest(video: FolderVideo) -> tuple[str, str]:
    """(sha256 of the video, ''), or ('', why it cannot be read). Raises UserError if it changes meanwhile."""
    try:
        with open(video.real, "rb") as file:
            sha256 = sha256_of_open(file)
            status = os.fstat(file.fileno())
    except OSError as error:
        return "", f"cannot be read: {error.strerror}"
    if (status.st_size, status.st_mtime_ns, status.st_ctime_ns) != video.version:
        raise UserError(f"{video.real} changed while it was read; run again when nothing writes to the folder")
    return sha256, ""


def _csv(header: Sequence[str], rows: Iterable[Sequence[str]], errors: str = "strict") -> bytes:
    text = io.StringIO()
    # all cells are quoted: otherwise readers take a carriage return in a name for the end of a line
    lines = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    lines.writerows([header, *rows])
    return text.getvalue().encode(errors=errors)
