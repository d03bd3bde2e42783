"""Text as pictures: readable on whatever lies below, and never wider than that."""

import cv2
import numpy as np
import pytest

from actionzoo.predict.overlay import margin_of, text_boxes


def picture(png: bytes) -> np.ndarray:
    """uint8 BGRA (height, width, 4)."""
    return cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)


def on(level: int, png: bytes) -> np.ndarray:
    box = picture(png).astype(float)
    share = box[..., 3:] / 255
    return box[..., :3] * share + level * (1 - share)


@pytest.mark.parametrize("level", [0, 128, 255])
def test_letters_stand_out_on_dark_and_bright_footage(level):
    (png,) = text_boxes([["93.1 %  abseiling"]], 240, 320)
    seen = on(level, png)
    assert seen.max() > 230 and np.median(seen) < 110


@pytest.mark.parametrize(("height", "width"), [(32, 48), (96, 54), (240, 320), (1080, 1920), (2160, 3840)])
def test_boxes_fit_the_frame_and_each_other(height, width):
    lines = ["0.0 – 10.0 s", *(f"{number} %  using remote controller (not gaming)" for number in range(5))]
    shapes = {picture(png).shape for png in text_boxes([lines, ["short"]], height, width)}
    ((box_height, box_width, _),) = shapes
    margin = margin_of(height, width)
    assert box_height + margin <= height and box_width + 2 * margin <= width


def test_large_frames_have_large_letters():
    small, large = (picture(text_boxes([["a"]], *size)[0]).shape[0] for size in ((240, 320), (1080, 1440)))
    assert large == pytest.approx(4.5 * small, rel=0.1)


@pytest.mark.parametrize("text", ["$x_1$", r"{\an8}\N", "%d %{pts}", "person's: [a];b=c,d", "naïve", "Ωмега"])
def test_no_letter_has_a_meaning(text):
    """Two texts that differ in one letter look different, and nothing is swallowed."""
    whole, *others = (
        picture(png) for png in text_boxes([[text], *([text.replace(c, "")] for c in set(text))], 480, 640)
    )
    assert all((whole != other).any() for other in others)


def test_names_too_long_are_cut_off_with_an_ellipsis():
    long, longer, cut = (picture(png) for png in text_boxes([["w" * 80], ["w" * 90], ["w" * 5]], 60, 80))
    assert (long == longer).all() and (long != cut).any()


def test_a_script_that_the_shipped_font_lacks_is_taken_from_the_system():
    from actionzoo.predict.overlay import _families, _family_with

    if _family_with("跳") is None:
        pytest.skip("this machine has no font with 跳")
    assert _families("a跳") == ["DejaVu Sans", _family_with("跳")] and _families("aé") == ["DejaVu Sans"]
