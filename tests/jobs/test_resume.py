"""What makes two trainings the same."""

import dataclasses
from pathlib import Path

import pytest
import torch

from actionzoo.job import Job
from actionzoo.kinetics.manifest import Manifest
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


def job(params, manifest_sha256: str = "m") -> Job:
    """Of a data set that is not prepared, but for the hash of its manifest."""
    made = Job.of(params, CSN)
    vars(made)["manifest"] = Manifest((), Path("manifest.csv"), manifest_sha256, None)
    return made


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
    assert (
        job(changed(params, section, **values), "m").training_fingerprint() != job(params, "m").training_fingerprint()
    )


def test_other_clips_change_it_and_how_a_model_is_tested_does_not(params):
    known = job(params, "m").training_fingerprint()
    assert job(params, "other clips").training_fingerprint() != known
    assert job(changed(params, "test", average_clips="score"), "m").training_fingerprint() == known


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
    alone = job(params, "ab").training_fingerprint()
    assert job(params, "ab").training_fingerprint(2) != alone
    assert Job.of(params, CSN).batch(4).size == 4 * Job.of(params, CSN).batch().size
    assert job(changed(params, "optim", batch_norm="ghost"), "ab").training_fingerprint() != alone
    faster = dataclasses.replace(params, runtime=dataclasses.replace(params.runtime, precision="bf16", workers=3))
    assert job(faster, "ab").training_fingerprint() == alone
