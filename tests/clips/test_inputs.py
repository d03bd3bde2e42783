import numpy as np
import pytest
import torch

from actionzoo.clips import inputs
from actionzoo.clips.inputs import Footage, ToInput, View, to_input
from actionzoo.clips.transforms import Box

NORM = {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)}
CPU = torch.device("cpu")


def footage(num_frames: int, height: int, width: int) -> Footage:
    """Noise."""
    return Footage(
        torch.from_numpy(np.random.default_rng(0).integers(0, 256, (num_frames, 3, height, width), np.uint8))
    )


def test_input_is_channels_first_minus_mean_over_std():
    frames = torch.arange(2 * 1 * 2 * 3, dtype=torch.uint8).view(2, 1, 2, 3).permute(0, 3, 1, 2).contiguous()
    view = View(Footage(frames), np.array([1, 0, 1]), Box(1, 0, 1, 1), 1)
    ours = to_input([view], mean=(1.0, 2.0, 3.0), std=(2.0, 4.0, 8.0), device=CPU)
    assert ours.shape == (1, 3, 3, 1, 1) and ours.dtype == torch.float32
    assert ours[0, :, 0, 0, 0].tolist() == [(9 - 1) / 2, (10 - 2) / 4, (11 - 3) / 8]
    assert torch.equal(ours[:, :, 0], ours[:, :, 2])


def test_flipped_views_mirror_what_was_cut():
    frames = footage(3, 64, 96)
    plain, flipped = (View(frames, np.arange(3), Box(5, 7, 48, 48), 48, flip) for flip in (False, True))
    both = to_input([plain, flipped], **NORM, device=CPU)
    assert torch.equal(both[0].flip(3), both[1])


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    ("box", "size"), [(Box(4, 8, 48, 48), 48), (Box(0, 0, 96, 64), 40), (Box(10, 3, 31, 57), 48)], ids=str
)
def test_the_way_of_a_gpu_and_that_of_the_cpu_give_the_same(box, size, flip):
    """The one that large machines take, here on the CPU as well. Tolerance where there is resizing: cv2 computes in
    steps of 1/2048, so of noise one value of eight is one level of 255 off; else none."""
    frames = footage(5, 64, 96)
    views = [View(frames, np.array([0, 2, 4]), box, size, flip), View(frames, np.array([3, 3, 1]), box, size, not flip)]
    ours = to_input(views, **NORM, device=CPU)
    mean, std = (np.float32(values) for values in NORM.values())
    theirs = inputs._by_views(views, torch.empty_like(ours), mean, 1 / std)
    difference = (ours - theirs).abs() * torch.from_numpy(std).view(1, 3, 1, 1, 1)  # in levels
    assert ours.shape == theirs.shape and difference.max() < 1.001
    assert (difference > 0.001).float().mean() < (0.15 if (box.width, box.height) != (size, size) else 1e-9)


def test_an_input_is_good_until_the_next_one_is_made():
    frames = footage(2, 64, 96)
    views = [View(frames, np.array([0, 1]), Box(left, 3, 48, 48), 48) for left in (0, 20, 40)]
    expected = to_input(views, **NORM, device=CPU)
    make = ToInput(**NORM, device=CPU)
    for start, stop in [(0, 3), (1, 3), (0, 1), (0, 3)]:  # smaller batches lie in the memory of larger ones
        assert torch.equal(make(views[start:stop]), expected[start:stop])
    weight = torch.ones((), requires_grad=True)
    for number in range(3):
        (weight * make(views[number : number + 1])).sum().backward()
    assert weight.grad.item() == pytest.approx(expected.sum().item(), rel=1e-5)
    assert make(views).data_ptr() == make(views[:1]).data_ptr()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_frames_go_to_a_gpu_once_and_give_the_same_there():
    frames = footage(5, 64, 96)
    views = [View(frames, np.array([0, 2, 4]), Box(left, 3, 48, 48), 40, flip=left > 9) for left in range(0, 40, 8)]
    ours = to_input(views, **NORM, device=CPU)
    gpu = torch.device("cuda", torch.cuda.current_device())
    first = to_input(views[:2], **NORM, device=gpu)
    there = frames.frames
    second = to_input(views[2:], **NORM, device=gpu)
    assert there.device == gpu and frames.frames is there
    difference = (ours - torch.cat([first, second]).cpu()).abs() * torch.tensor(NORM["std"]).view(1, 3, 1, 1, 1)
    assert difference.max() < 1.001 and (difference > 0.01).float().mean() < 0.15
