"""Archives in, short-side videos out: archive/ -> videos_<short side>/.

    val/part_007-1a2b3c4d.tar, .idx.npy, .json       the part's listed clips, in the archive's order; index; record
    train/replacement-5e6f7a8b.tar, .idx.npy, .json  clips of the archive of replacements that were needed
    manifest.csv, classes.txt                        the state of every clip of the annotation; the class names
    shards.csv                                       the shards with their sizes and hashes (shard_list.py)

DVC tracks the last three; the others lie under the data root. The encoding is the check: a clip that decodes to no
frame is corrupt. Finished parts are not touched again. After a kill at any moment the next run continues with the
unfinished part and ends with the same bytes. Shards of other settings, and of parts that are no longer asked for, stay:
other experiments may use them, and they took hours to make.

With a Dask scheduler its workers make the parts, with the same bytes; the few replacements are made here.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from pathlib import Path

from ..errors import UserError
from ..files.atomic import check_same_file_system
from ..files.data_folder import DataFolder
from ..process.progress import Progress
from .annotations import class_names, read_annotations
from .archives import BrokenArchive, check_file, read_archive
from .clip_states import ArchivedSplit, Listed, Records, Replacements, resolve_states, wanted_replacements
from .download import REPLACEMENTS
from .execution import Execution
from .ffmpeg_process import BadVideo
from .inventory import ArchivedFile, Inventory, read_inventory
from .manifest import SPLITS, Clip, count_states, write_manifest
from .part_records import PartClip, PartRecord, forget_record, make_key, read_record, take_over, write_record
from .parts import in_order, publish, scratch_folder
from .shard_list import SHARDS, note_other_versions, write_shards
from .shards import ShardWriter, keyed
from .transcode import FIXED, Encoded, EncodeSettings, ffmpeg_version, transcode


@dataclasses.dataclass(frozen=True)
class VideoFormat:
    """Format of the short-side videos: everything in params.yaml that their bytes depend on."""

    short_side: int
    """Pixels; smaller videos keep their size."""
    encode: EncodeSettings

    def settings(self) -> dict[str, object]:
        """Name -> value, for the key of a shard."""
        names = ("crf", "preset", "gop", "bframes", "tune")
        return {"short_side": self.short_side} | {name: getattr(self.encode, name) for name in names}


def resize(
    archive: DataFolder,
    out: DataFolder,
    execution: Execution,
    *,
    video_format: VideoFormat,
    max_bad_share: float,
    min_frames: int = 1,
) -> str:
    """Make the shards and the manifest; returns a line that says what is there now.

    A clip with fewer than `min_frames` frames is short. Raises UserError if an
    archive is broken or is not the one that the inventory names, or if in some split the share of missing and corrupt
    clips among the listed ones is above `max_bad_share`; everything that could be made is made and kept first. Missing
    clips of a split do not count if only some of its parts were fetched.
    """
    inventory = read_inventory(archive.tracked)
    listed, names = _read_listed(archive.stored, inventory)
    check_same_file_system(execution.scratch, out.stored)
    lock = execution.scratch / f".{out.name}.lock"
    scratch = execution.scratch / out.name
    builder = _ShardBuilder(archive.stored, out, video_format, dataclasses.replace(execution, scratch=scratch))
    with scratch_folder(scratch, lock):
        records, broken = builder.make_parts(_parts(archive, inventory), listed)
        if broken:
            raise UserError("\n".join(broken))
        replacements = builder.make_replacements(inventory, wanted_replacements(listed, records, inventory))

    splits = [
        ArchivedSplit(split, listed[split], inventory.splits[split], records[split], replacements[split])
        for split in listed
    ]
    clips = [clip for split in splits for clip in resolve_states(split, names, min_frames)]
    write_manifest(out.manifest, clips, names)
    made = dict(itertools.chain.from_iterable(of.items() for of in records.values()))
    made |= {of.shard: of.record for of in replacements.values() if of.record}
    write_shards(out.tracked / SHARDS, made)
    _check_bad_share(clips, inventory, max_bad_share, out.tracked)
    shards = {clip.shard for clip in clips if clip.shard}
    return f"resize: {summary(clips, shards)} ({out.manifest})"


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
    file: ArchivedFile
    """What the inventory says of the source."""

    @property
    def num_members(self) -> int:
        return self.file.members or 0

    @property
    def name(self) -> str:
        """Of its shard, relative to the form's folder and without the key."""
        return f"{self.split}/part_{self.number:03d}.tar"


_Outcome = tuple[str, Encoded | str]
"""sha256 of a clip's source; and the encoded clip, or why there is none."""
_Source = str | BrokenArchive | None
"""Where an outcome comes from: a clip by its id; at the end of a part None, or what is wrong with its archive."""


def _parts(archive: DataFolder, inventory: Inventory) -> list[_Part]:
    parts = []
    for split in SPLITS:
        for number in inventory.splits[split].parts if split in inventory.splits else ():
            name = inventory.part(split, number)
            file = inventory.files[name]
            if not file.sha256:
                raise UserError(
                    f"{archive.tracked / 'inventory.json'} has no sha256 of {name}; delete it, run `download` again"
                )
            parts.append(_Part(split, number, archive.stored / name, file))
    return parts


def _read_listed(archive: Path, inventory: Inventory) -> tuple[Listed, list[str]]:
    """Split -> video_id -> annotation; and the class names by label, numbered over the annotations of all splits."""
    there = [split for split in SPLITS if f"annotations/{split}.csv" in inventory.files]
    for split in there:
        name = f"annotations/{split}.csv"
        check_file(archive / name, inventory.files[name])
    read = {split: read_annotations(archive / f"annotations/{split}.csv", split) for split in there}
    listed = {split: {clip.video_id: clip for clip in read[split]} for split in there if split in inventory.splits}
    return listed, class_names(itertools.chain.from_iterable(read.values()))


@dataclasses.dataclass(frozen=True)
class _ShardBuilder:
    """Makes the shards of a run; what they have in common. Pickled for the workers of a cluster."""

    archive: Path
    out: DataFolder
    video_format: VideoFormat
    execution: Execution

    def make_parts(self, parts: list[_Part], listed: Listed) -> tuple[Mapping[str, Records], list[str]]:
        """Split -> shard -> record, for all parts; and the error messages of those that could not be made."""
        made: dict[str, PartRecord | str] = {}
        todo = []
        for part in parts:
            if self.execution.force:
                forget_record(self.out.stored / self._shard(part))
            record = self._finished(part.name, self._key(part.file.sha256), listed[part.split])
            if record:
                made[part.name] = record
            else:
                todo.append(part)
        note_other_versions(self.out.name, (of for of in made.values() if isinstance(of, PartRecord)), ffmpeg_version())
        if todo:
            self.out.manifest.unlink(missing_ok=True)  # it might point into shards that are about to change
        scheduler = self.execution.scheduler
        results = self._make_with_workers(todo, scheduler) if scheduler else self._make(todo, listed)
        with contextlib.closing(results):
            made.update(results)
        # by the parts' numbers, not in the order in which they were finished
        records: dict[str, Records] = {split: {} for split in listed}
        broken = []
        for part in parts:
            result = made[part.name]
            if isinstance(result, str):
                broken.append(result)
            else:
                records[part.split][self._shard(part)] = result
        return records, broken

    def make_part(self, part: _Part, *, scratch: Path, jobs: int, on_progress: Progress) -> PartRecord | str:
        """The record of one part, made now unless it is finished; or what is wrong with its archive."""
        annotations = read_annotations(self.archive / f"annotations/{part.split}.csv", part.split)
        listed = {part.split: {clip.video_id: clip for clip in annotations}}
        # a worker may have finished the part and have been lost before it could report that
        if record := self._finished(part.name, self._key(part.file.sha256), listed[part.split]):
            return record
        execution = dataclasses.replace(self.execution, scratch=scratch, jobs=jobs, on_progress=on_progress)
        here = dataclasses.replace(self, execution=execution)
        return dict(here._make([part], listed))[part.name]

    def _make(self, todo: list[_Part], listed: Listed) -> Generator[tuple[str, PartRecord | str], None, None]:
        """(the part's name, its record or what is wrong with the archive), part by part; the next part's clips keep
        all cores busy."""
        total, done = sum(part.num_members for part in todo), itertools.count(1)
        with concurrent.futures.ThreadPoolExecutor(self.execution.jobs) as pool:
            try:
                results = in_order(self._tasks(todo, listed), pool, ahead=4 * self.execution.jobs)
                for part, group in itertools.groupby(results, key=lambda result: result[0][0]):
                    outcomes = ((source, outcome) for (_, source), outcome in group)
                    counted = self._count(outcomes, done, total)
                    try:
                        record = self._write(self._shard(part), self._key(part.file.sha256), counted)
                    except BrokenArchive as error:
                        yield part.name, str(error)
                    else:
                        yield part.name, record
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _make_with_workers(
        self, todo: list[_Part], scheduler: str
    ) -> Generator[tuple[str, PartRecord | str], None, None]:
        """The same on many machines, in the order in which the parts are finished."""
        from .cluster import made_by_workers

        archive = self.archive.absolute()
        execution = dataclasses.replace(self.execution, on_progress=None)
        out = DataFolder(self.out.tracked.absolute(), self.out.stored.absolute())
        there = _ShardBuilder(archive, out, self.video_format, execution)
        sent = {
            part.name: dataclasses.replace(part, source=archive / part.source.relative_to(self.archive))
            for part in todo
        }
        sizes, total, done = {part.name: part.num_members for part in todo}, sum(part.num_members for part in todo), 0
        with contextlib.closing(made_by_workers(scheduler, there.make_part, sent, self.execution.scratch)) as results:
            for name, result in results:
                done += sizes[name]
                self._report(done, total)
                yield name, str(result) if isinstance(result, UserError) else result

    def make_replacements(self, inventory: Inventory, wanted: Mapping[str, set[str]]) -> dict[str, Replacements]:
        """Split -> those of the wanted clips that the archive of replacements has."""
        found: dict[str, Replacements] = {}
        for split, video_ids in wanted.items():
            shard, record = f"{split}/replacement.tar", None
            if video_ids and REPLACEMENTS in inventory.files:
                archive = inventory.files[REPLACEMENTS]
                key = self._key(archive.sha256, sorted(video_ids))
                name, shard = shard, keyed(shard, key)
                if self.execution.force:
                    forget_record(self.out.stored / shard)
                record = self._finished(name, key, video_ids)
                if record is None:
                    self.out.manifest.unlink(missing_ok=True)
                    record = self._replace(archive, shard, key, video_ids)
            found[split] = Replacements(shard, record)
        return found

    def _replace(self, archive: ArchivedFile, shard: str, key: str, video_ids: set[str]) -> PartRecord:
        tasks: Iterator[tuple[_Source, Callable[[], _Outcome]]] = (
            (video_id, functools.partial(self._work, data))
            for video_id, data in read_archive(self.archive / REPLACEMENTS, archive)
            if video_id in video_ids
        )
        with concurrent.futures.ThreadPoolExecutor(self.execution.jobs) as pool:
            return self._write(shard, key, in_order(tasks, pool, ahead=4 * self.execution.jobs))

    def _tasks(
        self, todo: list[_Part], listed: Listed
    ) -> Iterator[tuple[tuple[_Part, _Source], Callable[[], _Outcome] | None]]:
        """((part, source), work); the work of an unlisted clip is None."""
        for part in todo:
            end: BrokenArchive | None = None
            try:
                for video_id, data in read_archive(part.source, part.file):
                    work = functools.partial(self._work, data) if video_id in listed[part.split] else None
                    yield (part, video_id), work
            except BrokenArchive as error:
                end = error
            yield (part, end), None

    def _work(self, data: bytes) -> _Outcome:
        """Encode one clip."""
        sha256 = hashlib.sha256(data).hexdigest()
        try:
            encoded = transcode(
                data,
                short_side=self.video_format.short_side,
                encode=self.video_format.encode,
                timeout_seconds=self.execution.clip_timeout_seconds,
                scratch=self.execution.scratch,
            )
        except BadVideo as error:
            return sha256, str(error)
        return sha256, encoded

    def _write(self, shard: str, key: str, outcomes: Iterable[tuple[_Source, _Outcome | None]]) -> PartRecord:
        """Write and publish one shard; returns its record. Raises BrokenArchive."""
        made = self.execution.scratch / Path(shard).name
        clips: list[PartClip] = []
        unlisted: list[str] = []
        written: set[str] = set()
        with ShardWriter(made) as writer:
            for source, outcome in outcomes:
                if isinstance(source, BrokenArchive):
                    raise source
                if source is None:
                    continue
                if outcome is None:
                    unlisted.append(source)
                    continue
                sha256, encoded = outcome
                if isinstance(encoded, str):
                    clips.append(PartClip(video_id=source, sha256=sha256, error=encoded))
                elif source in written:  # an archive that holds a clip twice
                    clips.append(PartClip(video_id=source, sha256=sha256, error="there twice"))
                else:
                    written.add(source)
                    offset, size = writer.add(f"{source}.mp4", encoded.data)
                    clips.append(
                        PartClip(
                            video_id=source,
                            sha256=sha256,
                            offset=offset,
                            size=size,
                            num_frames=encoded.num_frames,
                            width=encoded.width,
                            height=encoded.height,
                            fps=encoded.fps,
                            damage=encoded.damage,
                        )
                    )
        seconds, version = self.execution.clip_timeout_seconds, ffmpeg_version()
        record = write_record(made, key, seconds, clips, ffmpeg=version, unlisted=unlisted)
        publish(made, self.out.stored / shard)
        return record

    def _shard(self, part: _Part) -> str:
        return keyed(part.name, self._key(part.file.sha256))

    def _key(self, *source: object) -> str:
        return make_key(self.video_format.settings(), FIXED, *source)

    def _finished(self, name: str, key: str, listed: Iterable[str]) -> PartRecord | None:
        """The record of the shard, if it holds exactly the clips that are listed now. `name` is without the key."""
        shard = self.out.stored / keyed(name, key)
        if not self.execution.force:
            take_over(self.out.stored / name, shard, key)
        record = read_record(shard, key, self.execution.clip_timeout_seconds)
        if (
            record is None
            or record.unlisted is None
            or not all(clip.error or clip.num_frames for clip in record.clips)
            or any(video_id in listed for video_id in record.unlisted)
            or any(clip.video_id not in listed for clip in record.clips)
        ):
            return None
        return record

    def _count(
        self, outcomes: Iterable[tuple[_Source, _Outcome | None]], done: Iterator[int], total: int
    ) -> Iterator[tuple[_Source, _Outcome | None]]:
        """The same outcomes, each clip reported."""
        for source, outcome in outcomes:
            yield source, outcome
            if isinstance(source, str):
                self._report(next(done), total)

    def _report(self, done: int, total: int) -> None:
        if self.execution.on_progress:
            self.execution.on_progress(f"resize to {self.video_format.short_side}, clips", done, total)


def _check_bad_share(clips: list[Clip], inventory: Inventory, max_bad_share: float, out: Path) -> None:
    """Raises UserError if too many clips are lost, with their list."""
    errors = []
    for split, counts in count_states(clips).items():
        states = ("missing", "corrupt") if inventory.splits[split].is_complete else ("corrupt",)
        bad = [clip for clip in clips if clip.split == split and clip.state in states]
        num_listed = sum(counts.values()) - counts["unlisted"]
        if len(bad) > max_bad_share * num_listed:
            shown = [f"\n  {clip.video_id}  {clip.state}: {clip.reason}" for clip in bad[:20]]
            more = f"\n  and {len(bad) - 20} more" if len(bad) > 20 else ""
            errors.append(
                f"{split}: {len(bad)} of {num_listed} clips are missing or corrupt, {len(bad) / num_listed:.1%}; "
                f"max_bad_share allows {max_bad_share:.1%}:" + "".join(shown) + more
            )
    if errors:
        raise UserError("\n".join(errors) + f"\nall of them: {out / 'manifest.csv'}. Mend the source, or allow more")
