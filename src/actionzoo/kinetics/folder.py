"""A folder of one's own videos in place of a mirror: folder -> archive/. The videos stay where they are.

    <root>/train/<class>/<any name>.mp4     a split as class folders; or, taking precedence, as a CSV:
    <root>/train.csv                        (folder_annotations.py)

Each video is read once, so that later stages notice when it changes (archive_writer.py). The hash of its name decides
the part of a video: one video more or less changes its own part, and at most one other.
"""

import collections
import dataclasses
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from ..errors import UserError
from ..files.data_folder import DataFolder
from .archive_writer import ArchiveWriter, FolderVideo, Member, PartName
from .archives import MAX_VIDEO_BYTES
from .download import parse_parts
from .execution import Execution
from .folder_annotations import ListedVideo, clean_class_name, is_inside, read_tables
from .inventory import FetchedSplit
from .manifest import SPLITS

FOLDER = "folder:"
ENDINGS = (".mp4", ".mkv", ".webm", ".avi", ".mov")
VIDEOS_PER_PART = 500


def list_folder(
    source: str,
    archive: DataFolder,
    execution: Execution,
    *,
    splits: Sequence[str],
    parts: str,
) -> str:
    """Make archive/ of the videos below `source`, which is `folder:///a/path` or `folder:a/path`.

    Returns a line for each of the first videos that were left out, and a last one that sums up. The parameters are
    those of `download`, so that a stage can call either; a split `test` may be absent. Videos that did not change since
    the last run are not read again. Raises UserError if the folder does not say which video is of which split and
    class, or if a split has no usable video.
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

    writer = ArchiveWriter(archive, execution.scratch / "videos", execution.jobs, execution.on_progress)
    members = writer.read({(split, number): videos for split in splits for number, videos in chosen[split].items()})
    left_out = [video for split in splits for video in found.videos[split] if video.error] + writer.unreadable
    for split in splits:
        of_split = [member for (of, _), part in members.items() if of == split for member in part]
        if not any(member.video.is_listed for member in of_split):
            reasons = _count_errors(video for video in left_out if video.split == split)
            raise UserError(
                f"{root}: {split} ({found.sources[split]}) has no video that can be used: {reasons or 'it is empty'}"
            )

    for split, videos in found.videos.items():
        writer.write_annotations(split, videos)
    writer.write_sources(found.videos)
    writer.finish({split: FetchedSplit(tuple(sorted(chosen[split])), len(shares[split])) for split in splits})
    return "\n".join([*_lines(left_out), _summary(found, members, left_out, writer.num_read, archive.stored)])


@dataclasses.dataclass(frozen=True)
class _Found:
    videos: dict[str, list[FolderVideo]]
    """By split, including splits that were not asked for: labels are numbered over all of them."""
    sources: dict[str, str]
    """Split -> its CSV or folder, relative to the root."""
    others: collections.Counter[str]
    """Ending -> number of files that are no videos."""


# which videos there are


def _root(source: str) -> Path:
    root = Path(source.removeprefix(FOLDER)).expanduser()
    if not root.is_dir():
        raise UserError(f"data source {source}: {root} is no folder; give the one that holds your videos")
    return root.resolve()


def _find(root: Path, splits: Sequence[str]) -> _Found:
    tables = read_tables(root)
    folders = [split for split in SPLITS if split not in tables and (root / split).is_dir()]
    absent = [split for split in splits if split not in tables and split not in folders and split != "test"]
    if absent:
        here = sorted(path.name for path in root.iterdir() if not path.name.startswith("."))
        raise UserError(
            f"{root} says nothing of {' and '.join(absent)}: there is neither a folder {absent[0]} nor "
            f"{absent[0]}.csv, annotations/{absent[0]}.csv or annotations.csv with lines of it, but "
            f"{', '.join(here[:10]) or 'nothing'}{', …' if len(here) > 10 else ''}. Sort the videos into "
            f"{absent[0]}/<class>/, or write {absent[0]}.csv with the columns label,video"
        )
    for split in folders:
        if not is_inside(root, root / split):
            raise UserError(f"{root / split} is a link that leads out of {root}; put the folder itself there")
    paths: list[str] = []
    others: collections.Counter[str] = collections.Counter()
    # the videos of a CSV may lie anywhere below the root
    tops = [root] if tables else []
    for top in tops + [root / split for split in folders if not tables or (root / split).is_symlink()]:
        for path in _walk(top, [root / split for split in folders]):
            if path.suffix.lower() in ENDINGS:
                paths.append(path.relative_to(root).as_posix())
            else:
                others[path.suffix.lower()] += 1
    paths.sort()
    others.subtract(collections.Counter(path.suffix.lower() for path in {table.path for table in tables.values()}))

    videos = {split: _of_folder(root, split, paths) for split in folders}
    in_folders = tuple(f"{split}/" for split in folders)
    elsewhere = [path for path in paths if not path.startswith(in_folders)]
    by_stem = collections.defaultdict(list)
    for name in elsewhere:
        by_stem[PurePosixPath(name).stem].append(name)
    videos |= {split: _of_table(root, split, table.videos, by_stem) for split, table in tables.items()}
    used = {video.real for of in videos.values() for video in of if video.real}
    for name in elsewhere:
        split = name.partition("/")[0]
        split = split if split in tables else next(iter(tables))
        video = _inspect(root, FolderVideo(split, None, name, is_listed=False))
        if video.real not in used:
            videos[video.split].append(video)
    sources = {split: table.path.relative_to(root).as_posix() for split, table in tables.items()}
    sources |= {split: f"{split}/" for split in folders}
    return _Found({split: _with_ids(videos[split]) for split in SPLITS if split in videos}, sources, +others)


def _walk(top: Path, strict: Sequence[Path]) -> Iterator[Path]:
    """All files below `top`, hidden ones excepted. Links to folders are not followed.

    Raises UserError for such a link below a `strict` folder, where its videos would be missed, and for a folder that
    cannot be read.
    """

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


def _of_folder(root: Path, split: str, paths: Iterable[str]) -> list[FolderVideo]:
    videos = []
    for path in paths:
        if path.startswith(f"{split}/"):
            _, *folders, _ = path.split("/")
            video = FolderVideo(split, clean_class_name(folders[0]) if folders else None, path)
            if not folders and split != "test":  # a test split may have no labels
                video = dataclasses.replace(video, error="in no class folder", is_listed=False)
            videos.append(_inspect(root, video))
    return videos


def _of_table(
    root: Path, split: str, listed: Iterable[ListedVideo], by_stem: Mapping[str, list[str]]
) -> list[FolderVideo]:
    videos = []
    for line in listed:
        if line.path:
            paths = [line.path]
        else:
            copies = by_stem.get(line.video_id, [])
            paths = [path for path in copies if path.startswith(f"{split}/")] or copies
        videos += [_inspect(root, FolderVideo(split, line.class_name, path, video_id=line.video_id)) for path in paths]
        if not paths:
            missing = FolderVideo(split, line.class_name, "", error="no file of this name", video_id=line.video_id)
            videos.append(missing)
    return videos


def _inspect(root: Path, video: FolderVideo) -> FolderVideo:
    """The video with its real path and version, or with the error that makes it unusable."""
    try:
        path = (root / video.path).resolve(strict=True)
        status = path.stat()
    except (OSError, RuntimeError, ValueError) as error:  # a link in a circle, a path with a zero byte
        if isinstance(error, FileNotFoundError):
            reason = "a link to nothing" if (root / video.path).is_symlink() else "is not there"
        else:
            reason = getattr(error, "strerror", None) or str(error)
        return dataclasses.replace(video, error=video.error or reason)
    reason = ""
    if not path.is_relative_to(root):
        reason = "leads out of the folder"
    elif not stat.S_ISREG(status.st_mode):
        reason = "is no regular file"
    elif status.st_size > MAX_VIDEO_BYTES:
        reason = f"{status.st_size / 1e9:.1f} GB; cut it into clips"
    version = status.st_size, status.st_mtime_ns, status.st_ctime_ns
    return dataclasses.replace(video, real=str(path), version=version, error=video.error or reason)


def _with_ids(videos: list[FolderVideo]) -> list[FolderVideo]:
    """The videos with a video_id each, sorted by it: the file's name, with a hash of the path if that is not unique."""
    named = [video for video in videos if video.video_id]
    for is_listed in (True, False):  # listed first: unlisted files must not change the ids of listed ones
        group = [video for video in videos if not video.video_id and video.is_listed == is_listed]
        stems = [_safe_stem(video.path) for video in group]
        counts, used = collections.Counter(stems), {video.video_id for video in named}
        for video, name in zip(group, stems, strict=True):
            if counts[name] > 1 or name in used:
                name += f"_{hashlib.sha256(os.fsencode(video.path)).hexdigest()[:8]}"
            named.append(dataclasses.replace(video, video_id=name))
    return sorted(named, key=lambda video: (video.video_id, video.path))


def _safe_stem(path: str) -> str:
    """The file's name without its ending, as a word that may be in lists and be a file's name."""
    stem = PurePosixPath(path).stem
    return (
        "".join(c if c.isprintable() and not c.isspace() and c not in "/\\" else "_" for c in stem).lstrip(".") or "_"
    )


# into parts


def _share_out(videos: list[FolderVideo]) -> dict[int, list[FolderVideo]]:
    """Number of a part -> its videos. The unlisted ones are the last part."""
    listed = [video for video in videos if video.is_listed]
    num_parts = max(1, -(-len(listed) // VIDEOS_PER_PART))
    parts: dict[int, list[FolderVideo]] = {number: [] for number in range(num_parts)}
    for video in listed:
        parts[_number(video.video_id, num_parts)].append(video)
    if unlisted := [video for video in videos if not video.is_listed and not video.error]:
        parts[num_parts] = unlisted
    return parts


def _number(video_id: str, num_parts: int) -> int:
    """Linear hashing (Litwin 1980): an additional part takes videos from exactly one other."""
    power = 1 << (num_parts - 1).bit_length()
    number = int.from_bytes(hashlib.sha256(video_id.encode()).digest()[:8]) % power
    return number if number < num_parts else number - power // 2


# messages


def _lines(left_out: list[FolderVideo]) -> list[str]:
    lines = [f"left out: {video.split}, {video.path or video.video_id}: {video.error}" for video in left_out[:10]]
    more = [f"left out: {len(left_out) - 10} more"] if len(left_out) > 10 else []
    return [line.encode(errors="backslashreplace").decode() for line in lines + more]


def _count_errors(left_out: Iterable[FolderVideo]) -> str:
    """2 is not there, 1 in no class folder"""
    counts = collections.Counter(video.error for video in left_out).most_common()
    more = sum(count for _, count in counts[4:])
    return ", ".join(
        [f"{count:,} {error}" for error, count in counts[:4]] + [f"{more:,} for other reasons"] * bool(more)
    )


def _summary(
    found: _Found,
    members: Mapping[PartName, Sequence[Member]],
    left_out: list[FolderVideo],
    num_read: int,
    archive: Path,
) -> str:
    videos = [member.video for part in members.values() for member in part]
    listed = [video for video in videos if video.is_listed]
    size = sum(video.version[0] for video in listed)
    asides = [f"{split} from {found.sources[split]}" for split in dict.fromkeys(split for split, _ in members)]
    if left_out:
        asides.append(f"left out: {_count_errors(left_out)}")
    if len(videos) > len(listed):
        asides.append(f"{len(videos) - len(listed):,} in no line of a CSV")
    if found.others:
        kinds = ", ".join(f"{count:,} {ending or 'without ending'}" for ending, count in sorted(found.others.items()))
        asides.append(f"passed over: {kinds}")
    return (
        f"download: {len(listed):,} videos in {len(members)} lists, {size / 1e9:.2f} GB, {num_read:,} of them "
        f"read now; {'; '.join(asides)} ({archive / 'sources.csv'})"
    )
