"""The recipes are the published ones: checked against the reference where it is at hand, and everywhere against a table
that a reader can check by eye."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from actionzoo.engine.flops import count_parameters
from actionzoo.engine.schedule import scaled_lr
from actionzoo.params import load_params
from actionzoo.recipe import Recipe, compare, differences
from actionzoo.zoo import build_model
from tests.models.parity import rate_at, reference_entries, reference_recipe, shipped, worst_rate
from tests.models.reference import PUBLISHED, RECIPES, read_reference

PROJECT = Path(__file__).resolve().parents[1]
ROWS = list(RECIPES)


class Facts(NamedTuple):
    parameters: int
    depths: tuple[int, ...]  # Slow, Fast
    data: str
    starts_from: str
    batch_norm: str
    lr: float
    batch: str  # gpus x videos_per_gpu
    epochs: int
    top1: float


FACTS = {
    "ircsn_bnfrozen_r50_32x2x1_180e_kinetics400_rgb": Facts(
        13_131_152, (50,), "frames 320", "None", "frozen", 0.08, "8x4", 180, 73.6
    ),
    "ircsn_ig65m_pretrained_bnfrozen_r50_32x2x1_58e_kinetics400_rgb": Facts(
        13_131_152, (50,), "frames 320", "IG65M", "frozen", 0.000125, "8x3", 58, 79.0
    ),
    "ircsn_bnfrozen_r152_32x2x1_180e_kinetics400_rgb": Facts(
        29_703_568, (152,), "frames 320", "None", "frozen", 0.08, "8x4", 180, 76.5
    ),
    "ircsn_sports1m_pretrained_bnfrozen_r152_32x2x1_58e_kinetics400_rgb": Facts(
        29_703_568, (152,), "frames 320", "Sports1M", "frozen", 0.000125, "8x3", 58, 78.2
    ),
    "ircsn_ig65m_pretrained_bnfrozen_r152_32x2x1_58e_kinetics400_rgb": Facts(
        29_703_568, (152,), "frames 320", "IG65M", "frozen", 0.000125, "8x3", 58, 82.76
    ),
    "ipcsn_bnfrozen_r152_32x2x1_180e_kinetics400_rgb": Facts(
        33_016_592, (152,), "frames 320", "None", "frozen", 0.08, "8x4", 180, 77.8
    ),
    "ipcsn_sports1m_pretrained_bnfrozen_r152_32x2x1_58e_kinetics400_rgb": Facts(
        33_016_592, (152,), "frames 320", "Sports1M", "frozen", 0.000125, "8x3", 58, 78.8
    ),
    "ipcsn_ig65m_pretrained_bnfrozen_r152_32x2x1_58e_kinetics400_rgb": Facts(
        33_016_592, (152,), "frames 320", "IG65M", "frozen", 0.000125, "8x3", 58, 82.5
    ),
    "ircsn_ig65m_pretrained_r152_32x2x1_58e_kinetics400_rgb": Facts(
        29_703_568, (152,), "frames 320", "IG65M", "trained", 0.000125, "8x3", 58, 80.14
    ),
    "slowfast_r50_256p_4x16x1_256e_kinetics400_rgb": Facts(
        34_479_288, (50, 50), "frames 256", "None", "trained", 0.1, "8x8", 256, 74.75
    ),
    "slowfast_r50_video_4x16x1_256e_kinetics400_rgb": Facts(
        34_479_288, (50, 50), "videos 256", "None", "trained", 0.1, "8x8", 256, 74.34
    ),
    "slowfast_r50_4x16x1_256e_kinetics400_rgb": Facts(
        34_479_288, (50, 50), "frames 320", "None", "trained", 0.1, "8x8", 256, 75.64
    ),
    "slowfast_r50_256p_8x8x1_256e_kinetics400_rgb": Facts(
        34_565_560, (50, 50), "frames 256", "None", "trained", 0.1, "8x8", 256, 75.61
    ),
    "slowfast_r50_8x8x1_256e_kinetics400_rgb": Facts(
        34_565_560, (50, 50), "frames 320", "None", "trained", 0.1, "8x8", 256, 76.94
    ),
    "slowfast_r101_r50_4x16x1_256e_kinetics400_rgb": Facts(
        62_384_312, (101, 50), "frames 256", "None", "trained", 0.1, "8x8", 256, 76.69
    ),
    "slowfast_r101_8x8x1_256e_kinetics400_rgb": Facts(
        62_912_312, (101, 101), "frames 256", "None", "trained", 0.1, "8x8", 256, 77.9
    ),
    "slowfast_r152_r50_4x16x1_256e_kinetics400_rgb": Facts(
        84_843_704, (152, 50), "frames 256", "None", "trained", 0.1, "8x8", 256, 77.13
    ),
}


def test_rows_are_those_of_the_published_pages_in_their_order():
    assert list(FACTS) == ROWS


@pytest.mark.parametrize("row", FACTS)
def test_a_recipe_has_the_numbers_of_its_published_row(row):
    recipe = RECIPES[row]
    model = recipe.model
    with torch.device("meta"):
        parameters = count_parameters(build_model(model, 400))

    assert FACTS[row] == Facts(
        parameters=parameters,
        depths=(model.depth,) if model.family == "csn" else (model.slow_depth, model.fast_depth),
        data=f"{recipe.clips.form} {recipe.clips.short_side}",
        starts_from=PUBLISHED[row].pretrained,
        batch_norm="frozen" if model.family == "csn" and model.norm_eval and model.bn_frozen else "trained",
        lr=recipe.optim.lr,
        batch=f"{recipe.optim.gpus}x{recipe.optim.videos_per_gpu}",
        epochs=recipe.schedule.epochs,
        top1=PUBLISHED[row].top1[0],
    )


@pytest.mark.parametrize("row", ROWS)
def test_a_row_that_starts_from_weights_names_them(row):
    recipe = RECIPES[row]

    assert (recipe.init.weights is None) == (PUBLISHED[row].pretrained == "None")


def test_rows_of_one_configuration_differ_in_their_data_alone():
    pairs = {
        ("slowfast_r50_256p_4x16x1_256e_kinetics400_rgb", "slowfast_r50_4x16x1_256e_kinetics400_rgb"),
        ("slowfast_r50_256p_8x8x1_256e_kinetics400_rgb", "slowfast_r50_8x8x1_256e_kinetics400_rgb"),
    }
    same_configuration = {
        (one, other)
        for one in ROWS
        for other in ROWS
        if one < other and PUBLISHED[one].config == PUBLISHED[other].config
    }

    assert same_configuration == pairs
    for one, other in pairs:
        clips = dataclasses.replace(RECIPES[one].clips, short_side=RECIPES[other].clips.short_side)
        moved = dataclasses.replace(RECIPES[one], clips=clips)
        assert moved == RECIPES[other]


def test_kinetics400_uses_every_recipe_as_written():
    params = load_params(PROJECT / "params.yaml")
    params = dataclasses.replace(params, name="kinetics400", dataset=params.datasets["kinetics400"])

    assert {row: params.recipe(row) for row in params.models()} == params.recipes


@pytest.mark.parametrize("row", ROWS)
def test_a_recipe_is_the_references(row):
    expected = reference_recipe(reference_entries()[row])
    ours = shipped(row)

    assert ours.keys() - expected.keys() == {"seed"}
    for section, values in expected.items():
        only_ours = {"optim": {"scale_lr", "batch_norm"}, "published": {"note"}}.get(section, set())
        assert {key: value for key, value in ours[section].items() if key not in only_ours} == values, section


def test_rows_stand_in_the_order_of_the_reference():
    assert list(reference_entries()) == ROWS


@pytest.mark.parametrize("row", ROWS)
def test_the_learning_rate_of_every_step_is_the_references(row):
    schedules = read_reference("schedules/lr.json")["configs"]
    (schedule_id,) = [name for name, configs in schedules.items() if PUBLISHED[row].config in configs]

    distance, points = worst_rate(RECIPES[row], schedule_id)

    assert points > 1000
    assert distance <= 1e-9


@pytest.mark.parametrize("row", ROWS)
def test_the_learning_rate_scales_to_the_gpus_of_the_published_run(row):
    entry = reference_entries()[row]
    if entry["gpus_total"] is None:
        assert PUBLISHED[row].gpus == "x"  # nobody says on how many
        return
    optim = RECIPES[row].optim

    batch = entry["gpus_total"] * optim.videos_per_gpu

    assert batch == entry["global_batch_of_published_run_if_config_videos_per_gpu"]
    lr = scaled_lr(optim.lr, batch=batch, reference_batch=optim.reference_batch)
    assert lr == pytest.approx(entry["lr_linear_scaled_to_published_gpus"])


@pytest.mark.parametrize(
    ("row", "epoch", "share"),
    [
        ("ircsn_bnfrozen_r50_32x2x1_180e_kinetics400_rgb", 0, 0.1),  # where warm-up starts
        ("ircsn_bnfrozen_r50_32x2x1_180e_kinetics400_rgb", 90, 0.5),  # half of a cosine
        ("ircsn_ig65m_pretrained_r152_32x2x1_58e_kinetics400_rgb", 16, 1.0),  # the end of warm-up
        ("ircsn_ig65m_pretrained_r152_32x2x1_58e_kinetics400_rgb", 31, 1.0),
        ("ircsn_ig65m_pretrained_r152_32x2x1_58e_kinetics400_rgb", 32, 0.1),  # behind the first milestone
        ("ircsn_ig65m_pretrained_r152_32x2x1_58e_kinetics400_rgb", 48, 0.01),
        ("slowfast_r50_4x16x1_256e_kinetics400_rgb", 0, 0.1),
        ("slowfast_r50_4x16x1_256e_kinetics400_rgb", 128, 0.5),
    ],
)
def test_the_learning_rate_takes_its_turns_where_the_recipe_says(row, epoch, share):
    recipe: Recipe = RECIPES[row]

    assert rate_at(recipe, 100 * epoch, 100) == pytest.approx(share * recipe.optim.lr)


def test_the_parity_page_tells_of_every_row():
    page = (PROJECT / "docs" / "parity.md").read_text(encoding="utf-8")

    assert [row for row in ROWS if f"`{row}`" not in page] == []


def test_two_recipes_are_compared_line_by_line():
    one = RECIPES["slowfast_r50_256p_4x16x1_256e_kinetics400_rgb"]
    other = dataclasses.replace(one, seed=7, optim=dataclasses.replace(one.optim, lr=0.05, scale_lr=False))

    assert compare(one, other) == ["seed: 0 -> 7", "optim.lr: 0.1 -> 0.05", "optim.scale_lr: true -> false"]
    assert compare(one, one) == []


def test_a_key_that_one_recipe_lacks_is_null_there():
    one = RECIPES["ircsn_bnfrozen_r50_32x2x1_180e_kinetics400_rgb"]
    other = RECIPES["ircsn_ig65m_pretrained_bnfrozen_r50_32x2x1_58e_kinetics400_rgb"]
    lines = compare(one, other)

    assert "schedule.policy: cosine -> step" in lines
    assert "schedule.min_lr: 0.0 -> null" in lines and "schedule.milestones: null -> [32, 48]" in lines


def test_differences_are_named_with_their_whole_path():
    before, now = {"recipe": {"optim": {"lr": 0.1}}, "row": "a"}, {"recipe": {"optim": {"lr": 0.05}}, "row": "b"}

    assert differences(before, now) == ["recipe.optim.lr: 0.1 -> 0.05", "row: a -> b"]
