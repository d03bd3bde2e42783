"""Filled with the same numbers and fed the same clip, our networks say what the reference says, stage by stage.

Tolerances, in deviations of the golden values: float noise between threads, libraries and float64 reaches 2.3e-6, the
smallest planted mistake (another epsilon in batch norm) 8.6e-3. 1e-4 lies well between.
"""

import hashlib

import pytest
from torch import Tensor, nn

from tests.models.parity import eval_distances, view_distances
from tests.models.reference import build_filled, clips, fill, read_reference

SLOWFAST_4X16 = "slowfast_r50_4x16x1_256e_kinetics400_rgb"
SLOWFAST_8X8 = "slowfast_r50_8x8x1_256e_kinetics400_rgb"
SLOWFAST_R101 = "slowfast_r101_8x8x1_256e_kinetics400_rgb"
IR_R50 = "ircsn_bnfrozen_r50_32x2x1_180e_kinetics400_rgb"
IR_R152 = "ircsn_ig65m_pretrained_r152_32x2x1_58e_kinetics400_rgb"
IR_R152_FROZEN = "ircsn_ig65m_pretrained_bnfrozen_r152_32x2x1_58e_kinetics400_rgb"
IP_R152 = "ipcsn_bnfrozen_r152_32x2x1_180e_kinetics400_rgb"

TOLERANCE = 1e-4
PROBABILITY_TOLERANCE = 1e-5


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

    _check(golden, build_filled(config))


def test_the_network_of_the_256p_8x8_weights_matches_the_reference():
    golden = read_reference(f"golden/{SLOWFAST_8X8}.fusion_kernel5.eval64.json")

    _check(golden, build_filled(SLOWFAST_8X8, seed=f"{SLOWFAST_8X8}#fusion_kernel=5", fusion_kernel=5))


def test_a_wrong_epsilon_would_be_seen():
    golden = read_reference(f"golden/{IR_R50}.eval64.json")
    model = build_filled(IR_R50)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.eps = 1e-5

    assert eval_distances(golden, model)["logits"] > 50 * TOLERANCE


@pytest.mark.parametrize("config", [SLOWFAST_4X16, IR_R50])
def test_several_views_in_one_batch_match_the_reference(config):
    golden = read_reference(f"golden/{config}.views64.json")

    distances = view_distances(golden, build_filled(config))

    assert distances["logits"] <= TOLERANCE
    assert max(distances["prob"], distances["prob in twos"]) <= PROBABILITY_TOLERANCE
    assert distances["score"] <= TOLERANCE


def _check(golden: dict, model: nn.Module) -> None:
    distances = eval_distances(golden, model)

    assert distances.keys() == golden["stages"].keys() | {"logits", "probabilities"}
    assert distances.pop("probabilities") <= PROBABILITY_TOLERANCE
    assert {name: distance for name, distance in distances.items() if not distance <= TOLERANCE} == {}


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()
