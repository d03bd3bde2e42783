"""Filled with the same numbers and fed the same clip, our networks say what the reference says, stage by stage.

Tolerances, in deviations of the golden values: float noise between threads, libraries and float64 reaches 2.3e-6, the
smallest planted mistake (another epsilon in batch norm) 8.6e-3. 1e-4 lies well between.
"""

import hashlib

import pytest
import torch
from torch import Tensor, nn

from tests.models.reference import build_filled, clips, fill, read_reference

SLOWFAST_4X16 = "slowfast_r50_4x16x1_256e_kinetics400_rgb"
SLOWFAST_8X8 = "slowfast_r50_8x8x1_256e_kinetics400_rgb"
SLOWFAST_R101 = "slowfast_r101_8x8x1_256e_kinetics400_rgb"
IR_R50 = "ircsn_bnfrozen_r50_32x2x1_180e_kinetics400_rgb"
IR_R152 = "ircsn_ig65m_pretrained_r152_32x2x1_58e_kinetics400_rgb"
IR_R152_FROZEN = "ircsn_ig65m_pretrained_bnfrozen_r152_32x2x1_58e_kinetics400_rgb"
IP_R152 = "ipcsn_bnfrozen_r152_32x2x1_180e_kinetics400_rgb"

TOLERANCE = 1e-4


@pytest.mark.parametrize(
    "config", [IR_R50, IR_R152, IR_R152_FROZEN, IP_R152, SLOWFAST_4X16, SLOWFAST_8X8, SLOWFAST_R101]
)
def test_the_fill_rule_gives_the_numbers_behind_the_golden_values(config):
    expected = read_reference("golden/fill_check.json")["configs"][config]

    for key, entry in expected["entries"].items():
        assert _digest(fill(config, key, tuple(entry["shape"]))) == entry["sha256"], key
    for name, entry in expected["inputs"].items():
        assert _digest(clips(f"{config}:{name}", tuple(entry["shape"]))) == entry["sha256"], name


@pytest.mark.parametrize(
    ("config", "case"),
    [
        (SLOWFAST_4X16, "eval64"),
        (SLOWFAST_8X8, "eval64"),
        (SLOWFAST_8X8, "eval72x88"),
        (SLOWFAST_R101, "eval64"),
        (IR_R50, "eval64"),
        (IR_R152, "eval64"),
        (IR_R152_FROZEN, "eval64"),
        (IP_R152, "eval64"),
        (IP_R152, "eval72x88"),
        pytest.param(SLOWFAST_4X16, "eval256", marks=pytest.mark.slow),
        pytest.param(IR_R50, "eval256", marks=pytest.mark.slow),
    ],
)
def test_logits_and_stages_match_the_reference(config, case):
    golden = read_reference(f"golden/{config}.{case}.json")

    _check_against(golden, build_filled(config))


def test_the_network_of_the_256p_8x8_weights_matches_the_reference():
    golden = read_reference(f"golden/{SLOWFAST_8X8}.fusion_kernel5.eval64.json")

    _check_against(golden, build_filled(SLOWFAST_8X8, seed=f"{SLOWFAST_8X8}#fusion_kernel=5", fusion_kernel=5))


@pytest.mark.parametrize("config", [SLOWFAST_4X16, IR_R50])
def test_several_views_in_one_batch_match_the_reference(config):
    golden = read_reference(f"golden/{config}.views64.json")
    model = build_filled(config).eval()

    with torch.no_grad():
        logits = model(clips(golden["input_key"], golden["input_shape"]))  # (views, num_classes)

    outputs = golden["outputs"]
    expected = torch.tensor(outputs["none"]["values"])
    assert (logits - expected).abs().max() <= TOLERANCE * expected.std()
    mean_probability = logits.softmax(dim=1).mean(dim=0, keepdim=True)
    assert (mean_probability - torch.tensor(outputs["prob"]["values"])).abs().max() <= 1e-5


@torch.no_grad()
def _check_against(golden: dict, model: nn.Module) -> None:
    model.eval()
    outputs = {}
    for name in golden["stages"]:
        if name.endswith(":input"):
            model.get_submodule(name.removesuffix(":input")).register_forward_pre_hook(
                lambda module, inputs, name=name: outputs.update({name: inputs[0].clone()})
            )
        else:
            model.get_submodule(name).register_forward_hook(
                lambda module, inputs, output, name=name: outputs.update({name: output.clone()})
            )

    logits = model(clips(golden["input_key"], golden["input_shape"]))

    for name, stage in golden["stages"].items():
        _check_stage(name, outputs[name], stage)
    expected = torch.tensor(golden["logits"])
    assert (logits - expected).abs().max() <= TOLERANCE * expected.std()
    for probabilities, best in zip(logits.softmax(dim=1), golden["prob_top5"], strict=True):
        values, classes = probabilities.topk(5)
        assert classes.tolist() == [label for label, _ in best]
        assert values.tolist() == pytest.approx([probability for _, probability in best], abs=1e-5)


def _check_stage(name: str, output: Tensor, stage: dict) -> None:
    assert list(output.shape) == stage["shape"], name
    values = output.flatten().double()
    statistics = {
        "std": values.std(correction=0).item(),
        "l2": values.norm().item(),
        "absmax": values.abs().max().item(),
    }
    for key, value in statistics.items():
        assert value == pytest.approx(stage[key], rel=TOLERANCE), f"{name}: {key}"
    spread = TOLERANCE * stage["std"]
    sampled = [i * (values.numel() - 1) // 15 for i in range(16)]
    assert values.mean().item() == pytest.approx(stage["mean"], abs=spread), f"{name}: mean"
    assert values[:8].tolist() == pytest.approx(stage["first8"], abs=spread), f"{name}: first8"
    assert values[sampled].tolist() == pytest.approx(stage["sample16"], abs=spread), f"{name}: sample16"


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()
