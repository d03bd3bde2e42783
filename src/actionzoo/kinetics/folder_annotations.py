"""The CSV files of a folder of one's own videos: which videos of which class a split has.

<root>/train.csv, <root>/annotations/train.csv     a split, with columns label,video or Kinetics' columns
<root>/annotations.csv                             all splits, with a column split
"""

import collections
import dataclasses
import posixpath
from pathlib import Path

from ..errors import UserError
from .annotations import clip_name, read_rows
from .manifest import SPLITS


@dataclasses.dataclass(frozen=True)
class ListedVideo:
    """One line of a CSV; it has either a path or an id."""

    split: str
    class_name: str | None
    """None where a test split has no label."""
    path: str
    """Path below the root, or ''."""
    video_id: str
    """Id by Kinetics' columns, or ''."""


@dataclasses.dataclass(frozen=True)
class SplitTable:
    """What a CSV says of one split."""

    path: Path
    videos: list[ListedVideo]
    """Each video once, in the file's order."""


def read_tables(root: Path) -> dict[str, SplitTable]:
    """Split -> its table, for the splits that have a CSV, in the order of SPLITS.

    Raises UserError for a CSV that cannot be read, and where two of them list the same split.
    """
    candidates = {split: [root / f"{split}.csv", root / "annotations" / f"{split}.csv"] for split in SPLITS}
    found = {split: [path for path in paths if path.is_file()] for split, paths in candidates.items()}
    common = root / "annotations.csv"
    separate = [path for paths in found.values() for path in paths]
    # one CSV for all splits, or at most one for each
    for paths in [[common, *separate]] if common.is_file() else found.values():
        if len(paths) > 1:
            raise UserError(f"{paths[0]} and {paths[1]} both say which videos there are; remove one")
    for path in [common, *separate]:
        if not is_inside(root, path):
            raise UserError(f"{path} is a link that leads out of {root}; put the file itself there")
    if not common.is_file():
        return {split: SplitTable(paths[0], _read_table(paths[0], split)) for split, paths in found.items() if paths}
    videos = collections.defaultdict(list)
    for video in _read_table(common, None):
        videos[video.split].append(video)
    return {split: SplitTable(common, videos[split]) for split in SPLITS if split in videos}


def is_inside(root: Path, path: Path) -> bool:
    """Whether the path, with its links followed, lies below `root`."""
    return path.resolve().is_relative_to(root)


def clean_class_name(text: str) -> str:
    """The text as one line of printable characters."""
    return " ".join("".join(c if c.isprintable() else " " if c.isspace() else "_" for c in text).split())


def _read_table(path: Path, split: str | None) -> list[ListedVideo]:
    """Each video that the CSV lists, once. Without `split` the lines name their splits."""
    videos: dict[tuple[str, str], ListedVideo] = {}
    for number, row in read_rows(path, ["video", "youtube_id"], "save it as one, with commas"):
        try:
            video = _read_line(row, split)
            known = videos.setdefault((video.split, video.path or video.video_id), video)
            if known != video:
                raise ValueError(f"{video.path or video.video_id} is {video.class_name!r}, above {known.class_name!r}")
        except ValueError as error:
            raise UserError(f"{path}, line {number}: {error}") from None
    return list(videos.values())


def _read_line(row: dict[str, str], split: str | None) -> ListedVideo:
    """Raises ValueError."""
    if split is None:
        split = {"validation": "val", "validate": "val"}.get(row.get("split", ""), row.get("split", ""))
        if split not in SPLITS:
            raise ValueError(f"split is {split!r}, not one of {', '.join(SPLITS)}")
    class_name = clean_class_name(row.get("label", "")) or None
    if class_name is None and split != "test":
        raise ValueError(f"there is no label, which every video of {split} needs")
    if "video" not in row:
        return ListedVideo(split, class_name, "", clip_name(row))
    if not row["video"]:
        raise ValueError("video is empty; it is the file's path")
    return ListedVideo(split, class_name, posixpath.normpath(row["video"]), "")
