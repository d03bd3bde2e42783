"""Archives in, short-side videos out: archive/ -> videos_<short side>/.

    val/part_007.tar, .idx.npy, .json       the part's listed clips, in the archive's order; index; record
    train/replacement.tar, .idx.npy, .json  clips of the archive of replacements that were needed
    manifest.csv                            the state of every clip of the annotation

The encoding is the check: a clip that decodes to no frame is corrupt. Finished parts are not touched again. After a
kill at any moment the next run continues with the unfinished part and ends with the same bytes. Shards of parts that
are no longer asked for stay, unused, since they took hours to make.

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
from ..process.progress import Progress
from .annotations import class_names, read_annotations
from .archives import BrokenArchive, read_archive
from .clip_states import ArchivedSplit, Listed, Records, Replacements, resolve_states, wanted_replacements
from .download import REPLACEMENTS
from .execution import Execution
from .ffmpeg_process import BadVideo
from .inventory import Inventory, read_inventory
from .manifest import SPLITS, Clip, count_states, write_manifest
from .part_records import PartClip, PartRecord, forget_record, make_key, read_record, write_record
from .parts import in_order, publish, scratch_folder
from .shards import ShardWriter
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
    archive: Path,
    out: Path,
    execution: Execution,
    *,
    video_format: VideoFormat,
    max_bad_share: float,
    min_frames: int = 1,
) -> str:
    """Make the shards and the manifest; returns a line that says what is there now.

    A clip with fewer than `min_frames` frames is short. Raises UserError if an archive is broken, or if in some split
    the share of missing and corrupt clips among the listed ones is above `max_bad_share`; everything that could be made
    is made and kept first. Missing clips of a split do not count if only some of its parts were fetched.
    """
    inventory = read_inventory(archive)
    listed, names = _read_listed(archive, inventory)
    check_same_file_system(execution.scratch, out)
    lock = execution.scratch / f".{out.name}.lock"
    scratch = execution.scratch / out.name
    builder = _ShardBuilder(archive, out, video_format, dataclasses.replace(execution, scratch=scratch))
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
    write_manifest(out / "manifest.csv", clips)
    _check_bad_share(clips, inventory, max_bad_share, out)
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


_Outcome = tuple[str, Encoded | str]
"""sha256 of a clip's source; and the encoded clip, or why there is none."""
_Source = str | BrokenArchive | None
"""Where an outcome comes from: a clip by its id; at the end of a part None, or what is wrong with its archive."""


def _parts(archive: Path, inventory: Inventory) -> list[_Part]:
    parts = []
    for split in SPLITS:
        for number in inventory.splits[split].parts if split in inventory.splits else ():
            name = inventory.part(split, number)
            file = inventory.files[name]
            if not file.sha256:
                raise UserError(
                    f"{archive / 'inventory.json'} has no sha256 of {name}; delete it, run `download` again"
                )
            parts.append(_Part(split, number, archive / name, file.sha256, file.members or 0))
    return parts


def _read_listed(archive: Path, inventory: Inventory) -> tuple[Listed, list[str]]:
    """Split -> video_id -> annotation; and the class names by label, numbered over the annotations of all splits."""
    there = [split for split in SPLITS if f"annotations/{split}.csv" in inventory.files]
    read = {split: read_annotations(archive / f"annotations/{split}.csv", split) for split in there}
    listed = {split: {clip.video_id: clip for clip in read[split]} for split in there if split in inventory.splits}
    return listed, class_names(itertools.chain.from_iterable(read.values()))


@dataclasses.dataclass(frozen=True)
class _ShardBuilder:
    """Makes the shards of a run; what they have in common. Pickled for the workers of a cluster."""

    archive: Path
    out: Path
    video_format: VideoFormat
    execution: Execution

    def make_parts(self, parts: list[_Part], listed: Listed) -> tuple[Mapping[str, Records], list[str]]:
        """Split -> shard -> record, for all parts; and the error messages of those that could not be made."""
        made: dict[str, PartRecord | str] = {}
        todo = []
        for part in parts:
            record = self._finished(part.shard, self._key(part.sha256), listed[part.split])
            if record:
                made[part.shard] = record
            else:
                todo.append(part)
        if todo:
            (self.out / "manifest.csv").unlink(missing_ok=True)  # it would point into shards that are about to change
        scheduler = self.execution.scheduler
        results = self._make_with_workers(todo, scheduler) if scheduler else self._make(todo, listed)
        with contextlib.closing(results):
            made.update(results)
        # by the parts' numbers, not in the order in which they were finished
        records: dict[str, Records] = {split: {} for split in listed}
        broken = []
        for part in parts:
            result = made[part.shard]
            if isinstance(result, str):
                broken.append(result)
            else:
                records[part.split][part.shard] = result
        return records, broken

    def make_part(self, part: _Part, *, scratch: Path, jobs: int, on_progress: Progress) -> PartRecord | str:
        """The record of one part, made now unless it is finished; or what is wrong with its archive."""
        annotations = read_annotations(self.archive / f"annotations/{part.split}.csv", part.split)
        listed = {part.split: {clip.video_id: clip for clip in annotations}}
        # a worker may have finished the part and have been lost before it could report that
        if record := self._finished(part.shard, self._key(part.sha256), listed[part.split]):
            return record
        execution = dataclasses.replace(self.execution, scratch=scratch, jobs=jobs, on_progress=on_progress)
        here = dataclasses.replace(self, execution=execution)
        return dict(here._make([part], listed))[part.shard]

    def _make(self, todo: list[_Part], listed: Listed) -> Generator[tuple[str, PartRecord | str], None, None]:
        """(shard, its record or what is wrong with the archive), part by part; the next part's clips keep all cores
        busy."""
        total, done = sum(part.num_members for part in todo), itertools.count(1)
        with concurrent.futures.ThreadPoolExecutor(self.execution.jobs) as pool:
            try:
                results = in_order(self._tasks(todo, listed), pool, ahead=4 * self.execution.jobs)
                for part, group in itertools.groupby(results, key=lambda result: result[0][0]):
                    outcomes = ((source, outcome) for (_, source), outcome in group)
                    counted = self._count(outcomes, done, total)
                    try:
                        record = self._write(part.shard, self._key(part.sha256), counted)
                    except BrokenArchive as error:
                        yield part.shard, str(error)
                    else:
                        yield part.shard, record
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
        there = _ShardBuilder(archive, self.out.absolute(), self.video_format, execution)
        sent = {
            part.shard: dataclasses.replace(part, source=archive / part.source.relative_to(self.archive))
            for part in todo
        }
        sizes, total, done = {part.shard: part.num_members for part in todo}, sum(part.num_members for part in todo), 0
        with contextlib.closing(made_by_workers(scheduler, there.make_part, sent, self.execution.scratch)) as results:
            for shard, result in results:
                done += sizes[shard]
                self._report(done, total)
                yield shard, str(result) if isinstance(result, UserError) else result

    def make_replacements(self, inventory: Inventory, wanted: Mapping[str, set[str]]) -> dict[str, Replacements]:
        """Split -> those of the wanted clips that the archive of replacements has."""
        found: dict[str, Replacements] = {}
        for split, video_ids in wanted.items():
            shard, record = f"{split}/replacement.tar", None
            if video_ids and REPLACEMENTS in inventory.files:
                key = self._key(inventory.files[REPLACEMENTS].sha256, sorted(video_ids))
                record = self._finished(shard, key, video_ids)
                if record is None:
                    (self.out / "manifest.csv").unlink(missing_ok=True)
                    record = self._replace(self.archive / REPLACEMENTS, shard, key, video_ids)
            else:
                forget_record(self.out / shard)
                for path in (self.out / split).glob("replacement.*"):
                    path.unlink()
            found[split] = Replacements(shard, {clip.video_id: clip for clip in record.clips} if record else {})
        return found

    def _replace(self, source: Path, shard: str, key: str, video_ids: set[str]) -> PartRecord:
        tasks: Iterator[tuple[_Source, Callable[[], _Outcome]]] = (
            (video_id, functools.partial(self._work, data))
            for video_id, data in read_archive(source)
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
                for video_id, data in read_archive(part.source):
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
        publish(made, self.out / shard)
        return record

    def _key(self, *source: object) -> str:
        return make_key(self.video_format.settings(), FIXED, *source)

    def _finished(self, shard: str, key: str, listed: Iterable[str]) -> PartRecord | None:
        """The shard's record, if it holds exactly the clips that are listed now."""
        record = read_record(self.out / shard, key, self.execution.clip_timeout_seconds)
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
