"""Archives in, short-side videos out: archive/ -> videos_<short side>/.

    val/part_007.tar, .idx.npy, .json       the part's listed clips, in the archive's order; index; record
    train/replacement.tar, .idx.npy, .json  clips of the archive of replacements that were needed
    manifest.csv                            what became of every clip of the annotation

The encoding is the check: what decodes to no frame is corrupt. Parts that are finished are not touched again; killed at
any moment, the next run goes on with the part that it died in and ends with the same bytes. Shards of parts that are no
longer asked for stay, unused: they cost hours.

With a Dask scheduler the parts are made by its workers, with the same bytes; the few replacements are made here.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files.atomic import check_same_file_system
from ..process.progress import Progress
from .annotations import Annotation, class_key, class_names, read_annotations
from .archives import BrokenArchive, read_archive
from .download import REPLACEMENTS, Inventory, read_inventory
from .manifest import SPLITS, Clip, count_states, write_manifest
from .parts import forget_record, in_order, make_key, publish, read_record, scratch_folder, write_record
from .shards import ShardWriter
from .transcode import FIXED, BadVideo, Encoded, EncodeSettings, ffmpeg_version, transcode


def resize(
    archive: Path,
    out: Path,
    *,
    short_side: int,
    encode: EncodeSettings,
    jobs: int,
    scratch: Path,
    clip_timeout_seconds: float,
    max_bad_share: float,
    min_frames: int = 1,
    scheduler: str | None = None,
    on_progress: Progress | None = None,
) -> str:
    """Make the shards and the manifest, `jobs` clips at once; gives a line that says what is there now.

    With `scheduler`, the address of a Dask scheduler, its workers make the parts (see cluster.py).

    A clip with fewer than `min_frames` frames is short. `on_progress` counts clips. Raises UserError if an archive is
    broken, or if in some split the share of missing and corrupt clips among the listed ones is above `max_bad_share`;
    everything that could be made is made and kept first. Missing clips of a split do not count if only some of its
    parts were fetched.
    """
    inventory = read_inventory(archive)
    listed, names = _read_listed(archive, inventory)
    settings = {
        "short_side": short_side,
        **{field: getattr(encode, field) for field in ("crf", "preset", "gop", "bframes", "tune")},
    }
    check_same_file_system(scratch, out)
    lock = scratch / f".{out.name}.lock"
    scratch = scratch / out.name
    work = functools.partial(_work, short_side=short_side, encode=encode, timeout_seconds=clip_timeout_seconds)
    workshop = _Workshop(archive, out, scratch, settings, clip_timeout_seconds, work, jobs, on_progress)
    with scratch_folder(scratch, lock):
        records, broken = workshop.make_parts(_parts(archive, inventory), listed, scheduler)
        if broken:
            raise UserError("\n".join(broken))
        replacements = workshop.make_replacements(inventory, _wanted(listed, records, inventory))

    clips = [
        clip
        for split in listed
        for clip in _join(split, listed[split], names, records[split], replacements[split], inventory, min_frames)
    ]
    write_manifest(out / "manifest.csv", clips)
    _judge(clips, inventory, max_bad_share, out)
    shards = {clip.shard for clip in clips if clip.shard}
    return f"resize: {summary(clips, shards)} ({out / 'manifest.csv'})"


def summary(clips: list[Clip], shards: Iterable[str]) -> str:
    """44 of 49 clips in 7 shards, 2 missing, 1 corrupt"""
    counts = collections.Counter(clip.state for clip in clips)
    num_listed = sum(clip.is_listed for clip in clips)
    usable = sum(clip.is_usable for clip in clips)
    others = [f"{counts[state]} {state}" for state in ("replaced", "short", "missing", "corrupt", "unlisted")]
    others = [text for text in others if not text.startswith("0 ")]
    return ", ".join([f"{usable} of {num_listed} clips in {len(set(shards))} shards", *others])


@dataclasses.dataclass(frozen=True)
class _Part:
    split: str
    number: int
    source: Path
    sha256: str
    num_members: int

    @property
    def shard(self) -> str:
        """Relative to the form's folder."""
        return f"{self.split}/part_{self.number:03d}.tar"


# what is known of a clip: of one copy in one archive
_Copy = dict[str, Any]
# shard -> its copies, and the names in it that no line lists
_Records = dict[str, dict]


def _parts(archive: Path, inventory: Inventory) -> list[_Part]:
    parts = []
    for split in SPLITS:
        for number in inventory.splits.get(split, {}).get("parts", []):
            name = inventory.part(split, number)
            file = inventory.files[name]
            parts.append(_Part(split, number, archive / name, file["sha256"], file["members"]))
    return parts


def _read_listed(archive: Path, inventory: Inventory) -> tuple[dict[str, dict[str, Annotation]], list[str]]:
    """Split -> video_id -> annotation; and the class names by label, numbered over the annotations of all splits."""
    there = [split for split in SPLITS if f"annotations/{split}.csv" in inventory.files]
    read = {split: read_annotations(archive / f"annotations/{split}.csv", split) for split in there}
    listed = {split: {clip.video_id: clip for clip in read[split]} for split in there if split in inventory.splits}
    return listed, class_names(itertools.chain.from_iterable(read.values()))


def _work(
    data: bytes, *, short_side: int, encode: EncodeSettings, timeout_seconds: float, scratch: Path
) -> tuple[str, Encoded | str]:
    """One clip: sha256 of the source, and what came out, or why nothing did."""
    sha256 = hashlib.sha256(data).hexdigest()
    try:
        encoded = transcode(
            data, short_side=short_side, encode=encode, timeout_seconds=timeout_seconds, scratch=scratch
        )
    except BadVideo as error:
        return sha256, str(error)
    return sha256, encoded


@dataclasses.dataclass
class _Workshop:
    """What all shards of a run have in common."""

    archive: Path
    out: Path
    scratch: Path
    settings: dict[str, Any]
    clip_timeout_seconds: float
    work: Callable[..., tuple[str, Encoded | str]]
    jobs: int
    on_progress: Progress | None

    def make_parts(
        self, parts: list[_Part], listed: dict[str, dict[str, Annotation]], scheduler: str | None
    ) -> tuple[dict[str, _Records], list[str]]:
        """Split -> shard -> record, for all parts; and what is wrong with those that could not be made."""
        made: dict[str, dict | str] = {}
        todo = []
        for part in parts:
            record = self._finished(part.shard, self._key(part.sha256), listed[part.split])
            if record:
                made[part.shard] = record
            else:
                todo.append(part)
        if todo:
            (self.out / "manifest.csv").unlink(missing_ok=True)  # it would point into shards that are about to change
        with contextlib.closing(
            self._made_by_workers(todo, scheduler) if scheduler else self._made(todo, listed)
        ) as it:
            made.update(it)
        # as the parts are numbered, not as they were finished
        records: dict[str, _Records] = {split: {} for split in listed}
        broken = []
        for part in parts:
            result = made[part.shard]
            if isinstance(result, str):
                broken.append(result)
            else:
                records[part.split][part.shard] = result
        return records, broken

    def make_part(self, part: _Part, *, scratch: Path, jobs: int, on_progress: Progress) -> dict | str:
        """The record of one part, made here and now if need be; or what is wrong with its archive."""
        annotations = read_annotations(self.archive / f"annotations/{part.split}.csv", part.split)
        listed = {part.split: {clip.video_id: clip for clip in annotations}}
        # a worker may have finished it that was lost before it could say so
        if record := self._finished(part.shard, self._key(part.sha256), listed[part.split]):
            return record
        here = dataclasses.replace(self, scratch=scratch, jobs=jobs, on_progress=on_progress)
        return dict(here._made([part], listed))[part.shard]

    def _made(
        self, todo: list[_Part], listed: dict[str, dict[str, Annotation]]
    ) -> Generator[tuple[str, dict | str], None, None]:
        """(shard, record, or what is wrong with the archive), part by part; clips of the next one fill up the cores."""
        total, done = sum(part.num_members for part in todo), itertools.count(1)
        with concurrent.futures.ThreadPoolExecutor(self.jobs) as pool:
            try:
                results = in_order(self._tasks(todo, listed), pool, ahead=4 * self.jobs)
                for part, events in itertools.groupby(results, key=lambda result: result[0][0]):
                    events = self._tell(events, done, total)
                    try:
                        record = self._write(part.shard, self._key(part.sha256), ((n, r) for (_, n), r in events))
                    except BrokenArchive as error:
                        yield part.shard, str(error)
                    else:
                        yield part.shard, record
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _made_by_workers(self, todo: list[_Part], scheduler: str) -> Generator[tuple[str, dict | str], None, None]:
        """The same from many machines, in the order in which the parts are finished."""
        from .cluster import made_by_workers

        archive = self.archive.absolute()
        there = dataclasses.replace(self, archive=archive, out=self.out.absolute(), on_progress=None)
        sent = {
            part.shard: dataclasses.replace(part, source=archive / part.source.relative_to(self.archive))
            for part in todo
        }
        sizes, total, done = {part.shard: part.num_members for part in todo}, sum(part.num_members for part in todo), 0
        with contextlib.closing(made_by_workers(scheduler, there.make_part, sent, self.scratch)) as results:
            for shard, result in results:
                done += sizes[shard]
                if self.on_progress:
                    self.on_progress(f"resize to {self.settings['short_side']}, clips", done, total)
                yield shard, str(result) if isinstance(result, UserError) else result

    def make_replacements(
        self, inventory: Inventory, wanted: dict[str, set[str]]
    ) -> dict[str, tuple[str, dict[str, _Copy]]]:
        """Split -> (shard, video_id -> copy), for those wanted clips that the archive of replacements has."""
        found: dict[str, tuple[str, dict[str, _Copy]]] = {}
        for split, video_ids in wanted.items():
            shard, record = f"{split}/replacement.tar", None
            if video_ids and REPLACEMENTS in inventory.files:
                key = self._key(inventory.files[REPLACEMENTS]["sha256"], sorted(video_ids))
                record = self._finished(shard, key, video_ids)
                if record is None:
                    (self.out / "manifest.csv").unlink(missing_ok=True)
                    record = self._replace(self.archive / REPLACEMENTS, shard, key, video_ids)
            else:
                forget_record(self.out / shard)
                for path in (self.out / split).glob("replacement.*"):
                    path.unlink()
            found[split] = (shard, {copy["video_id"]: copy for copy in record["clips"]} if record else {})
        return found

    def _replace(self, source: Path, shard: str, key: str, video_ids: set[str]) -> dict:
        tasks = (
            (video_id, functools.partial(self.work, data, scratch=self.scratch))
            for video_id, data in read_archive(source)
            if video_id in video_ids
        )
        with concurrent.futures.ThreadPoolExecutor(self.jobs) as pool:
            return self._write(shard, key, in_order(tasks, pool, ahead=4 * self.jobs))

    def _tasks(self, todo: list[_Part], listed: dict[str, dict[str, Annotation]]) -> Iterator[tuple[Any, Any]]:
        """((part, video_id), work). After a part's last clip comes None, or the reason why its archive is broken."""
        for part in todo:
            end = None
            try:
                for video_id, data in read_archive(part.source):
                    is_listed = video_id in listed[part.split]
                    work = functools.partial(self.work, data, scratch=self.scratch) if is_listed else None
                    yield (part, video_id), work
            except BrokenArchive as error:
                end = error
            yield (part, end), None

    def _write(self, shard: str, key: str, events: Iterable[tuple[str | BrokenArchive | None, Any]]) -> dict:
        """One shard and its record. Raises BrokenArchive."""
        made, clips, unlisted, written = self.scratch / Path(shard).name, [], [], set()
        with ShardWriter(made) as writer:
            for video_id, result in events:
                if isinstance(video_id, BrokenArchive):
                    raise video_id
                if video_id is None:
                    continue
                if result is None:
                    unlisted.append(video_id)
                    continue
                sha256, outcome = result
                copy = {"video_id": video_id, "sha256": sha256}
                if isinstance(outcome, str):
                    copy["fault"] = outcome
                elif video_id in written:  # an archive that holds a clip twice
                    copy["fault"] = "there twice"
                else:
                    written.add(video_id)
                    copy["offset"], copy["size"] = writer.add(f"{video_id}.mp4", outcome.data)
                    copy |= {"num_frames": outcome.num_frames, "width": outcome.width, "height": outcome.height}
                    copy |= {"fps": outcome.fps, "damage": outcome.damage}
                clips.append(copy)
        facts = {"ffmpeg": ffmpeg_version(), "unlisted": unlisted}
        record = write_record(made, key, self.clip_timeout_seconds, clips, **facts)
        publish(made, self.out / shard)
        return record

    def _key(self, *source: Any) -> str:
        return make_key(self.settings, FIXED, *source)

    def _finished(self, shard: str, key: str, listed: Iterable[str]) -> dict | None:
        """The shard's record, if it holds just what is listed now."""
        record = read_record(self.out / shard, key, self.clip_timeout_seconds)
        if (
            record is None
            or not isinstance(record.get("unlisted"), list)
            or not all("fault" in copy or copy.keys() >= _OF_PICTURES for copy in record["clips"])
            or any(video_id in listed for video_id in record["unlisted"])
            or any(copy["video_id"] not in listed for copy in record["clips"])
        ):
            return None
        return record

    def _tell(self, events: Iterable, done: Iterator[int], total: int) -> Iterator:
        for event in events:
            yield event
            if self.on_progress and isinstance(event[0][1], str):
                self.on_progress(f"resize to {self.settings['short_side']}, clips", next(done), total)


def _wanted(
    listed: dict[str, dict[str, Annotation]], records: dict[str, _Records], inventory: Inventory
) -> dict[str, set[str]]:
    """Split -> clips that a replacement would help: without a copy that decodes, and without a fault at that."""
    wanted = {}
    for split in listed:
        copies = [copy for record in records[split].values() for copy in record["clips"]]
        sound = {copy["video_id"] for copy in copies if "offset" in copy and not copy["damage"]}
        there = {copy["video_id"] for copy in copies}
        # with some parts not fetched, what is not here may well be there
        candidates = set(listed[split]) if _is_complete(inventory, split) else there
        wanted[split] = candidates - sound
    return wanted


def _is_complete(inventory: Inventory, split: str) -> bool:
    """Whether all parts that the mirror lists were fetched."""
    return len(inventory.splits[split]["parts"]) == inventory.splits[split]["listed"]


def _join(
    split: str,
    listed: dict[str, Annotation],
    names: list[str],
    records: _Records,
    replacement: tuple[str, dict[str, _Copy]],
    inventory: Inventory,
    min_frames: int,
) -> Iterator[Clip]:
    """The split's lines of the manifest."""
    labels = {class_key(name): label for label, name in enumerate(names)}
    copies: dict[str, list[tuple[str, _Copy]]] = collections.defaultdict(list)
    for shard, record in records.items():
        for copy in record["clips"]:
            copies[copy["video_id"]].append((shard, copy))
    for video_id, annotation in listed.items():
        label = labels[class_key(annotation.class_name)] if annotation.class_name is not None else -1
        fate = _fate(copies[video_id], replacement[0], replacement[1].get(video_id), min_frames)
        if fate["state"] == "missing" and not _is_complete(inventory, split):
            of = inventory.splits[split]
            fate["reason"] = f"in none of the {len(of['parts'])} parts fetched, of {of['listed']}"
        yield Clip(video_id=video_id, split=split, label=label, class_name=names[label] if label >= 0 else "", **fate)
    strangers = {name: shard for shard, record in reversed(records.items()) for name in record["unlisted"]}
    for video_id, shard in strangers.items():
        yield Clip(
            video_id=video_id,
            split=split,
            label=-1,
            class_name="",
            state="unlisted",
            reason=f"in {Path(shard).stem}, and in no line of {split}.csv",
        )


def _fate(
    copies: list[tuple[str, _Copy]], replacement_shard: str, replacement: _Copy | None, min_frames: int
) -> dict[str, Any]:
    """State, place and reason of a clip, of which there are copies in parts and perhaps a replacement."""
    usable = next(((shard, copy) for shard, copy in copies if "offset" in copy), None)
    reasons = [f"also in {Path(shard).stem}" for shard, _ in copies[1:]] if usable else []
    state = "ok"
    if usable and usable[1]["damage"]:
        reasons.append(f"decodes with faults: {usable[1]['damage']}")
    was = copies[0][1].get("fault", "") if copies else "in no part"
    helps = replacement and replacement.get("num_frames", 0) > (usable[1]["num_frames"] if usable else 0)
    if helps:
        state = "replaced"
        reasons = [*reasons, *([] if usable else [was])]
        usable = (replacement_shard, replacement)
    if not usable:
        tried = f"; its replacement: {replacement['fault']}" if replacement else ""
        known = {"sha256": copies[0][1]["sha256"]} if copies else {}
        return {"state": "corrupt" if copies else "missing", "reason": was + tried, **known}
    shard, copy = usable
    if copy["num_frames"] < min_frames:
        reasons.append(f"{copy['num_frames']} frames, fewer than {min_frames}")
        if helps:
            reasons.append("replaced")
        state = "short"
    facts = {key: copy[key] for key in ("offset", "size", "num_frames", "width", "height", "fps", "sha256")}
    return {"state": state, "shard": shard, "reason": "; ".join(reasons), **facts}


def _judge(clips: list[Clip], inventory: Inventory, max_bad_share: float, out: Path) -> None:
    """Raises UserError if too many clips are lost, with their list."""
    faults = []
    for split, counts in count_states(clips).items():
        states = ("missing", "corrupt") if _is_complete(inventory, split) else ("corrupt",)
        bad = [clip for clip in clips if clip.split == split and clip.state in states]
        num_listed = sum(counts.values()) - counts["unlisted"]
        if len(bad) > max_bad_share * num_listed:
            shown = [f"\n  {clip.video_id}  {clip.state}: {clip.reason}" for clip in bad[:20]]
            more = f"\n  and {len(bad) - 20} more" if len(bad) > 20 else ""
            faults.append(
                f"{split}: {len(bad)} of {num_listed} clips are missing or corrupt, {len(bad) / num_listed:.1%}; "
                f"max_bad_share allows {max_bad_share:.1%}:" + "".join(shown) + more
            )
    if faults:
        raise UserError("\n".join(faults) + f"\nall of them: {out / 'manifest.csv'}. Mend the source, or allow more")


_OF_PICTURES = {"offset", "size", "num_frames", "width", "height", "fps", "sha256", "damage"}
"""What a record says of each clip that has pictures."""
