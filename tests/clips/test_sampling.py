import json

import numpy as np
import pytest

from actionzoo.clips.sampling import train_frames, view_frames
from tests.models.reference import read_reference


def test_a_short_video_starts_at_its_first_frame_and_wraps_around():
    rng = np.random.default_rng(0)
    assert train_frames(5, clip_len=4, frame_interval=2, rng=rng).tolist() == [0, 2, 4, 1]
    assert view_frames(5, clip_len=4, frame_interval=2, num_clips=1).tolist() == [[0, 2, 4, 1]]


def test_one_view_lies_in_the_middle():
    # 300 frames, a span of 64: 237 starts, the middle one is 118
    assert view_frames(300, clip_len=32, frame_interval=2, num_clips=1)[0, 0] == 118


def test_views_spread_evenly():
    assert view_frames(10, clip_len=2, frame_interval=1, num_clips=3)[:, 0].tolist() == [1, 4, 7]


def test_clips_lie_where_the_drawing_has_them():
    """The one at the head of clips/sampling.py."""
    clip = {"clip_len": 4, "frame_interval": 2}
    assert view_frames(20, **clip, num_clips=1).tolist() == [[6, 8, 10, 12]]
    assert view_frames(20, **clip, num_clips=3)[:, 0].tolist() == [2, 6, 10]
    rng = np.random.default_rng(0)
    starts = {int(train_frames(20, **clip, rng=rng)[0]) for _ in range(500)}
    assert starts == set(range(13))
    assert len(set(map(tuple, view_frames(5, **clip, num_clips=10).tolist()))) == 1


def test_training_draws_every_start_alike_and_never_the_last_frame():
    rng = np.random.default_rng(0)
    starts = [train_frames(70, clip_len=32, frame_interval=2, rng=rng) for _ in range(7000)]
    counts = np.bincount([frames[0] for frames in starts])
    assert len(counts) == 7 and counts.min() > 880  # 1000 each on average, deviation about 29
    assert max(frames.max() for frames in starts) == 68


def test_views_are_the_references():
    cases = [
        case
        for case in read_reference("data/sample_frames_test.json")["cases"]
        if case["out_of_bound_opt"] == "loop" and case["start_index"] == 0
    ]
    assert len(cases) > 80
    for case in cases:
        ours = view_frames(
            case["num_frames"],
            clip_len=case["clip_len"],
            frame_interval=case["frame_interval"],
            num_clips=case["num_clips"],
        )
        assert ours.ravel().tolist() == case["frame_inds"], json.dumps(case)[:200]


def test_training_clips_that_leave_no_choice_are_the_references():
    cases = [
        case
        for case in read_reference("data/sample_frames_train.json")["cases"]
        if case["deterministic"] and case["num_clips"] == 1 and case["out_of_bound_opt"] == "loop"
    ]
    assert cases
    for case in cases:
        ours = train_frames(
            case["num_frames"],
            clip_len=case["clip_len"],
            frame_interval=case["frame_interval"],
            rng=np.random.default_rng(1),
        )
        assert ours.tolist() == case["frame_inds"]


@pytest.mark.parametrize("num_frames", [1, 2, 63, 64, 65, 300])
def test_frames_are_always_frames_of_the_video(num_frames):
    rng = np.random.default_rng(num_frames)
    for frames in (
        train_frames(num_frames, clip_len=32, frame_interval=2, rng=rng),
        view_frames(num_frames, clip_len=32, frame_interval=2, num_clips=10),
    ):
        assert frames.min() >= 0 and frames.max() < num_frames
