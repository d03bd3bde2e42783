"""From shards to batches, with real videos and frames of the made-up mirror."""

import dataclasses
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch

from actionzoo.clips.loader import EpochBatches, Loader, train_loader, view_loader
from actionzoo.clips.readers import open_clip
from actionzoo.errors import UserError
from actionzoo.kinetics.download import download
from actionzoo.kinetics.frames import extract_frames
from actionzoo.kinetics.manifest import read_manifest, write_manifest
from actionzoo.kinetics.resize import resize
from actionzoo.kinetics.transcode import Encode
from actionzoo.params import Augment, Clips

SPEC = Clips(form="videos", short_side=256, clip_len=8, frame_interval=2)
AUGMENT = Augment(
    resize=64, crop_size=48, area=(0.5, 1.0), aspect_ratio=(0.75, 1.33), flip=0.5, mean=(1, 2, 3), std=(1, 2, 3)
)
LOADING = {"batch_size": 2, "timeout_seconds": 60}


@pytest.fixture(scope="module")
def data(tiny_mirror, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    settings = {"jobs": 2, "scratch": root / "scratch", "clip_timeout_seconds": 60, "max_bad_share": 1.0}
    splits = ("train", "val", "test")
    download(str(tiny_mirror), root / "archive", splits=splits, parts="all", jobs=2, scratch=root / "scratch")
    resize(root / "archive", root / "videos_80", short_side=80, encode=Encode(), **settings)
    extract_frames(root / "videos_80", root / "frames_80", **settings)
    return root


def batches(loader, epoch: int):
    loader.set_epoch(epoch)
    return list(loader)


@pytest.mark.parametrize("form", ["videos_80", "frames_80"])
def test_clips_do_not_depend_on_the_number_of_workers(data, form):
    alone, several = (
        batches(train_loader(data / form, SPEC, AUGMENT, seed=3, workers=workers, **LOADING), 5) for workers in (0, 2)
    )
    assert [batch.video_ids for batch in alone] == [batch.video_ids for batch in several]
    assert all(torch.equal(a.views, b.views) for a, b in zip(alone, several, strict=True))
    assert alone[0].views.shape == (2, 1, 8, 48, 48, 3) and alone[0].views.dtype == torch.uint8


def test_another_epoch_has_the_same_clips_in_another_order_and_other_crops(data):
    loader = train_loader(data / "videos_80", SPEC, AUGMENT, seed=3, workers=0, **LOADING)
    first, second = batches(loader, 0), batches(loader, 1)
    ids = [[video_id for batch in epoch for video_id in batch.video_ids] for epoch in (first, second)]
    assert ids[0] != ids[1] and sorted(ids[0]) == sorted(ids[1])
    assert not torch.equal(first[0].views, second[0].views)


def test_every_usable_clip_comes_once_with_its_label(data):
    clips = {clip.video_id: clip for clip in read_manifest(data / "videos_80/manifest.csv") if clip.split == "train"}
    loader = train_loader(data / "videos_80", SPEC, AUGMENT, seed=0, workers=0, **LOADING)
    seen = {
        video_id: label
        for batch in batches(loader, 0)
        for video_id, label in zip(batch.video_ids, batch.labels.tolist(), strict=True)
    }
    assert seen == {clip.video_id: clip.label for clip in clips.values() if clip.is_usable}


def test_views_are_clips_times_crops_decoded_from_videos_and_frames_alike(data):
    views = [
        next(iter(view_loader(data / form, SPEC, AUGMENT, num_clips=3, num_crops=3, workers=0, **LOADING))).views
        for form in ("videos_80", "frames_80")
    ]
    assert views[0].shape == views[1].shape == (2, 9, 8, 48, 48, 3)
    assert (views[0].float() - views[1].float()).abs().mean() < 4  # what JPEG costs, in levels of 255


def test_a_frame_is_the_one_asked_for(data):
    """`still` clips repeat a frame and `up` ones do not: frames of one reader, asked for in any order, agree."""
    for form in ("videos_80", "frames_80"):
        for clip in read_manifest(data / form / "manifest.csv"):
            if clip.is_usable:
                reader = open_clip(data / form, clip)
                assert reader.num_frames == clip.num_frames
                forward = reader.read(np.arange(reader.num_frames))
                wanted = np.array([reader.num_frames - 1, 7, 7, 0])
                assert (open_clip(data / form, clip).read(wanted) == forward[wanted]).all()
                break


def test_a_clip_that_does_not_decode_is_named_and_left_out(data, tmp_path):
    shutil.copytree(data / "videos_80", tmp_path / "videos_80")
    clips = read_manifest(tmp_path / "videos_80/manifest.csv")
    broken = next(clip for clip in clips if clip.split == "val" and clip.is_usable)
    with open(tmp_path / "videos_80" / broken.shard, "r+b") as shard:
        shard.seek(broken.offset)
        shard.write(bytes(broken.size))
    loader = view_loader(tmp_path / "videos_80", SPEC, AUGMENT, workers=0, **LOADING)
    told = [reason for batch in loader for reason in batch.undecodable]
    seen = [video_id for batch in loader for video_id in batch.video_ids]
    assert len(told) == 1 and told[0].startswith(broken.video_id)
    assert (
        broken.video_id not in seen and len(seen) == sum(clip.split == "val" and clip.is_usable for clip in clips) - 1
    )


class _Hanging:
    """A decoder that never comes back."""

    clips: ClassVar = [SimpleNamespace(split="train")]

    def __len__(self):
        return 1

    def __getitem__(self, number):
        time.sleep(3600)


def test_a_decoder_that_hangs_ends_in_a_sentence_and_not_never():
    with pytest.raises(UserError, match="no batch of train clips came within 1 s: a decoder hangs"):
        list(Loader(_Hanging(), workers=1, timeout_seconds=1))


def test_a_split_without_usable_clips_is_told(data, tmp_path):
    (tmp_path / "videos_80").mkdir()
    lost = [
        dataclasses.replace(clip, state="missing", reason="nowhere")
        for clip in read_manifest(data / "videos_80/manifest.csv")
    ]
    write_manifest(tmp_path / "videos_80/manifest.csv", lost)
    with pytest.raises(UserError, match=r"manifest\.csv has no usable clip in val"):
        view_loader(tmp_path / "videos_80", SPEC, AUGMENT, workers=0, **LOADING)


def test_a_last_batch_of_one_clip_joins_the_one_before():
    order = EpochBatches(9, batch_size=4, seed=0)
    assert [len(batch) for batch in order] == [4, 5] and len(order) == 2
    assert [len(batch) for batch in EpochBatches(10, batch_size=4, seed=0)] == [4, 4, 2]
    assert [len(batch) for batch in EpochBatches(1, batch_size=4, seed=0)] == [1]
