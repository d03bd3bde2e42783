"""One's own videos where a mirror would be: a folder -> archive/. The videos stay where they are, and are listed.

    <root>/train/<class>/<any name>.mp4     a split as class folders; or, stronger where it is there, as a CSV:
    <root>/train.csv                        with columns label,video (a path below root), or with Kinetics' columns,
    <root>/annotations/train.csv            also here;
    <root>/annotations.csv                  or one for all splits, with a column split

    archive/train/part_0.csv                some hundred videos: video_id, sha256, path
    archive/annotations/train.csv           label,youtube_id of every video that there should be
    archive/sources.csv                     what each video is called here, and why one is left out
    archive/inventory.json                  written last

Each video is read through once, so that later stages notice if it is another. A video belongs to a part by the hash of
its name: one more or less changes its own part, and at most one other.
"""

import collections
import concurrent.futures
import contextlib
import csv
import dataclasses
import hashlib
import io
import itertools
import json
import os
import posixpath
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from ..errors import UserError
from ..files.atomic import atomic_write
from ..files.csv_cells import safe_cell, safe_id
from ..process.progress import Progress
from .annotations import clip_name, read_rows
from .archives import LISTED, MAX_VIDEO_BYTES
from .download import inventory_text, parse_parts
from .manifest import SPLITS

FOLDER = "folder:"
ENDINGS = (".mp4", ".mkv", ".webm", ".avi", ".mov")
VIDEOS_PER_PART = 500


def list_folder(
    source: str,
    archive: Path,
    *,
    splits: Sequence[str],
    parts: str,
    jobs: int,
    scratch: Path,
    on_progress: Progress | None = None,
) -> str:
    """Make archive/ of the videos below `source`, `folder:///a/path` or `folder:a/path`; gives lines that say what was
    left out, and a last one that says what is there.

    `splits`, `parts`, `jobs`, `scratch` and `on_progress` are those of `download`; a split `test` may lack. What did
    not change since the last run is not read again. Raises UserError: where nobody can tell which video is of which
    split and class, or a split has none that can be used.
    """
    root, numbers = _root(source), parse_parts(parts)
    found = _find(root, splits)
    splits = [split for split in splits if split in found.videos]
    shares = {split: _share_out(found.videos[split]) for split in splits}
    chosen = {
        split: {number: videos for number, videos in of.items() if numbers is None or number in numbers}
        for split, of in shares.items()
    }
    for split in splits:
        if not chosen[split]:
            raise UserError(f"parts is {parts!r}, and {split} has {len(shares[split])} of them, from 0 on")

    desk = _Desk(archive, scratch / "videos", jobs, on_progress)
    members = desk.read({(split, number): videos for split in splits for number, videos in chosen[split].items()})
    left_out = [video for split in splits for video in found.videos[split] if video.fault] + desk.unreadable
    for split in splits:
        if not any(video.is_listed for (of, _), videos in members.items() if of == split for video, _ in videos):
            kinds = _kinds(video for video in left_out if video.split == split)
            raise UserError(
                f"{root}: {split} ({found.how[split]}) has no video that can be used: {kinds or 'it is empty'}"
            )

    for split, videos in found.videos.items():
        desk.put(f"annotations/{split}.csv", _annotation_text(videos))
    desk.put("sources.csv", _sources_text(found.videos, desk.unreadable))
    desk.finish({split: {"parts": sorted(chosen[split]), "listed": len(shares[split])} for split in splits})
    return "\n".join([*_lines(left_out), _summary(found, members, left_out, desk.num_read, archive)])


@dataclasses.dataclass(frozen=True, slots=True)
class _Video:
    split: str
    class_name: str | None
    path: str
    """Below the root; of a line without a file as the line has it, or ''."""
    real: str = ""
    """Absolute, without links."""
    version: tuple[int, int, int] = (0, 0, 0)
    """Bytes, and times of change in nanoseconds: of the contents, and of anything. A video of another one is read."""
    fault: str = ""
    """Why it cannot be used."""
    is_listed: bool = True
    video_id: str = ""


# a video, and the sha256 of what it holds; of one that nobody reads, ''
_Member = tuple[_Video, str]


@dataclasses.dataclass(frozen=True)
class _Found:
    videos: dict[str, list[_Video]]
    """By split, also of those that nobody asked for: labels are numbered over all of them."""
    how: dict[str, str]
    """Split -> CSV, or its folder."""
    others: collections.Counter
    """Ending -> files that were passed over."""


# which videos there are


def _root(source: str) -> Path:
    root = Path(source.removeprefix(FOLDER)).expanduser()
    if not root.is_dir():
        raise UserError(f"data source {source}: {root} is no folder; give the one that holds your videos")
    return root.resolve()


def _find(root: Path, splits: Sequence[str]) -> _Found:
    tables = _tables(root)
    folders = [split for split in SPLITS if split not in tables and (root / split).is_dir()]
    lacking = [split for split in splits if split not in tables and split not in folders and split != "test"]
    if lacking:
        here = sorted(path.name for path in root.iterdir() if not path.name.startswith("."))
        raise UserError(
            f"{root} says nothing of {' and '.join(lacking)}: there is neither a folder {lacking[0]} nor "
            f"{lacking[0]}.csv, annotations/{lacking[0]}.csv or annotations.csv with lines of it, but "
            f"{', '.join(here[:10]) or 'nothing'}{', …' if len(here) > 10 else ''}. Sort the videos into "
            f"{lacking[0]}/<class>/, or write {lacking[0]}.csv with the columns label,video"
        )
    for split in folders:
        if not _is_inside(root, root / split):
            raise UserError(f"{root / split} is a link that leads out of {root}; put the folder itself there")
    paths, others = [], collections.Counter()
    # where there is a CSV its videos may lie anywhere
    tops = [root] if tables else []
    for top in tops + [root / split for split in folders if not tables or (root / split).is_symlink()]:
        for path in _walk(top, [root / split for split in folders]):
            if path.suffix.lower() in ENDINGS:
                paths.append(path.relative_to(root).as_posix())
            else:
                others[path.suffix.lower()] += 1
    paths.sort()
    others.subtract(collections.Counter(path.suffix.lower() for path in {path for path, _ in tables.values()}))

    videos = {split: _of_folder(root, split, paths) for split in folders}
    in_folders = tuple(f"{split}/" for split in folders)
    elsewhere = [path for path in paths if not path.startswith(in_folders)]
    by_stem = collections.defaultdict(list)
    for path in elsewhere:
        by_stem[PurePosixPath(path).stem].append(path)
    videos |= {split: _of_table(root, split, lines, by_stem) for split, (_, lines) in tables.items()}
    used = {video.real for of in videos.values() for video in of if video.real}
    for path in elsewhere:
        split = path.partition("/")[0]
        video = _inspect(root, _Video(split if split in tables else next(iter(tables)), None, path, is_listed=False))
        if video.real not in used:
            videos[video.split].append(video)
    how = {split: path.relative_to(root).as_posix() for split, (path, _) in tables.items()}
    how |= {split: f"{split}/" for split in folders}
    return _Found({split: _named(videos[split]) for split in SPLITS if split in videos}, how, +others)


def _walk(top: Path, strict: Sequence[Path]) -> Iterator[Path]:
    """All files below. Links to folders are not followed; in class folders they are refused, for videos would lack."""

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: {error.strerror}; make it readable, then run again")

    for folder, folders, names in os.walk(top, onerror=refuse):
        here = Path(folder)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in folders:
            if (here / name).is_symlink() and any(here.is_relative_to(split) for split in strict):
                raise UserError(
                    f"{here / name} is a link to a folder, and such are not followed; put the folder itself there, or "
                    "links to its files"
                )
        yield from (here / name for name in names if not name.startswith("."))


def _of_folder(root: Path, split: str, paths: Iterable[str]) -> list[_Video]:
    videos = []
    for path in paths:
        if path.startswith(f"{split}/"):
            _, *folders, _ = path.split("/")
            video = _Video(split, _class_name(folders[0]) if folders else None, path)
            if not folders and split != "test":  # a test split may have no labels
                video = dataclasses.replace(video, fault="in no class folder", is_listed=False)
            videos.append(_inspect(root, video))
    return videos


def _of_table(root: Path, split: str, lines: Iterable["_Line"], by_stem: dict[str, list[str]]) -> list[_Video]:
    videos = []
    for line in lines:
        if line.video:
            paths = [line.video]
        else:
            copies = by_stem.get(line.video_id, [])
            paths = [path for path in copies if path.startswith(f"{split}/")] or copies
        videos += [_inspect(root, _Video(split, line.class_name, path, video_id=line.video_id)) for path in paths]
        if not paths:
            videos.append(_Video(split, line.class_name, "", fault="no file of this name", video_id=line.video_id))
    return videos


def _inspect(root: Path, video: _Video) -> _Video:
    """Where the video really lies, and what is wrong with that."""
    try:
        path = (root / video.path).resolve(strict=True)
        status = path.stat()
    except (OSError, RuntimeError, ValueError) as error:  # a link in a circle, a path with a zero byte
        if isinstance(error, FileNotFoundError):
            reason = "a link to nothing" if (root / video.path).is_symlink() else "is not there"
        else:
            reason = getattr(error, "strerror", None) or str(error)
        return dataclasses.replace(video, fault=video.fault or reason)
    fault = ""
    if not path.is_relative_to(root):
        fault = "leads out of the folder"
    elif not stat.S_ISREG(status.st_mode):
        fault = "is no regular file"
    elif status.st_size > MAX_VIDEO_BYTES:
        fault = f"{status.st_size / 1e9:.1f} GB; cut it into clips"
    version = status.st_size, status.st_mtime_ns, status.st_ctime_ns
    return dataclasses.replace(video, real=str(path), version=version, fault=video.fault or fault)


def _is_inside(root: Path, path: Path) -> bool:
    return path.resolve().is_relative_to(root)


def _class_name(text: str) -> str:
    """One line of printable characters."""
    return " ".join("".join(c if c.isprintable() else " " if c.isspace() else "_" for c in text).split())


def _named(videos: list[_Video]) -> list[_Video]:
    """The same with a video_id each: the file's name, and a hash of its path where that names two."""
    names = [video for video in videos if video.video_id]
    for is_listed in (True, False):  # what lies about must not change the names of what is listed
        group = [video for video in videos if not video.video_id and video.is_listed == is_listed]
        words = [_word(video.path) for video in group]
        counts, taken = collections.Counter(words), {video.video_id for video in names}
        for video, name in zip(group, words, strict=True):
            if counts[name] > 1 or name in taken:
                name += f"_{hashlib.sha256(os.fsencode(video.path)).hexdigest()[:8]}"
            names.append(dataclasses.replace(video, video_id=name))
    return sorted(names, key=lambda video: (video.video_id, video.path))


def _word(path: str) -> str:
    """The file's name as a word that may stand in lists and name files."""
    stem = PurePosixPath(path).stem
    return (
        "".join(c if c.isprintable() and not c.isspace() and c not in "/\\" else "_" for c in stem).lstrip(".") or "_"
    )


# annotations as they come


@dataclasses.dataclass(frozen=True)
class _Line:
    split: str
    class_name: str | None
    video: str
    """Path below the root, or ''."""
    video_id: str
    """Or ''."""


def _tables(root: Path) -> dict[str, tuple[Path, list[_Line]]]:
    """Split -> its CSV and the lines of it, for those that have one."""
    places = {split: [root / f"{split}.csv", root / "annotations" / f"{split}.csv"] for split in SPLITS}
    there = {split: [path for path in paths if path.is_file()] for split, paths in places.items()}
    one = root / "annotations.csv"
    several = [path for paths in there.values() for path in paths]
    # one CSV for all, or one for each split, and that once
    for paths in [[one, *several]] if one.is_file() else there.values():
        if len(paths) > 1:
            raise UserError(f"{paths[0]} and {paths[1]} both say which videos there are; remove one")
    for path in [one, *several]:
        if not _is_inside(root, path):
            raise UserError(f"{path} is a link that leads out of {root}; put the file itself there")
    if not one.is_file():
        return {split: (paths[0], _read_table(paths[0], split)) for split, paths in there.items() if paths}
    lines = collections.defaultdict(list)
    for line in _read_table(one, None):
        lines[line.split].append(line)
    return {split: (one, lines[split]) for split in SPLITS if split in lines}


def _read_table(path: Path, split: str | None) -> list[_Line]:
    """Each video that the CSV lists, once; without a `split` it stands in the lines."""
    lines: dict[tuple[str, str], _Line] = {}
    for number, row in read_rows(path, ["video", "youtube_id"], "save it as one, with commas"):
        try:
            line = _read_line(row, split)
            known = lines.setdefault((line.split, line.video or line.video_id), line)
            if known != line:
                raise ValueError(f"{line.video or line.video_id} is {line.class_name!r}, above {known.class_name!r}")
        except ValueError as error:
            raise UserError(f"{path}, line {number}: {error}") from None
    return list(lines.values())


def _read_line(row: dict[str, str], split: str | None) -> _Line:
    if split is None:
        split = {"validation": "val", "validate": "val"}.get(row.get("split", ""), row.get("split", ""))
        if split not in SPLITS:
            raise ValueError(f"split is {split!r}, not one of {', '.join(SPLITS)}")
    class_name = _class_name(row.get("label", "")) or None
    if class_name is None and split != "test":
        raise ValueError(f"there is no label, which every video of {split} needs")
    if "video" not in row:
        return _Line(split, class_name, "", clip_name(row))
    if not row["video"]:
        raise ValueError("video is empty; it is the file's path")
    return _Line(split, class_name, posixpath.normpath(row["video"]), "")


# into parts


def _share_out(videos: list[_Video]) -> dict[int, list[_Video]]:
    """Number of a part -> its videos. Those that no line lists are a part of their own, the last."""
    listed = [video for video in videos if video.is_listed]
    num_parts = max(1, -(-len(listed) // VIDEOS_PER_PART))
    parts: dict[int, list[_Video]] = {number: [] for number in range(num_parts)}
    for video in listed:
        parts[_number(video.video_id, num_parts)].append(video)
    if unlisted := [video for video in videos if not video.is_listed and not video.fault]:
        parts[num_parts] = unlisted
    return parts


def _number(video_id: str, num_parts: int) -> int:
    """Linear hashing (Litwin 1980): one more part takes from one other, and from none else."""
    power = 1 << (num_parts - 1).bit_length()
    number = int.from_bytes(hashlib.sha256(video_id.encode()).digest()[:8]) % power
    return number if number < num_parts else number - power // 2


class _Desk:
    """The folder archive/ at work: what is known of its videos, and which of its files are as they should be."""

    def __init__(self, archive: Path, scratch: Path, jobs: int, on_progress: Progress | None) -> None:
        self.unreadable: list[_Video] = []
        self.num_read = 0
        self._files: dict[str, dict] = {}
        self._archive, self._scratch, self._jobs, self._on_progress = archive, scratch, jobs, on_progress

    def read(self, parts: dict[tuple[str, int], list[_Video]]) -> dict[tuple[str, int], list[_Member]]:
        """(split, number of a part) -> its videos that can be used, with the sha256 of each.

        What was read is kept in scratch, part by part, and taken from there as long as the part's list is there.
        """
        known = dict(self._known())
        todo = {
            part: [v for v in of if v.is_listed and not v.fault and (v.real, v.version) not in known]
            for part, of in parts.items()
        }
        total, done = sum(video.version[0] for of in todo.values() for video in of), 0
        members = {}
        with concurrent.futures.ThreadPoolExecutor(self._jobs) as pool:
            try:
                for part, videos in parts.items():
                    reasons = {}
                    for video, (sha256, reason) in zip(todo[part], pool.map(_digest, todo[part]), strict=True):
                        if not reason:
                            known[video.real, video.version] = sha256
                        reasons[video.path] = reason
                        done += video.version[0]
                        self.num_read += not reason
                        if self._on_progress:
                            self._on_progress("read, bytes", done, total)
                    self.unreadable += [
                        dataclasses.replace(video, fault=reasons[video.path])
                        for video in videos
                        if reasons.get(video.path)
                    ]
                    members[part] = [
                        (video, known[video.real, video.version] if video.is_listed else "")
                        for video in videos
                        if not video.fault and not reasons.get(video.path)
                    ]
                    self._keep(part, members[part])
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return members

    def put(self, name: str, data: bytes, **facts) -> None:
        """See that the file is there with these bytes; `facts` are what the inventory says of it on top."""
        path = self._archive / name
        if not (path.is_file() and path.read_bytes() == data):
            (self._archive / "inventory.json").unlink(missing_ok=True)  # neither the old state nor the new one
            with atomic_write(path) as file:
                file.write(data)
        self._files[name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} | facts

    def finish(self, splits: dict[str, dict]) -> None:
        """Remove lists and annotations that are none any more, and write the inventory."""
        for path in [*self._archive.glob("*/part_*.csv"), *self._archive.glob("annotations/*.csv")]:
            if path.relative_to(self._archive).as_posix() not in self._files:
                (self._archive / "inventory.json").unlink(missing_ok=True)
                path.unlink()
        self.put("inventory.json", inventory_text(self._files, splits))

    def _keep(self, part: tuple[str, int], members: list[_Member]) -> None:
        name = f"{part[0]}/part_{part[1]}.csv"
        with atomic_write(self._record(name)) as file:
            facts = [[video.real, *video.version, sha256] for video, sha256 in members if sha256]
            file.write(json.dumps(facts).encode())
        self.put(name, _list_text(members), sha256=_content(members), members=len(members))

    def _known(self) -> Iterator[tuple[tuple[str, tuple[int, int, int]], str]]:
        """(path, version), sha256. A list that was removed takes with it what is known: so one has it read again."""
        for path in self._archive.glob("*/part_*.csv"):
            with contextlib.suppress(FileNotFoundError, ValueError):
                record = self._record(path.relative_to(self._archive).as_posix())
                for real, size, modified, changed, sha256 in json.loads(record.read_bytes()):
                    yield (real, (size, modified, changed)), sha256

    def _record(self, name: str) -> Path:
        return self._scratch / f"{name.replace('/', '_')}.json"


def _digest(video: _Video) -> tuple[str, str]:
    """sha256 of a video read through, or '' and why it cannot be read."""
    try:
        with open(video.real, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            status = os.fstat(file.fileno())
    except OSError as error:
        return "", f"cannot be read: {error.strerror}"
    if (status.st_size, status.st_mtime_ns, status.st_ctime_ns) != video.version:
        raise UserError(f"{video.real} changed while it was read; run again when nobody writes to the folder")
    return sha256, ""


# files


def _content(members: list[_Member]) -> str:
    """One sha256 for what a list names, wherever that lies."""
    return hashlib.sha256("".join(f"{sha256} {video.video_id}\n" for video, sha256 in members).encode()).hexdigest()


def _list_text(members: list[_Member]) -> bytes:
    rows = ((safe_id(video.video_id), sha256, video.real) for video, sha256 in members)  # real is absolute: /…
    return _csv(LISTED, rows, errors="surrogateescape")  # paths need not be UTF-8


def _annotation_text(videos: list[_Video]) -> bytes:
    lines = {video.video_id: video.class_name or "" for video in videos if video.is_listed}
    rows = ((safe_cell(class_name), safe_id(video_id)) for video_id, class_name in lines.items())
    return _csv(("label", "youtube_id"), rows)


def _sources_text(videos: dict[str, list[_Video]], unreadable: list[_Video]) -> bytes:
    faults = {(video.split, video.path): video.fault for video in unreadable}
    rows = []
    for video in itertools.chain.from_iterable(videos.values()):
        fault = video.fault or faults.get((video.split, video.path), "")
        reason = fault or ("" if video.is_listed else "in no line of a CSV")
        texts = (safe_cell(text) for text in (video.class_name or "", video.path, reason))
        rows.append((video.split, safe_id(video.video_id), *texts))
    return _csv(("split", "video_id", "class_name", "path", "reason"), rows, errors="backslashreplace")


def _csv(header: Sequence[str], rows: Iterable[Sequence[str]], errors: str = "strict") -> bytes:
    text = io.StringIO()
    # all in quotes: readers take a carriage return in a name for the end of a line otherwise
    lines = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    lines.writerows([header, *rows])
    return text.getvalue().encode(errors=errors)


# what to tell


def _lines(left_out: list[_Video]) -> list[str]:
    lines = [f"left out: {video.split}, {video.path or video.video_id}: {video.fault}" for video in left_out[:10]]
    more = [f"left out: {len(left_out) - 10} more"] if len(left_out) > 10 else []
    return [line.encode(errors="backslashreplace").decode() for line in lines + more]


def _kinds(left_out: Iterable[_Video]) -> str:
    """2 is not there, 1 in no class folder"""
    counts = collections.Counter(video.fault for video in left_out).most_common()
    more = sum(count for _, count in counts[4:])
    return ", ".join(
        [f"{count:,} {fault}" for fault, count in counts[:4]] + [f"{more:,} for other reasons"] * bool(more)
    )


def _summary(
    found: _Found,
    members: dict[tuple[str, int], list[_Member]],
    left_out: list[_Video],
    num_read: int,
    archive: Path,
) -> str:
    videos = [video for of in members.values() for video, _ in of]
    listed = [video for video in videos if video.is_listed]
    size = sum(video.version[0] for video in listed)
    asides = [f"{split} from {found.how[split]}" for split in dict.fromkeys(split for split, _ in members)]
    if left_out:
        asides.append(f"left out: {_kinds(left_out)}")
    if len(videos) > len(listed):
        asides.append(f"{len(videos) - len(listed):,} in no line of a CSV")
    if found.others:
        kinds = ", ".join(f"{count:,} {ending or 'without ending'}" for ending, count in sorted(found.others.items()))
        asides.append(f"passed over: {kinds}")
    return (
        f"download: {len(listed):,} videos in {len(members)} lists, {size / 1e9:.2f} GB, {num_read:,} of them "
        f"read now; {'; '.join(asides)} ({archive / 'sources.csv'})"
    )
