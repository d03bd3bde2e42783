"""Stages that dvc.lock has results of."""

import yaml

SLOWFAST = "slowfast_r50_video_4x16x1_256e_kinetics400_rgb"


def entry(*outs: str) -> dict:
    return {"cmd": "true", "outs": [{"path": path, "md5": "0" * 32} for path in outs]}


def test_only_stages_of_the_chosen_data_set_and_of_known_models_are_listed(project, actionzoo):
    stages = {
        "download": entry("data/demo/archive/inventory.json"),
        "resize@256": entry("data/kinetics400/videos_256/manifest.csv"),
        "resize@320": entry("data/demo/videos_320/manifest.csv"),
        f"train@{SLOWFAST}": entry(f"runs/demo/{SLOWFAST}/best.pth", f"runs/demo/{SLOWFAST}/recipe.json"),
        "train@renamed_since": entry("runs/demo/renamed_since/best.pth"),
        "report": "damaged",
    }
    (project / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}, sort_keys=False))
    assert actionzoo("built").out.splitlines() == ["download", "resize@320", f"train@{SLOWFAST}"]


def test_without_a_lock_file_a_sentence_says_where_it_comes_from(project, actionzoo):
    done = actionzoo("built")
    assert done.status == 1 and "dvc.lock is not there: no stage was built" in done.err


def test_a_damaged_lock_file_is_told_with_the_remedy(project, actionzoo):
    (project / "dvc.lock").write_text("stages: [\n")
    done = actionzoo("built")
    assert done.status == 1 and "dvc.lock is no YAML that is read" in done.err
