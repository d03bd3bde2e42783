"""`actionzoo params`: checks the file, prints a recipe, compares two."""

import json

SLOWFAST = "slowfast_r50_video_4x16x1_256e_kinetics400_rgb"


def test_alone_it_checks_the_file(project, actionzoo):
    done = actionzoo("params")
    assert done.status == 0 and done.out.startswith("params.yaml: 17 models, ")


def test_with_a_model_it_prints_the_recipe_with_overrides(project, actionzoo):
    done = actionzoo("params", SLOWFAST)
    recipe, _, overrides = done.out.partition("\n# ")
    assert json.loads(recipe)["model"]["family"] == "slowfast"
    assert "datasets.demo overrides schedule.epochs: 256 -> " in overrides


def test_two_models_are_compared_line_by_line(project, actionzoo):
    done = actionzoo("params", "slowfast_r50_video", "slowfast_r50_8x8x1")
    assert "model.alpha: 8 -> 4" in done.out.splitlines()
    assert "clips.form: videos -> frames" in done.out.splitlines()
    assert "published" not in done.out


def test_equal_recipes_are_said_to_be_equal(project, actionzoo):
    done = actionzoo("params", SLOWFAST, SLOWFAST)
    assert done.status == 0 and "equal" in done.out and "->" not in done.out
