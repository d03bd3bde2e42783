"""actionzoo evaluate: one's own and published checkpoints, MMAction2's words, and what is refused."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from actionzoo.engine.checkpoint import save_checkpoint, trained_weights
from actionzoo.engine.views import read_views
from actionzoo.errors import UserError
from actionzoo.job import Job
from actionzoo.jobs.evaluate import evaluate
from actionzoo.jobs.evaluate_checkpoint import Wanted, evaluate_checkpoint
from actionzoo.jobs.train import train
from actionzoo.kinetics.labels import kinetics400
from actionzoo.kinetics.manifest import label_map, read_manifest
from actionzoo.recipe import as_dict
from actionzoo.run_files import RunFiles
from actionzoo.weights.checkpoints import open_trained
from actionzoo.weights.load import import_weights
from actionzoo.weights.publish import publish_run
from actionzoo.zoo import build_model
from tests.small_run import write_run
from tests.tiny_network import PROJECT, ROW, tiny_params, val_clips, with_manifest

ROW_256 = "slowfast_r50_256p_8x8x1_256e_kinetics400_rgb"


@pytest.fixture
def root(tiny_project):
    return tiny_project


def evaluated(params, model: str, source: str, root: Path, **wanted) -> str:
    return evaluate_checkpoint(params, model, source, Wanted(**wanted), root)


@pytest.fixture(scope="module")
def best(tmp_path_factory) -> Path:
    """A checkpoint as a training leaves it, of random weights."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("run") / "best.pth"
    save_checkpoint(path, trained_weights(build_model(tiny_params().recipes[ROW].model, 4), 2, 0.5))
    return path


@pytest.mark.slow
def test_a_checkpoint_is_tested_as_mmaction2s_users_know_it(root, best):
    """The very command of the published pages, after `actionzoo`."""
    params = yaml.safe_load((PROJECT / "params.yaml").read_text())
    params["runtime"] |= {"device": "cpu", "workers": 1}
    (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    shutil.copy(PROJECT / "published.yaml", root)
    command = f"test {ROW} {best} --eval top_k_accuracy mean_class_accuracy --out result.json --average-clips prob"
    done = subprocess.run(
        [sys.executable, "-m", "actionzoo.cli", *command.split()], cwd=root, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    made = json.loads((root / "result.json").read_text())
    metrics = made["metrics"]
    assert [line for line in done.stdout.splitlines() if line.split(":")[0].endswith(("_acc", "_accuracy"))] == [
        f"top1_acc: {metrics['top1']:.4f}",
        f"top5_acc: {metrics['top5']:.4f}",
        f"mean_class_accuracy: {metrics['mean_class']:.4f}",
    ]
    usable = [clip.video_id for clip in val_clips(root) if clip.is_usable]
    assert list(made["clips"]) == usable and made["average_clips"] == "prob"
    assert (
        f"{len(usable)} of {metrics['listed']} listed clips" in done.stdout and "scores in result.json" in done.stdout
    )
    assert not list((root / ".scratch/evaluate/demo" / ROW).iterdir())


def test_the_plain_list_is_in_the_order_of_a_list_of_clips_and_says_what_it_lacks(root, best):
    said = evaluated(tiny_params(), ROW, str(best), root, out=root / "plain.json", is_plain=True)
    evaluated(tiny_params(), ROW, str(best), root, out=root / "result.json")
    clips = json.loads((root / "result.json").read_text())["clips"]
    plain = json.loads((root / "plain.json").read_text())
    assert plain == [clip["scores"] for clip in clips.values()]
    text = (root / "plain.json").read_text()
    assert text == json.dumps(plain)  # one line, as MMAction2 writes it
    lines = [line.split() for line in (root / "plain.txt").read_text().splitlines()]
    assert [(name, int(label)) for name, _, label in lines] == [(name, clip["label"]) for name, clip in clips.items()]
    gone = [clip for clip in val_clips(root) if clip.is_listed and not clip.is_usable]
    assert gone and all(f"  {clip.video_id}: {clip.state}" in said for clip in gone)


def test_other_k_are_measured_where_they_are_asked_for(root, best):
    said = evaluated(tiny_params(), ROW, str(best), root, measures=["top_k_accuracy"], topk=[2, 4])
    first, second, third = said.splitlines()
    assert first.startswith("top2_acc: 0.") and second == "top4_acc: 1.0000" and third.startswith("evaluate: ")
    assert "mean_class_accuracy" not in said


def test_no_average_writes_every_view_and_measures_nothing(root, best):
    with pytest.raises(UserError, match=r"--eval needs one score .* prob or score"):
        evaluated(tiny_params(), ROW, str(best), root, average_clips="none", measures=["top_k_accuracy"])
    with pytest.raises(UserError, match="name a file for the scores"):
        evaluated(tiny_params(), ROW, str(best), root, average_clips="none")
    said = evaluated(
        tiny_params(), ROW, str(best), root, average_clips="none", out=root / "p.json", is_plain=True, views=root / "v"
    )
    assert "_acc" not in said
    views = read_views(root / "v")
    assert json.loads((root / "p.json").read_text()) == views.logits.flatten(0, 1).tolist()


def test_results_in_another_format_are_refused_before_hours_go_by(root, best):
    with pytest.raises(UserError, match=r"result.pkl does not end in \.json"):
        evaluated(tiny_params(), ROW, str(best), root, out=root / "result.pkl")


def test_a_run_of_other_classes_is_refused(root, best, tmp_path):
    other = tmp_path / "best.pth"
    other.symlink_to(best)
    (tmp_path / "recipe.json").write_text(json.dumps({"classes": ["yoga", "zumba", "welding", "waxing legs"]}))
    with pytest.raises(UserError, match=r"best.pth cannot be evaluated on this data set: 4 of 4 classes"):
        evaluated(tiny_params(), ROW, str(other), root)


@pytest.mark.slow
def test_a_published_checkpoint_is_tested_as_the_network_it_was_trained_as_on_its_classes(root, tmp_path):
    """The published 8x8 of short side 256 has other laterals than its recipe; its 400 classes hold the four here."""
    params = tiny_params()
    recipe = params.recipes[ROW_256]
    model = build_model(dataclasses.replace(recipe.model, fusion_kernel=5), 400)
    with torch.no_grad():
        model.cls_head.fc_cls.weight.zero_()
        model.cls_head.fc_cls.bias.zero_()[kinetics400().index("climbing a rope")] = 1
    path = tmp_path / "slowfast_published.pth"
    torch.save({"meta": {}, "state_dict": model.state_dict()}, path)
    # the clips at hand are videos
    recipe = dataclasses.replace(recipe, clips=dataclasses.replace(recipe.clips, form="videos"))
    params.recipes[ROW_256] = recipe
    published = params.published[ROW_256]
    with pytest.raises(UserError, match="fusion_kernel to 5"):
        evaluated(params, ROW_256, str(path), root)

    published = dataclasses.replace(published, ckpt=f"https://example.org/{path.name}")
    params = dataclasses.replace(params, published={**params.published, ROW_256: published})
    said = evaluated(params, ROW_256, str(path), root, out=root / "result.json")
    made = json.loads((root / "result.json").read_text())
    classes = label_map(read_manifest(root / "data/demo/videos_256/manifest.csv"))
    ropes = sum(clip.class_name == "climbing a rope" for clip in val_clips(root) if clip.is_usable)
    assert made["metrics"]["top1"] == ropes / made["metrics"]["clips"] > 0 and "top1_acc: " in said
    assert made["classes"] == kinetics400()
    labels = {made["classes"][clip["label"]] for clip in made["clips"].values()}
    assert labels == {clip.class_name for clip in val_clips(root) if clip.is_usable} <= set(classes)


# What predict refuses is refused


OTHER = "ircsn_bnfrozen_r50_32x2x1_180e_kinetics400_rgb"


def written(path: Path, meta: dict, *, num_classes: int = 4, change=lambda state: None) -> Path:
    """A checkpoint of ROW's network that says of itself what `meta` says."""
    torch.manual_seed(0)
    state = dict(build_model(tiny_params().recipes[ROW].model, num_classes).state_dict())
    change(state)
    path.parent.mkdir(exist_ok=True)
    torch.save({"meta": meta, "state_dict": state}, path)
    return path


def own_recipe(row: str = ROW, **clips) -> dict:
    """The demo's recipe of a row with other clips, as a checkpoint carries it."""
    recipe = as_dict(tiny_params().recipe(row))
    return recipe | {"clips": recipe["clips"] | clips}


def refusal(root: Path, source: str | Path, row: str = ROW) -> str:
    with pytest.raises(UserError) as error:
        evaluated(tiny_params(), row, str(source), root)
    return str(error.value)


def test_a_randomly_drawn_classifier_is_not_tested(root, tmp_path):
    path = written(tmp_path / "a" / "any.pth", {"row": ROW, "head": "fresh, for 4 classes: the file's has 400"})
    assert "has a classifier that was drawn at random" in refusal(root, path)
    again, report = import_weights(ROW, path, params=tiny_params(), out=tmp_path / "b" / "again.pth")
    assert report.head == "loaded" and "drawn at random" in refusal(root, again)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["recipe", "meta", "published name", "name", "config"])
def test_a_file_of_another_model_is_not_tested_under_this_ones_name(root, tmp_path, how):
    name, meta = "any.pth", {}
    if how == "recipe":
        meta = {"row": OTHER, "recipe": own_recipe(OTHER, clip_len=64)}
    elif how == "meta":
        meta = {"row": OTHER}
    elif how == "published name":
        name = tiny_params().published[OTHER].ckpt.rsplit("/", 1)[-1].rpartition("-")[0] + ".pth"
    elif how == "name":
        name = f"{OTHER}_20250101.pth"
    else:
        meta = {"config_name": f"{OTHER}.py"}
    path = written(tmp_path / "other" / name, meta)
    assert f"is of {OTHER}, not of {ROW}" in refusal(root, path)
    with pytest.raises(UserError, match=f"is of {OTHER}, not of {ROW}"):
        open_trained(path, params=tiny_params(), model=ROW)


def test_a_file_with_a_recipe_of_its_own_is_tested_with_its_settings_and_says_so(root, tmp_path, capsys):
    recipe = own_recipe(clip_len=8)
    recipe["augment"] |= {"mean": [0.0, 0.0, 0.0], "std": [255.0, 255.0, 255.0]}
    recipe["test"] |= {"num_clips": 1, "crop_size": 36}
    path = written(tmp_path / "own" / "own.pth", {"row": ROW, "recipe": recipe})
    evaluated(tiny_params(), ROW, str(path), root, out=root / "result.json", views=root / "v.safetensors")
    made = json.loads((root / "result.json").read_text())
    assert made["settings"] == [
        "clips.clip_len: 32 -> 8",
        "augment.mean: (123.675, 116.28, 103.53) -> (0.0, 0.0, 0.0)",
        "augment.std: (58.395, 57.12, 57.375) -> (255.0, 255.0, 255.0)",
        "test.num_clips: 2 -> 1",
        "test.crop_size: 44 -> 36",
    ]
    assert "clips.clip_len: 32 -> 8" in capsys.readouterr().out and made["protocol"] == "1x1"
    assert read_views(root / "v.safetensors").num_views == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_not_tested(root, tmp_path, value):
    def change(state):
        state["cls_head.fc_cls.bias"] = torch.full((4,), value)

    path = written(tmp_path / "nan" / "any.pth", {}, change=change)
    assert "weights that are no numbers (NaN or infinite), in 1: cls_head.fc_cls.bias" in refusal(root, path)


@pytest.mark.slow
def test_another_number_of_classes_or_none_is_refused(root, tmp_path):
    path = written(tmp_path / "five" / "any.pth", {}, num_classes=5)
    assert "has 5 classes and does not name them, and the data set has 4" in refusal(root, path)
    path = written(tmp_path / "five" / "named.pth", {"classes": ["a", "b", "c"]}, num_classes=5)
    assert "names 3 classes, the network has 5" in refusal(root, path)
    path = written(tmp_path / "none" / "any.pth", {}, change=lambda state: state.pop("cls_head.fc_cls.weight"))
    assert "has no classifier" in refusal(root, path)


@pytest.mark.slow
def test_whatever_predict_knows_by_a_name_is_tested(root, tmp_path):
    params = tiny_params()
    torch.manual_seed(0)
    files = RunFiles(root, params.name, ROW)
    classes = label_map(read_manifest(root / "data/demo/videos_256/manifest.csv"))
    write_run(params, files, build_model(params.recipe(ROW).model, len(classes)), classes)
    said = {evaluated(params, ROW, str(name), root) for name in (ROW, files.run, files.best)}
    assert len(said) == 1 and "top1_acc: " in said.pop()


def test_a_rotten_checkpoint_is_refused_by_every_door(root):
    params, files = tiny_params(), RunFiles(root, "demo", ROW)
    write_run(params, files, build_model(params.recipe(ROW).model, 4), ["a", "b", "c", "d"])
    data = bytearray(files.best.read_bytes())
    data[len(data) // 2] ^= 16
    files.best.write_bytes(data)
    for door in (
        lambda: evaluated(params, ROW, str(files.best), root),
        lambda: open_trained(files.run, params=params),
        lambda: publish_run(files.run),
        lambda: evaluate(Job.of(params, ROW, root)),
    ):
        with pytest.raises(UserError, match=r"best\.pth is not the file that .*recipe\.json vouches for"):
            door()
    files.recipe.write_text("{")
    with pytest.raises(UserError, match=r"recipe\.json is damaged, it is no JSON"):
        evaluated(params, ROW, str(files.best), root)


def saved_state(path: Path, row: str = ROW) -> Path:
    """A saved state of a training, as far as a test looks at it."""
    torch.manual_seed(0)
    model = build_model(tiny_params().recipes[ROW].model, 4)
    save_checkpoint(path, {"about": {"row": row, "recipe": own_recipe(row)}, "model": model.state_dict(), "state": {}})
    return path


def test_a_saved_state_says_of_which_model_it_is(root, tmp_path):
    said = evaluated(tiny_params(), ROW, str(saved_state(tmp_path / "state-00001-0000010.pth")), root)
    assert "top1_acc: " in said
    assert f"is of {OTHER}, not of {ROW}" in refusal(root, saved_state(tmp_path / "state-2.pth", OTHER))


@pytest.mark.parametrize("name", ["state-00001-0000010.pth", "state.safetensors"])
def test_a_damaged_state_is_not_resumed(root, tmp_path, name):
    path = saved_state(tmp_path / "states" / name)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    for content, said in ((bytes(data), "is damaged"), (b"", "damaged"), (b'\x10\0\0\0\0\0\0\0{"a":1}', "damaged")):
        path.write_bytes(content)
        params = tiny_params().changed(ROW, optim={"videos_per_gpu": 2})
        with pytest.raises(UserError, match=said):
            train(Job.of(params, ROW, with_training_clips(root), tmp_path / "work"), resume=path)


def with_training_clips(root: Path) -> Path:
    """Half of the val clips as training clips."""
    ids = {clip.video_id for clip in val_clips(root)[::2]}
    return with_manifest(root, lambda clip: dataclasses.replace(clip, split="train") if clip.video_id in ids else clip)
