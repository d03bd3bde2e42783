"""From shards to batches, with real videos and frames of the made-up mirror."""

import ctypes
import faulthandler
import itertools
import json
import os
import shutil
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from actionzoo.clips import dataset
from actionzoo.clips.inputs import to_input
from actionzoo.clips.loader import (
    EpochBatches,
    EveryClip,
    Loader,
    Loading,
    TrainLoader,
    train_loader,
    usable_clips,
    view_loader,
)
from actionzoo.clips.readers import open_clip, read
from actionzoo.errors import UserError
from actionzoo.kinetics.manifest import Clip, read_manifest, write_manifest
from actionzoo.kinetics.transcode import Encode
from actionzoo.recipe import Augment, Clips, TestSpec
from tests.kinetics.data_stages import make_archive, make_frames, make_videos

CLIPS = Clips(form="videos", short_side=256, clip_len=8, frame_interval=2)
AUGMENT = Augment(
    resize=64, crop_size=48, area=(0.5, 1.0), aspect_ratio=(0.75, 1.33), flip=0.5, mean=(1, 2, 3), std=(1, 2, 3)
)
SPEC = TestSpec(
    form="videos", short_side=256, clip_len=8, frame_interval=2, resize=64, mean=(1, 2, 3), std=(1, 2, 3),
    num_clips=1, num_crops=1, crop_size=48, average_clips="prob",
)  # fmt: skip
LOADING = Loading(batch_size=2, workers=0, timeout_seconds=60)
CPU = torch.device("cpu")
tensor = partial(to_input, mean=AUGMENT.mean, std=AUGMENT.std, device=CPU)


@pytest.fixture(scope="module")
def data(tiny_mirror, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    make_videos(make_archive(tiny_mirror, root), root / "videos_80", 80, encode=Encode())
    make_frames(root / "videos_80", root / "frames_80", max_bad_share=1.0)
    return root


def clips_of(folder: Path, split: str) -> list[Clip]:
    return usable_clips(read_manifest(folder / "manifest.csv"), split, folder / "manifest.csv")


def training(folder: Path, *, seed: int = 0, augment: Augment = AUGMENT, **loading) -> TrainLoader:
    """Of all usable training clips in `folder`; by this process, unless `loading` says otherwise."""
    return train_loader(
        folder, clips_of(folder, "train"), CLIPS, augment, seed=seed, loading=replace(LOADING, **loading)
    )


def views_of(folder: Path, *, num_clips: int = 1, num_crops: int = 1, **loading) -> Loader:
    """Of all usable validation clips in `folder`."""
    spec = replace(SPEC, num_clips=num_clips, num_crops=num_crops)
    return view_loader(folder, clips_of(folder, "val"), spec, loading=replace(LOADING, **loading))


def batches(loader, epoch: int, start: int = 0):
    loader.set_epoch(epoch, start)
    return list(loader)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["videos_80", "frames_80"])
def test_clips_do_not_depend_on_the_number_of_workers(data, form):
    alone, several = (batches(training(data / form, seed=3, workers=workers), 5) for workers in (0, 3))
    assert [batch.video_ids for batch in alone] == [batch.video_ids for batch in several]
    assert [batch.labels.tolist() for batch in alone] == [batch.labels.tolist() for batch in several]
    assert all(torch.equal(tensor(a.views), tensor(b.views)) for a, b in zip(alone, several, strict=True))
    assert tensor(alone[0].views).shape == (2, 3, 8, 48, 48)


def test_another_epoch_has_the_same_clips_in_another_order_and_other_crops(data):
    loader = training(data / "videos_80", seed=3)
    first, second = batches(loader, 0), batches(loader, 1)
    ids = [[video_id for batch in epoch for video_id in batch.video_ids] for epoch in (first, second)]
    assert ids[0] != ids[1] and sorted(ids[0]) == sorted(ids[1])
    assert not torch.equal(tensor(first[0].views), tensor(second[0].views))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_goes_on_with_the_very_next_clip(data, workers):
    loader = training(data / "frames_80", seed=3, workers=workers, batch_size=1)
    whole = batches(loader, 4)
    loader.set_epoch(4)
    for number, _ in enumerate(loader, 1):  # broken off after two batches
        if number == 2:
            break
    rest = batches(loader, 4, start=2)
    assert len(whole) == len(loader) > 3 and [b.video_ids for b in rest] == [b.video_ids for b in whole[2:]]
    assert all(torch.equal(tensor(a.views), tensor(b.views)) for a, b in zip(rest, whole[2:], strict=True))
    assert batches(loader, 5)[0].video_ids != rest[0].video_ids and len(batches(loader, 5)) == len(whole)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_shares_of_a_batch_make_the_batch_of_one_large_process(data, world_size):
    large = batches(training(data / "frames_80", seed=1, batch_size=2 * world_size), 2)
    ranks = [
        batches(training(data / "frames_80", seed=1, rank=rank, world_size=world_size), 2) for rank in range(world_size)
    ]
    assert {len(shares) for shares in ranks} == {len(large)}
    for batch, shares in zip(large, zip(*ranks, strict=True), strict=True):
        assert batch.video_ids == [video_id for share in shares for video_id in share.video_ids]
        assert torch.equal(tensor(batch.views), torch.cat([tensor(share.views) for share in shares]))


def test_an_evaluation_is_shared_without_a_clip_twice(data):
    clips = [clip.video_id for clip in clips_of(data / "frames_80", "val")]
    seen = [
        [video_id for batch in loader for video_id in batch.video_ids]
        for loader in (views_of(data / "frames_80", rank=rank, world_size=3) for rank in range(3))
    ]
    assert sorted(itertools.chain(*seen)) == sorted(clips) and max(map(len, seen)) - min(map(len, seen)) <= 1


def test_every_usable_clip_comes_once_with_its_label(data):
    clips = {clip.video_id: clip for clip in read_manifest(data / "videos_80/manifest.csv") if clip.split == "train"}
    loader = training(data / "videos_80")
    seen = {
        video_id: label
        for batch in batches(loader, 0)
        for video_id, label in zip(batch.video_ids, batch.labels.tolist(), strict=True)
    }
    assert seen == {clip.video_id: clip.label for clip in clips.values() if clip.is_usable}


def test_views_are_clips_times_crops_decoded_from_videos_and_frames_alike(data):
    views = [next(iter(views_of(data / form, num_clips=3, num_crops=3))).views for form in ("videos_80", "frames_80")]
    assert len(views[0]) == len(views[1]) == 2 * 9 and tensor(views[0]).shape == (18, 3, 8, 48, 48)
    assert (tensor(views[0]) - tensor(views[1])).abs().mean() < 4  # what JPEG costs, in levels of 255


def test_views_of_a_video_share_its_frames_and_each_is_there_once(data):
    loader = views_of(data / "frames_80", num_clips=10, num_crops=3)
    views = next(iter(loader)).views
    assert len({id(view.footage) for view in views}) == 2
    for video, clip in ((views[:30], loader.clips[0]), (views[30:], loader.clips[1])):
        used = {index for view in video for index in view.frame_indices.tolist()}
        assert len(video[0].footage.frames) == len(used) <= clip.num_frames


def test_views_are_what_a_plain_computation_gives(data):
    """Read everything, resize everything, cut: view number = crop * num_clips + clip."""
    loader = views_of(data / "videos_80", num_clips=2, num_crops=3)
    clip, views = loader.clips[0], next(iter(loader)).views[:6]
    frames = read(open_clip(data / "videos_80", clip), np.arange(clip.num_frames))
    size = dataset.transforms.short_side_size(*frames.shape[1:3], 64)
    frames = np.stack([dataset.transforms.cv2.resize(frame, size[::-1]) for frame in frames])
    starts = dataset.sampling.view_frames(clip.num_frames, clip_len=8, frame_interval=2, num_clips=2)
    expected = [
        frames[chosen][:, box.top : box.top + 48, box.left : box.left + 48]
        for box in dataset.transforms.three_boxes(*size, 48)
        for chosen in starts
    ]
    expected = (np.stack(expected).astype(np.float32) - [1, 2, 3]) / [1, 2, 3]
    assert tensor(views).numpy() == pytest.approx(expected.transpose(0, 4, 1, 2, 3), abs=1e-4)


def test_a_training_clip_is_its_frames_box_resized(data):
    """What the random numbers were is read off the sample that leaves the resizing to the GPU."""
    clips, augment = clips_of(data / "videos_80", "train"), replace(AUGMENT, resize=80, area=(0.3, 0.5))
    now, later = (
        dataset.TrainClips(data / "videos_80", clips, CLIPS, augment, seed=0, is_resized_later=is_later)
        for is_later in (False, True)
    )
    flips, resized = [], 0
    for number in range(len(clips)):
        slots = [np.zeros(work.slot_bytes, np.uint8) for work in (now, later)]
        samples = [work((7, number), slot) for work, slot in zip((now, later), slots, strict=True)]
        frames = [slot[: np.prod(s.shape)].reshape(s.shape) for s, slot in zip(samples, slots, strict=True)]
        assert samples[0].shape[2:] == (48, 48) and samples[0].flip == samples[1].flip
        for ours, box in zip(*frames, strict=True):
            assert (dataset.transforms.cv2.resize(box.transpose(1, 2, 0), (48, 48)).transpose(2, 0, 1) == ours).all()
        flips.append(samples[0].flip)
        resized += samples[1].shape != samples[0].shape
    assert 0 < sum(flips) < len(flips) and resized > 0


def test_crops_and_flips_of_a_loader_are_distributed_as_its_recipe_says(data):
    """1,200 clips of one video: shares of the area between 0.2 and 0.6, one of four flipped."""
    clips, spec = clips_of(data / "frames_80", "train"), replace(CLIPS, clip_len=1, frame_interval=1)
    augment = replace(AUGMENT, resize=80, crop_size=80, area=(0.2, 0.6), aspect_ratio=(0.8, 1.25), flip=0.25)
    work = dataset.TrainClips(data / "frames_80", clips, spec, augment, seed=0, is_resized_later=True)
    slot = np.empty(work.slot_bytes, np.uint8)
    samples = [work((epoch, 0), slot) for epoch in range(1200)]
    height, width = clips[0].height, clips[0].width
    area = np.array([sample.shape[2] * sample.shape[3] for sample in samples]) / (height * width)
    ratio = np.log([sample.shape[3] / sample.shape[2] for sample in samples])
    assert area.mean() == pytest.approx(0.4, abs=4.5 * 0.4 / 12**0.5 / 1200**0.5 + 0.003)  # of a uniform one
    assert area.std() == pytest.approx(0.4 / 12**0.5, rel=0.06)
    assert ratio.mean() == pytest.approx(0, abs=0.02) and ratio.std() == pytest.approx(np.log(1.25) / 3**0.5, rel=0.1)
    flips = np.mean([sample.flip for sample in samples])
    assert flips == pytest.approx(0.25, abs=4.5 * (0.25 * 0.75 / 1200) ** 0.5)


def test_a_clip_that_does_not_decode_is_named_and_left_out(data, tmp_path):
    shutil.copytree(data / "videos_80", tmp_path / "videos_80")
    clips = read_manifest(tmp_path / "videos_80/manifest.csv")
    broken = next(clip for clip in clips if clip.split == "val" and clip.is_usable)
    with open(tmp_path / "videos_80" / broken.shard, "r+b") as shard:
        shard.seek(broken.offset)
        shard.write(bytes(broken.size))
    loader = views_of(tmp_path / "videos_80")
    told = [reason for batch in loader for reason in batch.undecodable]
    seen = [video_id for batch in loader for video_id in batch.video_ids]
    assert len(told) == 1 and told[0].startswith(broken.video_id)
    assert (
        broken.video_id not in seen and len(seen) == sum(clip.split == "val" and clip.is_usable for clip in clips) - 1
    )


class Sabotaged:
    """A reader that decodes, but for one clip: that one hangs or crashes in native code."""

    def __init__(self, video_id: str, how):
        self.video_id, self.how = video_id, how

    def __call__(self, folder, clip):
        if clip.video_id == self.video_id:
            self.how()
        return open_clip(folder, clip)


def hang():
    ctypes.PyDLL(None).sleep(3600)  # with Python's lock held, as decord does


def crash():
    faulthandler.disable()  # pytest's, whose many lines would look like a failure of ours
    os.kill(os.getpid(), signal.SIGSEGV)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        (hang, "took longer than 1 s and is left out from now on"),
        (crash, "its process died twice, of SIGSEGV and is left out from now on"),
    ],
)
def test_a_clip_that_hangs_or_crashes_is_named_and_not_tried_again(data, tmp_path, monkeypatch, how, reason):
    clips = clips_of(data / "frames_80", "train")
    bad = clips[2].video_id
    monkeypatch.setattr(dataset, "open_clip", Sabotaged(bad, how))
    loading = {"workers": 2, "timeout_seconds": 1, "quarantine": tmp_path / "quarantine.json"}
    loader = training(data / "frames_80", **loading)
    for epoch in range(2):
        made = batches(loader, epoch)
        assert [sentence for batch in made for sentence in batch.undecodable] == [f"{bad}: {reason}"]
        seen = [video_id for batch in made for video_id in batch.video_ids]
        assert sorted(seen) == sorted(clip.video_id for clip in clips if clip.video_id != bad)
        monkeypatch.setattr(dataset, "open_clip", None)  # for processes to come: there must be none
    loader.close()
    assert json.loads((tmp_path / "quarantine.json").read_text())[f"train/{bad}"]["reason"] == f"{bad}: {reason}"

    # a run that goes on knows it, and one that has more time tries again
    monkeypatch.setattr(dataset, "open_clip", open_clip)
    again = training(data / "frames_80", **loading)
    assert sum(len(batch.undecodable) for batch in batches(again, 0)) == 1
    again.close()
    patient = training(data / "frames_80", **loading | {"timeout_seconds": 9})
    assert sum(len(batch.undecodable) for batch in batches(patient, 0)) == 0
    patient.close()


def test_an_evaluation_counts_a_clip_that_hangs_as_missing(data, monkeypatch):
    clips = clips_of(data / "frames_80", "val")
    monkeypatch.setattr(dataset, "open_clip", Sabotaged(clips[1].video_id, hang))
    loader = views_of(data / "frames_80", workers=1, timeout_seconds=1)
    made = list(loader)
    loader.close()
    seen = [video_id for batch in made for video_id in batch.video_ids]
    assert seen == [clip.video_id for clip in clips if clip is not clips[1]]
    assert sum(len(batch.views) for batch in made) == len(clips) - 1
    assert [sentence for batch in made for sentence in batch.undecodable] == [
        f"{clips[1].video_id}: took longer than 1 s and is left out from now on"
    ]


def test_frames_of_another_size_than_the_manifests_are_no_frames_of_the_clip(data, tmp_path):
    shutil.copytree(data / "frames_80", tmp_path / "frames_80")
    clips = read_manifest(tmp_path / "frames_80/manifest.csv")
    wide = next(clip for clip in clips if clip.split == "val" and clip.is_usable)
    changed = replace(wide, width=wide.width + 2)
    write_manifest(tmp_path / "frames_80/manifest.csv", [changed if clip is wide else clip for clip in clips])
    loader = views_of(tmp_path / "frames_80")
    (sentence,) = [sentence for batch in loader for sentence in batch.undecodable]
    size = f"{wide.width} x {wide.height}"
    assert sentence == f"{wide.video_id}: its frames are {size}, the manifest has {wide.width + 2} x {wide.height}"


def test_the_log_is_told_how_clips_are_loaded_and_what_would_help(data):
    many, none = (training(data / "videos_80", workers=workers) for workers in (os.cpu_count(), 0))
    assert many.text() == f"videos_80, decoded by {os.cpu_count()} processes, 60 s per clip at most"
    assert none.text() == "videos_80, decoded by this process: no time limit on a clip, and no progress meanwhile"
    assert "clips.form: frames" in many.advice()
    assert none.advice() == f"raise runtime.workers from 0; there are {os.cpu_count()} cores"


def test_a_split_without_usable_clips_is_told(data):
    manifest = data / "videos_80/manifest.csv"
    lost = [replace(clip, state="missing", reason="nowhere") for clip in read_manifest(manifest)]
    with pytest.raises(UserError, match=r"manifest\.csv has no usable clip in val"):
        usable_clips(lost, "val", manifest)


def test_a_last_batch_of_one_clip_joins_the_one_before():
    order = EpochBatches(9, batch_size=4, seed=0)
    assert [len(batch) for batch in order] == [4, 5] and len(order) == 2
    assert [len(batch) for batch in EpochBatches(10, batch_size=4, seed=0)] == [4, 4, 2]
    assert [len(batch) for batch in EpochBatches(1, batch_size=4, seed=0)] == [1]


@pytest.mark.parametrize(
    ("num_clips", "shares"),
    [
        (12, [[2, 2], [2, 2], [2, 2]]),
        (16, [[2, 2], [2, 2], [2, 2], [2, 2]]),
        (14, [[2, 2], [2, 2], [3, 3]]),  # two clips more for two processes join the batch before
        (15, [[2, 2], [2, 2], [4, 3]]),
        (3, [[2, 1]]),
    ],
)
def test_every_process_has_as_many_batches_as_any_other_and_none_is_empty(num_clips, shares):
    ranks = [EpochBatches(num_clips, batch_size=2, seed=0, rank=rank, world_size=2) for rank in range(2)]
    assert [list(map(len, batch)) for batch in zip(*ranks, strict=True)] == shares
    assert {len(order) for order in ranks} == {len(shares)}
    clips = sorted(clip for order in ranks for batch in order for _, clip in batch)
    assert clips == list(range(num_clips))


def test_fewer_clips_than_processes_are_refused():
    with pytest.raises(UserError, match="3 training clips are too few for 4 processes"):
        EpochBatches(3, batch_size=2, seed=0, rank=0, world_size=4)


@pytest.mark.parametrize(("num_clips", "world_size"), [(10, 1), (10, 3), (2, 3), (7, 7)])
def test_every_clip_is_evaluated_by_one_process(num_clips, world_size):
    orders = [EveryClip(num_clips, batch_size=2, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert sorted(clip for order in orders for batch in order for _, clip in batch) == list(range(num_clips))
    assert all(len(order) == len(list(order)) for order in orders)


@pytest.mark.parametrize("form", ["videos_80", "frames_80"])
def test_shards_that_are_not_there_are_told_once_before_any_clip_is_read(data, tmp_path, form):
    """As in a colleague's clone, which has the manifest alone: no clip is taken for a damaged one."""
    folder = tmp_path / "root/demo" / form
    shutil.copytree(data / form, folder)
    clips = clips_of(folder, "val")
    shards = sorted({clip.shard for clip in clips})
    (folder / shards[1]).unlink()
    stage = f"{'resize' if form.startswith('videos') else 'frames'}@80"
    remedies = rf"ACTIONZOO_DATA or data\.root .* or run `dvc repro -f {stage}`, which makes what is missing"
    with pytest.raises(
        UserError, match=rf"{shards[1]} is not there, in the data root {tmp_path / 'root'} .*{remedies}"
    ):
        view_loader(folder, clips, SPEC, loading=LOADING)
    shutil.rmtree(folder)
    with pytest.raises(UserError, match=rf"{shards[0]} and 1 more of 2 shards are not there"):
        train_loader(folder, clips, CLIPS, AUGMENT, seed=0, loading=LOADING)


def test_a_shard_that_is_too_short_is_told_before_any_clip_is_read(data, tmp_path):
    folder = tmp_path / "videos_80"
    shutil.copytree(data / "videos_80", folder)
    clips = clips_of(folder, "val")
    os.truncate(folder / clips[0].shard, 1000)
    with pytest.raises(UserError, match=rf"{clips[0].shard} is shorter than the manifest says"):
        view_loader(folder, clips, SPEC, loading=LOADING)
