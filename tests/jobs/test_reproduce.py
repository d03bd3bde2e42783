"""Measured beside published: what may be compared, and what comes of it."""

import dataclasses
import functools
import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch

from actionzoo.engine.checkpoint import save_checkpoint
from actionzoo.errors import UserError
from actionzoo.job import Job
from actionzoo.jobs.adopt import old_manifest_sha256
from actionzoo.jobs.reproduce import reproduce
from actionzoo.kinetics.labels import kinetics400, map_labels
from actionzoo.kinetics.serve import serve
from actionzoo.params import load_params
from actionzoo.params.settings import PublishedLists
from actionzoo.records import TestResult
from actionzoo.run_files import ReproductionFiles
from actionzoo.zoo import build_model
from tests.kinetics.files import contents
from tests.tiny_network import tiny_params, val_clips

PROJECT = Path(__file__).resolve().parents[2]
ROW = "ircsn_ig65m_pretrained_bnfrozen_r152_32x2x1_58e_kinetics400_rgb"


@pytest.fixture
def params(monkeypatch):
    monkeypatch.delenv("ACTIONZOO_SOURCE", raising=False)
    return load_params(PROJECT / "params.yaml")


def test_each_published_file_has_its_number(params):
    published = {model: entry.released for model, entry in params.published.items()}
    assert {kind: found[1:] for kind, found in published[ROW].items()} == {
        "ckpt": (82.76, 95.68),
        "infer_ckpt": (82.6, 95.3),
    }
    corrected = published["slowfast_r50_video_4x16x1_256e_kinetics400_rgb"]
    assert [found[1:] for found in corrected.values()] == [(73.95, 91.5)]
    assert all(published.values())


def test_the_label_map_is_that_of_the_published_weights():
    text = "".join(f"{name}\n" for name in kinetics400())
    assert hashlib.md5(text.encode()).hexdigest() == "41a47d45938e2f6e4f3eac44b26376e5"
    assert kinetics400() == sorted(kinetics400())


def test_classes_are_found_however_they_are_spelt():
    known = kinetics400()
    assert [known[i] for i in map_labels(["massaging_persons_head", "hurling (sport)"], known)] == [
        "massaging person's head",
        "hurling (sport)",
    ]
    with pytest.raises(UserError, match=r"1 of 2 classes .* 'walking a snail'"):
        map_labels(["yoga", "walking a snail"], known)


@pytest.mark.slow
def test_published_weights_are_tested_on_exactly_the_published_list(params, tiny_project):
    """End to end: a published file, a list and its label map, all behind URLs."""
    row = "slowfast_r50_video_4x16x1_256e_kinetics400_rgb"
    root, clips = tiny_project, val_clips(tiny_project)
    usable = [clip for clip in clips if clip.is_usable]
    kept, gone = usable[:-1], next(clip for clip in clips if clip.is_listed and not clip.is_usable)
    names = kinetics400()
    lines = [
        f"{clip.class_name}/{clip.video_id}.mp4 {clip.num_frames + (clip is kept[0])} {names.index(clip.class_name)}"
        for clip in kept
    ]
    site = root / "site"
    site.mkdir()
    (site / "list.txt").write_text("".join(f"{line}\r\n" for line in [*lines, f"{gone.video_id} 300 0"]))
    (site / "map.txt").write_text("".join(f"{number} {name}\n" for number, name in enumerate(names)))
    torch.manual_seed(0)
    save_checkpoint(site / "file.pth", {"state_dict": build_model(params.recipes[row].model, 400).state_dict()})
    with serve(site) as url:
        published = dataclasses.replace(params.published[row], ckpt=f"{url}/file.pth")
        lists = {"val": PublishedLists(list=f"{url}/list.txt", label_map=f"{url}/map.txt")}
        here = dataclasses.replace(
            tiny_params(),
            dataset=dataclasses.replace(params.dataset, published_lists=lists),
            published={**params.published, row: published},
        )
        said = reproduce(here, row, root)
    assert "different data" in said
    assert json.loads((root / f"reproduction/metrics/demo/{row}/reproduction.json").read_text())["ckpt"]["top1"] >= 0
    made = json.loads((root / f"reproduction/results/demo/{row}/ckpt.json").read_text())
    assert list(made["clips"]) == [clip.video_id for clip in kept]
    found = made["published_list"]
    assert found["sha256"] == hashlib.sha256((site / "list.txt").read_bytes()).hexdigest()
    assert [sentence.split(":")[0] for sentence in found["missing"]] == [gone.video_id]
    assert [sentence.split(":")[0] for sentence in found["other_frames"]] == [kept[0].video_id]
    assert found["other_label"] == []
    metrics = json.loads((root / f"reproduction/results/demo/{row}/reproduction.json").read_text())["ckpt"]
    assert metrics["published_list_sha256"] == found["sha256"]
    assert (metrics["clips"], metrics["listed"], metrics["missing"], metrics["other_frames"]) == (
        len(kept),
        len(kept) + 1,
        1,
        1,
    )


@pytest.fixture
def measured(params, tiny_project, monkeypatch):
    """A model whose published file was evaluated: what reproduces it again, and its files. To measure fails."""
    row = "slowfast_r50_video_4x16x1_256e_kinetics400_rgb"
    file = tiny_project / "file.pth"
    save_checkpoint(file, {"state_dict": build_model(params.recipes[row].model, 400).state_dict()})
    published = {row: dataclasses.replace(params.published[row], ckpt=str(file))}
    here = dataclasses.replace(tiny_params(), published=params.published | published)
    said = reproduce(here, row, tiny_project)

    def fail(*_):
        raise AssertionError("measured again")

    monkeypatch.setattr("actionzoo.jobs.reproduce._measure", fail)
    files = ReproductionFiles(tiny_project, "demo", row)
    return functools.partial(reproduce, here, row, tiny_project), files, said


def test_an_evaluation_that_dvc_has_not_taken_yet_is_published_again(measured):
    again, files, said = measured
    before = contents(files.results)
    shutil.rmtree(files.results)  # as DVC does before it starts the stage again
    assert again() == said and contents(files.results) == before


def test_an_evaluation_that_dvc_has_is_done_again_if_it_is_forced(measured):
    again, files, _ = measured
    for path in files.results.iterdir():
        md5 = hashlib.md5(path.read_bytes()).hexdigest()
        cached = files.project / ".dvc/cache/files/md5" / md5[:2] / md5[2:]
        cached.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, cached)
    with pytest.raises(AssertionError, match="measured again"):
        again()


def test_the_evaluation_that_the_version_before_left_is_taken_over(measured):
    again, files, said = measured
    old = files.root / "released/results/demo" / files.model
    shutil.copytree(files.results, old)
    shutil.rmtree(files.results)
    shutil.rmtree(files.root / ".scratch")
    job = Job.of(again.args[0], files.model, files.root)
    text = (old / "ckpt.json").read_text()
    result = TestResult.read(old / "ckpt.json")
    known = job.old_evaluation_fingerprint(result.checkpoint_md5, manifest_sha256=old_manifest_sha256(job))
    (old / "ckpt.json").write_text(text.replace(result.fingerprint, known))
    assert again() == said


def test_a_model_of_ones_own_leaves_the_outputs_of_its_stage(params, tmp_path):
    name = "slowfast_r50_video_4x16x1_256e_kinetics400_rgb"
    mine = dataclasses.replace(params, recipes=params.recipes | {"mine": params.recipes[name]})
    assert reproduce(mine, "mine", tmp_path).startswith("reproduce: nothing was published for mine (")
    assert json.loads((tmp_path / "reproduction/results/demo/mine/reproduction.json").read_text()) == {}
    assert (tmp_path / "reproduction/results/demo/mine").is_dir()
