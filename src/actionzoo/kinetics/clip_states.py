"""The state of every clip of the annotation, from what the archives turned out to hold."""

import collections
import dataclasses
import functools
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

from .annotations import Annotation, class_key
from .inventory import FetchedSplit, Inventory
from .manifest import Clip
from .part_records import PartClip, PartRecord
from .shards import without_key

Listed = Mapping[str, Mapping[str, Annotation]]
"""Split -> video_id -> annotation."""

Records = dict[str, PartRecord]
"""Shard, relative to the form's folder -> its record, in the order of the parts."""


@dataclasses.dataclass(frozen=True)
class Replacements:
    """Clips that were made from the archive of replacements."""

    shard: str
    """Relative to the form's folder."""
    record: PartRecord | None
    """None if no replacement was needed, or the mirror has no archive of replacements."""

    @functools.cached_property
    def clips(self) -> Mapping[str, PartClip]:
        """By video_id."""
        return {clip.video_id: clip for clip in self.record.clips} if self.record else {}


@dataclasses.dataclass(frozen=True)
class ArchivedSplit:
    """A split: what its annotation lists, and what its archives turned out to hold."""

    name: str
    listed: Mapping[str, Annotation]
    """By video_id."""
    fetched: FetchedSplit
    records: Records
    replacements: Replacements


def wanted_replacements(listed: Listed, records: Mapping[str, Records], inventory: Inventory) -> dict[str, set[str]]:
    """Split -> clips that a replacement would help: those without a copy that decodes without complaints."""
    wanted = {}
    for split in listed:
        copies = [clip for record in records[split].values() for clip in record.clips]
        sound = {clip.video_id for clip in copies if not clip.error and not clip.damage}
        # if only some parts were fetched, a clip that is in none of them may be in another one
        candidates = set(listed[split]) if inventory.splits[split].is_complete else {clip.video_id for clip in copies}
        wanted[split] = candidates - sound
    return wanted


def resolve_states(split: ArchivedSplit, names: list[str], min_frames: int) -> Iterator[Clip]:
    """The split's lines of the manifest: each listed clip with its state, then the unlisted ones.

    `names` are the class names by label. A usable clip with fewer than `min_frames` frames is short.
    """
    labels = {class_key(name): label for label, name in enumerate(names)}
    copies: dict[str, list[tuple[str, PartClip]]] = collections.defaultdict(list)
    for shard, record in split.records.items():
        for copy in record.clips:
            copies[copy.video_id].append((shard, copy))
    nowhere = "in no part"
    if not split.fetched.is_complete:
        nowhere = f"in none of the {len(split.fetched.parts)} parts fetched, of {split.fetched.listed}"
    for video_id, annotation in split.listed.items():
        label = labels[class_key(annotation.class_name)] if annotation.class_name is not None else -1
        class_name = names[label] if label >= 0 else ""
        clip = Clip(
            video_id=video_id, split=split.name, label=label, class_name=class_name, state="missing", reason=nowhere
        )
        replacement = split.replacements.clips.get(video_id)
        yield _resolve_state(clip, copies[video_id], split.replacements.shard, replacement, min_frames)
    unlisted = {name: shard for shard, record in reversed(split.records.items()) for name in record.unlisted or ()}
    for video_id, shard in unlisted.items():
        yield Clip(
            video_id=video_id,
            split=split.name,
            label=-1,
            class_name="",
            state="unlisted",
            reason=f"in {_part(shard)}, and in no line of {split.name}.csv",
        )


def _part(shard: str) -> str:
    """train/part_007-1a2b3c4d.tar -> part_007"""
    return PurePosixPath(without_key(shard)).stem


def _resolve_state(
    clip: Clip,
    copies: list[tuple[str, PartClip]],
    replacement_shard: str,
    replacement: PartClip | None,
    min_frames: int,
) -> Clip:
    """A missing clip with the state, span and reason that follow from its copies in the parts and its replacement."""
    best = next(((shard, copy) for shard, copy in copies if not copy.error), None)
    reasons = [f"also in {_part(shard)}" for shard, _ in copies[1:]] if best else []
    state = "ok"
    if best and best[1].damage:
        reasons.append(f"decodes with faults: {best[1].damage}")
    error = copies[0][1].error if copies else clip.reason
    is_replaced = replacement is not None and replacement.num_frames > (best[1].num_frames if best else 0)
    if replacement is not None and is_replaced:
        state = "replaced"
        reasons = [*reasons, *([] if best else [error])]
        best = (replacement_shard, replacement)
    if not best:
        tried = f"; its replacement: {replacement.error}" if replacement else ""
        return dataclasses.replace(
            clip,
            state="corrupt" if copies else "missing",
            sha256=copies[0][1].sha256 if copies else "",
            reason=error + tried,
        )
    shard, copy = best
    if copy.num_frames < min_frames:
        reasons.append(f"{copy.num_frames} frames, fewer than {min_frames}")
        if is_replaced:
            reasons.append("replaced")
        state = "short"
    return dataclasses.replace(
        clip,
        state=state,
        shard=shard,
        offset=copy.offset,
        size=copy.size,
        num_frames=copy.num_frames,
        width=copy.width,
        height=copy.height,
        fps=copy.fps,
        sha256=copy.sha256,
        reason="; ".join(reasons),
    )
