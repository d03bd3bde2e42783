"""Short-side videos in, JPEGs out: videos_<short side>/ -> frames_<short side>/.

    val/part_007.tar        members <video_id>/img_00001.jpg, ..., in the order of the videos' shard
    val/part_007.idx.npy    every frame's offset and size
    manifest.csv            the videos' lines, with offset and size from a clip's first frame to the end of its last

A clip's frames lie one behind the other: one read gets a clip, and with `frame_spans` one read gets a frame. Parts that
are finished are not touched again; a part is made anew when its videos were. With a Dask scheduler its workers make the
parts.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..files.atomic import check_same_file_system
from .manifest import Clip, read_manifest, write_manifest
from .parts import in_order, key_of, make_key, publish, read_record, scratch_folder, write_record
from .resize import summary
from .shards import ShardWriter, read_member
from .transcode import BadVideo, Jpegs, ffmpeg_version, to_jpegs

Progress = Callable[[str, int, int], None]


def extract_frames(
    videos: Path,
    out: Path,
    *,
    qscale: int = 2,
    jobs: int,
    scratch: Path,
    clip_timeout_seconds: float,
    max_bad_share: float,
    scheduler: str | None = None,
    progress: Progress | None = None,
) -> str:
    """Make the shards and the manifest, `jobs` clips at once; gives a line that says what is there now.

    `qscale` is the JPEG quality of ffmpeg, from 2 (best) to 31. With `scheduler`, the address of a Dask scheduler, its
    workers make the parts (see cluster.py). A clip whose frames cannot be had, or are not as many as the videos'
    manifest says, becomes corrupt. Raises UserError in the end if that happened to more than `max_bad_share` of the
    usable clips.
    """
    clips = read_manifest(videos / "manifest.csv")
    check_same_file_system(scratch, out)
    lock = scratch / f".{out.name}.lock"
    scratch = scratch / out.name
    usable = sorted((clip for clip in clips if clip.is_usable), key=lambda clip: (clip.shard, clip.offset))
    workshop = _Workshop(videos, out, scratch, qscale, clip_timeout_seconds, jobs, progress)
    shards = [
        _Shard(shard, make_key(qscale, key_of(videos / shard), [clip.video_id for clip in of]), of)
        for shard, of in ((shard, list(of)) for shard, of in itertools.groupby(usable, key=lambda clip: clip.shard))
    ]
    with scratch_folder(scratch, lock):
        records = {shard.name: workshop.finished(shard) for shard in shards}
        todo = [shard for shard in shards if records[shard.name] is None]
        if todo:
            (out / "manifest.csv").unlink(missing_ok=True)  # it would point into shards that are about to change
        with contextlib.closing(workshop.made_by_workers(todo, scheduler) if scheduler else workshop.made(todo)) as it:
            records.update(it)
    if failed := [str(record) for record in records.values() if isinstance(record, UserError)]:
        raise UserError("\n".join(failed))
    made = {(shard, copy["video_id"]): copy for shard, record in records.items() for copy in record["clips"]}
    lines = [_line(clip, made[clip.shard, clip.video_id]) if clip.is_usable else clip for clip in clips]
    write_manifest(out / "manifest.csv", lines, clips.class_list)
    lost = [clip for before, clip in zip(clips, lines, strict=True) if before.is_usable and not clip.is_usable]
    if len(lost) > max_bad_share * len(usable):
        shown = "".join(f"\n  {clip.video_id}: {clip.reason}" for clip in lost[:20])
        raise UserError(
            f"{len(lost)} of {len(usable)} clips of {videos} gave no frames; max_bad_share allows {max_bad_share:.1%}. "
            f"Delete their shards and run `resize` again. The first of them:{shown}"
        )
    return f"frames: {summary(lines, {clip.shard for clip in lines if clip.shard})} ({out / 'manifest.csv'})"


def frame_spans(index: np.ndarray, clip: Clip) -> np.ndarray:
    """int64 (num_frames, 2): offset and size in the shard of each of the clip's frames, given the shard's index.

    Raises UserError if index and manifest are not of one making.
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
    name: str
    """Relative to the form's folder."""
    key: str
    clips: list[Clip]


@dataclasses.dataclass
class _Workshop:
    """What all shards of a run have in common."""

    videos: Path
    out: Path
    scratch: Path
    qscale: int
    clip_timeout_seconds: float
    jobs: int
    progress: Progress | None

    def finished(self, shard: _Shard) -> dict | None:
        return read_record(self.out / shard.name, shard.key, self.clip_timeout_seconds)

    def make_shard(self, shard: _Shard, *, scratch: Path, jobs: int, progress: Progress) -> dict:
        """The record of one shard, made here and now if need be."""
        # a worker may have finished it that was lost before it could say so
        if record := self.finished(shard):
            return record
        here = dataclasses.replace(self, scratch=scratch, jobs=jobs, progress=progress)
        return dict(here.made([shard]))[shard.name]

    def made(self, todo: list[_Shard]) -> Generator[tuple[str, dict], None, None]:
        """(shard, record), one after the other; clips of the next one fill up the cores."""
        total, done = sum(len(shard.clips) for shard in todo), itertools.count(1)
        tasks = (((shard, clip), functools.partial(self._work, clip)) for shard in todo for clip in shard.clips)
        with concurrent.futures.ThreadPoolExecutor(self.jobs) as pool:
            try:
                results = in_order(tasks, pool, ahead=4 * self.jobs)
                for shard, events in itertools.groupby(results, key=lambda result: result[0][0]):
                    events = self._told(events, done, total)
                    yield shard.name, self._write(shard, ((clip, jpegs) for (_, clip), jpegs in events))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def made_by_workers(
        self, todo: list[_Shard], scheduler: str
    ) -> Generator[tuple[str, dict | UserError], None, None]:
        """The same from many machines, in the order in which the shards are finished."""
        from .cluster import made_by_workers

        there = dataclasses.replace(self, videos=self.videos.absolute(), out=self.out.absolute(), progress=None)
        sent = {shard.name: shard for shard in todo}
        total, done = sum(len(shard.clips) for shard in todo), 0
        with contextlib.closing(made_by_workers(scheduler, there.make_shard, sent, self.scratch)) as results:
            for name, record in results:
                done += len(sent[name].clips)
                if self.progress:
                    self.progress("extract frames, clips", done, total)
                yield name, record

    def _work(self, clip: Clip) -> Jpegs | str:
        """The clip's JPEGs, or why there are none."""
        video = read_member(self.videos / clip.shard, clip.offset, clip.size)
        try:
            jpegs = to_jpegs(video, qscale=self.qscale, timeout_seconds=self.clip_timeout_seconds, scratch=self.scratch)
        except BadVideo as error:
            return str(error)
        num_frames = len(jpegs.frames)
        return jpegs if num_frames == clip.num_frames else f"{num_frames} frames where {clip.num_frames} were encoded"

    def _write(self, shard: _Shard, events: Iterable[tuple[Clip, Jpegs | str]]) -> dict:
        """One shard and its record."""
        made, copies = self.scratch / Path(shard.name).name, []
        with ShardWriter(made) as writer:
            for clip, jpegs in events:
                copy: dict[str, Any] = {"video_id": clip.video_id}
                if isinstance(jpegs, str):
                    copy["fault"] = jpegs
                else:
                    names = [f"{clip.video_id}/img_{number:05d}.jpg" for number in range(1, len(jpegs.frames) + 1)]
                    spans = [writer.add(name, jpeg) for name, jpeg in zip(names, jpegs.frames, strict=True)]
                    copy |= {"offset": spans[0][0], "size": sum(spans[-1]) - spans[0][0]}
                    copy |= {"damage": jpegs.damage} if jpegs.damage else {}
                copies.append(copy)
        record = write_record(made, shard.key, self.clip_timeout_seconds, copies, ffmpeg=ffmpeg_version())
        publish(made, self.out / shard.name)
        return record

    def _told(self, events: Iterable, done: Iterator[int], total: int) -> Iterator:
        for event in events:
            yield event
            if self.progress:
                self.progress("extract frames, clips", next(done), total)


def _line(clip: Clip, copy: dict[str, Any]) -> Clip:
    if "fault" not in copy:
        damage = f"frames decode with faults: {copy['damage']}" if "damage" in copy else ""
        reason = "; ".join(text for text in (clip.reason, damage) if text)
        return dataclasses.replace(clip, offset=copy["offset"], size=copy["size"], reason=reason)
    nothing = dict.fromkeys(("offset", "size", "num_frames", "width", "height", "fps"))
    return dataclasses.replace(clip, state="corrupt", reason=copy["fault"], shard="", **nothing)
