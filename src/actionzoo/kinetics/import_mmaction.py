"""Import folders and lists that were prepared for MMAction2: they become manifest.csv; the videos stay where they are.

    kinetics400_val_list_videos.txt       abseiling/0wR5jVB-WPk.mp4 0           path, label
    kinetics400_val_list_rawframes.txt    abseiling/0wR5jVB-WPk 300 0           folder, number of frames, label
                                          with img_00001.jpg to img_00300.jpg in it

Nothing is copied or encoded. The manifest's column `shard` names the video, or the folder of frames. classes.txt beside
the manifest names all classes: a list of clips of some classes still has the labels of all. shards.csv lists no shard.
"""

import dataclasses
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Protocol

from ..errors import UserError, machine_fault
from ..files.hashes import sha256_of
from ..files.text import read_text
from ..process.progress import Progress
from .manifest import CLASSES, SPLITS, Clip, label_map, read_classes, read_manifest, write_manifest
from .shard_list import SHARDS, write_shards

MAX_FRAMES = 1_000_000
"""Limit for one clip: eleven hours at 25 per second."""


class VideoInfo(Protocol):
    """The contents of a video or of a folder of frames."""

    @property
    def num_frames(self) -> int: ...

    @property
    def width(self) -> int: ...

    @property
    def height(self) -> int: ...

    @property
    def fps(self) -> float | None: ...


Inspect = Callable[[list[tuple[Path, int | None]]], Iterable[VideoInfo | str]]
"""From (path, number of frames or None for a video) to the contents of each, or why it cannot be used; in order."""


@dataclasses.dataclass(frozen=True)
class _Line:
    number: int
    """Line number, from 1."""
    path: str
    """Relative, without `.` and `..`."""
    num_frames: int | None
    """None for a video."""
    label: int

    @property
    def video_id(self) -> str:
        """The path; a video's without the ending, as in the exported lists."""
        return self.path if self.num_frames else os.path.splitext(self.path)[0]


@dataclasses.dataclass(frozen=True)
class MMActionSplit:
    """A split as it was prepared for MMAction2: a list, and the folder with its videos or frames."""

    split: str
    """train, val or test."""
    list_file: Path
    folder: Path
    """The folder that the list's paths start in."""
    classes: Path | None = None
    """File with a class name per line, in the order of the labels; it is kept for splits that are imported later. None:
    a class is called by its label, and the labels must have no gap."""


def import_mmaction(
    form: Path,
    source: MMActionSplit,
    *,
    inspect: Inspect,
    max_bad_share: float = 0.05,
    on_progress: Progress | None = None,
) -> str:
    """Write the clips of a list into `form`/manifest.csv as one of its splits; returns a line that says what is there
    now.

    `form` is named by what it holds, data/<dataset>/videos_256 or frames_320; other splits of its manifest stay. A clip
    that is absent or cannot be decoded is in the manifest with the reason.

    Raises UserError for a list or a class list that cannot be read or that contradicts the manifest, for more unusable
    clips than `max_bad_share`, and for a form that the pipeline made. Raises MachineFault. In each case nothing is
    written.
    """
    split, list_file, folder, classes = source.split, source.list_file, source.folder, source.classes
    kind = form.name.partition("_")[0]
    if kind not in ("videos", "frames"):
        raise UserError(f"{form} must be called videos_<short side> or frames_<short side>, for example videos_256")
    if split not in SPLITS:
        raise UserError(f"the split is {split!r}, not one of {', '.join(SPLITS)}")
    if not os.path.isdir(folder):
        raise UserError(f"{str(folder)[:200]} is no folder; name the one that contains the paths of {list_file}")
    before = read_manifest(form / "manifest.csv") if (form / "manifest.csv").is_file() else None
    if any(clip.shard.endswith(".tar") for clip in before or ()):
        raise UserError(
            f"{form} holds shards that `dvc repro` made; give the folder's data set an entry of its own in params.yaml "
            "and name it in data.name"
        )
    lines = _read_list(list_file, has_frames=kind == "frames")
    others = [clip for clip in before or () if clip.split != split]
    kept = before.class_list if before and (others or not classes) else None
    if kept and list(kept) == [str(label) for label in range(len(kept))]:  # written by an import without class list
        kept = None
    names = _all_classes(form, classes, kept)
    if names:
        others = _named(others, names, form, classes)
    _check_labels(lines, list_file, names, classes or form / CLASSES, {clip.label for clip in others})
    found = inspect([(folder / line.path, line.num_frames) for line in lines])
    clips = []
    for number, (line, contents) in enumerate(zip(lines, found, strict=True), 1):
        clips.append(_clip(split, line, folder / line.path, names, contents))
        if on_progress:
            on_progress("inspect clips", number, len(lines))
    if not any(clip.is_usable for clip in clips):
        raise UserError(f"none of the {len(clips)} clips of {list_file} can be used below {folder}; {_first(clips)}")
    bad = [clip for clip in clips if not clip.is_usable]
    if len(bad) > max_bad_share * len(clips):
        raise UserError(
            f"{len(bad)} of the {len(clips)} clips of {list_file} cannot be used, which is more than "
            f"{max_bad_share:.1%}; {_first(bad)}"
        )
    found_clips = [*others, *clips]
    write_manifest(form / "manifest.csv", found_clips, names or label_map(found_clips))
    write_shards(form / SHARDS, {})
    left_out = f", {len(bad)} that cannot be used" if bad else ""
    return f"import-mmaction: {len(clips) - len(bad)} clips of {split}{left_out} ({form / 'manifest.csv'})"


def _read_list(path: Path, *, has_frames: bool) -> list[_Line]:
    lines: list[_Line] = []
    seen: dict[str, _Line] = {}
    text = read_text(path, "give a list with one clip per line")
    for number, line_text in enumerate(text.split("\n"), 1):
        if not line_text.strip():
            continue
        try:
            line = _parse(line_text.strip(), number, has_frames=has_frames)
        except ValueError as error:
            raise UserError(f"{path}, line {number}: {error}") from None
        if other := seen.get(line.video_id):
            if other.path == line.path:
                raise UserError(f"{path}, line {number}: {line.path} is listed twice, first in line {other.number}")
            raise UserError(
                f"{path}, line {number}: {line.path} and {other.path} in line {other.number} are both called "
                f"{line.video_id} here, without the ending; leave one out or rename it"
            )
        seen[line.video_id] = line
        lines.append(line)
    if not lines:
        raise UserError(f"{path} lists nothing")
    return lines


def _parse(text: str, number: int, *, has_frames: bool) -> _Line:
    """Raises ValueError."""
    # from the right: a path may have spaces in it
    fields = text.rsplit(maxsplit=2 if has_frames else 1)
    counts = fields[1:]
    if len(fields) != (3 if has_frames else 2) or not all(re.fullmatch("[0-9]+", count) for count in counts):
        expected = "path, number of frames, label" if has_frames else "path, label"
        raise ValueError(f"{text[:100]!r} is not `{expected}`")
    if any(len(count.lstrip("0")) > 9 for count in counts):
        raise ValueError(f"{text[:60]!r} ends in a number of {max(map(len, counts))} digits; labels have a few")
    num_frames, label = int(counts[0]) if has_frames else None, int(counts[-1])
    if num_frames == 0:
        raise ValueError(f"{fields[0]} has 0 frames; leave it out")
    if num_frames and num_frames > MAX_FRAMES:
        raise ValueError(f"{fields[0][:100]} has {num_frames} frames; a clip has at most {MAX_FRAMES}")
    return _Line(number, _relative(fields[0]), num_frames, label)


def _relative(text: str) -> str:
    """The path of a clip without `.`. Raises ValueError for one that leads out of the folder, or is no path."""
    path = PurePosixPath(text)
    shown = repr(text[:100])
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ValueError(f"{shown} does not lie below the folder; give a relative path without `..`")
    if re.search(r"[\x00-\x1f\x7f]", text):
        raise ValueError(f"{shown} has a control character in it; rename the file")
    if any(len(os.fsencode(part)) > 255 for part in path.parts) or len(os.fsencode(text)) > 3000:
        raise ValueError(f"{shown}… is longer than a file's name may be")
    return str(path)


def _all_classes(form: Path, given: Path | None, kept: Sequence[str] | None) -> list[str] | None:
    """Class names by label: of the file `given`, otherwise the ones `kept` beside the manifest; None if neither is."""
    if given is None:
        return list(kept) if kept else None
    names = read_classes(given)
    if kept and names != list(kept):
        pairs = enumerate(zip(names, kept, strict=False))
        differs = next((f"label {n} is {new!r} and was {old!r}" for n, (new, old) in pairs if new != old), "")
        raise UserError(
            f"{given} is another class list than {form / CLASSES}, which the other splits have ({len(names)} and "
            f"{len(kept)} names{'; ' if differs else ''}{differs}); give the same, or delete {form / 'manifest.csv'} "
            "and import all splits again"
        )
    return names


def _named(clips: list[Clip], names: Sequence[str], form: Path, classes: Path | None) -> list[Clip]:
    """The clips of other splits, with the names that were absent when they were imported. Raises UserError if a clip
    has another name."""
    named = []
    for clip in clips:
        name = names[clip.label] if 0 <= clip.label < len(names) else None
        if name is None or clip.class_name not in (name, str(clip.label)):
            raise UserError(
                f"{clip.video_id} of {clip.split} has label {clip.label}, {clip.class_name!r}, in "
                f"{form / 'manifest.csv'}, and {classes or form / CLASSES} says {name!r}; give the list of that split, "
                "or delete the manifest and import all splits again"
            )
        named.append(dataclasses.replace(clip, class_name=name))
    return named


def _check_labels(
    lines: list[_Line], list_file: Path, names: Sequence[str] | None, source: Path, other_labels: set[int]
) -> None:
    """Raises UserError for a label beyond the class list, or, without one, for labels with a gap."""
    last = max(lines, key=lambda line: line.label)
    if names:
        if last.label >= len(names):
            raise UserError(
                f"{list_file}, line {last.number}: {last.path} has label {last.label}, but {source} {len(names)} "
                f"names, whose labels are 0 to {len(names) - 1}; give the class list of these labels"
            )
        return
    labels = {line.label for line in lines} | {label for label in other_labels if label >= 0}
    if max(labels) >= len(labels):
        gap = next(label for label in range(len(labels)) if label not in labels)
        raise UserError(
            f"{list_file}: no clip has label {gap}, yet there is {max(labels)} ({last.path}, line {last.number}); if "
            "the list is of some classes only, name all of them, a line each in the order of the labels: --classes FILE"
        )


def _clip(split: str, line: _Line, path: Path, names: list[str] | None, found: VideoInfo | str) -> Clip:
    """The clip's line of the manifest. Raises MachineFault."""
    class_name = names[line.label] if names else str(line.label)
    clip = Clip(video_id=line.video_id, split=split, label=line.label, class_name=class_name, state="ok")
    if not os.path.exists(path):
        return dataclasses.replace(clip, state="missing", reason=f"{path} is not there")
    if isinstance(found, str):
        return dataclasses.replace(clip, state="corrupt", reason=f"{line.path}: {found}")
    try:
        size, sha256 = _fingerprint(path)
    except OSError as error:
        if fault := machine_fault(error):
            raise fault from error
        return dataclasses.replace(clip, state="corrupt", reason=f"{line.path}: {error.strerror}")
    return dataclasses.replace(
        clip,
        shard=str(path.absolute()),
        offset=0,
        size=size,
        num_frames=found.num_frames,
        width=found.width,
        height=found.height,
        fps=found.fps,
        sha256=sha256,
    )


def _fingerprint(path: Path) -> tuple[int, str]:
    """(bytes, sha256 of a video); the sha256 of a folder of frames is ''."""
    if path.is_dir():
        return sum(entry.stat().st_size for entry in os.scandir(path)), ""
    return path.stat().st_size, sha256_of(path)


def _first(clips: list[Clip]) -> str:
    return "the first ones: " + "; ".join(clip.reason for clip in clips[:3])
