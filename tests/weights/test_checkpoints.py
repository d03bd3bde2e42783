"""One name, and everything that the network's use needs; or a sentence on what is missing."""

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch

from actionzoo.engine.checkpoint import save_checkpoint, trained_weights
from actionzoo.errors import UserError
from actionzoo.kinetics.labels import kinetics400
from actionzoo.records import RunRecord
from actionzoo.run_files import RunFiles
from actionzoo.weights.checkpoints import open_trained
from actionzoo.weights.load import import_weights
from actionzoo.weights.publish import publish_run
from actionzoo.zoo import build_model
from tests.small_run import write_result, write_run

PROJECT = Path(__file__).resolve().parents[2]
ROW = "ircsn_bnfrozen_r50_32x2x1_180e_kinetics400_rgb"
FIVE = "slowfast_r50_256p_8x8x1_256e_kinetics400_rgb"
CLASSES = ["abseiling", "massaging person's head", "naïve (dance)"]


@pytest.fixture(scope="module")
def root(params, tmp_path_factory) -> Path:
    """A project with a tested run."""
    root = tmp_path_factory.mktemp("project")
    files, recipe = RunFiles(root, params.name, ROW), params.recipe(ROW)
    torch.manual_seed(1)
    write_run(params, files, build_model(recipe.model, len(CLASSES)), CLASSES)
    write_result(files, {"top1": 0.5, "clips": 8, "epoch": 3}, RunRecord.read(files.recipe).files["best.pth"].md5)
    yield root
    shutil.rmtree(root)


@pytest.fixture(autouse=True)
def swept(tmp_path):
    yield
    shutil.rmtree(tmp_path, ignore_errors=True)


def same_weights(one, other) -> bool:
    theirs = other.network.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in one.network.state_dict().items())


def test_a_row_is_its_run_with_the_runs_classes_and_sizes(params, root):
    trained = open_trained(ROW, params=params, root=root)
    assert trained.model_name == ROW and trained.classes == CLASSES and not trained.network.training
    used = params.recipe(ROW)
    assert trained.test_spec.crop_size == used.test.crop_size != params.recipes[ROW].test.crop_size
    assert (trained.test_spec.clip_len, trained.test_spec.frame_interval) == (32, 2)
    assert trained.test_spec.mean == used.augment.mean and trained.test_spec.form == "frames"


def test_folder_checkpoint_and_published_files_are_the_same_network(params, root, tmp_path):
    known = open_trained(ROW, params=params, root=root)
    run = root / "runs" / "demo" / ROW
    for name in (run, run / "best.pth", *publish_run(run, tmp_path)):
        trained = open_trained(name, params=params)
        assert (trained.model_name, trained.classes, trained.test_spec) == (
            known.model_name,
            known.classes,
            known.test_spec,
        )
        assert same_weights(trained, known)


def test_the_sizes_are_those_of_the_run_also_where_params_changed_since(params, root):
    later = params.changed(ROW, test={"crop_size": 40, "num_clips": 7})
    assert open_trained(ROW, params=later, root=root).test_spec == open_trained(ROW, params=params, root=root).test_spec


def test_a_row_that_is_neither_trained_nor_imported_says_how_to_get_it(params, tmp_path):
    with pytest.raises(UserError, match=f"`dvc repro train@{ROW}` trains the model, `actionzoo weights {ROW}` f"):
        open_trained(ROW, params=params, root=tmp_path)


def test_a_mistyped_row_is_told_the_near_one(params):
    with pytest.raises(UserError, match=f"did you mean {ROW}"):
        open_trained(ROW[:-1], params=params)


def test_a_checkpoint_that_is_not_the_recipes_is_refused(params, root, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(root / "runs" / "demo" / ROW, run)
    save_checkpoint(run / "best.pth", trained_weights(build_model(params.recipe(ROW).model, 3), 1, 0.1))
    with pytest.raises(UserError, match=r"is not the file that .*recipe\.json vouches for"):
        open_trained(run, params=params)


def test_a_checkpoint_alone_does_not_say_of_which_row_it_is(params, root, tmp_path):
    shutil.copy(root / "runs" / "demo" / ROW / "best.pth", tmp_path / "some.pth")
    with pytest.raises(UserError, match=rf"says of which model it is; say so with --model\. Its tensors fit {ROW}"):
        open_trained(tmp_path / "some.pth", params=params)
    with pytest.raises(UserError, match=r"does not name its 3 classes; .*--classes FILE"):
        open_trained(tmp_path / "some.pth", params=params, model=ROW)
    names = tmp_path / "names.txt"
    names.write_text("".join(f"{name}\n" for name in CLASSES))
    trained = open_trained(tmp_path / "some.pth", params=params, model=ROW, classes=names)
    assert trained.classes == CLASSES and trained.test_spec.crop_size == params.recipes[ROW].test.crop_size
    names.write_text("one\ntwo\n")
    with pytest.raises(UserError, match="names 2 classes, the network has 3"):
        open_trained(tmp_path / "some.pth", params=params, model=ROW, classes=names)


def test_a_run_of_one_row_is_no_other(params, root):
    with pytest.raises(UserError, match=f"is of {ROW}, not of {FIVE}"):
        open_trained(root / "runs" / "demo" / ROW, params=params, model=FIVE)


def published(folder: Path, name: str, model) -> Path:
    """A file as OpenMMLab publishes them."""
    path = folder / "new.pth"
    torch.save({"meta": {"mmaction_version": "0.6.0"}, "state_dict": model.state_dict()}, path)
    return path.rename(folder / f"{name}-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}.pth")


def test_a_published_file_is_known_by_its_name_and_knows_kinetics_classes(params, tmp_path):
    path = published(tmp_path, f"{ROW}_20210618", build_model(params.recipes[ROW].model, 400))
    trained = open_trained(path, params=params)
    assert trained.model_name == ROW and trained.classes == kinetics400()
    assert trained.test_spec.crop_size == params.recipes[ROW].test.crop_size == 256  # not the demo's


def test_imported_weights_serve_where_there_is_no_run(params, tmp_path):
    path = published(tmp_path, "theirs", build_model(params.recipes[ROW].model, 400))
    import_weights(ROW, path, params=params, cache=tmp_path / "weights")
    assert open_trained(ROW, params=params, root=tmp_path).classes == kinetics400()


def test_a_classifier_drawn_at_random_is_refused(params, tmp_path):
    path = published(tmp_path, "theirs", build_model(params.recipes[ROW].model, 400))
    import_weights(ROW, path, params=params, cache=tmp_path / "weights", num_classes=3)
    with pytest.raises(UserError, match="a classifier that was drawn at random"):
        open_trained(ROW, params=params, root=tmp_path)


def test_the_one_published_file_with_another_kernel_is_opened_as_it_was_trained(params, tmp_path):
    recipe = params.recipes[FIVE]
    published_there = params.published[FIVE]
    assert published_there.ckpt_model == {"fusion_kernel": 5} != {"fusion_kernel": recipe.model.fusion_kernel}
    model = build_model(dataclasses.replace(recipe.model, fusion_kernel=5), 400)
    path = published(tmp_path, "slowfast_r50_256p_8x8x1_256e_kinetics400_rgb_20200810", model)
    here = dataclasses.replace(published_there, ckpt=f"https://x.y/{path.name}")
    params = dataclasses.replace(params, published={**params.published, FIVE: here})
    assert open_trained(path, params=params).network.backbone.slow_path.conv1_lateral.conv.kernel_size[0] == 5


def test_a_pickle_that_runs_code_is_not_run(params, tmp_path):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    torch.save({"state_dict": {}, "meta": Evil()}, tmp_path / f"{ROW}.pth")
    with pytest.raises(UserError, match="was not loaded"):
        open_trained(tmp_path / f"{ROW}.pth", params=params)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("recipe", [{}, {"clips": {}, "augment": {}, "test": {}}, {"clips": 3}])
def test_a_recipe_with_holes_is_told_and_not_guessed(params, root, tmp_path, recipe):
    run = tmp_path / "run"
    shutil.copytree(root / "runs" / "demo" / ROW, run)
    made = json.loads((run / "recipe.json").read_text())
    (run / "recipe.json").write_text(json.dumps(made | {"recipe": recipe}))
    with pytest.raises(UserError, match="recipe"):
        open_trained(run, params=params)
