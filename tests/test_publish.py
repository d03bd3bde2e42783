"""Weights out: a run's two files for others."""

import hashlib
import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from actionzoo.engine.checkpoint import load_checkpoint, save_checkpoint, trained_weights
from actionzoo.errors import UserError
from actionzoo.params import as_dict, load_params
from actionzoo.publish import publish_run
from actionzoo.run_files import RowFiles
from actionzoo.tracking import checkpoint_md5
from actionzoo.weights import load_weights
from actionzoo.zoo import build_model

PROJECT = Path(__file__).resolve().parents[1]
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
def files(tmp_path, trained) -> RowFiles:
    """A trained and tested run's files."""
    files = RowFiles(tmp_path, "demo", ROW)
    save_checkpoint(files.best, trained_weights(trained, 3, 0.75))
    made = {
        "row": ROW,
        "dataset": "demo",
        "recipe": as_dict(load_params(PROJECT / "params.yaml").recipes[ROW]),
        "overrides": [],
        "classes": CLASSES,
        "manifest_sha256": "ab" * 32,
        "files": {"best.pth": {"md5": checkpoint_md5(files.best)}},
    }
    files.recipe.write_text(json.dumps(made))
    files.metrics().parent.mkdir(parents=True)
    files.metrics().write_text(json.dumps(METRICS))
    files.result.write_text(json.dumps({"checkpoint_md5": checkpoint_md5(files.best)}))
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
    assert meta["classes"] == CLASSES and meta["manifest_sha256"] == "ab" * 32 and meta["metrics"] == METRICS
    assert meta["recipe"]["model"]["depth"] == 50 and set(meta["versions"]) == {"actionzoo", "torch"}


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
    made["files"]["best.pth"]["md5"] = checkpoint_md5(files.best)
    files.recipe.write_text(json.dumps(made))
    files.result.unlink()
    assert set(load_checkpoint(publish_run(files.run)[0])) == {"meta", "state_dict"}


def test_an_untested_run_is_not_published(files):
    files.metrics().unlink()
    with pytest.raises(UserError, match=rf"{ROW}\.json is not there; `dvc repro evaluate@{ROW}` makes it"):
        publish_run(files.run)


@pytest.mark.parametrize("stale", ["result", "metrics"])
def test_the_test_of_another_checkpoint_is_not_published(files, stale):
    if stale == "result":
        files.result.write_text(json.dumps({"checkpoint_md5": "0" * 32}))
    else:
        files.metrics().write_text(json.dumps(METRICS | {"epoch": 2}))
    with pytest.raises(UserError, match="is of another checkpoint than"):
        publish_run(files.run)


def test_a_best_that_the_recipe_does_not_know_is_not_published(files):
    save_checkpoint(files.best, trained_weights(network(), 9, 0.1))
    with pytest.raises(UserError, match="is not the file that"):
        publish_run(files.run)


def test_an_unfinished_run_is_not_published(files, tmp_path):
    with pytest.raises(UserError, match=r"recipe\.json is not there; it is written when a training ends"):
        publish_run(tmp_path / "runs" / "demo" / "nothing")


def test_the_command_prints_both_paths(files, tmp_path):
    command = [sys.executable, "-m", "actionzoo.cli", "publish", str(files.run), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [Path(line).suffix for line in done.stdout.splitlines()] == [".pth", ".safetensors"]
    assert sorted(done.stdout.splitlines()) == sorted(map(str, (tmp_path / "out").iterdir()))
