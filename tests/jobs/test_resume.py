"""What makes two trainings the same."""

import dataclasses
from pathlib import Path

import pytest
import torch

from actionzoo.jobs.resume import batch_and_lr, training_fingerprint
from actionzoo.params import load_params
from actionzoo.zoo import build_model, freeze

PROJECT = Path(__file__).resolve().parents[2]
CSN = "ircsn_bnfrozen_r50_32x2x1_180e_kinetics400_rgb"


@pytest.fixture
def params(monkeypatch):
    monkeypatch.delenv("ACTIONZOO_SOURCE", raising=False)
    return load_params(PROJECT / "params.yaml")


def changed(params, section: str, **values):
    """The same, with values of the row's recipe as written replaced."""
    recipe = params.recipes[CSN]
    recipe = dataclasses.replace(recipe, **{section: dataclasses.replace(getattr(recipe, section), **values)})
    return dataclasses.replace(params, recipes={**params.recipes, CSN: recipe})


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("optim", {"lr": 0.04}),
        ("optim", {"accumulate": 2}),
        ("optim", {"videos_per_gpu": 3}),  # overridden on the demo: only the scaled learning rate tells
        ("optim", {"gpus": 4}),
        ("augment", {"flip": 0.0}),
        ("model", {"dropout": 0.1}),
    ],
)
def test_whatever_changes_a_training_changes_its_fingerprint(params, section, values):
    assert training_fingerprint(changed(params, section, **values), CSN, "m") != training_fingerprint(params, CSN, "m")


def test_other_clips_change_it_and_how_a_model_is_tested_does_not(params):
    known = training_fingerprint(params, CSN, "m")
    assert training_fingerprint(params, CSN, "other clips") != known
    assert training_fingerprint(changed(params, "test", average_clips="score"), CSN, "m") == known


@pytest.mark.parametrize("row", [CSN, "slowfast_r50_video_4x16x1_256e_kinetics400_rgb"])
def test_frozen_stages_are_the_first_of_the_backbone_in_both_pathways(params, row):
    with torch.device("meta"):
        model = build_model(params.recipes[row].model, 4)
    assert freeze(model, 0) == [] and all(p.requires_grad for p in model.parameters())
    frozen = freeze(model, 2)
    still = {name.partition(".conv")[0] for name, p in model.named_parameters() if p.requires_grad}
    fixed = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert fixed and all("conv1" in name or "layer1" in name for name in fixed)
    assert not any(name.startswith(("backbone.layer1", "backbone.slow_path.layer1")) for name in still)
    assert len(frozen) == (2 if row == CSN else 6)  # stem and layer1; of both pathways, and two laterals
    freeze(model, 5)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        "cls_head.fc_cls.weight",
        "cls_head.fc_cls.bias",
    }


def test_a_training_of_many_processes_is_another_one(params):
    alone = training_fingerprint(params, CSN, "ab")
    assert training_fingerprint(params, CSN, "ab", 2) != alone
    assert batch_and_lr(params, CSN, 4)[0] == 4 * batch_and_lr(params, CSN)[0]
    ghost = dataclasses.replace(params, runtime=dataclasses.replace(params.runtime, batch_norm="ghost"))
    assert training_fingerprint(ghost, CSN, "ab") != alone
    faster = dataclasses.replace(params, runtime=dataclasses.replace(params.runtime, precision="bf16", workers=3))
    assert training_fingerprint(faster, CSN, "ab") == alone
