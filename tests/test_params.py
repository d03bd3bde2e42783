import dataclasses
import difflib
import logging
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import actionzoo
from actionzoo.errors import UserError
from actionzoo.files.data_folder import DataFolder
from actionzoo.params import Params, find_project, load_params
from actionzoo.params import read as params_module

PROJECT = Path(__file__).resolve().parents[1]
R101 = "slowfast_r101_8x8x1_256e_kinetics400_rgb"
CSN = "ircsn_bnfrozen_r50_32x2x1_180e_kinetics400_rgb"
VIDEO = "slowfast_r50_video_4x16x1_256e_kinetics400_rgb"


@pytest.fixture
def file(tmp_path, monkeypatch):
    for name in ("ACTIONZOO_SOURCE", "ACTIONZOO_DATA"):
        monkeypatch.delenv(name, raising=False)
    for name in ("params.yaml", "published.yaml"):
        shutil.copy(PROJECT / name, tmp_path)
    return tmp_path / "params.yaml"


def changed(file: Path, find: str, put: str) -> Path:
    text = file.read_text()
    assert find in text
    file.write_text(text.replace(find, put))
    return file


@pytest.mark.parametrize(
    ("find", "put", "said"),
    [
        (
            "frame_interval: 2",
            "frame_intervall: 2",
            r"clips\.frame_intervall is unknown; did you mean frame_interval\?",
        ),
        ("weight_decay: 1.0e-4", "weight_decay: 1e-4", r"weight_decay is '1e-4'.*write 1\.0e-4, not 1e-4"),
        ("alpha: 8", "alpha: 8.5", r"model\.alpha is 8\.5"),
        ("      momentum: 0.9\n", "", r"optim\.momentum is missing"),
        ("family: csn", "family: cns", r"model is .*'cns'"),
        ("crf: 21", "crf: 99", r"prepare\.encode\.crf is 99"),
        ("name: demo", "name: dmeo", r"data\.name is 'dmeo'.*did you mean demo"),
        ("test: {num_clips: 2", "test: {num_clip: 2", r"overrides\.slowfast\.test\.num_clip is unknown; did you mean"),
        (
            "crop_size: 44",
            "crop_size: 45",
            r"crops 45 pixels \(test\.crop_size\) out of frames .* 44 \(augment\.resize\)",
        ),
        ("  deterministic", " deterministic", r"params\.yaml is no YAML"),
    ],
)
def test_a_fault_is_told_with_file_key_and_value(file, find, put, said):
    with pytest.raises(UserError, match=rf"(?s)params\.yaml.*{said}" if "YAML" not in said else said):
        load_params(changed(file, find, put))


def test_all_faults_come_in_one_report(file):
    changed(file, "alpha: 8", "alpha: none")
    with pytest.raises(UserError) as caught:
        load_params(changed(file, "crf: 21", "crf: 99"))
    assert "alpha" in str(caught.value) and "crf" in str(caught.value)


def test_a_missing_file_says_where_to_run(tmp_path):
    with pytest.raises(UserError, match="run from the project's folder"):
        load_params(tmp_path / "params.yaml")


def test_a_source_is_all_that_a_data_set_needs(file):
    raw = yaml.safe_load(file.read_text())
    raw["datasets"]["mine"] = {"source": "/some/mirror"}
    raw["data"]["name"] = "mine"
    file.write_text(yaml.safe_dump(raw))
    params = load_params(file)
    assert params.dataset.source == "/some/mirror"
    assert params.overrides(params.models()[0]) == []


def test_the_environment_names_the_source(file, monkeypatch):
    monkeypatch.setenv("ACTIONZOO_SOURCE", "http://127.0.0.1:9")
    assert load_params(file).dataset.source == "http://127.0.0.1:9"


def test_overrides_are_listed_as_what_they_change(file):
    params = load_params(file)
    assert "model.bn_frozen: true -> false" in params.overrides(CSN)
    assert params.recipes[CSN].model.bn_frozen and not params.recipe(CSN).model.bn_frozen


def test_dvc_reads_the_file_alike():
    """DVC's YAML reader is another one, and stricter."""
    from dvc.utils.serialize import parse_yaml

    text = (PROJECT / "params.yaml").read_text()
    assert parse_yaml(text, "params.yaml") == yaml.safe_load(text)


def test_names_of_rows_say_what_the_recipes_hold():
    params = load_params(PROJECT / "params.yaml")
    for row, recipe in params.recipes.items():
        if recipe.model.family == "slowfast":
            slow_frames = recipe.clips.clip_len // recipe.model.alpha
            tau = recipe.model.alpha * recipe.clips.frame_interval
            assert f"_{slow_frames}x{tau}x1_{recipe.schedule.epochs}e_" in row
            assert f"r{recipe.model.slow_depth}" in row
        else:
            clip = f"_{recipe.clips.clip_len}x{recipe.clips.frame_interval}x1_{recipe.schedule.epochs}e_"
            assert clip in row and f"{recipe.model.bottleneck}csn" in row and f"r{recipe.model.depth}" in row


@pytest.mark.slow
def test_the_package_offers_rows_and_networks(monkeypatch):
    monkeypatch.chdir(PROJECT)
    import torch

    assert actionzoo.rows is actionzoo.list_models
    for row in actionzoo.list_models():
        with torch.device("meta"):
            model = actionzoo.create_model(row)
            assert model.eval()(torch.empty(1, 3, 32, 64, 64)).shape == (1, 400)
    with pytest.raises(UserError, match="did you mean slowfast_r50_video"):
        actionzoo.create_model("slowfast_r50_video_4x16x1_256e_kinetics400")


def test_a_published_number_keeps_its_text_in_params():
    params = load_params(PROJECT / "params.yaml")
    for published in (params.published[R101], pickle.loads(pickle.dumps(params.published[R101]))):
        (top1,) = published.top1
        assert str(top1) == f"{top1}" == "77.90" and top1 == 77.9


@pytest.mark.parametrize("written", ['"77,9"', '"1e1"', '"-3"', '"100.1"', "true", '""', '"nan"', "[77.9]", '"٧٧"'])
def test_a_published_number_that_is_none_is_named(file, written):
    changed(file.with_name("published.yaml"), 'top1: ["77.90"]', f"top1: [{written}]")
    with pytest.raises(UserError, match=rf"published\.yaml: {R101}\.top1(\.0)? is .*expected a percentage"):
        load_params(file)


def test_a_published_number_may_stand_without_quotes(file):
    changed(file.with_name("published.yaml"), 'top1: ["77.90"]', "top1: [77.9]")
    assert load_params(file).published[R101].top1 == (77.9,)


# published.yaml


def edited(file: Path, change) -> Path:
    """The YAML file with what `change` does to its values."""
    raw = yaml.safe_load(file.read_text(encoding="utf-8"))
    change(raw)
    file.write_text(yaml.safe_dump(raw, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return file


def test_every_shipped_model_has_a_recipe_and_an_entry_in_published_yaml():
    params = load_params(PROJECT / "params.yaml")
    assert list(params.published) == params.models() and len(params.published) == 17


def test_published_yaml_may_not_be_missing(file):
    file.with_name("published.yaml").unlink()
    with pytest.raises(UserError, match=r"published\.yaml is not there; restore it: git checkout published\.yaml"):
        load_params(file)


def test_a_model_of_ones_own_needs_no_entry_in_published_yaml(file):
    edited(file, lambda raw: raw["recipes"].update(mine=raw["recipes"][CSN]))
    params = load_params(file)
    assert params.published_of("mine") is None and params.published_of(CSN).top1 == (73.6,)
    assert params.recipe("mine").model == params.recipe(CSN).model


def test_an_entry_whose_recipe_was_renamed_is_told_the_new_name(file):
    edited(file, lambda raw: raw["recipes"].update({R101 + "_mine": raw["recipes"].pop(R101)}))
    with pytest.raises(UserError, match=rf"published\.yaml: {R101} has no recipe .*did you mean {R101}_mine\?"):
        load_params(file)


def test_an_entry_whose_recipe_was_deleted_is_passed_over(file):
    edited(file, lambda raw: raw["recipes"].pop(CSN))
    edited(file, lambda raw: raw["datasets"]["demo"].update(demo_recipes=[], overrides={}))
    assert CSN not in load_params(file).published


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"fusion_kernell": 5}, r"ckpt_model\.fusion_kernell is unknown; did you mean fusion_kernel\?"),
        ({"fusion_kernel": "five"}, r"ckpt_model\.fusion_kernel is 'five'"),
    ],
)
def test_a_network_that_cannot_be_built_is_named(file, changes, said):
    edited(file.with_name("published.yaml"), lambda raw: raw[R101].update(ckpt_model=changes))
    with pytest.raises(UserError, match=rf"published\.yaml: {R101}\.{said}"):
        load_params(file)


def test_a_key_of_published_yaml_that_is_misspelt_is_told_the_near_one(file):
    edited(file.with_name("published.yaml"), lambda raw: raw[R101].update(infer_chkpt=None))
    with pytest.raises(UserError, match=rf"{R101}\.infer_chkpt is unknown; did you mean infer_ckpt\?"):
        load_params(file)


def test_a_note_has_two_languages_and_plain_text_is_english(file):
    edited(file.with_name("published.yaml"), lambda raw: raw[R101].update(note="Odd."))
    published = load_params(file).published
    assert (published[R101].note.text("en"), published[R101].note.text("zh")) == ("Odd.", "Odd.")
    assert published[CSN].note.text("en").startswith("Its shipped") and "余弦" in published[CSN].note.text("zh")


@pytest.fixture
def of_the_version_before(file):
    """params.yaml with `published` inside the recipes, a note in plain text, and `tour`."""
    published = yaml.safe_load(file.with_name("published.yaml").read_text(encoding="utf-8"))

    def change(raw):
        raw["datasets"]["demo"]["tour"] = raw["datasets"]["demo"].pop("demo_recipes")
        for model, entry in published.items():
            raw["recipes"][model]["published"] = entry | {"note": entry.get("note", {}).get("en", "")}

    params_module._note.cache_clear()
    return edited(file, change)


@pytest.mark.parametrize("is_there", [True, False])
def test_params_yaml_of_the_version_before_is_read_with_a_note(of_the_version_before, is_there, caplog):
    shipped = load_params(PROJECT / "params.yaml")
    if not is_there:
        of_the_version_before.with_name("published.yaml").unlink()
    with caplog.at_level(logging.WARNING):
        params = load_params(of_the_version_before)
    assert params.recipes == shipped.recipes and params.dataset.demo_recipes == shipped.dataset.demo_recipes
    assert {model: entry.top1 for model, entry in params.published.items()} == {
        model: entry.top1 for model, entry in shipped.published.items()
    }
    moved, renamed = caplog.messages
    assert "its place is published.yaml now" in moved and "datasets.demo.tour is called demo_recipes now" in renamed


def test_what_the_user_changed_in_params_yaml_of_the_version_before_wins(of_the_version_before):
    edited(of_the_version_before, lambda raw: raw["recipes"][R101]["published"].update(top1=["1.5"]))
    assert load_params(of_the_version_before).published[R101].top1 == (1.5,)


def with_batch_norm_in_runtime(file: Path, of_recipes: str | None = None) -> Path:
    def change(raw):
        raw["runtime"]["batch_norm"] = "ghost"
        for recipe in raw["recipes"].values():
            del recipe["optim"]["batch_norm"]
            if of_recipes:
                recipe["optim"]["batch_norm"] = of_recipes

    params_module._note.cache_clear()
    return edited(file, change)


def test_batch_norm_of_the_version_before_applies_to_every_recipe(file, caplog):
    with caplog.at_level(logging.WARNING):
        params = load_params(with_batch_norm_in_runtime(file))
    assert {recipe.optim.batch_norm for recipe in params.recipes.values()} == {"ghost"}
    (note,) = caplog.messages
    assert "runtime.batch_norm is read for the 17 recipes" in note and "recipes.<model>.optim.batch_norm" in note


def test_batch_norm_in_runtime_beside_that_of_the_recipes_is_refused(file):
    with pytest.raises(UserError, match=r"runtime\.batch_norm is not read any more; .*overrides\. Delete the key"):
        load_params(with_batch_norm_in_runtime(file, "local"))


# What data sets share


def test_a_data_set_may_take_the_overrides_of_another_one_and_add_its_own(file):
    own = {"slowfast": {"schedule": {"epochs": 3}}}
    edited(file, lambda raw: raw["datasets"]["mirror"].update(overrides=own))
    edited(file, lambda raw: raw["data"].update(name="mirror"))
    demo = load_params(PROJECT / "params.yaml")
    params = load_params(file)
    assert params.recipe(CSN) == demo.recipe(CSN)
    assert (demo.recipe(VIDEO).schedule.epochs, params.recipe(VIDEO).schedule.epochs) == (6, 3)
    assert params.recipe(VIDEO).augment == demo.recipe(VIDEO).augment


@pytest.mark.parametrize(
    ("other", "said"), [("dmeo", r"'dmeo', which is not under datasets; did you mean demo\?"), ("mirror", "'mirror'")]
)
def test_overrides_of_a_data_set_that_has_none_of_its_own_are_refused(file, other, said):
    edited(file, lambda raw: raw["datasets"]["kinetics400"].update(overrides_of=other))
    with pytest.raises(UserError, match=rf"datasets\.kinetics400\.overrides_of is {said}"):
        load_params(file)


# The file itself


def rewritten(file: Path, *settings: str) -> dict:
    """The file as `dvc exp run --set-param` leaves it, and the values that DVC and we read in it."""
    from dvc.utils.hydra import apply_overrides
    from dvc.utils.serialize import parse_yaml

    apply_overrides(str(file), list(settings))
    text = file.read_text(encoding="utf-8")
    assert parse_yaml(text, file.name) == yaml.safe_load(text)
    return yaml.safe_load(text)


def comments(text: str) -> list[str]:
    return [line.split("#", 1)[1].strip() for line in text.splitlines() if "#" in line]


def test_the_file_survives_dvcs_rewriting_with_its_values_and_comments(file):
    text = file.read_text()
    before, said = yaml.safe_load(text), comments(text)
    for lr in (0.2, 0.4):  # the second time, DVC reads what it wrote
        after = rewritten(file, f"recipes.{VIDEO}.optim.lr={lr}")
        before["recipes"][VIDEO]["optim"]["lr"] = lr
        assert after == before
    assert comments(file.read_text()) == said
    assert load_params(file).recipe(VIDEO).optim.lr == 0.4
    changed = [line for line in difflib.ndiff(text.splitlines(), file.read_text().splitlines()) if line[0] in "+-"]
    assert changed == ["-       lr: 0.1", "+       lr: 0.4"]


def test_every_key_of_a_recipe_is_explained_once():
    keys = {
        f"{section}.{key}" if isinstance(values, dict) else section
        for recipe in yaml.safe_load((PROJECT / "params.yaml").read_text())["recipes"].values()
        for section, values in recipe.items()
        for key in (values if isinstance(values, dict) else [""])
    }
    explained, section = [], ""
    for line in (PROJECT / "params.yaml").read_text().split("\nrecipes:\n")[1].splitlines():
        if match := re.match(r"    (\w+):", line):
            section = match[1]
        if match := re.match(r"    (  )?(\w+): .*# \w", line):
            explained.append(f"{section}.{match[2]}" if match[1] else section)
    assert sorted(explained) == sorted(keys) and len(keys) == 50


# The project's folder


def test_the_project_is_found_from_any_folder_inside(file, monkeypatch):
    (file.parent / "deep/er").mkdir(parents=True)
    assert find_project(file.parent / "deep/er") == file.parent
    monkeypatch.chdir(file.parent / "deep/er")
    params = load_params()
    assert params.root == file.parent and params.folder("runs") == file.parent / "runs/demo"
    monkeypatch.chdir(file.parent)
    assert find_project() == Path() and load_params().folder("runs") == Path("runs/demo")


def test_outside_of_a_project_it_is_the_checkout_that_the_package_is_installed_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_project() == PROJECT


def test_without_a_checkout_the_error_says_where_to_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(params_module, "__file__", str(tmp_path / "site-packages/actionzoo/params/read.py"))
    with pytest.raises(UserError, match=rf"no params\.yaml in {tmp_path} or above; run inside the project's folder"):
        load_params()


def test_the_command_works_in_a_folder_inside_the_project(file):
    (file.parent / "deep").mkdir()
    command = [sys.executable, "-m", "actionzoo.cli", "params", CSN]
    done = subprocess.run(command, cwd=file.parent / "deep", capture_output=True, text=True)
    assert done.returncode == 0 and "bn_frozen" in done.stdout, done.stderr


# Parts of names


@pytest.fixture(scope="module")
def shipped() -> Params:
    return load_params(PROJECT / "params.yaml")


@pytest.mark.parametrize(
    ("part", "model"),
    [
        (VIDEO, VIDEO),
        ("slowfast_r50_video", VIDEO),
        ("R50_Video", VIDEO),
        ("ircsn_bnfrozen_r50_32x2x1", CSN),
        ("slowfast_r101_8x8", R101),
    ],
)
def test_a_part_of_one_name_means_that_model(shipped, part, model):
    assert shipped.resolve(part) == model


def test_a_full_name_means_itself_though_it_is_part_of_another(shipped):
    longer = dataclasses.replace(shipped, recipes={**shipped.recipes, f"{CSN}_longer": shipped.recipes[CSN]})
    assert longer.resolve(CSN) == CSN


def test_a_part_of_several_names_lists_them(shipped):
    with pytest.raises(UserError, match=r"'slowfast_r101' is part of the names of 2 models") as error:
        shipped.resolve("slowfast_r101")
    assert R101 in str(error.value) and "slowfast_r101_r50_4x16x1_256e_kinetics400_rgb" in str(error.value)


def test_of_many_candidates_eight_are_listed(shipped):
    with pytest.raises(UserError, match=r"'kinetics400' is part of the names of 17 models.* and 9 more") as error:
        shipped.resolve("kinetics400")
    assert len(re.findall("_rgb", str(error.value))) == 8


def test_a_name_that_is_part_of_none_is_told_the_near_one(shipped):
    with pytest.raises(UserError, match=rf"recipes\.{CSN}x is unknown; did you mean {CSN}\?"):
        shipped.resolve(f"{CSN}x")


def test_the_data_root_lies_in_the_project(file):
    params = load_params(file)
    assert params.workspace == params.root == file.parent
    assert params.data_root == file.parent / "data"
    assert params.data_folder() == DataFolder.at(file.parent / "data/demo")
    assert params.data_scratch("resize") == file.parent / "data/.scratch/resize/demo"


def test_the_data_root_may_lie_elsewhere(file, monkeypatch):
    params = load_params(changed(file, "root: data ", "root: /mnt/videos "))
    assert params.data_root == Path("/mnt/videos")
    assert params.folder("data") == file.parent / "data/demo"  # what DVC tracks stays in the project
    monkeypatch.setenv("ACTIONZOO_DATA", "../shared")
    assert load_params(file).data_root == file.parent / "../shared"
    monkeypatch.setenv("ACTIONZOO_DATA", "~/videos")
    assert load_params(file).data_root == Path.home() / "videos"


@pytest.mark.parametrize("inside", [".dvc/tmp/exps/tmpabc", ".dvc/tmp/exps/standalone/tmpabc/zoo"])
def test_an_experiment_uses_the_data_of_the_project_that_queued_it(file, inside, monkeypatch):
    experiment = file.parent / inside
    experiment.mkdir(parents=True)
    for name in ("params.yaml", "published.yaml"):
        shutil.copy(file.with_name(name), experiment)
    monkeypatch.chdir(experiment)
    params = load_params()
    assert params.folder("data").absolute() == experiment / "data/demo"
    assert params.workspace == file.parent
    assert params.data_folder().stored == file.parent / "data/demo"
