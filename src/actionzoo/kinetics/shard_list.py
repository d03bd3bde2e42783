"""shards.csv beside a manifest: the shards that the data stage made or found, a line each, sorted by name.

    shard,size,sha256,index_sha256,ffmpeg
    val/part_007-1a2b3c4d.tar,183050240,<64 hex digits>,<64 hex digits>,7.0.2

DVC tracks this file in place of the shards: whoever has it can tell whether a shard is the one that the manifest means.
"""

import collections
import csv
import dataclasses
import io
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ..errors import UserError
from ..files.atomic import atomic_write
from .manifest import SPLITS, StoredClip
from .part_records import PartRecord
from .shards import FILE_NAME, remedy

SHARDS = "shards.csv"

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ShardLine:
    """A line of shards.csv."""

    shard: str
    """Relative to the form's folder under the data root, like the manifest's column."""
    size: int
    """Bytes."""
    sha256: str
    """Of the shard; '' if a version that did not compute it made the shard, likewise of the index."""
    index_sha256: str
    ffmpeg: str
    """Version of the program that made the pictures; '' if a version that did not record it made the shard."""


_COLUMNS = [field.name for field in dataclasses.fields(ShardLine)]


def write_shards(path: Path, records: Mapping[str, PartRecord]) -> None:
    """Write or replace shards.csv: a line for each shard of `records`, shard -> record."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(_COLUMNS)
    for shard in sorted(records, key=lambda shard: (SPLITS.index(shard.partition("/")[0]), shard)):
        record = records[shard]
        lines.writerow([shard, record.size, record.sha256, record.index_sha256, record.ffmpeg])
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())


def read_shards(path: Path) -> list[ShardLine]:
    """The lines of shards.csv; none if there is no such file, as in forms of an older version. Raises UserError."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except UnicodeDecodeError:
        raise UserError(f"{path} is no text in UTF-8; {_ANEW}") from None
    rows = csv.reader(io.StringIO(text, newline=""))
    if next(rows, []) != _COLUMNS:
        raise UserError(f"{path} does not begin with {','.join(_COLUMNS)}; {_ANEW}")
    return [_parse(path, number, row) for number, row in enumerate(rows, 2)]


def _parse(path: Path, number: int, row: Sequence[str]) -> ShardLine:
    split, _, name = row[0].partition("/") if len(row) == len(_COLUMNS) else ("", "", "")
    # `data check` opens and deletes these files: no name leads out of the form's folder
    is_shard = split in SPLITS and FILE_NAME.fullmatch(name) and name.endswith(".tar")
    if not is_shard or not re.fullmatch("[0-9]{1,18}", row[1]) or not all(_is_hash(text) for text in row[2:4]):
        raise UserError(f"{path}, line {number} describes no shard; {_ANEW}")
    return ShardLine(row[0], int(row[1]), *row[2:])


_ANEW = "restore it (`dvc checkout`), or delete it and run the stage that made it"


def _is_hash(text: str) -> bool:
    return text == "" or re.fullmatch("[0-9a-f]{64}", text) is not None


def ffmpeg_versions(lines: Iterable[ShardLine]) -> dict[str, int]:
    """Version of ffmpeg -> shards that it made, the most frequent first."""
    counts = collections.Counter(line.ffmpeg or "not recorded" for line in lines)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def note_other_versions(form: str, records: Iterable[PartRecord], here: str) -> None:
    """Log a warning if another version of ffmpeg than `here` made some of the shards that a stage keeps.

    `form` is videos_256 or the like.
    """
    counts = collections.Counter(record.ffmpeg for record in records if record.ffmpeg not in ("", here))
    if counts:
        kind, _, short_side = form.partition("_")
        stage = "frames" if kind == "frames" else "resize"
        made = " and ".join(f"{count:,} by ffmpeg {version}" for version, count in sorted(counts.items()))
        _log.warning(
            f"{form}: of the shards that are kept, {made} were made, and this machine has {here}; to make them all "
            f"anew: python stages/{stage}.py {short_side} --force"
        )


def check_shards(form: Path, clips: Iterable[StoredClip]) -> None:
    """Raises UserError if a shard of the clips is not in `form`, or too short to be the one that the manifest means.

    `form` is <data root>/<data set>/<form>. Shards are looked up, not read. Loose files are not looked up.
    """
    ends: dict[str, int] = collections.defaultdict(int)
    for clip in clips:
        if clip.shard.endswith(".tar"):
            ends[clip.shard] = max(ends[clip.shard], clip.offset + clip.size)
    missing, short = [], []
    for shard, end in ends.items():
        try:
            size = (form / shard).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            missing.append(shard)
        else:
            if size < end:
                short.append(shard)
    if faulty := sorted(missing or short):
        which = f"{faulty[0]} and {len(faulty) - 1} more of {len(ends)} shards" if len(faulty) > 1 else faulty[0]
        is_are = ("are" if len(faulty) > 1 else "is") + (" not there" if missing else " shorter than the manifest says")
        raise UserError(f"{which} {is_are}, in the data root {form.parents[1]} ({form}); {remedy(form)}")
