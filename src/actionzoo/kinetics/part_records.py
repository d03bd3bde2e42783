"""The record beside a shard: what the shard was made from and what is in it.

    val/part_007-1a2b3c4d.tar, val/part_007-1a2b3c4d.idx.npy, val/part_007-1a2b3c4d.json

The record is written last. A shard with a record of the same key is finished; a shard without one is made anew. The
names end in the first 8 hex digits of the key, so that shards of different settings lie side by side.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import MACHINE_ERRNOS, UserError, speaks_of_machine
from ..files.atomic import sync_folder
from ..files.hashes import sha256_of
from ..files.json_files import read_json, write_json
from .ffmpeg_process import TIMED_OUT
from .shards import index_path, remedy


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PartClip:
    """One copy of a clip in an archive: where its bytes are in the shard, or why the shard has none.

    A shard of frames records `offset`, `size` and `damage`; the other fields keep their defaults.
    """

    video_id: str
    error: str = ""
    """Why the clip is not in the shard; '' if it is. `fault` in the file."""
    sha256: str = ""
    """Of the source's bytes."""
    offset: int = 0
    """Bytes from the shard's start to the clip's first byte."""
    size: int = 0
    """Bytes, to the end of the clip's last frame."""
    num_frames: int = 0
    width: int = 0
    height: int = 0
    fps: float = 0.0
    damage: str = ""
    """What the decoder complained of although it gave pictures; '' if it did not."""

    def to_json(self) -> dict[str, object]:
        found: dict[str, object] = {"video_id": self.video_id}
        if self.sha256:
            found["sha256"] = self.sha256
        if self.error:
            return found | {"fault": self.error}
        found |= {"offset": self.offset, "size": self.size}
        if self.num_frames:
            names = ("num_frames", "width", "height", "fps", "damage")
            found |= {name: getattr(self, name) for name in names}
        elif self.damage:
            found["damage"] = self.damage
        return found

    @classmethod
    def from_json(cls, content: Any) -> "PartClip":
        """Raises ValueError, KeyError or TypeError for what `to_json` does not write."""
        video_id, sha256 = _text(content["video_id"]), _text(content.get("sha256", ""))
        if "fault" in content:
            if not (error := _text(content["fault"])):
                raise ValueError("the fault says nothing")
            return cls(video_id=video_id, sha256=sha256, error=error)
        offset, size = _count(content["offset"]), _count(content["size"])
        if "num_frames" not in content:
            damage = _text(content.get("damage", ""))
            return cls(video_id=video_id, sha256=sha256, offset=offset, size=size, damage=damage)
        return cls(
            video_id=video_id,
            sha256=_text(content["sha256"]),
            offset=offset,
            size=size,
            num_frames=_count(content["num_frames"]),
            width=_count(content["width"]),
            height=_count(content["height"]),
            fps=_rate(content["fps"]),
            damage=_text(content["damage"]),
        )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PartRecord:
    """A finished shard."""

    key: str
    """Hash of everything that the shard's bytes depend on, by `make_key`."""
    size: int
    """Bytes of the shard."""
    sha256: str
    """Of the shard; '' in records of older versions, likewise of the index."""
    index_sha256: str
    judged: int
    """Version of the rule that tells a clip's errors from the machine's; 0 in records of older versions."""
    clips: tuple[PartClip, ...]
    """In the archive's order; an archive may hold a clip twice."""
    ffmpeg: str = ""
    """Version of the program that made the pictures."""
    unlisted: tuple[str, ...] | None = None
    """Ids in the archive that no annotation lists; None for a shard of frames, where nothing is looked for."""
    clip_timeout_seconds: float | None = None
    """The limit that some of the clips exceeded; None if none did."""

    def to_json(self) -> dict[str, object]:
        content: dict[str, object] = {
            "key": self.key,
            "size": self.size,
            "sha256": self.sha256,
            "index_sha256": self.index_sha256,
            "judged": self.judged,
            "clips": [clip.to_json() for clip in self.clips],
            "ffmpeg": self.ffmpeg,
            "unlisted": None if self.unlisted is None else list(self.unlisted),
            "clip_timeout_seconds": self.clip_timeout_seconds,
        }
        optional = ("sha256", "index_sha256", "judged", "ffmpeg", "unlisted", "clip_timeout_seconds")
        return {name: value for name, value in content.items() if name not in optional or value not in ("", 0, None)}

    @classmethod
    def from_json(cls, content: Any) -> "PartRecord":
        """Raises ValueError, KeyError or TypeError for what no version wrote."""
        unlisted, seconds = content.get("unlisted"), content.get("clip_timeout_seconds")
        if not isinstance(content["clips"], list) or not isinstance(unlisted, list | None):
            raise TypeError("clips and unlisted are lists")
        return cls(
            key=_text(content["key"]),
            size=_count(content["size"]),
            sha256=_text(content.get("sha256", "")),
            index_sha256=_text(content.get("index_sha256", "")),
            judged=_count(content.get("judged", 0)),
            clips=tuple(map(PartClip.from_json, content["clips"])),
            ffmpeg=_text(content.get("ffmpeg", "")),
            unlisted=None if unlisted is None else tuple(map(_text, unlisted)),
            clip_timeout_seconds=None if seconds is None else _rate(seconds),
        )


def make_key(*facts: object) -> str:
    """One short word for everything that a shard's bytes depend on; `facts` are values that JSON has."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def load_record(shard: Path) -> PartRecord | None:
    """The record beside a shard, whatever its key; None if there is none, or none that can be read."""
    try:
        return PartRecord.from_json(read_json(record_path(shard)))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def save_record(shard: Path, record: PartRecord) -> None:
    """Write or replace the record beside a shard."""
    write_json(record_path(shard), record.to_json(), indent=0)


def read_record(shard: Path, key: str, clip_timeout_seconds: float) -> PartRecord | None:
    """The record of a finished shard, None if the shard must be made.

    A shard is made anew if its key, its size or its record differs, if it is of a version that took the machine's
    errors for a clip's, or if some of its clips exceeded a shorter timeout than `clip_timeout_seconds`.
    """
    record = load_record(shard)
    if record is None or record.key != key or not index_path(shard).is_file():
        return None
    try:
        if record.size != shard.stat().st_size:
            return None
    except FileNotFoundError:
        return None
    is_hasty = record.clip_timeout_seconds is not None and record.clip_timeout_seconds < clip_timeout_seconds
    is_doubtful = not record.judged and any(_blames_machine(clip.error) for clip in record.clips)
    return None if is_hasty or is_doubtful else record


def take_over(old: Path, shard: Path, key: str) -> None:
    """Rename the shard `old`, whose name is without a key as older versions wrote it, to `shard`; its index and its
    record, too. Does nothing unless its record has this key. Killed in between, the next call does the rest."""
    if record_path(shard).exists() or (record := load_record(old)) is None or record.key != key:
        return
    if not (record.sha256 and record.index_sha256):
        record = _hashed(old, record)
    for path_of in (index_path, Path, record_path):  # the record last: until then the next call finds it
        with contextlib.suppress(FileNotFoundError):
            os.replace(path_of(old), path_of(shard))
    sync_folder(shard.parent)


def _hashed(shard: Path, record: PartRecord) -> PartRecord:
    """The record, kept with the hashes that versions before did not write."""
    try:
        record = dataclasses.replace(record, sha256=sha256_of(shard), index_sha256=sha256_of(index_path(shard)))
    except FileNotFoundError:
        return record
    save_record(shard, record)
    return record


def write_record(
    made: Path,
    key: str,
    clip_timeout_seconds: float,
    clips: Sequence[PartClip],
    *,
    ffmpeg: str = "",
    unlisted: Sequence[str] | None = None,
) -> PartRecord:
    """Write and return the record of a shard that was made in scratch."""
    has_timed_out = any(clip.error.startswith(TIMED_OUT) for clip in clips)
    record = PartRecord(
        key=key,
        size=made.stat().st_size,
        sha256=sha256_of(made),
        index_sha256=sha256_of(index_path(made)),
        judged=_JUDGED,
        clips=tuple(clips),
        ffmpeg=ffmpeg,
        unlisted=None if unlisted is None else tuple(unlisted),
        clip_timeout_seconds=clip_timeout_seconds if has_timed_out else None,
    )
    save_record(made, record)
    return record


def key_of(shard: Path) -> str:
    """The key that a shard was made with. Raises UserError if the shard is not finished."""
    key = read_json(record_path(shard)).get("key")
    if not isinstance(key, str):
        raise UserError(f"{shard} is not finished, yet the manifest names it; {remedy(shard.parents[1])}")
    return key


def forget_record(shard: Path) -> None:
    """Declare a shard unfinished."""
    record_path(shard).unlink(missing_ok=True)


def record_path(shard: Path) -> Path:
    """val/part_007-1a2b3c4d.tar -> val/part_007-1a2b3c4d.json"""
    return shard.with_suffix(".json")


_JUDGED = 2
"""The rule of `PartRecord.judged`. Before 2, a full disk could be recorded as a clip's error."""


def _blames_machine(error: str) -> bool:
    status = re.fullmatch(r"ffmpeg ended with status (\d+)", error)
    return speaks_of_machine(error) or (status is not None and 256 - int(status[1]) in MACHINE_ERRNOS)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise TypeError(f"{value!r} is no number of bytes, frames or pixels")
    return value


def _rate(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < math.inf:
        raise TypeError(f"{value!r} is no number of seconds, or of frames per second")
    return value
