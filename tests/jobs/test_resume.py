"""What makes two trainings the same."""

import dataclasses
from pathlib import Path

import pytest
import torch

from actionzoo.engine.checkpoint import save_checkpoint
from actionzoo.errors import UserError
from actionzoo.job import Job
from actionzoo.jobs.resume import other_unfinished, state_about, take_state
from actionzoo.kinetics.manifest import Manifest
from actionzoo.params import load_params
from actionzoo.recipe import as_dict
from actionzoo.records import RunRecord
from actionzoo.run_files import RunFiles
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


def with_runtime(params, **values):
    return dataclasses.replace(params, runtime=dataclasses.replace(params.runtime, **values))


def test_how_a_training_runs_makes_it_no_other_one_and_processes_do_not_share_states(params):
    alone, many = job(params), job(with_runtime(params, gpus=8, precision="bf16", workers=3))
    assert many.training_fingerprint() == alone.training_fingerprint()
    assert many.resume_key() == alone.resume_key() != many.resume_key(8)
    assert Job.of(params, CSN).batch(4).size == 4 * Job.of(params, CSN).batch().size


FINGERPRINTS_OF_0_1 = {
    ("local", 1): "356d8b0c337c95e7fb7dee49ead7a4824e5debf6e6e5ddcec0c63e1044ba3b07",
    ("local", 8): "c1ab4b2772e4a146ee29a0a51903400ac3f6da75de8a672b977884da7350b0de",
    ("ghost", 1): "b2923bf33dfb29c41441ea7af32438f22d95d54aa6bf2b8b68dc0dcba8b2ae81",
    ("ghost", 8): "c3ad213b2e89b13ebd6cf6541228591f06f31482978d07612b43a53da8fc4991",
}


@pytest.mark.parametrize(("batch_norm", "processes"), FINGERPRINTS_OF_0_1)
def test_work_of_version_0_1_is_recognised(params, batch_norm, processes):
    """Unfinished trainings by the name of their folder, finished ones by the fingerprint in their record."""
    known, now = FINGERPRINTS_OF_0_1[batch_norm, processes], job(changed(params, "optim", batch_norm=batch_norm))
    assert now.resume_key(processes) == known
    record = RunRecord(
        model=CSN, dataset="demo", fingerprint=known, batch=now.batch(processes).size, recipe={}, files={}
    )
    assert now.is_training_of(record)
    assert now.is_training_of(dataclasses.replace(record, fingerprint=now.training_fingerprint()))
    assert not job(changed(params, "optim", lr=0.04)).is_training_of(record)
    assert not now.is_training_of(dataclasses.replace(record, batch=record.batch * 3))
    assert not job(params, "other clips").is_training_of(record)


def test_an_evaluation_of_version_0_1_is_recognised(params):
    known = "d32d9e9a38638396db9fb8f7d09facb899cb43b3492aed09991c3edf878824d6"
    assert job(params).old_evaluation_fingerprint("5a") == known != job(params).evaluation_fingerprint("5a")


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


# What a training leaves to the next


def record_of(job: Job, processes: int = 1, **values) -> RunRecord:
    batch = job.batch(processes)
    known = {"recipe": as_dict(job.recipe), "manifest_sha256": job.manifest.sha256}
    known |= {"batch": batch.size, "lr": batch.lr, "fingerprint": job.training_fingerprint(), "files": {}}
    return RunRecord(model=job.model, dataset=job.dataset, **(known | values))


def save_state(folder: Path, about: dict) -> Path:
    folder.mkdir(parents=True)
    path = folder / "state-00002-0000000.pth"
    save_checkpoint(path, {"about": about, "state": {"finished_epochs": 2}})
    return path


@pytest.fixture
def of_0_1(params, tmp_path):
    """A state of version 0.1, with which batch norm no recipe said; by this job's recipe."""
    about = state_about(record_of(job(params)))
    del about["versions"], about["init_sha256"], about["recipe"]["optim"]["batch_norm"]
    return save_state(tmp_path / "unfinished" / "0123", about)


def test_a_state_of_version_0_1_is_taken_where_the_user_names_it(params, of_0_1, tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    take_state(of_0_1, scratch, record_of(job(params)))
    assert (scratch / of_0_1.name).is_file()
    with pytest.raises(UserError, match=r"was not resumed: recipe\.optim\.lr: 0\.08 -> 0\.04"):
        take_state(of_0_1, scratch, record_of(job(changed(params, "optim", lr=0.04))))


def test_another_unfinished_training_is_named_with_what_differs(params, of_0_1, tmp_path):
    files = RunFiles(tmp_path, "demo", CSN, workspace=tmp_path)
    files.unfinished.parent.mkdir(parents=True)
    of_0_1.parent.parent.rename(files.unfinished)
    scratch = files.scratch("now")
    (line,) = other_unfinished(files, scratch, record_of(job(changed(params, "schedule", warmup_ratio=0.2))))
    assert "which stopped after epoch 2 of another recipe: recipe.schedule.warmup_ratio: 0.1 -> 0.2." in line
    (line,) = other_unfinished(files, scratch, record_of(job(params), processes=2))
    assert "another recipe: batch: 8 -> 16; lr: 0.02 -> 0.04." in line
