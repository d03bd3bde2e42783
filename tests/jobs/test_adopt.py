"""Results of the version before, wherever DVC has left them."""

import dataclasses
import hashlib
import json
import shutil

import pytest
import yaml

from actionzoo.files.dvc_cache import cache_folder
from actionzoo.files.hashes import sha256_of
from actionzoo.job import Job
from actionzoo.jobs.adopt import adopt_training, old_manifest_sha256, remove_links, save_links
from actionzoo.kinetics.manifest import write_manifest
from actionzoo.kinetics.shards import without_key
from actionzoo.recipe import as_dict
from actionzoo.records import FileRecord, RunRecord
from actionzoo.run_files import RunFiles
from tests.tiny_network import ROW, tiny_params

CURVE = "epoch,lr,loss,top1,top5\n1,0.1,2.0,0.25,1.0\n2,0.1,1.5,0.5,1.0\n"
FILES = {
    f"runs/demo/{ROW}/best.pth": "best",
    f"runs/demo/{ROW}/latest.pth": "latest",
    f"metrics/demo/{ROW}.train.csv": CURVE,
    f"metrics/demo/{ROW}.val.csv": "epoch,top1\n2,0.5\n",
}


def md5(text: str) -> str:
    return hashlib.md5(text.encode()).hexdigest()


@pytest.fixture
def job(tiny_project, monkeypatch) -> Job:
    """Of a project in which the version before has trained the model."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tiny_project / "home"))
    job = Job.of(tiny_params(), ROW, tiny_project)
    for path, text in FILES.items():
        (tiny_project / path).parent.mkdir(parents=True, exist_ok=True)
        (tiny_project / path).write_text(text)
    recipe = as_dict(job.recipe)
    del recipe["optim"]["batch_norm"]
    record = RunRecord(
        model=ROW,
        dataset="demo",
        fingerprint=job.resume_key(1, old_manifest_sha256(job)),
        recipe=recipe,
        batch=job.batch().size,
        best_epoch=2,
        best_val_top1=0.5,
        files={path.rpartition("/")[2]: FileRecord(md5=md5(text), size=len(text)) for path, text in FILES.items()},
    )
    record.write(job.files.recipe)
    return job


def is_published(job: Job) -> bool:
    files = job.files
    record = RunRecord.read(files.recipe)
    return (
        (files.best.read_text(), files.latest.read_text(), files.plot("loss").read_text()) == ("best", "latest", CURVE)
        and json.loads(files.metrics("train").read_text())["loss"] == 1.5
        and (record.fingerprint, set(record.files)) == (job.training_fingerprint(), {"best.pth", "latest.pth"})
    )


def test_a_training_that_lies_where_it_was_is_published_in_the_new_layout(job):
    assert adopt_training(job).best_epoch == 2
    assert is_published(job)
    assert adopt_training(job) is not None  # every process of a training comes to the same end, whoever is first


def test_a_process_that_is_not_the_first_writes_nothing(job):
    assert adopt_training(job, is_first=False) is not None
    assert not job.files.plot("loss").exists()


def test_what_dvc_deletes_before_a_stage_is_found_by_the_links_of_the_settings_stage(job):
    save_links(job.root, job.root)
    shutil.rmtree(job.root / "runs")
    assert adopt_training(job) is not None and is_published(job)


def test_without_them_it_is_found_in_the_cache_by_dvc_lock(job):
    texts = {path: (job.root / path).read_text() for path in (*FILES, f"runs/demo/{ROW}/recipe.json")}
    for text in texts.values():
        cached = cache_folder(job.root) / md5(text)[:2] / md5(text)[2:]
        cached.parent.mkdir(parents=True, exist_ok=True)
        cached.write_text(text)
    outs = [{"path": path, "md5": md5(text)} for path, text in texts.items()]
    (job.root / "dvc.lock").write_text(yaml.safe_dump({"stages": {f"train@{ROW}": {"outs": outs}}}))
    shutil.rmtree(job.root / "runs")
    shutil.rmtree(job.root / "metrics")
    assert adopt_training(job) is not None and is_published(job)


def test_a_training_by_another_recipe_is_not_adopted(job):
    recipe = dataclasses.replace(job.recipe, optim=dataclasses.replace(job.recipe.optim, lr=0.5))
    assert adopt_training(dataclasses.replace(job, recipe=recipe)) is None


@pytest.mark.parametrize("path", FILES)
def test_a_training_with_a_damaged_file_is_not_adopted(job, path):
    (job.root / path).write_text("damaged")
    assert adopt_training(job) is None


def test_with_names_of_shards_without_a_key_it_is_the_manifest_of_before(job, tmp_path):
    assert any(clip.shard != without_key(clip.shard) for clip in job.manifest)
    old = [dataclasses.replace(clip, shard=without_key(clip.shard)) for clip in job.manifest]
    write_manifest(tmp_path / "old.csv", old)
    assert old_manifest_sha256(job) == sha256_of(tmp_path / "old.csv") != job.manifest.sha256


def test_what_was_taken_over_is_deleted_and_nothing_else(job):
    evaluated = job.root / f"metrics/demo/{ROW}.json"
    evaluated.write_text("{}")
    save_links(job.root, job.root)
    remove_links(job.root, job.root, "demo", [ROW])
    assert (job.root / f"metrics/demo/{ROW}.train.csv").exists()
    adopt_training(job)
    remove_links(job.root, job.root, "demo", [ROW])
    assert not (job.root / f"metrics/demo/{ROW}.train.csv").exists() and evaluated.exists()
    assert is_published(job)
    RunFiles(job.root, "demo", ROW).metrics("evaluate").parent.mkdir(parents=True)
    RunFiles(job.root, "demo", ROW).metrics("evaluate").write_text("{}")
    remove_links(job.root, job.root, "demo", [ROW])
    assert not evaluated.exists() and not (job.root / ".scratch/before").exists()
