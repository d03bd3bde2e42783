import hashlib

import numpy as np
import pytest
import torch

from actionzoo.clips import transforms
from actionzoo.clips.inputs import Footage, View, to_input
from actionzoo.clips.transforms import Box, Cut, center_box, random_resized_box, short_cut, three_boxes, view_cut
from tests.models.reference import read_reference

AREA, ASPECT_RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
CPU = torch.device("cpu")


def sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def applied(cut: Cut, frames: np.ndarray) -> np.ndarray:
    """(T, H, W, 3) -> (T, height, width, 3)."""
    out = np.empty((len(frames), 3, *cut.last), np.uint8)
    for frame, target in zip(frames, out, strict=True):
        transforms.apply(cut, frame, target)
    return out.transpose(0, 2, 3, 1)


def planes(frames: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(frames.transpose(0, 3, 1, 2)))


def draw(num: int, height: int, width: int) -> np.ndarray:
    """(num, 4): left, top, width, height."""
    rng = np.random.default_rng(0)
    return np.array(
        [random_resized_box(height, width, area=AREA, aspect_ratio=ASPECT_RATIO, rng=rng) for _ in range(num)]
    )


def candidates(height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Area, log of width / height, and whether it fits, over a fine grid of all candidates: the closed form."""
    area, ratio = np.meshgrid(np.linspace(*AREA, 2001), np.linspace(*np.log(ASPECT_RATIO), 501))
    pixels = area * height * width
    fits = (np.sqrt(pixels * np.exp(ratio)) < width + 0.5) & (np.sqrt(pixels / np.exp(ratio)) < height + 0.5)
    return area, ratio, fits


def within(sample: np.ndarray, mean: float, errors: float = 4.5) -> bool:
    """Whether the sample's mean is that, but for chance: one honest sample in 100,000 is further off."""
    return abs(sample.mean() - mean) < errors * sample.std() / len(sample) ** 0.5


def test_three_crops_of_landscape_are_left_right_centre():
    assert three_boxes(256, 340, 256) == [Box(0, 0, 256, 256), Box(84, 0, 256, 256), Box(42, 0, 256, 256)]


def test_three_crops_of_portrait_are_top_bottom_centre():
    assert three_boxes(340, 256, 256) == [Box(0, 0, 256, 256), Box(0, 84, 256, 256), Box(0, 42, 256, 256)]


def test_the_far_crop_of_an_odd_width_leaves_the_last_column_out():
    far = three_boxes(256, 341, 256)[1]
    assert far.left + far.width == 340


def test_centre_box_rounds_down():
    assert center_box(255, 340, 224) == Box(58, 15, 224, 224)


def test_of_a_frame_only_what_the_views_need_is_kept():
    cut, boxes = view_cut(256, 454, resize=256, crop_size=224, num_crops=1)
    assert cut == Cut(None, Box(115, 16, 224, 224), (224, 224)) and boxes == [Box(0, 0, 224, 224)]
    cut, boxes = view_cut(240, 321, resize=256, crop_size=256, num_crops=3)
    assert cut == Cut((256, 342), Box(0, 0, 342, 256), (256, 342))
    assert boxes == [Box(0, 0, 256, 256), Box(86, 0, 256, 256), Box(43, 0, 256, 256)]


@pytest.mark.parametrize(("height", "width"), [(256, 340), (340, 256), (256, 455), (36, 36)])
def test_random_boxes_are_distributed_as_the_closed_form_says(height, width):
    left, top, w, h = draw(20_000, height, width).T
    assert (left >= 0).all() and (top >= 0).all() and (left + w <= width).all() and (top + h <= height).all()
    area, ratio, fits = candidates(height, width)
    rounding = 0.02 if height < 100 else 0.002  # sides are whole pixels
    assert (w * h / (height * width)).mean() == pytest.approx(area[fits].mean(), abs=rounding + 4.5 * 0.22 / 141)
    assert np.log(w / h).mean() == pytest.approx(ratio[fits].mean(), abs=rounding + 4.5 * 0.17 / 141)
    for place, room in ((left, width - w), (top, height - h)):
        assert within((place - room / 2)[room > 0], 0)
        expected = 1 / (room[room > 0] + 1)  # each place alike, both ends included
        for end in (place == 0, place == room):
            assert abs(end[room > 0].sum() - expected.sum()) < 4.5 * (expected * (1 - expected)).sum() ** 0.5


def test_a_frame_too_long_for_most_candidates_gives_the_centred_square_in_the_share_that_the_closed_form_says():
    boxes = draw(20_000, 256, 1200)
    *_, fits = candidates(256, 1200)
    fallback = (boxes == (472, 0, 256, 256)).all(axis=1)
    assert fallback.mean() > 0.01 and within(fallback, (1 - fits.mean()) ** 10, errors=6)


def test_random_boxes_have_the_references_distribution():
    known = read_reference("data/random_augmentations.json")["random_resized_crop_monte_carlo"]
    left, top, width, height = draw(known["n"], *known["img_shape_hw"]).T
    area, ratio = width * height / (256 * 340), np.log(width / height)
    # both sides are means over 20,000 draws
    assert within(area, known["area_fraction"]["mean"], 4.5 * 2**0.5)
    assert within(ratio, known["log_aspect_w_over_h"]["mean"], 4.5 * 2**0.5)
    assert within(left, known["x1"]["mean"], 4.5 * 2**0.5) and within(top, known["y1"]["mean"], 4.5 * 2**0.5)
    assert area.std() == pytest.approx(known["area_fraction"]["std"], rel=0.02)
    assert ratio.std() == pytest.approx(known["log_aspect_w_over_h"]["std"], rel=0.02)
    quantiles = known["area_fraction"]["quantiles_5_25_50_75_95"]
    assert np.quantile(area, (0.05, 0.25, 0.5, 0.75, 0.95)) == pytest.approx(quantiles, abs=0.012)
    assert within(height == 256, known["full_height_fraction"], 4.5 * 2**0.5)


def test_training_pixels_are_the_references_for_the_references_boxes():
    reference = read_reference("data/random_augmentations.json")["train_pipeline_seeded"]
    norm = read_reference("data/spatial_synthetic.json")["norms"]["imagenet"]
    noise = np.random.RandomState(11).randint(0, 256, (2, 256, 340, 3)).astype(np.uint8)
    for case in reference["cases"]:
        left, top, right, bottom = case["crop_bbox_xyxy"]
        box = Box(left, top, right - left, bottom - top)
        frames = applied(short_cut((256, 340), (256, 340), box, (224, 224)), noise)
        assert sha256(frames) == case["resized_crop_before_flip"]["sha256"]
        whole, footage = Box(0, 0, 224, 224), Footage(planes(frames))
        view = View(footage, np.arange(2), whole, 224, case["flip"])
        ours = to_input([view], mean=norm["mean"], std=norm["std"], device=CPU)
        assert list(ours.shape) == case["final"]["shape"]
        assert ours.flatten()[:8].tolist() == pytest.approx(case["final"]["first8"], abs=1e-5)
        assert ours.mean().item() == pytest.approx(case["final"]["mean"], abs=1e-5)


def smooth_frames(height: int, width: int, seed: int) -> np.ndarray:
    """Two frames, about as rough as footage of that size: amplitudes fall with the frequency."""
    rng = np.random.default_rng(seed)
    y, x = np.meshgrid(np.fft.fftfreq(height), np.fft.rfftfreq(width), indexing="ij")
    spectrum = rng.normal(size=(2, 3, *y.shape)) / np.hypot(y, x).clip(1 / width) ** 1.5
    image = np.fft.irfft2(spectrum, s=(height, width)).transpose(0, 2, 3, 1)
    return ((image - image.mean()) / image.std() * 50 + 128).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("stored", [(320, 426), (240, 320), (455, 256)])
def test_one_resizing_of_the_box_as_stored_stands_for_two(stored):
    """The tolerance, over boxes: 4 levels of 255 on average. A box is off by half a stored pixel at most."""
    size = transforms.short_side_size(*stored, 256)
    frames = smooth_frames(*stored, seed=1)
    resized = applied(Cut(size, Box(0, 0, size[1], size[0]), size), frames)
    differences = []
    for box in draw(20, *size).tolist():
        cut = short_cut(stored, size, Box(*box), (224, 224))
        scale = stored[1] / size[1]
        assert np.abs(np.array(cut.box) / scale - box).max() <= 1 / scale + 0.01
        twice = applied(short_cut(size, size, Box(*box), (224, 224)), resized)
        differences.append(np.abs(applied(cut, frames).astype(int) - twice).mean())
    assert np.mean(differences) < 4


def test_a_resizing_by_more_than_two_is_done_first():
    box = Box(1, 2, 30, 20)
    assert short_cut((256, 340), (44, 58), box, (36, 36)) == Cut((44, 58), box, (36, 36))
    assert short_cut((88, 116), (44, 58), box, (36, 36)) == Cut(None, Box(2, 4, 60, 40), (36, 36))


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
        assert sha256(frames) == case["input"]["sha256"]
        height, width = frames.shape[1:3]
        size = transforms.short_side_size(height, width, 256)
        assert list(size) == case["after_resize"]["img_shape"]
        resized = applied(Cut(size, Box(0, 0, size[1], size[0]), size), frames)
        assert sha256(resized) == case["after_resize"]["all_frames"]["sha256"]

        crop_size, num_crops = (256, 3) if case["mode"] == "test" else (224, 1)
        cut, boxes = view_cut(height, width, resize=256, crop_size=crop_size, num_crops=num_crops)
        known = case["after_crop"]["crop_bboxes_unique_in_order"]
        assert [[cut.box.left + b.left, cut.box.top + b.top] for b in boxes] == [corners[:2] for corners in known]
        frames = applied(cut, frames)
        views = np.concatenate([frames[:, b.top : b.top + b.height, b.left : b.left + b.width] for b in boxes])
        assert sha256(views) == case["after_crop"]["all_imgs"]["sha256"]

        norm, footage = reference["norms"][case["norm"]], Footage(planes(frames))
        places = np.arange(len(frames)).reshape(case["num_clips"], case["clip_len"])
        ours = to_input(
            [View(footage, clip, box, crop_size) for box in boxes for clip in places],
            mean=norm["mean"],
            std=norm["std"],
            device=CPU,
        )
        known = case["after_normalize"]
        assert list(ours.shape) == case["after_format"]["shape"]
        assert ours.mean().item() == pytest.approx(known["mean"], abs=1e-5)
        corner = np.array(known["first_img_corners"]["top_left_3x3"])
        assert ours[0, :, 0, :3, :3].permute(1, 2, 0).numpy() == pytest.approx(corner, abs=1e-5)
