import hashlib

import numpy as np
import pytest
import torch

from actionzoo.clips.loader import to_input
from actionzoo.clips.transforms import (
    Box,
    center_box,
    crop,
    random_resized_box,
    resize_short_side,
    three_boxes,
    view_boxes,
)
from tests.models.reference import read_reference


def test_three_crops_of_landscape_are_left_right_centre():
    assert three_boxes(256, 340, 256) == [Box(0, 0, 256, 256), Box(84, 0, 256, 256), Box(42, 0, 256, 256)]


def test_three_crops_of_portrait_are_top_bottom_centre():
    assert three_boxes(340, 256, 256) == [Box(0, 0, 256, 256), Box(0, 84, 256, 256), Box(0, 42, 256, 256)]


def test_the_far_crop_of_an_odd_width_leaves_the_last_column_out():
    far = three_boxes(256, 341, 256)[1]
    assert far.left + far.width == 340


def test_random_boxes_stay_inside_and_in_their_ranges():
    rng = np.random.default_rng(0)
    boxes = [random_resized_box(256, 340, area=(0.08, 1.0), aspect_ratio=(3 / 4, 4 / 3), rng=rng) for _ in range(2000)]
    for left, top, width, height in boxes:
        assert left >= 0 and top >= 0 and left + width <= 340 and top + height <= 256
        assert 0.07 < width * height / (256 * 340) <= 1
        assert 0.74 < width / height < 1.35


def test_random_boxes_have_the_references_distribution():
    known = read_reference("data/random_augmentations.json")["random_resized_crop_monte_carlo"]
    rng = np.random.default_rng(0)
    boxes = np.array(
        [random_resized_box(256, 340, area=(0.08, 1.0), aspect_ratio=(3 / 4, 4 / 3), rng=rng) for _ in range(20000)]
    )
    left, top, width, height = boxes.T
    area = width * height / (256 * 340)
    # both sides are means of 20,000 draws: four standard errors of their difference
    assert area.mean() == pytest.approx(known["area_fraction"]["mean"], abs=4 * 2**0.5 * area.std() / 20000**0.5)
    ratio = np.log(width / height)
    assert ratio.mean() == pytest.approx(known["log_aspect_w_over_h"]["mean"], abs=4 * 2**0.5 * ratio.std() / 141)
    assert left.mean() == pytest.approx(known["x1"]["mean"], abs=4 * 2**0.5 * left.std() / 141)
    assert top.mean() == pytest.approx(known["y1"]["mean"], abs=4 * 2**0.5 * top.std() / 141)


def source_frames(case: dict) -> np.ndarray:
    t, h, w = case["num_frames"], case["height"], case["width"]
    if case["source"] == "noise":
        return np.random.RandomState(case["seed"]).randint(0, 256, (t, h, w, 3)).astype(np.uint8)
    t, y, x = np.meshgrid(np.arange(t), np.arange(h), np.arange(w), indexing="ij")
    channels = [2 * x + y + 7 * t, x + 3 * y + 11 * t, x * y // 16 + 5 * t]
    return np.stack([channel % 256 for channel in channels], axis=-1).astype(np.uint8)


def test_validation_and_test_pixels_are_the_references():
    reference = read_reference("data/spatial_synthetic.json")
    assert reference["cases"]
    for case in reference["cases"]:
        frames = source_frames(case)
        assert hashlib.sha256(frames.tobytes()).hexdigest() == case["input"]["sha256"]
        frames = resize_short_side(frames, 256)
        assert list(frames.shape[1:3]) == case["after_resize"]["img_shape"]
        assert hashlib.sha256(frames.tobytes()).hexdigest() == case["after_resize"]["all_frames"]["sha256"]
        is_test = case["mode"] == "test"
        boxes = view_boxes(*frames.shape[1:3], crop_size=256 if is_test else 224, num_crops=3 if is_test else 1)
        corners = [[box.left, box.top, box.left + box.width, box.top + box.height] for box in boxes]
        assert corners == case["after_crop"]["crop_bboxes_unique_in_order"]
        views = np.concatenate([crop(frames, box) for box in boxes])
        assert hashlib.sha256(views.tobytes()).hexdigest() == case["after_crop"]["all_imgs"]["sha256"]
        norm = reference["norms"][case["norm"]]
        clips = views.reshape(len(boxes) * case["num_clips"], case["clip_len"], *views.shape[1:])
        ours = to_input(
            torch.from_numpy(clips)[:, None], mean=norm["mean"], std=norm["std"], device=torch.device("cpu")
        )
        assert list(ours.shape) == case["after_format"]["shape"]
        known = case["after_normalize"]
        assert ours.mean().item() == pytest.approx(known["mean"], abs=1e-5)
        corner = np.array(known["first_img_corners"]["top_left_3x3"])
        assert ours[0, :, 0, :3, :3].permute(1, 2, 0).numpy() == pytest.approx(corner, abs=1e-5)


def test_input_is_channels_first_minus_mean_over_std():
    views = torch.arange(2 * 1 * 1 * 2 * 3, dtype=torch.uint8).view(2, 1, 1, 1, 2, 3)
    ours = to_input(views, mean=(1.0, 2.0, 3.0), std=(2.0, 4.0, 8.0), device=torch.device("cpu"))
    assert ours.shape == (2, 3, 1, 1, 2)
    assert ours[1, :, 0, 0, 1].tolist() == [(9 - 1) / 2, (10 - 2) / 4, (11 - 3) / 8]


def test_centre_box_rounds_down():
    assert center_box(255, 340, 224) == Box(58, 15, 224, 224)
