"""Narrowing params.yaml to some models."""

import difflib

import yaml

from actionzoo.params import load_params

SLOWFAST = "slowfast_r50_video_4x16x1_256e_kinetics400_rgb"
CSN = "ircsn_bnfrozen_r50_32x2x1_180e_kinetics400_rgb"


def test_the_kept_models_have_the_recipes_that_they_had(project, actionzoo):
    before, text = load_params(), (project / "params.yaml").read_text()
    assert actionzoo("keep", "slowfast_r50_video", CSN).out.startswith("params.yaml: 2 of 17 models kept: ")
    after = load_params()
    assert set(after.recipes) == {SLOWFAST, CSN}
    assert all(after.recipe(model) == before.recipe(model) for model in after.recipes)
    lines = difflib.ndiff(text.splitlines(), (project / "params.yaml").read_text().splitlines())
    assert not [line for line in lines if line.startswith("+") and line[1:].strip()]


def test_what_data_sets_say_of_the_others_goes_with_them(project, actionzoo):
    actionzoo("keep", SLOWFAST)
    demo = yaml.safe_load((project / "params.yaml").read_text())["datasets"]["demo"]
    assert demo["demo_recipes"] == [SLOWFAST] and set(demo["overrides"]) == {"slowfast", SLOWFAST}


def test_a_recipe_that_needs_one_that_would_go_leaves_the_file_as_it_was(project, actionzoo):
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["recipes"][SLOWFAST]["init"]["weights"] = CSN
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    text = (project / "params.yaml").read_text()
    done = actionzoo("keep", SLOWFAST)
    assert done.status == 1 and CSN in done.err
    assert (project / "params.yaml").read_text() == text


def test_an_unknown_model_is_told_the_near_one(project, actionzoo):
    text = (project / "params.yaml").read_text()
    done = actionzoo("keep", SLOWFAST.replace("video", "vidoe"))
    assert done.status == 1 and f"did you mean {SLOWFAST}" in done.err
    assert (project / "params.yaml").read_text() == text


def test_tables_of_the_others_go_if_dvc_can_restore_them(project, actionzoo):
    """The report depends on all tables that are there; those of models that the graph lacks would change it."""
    kept = project / "metrics/demo/train" / SLOWFAST
    locked, unknown = project / "metrics/demo/train" / CSN, project / "plots/demo/loss" / CSN
    for folder in (kept, locked, unknown):
        folder.mkdir(parents=True)
        (folder / "table").write_text("1")
    (project / "dvc.lock").write_text(
        f"    - path: metrics/demo/train/{CSN}\n    - path: metrics/demo/train/{SLOWFAST}\n"
    )
    assert f"which DVC's cache keeps: {CSN}" in actionzoo("keep", SLOWFAST).out
    assert kept.is_dir() and unknown.is_dir() and not locked.exists()
