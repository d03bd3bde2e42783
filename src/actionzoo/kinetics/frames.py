"""Short-side videos in, JPEGs out: videos_<short side>/ -> frames_<short side>/.

    val/part_007.tar        members <video_id>/img_00001.jpg, ..., in the order of the videos' shard
    val/part_007.idx.npy    every frame's offset and size
    manifest.csv            the videos' lines, with offset and size from a clip's first frame to the end of its last

A clip's frames lie one behind the other: one read gets a clip, and with `frame_spans` one read gets a frame. Parts that
are finished are not touched again; a part is made anew when its videos were.
"""

import concurrent.futures
import dataclasses
import functools
import itertools
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from actionzoo.errors import UserError

from .atomic import check_same_file_system
from .manifest import Clip, read_manifest, write_manifest
from .parts import forget_record, in_order, key_of, make_key, read_record, write_record
from .resize import summary
from .shards import ShardWriter, read_member
from .transcode import BadVideo, ffmpeg_version, to_jpegs


def extract_frames(
    videos: Path,
    out: Path,
    *,
    qscale: int = 2,
    jobs: int,
    scratch: Path,
    clip_timeout_seconds: float,
    max_bad_share: float,
    progress: Callable[[str, int, int], None] | None = None,
) -> str:
    """Make the shards and the manifest, `jobs` clips at once; gives a line that says what is there now.

    `qscale` is the JPEG quality of ffmpeg, from 2 (best) to 31. A clip whose frames cannot be had, or are not as many
    as the videos' manifest says, becomes corrupt. Raises UserError in the end if that happened to more than
    `max_bad_share` of the usable clips.
    """
    clips = read_manifest(videos / "manifest.csv")
    check_same_file_system(scratch, out)
    scratch = scratch / out.name
    shutil.rmtree(scratch, ignore_errors=True)  # what a killed run left
    scratch.mkdir(parents=True)
    usable = sorted((clip for clip in clips if clip.is_usable), key=lambda clip: (clip.shard, clip.offset))
    shards = {shard: list(of) for shard, of in itertools.groupby(usable, key=lambda clip: clip.shard)}
    keys = {
        shard: make_key(qscale, key_of(videos / shard), [clip.video_id for clip in of]) for shard, of in shards.items()
    }
    records = {shard: read_record(out / shard, key, clip_timeout_seconds) for shard, key in keys.items()}
    todo = [clip for clip in usable if records[clip.shard] is None]
    if todo:
        (out / "manifest.csv").unlink(missing_ok=True)  # it would point into shards that are about to change
    work = functools.partial(_work, videos=videos, qscale=qscale, timeout_seconds=clip_timeout_seconds, scratch=scratch)
    done = itertools.count(1)
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        try:
            results = in_order(((clip, functools.partial(work, clip)) for clip in todo), pool, ahead=4 * jobs)
            for shard, events in itertools.groupby(results, key=lambda result: result[0].shard):
                if progress:
                    events = _told(events, progress, done, len(todo))
                records[shard] = _write(out / shard, keys[shard], events, scratch, clip_timeout_seconds)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    made = {(shard, copy["video_id"]): copy for shard, record in records.items() for copy in record["clips"]}
    lines = [_line(clip, made[clip.shard, clip.video_id]) if clip.is_usable else clip for clip in clips]
    write_manifest(out / "manifest.csv", lines)
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


def _work(clip: Clip, *, videos: Path, qscale: int, timeout_seconds: float, scratch: Path) -> list[bytes] | str:
    """The clip's JPEGs, or why there are none."""
    video = read_member(videos / clip.shard, clip.offset, clip.size)
    try:
        jpegs = to_jpegs(video, qscale=qscale, timeout_seconds=timeout_seconds, scratch=scratch)
    except BadVideo as error:
        return str(error)
    return jpegs if len(jpegs) == clip.num_frames else f"{len(jpegs)} frames where {clip.num_frames} were encoded"


def _write(
    path: Path, key: str, events: Iterable[tuple[Clip, list[bytes] | str]], scratch: Path, clip_timeout_seconds: float
) -> dict:
    """One shard and its record."""
    forget_record(path)
    copies: list[dict[str, Any]] = []
    with ShardWriter(path, scratch) as writer:
        for clip, jpegs in events:
            copy: dict[str, Any] = {"video_id": clip.video_id}
            if isinstance(jpegs, str):
                copy["fault"] = jpegs
            else:
                spans = [writer.add(f"{clip.video_id}/img_{i:05d}.jpg", jpeg) for i, jpeg in enumerate(jpegs, start=1)]
                copy |= {"offset": spans[0][0], "size": sum(spans[-1]) - spans[0][0]}
            copies.append(copy)
    return write_record(path, key, clip_timeout_seconds, copies, ffmpeg=ffmpeg_version())


def _line(clip: Clip, copy: dict[str, Any]) -> Clip:
    if "fault" not in copy:
        return dataclasses.replace(clip, offset=copy["offset"], size=copy["size"])
    nothing = dict.fromkeys(("offset", "size", "num_frames", "width", "height", "fps"))
    return dataclasses.replace(clip, state="corrupt", reason=copy["fault"], shard="", **nothing)


def _told(events: Iterable, progress: Callable[[str, int, int], None], done: Iterable[int], total: int):
    for event in events:
        yield event
        progress("extract frames, clips", next(done), total)
