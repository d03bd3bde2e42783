"""A published list of clips and its label map, and which of its clips the data set has.

list         a line for each clip: video_id num_frames label; the number of frames may be missing, and the id may
             be a path with directories and an ending
label map    a line for each class: its name, in the order of the labels; or its name and its label, either first
"""

import dataclasses
import hashlib
import os
import re
import urllib.parse
from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError
from ..files.hashes import sha256_of
from ..files.locks import locked
from ..files.text import read_text
from .annotations import class_key
from .manifest import Clip
from .single_file import complete
from .transfer import Patience, discard

MAX_LIST_BYTES = 64 * 2**20
"""Kinetics-700's training list has 40 MB."""


@dataclasses.dataclass(frozen=True)
class ListedClip:
    """One line of a list."""

    name: str
    """The path in the list, without its ending."""
    num_frames: int | None
    """None if the list has no number."""
    label: int


@dataclasses.dataclass(frozen=True)
class PublishedList:
    """A list and what its labels mean."""

    clips: tuple[ListedClip, ...]
    classes: tuple[str, ...]
    """By label; empty without a label map, when the labels are the data set's."""
    sha256: str
    """Hash of the list's file."""
    label_map_sha256: str
    """'' without a label map."""


@dataclasses.dataclass(frozen=True)
class Chosen:
    """The clips of a published list that the data set has."""

    clips: tuple[Clip, ...]
    """The usable ones, in the manifest's order, with the list's labels in the data set's numbering."""
    listed: int
    missing: tuple[str, ...]
    """A sentence for each clip of the list that cannot be evaluated."""
    other_frames: tuple[str, ...]
    """A sentence for each clip whose number of frames is not the list's."""
    other_label: tuple[str, ...]
    """A sentence for each clip whose class is not the list's; the list's class is used."""
    sha256: str
    label_map_sha256: str
    list_sha256: str
    """Hash of the list's clips as sorted lines `video_id,label`, as by manifest.list_sha256."""

    def text(self, most: int = 20) -> str:
        """The differences, for people: their numbers, and the first `most` of each kind."""
        lines = [
            f"published list, sha256 {self.sha256[:12]}…: {len(self.clips):,} of its {self.listed:,} clips are here; "
            f"{len(self.missing)} missing, {len(self.other_frames)} with another number of frames, "
            f"{len(self.other_label)} with another label"
        ]
        for sentences in (self.missing, self.other_frames, self.other_label):
            lines += [f"  {sentence}" for sentence in sentences[:most]]
            if len(sentences) > most:
                lines.append(f"  … and {len(sentences) - most} more, all in result.json")
        return "\n".join(lines)


def fetch_list(address: str, folder: Path, root: Path = Path()) -> Path:
    """The file at an address of params.yaml: a path from `root`, or a URL, which is fetched once into `folder`.

    Raises UserError if there is no such file, with the path where it could be put.
    """
    if not address.startswith(("http://", "https://")):
        path = root / Path(address.removeprefix("file://")).expanduser()
        if not path.is_file():
            raise UserError(
                f"{path}, a published list or label map of params.yaml, is not there; check published_lists"
            )
        return path
    name = re.sub(r"[^A-Za-z0-9._-]", "_", urllib.parse.urlsplit(address).path.rsplit("/", 1)[-1])[-100:] or "list.txt"
    path = folder / f"{hashlib.sha256(address.encode()).hexdigest()[:8]}-{name}"
    folder.mkdir(parents=True, exist_ok=True)
    with locked(path.with_name(f".{path.name}.lock")):
        if path.is_file():
            return path
        partial = path.with_name(f".{path.name}.partial")
        try:
            complete(address, partial, Patience(retries=3), max_bytes=MAX_LIST_BYTES)
        except UserError as error:
            raise UserError(f"{error}. Or put the file where it is looked for first: {path}") from None
        os.replace(partial, path)
        discard(partial)
    return path


def read_published(list_path: Path, label_map_path: Path | None = None) -> PublishedList:
    """A list and its label map. Raises UserError with file and line."""
    classes = _read_label_map(label_map_path) if label_map_path else []
    clips = _read_list(list_path, len(classes))
    return PublishedList(
        clips=tuple(clips),
        classes=tuple(classes),
        sha256=sha256_of(list_path),
        label_map_sha256=sha256_of(label_map_path) if label_map_path else "",
    )


def choose(published: PublishedList, clips: Sequence[Clip], classes: Sequence[str]) -> Chosen:
    """The list's clips among the manifest's clips of a split; `classes` are the data set's, by label.

    Raises UserError if none of them is usable, or if the list names one twice.
    """
    by_id = {one.video_id: one for one in clips}
    by_video: dict[str, list[Clip]] = {}
    for one in clips:
        if found := re.fullmatch(r"(.{11})_\d{6}_\d{6}", one.video_id):
            by_video.setdefault(found[1], []).append(one)
    label_mapping = {class_key(name): label for label, name in enumerate(classes)}
    chosen: dict[str, Clip] = {}
    missing, other_frames, other_label, lines = [], [], [], []
    for listed in published.clips:
        clip = _find(listed.name, by_id, by_video)
        label = label_mapping.get(class_key(published.classes[listed.label])) if published.classes else listed.label
        shown = repr(published.classes[listed.label]) if published.classes else f"label {listed.label}"
        if label is not None and label >= len(classes):
            label = None
        video_id = clip.video_id if clip else listed.name.rsplit("/", 1)[-1]
        lines.append(f"{video_id},{shown if label is None else label}\n")
        if clip is None:
            missing.append(f"{video_id}: not in the manifest")
            continue
        if not clip.is_usable:
            missing.append(f"{video_id}: {clip.state}{f', {clip.reason}' if clip.reason else ''}")
            continue
        if clip.video_id in chosen:
            raise UserError(
                f"the published list names {clip.video_id} twice, as {listed.name!r} and otherwise; delete one line"
            )
        if listed.num_frames is not None and listed.num_frames != clip.num_frames:
            other_frames.append(f"{video_id}: {clip.num_frames} frames, the list has {listed.num_frames}")
        if label is None:
            other_label.append(f"{video_id}: the list has {shown}, which is none of the data set's classes")
        elif clip.label >= 0 and clip.label != label:
            other_label.append(f"{video_id}: {classes[clip.label]!r}, the list has {shown}")
        chosen[clip.video_id] = clip if label is None else dataclasses.replace(clip, label=label)
    usable = tuple(chosen[one.video_id] for one in clips if one.video_id in chosen)
    if not usable:
        raise UserError(
            f"none of the {len(published.clips)} clips of the published list is usable here ({missing[0]}); check "
            "published_lists in params.yaml, and its split"
        )
    return Chosen(
        clips=usable,
        listed=len(published.clips),
        missing=tuple(missing),
        other_frames=tuple(other_frames),
        other_label=tuple(other_label),
        sha256=published.sha256,
        label_map_sha256=published.label_map_sha256,
        list_sha256=hashlib.sha256("".join(sorted(lines)).encode()).hexdigest(),
    )


def _find(name: str, by_id: dict[str, Clip], by_video: dict[str, list[Clip]]) -> Clip | None:
    """The clip with this name, with it less its directories, or the only clip of the video with this id."""
    last = name.rsplit("/", 1)[-1]
    found = by_id.get(name) or by_id.get(last)
    if found is None and len(of_video := by_video.get(last, [])) == 1:
        return of_video[0]
    return found


_LINE = re.compile(r"(?P<path>.+?)[\s,]+(?:(?P<frames>-?\d{1,9})[\s,]+)?(?P<label>\d{1,6})")
_MAX_LINE = 4096


def _read_list(path: Path, num_classes: int) -> list[ListedClip]:
    known: dict[str, ListedClip] = {}
    for number, line in _lines(path, "give a list with lines `video_id num_frames label`"):
        if not (found := _LINE.fullmatch(line)):
            raise UserError(f"{path}, line {number}: {line[:80]!r} is not `video_id num_frames label`")
        name = re.sub(r"\.[A-Za-z0-9]{2,4}$", "", found["path"].strip("\"' ").replace("\\", "/"))
        frames, label = found["frames"], int(found["label"])
        if num_classes and label >= num_classes:
            raise UserError(f"{path}, line {number}: label {label}, and the label map has {num_classes} classes")
        clip = ListedClip(name, int(frames) if frames and int(frames) > 0 else None, label)
        if known.setdefault(name, clip) != clip:
            raise UserError(f"{path}, line {number}: {name!r} is listed before, with other numbers")
    if not known:
        raise UserError(f"{path} lists no clip; give a list with lines `video_id num_frames label`")
    return list(known.values())


def _read_label_map(path: Path) -> list[str]:
    lines = [line for _, line in _lines(path, "give a label map with a class name in each line")]
    for pattern in (r"(?P<label>\d{1,6})[\s,:]+(?P<name>.+)", r"(?P<name>.+?)[\s,:]+(?P<label>\d{1,6})"):
        found = [re.fullmatch(pattern, line) for line in lines]
        if not lines or not all(found):
            continue
        by_label = {int(each["label"]): each["name"].strip("\"' ") for each in found if each}
        start, count = min(by_label), len(by_label)
        if start in (0, 1) and count == len(lines) and sorted(by_label) == [*range(start, start + count)]:
            return [by_label[label] for label in sorted(by_label)]
        raise UserError(f"{path}: its labels are not 0, 1, 2, … or 1, 2, 3, …, each once")
    names = [line.strip("\"' ") for line in lines]
    if not names or len({class_key(name) for name in names}) < len(names):
        raise UserError(f"{path} names {'a class twice' if names else 'no class'}; give a class name in each line")
    return names


def _lines(path: Path, remedy: str) -> list[tuple[int, str]]:
    """(line number, text) of the lines that are not empty. Raises UserError."""
    text = read_text(path, remedy, MAX_LIST_BYTES)
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if too_long := next((number for number, line in lines if len(line) > _MAX_LINE), None):
        raise UserError(f"{path}, line {too_long} has more than {_MAX_LINE} characters; {remedy}")
    return lines
