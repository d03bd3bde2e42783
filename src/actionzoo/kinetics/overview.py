"""Compare a prepared data set with its annotation and with known copies: counts, duplicates, leaks between splits."""

import collections
import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files.data_folder import DataFolder
from ..files.hashes import sha256_of
from .annotations import read_annotations
from .inventory import read_inventory
from .labels import kinetics400, map_labels
from .manifest import SPLITS, STATES, Clip, count_states, label_map
from .shard_list import SHARDS, ffmpeg_versions, read_shards


@dataclasses.dataclass(frozen=True, kw_only=True)
class KnownCopy:
    """A copy of Kinetics-400 that is in use. Accuracies on two copies differ."""

    name: str
    counts: str
    """Which of our numbers is compared: listed, archived or usable."""
    splits: Mapping[str, tuple[int, int]]
    """Split -> smallest and largest number of clips reported."""
    source: str


KNOWN_COPIES = (
    KnownCopy(
        name="annotation",
        counts="listed",
        splits={"train": (246_534, 246_534), "val": (19_906, 19_906), "test": (39_805, 39_805)},
        source="lines of the CSV files on the public mirror: cvdfoundation/kinetics-dataset, arrange_by_classes.py",
    ),
    KnownCopy(
        name="public mirror",
        counts="archived",
        splits={"train": (241_258, 241_258), "val": (19_881, 19_881), "test": (38_685, 38_685)},
        source="different files in the parts, counted by a user: cvdfoundation/kinetics-dataset issue 51",
    ),
    KnownCopy(
        name="MMAction2",
        counts="usable",
        splits={"train": (240_436, 240_436), "val": (19_796, 19_796)},
        source="open-mmlab/mmaction2 0.x, tools/data/kinetics/README.md; all published rows of this zoo",
    ),
    KnownCopy(
        name="Academic Torrents",
        counts="usable",
        splits={"train": (240_618, 240_618), "val": (19_404, 19_404)},
        source="dmlc/gluon-cv issue 1578",
    ),
    KnownCopy(
        name="Non-local, PySlowFast",
        counts="usable",
        splits={"train": (234_619, 234_643), "val": (19_760, 19_761)},
        source="facebookresearch/SlowFast issues 197 and 255, PaddleVideo docs/zh-CN/dataset/k400.md",
    ),
    KnownCopy(
        name="DeepMind's later list",
        counts="usable",
        splits={"train": (222_580, 222_580), "val": (17_747, 18_291)},
        source="open-mmlab/mmaction issue 144 (2020), MCG-NJU/VideoMAE issue 94 (2023)",
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split:
    """A split in numbers."""

    states: dict[str, int]
    listed: int
    """Lines of the annotation, by the manifest."""
    archived: int
    """Distinct clips in the archives' parts, also damaged and unlisted ones."""
    usable: int
    num_frames: int
    """Of the usable clips; likewise the next two."""
    hours: float
    size_bytes: int
    parts: list[int] | None
    """[parts fetched, parts that the mirror lists]; None if that is not known."""
    annotated: int | None
    """Lines of archive/annotations/<split>.csv as it is now; None if it is not there."""
    not_in_manifest: list[str]
    """Clips of that file which the manifest does not list; and the other way round:"""
    not_in_annotation: list[str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """Clips that have something in common which should be unique."""

    shared: str
    """The YouTube id that they share, or the sha256 of the source."""
    clips: list[Clip]
    overlap: bool
    """Whether, by their names, some of them show the same seconds of one video."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    copy: KnownCopy
    off: dict[str, int]
    """Split -> ours minus theirs; 0 inside their range. Only splits that both have."""

    @property
    def distance(self) -> int:
        return sum(map(abs, self.off.values()))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Overview:
    dataset: str
    form: str
    classes: list[str]
    """Names by label."""
    splits: dict[str, Split]
    class_states: list[dict[str, dict[str, int]]]
    """By label: split -> state -> listed clips. After the last label, those without one, if there are any."""
    reasons: list[tuple[str, str, int]]
    """State, reason, clips: of what is not plainly ok, the most frequent first."""
    comparisons: list[Comparison] | None
    """None if the classes are not Kinetics-400's."""
    doubles: dict[str, list[Group]]
    """Split -> videos with more than one listed clip in it."""
    same_bytes: dict[str, list[Group]]
    """Split -> usable clips whose sources are equal byte by byte."""
    leaks: dict[str, list[Group]]
    """`train, val` -> videos with listed clips in both; likewise for the other pairs of splits."""
    leaked_bytes: dict[str, list[Group]]
    """`train, val` -> usable clips in both whose sources are equal."""
    hashes: dict[str, str]
    """manifest.csv and the exported lists -> sha256."""
    lists: list[str]
    """Exported files, relative to the report."""
    ffmpeg: dict[str, int] = dataclasses.field(default_factory=dict)
    """Version of ffmpeg -> shards that it made; empty for imported clips."""

    @property
    def matches(self) -> list[Comparison]:
        """Copies with exactly our counts."""
        return [comparison for comparison in self.comparisons or [] if comparison.off and not comparison.distance]

    @property
    def nearest(self) -> Comparison | None:
        """The nearest copy among those counted by usable clips; None without a split in common."""
        usable = [comparison for comparison in self.comparisons or [] if comparison.off]
        usable = [comparison for comparison in usable if comparison.copy.counts == "usable"]
        return min(usable, key=lambda comparison: comparison.distance, default=None)

    @property
    def warnings(self) -> list[str]:
        """Facts that belong beside every number measured on this data set."""
        return list(_warnings(self))


def survey(data: DataFolder, form: str, clips: Sequence[Clip], lists: Iterable[Path]) -> Overview:
    """The overview of `form` of the data set in `data`; `clips` is its manifest, `lists` are the exported files.

    Raises UserError if labels and names do not fit, or an annotation cannot be read.
    """
    classes = label_map(clips)
    states = count_states(clips)
    splits = {
        split: _split(data, split, [clip for clip in clips if clip.split == split], states[split]) for split in states
    }
    by_video = _by(clips, lambda clip: _moment(clip.video_id)[0] if clip.is_listed else "")
    by_bytes = _by(clips, lambda clip: clip.sha256 if clip.is_usable else "")
    pairs = [(first, second) for n, first in enumerate(SPLITS) for second in SPLITS[n + 1 :]]
    pairs = [(first, second) for first, second in pairs if {first, second} <= states.keys()]
    manifest = (data / form).manifest
    return Overview(
        dataset=data.name,
        form=form,
        classes=classes,
        splits=splits,
        class_states=_class_states(clips, len(classes)),
        reasons=_reasons(clips),
        comparisons=_compare(splits) if _is_kinetics400(classes) else None,
        doubles={split: _groups(by_video, split, split) for split in states},
        same_bytes={split: _groups(by_bytes, split, split) for split in states},
        leaks={f"{first}, {second}": _groups(by_video, first, second) for first, second in pairs},
        leaked_bytes={f"{first}, {second}": _groups(by_bytes, first, second) for first, second in pairs},
        hashes={path.name: sha256_of(path) for path in (manifest, *lists)},
        lists=[path.name for path in lists],
        ffmpeg=ffmpeg_versions(read_shards(manifest.with_name(SHARDS))),
    )


def as_json(overview: Overview) -> str:
    """The overview as JSON, the same text for the same data. Long lists have their length and first SHOWN entries."""

    def group(group: Group) -> dict[str, Any]:
        clips = [
            {"video_id": clip.video_id, "split": clip.split, "class_name": clip.class_name, "state": clip.state}
            for clip in group.clips[:SHOWN]
        ]
        return {"shared": group.shared, "overlap": group.overlap, "count": len(group.clips), "clips": clips}

    def groups(groups: dict[str, list[Group]]) -> dict[str, Any]:
        return {
            where: {"count": len(found), "first": [group(one) for one in found[:SHOWN]]}
            for where, found in groups.items()
        }

    def split(split: Split) -> dict[str, Any]:
        facts = dataclasses.asdict(split)
        for key in ("not_in_manifest", "not_in_annotation"):
            facts[key] = {"count": len(facts[key]), "first": facts[key][:SHOWN]}
        return facts

    copies = None
    if overview.comparisons is not None:
        copies = [dataclasses.asdict(one.copy) | {"off": one.off} for one in overview.comparisons]
    names = [*overview.classes, ""]
    content = {
        "dataset": overview.dataset,
        "form": overview.form,
        "warnings": overview.warnings,
        "splits": {name: split(one) for name, one in overview.splits.items()},
        "known_copies": copies,
        "doubles": groups(overview.doubles),
        "same_bytes": groups(overview.same_bytes),
        "leaks": groups(overview.leaks),
        "leaked_bytes": groups(overview.leaked_bytes),
        "sha256": overview.hashes,
        "ffmpeg": overview.ffmpeg,
        "reasons": [{"state": state, "reason": reason, "clips": count} for state, reason, count in overview.reasons],
        "classes": [
            {"label": label if label < len(overview.classes) else -1, "class_name": names[label], "states": states}
            for label, states in enumerate(overview.class_states)
        ],
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


SHOWN = 100
"""Entries shown of a list that could have 300,000."""


def summary(overview: Overview) -> str:
    """The overview for a terminal."""
    lines = [f"{overview.dataset}/{overview.form}: {len(overview.classes)} classes"]
    lines.append(f"{'split':8}" + "".join(f"{name:>10}" for name in (*STATES, "listed", "usable", "hours")))
    for name, split in overview.splits.items():
        counts = [*(split.states[state] for state in STATES), split.listed, split.usable]
        lines.append(f"{name:8}" + "".join(f"{count:>10,}" for count in counts) + f"{split.hours:>10,.2f}")
    if overview.comparisons is None:
        lines.append("not compared with the known copies of Kinetics-400: the classes are others")
    else:
        for comparison in overview.comparisons:
            lines.append(f"{comparison.copy.name} ({comparison.copy.counts}): {difference(comparison)}")
    lines += [f"warning: {warning}" for warning in overview.warnings]
    if overview.ffmpeg:
        lines.append(ffmpeg_text(overview.ffmpeg))
    lines += [f"{sha256}  {name}" for name, sha256 in overview.hashes.items()]
    return "\n".join(lines)


def ffmpeg_text(versions: Mapping[str, int]) -> str:
    """ffmpeg: 7.0.2 made 295 shards, 6.1.1 made 6 shards"""
    return "ffmpeg: " + ", ".join(
        f"{version} made {count:,} {'shard' if count == 1 else 'shards'}" for version, count in versions.items()
    )


def difference(comparison: Comparison) -> str:
    """train the same, val -115"""
    if not comparison.off:
        return "no split in common"
    return ", ".join(f"{split} {f'{off:+,}' if off else 'the same'}" for split, off in comparison.off.items())


def _split(data: DataFolder, name: str, clips: list[Clip], states: dict[str, int]) -> Split:
    listed, usable = [clip for clip in clips if clip.is_listed], [clip for clip in clips if clip.is_usable]
    annotation = data.stored / "archive" / "annotations" / f"{name}.csv"
    annotated = {clip.video_id for clip in read_annotations(annotation, name)} if annotation.is_file() else None
    here = {clip.video_id for clip in listed}
    return Split(
        states=states,
        listed=len(listed),
        # a replacement may be for a clip that no part has
        archived=sum(clip.state != "missing" and _NOWHERE not in clip.reason for clip in clips),
        usable=len(usable),
        num_frames=sum(clip.num_frames or 0 for clip in usable),
        hours=round(sum(clip.num_frames / clip.fps for clip in usable if clip.num_frames and clip.fps) / 3600, 3),
        size_bytes=sum(clip.size or 0 for clip in usable),
        parts=_parts(data.tracked / "archive", name),
        annotated=None if annotated is None else len(annotated),
        not_in_manifest=[] if annotated is None else sorted(annotated - here),
        not_in_annotation=[] if annotated is None else sorted(here - annotated),
    )


_NOWHERE = "in no part"  # in the reasons of resolve_states


def _parts(archive: Path, split: str) -> list[int] | None:
    try:
        fetched = read_inventory(archive).splits.get(split)
    except UserError:  # the archives are gone, or are being fetched
        return None
    return [len(fetched.parts), fetched.listed] if fetched else None


def _class_states(clips: Iterable[Clip], num_classes: int) -> list[dict[str, dict[str, int]]]:
    counts: dict[int, dict[str, collections.Counter[str]]] = collections.defaultdict(
        lambda: collections.defaultdict(collections.Counter)
    )
    for clip in clips:
        if clip.is_listed:
            counts[clip.label][clip.split][clip.state] += 1
    labels = [*range(num_classes), *([-1] if -1 in counts else [])]
    return [
        {split: {state: counts[label][split][state] for state in STATES} for split in SPLITS if split in counts[label]}
        for label in labels
    ]


def _reasons(clips: Iterable[Clip]) -> list[tuple[str, str, int]]:
    counts = collections.Counter((clip.state, clip.reason) for clip in clips if clip.reason)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], STATES.index(item[0][0]), item[0][1]))
    return [(state, reason, count) for (state, reason), count in ordered[:SHOWN]]


def _is_kinetics400(classes: Sequence[str]) -> bool:
    known = kinetics400()
    try:
        return len(classes) == len(known) and len(set(map_labels(classes, known))) == len(known)
    except UserError:
        return False


def _compare(splits: Mapping[str, Split]) -> list[Comparison]:
    comparisons = []
    for copy in KNOWN_COPIES:
        off = {}
        for name, (fewest, most) in copy.splits.items():
            if name in splits:
                count = getattr(splits[name], copy.counts)
                off[name] = count - max(fewest, min(count, most))
        comparisons.append(Comparison(copy=copy, off=off))
    return comparisons


def _by(clips: Iterable[Clip], key: Callable[[Clip], str]) -> dict[str, list[Clip]]:
    """Key -> clips, for keys of at least two clips; clips whose key is '' are left out."""
    found: dict[str, list[Clip]] = collections.defaultdict(list)
    for clip in clips:
        found[key(clip)].append(clip)
    return {shared: of for shared, of in sorted(found.items()) if shared and len(of) > 1}


def _groups(by: Mapping[str, list[Clip]], first: str, second: str) -> list[Group]:
    """The groups with clips in both splits; if the splits are the same, with at least two clips in it."""
    groups = []
    for shared, clips in by.items():
        here = [clip for clip in clips if clip.split in (first, second)]
        is_group = len(here) > 1 if first == second else {clip.split for clip in here} == {first, second}
        if is_group:
            groups.append(Group(shared=shared, clips=here, overlap=_overlap(here)))
    return groups


def _overlap(clips: Iterable[Clip]) -> bool:
    """Whether two of the clips have some seconds of one video in common."""
    reached: dict[str, float] = {}
    for youtube_id, start, end in sorted(_moment(clip.video_id) for clip in clips):
        if start < reached.get(youtube_id, -1.0):
            return True
        reached[youtube_id] = max(reached.get(youtube_id, -1.0), end)
    return False


def _moment(video_id: str) -> tuple[str, float, float]:
    """YouTube id, start, end in seconds. A name without times is the whole of its video."""
    cut = re.fullmatch(r"(.+)_(\d{6,})_(\d{6,})", video_id, re.DOTALL)
    return (cut[1], float(cut[2]), float(cut[3])) if cut else (video_id, 0.0, float("inf"))


def _warnings(overview: Overview) -> Iterable[str]:
    for name, split in overview.splits.items():
        if split.parts and split.parts[0] < split.parts[1]:
            yield f"{name}: {split.parts[0]} of {split.parts[1]} parts fetched"
        if split.not_in_manifest or split.not_in_annotation:
            yield (
                f"{name}: the annotation has changed since the manifest was made, {len(split.not_in_manifest)} clips "
                f"more and {len(split.not_in_annotation)} fewer; run the stage `resize`"
            )
    for where, groups in overview.leaks.items():
        if groups:
            first, second = where.split(", ")
            same = sum(group.overlap for group in groups)
            yield f"{_videos(groups)} with clips in {first} and in {second}, {same} of them with the same seconds"
    for where, groups in overview.leaked_bytes.items():
        if groups:
            yield f"{_files(groups)} both in {' and in '.join(where.split(', '))}, byte by byte"
    for name, groups in overview.doubles.items():
        if groups:
            same = sum(group.overlap for group in groups)
            yield f"{_videos(groups)} with several clips in {name}, {same} of them with the same seconds"
    for name, groups in overview.same_bytes.items():
        if groups:
            yield f"{_files(groups)} more than once in {name}, byte by byte"


def _videos(groups: Sequence[Group]) -> str:
    return "1 video" if len(groups) == 1 else f"{len(groups):,} videos"


def _files(groups: Sequence[Group]) -> str:
    return "1 clip" if len(groups) == 1 else f"{len(groups):,} clips"
