import pytest
import torch

from actionzoo.models.slowfast import SlowFast
from tests.models.reference import CONFIGS, build, build_filled, clips

NAME = "slowfast_r50_4x16x1_256e_kinetics400_rgb"

# Written by this implementation when it agreed with the reference on every golden file; noise here is 1e-6.
SMALL_CLIP_LOGITS = [
    [-0.577386, 0.190592, 1.239345, 0.211586, 0.226503, 0.009976, 0.573468, -0.689656, 0.132446, -1.187062]
]


def test_logits_are_still_the_ones_once_verified():
    model = build_filled(NAME, num_classes=10).eval()

    with torch.no_grad():
        logits = model(clips(f"{NAME}:small_input", (1, 3, 16, 45, 37)))

    torch.testing.assert_close(logits, torch.tensor(SMALL_CLIP_LOGITS), rtol=0, atol=5e-5)


@pytest.mark.parametrize(("alpha", "slow_frames"), [(8, [0, 8, 16, 24]), (4, [0, 4, 8, 12, 16, 20, 24, 28])])
def test_slow_takes_every_alpha_th_frame_and_fast_all(alpha, slow_frames):
    slow, fast = _frames_seen(alpha=alpha, frames=32)

    assert slow == slow_frames
    assert fast == list(range(32))


@pytest.mark.parametrize("size", [(32, 32, 32), (16, 45, 37), (20, 56, 56), (8, 64, 33)])
def test_any_clip_length_and_size_gives_logits(size):
    assert build(NAME, num_classes=7)(torch.empty(2, 3, *size, device="meta")).shape == (2, 7)


def test_one_class_is_enough():
    assert build(NAME, num_classes=1)(torch.empty(2, 3, 16, 32, 32, device="meta")).shape == (2, 1)


def test_features_hold_fast_before_slow():
    model = build_filled(NAME).eval()
    clip = clips("features", (1, 3, 16, 32, 32))

    with torch.no_grad():
        features = model.features(clip)
        slow, fast = model.backbone(clip)

    assert features.shape == (1, 2304)
    torch.testing.assert_close(features[:, :256], fast.mean(dim=(2, 3, 4)))
    torch.testing.assert_close(features[:, 256:], slow.mean(dim=(2, 3, 4)))


def test_classifier_reads_the_features():
    model = build_filled(NAME).eval()
    clip = clips("features", (1, 3, 16, 32, 32))

    with torch.no_grad():
        torch.testing.assert_close(model(clip), model.cls_head.fc_cls(model.features(clip)))


def test_lateral_connections_carry_fast_into_slow_and_nothing_flows_back():
    model = build_filled(NAME).eval()
    clip = clips("lateral", (1, 3, 16, 32, 32))
    other = clip.clone()
    other[:, :, 3] += 1  # a frame that only Fast sees

    with torch.no_grad():
        slow, fast = model.backbone(clip)
        slow_of_other, _ = model.backbone(other)
        for lateral in model.backbone.slow_path.laterals():
            lateral.conv.weight.zero_()
        slow_alone, fast_alone = model.backbone(clip)
        slow_alone_of_other, _ = model.backbone(other)

    assert not torch.equal(slow, slow_of_other)
    assert torch.equal(slow_alone, slow_alone_of_other)
    assert torch.equal(fast, fast_alone)


def test_training_from_scratch_begins_with_every_block_as_its_shortcut():
    torch.manual_seed(0)
    model = SlowFast(**CONFIGS[NAME], num_classes=2)

    blocks = [
        block for path in (model.backbone.slow_path, model.backbone.fast_path) for s in path.stages() for block in s
    ]

    assert len(blocks) == 2 * (3 + 4 + 6 + 3)
    assert all(block.conv3.bn.weight.count_nonzero() == 0 for block in blocks)
    assert all(block.downsample is None or bool((block.downsample.bn.weight == 1).all()) for block in blocks)


def test_every_parameter_takes_a_gradient():
    model = build_filled(NAME, num_classes=2).train()

    model(clips("gradient", (2, 3, 16, 32, 32))).sum().backward()

    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def _frames_seen(*, alpha: int, frames: int) -> tuple[list[int], list[int]]:
    """Which frames of a clip reach the stems of Slow and Fast: frame t holds the number t."""
    backbone = build_filled(NAME, alpha=alpha).eval().backbone
    seen = []
    for pathway in (backbone.slow_path, backbone.fast_path):
        pathway.conv1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0, 0, :, 0, 0].int().tolist()))
    clip = torch.arange(frames).float().view(1, 1, frames, 1, 1).expand(1, 3, frames, 32, 32)
    with torch.no_grad():
        backbone(clip)
    slow, fast = seen
    return slow, fast
