"""Frames as JPEGs: as many as the video has, in its colours, each one pread away."""

import io
import json
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from actionzoo.errors import UserError
from actionzoo.kinetics.frames import frame_spans
from actionzoo.kinetics.manifest import Clip, read_manifest, write_manifest
from actionzoo.kinetics.shards import ShardWriter, read_index, read_member
from actionzoo.kinetics.transcode import Encode
from tests.kinetics.data_stages import make_archive, make_frames, make_videos
from tests.kinetics.files import file_of, hashes, without_key
from tests.kinetics.small_films import film


def extracted(videos: Path, name: str = "frames_64", **options) -> Path:
    make_frames(videos, videos.parent / name, **options)
    return videos.parent / name


@pytest.fixture(scope="module")
def tiny_videos(tiny_mirror, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("frames")
    make_videos(make_archive(tiny_mirror, folder, ["train", "val"]), folder / "videos_64", encode=Encode())
    return folder / "videos_64"


@pytest.fixture(scope="module")
def tiny_frames(tiny_videos) -> Path:
    return extracted(tiny_videos)


def usable(folder: Path) -> list[Clip]:
    return [clip for clip in read_manifest(folder / "manifest.csv") if clip.is_usable]


BRIGHTNESS = np.array([0.299, 0.587, 0.114])  # of R, G, B


def test_every_frame_is_one_pread_away_and_looks_like_the_videos(tiny_videos, tiny_frames):
    import decord

    videos = {clip.video_id: clip for clip in usable(tiny_videos)}
    assert len(videos) == 8
    for clip in usable(tiny_frames):
        video = videos[clip.video_id]
        data = read_member(tiny_videos / video.shard, video.offset, video.size)
        reader = decord.VideoReader(io.BytesIO(data), num_threads=1)
        spans = frame_spans(read_index(tiny_frames / clip.shard), clip)
        assert spans.shape == (len(reader), 2) == (clip.num_frames, 2)
        for number in (0, clip.num_frames // 2, clip.num_frames - 1):
            jpeg = read_member(tiny_frames / clip.shard, *spans[number])
            seen = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)[..., ::-1].astype(int)
            assert seen.shape == (clip.height, clip.width, 3)
            shown = reader[number].asnumpy()
            difference = seen - shown
            # chroma lies at half size, and every decoder enlarges it its own way: brightness is compared pixel by pixel
            jpeg_90 = cv2.imencode(".jpg", shown[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
            allowed = np.abs(
                (cv2.imdecode(jpeg_90, cv2.IMREAD_COLOR)[..., ::-1].astype(int) - shown) @ BRIGHTNESS
            ).mean()
            # what quality 90 costs on these very pictures, and half a level for decord's rounding
            assert np.abs(difference @ BRIGHTNESS).mean() < allowed + 0.5
            # decord's quick conversion rounds green down by one or two; a wrong range would shift by ten
            assert np.abs(difference.mean(axis=(0, 1))).max() < 3


def test_members_are_named_as_mmaction2_names_them(tiny_frames):
    clip = usable(tiny_frames)[0]
    with tarfile.open(tiny_frames / clip.shard) as shard:
        names = [name for name in shard.getnames() if name.startswith(clip.video_id)]
    assert names == [f"{clip.video_id}/img_{i:05d}.jpg" for i in range(1, clip.num_frames + 1)]


def test_the_manifest_differs_from_the_videos_in_offset_and_size_alone(tiny_videos, tiny_frames):
    for video, frames in zip(
        read_manifest(tiny_videos / "manifest.csv"), read_manifest(tiny_frames / "manifest.csv"), strict=True
    ):
        for field in (
            "video_id",
            "split",
            "label",
            "state",
            "num_frames",
            "width",
            "height",
            "sha256",
            "reason",
        ):
            assert getattr(video, field) == getattr(frames, field)
        assert without_key(video.shard) == without_key(frames.shard)


def test_a_clips_frames_are_one_stretch_of_the_shard(tiny_frames):
    for clip in usable(tiny_frames):
        stretch = read_member(tiny_frames / clip.shard, clip.offset, clip.size)
        assert stretch.startswith(b"\xff\xd8") and stretch.endswith(b"\xff\xd9")


def test_finished_parts_are_not_done_again(tiny_videos, tiny_frames, monkeypatch):
    def to_jpegs(*_, **__):
        raise AssertionError("nothing is to be extracted")

    monkeypatch.setattr("actionzoo.kinetics.frames.to_jpegs", to_jpegs)
    before = hashes(tiny_frames)
    last_line = make_frames(tiny_videos, tiny_videos.parent / "frames_64")
    assert hashes(tiny_frames) == before
    assert last_line.startswith("frames: 8 of 10 clips in 5 shards, 1 replaced, 1 missing, 1 corrupt, 1 unlisted (")


def test_the_number_of_jobs_changes_nothing(tiny_videos, tiny_frames):
    assert hashes(extracted(tiny_videos, "frames_64_by_one", jobs=1)) == hashes(tiny_frames)


def test_a_lost_shard_is_made_again_and_the_same(tiny_videos, tiny_frames):
    before = hashes(tiny_frames)
    file_of(tiny_frames, "val/part_001.tar").unlink()
    extracted(tiny_videos)
    assert hashes(tiny_frames) == before


def test_another_quality_makes_other_shards(tiny_videos, tiny_frames):
    worse = extracted(tiny_videos, "frames_64_worse", qscale=20)
    assert file_of(worse, "val/part_000.tar").stat().st_size < file_of(tiny_frames, "val/part_000.tar").stat().st_size


# a form of one's own


@pytest.fixture
def form(tmp_path):
    """Makes a videos form of the given clips, as the manifest claims them: (bytes, num_frames)."""

    def make(clips: dict[str, tuple[bytes, int]]) -> Path:
        videos, lines = tmp_path / "videos_64", []
        with ShardWriter(videos / "val/part_000.tar") as shard:
            for video_id, (data, num_frames) in clips.items():
                offset, size = shard.add(f"{video_id}.mp4", data)
                place = {"shard": "val/part_000.tar", "offset": offset, "size": size}
                shape = {"num_frames": num_frames, "width": 64, "height": 64}
                known = {"split": "val", "label": 0, "class_name": "zumba", "state": "ok"}
                lines.append(Clip(video_id=video_id, **known, **place, **shape))
        (videos / "val/part_000.json").write_text(json.dumps({"key": "any"}))
        write_manifest(videos / "manifest.csv", lines)
        return videos

    return make


def test_a_clip_with_another_number_of_frames_than_claimed_is_corrupt(form):
    videos = form({"a": (film(num_frames=20), 20), "b": (film(num_frames=20), 21), "c": (b"noise" * 100, 20)})
    a, b, c = read_manifest(extracted(videos, max_bad_share=1.0) / "manifest.csv")
    assert a.state == "ok"
    assert (b.state, b.reason, b.shard, b.offset) == ("corrupt", "20 frames where 21 were encoded", "", None)
    assert c.state == "corrupt"


def test_too_many_clips_without_frames_are_an_error(form):
    videos = form({"a": (film(num_frames=20), 20), "b": (film(num_frames=20), 21)})
    with pytest.raises(
        UserError, match=r"1 of 2 clips of .* gave no frames; max_bad_share allows 10\.0%(?s:.*)b: 20 frames"
    ):
        extracted(videos, max_bad_share=0.1)


def test_an_index_of_another_run_is_refused(form):
    videos = form({"a": (film(num_frames=20), 20)})
    out = extracted(videos)
    (clip,) = read_manifest(out / "manifest.csv")
    index = read_index(out / clip.shard)
    assert len(frame_spans(index, clip)) == 20
    for wrong in (index[1:], index[:-1], index + 512):
        with pytest.raises(UserError, match=r"the index of val/part_000-[0-9a-f]{8}\.tar does not have a's 20 frames"):
            frame_spans(wrong, clip)


def test_videos_without_a_manifest_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"manifest\.csv is not there"):
        extracted(tmp_path / "videos_64")


def test_progress_counts_clips(form):
    reports = []
    videos = form({"a": (film(num_frames=5), 5), "b": (film(num_frames=5), 5)})
    extracted(videos, on_progress=lambda *state: reports.append(state))
    assert reports == [("extract frames, clips", 1, 2), ("extract frames, clips", 2, 2)]
