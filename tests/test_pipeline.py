"""What makes two trainings the same."""

import dataclasses
from pathlib import Path

import pytest

from actionzoo.params import load_params
from actionzoo.training import training_fingerprint

PROJECT = Path(__file__).resolve().parents[1]
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
