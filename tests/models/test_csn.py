import pytest
import torch
from torch import nn

from actionzoo.models.csn import CSN
from tests.models.reference import build, build_filled, clips

IR = "ircsn_bnfrozen_r50_32x2x1_180e_kinetics400_rgb"
IP = "ipcsn_bnfrozen_r152_32x2x1_180e_kinetics400_rgb"

# Written by this implementation when it agreed with the reference on every golden file; noise here is 3e-6.
SMALL_CLIP_LOGITS = {
    IR: [[-2.065882, 0.812653, 0.88468, 0.016664, -0.781342, 0.183069, 0.568006, 0.625348, 1.072668, -1.945026]],
    IP: [[-4.671734, -1.392788, 0.339419, -0.004179, 1.580131, -2.663551, 4.364912, 1.57157, 0.377594, -0.359679]],
}


@pytest.mark.parametrize("config", SMALL_CLIP_LOGITS)
def test_logits_are_still_the_ones_once_verified(config):
    model = build_filled(config, num_classes=10).eval()

    with torch.no_grad():
        logits = model(clips(f"{config}:small_input", (1, 3, 16, 45, 37)))

    torch.testing.assert_close(logits, torch.tensor(SMALL_CLIP_LOGITS[config]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [(32, 32, 32), (16, 45, 37), (20, 56, 56), (8, 64, 33)])
def test_any_clip_length_and_size_gives_logits(size):
    assert build(IR, num_classes=7)(torch.empty(2, 3, *size, device="meta")).shape == (2, 7)


def test_one_class_is_enough():
    assert build(IR, num_classes=1)(torch.empty(2, 3, 16, 32, 32, device="meta")).shape == (2, 1)


def test_stages_halve_time_height_and_width():
    assert build(IR).backbone(torch.empty(1, 3, 32, 256, 256, device="meta")).shape == (1, 2048, 4, 8, 8)


def test_classifier_reads_the_features():
    model = build_filled(IR).eval()
    clip = clips("features", (1, 3, 16, 32, 32))

    with torch.no_grad():
        features = model.features(clip)
        logits = model(clip)

    assert features.shape == (1, 2048)
    torch.testing.assert_close(logits, model.cls_head.fc_cls(features))


@pytest.mark.parametrize("config", [IR, IP])
def test_channels_meet_in_pointwise_convolutions_alone(config):
    convolutions = [m for m in build(config).modules() if isinstance(m, nn.Conv3d) and m.in_channels != 3]

    assert {conv.kernel_size for conv in convolutions if conv.groups == 1} == {(1, 1, 1)}
    assert {conv.kernel_size for conv in convolutions if conv.groups == conv.in_channels} == {(3, 3, 3)}
    assert len({conv.groups == 1 or conv.groups == conv.in_channels for conv in convolutions}) == 1


def test_nothing_cuts_between_the_two_halves_of_an_ip_convolution():
    pointwise, depthwise = build_filled(IP).eval().backbone.layer1[0].conv2

    with torch.no_grad():
        between = pointwise(clips("ip", (1, 64, 4, 8, 8)))

    assert between.min() < 0
    assert depthwise(between).min() == 0


def test_an_unknown_bottleneck_is_named():
    with pytest.raises(ValueError, match="'ix'"):
        build(IR, bottleneck="ix")


def test_norm_eval_keeps_the_statistics():
    model = build_filled(IR, num_classes=2, norm_eval=True, bn_frozen=False).train()

    assert _moved_statistics(model) == []


def test_without_norm_eval_the_statistics_move():
    model = build_filled(IR, num_classes=2, norm_eval=False, bn_frozen=False).train()

    moved = _moved_statistics(model)

    assert moved == [name for name, _ in model.named_buffers()]


@pytest.mark.parametrize(("config", "trained", "total"), [(IR, 55, 161), (IP, 207, 617)])
def test_frozen_norms_take_no_gradient(config, trained, total):
    model = build(config).train()

    assert sum(parameter.requires_grad for parameter in model.parameters()) == trained
    assert len(list(model.parameters())) == total
    assert not any(p.requires_grad for m in model.modules() if isinstance(m, nn.BatchNorm3d) for p in m.parameters())


def test_norm_eval_alone_lets_weight_and_bias_learn():
    model = build(IR, norm_eval=True, bn_frozen=False).train()

    assert all(parameter.requires_grad for parameter in model.parameters())


def test_bn_frozen_without_norm_eval_does_nothing():
    model = build(IR, norm_eval=False, bn_frozen=True).train()

    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(module.training for module in model.modules())


def test_norms_stay_frozen_when_training_goes_on_after_an_evaluation():
    model = build(IR).train().eval().train()

    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm3d)]
    assert not any(norm.training for norm in norms)
    assert model.training
    assert model.cls_head.dropout.training


def test_training_from_scratch_begins_with_every_norm_at_one():
    torch.manual_seed(0)
    model = CSN(depth=50, bottleneck="ir", num_classes=2, norm_eval=False, bn_frozen=False)

    assert all(bool((m.weight == 1).all()) for m in model.modules() if isinstance(m, nn.BatchNorm3d))


def _moved_statistics(model: nn.Module) -> list[str]:
    """Names of the buffers that one forward changes."""
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with torch.no_grad():
        model(clips("statistics", (2, 3, 16, 32, 32)))
    return [name for name, buffer in model.named_buffers() if not torch.equal(buffer, before[name])]
