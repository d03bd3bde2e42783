"""The annotation: the clips that a split should have, and their classes.

    label,youtube_id,time_start,time_end,split,is_cc
    climbing a rope,--QUuC4vJs0,84,94,val,0

Copies differ: times as 84.0, names in quotes, a byte order mark, a test split without labels, and class names in the
three spellings of directories. All of them are read.
"""

import csv
import dataclasses
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ..errors import UserError
from ..files.csv_cells import plain_cell
from ..files.text import read_text
from ..names import class_name_fault


@dataclasses.dataclass(frozen=True, slots=True)
class Annotation:
    video_id: str
    """The clip's file name without .mp4: <youtube id>_<start, 6 digits>_<end, 6 digits>."""
    split: str
    class_name: str | None
    """None where the split has no labels."""


def read_annotations(path: str | Path, split: str) -> list[Annotation]:
    """Each clip that the CSV lists, once, in the file's order. Raises UserError with file, line and value."""
    path = Path(path)
    clips: dict[str, Annotation] = {}
    for line, row in read_rows(path, ["youtube_id"], "delete it and run the stage `download`"):
        try:
            texts = {column: plain_cell(cell) for column, cell in row.items()}
            if fault := class_name_fault(texts.get("label", "")):
                raise ValueError(fault)
            clip = Annotation(clip_name(texts), split, texts.get("label") or None)
            known = clips.setdefault(clip.video_id, clip)
            if known != clip:
                raise ValueError(f"{clip.video_id} is {clip.class_name!r} here and {known.class_name!r} above")
        except ValueError as error:
            raise UserError(f"{path}, line {line}: {error}") from None
    return list(clips.values())


def read_rows(path: Path, needed: Sequence[str], remedy: str) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, column -> text) for each line under the header, which must have one of the columns `needed`.

    `remedy` ends the error about a file that is no CSV. Raises UserError.
    """
    if not path.exists():
        raise UserError(f"{path} is not there; run the stage `download`")
    text = read_text(path, remedy, keep_line_ends=True)
    try:
        rows = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True)
        rows.fieldnames = [name.strip() for name in rows.fieldnames or []]
        if not set(needed) & set(rows.fieldnames):
            start = ",".join(rows.fieldnames)[:200]
            raise UserError(f"{path} starts with {start!r}; a column {' or '.join(needed)} is needed; {remedy}")
        for row in rows:
            yield rows.line_num, {name: (text or "").strip() for name, text in row.items() if name is not None}
    except csv.Error as error:  # a cell of more than 131,072 characters, too
        raise UserError(f"{path} is no CSV file: {error}; {remedy}") from None


def class_names(annotations: Iterable[Annotation]) -> list[str]:
    """Class names by label: sorted, with the spellings of one name as one class.

    On Kinetics-400 all three spellings sort alike, into the order of all released weights.
    """
    spellings: dict[str, set[str]] = {}
    for name in {clip.class_name for clip in annotations if clip.class_name is not None}:
        spellings.setdefault(class_key(name), set()).add(name)
    # the fullest spelling: with apostrophe and parentheses, and spaces rather than underscores
    return sorted(max(names, key=lambda name: (len(name), name.count(" "), name)) for names in spellings.values())


def class_key(name: str) -> str:
    """The same text for all three spellings of a class.

    massaging person's head = massaging_person's_head = massaging_persons_head
    """
    return re.sub(r"['\"()]", "", name).replace("_", " ").casefold().strip()


_SECONDS = r"[0-9]{1,7}(\.[0-9]{0,20})?"
"""84, 84.0; more than seven digits are no time of a video."""


def clip_name(row: dict[str, str]) -> str:
    """A line's video_id: <youtube id>_<start, 6 digits>_<end, 6 digits>. Raises ValueError with the reason."""
    youtube_id = row["youtube_id"]
    # it becomes a file name, and a word in lists
    if not re.fullmatch(r"[^\s/\\.][^\s/\\]*", youtube_id):
        raise ValueError(f"youtube_id is {youtube_id!r}, which cannot be a file's name")
    times = [row.get("time_start"), row.get("time_end")]
    if not any(times):  # one's own clips, cut already
        return youtube_id
    if not all(re.fullmatch(_SECONDS, time or "") for time in times):
        shown = ", ".join(repr((time or "")[:40]) for time in times)
        raise ValueError(f"time_start, time_end are {shown}, not seconds")
    start, end = (int(float(time or "")) for time in times)
    return f"{youtube_id}_{start:06d}_{end:06d}"
