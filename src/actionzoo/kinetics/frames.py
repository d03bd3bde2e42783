"""Short-side videos in, JPEGs out: videos_<short side>/ -> frames_<short side>/.

    val/part_007-9c0d1e2f.tar        members <video_id>/img_00001.jpg, ..., in the order of the videos' shard
    val/part_007-9c0d1e2f.idx.npy    every frame's offset and size
    manifest.csv                     the videos' lines, with offset and size from a clip's first frame to the end of its
                                     last
    classes.txt, shards.csv          as beside the videos' manifest

A clip's frames are contiguous: one read gets a clip, and with `frame_spans` one read gets a frame. Finished parts are
not touched again; a part is made anew if its videos were. With a Dask scheduler its workers make the parts.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..files.atomic import check_same_file_system
from ..files.data_folder import DataFolder
from ..process.progress import Progress
from .execution import Execution
from .ffmpeg_process import BadVideo
from .manifest import Clip, StoredClip, read_manifest, write_manifest
from .part_records import PartClip, PartRecord, forget_record, key_of, make_key, read_record, take_over, write_record
from .parts import in_order, publish, scratch_folder
from .resize import summary
from .shard_list import SHARDS, check_shards, note_other_versions, write_shards
from .shards import ShardWriter, Spans, keyed, read_member, without_key
from .transcode import Jpegs, ffmpeg_version, to_jpegs


def extract_frames(
    videos: DataFolder,
    out: DataFolder,
    execution: Execution,
    *,
    qscale: int = 2,
    max_bad_share: float,
) -> str:
    """Make the shards and the manifest; returns a line that says what is there now.

    `qscale` is ffmpeg's JPEG quality, from 2 (best) to 31. A clip becomes
    corrupt if its frames cannot be decoded or are not as many as the videos' manifest says. Raises UserError, after
    everything was made, if that happened to more than `max_bad_share` of the usable clips.
    """
    clips = read_manifest(videos.manifest)
    check_same_file_system(execution.scratch, out.stored)
    lock = execution.scratch / f".{out.name}.lock"
    scratch = execution.scratch / out.name
    usable = sorted((clip.stored() for clip in clips if clip.is_usable), key=lambda clip: (clip.shard, clip.offset))
    builder = _ShardBuilder(videos.stored, out.stored, qscale, dataclasses.replace(execution, scratch=scratch))
    shards = [
        _Shard(shard, make_key(qscale, key_of(videos.stored / shard), [clip.video_id for clip in of]), of)
        for shard, of in ((shard, list(of)) for shard, of in itertools.groupby(usable, key=lambda clip: clip.shard))
    ]
    records: dict[str, PartRecord] = {}
    failed: list[str] = []
    with scratch_folder(scratch, lock):
        todo = []
        for shard in shards:
            if execution.force:
                forget_record(out.stored / shard.name)
            if record := builder.finished(shard, with_old=not execution.force):
                records[shard.name] = record
            else:
                todo.append(shard)
        note_other_versions(out.name, records.values(), ffmpeg_version())
        if todo:
            check_shards(videos.stored, (clip for shard in todo for clip in shard.clips))
            out.manifest.unlink(missing_ok=True)  # it might point into shards that are about to change
        made: Generator[tuple[str, PartRecord | UserError], None, None]
        scheduler = execution.scheduler
        made = builder.make_with_workers(todo, scheduler) if scheduler else builder.make(todo)
        with contextlib.closing(made):
            for name, result in made:
                if isinstance(result, UserError):
                    failed.append(str(result))
                else:
                    records[name] = result
    if failed:
        raise UserError("\n".join(failed))
    copies = {
        (shard.videos, copy.video_id): (shard.name, copy) for shard in shards for copy in records[shard.name].clips
    }
    lines = [_line(clip, *copies[clip.shard, clip.video_id]) if clip.is_usable else clip for clip in clips]
    write_manifest(out.manifest, lines, clips.classes)
    write_shards(out.tracked / SHARDS, records)
    lost = [clip for before, clip in zip(clips, lines, strict=True) if before.is_usable and not clip.is_usable]
    if len(lost) > max_bad_share * len(usable):
        shown = "".join(f"\n  {clip.video_id}: {clip.reason}" for clip in lost[:20])
        raise UserError(
            f"{len(lost)} of {len(usable)} clips of {videos.stored} gave no frames; max_bad_share allows "
            f"{max_bad_share:.1%}. Delete their shards and run `resize` again. The first of them:{shown}"
        )
    return f"frames: {summary(lines, {clip.shard for clip in lines if clip.shard})} ({out.manifest})"


def frame_spans(index: Spans, clip: StoredClip) -> Spans:
    """int64 (num_frames, 2): offset and size in the shard of each of the clip's frames, given the shard's index.

    Raises UserError if the index and the manifest were written by different runs.
    """
    first = int(np.searchsorted(index[:, 0], clip.offset))
    spans = index[first : first + clip.num_frames]
    if len(spans) != clip.num_frames or spans[0, 0] != clip.offset or spans[-1].sum() != clip.offset + clip.size:
        raise UserError(
            f"the index of {clip.shard} does not have {clip.video_id}'s {clip.num_frames} frames where the "
            "manifest has them; delete both and run the stage `frames`"
        )
    return spans


@dataclasses.dataclass(frozen=True)
class _Shard:
    videos: str
    """The shard that is read, relative to the videos' folder."""
    key: str
    clips: list[StoredClip]

    @property
    def name(self) -> str:
        """The shard that is made, relative to the form's folder."""
        return keyed(without_key(self.videos), self.key)


@dataclasses.dataclass(frozen=True)
class _ShardBuilder:
    """Makes the shards of a run; what they have in common. Pickled for the workers of a cluster."""

    videos: Path
    out: Path
    qscale: int
    execution: Execution

    def finished(self, shard: _Shard, with_old: bool = True) -> PartRecord | None:
        """The record of a shard that need not be made; `with_old`: also of one that an older version made."""
        if with_old:
            take_over(self.out / without_key(shard.name), self.out / shard.name, shard.key)
        return read_record(self.out / shard.name, shard.key, self.execution.clip_timeout_seconds)

    def make_shard(self, shard: _Shard, *, scratch: Path, jobs: int, on_progress: Progress) -> PartRecord:
        """The record of one shard, made now unless it is finished."""
        # a worker may have finished the shard and have been lost before it could report that
        if record := self.finished(shard):
            return record
        execution = dataclasses.replace(self.execution, scratch=scratch, jobs=jobs, on_progress=on_progress)
        here = dataclasses.replace(self, execution=execution)
        return dict(here.make([shard]))[shard.name]

    def make(self, todo: list[_Shard]) -> Generator[tuple[str, PartRecord], None, None]:
        """(shard, record), shard by shard; the next shard's clips keep all cores busy."""
        total, done = sum(len(shard.clips) for shard in todo), itertools.count(1)
        tasks = (((shard, clip), functools.partial(self._work, clip)) for shard in todo for clip in shard.clips)
        with concurrent.futures.ThreadPoolExecutor(self.execution.jobs) as pool:
            try:
                results = in_order(tasks, pool, ahead=4 * self.execution.jobs)
                for shard, group in itertools.groupby(results, key=lambda result: result[0][0]):
                    outcomes = ((clip, jpegs) for (_, clip), jpegs in group if jpegs is not None)
                    yield shard.name, self._write(shard, self._count(outcomes, done, total))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def make_with_workers(
        self, todo: list[_Shard], scheduler: str
    ) -> Generator[tuple[str, PartRecord | UserError], None, None]:
        """The same on many machines, in the order in which the shards are finished."""
        from .cluster import made_by_workers

        execution = dataclasses.replace(self.execution, on_progress=None)
        there = _ShardBuilder(self.videos.absolute(), self.out.absolute(), self.qscale, execution)
        sent = {shard.name: shard for shard in todo}
        total, done = sum(len(shard.clips) for shard in todo), 0
        with contextlib.closing(made_by_workers(scheduler, there.make_shard, sent, self.execution.scratch)) as results:
            for name, record in results:
                done += len(sent[name].clips)
                self._report(done, total)
                yield name, record

    def _work(self, clip: StoredClip) -> Jpegs | str:
        """The clip's JPEGs, or why there are none."""
        video = read_member(self.videos / clip.shard, clip.offset, clip.size)
        seconds, scratch = self.execution.clip_timeout_seconds, self.execution.scratch
        try:
            jpegs = to_jpegs(video, qscale=self.qscale, timeout_seconds=seconds, scratch=scratch)
        except BadVideo as error:
            return str(error)
        num_frames = len(jpegs.frames)
        return jpegs if num_frames == clip.num_frames else f"{num_frames} frames where {clip.num_frames} were encoded"

    def _write(self, shard: _Shard, outcomes: Iterable[tuple[StoredClip, Jpegs | str]]) -> PartRecord:
        """Write and publish one shard; returns its record."""
        made = self.execution.scratch / Path(shard.name).name
        clips: list[PartClip] = []
        with ShardWriter(made) as writer:
            for clip, jpegs in outcomes:
                if isinstance(jpegs, str):
                    clips.append(PartClip(video_id=clip.video_id, error=jpegs))
                    continue
                names = [f"{clip.video_id}/img_{number:05d}.jpg" for number in range(1, len(jpegs.frames) + 1)]
                spans = [writer.add(name, jpeg) for name, jpeg in zip(names, jpegs.frames, strict=True)]
                offset, size = spans[0][0], sum(spans[-1]) - spans[0][0]
                clips.append(PartClip(video_id=clip.video_id, offset=offset, size=size, damage=jpegs.damage))
        seconds = self.execution.clip_timeout_seconds
        record = write_record(made, shard.key, seconds, clips, ffmpeg=ffmpeg_version())
        publish(made, self.out / shard.name)
        return record

    def _count(
        self, outcomes: Iterable[tuple[StoredClip, Jpegs | str]], done: Iterator[int], total: int
    ) -> Iterator[tuple[StoredClip, Jpegs | str]]:
        """The same outcomes, each clip reported."""
        for outcome in outcomes:
            yield outcome
            self._report(next(done), total)

    def _report(self, done: int, total: int) -> None:
        if self.execution.on_progress:
            self.execution.on_progress("extract frames, clips", done, total)


def _line(clip: Clip, shard: str, copy: PartClip) -> Clip:
    """The clip's line in the manifest of frames, from its line in the manifest of videos."""
    if copy.error:
        return Clip(
            video_id=clip.video_id,
            split=clip.split,
            label=clip.label,
            class_name=clip.class_name,
            state="corrupt",
            sha256=clip.sha256,
            reason=copy.error,
        )
    damage = f"frames decode with faults: {copy.damage}" if copy.damage else ""
    reason = "; ".join(text for text in (clip.reason, damage) if text)
    return dataclasses.replace(clip, shard=shard, offset=copy.offset, size=copy.size, reason=reason)
