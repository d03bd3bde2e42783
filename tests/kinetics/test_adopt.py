"""MMAction2's folders read as they are: real files, looked at and loaded by the real readers."""

import dataclasses
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from actionzoo.clips.inputs import to_input
from actionzoo.clips.loader import view_loader
from actionzoo.clips.looking import contents_of
from actionzoo.clips.readers import open_clip, read
from actionzoo.errors import UserError
from actionzoo.kinetics.adopt import adopt
from actionzoo.kinetics.manifest import export_lists, label_map, read_manifest, write_manifest
from actionzoo.kinetics.transcode import to_jpegs
from actionzoo.params import Augment, Clips
from tests.clips.counted_films import film, number_of

look = partial(contents_of, workers=1, timeout_seconds=60)
H264 = ("-c:v", "libx264", "-pix_fmt", "yuv420p")
VIDEOS = {"arm wrestling/a b.mp4": 40, "arm wrestling/c.mp4": 30, "zumba/d.mp4": 50}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """videos/ and frames/ as MMAction2's tools leave them, with their lists."""
    root = tmp_path_factory.mktemp("mmaction2")
    lists: dict[str, list[str]] = {"videos.txt": [], "frames.txt": []}
    for path, num_frames in VIDEOS.items():
        data = film(root, num_frames, *H264)
        label = int(path.startswith("zumba"))
        (root / "videos" / path).parent.mkdir(parents=True, exist_ok=True)
        (root / "videos" / path).write_bytes(data)
        lists["videos.txt"].append(f"{path} {label}")
        frames = root / "frames" / path.removesuffix(".mp4")
        frames.mkdir(parents=True)
        for number, jpeg in enumerate(to_jpegs(data, qscale=2, timeout_seconds=60, scratch=root / "scratch").frames, 1):
            (frames / f"img_{number:05d}.jpg").write_bytes(jpeg)
        lists["frames.txt"].append(f"{path.removesuffix('.mp4')} {num_frames} {label}")
    for name, lines in lists.items():
        (root / name).write_text("\n".join(lines) + "\n")
    (root / "classes.txt").write_text("arm wrestling\nzumba\n")
    return root


@pytest.mark.parametrize("kind", ["videos", "frames"])
def test_clips_of_a_list_are_found_counted_and_loaded(folder, tmp_path, kind):
    form = tmp_path / f"{kind}_64"
    line = adopt(form, "val", folder / f"{kind}.txt", folder / kind, look=look, classes=folder / "classes.txt")
    assert line == f"adopt: 3 clips of val ({form / 'manifest.csv'})"
    clips = read_manifest(form / "manifest.csv")
    assert {clip.video_id: (clip.num_frames, clip.class_name) for clip in clips} == {
        path.removesuffix(".mp4"): (num_frames, path.partition("/")[0]) for path, num_frames in VIDEOS.items()
    }
    assert label_map(clips) == ["arm wrestling", "zumba"]
    for clip in clips:
        wanted = np.array([clip.num_frames - 1, 3, 3])
        assert [number_of(frame) for frame in read(open_clip(form, clip), wanted)] == wanted.tolist()

    spec = Clips(form=kind, short_side=256, clip_len=4, frame_interval=2)
    augment = Augment(
        resize=64, crop_size=64, area=(1, 1), aspect_ratio=(1, 1), flip=0, mean=(0, 0, 0), std=(255, 255, 255)
    )
    loader = view_loader(form, spec, augment, num_clips=3, num_crops=3, batch_size=2, workers=1, timeout_seconds=60)
    made = list(loader)
    loader.close()
    assert [video_id for batch in made for video_id in batch.video_ids] == [clip.video_id for clip in clips]
    assert not any(batch.undecodable for batch in made)
    views = to_input(made[0].views, mean=augment.mean, std=augment.std, device=torch.device("cpu"))
    assert views.shape == (18, 3, 4, 64, 64) and 0 < views.mean() < 1


def test_splits_are_adopted_one_by_one(folder, tmp_path):
    form = tmp_path / "videos_64"
    for split in ("train", "val", "val"):
        adopt(form, split, folder / "videos.txt", folder / "videos", look=look)
    clips = read_manifest(form / "manifest.csv")
    assert [clip.split for clip in clips] == ["train"] * 3 + ["val"] * 3
    assert {clip.class_name for clip in clips} == {"0", "1"}
    written = {path.name: path.read_text() for path in export_lists(clips, tmp_path / "lists")}
    assert written["val.txt"].splitlines()[-1] == "zumba/d 50 1"


def test_what_the_pipeline_made_is_not_written_over(folder, tmp_path):
    form = tmp_path / "videos_64"
    adopt(form, "train", folder / "videos.txt", folder / "videos", look=look)
    clips = read_manifest(form / "manifest.csv")
    write_manifest(form / "manifest.csv", [dataclasses.replace(clip, shard="train/part_0.tar") for clip in clips])
    with pytest.raises(UserError, match="shards that `dvc repro` made; give the folder's data set an entry of its own"):
        adopt(form, "val", folder / "videos.txt", folder / "videos", look=look)


def test_what_cannot_be_used_is_in_the_manifest_with_the_reason(folder, tmp_path, capfd):
    (folder / "videos/broken.mp4").write_bytes(b"no video")
    lines = [*(folder / "videos.txt").read_text().splitlines(), "broken.mp4 0", "nowhere.mp4 1"]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    form = tmp_path / "videos_64"
    line = adopt(form, "val", tmp_path / "list.txt", folder / "videos", look=look, max_bad_share=0.4)
    assert line.startswith("adopt: 3 clips of val, 2 that cannot be used")
    assert capfd.readouterr().err == ""
    states = {clip.video_id: (clip.state, clip.reason) for clip in read_manifest(form / "manifest.csv")}
    assert states["broken"][0] == "corrupt" and states["broken"][1]
    assert states["nowhere"] == ("missing", f"{folder / 'videos/nowhere.mp4'} is not there")
    with pytest.raises(
        UserError, match=r"2 of the 5 clips of .*list\.txt cannot be used, .* 30\.0%; the first ones: bro"
    ):
        adopt(form, "val", tmp_path / "list.txt", folder / "videos", look=look, max_bad_share=0.3)
    with pytest.raises(UserError, match="none of the 5 clips"):
        adopt(form, "val", tmp_path / "list.txt", tmp_path, look=look)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.mp4 0\nb.mp4 zero\n", r"line 2: 'b\.mp4 zero' is not `path, label`"),
        ("a.mp4 0\na.mp4 1\n", r"line 2: a\.mp4 is listed twice"),
        ("\n", "lists nothing"),
        ("a.mp4 7\n", r"a\.mp4 has label 7, but .*classes\.txt 2 names"),
    ],
)
def test_lists_that_are_none_are_refused_with_their_line(folder, tmp_path, text, message):
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        adopt(tmp_path / "videos_64", "val", tmp_path / "list.txt", folder, look=look, classes=folder / "classes.txt")


def test_lists_of_frames_have_their_number(folder, tmp_path):
    with pytest.raises(UserError, match=r"line 1: 'arm wrestling/a b\.mp4 0' is not `path, number of frames, label`"):
        adopt(tmp_path / "frames_64", "val", folder / "videos.txt", folder / "videos", look=look)


def test_the_forms_name_says_what_it_holds(folder, tmp_path):
    with pytest.raises(UserError, match="to be called videos_<short side> or frames_<short side>"):
        adopt(tmp_path / "clips", "val", folder / "videos.txt", folder / "videos", look=look)
