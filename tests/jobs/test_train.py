"""A training from prepared clips to its record: real, but for the size of the network."""

import dataclasses
import logging
import shutil

import pytest

from actionzoo.job import Job
from actionzoo.jobs import evaluate as evaluate_module
from actionzoo.jobs import train as train_module
from actionzoo.jobs.adopt import old_manifest_sha256
from actionzoo.records import Circumstances, RunRecord
from actionzoo.weights import provenance
from tests.tiny_network import PROJECT, ROW, TinyNetwork, tiny_params

pytestmark = pytest.mark.usefixtures("one_thread")


class Stop(Exception):
    pass


@pytest.fixture
def job(tiny_data, tmp_path, monkeypatch):
    """Two epochs of a tiny network, whose passes call `job.on_pass`."""
    (tmp_path / "data").symlink_to(tiny_data / "data")
    for name in ("params.yaml", "published.yaml"):
        shutil.copy(PROJECT / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    schedule = {"epochs": 2, "warmup_epochs": 0, "val_interval": 1, "checkpoint_interval": 1}
    made = Job.of(tiny_params().changed(ROW, schedule=schedule), ROW, tmp_path)
    vars(made)["on_pass"] = lambda number: None
    for module in (train_module, evaluate_module):
        monkeypatch.setattr(module, "build_model", lambda *_: TinyNetwork(made.on_pass))
    monkeypatch.setattr(train_module, "freeze", lambda *_: [])
    return made


def interrupted_after_an_epoch(job: Job) -> None:
    def on_pass(number):
        if list(job.files.unfinished.glob("*/state-00001-*.pth")):
            raise Stop

    vars(job)["on_pass"] = on_pass
    with pytest.raises(Stop):
        train_module.train(job)
    vars(job)["on_pass"] = lambda number: None


def with_other_versions(monkeypatch) -> None:
    """From now on, an actionzoo 9 is installed."""
    monkeypatch.setattr(provenance.importlib.metadata, "version", lambda name: "9")


def test_the_record_says_how_the_training_ran_and_its_fingerprint_does_not(job):
    train_module.train(job)
    record = RunRecord.read(job.files.recipe)
    assert record.fingerprint == job.training_fingerprint() and job.is_training_of(record)
    assert record.circumstances == Circumstances(
        device="cpu",
        processes=1,
        nodes=1,
        precision="fp32",
        channels_last=False,
        compile=False,
        deterministic=False,
    )
    assert record.versions == provenance.versions() and record.init_sha256 == ""
    assert (record.batch, record.recipe["optim"]["batch_norm"]) == (8, "local")


def test_a_training_that_goes_on_with_other_versions_says_so(job, monkeypatch, capsys):
    interrupted_after_an_epoch(job)
    capsys.readouterr()
    with_other_versions(monkeypatch)
    train_module.train(job)
    said = capsys.readouterr().out
    assert "resuming an interrupted training after epoch 1" in said
    assert f"DVC does not see that {ROW} was trained with actionzoo" in said
    assert f"to train it anew, delete {job.files.scratch(job.resume_key())} and run `dvc repro -f train@{ROW}`" in said
    assert RunRecord.read(job.files.recipe).versions == {"actionzoo": "9", "torch": "9"}


def test_an_unfinished_training_of_version_0_1_goes_on(job, capsys):
    """Its folder is named by the same formula, with the hash that the manifest had then."""
    interrupted_after_an_epoch(job)
    before = job.files.scratch(job.resume_key(1, old_manifest_sha256(job)))
    if before != job.files.scratch(job.resume_key()):
        job.files.scratch(job.resume_key()).rename(before)
    train_module.train(job)
    assert "resuming an interrupted training after epoch 1" in capsys.readouterr().out


def test_an_evaluation_of_a_checkpoint_by_other_versions_says_so(job, monkeypatch, caplog):
    train_module.train(job)
    with caplog.at_level(logging.WARNING, "actionzoo.jobs.evaluate"):
        evaluate_module.evaluate(job)
    assert [message for message in caplog.messages if "DVC does not see" in message] == []
    record = RunRecord.read(job.files.recipe)
    dataclasses.replace(record, versions={"actionzoo": "0.0.9"}).write(job.files.recipe)
    with caplog.at_level(logging.WARNING, "actionzoo.jobs.evaluate"):
        evaluate_module.evaluate(job)
    (said,) = [message for message in caplog.messages if "DVC does not see" in message]
    assert f"{ROW} was trained with actionzoo 0.0.9" in said and f"`dvc repro -f train@{ROW}`" in said
