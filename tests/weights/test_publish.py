"""Weights out: a run's two files for others."""

import dataclasses
import hashlib
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from actionzoo.engine.checkpoint import load_checkpoint, save_checkpoint, trained_weights
from actionzoo.errors import UserError
from actionzoo.files.hashes import md5_of
from actionzoo.params import load_params
from actionzoo.recipe import as_dict
from actionzoo.records import RunRecord
from actionzoo.run_files import RunFiles
from actionzoo.tracking.registry import fetch_registered
from actionzoo.tracking.store import tracking_uri
from actionzoo.weights.checkpoints import open_trained
from actionzoo.weights.load import load_weights
from actionzoo.weights.publish import publish_run, register_run
from actionzoo.zoo import build_model
from tests.small_run import write_result

PROJECT = Path(__file__).resolve().parents[2]
ROW = "ircsn_bnfrozen_r50_32x2x1_180e_kinetics400_rgb"
CLASSES = ["abseiling", "answering questions", "massaging person's head", "naïve (dance)"]
METRICS = {"top1": 0.75, "top5": 1.0, "mean_class": 0.75, "clips": 16, "epoch": 3, "protocol": "10x3"}


def network():
    return build_model(load_params(PROJECT / "params.yaml").recipes[ROW].model, len(CLASSES))


@pytest.fixture(autouse=True)
def swept(tmp_path):
    """Some files weigh 140 MB: none outlives its test."""
    yield
    shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(5)
    return network()


@pytest.fixture
def files(tmp_path, trained) -> RunFiles:
    """A trained and tested run's files."""
    files = RunFiles(tmp_path, "demo", ROW)
    save_checkpoint(files.best, trained_weights(trained, 3, 0.75))
    made = {
        "row": ROW,
        "dataset": "demo",
        "recipe": as_dict(load_params(PROJECT / "params.yaml").recipes[ROW]),
        "overrides": [],
        "classes": CLASSES,
        "manifest_sha256": "ab" * 32,
        "files": {"best.pth": {"md5": md5_of(files.best), "size": files.best.stat().st_size}},
    }
    files.recipe.write_text(json.dumps(made))
    write_result(files, METRICS, md5_of(files.best))
    return files


@torch.inference_mode()
def logits(model) -> torch.Tensor:
    return model.eval()(torch.randn(1, 3, 8, 32, 32, generator=torch.Generator().manual_seed(1)))


def test_both_files_load_back_to_the_same_logits(files, trained):
    for path in publish_run(files.run):
        model = network()
        report = load_weights(model, path)
        assert report.kind == "checkpoint of this zoo" and report.head == "loaded"
        assert torch.equal(logits(model), logits(trained))


def test_each_name_carries_the_hash_of_its_files_bytes(files):
    for path, suffix in zip(publish_run(files.run), (".pth", ".safetensors"), strict=True):
        assert path.name == f"{ROW}-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}{suffix}"
        assert path.parent == files.run


def test_published_again_the_files_are_the_same(files, tmp_path):
    first, second = publish_run(files.run, tmp_path / "a"), publish_run(files.run, tmp_path / "b")
    assert [path.name for path in first] == [path.name for path in second]


def test_the_pth_says_what_it_is_and_was_made_of(files):
    pth, _ = publish_run(files.run)
    checkpoint = load_checkpoint(pth)
    meta = checkpoint["meta"]
    assert set(checkpoint) == {"meta", "state_dict"}
    assert (meta["row"], meta["dataset"], meta["epoch"], meta["val_top1"]) == (ROW, "demo", 3, 0.75)
    assert meta["classes"] == CLASSES and meta["manifest_sha256"] == "ab" * 32
    assert METRICS.items() <= meta["metrics"].items()
    assert meta["recipe"]["model"]["depth"] == 50 and set(meta["versions"]) == {"actionzoo", "torch"}


def test_publishing_what_another_version_trained_says_so_and_the_files_name_that_version(files, caplog):
    record = RunRecord.read(files.recipe)
    dataclasses.replace(record, versions={"actionzoo": "0.0.9"}).write(files.recipe)
    pth, _ = publish_run(files.run)
    assert load_checkpoint(pth)["meta"]["versions"] == {"actionzoo": "0.0.9"}
    (said,) = [message for message in caplog.messages if "DVC does not see" in message]
    assert f"{ROW} was trained with actionzoo 0.0.9" in said and f"`dvc repro -f train@{ROW}`" in said


def test_the_safetensors_say_the_same_in_texts(files):
    pth, twin = publish_run(files.run)
    with safe_open(twin, framework="pt") as file:
        texts = file.metadata()
    meta = load_checkpoint(pth)["meta"]
    assert texts.pop("format") == "pt"
    assert {key: text if isinstance(meta[key], str) else json.loads(text) for key, text in texts.items()} == meta


def test_the_safetensors_begin_as_the_format_demands(files):
    _, twin = publish_run(files.run)
    data = twin.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    assert size % 8 == 0 and data[8:9] == b"{"
    ends = [value["data_offsets"][1] for name, value in json.loads(data[8 : 8 + size]).items() if name[0] != "_"]
    assert max(ends) == len(data) - 8 - size


def test_an_optimizer_is_not_published(files, tmp_path, trained):
    save_checkpoint(files.best, trained_weights(trained, 3, 0.75) | {"optimizer": {"state": torch.ones(1000)}})
    made = json.loads(files.recipe.read_text())
    made["files"]["best.pth"]["md5"] = md5_of(files.best)
    files.recipe.write_text(json.dumps(made))
    write_result(files, METRICS, md5_of(files.best))
    assert set(load_checkpoint(publish_run(files.run)[0])) == {"meta", "state_dict"}


def test_an_untested_run_is_not_published(files):
    files.result.unlink()
    with pytest.raises(UserError, match=rf"result\.json is not there; `dvc repro evaluate@{ROW}` makes it"):
        publish_run(files.run)


@pytest.mark.parametrize("stale", ["checkpoint", "epoch"])
def test_the_test_of_another_checkpoint_is_not_published(files, stale):
    if stale == "checkpoint":
        write_result(files, METRICS, "0" * 32)
    else:
        write_result(files, METRICS | {"epoch": 2}, md5_of(files.best))
    with pytest.raises(UserError, match="is of another checkpoint than"):
        publish_run(files.run)


def test_a_best_that_the_recipe_does_not_know_is_not_published(files):
    save_checkpoint(files.best, trained_weights(network(), 9, 0.1))
    with pytest.raises(UserError, match="is not the file that"):
        publish_run(files.run)


def test_an_unfinished_run_is_not_published(files, tmp_path):
    with pytest.raises(UserError, match=r"recipe\.json is not there; a training writes it at its end"):
        publish_run(tmp_path / "runs" / "demo" / "nothing")


def test_the_command_prints_both_paths(files, tmp_path):
    command = [sys.executable, "-m", "actionzoo.cli", "publish", str(files.run), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [Path(line).suffix for line in done.stdout.splitlines()] == [".pth", ".safetensors"]
    assert sorted(done.stdout.splitlines()) == sorted(map(str, (tmp_path / "out").iterdir()))


# in MLflow's registry


@pytest.fixture
def registry(files, monkeypatch):
    """A real store beside the run."""
    import mlflow

    for name in ("MLFLOW_TRACKING_URI", "DVC_ROOT"):
        monkeypatch.delenv(name, raising=False)
    return lambda: mlflow.MlflowClient(tracking_uri(files.root))


@pytest.mark.slow
def test_a_registered_run_is_opened_by_its_address_with_the_very_weights(files, registry, trained):
    address = register_run(files.run, alias="champion")
    assert address == f"models:/{ROW}/1"
    params = load_params(PROJECT / "params.yaml")
    for name in (address, f"models:/{ROW}@champion"):
        opened = open_trained(name, params=params, root=files.root)
        assert opened.classes == CLASSES and opened.file.suffix == ".safetensors"
        assert torch.equal(logits(opened.network), logits(trained))
    version = registry().get_model_version(ROW, "1")
    assert version.tags["dataset"] == "demo" and version.tags["test.top1"] == "0.75"
    assert registry().get_run(version.run_id).data.tags["checkpoint.md5"] == md5_of(files.best)
    assert not [path for path in files.run.iterdir() if path.suffix == ".safetensors" or path.is_dir()]


@pytest.mark.slow
def test_registered_again_the_same_run_stays_one_version_and_a_retrained_one_is_the_next(files, registry):
    assert [register_run(files.run, "mine") for _ in range(2)] == ["models:/mine/1"] * 2
    save_checkpoint(files.best, trained_weights(network(), 3, 0.9))
    made = json.loads(files.recipe.read_text())
    made["files"]["best.pth"]["md5"] = md5_of(files.best)
    files.recipe.write_text(json.dumps(made))
    write_result(files, METRICS, md5_of(files.best))
    assert register_run(files.run, "mine", alias="champion") == "models:/mine/2"
    assert registry().get_model_version_by_alias("mine", "champion").version in (2, "2")


def test_what_is_registered_is_weights_and_no_code(files, registry):
    import mlflow

    register_run(files.run, "mine")
    source = Path(mlflow.artifacts.download_artifacts(registry().get_model_version_download_uri("mine", "1")))
    assert [path.suffix for path in source.iterdir()] == [".safetensors"]


@pytest.mark.slow
def test_what_the_registry_does_not_have_is_told_in_a_sentence(files, registry):
    register_run(files.run, "mine")
    for address, said in {
        "models:/mine/2": "not found",
        "models:/mine@nobody": "nobody",
        "models:/yours/1": "yours",
        "models:/mine": "write models:/NAME/VERSION or models:/NAME@ALIAS",
        "models:/mine/../1": "write models:/NAME/VERSION",
    }.items():
        with pytest.raises(UserError, match=said):
            fetch_registered(address, files.root / "weights", files.root)


def test_without_a_store_nothing_is_registered_and_none_is_made(tmp_path, registry):
    with pytest.raises(UserError, match=r"mlflow\.db is not there, so no model is registered"):
        fetch_registered("models:/mine/1", tmp_path / "weights", tmp_path)
    assert not (tmp_path / "mlflow.db").exists()


@pytest.mark.slow
def test_names_that_mlflow_does_not_take_are_told_in_a_sentence(files, registry):
    for name, alias in [("a/b", None), ("mine", "v1"), ("it's", "latest")]:
        with pytest.raises(UserError, match="MLflow does not accept"):
            register_run(files.run, name, alias)


@pytest.mark.slow
def test_a_version_on_a_server_is_fetched_once(files, registry, trained, tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = tmp_path / "server"
    home.mkdir()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{home}/m.db", "--artifacts-destination", str(home / "files")]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    server = subprocess.Popen(command, cwd=home, env=environment, start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=20).read()
                break
            except OSError:
                assert time.monotonic() < deadline, "the server did not start"
                time.sleep(0.3)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
        address = register_run(files.run, "mine")
        there = tmp_path / "elsewhere"
        opened = open_trained(address, params=load_params(PROJECT / "params.yaml"), root=there)
        assert torch.equal(logits(opened.network), logits(trained)) and opened.file.parent == there / "weights"
        before = opened.file.stat()
        assert fetch_registered(address, there / "weights", there) == opened.file
        assert opened.file.stat().st_ino == before.st_ino
        assert [path.name for path in (there / "weights").iterdir() if path.suffix] == [opened.file.name]
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=30)
