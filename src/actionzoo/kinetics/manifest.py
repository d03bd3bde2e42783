"""manifest.csv: one line per clip of the annotation, also those that are not there.

It is the truth for loaders, counts and reports. A line's state says what became of the clip:

    ok         decoded from its part
    replaced   decoded from the archive of replacements, because the part's clip is corrupt or not there
    short      decodes, but to fewer frames than asked for
    missing    listed, and in no archive
    corrupt    there, and cannot be decoded; nothing usable replaces it
    unlisted   in an archive, and in no annotation: not one of the annotation's clips, here so that nothing vanishes

Clips that are ok, replaced or short lie in a shard. Over a split's listed lines the states add up to its annotation.

classes.txt beside it has the names of all classes, label by label: the clips may be of some of them only. shards.csv
lists the shards (shard_list.py).
"""

import csv
import dataclasses
import functools
import hashlib
import io
import math
import operator
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import overload

from ..errors import UserError
from ..files.atomic import atomic_write
from ..files.csv_cells import plain_cell, safe_cell, safe_id
from ..files.text import read_text
from ..names import class_name_fault

SPLITS = ("train", "val", "test")
USABLE = ("ok", "replaced", "short")
STATES = (*USABLE, "missing", "corrupt", "unlisted")
CLASSES = "classes.txt"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """One line of the manifest. What is not known is None, or '' for text; in the file both are empty."""

    video_id: str
    """<11 characters of YouTube id>_<start, 6 digits>_<end, 6 digits>; ids contain '_' and '-' themselves."""
    split: str
    label: int
    """-1 where the annotation has none."""
    class_name: str
    state: str
    shard: str = ""
    """Relative to the form's folder under the data root, e.g. val/part_007-1a2b3c4d.tar; of an imported clip the path
    of the video, or of the folder of frames."""
    offset: int | None = None
    """Bytes from the shard's start to the clip's first byte; frames: of its first frame."""
    size: int | None = None
    """Bytes; frames: to the last byte of the last frame."""
    num_frames: int | None = None
    """Decoded and counted, never the container's claim."""
    width: int | None = None
    height: int | None = None
    fps: float | None = None
    """Frames per second, on average where they vary."""
    sha256: str = ""
    """Of the source's bytes, before it was resized."""
    reason: str = ""
    """A short sentence for whatever is not ok."""

    @property
    def is_usable(self) -> bool:
        return self.state in USABLE

    @property
    def is_listed(self) -> bool:
        return self.state != "unlisted"

    def stored(self) -> "StoredClip":
        """The same clip with its span and shape known. Raises UserError if the manifest does not have them."""
        offset, size, num_frames, width, height = self.offset, self.size, self.num_frames, self.width, self.height
        if not self.shard or offset is None or size is None or num_frames is None or width is None or height is None:
            needed = ("shard", "offset", "size", "num_frames", "width", "height")
            unknown = [name for name in needed if getattr(self, name) in ("", None)]
            raise UserError(
                f"manifest: {self.video_id} is {self.state}, but its {', '.join(unknown)} is empty; make the manifest "
                "anew"
            )
        return StoredClip(
            video_id=self.video_id,
            split=self.split,
            label=self.label,
            class_name=self.class_name,
            state=self.state,
            shard=self.shard,
            offset=offset,
            size=size,
            num_frames=num_frames,
            width=width,
            height=height,
            fps=self.fps,
            sha256=self.sha256,
            reason=self.reason,
        )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class StoredClip(Clip):
    """A clip that can be read: everything that a reader needs is known. Made by `Clip.stored`."""

    offset: int
    size: int
    num_frames: int
    width: int
    height: int


@dataclasses.dataclass(frozen=True, eq=False)
class Manifest(Sequence[Clip]):
    """A manifest that was read: a sequence of all its clips, in the file's order."""

    clips: tuple[Clip, ...]
    path: Path
    sha256: str
    """Hash of the bytes that were parsed, as 64 hex digits."""
    class_list: tuple[str, ...] | None
    """Names of all classes by label, from classes.txt beside the manifest; None if that is not there, or is empty."""

    @functools.cached_property
    def classes(self) -> list[str]:
        """Class names by label. Raises UserError as `label_map` does, when first asked for."""
        return label_map(self)

    def of_split(self, split: str) -> list[Clip]:
        """Every line of the split, in the file's order; unlisted clips too."""
        return [clip for clip in self.clips if clip.split == split]

    def usable(self, split: str) -> list[StoredClip]:
        """The split's clips that can be read, in the file's order. Raises UserError as `Clip.stored` does."""
        return [clip.stored() for clip in self.clips if clip.split == split and clip.is_usable]

    @overload
    def __getitem__(self, index: int) -> Clip: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Clip, ...]: ...

    def __getitem__(self, index: int | slice) -> Clip | tuple[Clip, ...]:
        return self.clips[index]

    def __len__(self) -> int:
        return len(self.clips)

    def __iter__(self) -> Iterator[Clip]:
        return iter(self.clips)


def read_classes(path: Path) -> list[str]:
    """Class names, one per line, in the order of their labels. Raises UserError that names the line."""
    lines = read_text(path, "give a file with a class name per line, in the order of the labels").split("\n")
    names = [line.strip() for line in lines]
    while names and not names[-1]:
        names.pop()
    if not names:
        raise UserError(f"{path} names no class; give a file with a class name per line")
    seen: dict[str, int] = {}
    for number, name in enumerate(names, 1):
        if not name:
            raise UserError(
                f"{path}, line {number} is empty, and names follow: each line is a label; fill or delete it"
            )
        if fault := class_name_fault(name):
            raise UserError(f"{path}, line {number}: {fault}")
        if name in seen:
            raise UserError(f"{path}, line {number}: {name!r} is in line {seen[name]}, too; each class has one label")
        seen[name] = number
    return names


def read_manifest(path: str | Path) -> Manifest:
    """The manifest and the class list beside it, each read once. Raises UserError with the line that is wrong."""
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path} is not there; the stages `resize` and `frames` make it") from None
    rows = csv.reader(io.TextIOWrapper(io.BytesIO(data), encoding="utf-8", newline=""))
    try:
        header = next(rows, [])
        if header != _COLUMNS:
            raise UserError(
                f"{path} starts with {','.join(header)[:200]!r}, expected {','.join(_COLUMNS)!r}; make it anew"
            )
        clips = tuple(map(_parse, rows))
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}, after line {rows.line_num}: not text in UTF-8 ({error.reason}); make it anew"
        ) from None
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path}, line {rows.line_num}: {error}; make it anew") from None
    class_list = path.parent / CLASSES
    return Manifest(
        clips,
        path,
        hashlib.sha256(data).hexdigest(),
        tuple(read_classes(class_list)) if class_list.is_file() and class_list.stat().st_size else None,
    )


def write_manifest(path: str | Path, clips: Iterable[Clip], classes: Sequence[str] | None = None) -> None:
    """Write the lines, split by split and then by video_id: the same clips give the same bytes.

    `classes`, by default the class list of a Manifest, are written beside it; without them classes.txt is removed.
    """
    path = Path(path)
    classes = clips.class_list if classes is None and isinstance(clips, Manifest) else classes
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(_COLUMNS)
    # a lone \r in a name goes unquoted in Python 3.11, and then the csv module cannot read the line
    quoted = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    values = _cells_of
    for clip in sorted(clips, key=lambda clip: (SPLITS.index(clip.split), clip.video_id)):
        is_odd = "\r" in clip.video_id or "\r" in clip.class_name or "\r" in clip.reason
        (quoted if is_odd else lines).writerow(values(clip))  # None becomes '', too
    if classes is None:
        (path.parent / CLASSES).unlink(missing_ok=True)
    else:
        with atomic_write(path.parent / CLASSES) as file:
            file.write("".join(f"{name}\n" for name in classes).encode())
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())


def label_map(clips: Iterable[Clip]) -> list[str]:
    """Class names by label: the class list of a Manifest, otherwise the names that the clips have.

    Raises UserError where label and name disagree, or a label has no name.
    """
    kept = clips.class_list if isinstance(clips, Manifest) else None
    names: dict[int, str] = dict(enumerate(kept or ()))
    for clip in clips:
        if clip.label >= 0 and names.setdefault(clip.label, clip.class_name) != clip.class_name:
            raise UserError(
                f"manifest: label {clip.label} is {names[clip.label]!r} and, at {clip.video_id}, "
                f"{clip.class_name!r}; make the manifest anew"
            )
    if kept and len(names) > len(kept):
        raise UserError(
            f"manifest: there is label {max(names)}, but {CLASSES} beside it names {len(kept)} classes; "
            "make the manifest anew"
        )
    unnamed = set(range(len(names))) - names.keys()
    if unnamed:
        raise UserError(
            f"manifest: no clip has label {min(unnamed)}, yet there is {max(names)}; import the lists again and name "
            "all classes: --classes FILE"
        )
    return [names[label] for label in range(len(names))]


def list_sha256(clips: Iterable[Clip], split: str) -> str:
    """sha256 of the annotation's list of a split: its listed clips as sorted lines `video_id,label`.

    It does not depend on which clips were found or decode. Accuracies are comparable only if it is equal.
    """
    lines = sorted(f"{clip.video_id},{clip.label}\n" for clip in clips if clip.split == split and clip.is_listed)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def count_states(clips: Iterable[Clip]) -> dict[str, dict[str, int]]:
    """Split -> state -> number of lines, all states named, in the order of SPLITS and STATES."""
    clips = list(clips)
    counts = Counter((clip.split, clip.state) for clip in clips)
    splits = {clip.split for clip in clips}
    return {split: {state: counts[split, state] for state in STATES} for split in SPLITS if split in splits}


def export_lists(clips: Iterable[Clip], out: str | Path) -> list[Path]:
    """Write what MMAction2's users know: `<split>.txt` with a line `video_id num_frames label` for each usable clip,
    and `label_map.txt` with a class name per line, label by label. Gives the files written."""
    clips, out = clips if isinstance(clips, Manifest) else list(clips), Path(out)
    texts = {"label_map.txt": "".join(f"{name}\n" for name in label_map(clips))}
    for split in count_states(clips):
        usable = [clip for clip in clips if clip.split == split and clip.is_usable]
        texts[f"{split}.txt"] = "".join(f"{clip.video_id} {clip.num_frames} {clip.label}\n" for clip in usable)
    for name, text in texts.items():
        with atomic_write(out / name) as file:
            file.write(text.encode())
    return [out / name for name in texts]


_COLUMNS = [field.name for field in dataclasses.fields(Clip)]


_values = operator.attrgetter(*_COLUMNS)


def _cells_of(clip: Clip) -> list[object]:
    """A line's values, the foreign texts among them (id, class, reason) as cells that no spreadsheet runs."""
    video_id, split, label, class_name, *others, reason = _values(clip)
    return [safe_id(video_id), split, label, safe_cell(class_name), *others, safe_cell(reason)]


def _parse(row: list[str]) -> Clip:
    if len(row) != len(_COLUMNS):
        raise ValueError(f"{len(row)} columns instead of {len(_COLUMNS)}")
    video_id, split, label, class_name, state, shard, offset, size, num_frames, width, height, fps, sha256, reason = row
    if split not in SPLITS:
        raise ValueError(f"split is {split[:40]!r}, not one of {', '.join(SPLITS)}")
    if state not in STATES:
        raise ValueError(f"state is {state[:40]!r}, not one of {', '.join(STATES)}")
    return Clip(
        video_id=plain_cell(video_id),
        # words that 300,000 lines share are kept once
        split=sys.intern(split),
        label=_number(label, -1),
        class_name=sys.intern(plain_cell(class_name)),
        state=sys.intern(state),
        shard=sys.intern(shard),
        offset=_number(offset) if offset else None,
        size=_number(size) if size else None,
        num_frames=_number(num_frames) if num_frames else None,
        width=_number(width) if width else None,
        height=_number(height) if height else None,
        fps=_rate(fps) if fps else None,
        sha256=sha256,
        reason=plain_cell(reason),
    )


def _number(text: str, least: int = 0) -> int:
    """Raises ValueError for what no clip has."""
    number = int(text) if len(text) < 20 else -2
    if not least <= number < 2**63:
        raise ValueError(f"{text[:40]!r} is no number of bytes, frames or pixels, and no label")
    return number


def _rate(text: str) -> float:
    rate = float(text)
    if not 0 <= rate < math.inf:
        raise ValueError(f"{text[:40]!r} is no number of frames per second")
    return rate
